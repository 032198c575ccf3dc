//! Linearizable reads: queues waiting reads, and makes the tokens under which raft confirms them.
//!
//! The raft library answers a read when a majority has acknowledged a heartbeat that carries the read's
//! token. If a token were used twice, acknowledgements of the first use could confirm the second, and every
//! read queued before it. A deposed leader would then return stale data. Therefore the leader itself makes
//! each token once, from its id, the incarnation of its log and a counter. All waiting reads share one token.

use crate::core::ConfirmedRead;
use crate::ids::{Incarnation, LogIndex, ReadId};
use protocol::ReplicaId;
use raft::ReadState;
use std::collections::BTreeMap;

/// Waiting reads, and issued reads by token.
pub(crate) struct Reads {
    prefix: [u8; 16],
    tokens_made: u64,
    waiting: Vec<ReadId>,
    issued: BTreeMap<Vec<u8>, Vec<ReadId>>,
}

impl Reads {
    pub(crate) fn new(id: ReplicaId, incarnation: Incarnation) -> Self {
        let mut prefix = [0; 16];
        prefix[..8].copy_from_slice(&id.0.to_be_bytes());
        prefix[8..].copy_from_slice(&incarnation.0.to_be_bytes());
        Self { prefix, tokens_made: 0, waiting: Vec::new(), issued: BTreeMap::new() }
    }

    /// Queues a read for the next token.
    pub(crate) fn enqueue(&mut self, id: ReadId) {
        self.waiting.push(id);
    }

    /// Returns a new, unique token for all waiting reads, or `None` if there are none.
    pub(crate) fn issue(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() {
            return None;
        }
        self.tokens_made += 1;
        let mut token = self.prefix.to_vec();
        token.extend_from_slice(&self.tokens_made.to_be_bytes());
        let previous = self.issued.insert(token.clone(), std::mem::take(&mut self.waiting));
        assert!(previous.is_none(), "a read token was made twice");
        Some(token)
    }

    /// Returns the reads behind the tokens that raft confirmed.
    pub(crate) fn confirm(&mut self, states: Vec<ReadState>) -> Vec<ConfirmedRead> {
        let mut confirmed = Vec::new();
        for state in states {
            let ids = self.issued.remove(&state.request_ctx).unwrap_or_default();
            confirmed.extend(ids.into_iter().map(|id| ConfirmedRead { id, index: LogIndex(state.index) }));
        }
        confirmed
    }

    /// Discards waiting reads whose clients have given up.
    pub(crate) fn retain(&mut self, wanted: impl Fn(ReadId) -> bool) {
        self.waiting.retain(|id| wanted(*id));
    }

    /// Rejects every read, because this replica is not the leader.
    pub(crate) fn reject_all(&mut self) -> Vec<ReadId> {
        let mut rejected = std::mem::take(&mut self.waiting);
        rejected.extend(std::mem::take(&mut self.issued).into_values().flatten());
        rejected
    }
}
