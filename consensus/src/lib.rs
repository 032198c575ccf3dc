//! Raft-replicated log for an opaque state machine: log, snapshots, elections and transport.
//!
//! A state machine is a deterministic function of its log ([`StateMachine`]). This crate gives every replica
//! the same log in the same order. It acknowledges a command only when a majority holds the entry on disk.
//! Commands are opaque, and authorization is out of scope: the crate tolerates crashes, not Byzantine faults.
//!
//! A pure core ([`core`]) drives the `raft` crate and returns effects. A shell ([`Replica`]) performs them
//! with a raft loop, a disk loop and the overlay. In production each loop has its own thread; in a simulation
//! ([`simulation`]) both are tasks under the test's clock. Start reading at [`core::Core`].
//!
//! Caveat: a follower learns that an entry is committed from the leader's *next* message, at the latest one
//! heartbeat later. A client that must see the newest state on any replica calls [`Handle::read_barrier`]
//! first. The barrier also carries the commit index to the followers.

pub mod core;
#[cfg(feature = "fuzzing")]
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
mod ids;
mod invariant;
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
mod status;

pub use config::{Config, GroupId, Limits, ReplicaAddress, Timings};
pub use error::{LinearizableReadError, LogError, ProposeError, StartError};
pub use handle::Handle;
pub use ids::{BatchNumber, Incarnation, LogIndex, ReadId, Term};
pub use machine::{Frozen, StateMachine};
pub use metrics::{Metrics, SYNC_SECONDS_BOUNDS};
pub use replica::Replica;
pub use sessions::SessionId;
pub use status::{RaftStatus, Role};
