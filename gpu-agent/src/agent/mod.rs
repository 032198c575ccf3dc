//! One node's agent: it asks control what this node shall be, believes only what the circle signed, and
//! makes it so.
//!
//! The picture:
//!
//! ```text
//!  control <--sync-- actor ---- core: which orders count, what follows (pure)
//!                     | | |
//!           chain, orders | '-- slot (one task each) -- model -- sandbox -- worker link
//!            (on disk)    '---- gateway child, shard service, admin socket, metrics
//! ```
//!
//! Start reading at [`core`], then `actor.rs`. What may surprise: everything is written down durably before it
//! is acted on, so an agent killed at any moment and started again converges; and the sandboxes end by
//! themselves when nobody renews their lease, so an agent that stays dead does no harm.

pub mod core;

mod actor;
mod admin;
mod backoff;
mod chain;
mod config;
mod control_client;
mod error;
mod gateway;
mod lease;
mod logs;
mod models;
mod node;
mod orders;
mod prometheus;
#[cfg(test)]
mod rehearsal;
mod resources;
mod slot;
mod start;
mod status;
mod storage;
mod worker_link;

pub use admin::{ADMIN_SOCKET, hand_order};
pub use config::{AgentConfig, GatewayConfig, StorageConfig};
pub use control_client::{ControlCall, ControlLink};
pub use error::AgentError;
pub use resources::ResourceCaps;
pub use start::run;
