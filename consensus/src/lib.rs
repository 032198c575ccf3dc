//! Replicate an opaque state machine: log, snapshots, elections, transport.
//!
//! A state machine is a function of its log ([`StateMachine`]). This crate gives every replica the same
//! log, in the same order, and answers only when a majority holds an entry on disk. It knows nothing of
//! what the commands mean, and it does not decide who has authority: it survives crashes, not treason.
//!
//! Inside, a pure core ([`core`]) drives the `raft` crate and asks for effects; a shell ([`Replica`])
//! performs them with a raft loop, a disk loop and the overlay. Each loop has a thread of its own; in a
//! simulation ([`simulation`]) both are tasks under the test's clock. Start reading at [`core::Core`].
//!
//! What may surprise: a follower learns that an entry is committed with the *next* message of the leader,
//! at the latest one heartbeat later. Whoever must see the newest state on any replica calls
//! [`Handle::read_barrier`] first, which also carries the commit index to the followers.

pub mod core;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod simulation;
pub mod store;
pub mod transport;
pub mod wal;

mod command;
mod config;
mod dice;
mod disk;
mod driver;
mod election;
mod error;
mod executor;
mod handle;
mod log;
mod machine;
mod metrics;
mod planted;
mod read;
mod replica;
mod routes;
mod sessions;
mod simulated_disk;
mod snapshot;

pub use config::{Config, GroupId, Limits, Peer, Timings};
pub use error::{LogError, ProposeError, ReadError, StartError};
pub use handle::{Handle, Role, Status};
pub use machine::{Frozen, StateMachine};
pub use metrics::{Metrics, SYNC_SECONDS_BOUNDS};
pub use replica::Replica;
pub use sessions::SessionId;
