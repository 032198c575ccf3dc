//! Linearizable reads: queues waiting reads, and makes the tokens under which raft confirms them.
//!
//! The raft library answers a read when a majority has acknowledged a heartbeat that carries the read's
//! token. If a token were used twice, acknowledgements of the first use could confirm the second, and every
//! read queued before it. A deposed leader would then return stale data. Therefore the leader itself makes
//! each token once, from its id, the incarnation of its log and a counter. All waiting reads share one token.

use crate::ids::{Incarnation, LogIndex, ReadId};
use crate::invariant::require;
use protocol::ReplicaId;
use raft::ReadState;
use std::collections::{BTreeMap, BTreeSet};

/// A linearizable read confirmed by a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedRead {
    /// Id that the caller passed to [`crate::core::Core::read`].
    pub id: ReadId,
    /// Upper bound of everything that was committed when the read began.
    pub index: LogIndex,
}

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
        assert!(self.waiting.last().is_none_or(|last| *last < id), "read {id} is out of order");
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
        debug_assert_eq!(token.len(), self.prefix.len() + 8, "a token is the prefix and a count");
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

    /// Checks that this replica made every issued token, and that no read is queued twice.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        for token in self.issued.keys() {
            let number = token.strip_prefix(&self.prefix).and_then(|number| number.try_into().ok());
            let number = number.map(u64::from_be_bytes);
            let made = number.is_some_and(|number| (1..=self.tokens_made).contains(&number));
            require(made, || format!("this replica never made read token {token:02x?}"))?;
        }
        let mut seen = BTreeSet::new();
        let all = self.waiting.iter().chain(self.issued.values().flatten());
        let twice = all.copied().find(|id| !seen.insert(*id));
        twice.map_or(Ok(()), |id| Err(format!("read {id} is queued twice")))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> Reads {
        let mut reads = Reads::new(ReplicaId(1), Incarnation(7));
        reads.enqueue(ReadId(1));
        assert!(reads.issue().is_some());
        reads.enqueue(ReadId(2));
        reads
    }

    #[test]
    fn tokens_are_unique_to_replica_incarnation_and_count() {
        let mut tokens = BTreeSet::new();
        for (id, incarnation) in [(1, 7), (1, 8), (2, 7)] {
            let mut reads = Reads::new(ReplicaId(id), Incarnation(incarnation));
            assert_eq!(reads.issue(), None, "no read waits");
            for number in 1..=2 {
                reads.enqueue(ReadId(number));
                assert!(tokens.insert(reads.issue().expect("a read waits")));
            }
        }
    }

    #[test]
    fn a_token_confirms_the_reads_that_were_issued_under_it_once() {
        let mut reads = Reads::new(ReplicaId(1), Incarnation(7));
        (1..=2).for_each(|id| reads.enqueue(ReadId(id)));
        let token = reads.issue().expect("reads wait");
        reads.enqueue(ReadId(3));
        let state = |request_ctx: &[u8]| ReadState { index: 9, request_ctx: request_ctx.to_vec() };
        let confirmed = reads.confirm(vec![state(b"another"), state(&token), state(&token)]);
        assert_eq!(confirmed, [1, 2].map(|id| ConfirmedRead { id: ReadId(id), index: LogIndex(9) }));
        assert_eq!(reads.reject_all(), [ReadId(3)]);
    }

    #[test]
    fn abandoned_reads_are_dropped_and_all_others_rejected_together() {
        let mut reads = reads();
        reads.enqueue(ReadId(3));
        reads.retain(|id| id != ReadId(2));
        assert_eq!(reads.reject_all(), [ReadId(3), ReadId(1)]);
        assert_eq!(reads.reject_all(), []);
    }

    #[test]
    fn each_planted_violation_is_found() {
        type Plant = fn(&mut Reads);
        let planted: [(Plant, &str); 4] = [
            (|_| (), "sound"),
            (|reads| reads.tokens_made = 0, "this replica never made read token"),
            (|reads| drop(reads.issued.insert(b"short".to_vec(), Vec::new())), "this replica never made"),
            (|reads| reads.waiting.push(ReadId(1)), "read 1 is queued twice"),
        ];
        for (plant, expected) in planted {
            let mut reads = reads();
            plant(&mut reads);
            let found = reads.check_invariants().err().unwrap_or("sound".to_owned());
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
