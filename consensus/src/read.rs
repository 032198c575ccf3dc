//! Linearizable reads: which reads wait, and under which token raft confirms them.
//!
//! The raft library answers a read when a majority has acknowledged a heartbeat that carries the read's
//! token. If a token were ever used twice, acknowledgements of the first use could confirm the second, and
//! with it every read queued before: a deposed leader would answer from the past. So a token is made here,
//! once, by the leader itself: replica, boot of its log, counter. All reads that wait share one.

use crate::core::ConfirmedRead;
use raft::ReadState;
use std::collections::BTreeMap;

/// Reads by where they stand.
pub(crate) struct Reads {
    prefix: [u8; 16],
    tokens_made: u64,
    waiting: Vec<u64>,
    issued: BTreeMap<Vec<u8>, Vec<u64>>,
}

impl Reads {
    pub(crate) fn new(id: u64, boots: u64) -> Self {
        let mut prefix = [0; 16];
        prefix[..8].copy_from_slice(&id.to_be_bytes());
        prefix[8..].copy_from_slice(&boots.to_be_bytes());
        Self { prefix, tokens_made: 0, waiting: Vec::new(), issued: BTreeMap::new() }
    }

    pub(crate) fn ask(&mut self, id: u64) {
        self.waiting.push(id);
    }

    /// A token for every read that waits now, never made before and never again.
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

    /// The reads behind the tokens that raft confirmed.
    pub(crate) fn confirm(&mut self, states: Vec<ReadState>) -> Vec<ConfirmedRead> {
        let mut confirmed = Vec::new();
        for state in states {
            let ids = self.issued.remove(&state.request_ctx).unwrap_or_default();
            confirmed.extend(ids.into_iter().map(|id| ConfirmedRead { id, index: state.index }));
        }
        confirmed
    }

    /// Forgets reads that nobody waits for any more.
    pub(crate) fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.waiting.retain(|id| wanted(*id));
    }

    /// Gives up every read: this replica does not lead.
    pub(crate) fn refuse(&mut self) -> Vec<u64> {
        let mut refused = std::mem::take(&mut self.waiting);
        refused.extend(std::mem::take(&mut self.issued).into_values().flatten());
        refused
    }
}
