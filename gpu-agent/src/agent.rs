//! The agent of one node: it requests the node's desired state from control, trusts only what the circle
//! signed, and reconciles the node with it.
//!
//! Overview:
//!
//! ```text
//!  control <--sync-- actor ---- core: which orders count, what follows (pure)
//!                     | | |
//!    chain, orders, halts | '-- slot (one task each) -- model -- sandbox -- worker link
//!            (on disk)    |---- jobs (one task for each slot) -- artifact -- sandbox -- output of ranks
//!                         '---- gateway child, shard service, admin socket, metrics
//! ```
//!
//! Start reading at [`core`], then `actor.rs`. Every decision is persisted before it takes effect, so an
//! agent that is killed at any moment and restarted converges. Sandboxes end when their lease is not renewed,
//! so an agent that stays dead does no harm.

pub mod core;

mod access;
mod actor;
mod admin;
mod backoff;
mod chain;
mod clocks;
mod config;
mod control_client;
mod drain;
mod error;
mod gangs;
mod gateway;
mod halts;
mod jobs;
mod last_answer;
mod lease;
mod logs;
mod models;
mod node;
mod orders;
mod polling;
mod prometheus;
mod resources;
#[cfg(test)]
mod simulation;
mod slot;
mod start;
mod status;
mod storage;
mod usage;
mod worker_link;

pub use admin::{ADMIN_SOCKET, hand_halt, hand_order};
pub use config::{AgentConfig, GatewayConfig, StorageConfig};
pub use control_client::{ControlCall, ControlLink};
pub use drain::DrainConfig;
pub use error::AgentError;
pub use resources::ResourceCaps;
pub use start::run;
