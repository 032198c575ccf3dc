//! A connection to a public key: pinned post-quantum TLS, HTTP/2 in either direction over it.
//!
//! Between our parts a peer's name is its Ed25519 key. There is no certificate authority, no host name,
//! no resumption: both sides prove their key in every handshake, and the only key exchange is
//! X25519MLKEM768, so a recording made today stays closed to a quantum computer of tomorrow.
//!
//! - [`Identity`] is the private key of a process; [`PeerPolicy`] says which keys may connect.
//! - [`Client`] and [`serve`] are HTTP/2 over such connections; [`connect`] and [`accept`] the bare stream.
//! - [`reverse_serve`] and [`accept_reverse`] turn the roles round: who dialled answers the requests, so a
//!   worker behind NAT serves like any other.
//! - [`people`] is another thing: listeners for browsers, `curl` and OpenAI clients, with ordinary TLS.
//! - [`descriptors`] hands frames and file descriptors to a neighbour process over a unix socket.
//! - [`open_files`] raises the limit of open files, and lowers what listeners hold to what it allows.
//! - [`listen`] binds what a command line names: an address, a path, or an inherited `fd:N`.
//!
//! What may surprise: in TLS 1.3 [`connect`] returns before the server has judged the client's key. The
//! refusal arrives with the first read; here it surfaces as [`Error::PeerRefused`] on the first request.

mod accept;
mod address;
mod admission;
mod channel;
mod client;
mod error;
mod identity;
mod limits;
mod log_throttle;
mod policy;
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
pub use channel::{Channel, ResponseBody};
pub use client::Client;
pub use error::Error;
pub use identity::{Identity, IdentityError};
pub use limits::{Backoff, Limits};
pub use log_throttle::LogThrottle;
pub use policy::PeerPolicy;
pub use protocol::PublicKey;
#[doc(hidden)]
pub use reverse::read_preface;
pub use reverse::{PREFACE_BYTES_MAX, Reversed, accept_reverse, accept_reverse_loop, reverse_serve};
pub use server::{Peer, PeerAddress, serve};
pub use stream::Stream;
pub use tls::{Connection, accept, connect};
/// Tells servers to stop; cancel it to begin an orderly end.
pub use tokio_util::sync::CancellationToken;
