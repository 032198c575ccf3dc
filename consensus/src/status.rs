//! Raft status of a replica: role, leader, term and progress.

use crate::ids::{LogIndex, Term};
use protocol::ReplicaId;

/// Raft role of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Appends entries and replicates them.
    Leader,
    /// Follows a leader.
    Follower,
    /// Knows no leader.
    Candidate,
}

/// Status of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftStatus {
    pub id: ReplicaId,
    pub role: Role,
    /// The known leader, if there is one.
    pub leader: Option<ReplicaId>,
    /// The current term.
    pub term: Term,
    /// The highest index known to be committed.
    pub commit: LogIndex,
    /// The highest index applied to the state machine.
    pub applied: LogIndex,
    /// The last index of the log, whether durable or not.
    pub last: LogIndex,
    /// True while proposals are rejected because the disk is full or nearly full.
    pub disk_full: bool,
    /// Reason why the replica stopped, if it has.
    pub stopped: Option<String>,
}

impl RaftStatus {
    /// Returns whether the replica is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}
