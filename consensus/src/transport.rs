//! Transport between replicas: messages, which may be lost, and requests, whose answers may be lost.
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
use protocol::ReplicaId;
use raft::eraftpb::Message;

/// HTTP paths of the peer endpoints.
pub(crate) mod paths {
    pub(crate) const MESSAGES: &str = "/consensus/v1/messages";
    pub(crate) const SNAPSHOT: &str = "/consensus/v1/snapshot";
    pub(crate) const PROPOSE: &str = "/consensus/v1/propose";
    pub(crate) const READ: &str = "/consensus/v1/read";
}

/// Header with the sender's group. Replicas of another group are rejected even if their key is the right one:
/// circles that were founded with the same keys share them.
pub(crate) const GROUP: http::HeaderName = http::HeaderName::from_static("quorate-group");

/// Sends messages and requests to the other replicas.
pub trait Transport: Send + Sync + 'static {
    /// Sends messages, each at most once. Any may be lost; raft retransmits those that still matter. Never
    /// blocks.
    fn send(&self, messages: Vec<Message>);

    /// Forwards a request to `leader`, and waits for its answer.
    fn forward(&self, leader: ReplicaId, request: Request)
    -> BoxFuture<'static, Result<Bytes, RequestError>>;
}

/// Requests that a follower forwards to the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Append this entry, and answer with the response once it is applied.
    Propose(Bytes),
    /// Confirm leadership, and answer with the index that a read must have applied (8 bytes, little-endian).
    Read,
}

/// Reasons why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The replica that was asked is not the leader; nothing was done.
    #[error("not the leader")]
    NotLeader,
    /// The request was never sent; nothing was done.
    #[error("the leader cannot be reached")]
    Unreachable,
    /// The request was sent, and its answer was lost.
    #[error("the answer was lost")]
    Lost,
    /// The leader rejected the proposal.
    #[error(transparent)]
    Propose(#[from] crate::error::ProposeError),
}
