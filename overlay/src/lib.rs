//! Connections to a public key: pinned post-quantum TLS, and HTTP/2 in either direction over it.
//!
//! Between our processes a peer's name is its Ed25519 key. There is no certificate authority, no host name,
//! no resumption: both sides prove their key in every handshake. The only key exchange is X25519MLKEM768, so
//! a future quantum computer cannot decrypt a recording made today.
//!
//! - [`Identity`] is the private key of a process; [`PeerPolicy`] decides which keys may connect.
//! - [`Client`] and [`serve`] are HTTP/2 over such connections; [`connect`] and [`accept`] the bare stream.
//! - [`reverse_serve`] and [`accept_reverse`] reverse the roles: the dialling side answers the requests, so a
//!   worker behind NAT serves like any other.
//! - [`serve_with_streams`] and [`dial_stream`] carry bare byte streams beside HTTP on one listener;
//!   [`connect_inside`] and [`accept_inside`] prove keys over a stream that a third party carries.
//! - [`people`] has listeners with ordinary TLS for browsers, `curl` and OpenAI clients.
//! - [`descriptors`] passes frames and file descriptors to another local process over a unix socket.
//! - [`open_files`] raises the limit of open files, and lowers the bounds of listeners to fit it.
//! - [`listen`] binds the listener that a command line names: an address, a path, or an inherited `fd:N`.
//!
//! Caveat: in TLS 1.3 [`connect`] returns before the server has checked the client's key. The refusal arrives
//! with the first read; here it surfaces as [`Error::PeerRefused`] on the first request.

mod accept;
mod address;
mod admission;
mod bare;
mod channel;
mod client;
mod error;
mod identity;
mod limits;
mod log_throttle;
mod policy;
mod rate_limiter;
mod refusal;
mod reverse;
mod server;
mod stream;
mod tls;

pub mod descriptors;
pub mod listen;
pub mod open_files;
pub mod people;

pub use accept::Arrival;
pub use address::{Address, NotAnAddress};
pub use admission::SourcePrefix;
pub use axum::body::Body;
pub use bare::{accept_inside, connect_inside, dial_stream};
pub use channel::{Channel, ResponseBody};
pub use client::Client;
pub use error::Error;
pub use identity::{Identity, IdentityError};
pub use limits::{Backoff, Limits};
pub use log_throttle::LogThrottle;
pub use policy::PeerPolicy;
pub use protocol::PublicKey;
pub use rate_limiter::{Rate, RateLimiter};
pub use refusal::RefusalForm;
#[doc(hidden)]
pub use reverse::read_preface;
pub use reverse::{PREFACE_BYTES_MAX, Reversed, accept_reverse, accept_reverse_loop, reverse_serve};
pub use server::{Peer, PeerAddress, StreamHandler, serve, serve_with_streams};
pub use stream::{Stream, Watched};
pub use tls::{Connection, accept, connect};
/// The token that stops servers; cancelling it begins an orderly shutdown.
pub use tokio_util::sync::CancellationToken;
