//! The edge between replicas: messages that may be lost, requests that are answered or are not.
//!
//! Two implementations: [`OverlayTransport`] over pinned TLS, and [`SimulatedNetwork`] in memory, which cuts
//! links on command.

mod frames;
mod outbox;
mod overlay_transport;
mod simulated;
mod snapshots;

pub(crate) use frames::{FrameReader, encode_message};
pub use overlay_transport::OverlayTransport;
pub(crate) use overlay_transport::{FOREIGN, Peers};
pub use simulated::SimulatedNetwork;
pub(crate) use snapshots::Assembly;

use bytes::Bytes;
use futures::future::BoxFuture;
use raft::eraftpb::Message;

/// Where a replica's peers ask for things.
pub(crate) mod paths {
    pub(crate) const MESSAGES: &str = "/consensus/v1/messages";
    pub(crate) const SNAPSHOT: &str = "/consensus/v1/snapshot";
    pub(crate) const PROPOSE: &str = "/consensus/v1/propose";
    pub(crate) const READ: &str = "/consensus/v1/read";
}

/// The header with the sender's group. A replica of another group has nothing to say here, though its key may be
/// the right one: circles that were founded with the same keys share them.
pub(crate) const GROUP: http::HeaderName = http::HeaderName::from_static("quorate-group");

/// How replicas reach one another.
pub trait Transport: Send + Sync + 'static {
    /// Sends messages, each at most once; any may be lost, and raft sends again what still matters.
    /// Never blocks.
    fn send(&self, messages: Vec<Message>);

    /// Asks `leader` to do what only a leader can, and waits for its answer.
    fn forward(&self, leader: u64, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>>;
}

/// What a follower asks of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Append this entry, and answer with the response once it is applied.
    Propose(Bytes),
    /// Confirm leadership, and answer with the index that a read must have applied (8 bytes, little-endian).
    Read,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Whoever was asked does not lead; nothing was done.
    #[error("not the leader")]
    NotLeader,
    /// The request never left; nothing was done.
    #[error("the leader cannot be reached")]
    Unreachable,
    /// It was sent, and the answer never came.
    #[error("the answer was lost")]
    Lost,
    /// The leader took it and said no.
    #[error(transparent)]
    Propose(#[from] crate::error::ProposeError),
}
