//! Invariants of the core: relations within its state, and between its states at two successive checks.
//!
//! They hold between two steps, when the effects of the last step have been performed. The simulation and the
//! tests check them after every step. A violation is a bug: the replica that finds one stops.

use super::Core;
use crate::ids::{self, LogIndex, Term};
use crate::invariant::require;
use protocol::ReplicaId;

/// Numbers of a core that never fall, and its vote, as of the last check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Milestones {
    pub(super) term: Term,
    pub(super) vote: Option<ReplicaId>,
    pub(super) durable_term: Term,
    pub(super) commit: LogIndex,
    pub(super) applied: LogIndex,
    pub(super) snapshot: LogIndex,
}

impl Core {
    /// Checks every invariant of the state, and of its change since the last check.
    ///
    /// # Errors
    /// Returns the text of the first violation.
    pub fn check_invariants(&mut self) -> Result<(), String> {
        let progress = self.progress();
        self.checked.check_change(&progress)?;
        progress.check_order(LogIndex(self.raw.raft.raft_log.last_index()))?;
        self.check_terms()?;
        self.check_batches()?;
        self.check_role()?;
        self.raw.store().check_invariants()?;
        self.reads.check_invariants()?;
        self.checked = progress;
        Ok(())
    }

    pub(super) fn progress(&self) -> Milestones {
        let raft = &self.raw.raft;
        Milestones {
            term: Term(raft.term),
            vote: ids::replica(raft.vote),
            durable_term: self.durable_term,
            commit: LogIndex(raft.raft_log.committed),
            applied: self.applied,
            snapshot: self.raw.store().snapshot_index(),
        }
    }

    /// Checks that no part of the state is of a term that this replica has not reached.
    fn check_terms(&self) -> Result<(), String> {
        let term = Term(self.raw.raft.term);
        let deferred = self.deferred.map_or(Term(0), |state| state.term);
        let (stored, last) = (self.raw.store().hard_state().term, self.raw.store().last_term());
        for (name, found) in [
            ("the durable term", self.durable_term),
            ("the deferred hard state", deferred),
            ("the hard state", stored),
            ("the last entry", last),
        ] {
            require(found <= term, || format!("{name} is of term {found}, ahead of term {term}"))?;
        }
        Ok(())
    }

    /// Checks the batches that wait for the disk: in order, and counted in full.
    fn check_batches(&self) -> Result<(), String> {
        let numbers = || self.outstanding.iter().map(|batch| batch.number);
        let unordered = numbers().zip(numbers().skip(1)).find(|(first, second)| first >= second);
        if let Some((first, second)) = unordered {
            return Err(format!("batch {second} waits for the disk behind batch {first}"));
        }
        let (counted, actual) =
            (self.unwritten_bytes, self.outstanding.iter().map(|batch| batch.bytes).sum::<u64>());
        require(counted == actual, || format!("{actual} bytes wait for the disk, counted as {counted}"))
    }

    /// Checks that a leader voted for itself and follows no other, and that it alone transfers leadership.
    fn check_role(&self) -> Result<(), String> {
        let (raft, own) = (&self.raw.raft, self.settings.id.0);
        if !self.leads() {
            let idle = raft.lead_transferee.is_none();
            return require(idle, || "a replica that does not lead transfers leadership".to_owned());
        }
        let (vote, leader) = (raft.vote, raft.leader_id);
        require(vote == own, || format!("leader {own} voted for {vote}"))?;
        require(leader == own, || format!("leader {own} follows leader {leader}"))
    }
}

impl Milestones {
    /// Checks that nothing was taken back since the last check, and that no term has two votes.
    fn check_change(&self, now: &Self) -> Result<(), String> {
        for (name, before, after) in [
            ("term", self.term.0, now.term.0),
            ("durable term", self.durable_term.0, now.durable_term.0),
            ("commit index", self.commit.0, now.commit.0),
            ("applied index", self.applied.0, now.applied.0),
            ("snapshot index", self.snapshot.0, now.snapshot.0),
        ] {
            require(before <= after, || format!("the {name} fell from {before} to {after}"))?;
        }
        let (before, after) = (ids::raft_id(self.vote), ids::raft_id(now.vote));
        let kept = self.term != now.term || self.vote.is_none() || self.vote == now.vote;
        require(kept, || format!("the vote in term {} changed from {before} to {after}", now.term))
    }

    /// Checks that each index reaches no further than the next: snapshot, applied, commit, last.
    fn check_order(&self, last: LogIndex) -> Result<(), String> {
        let Self { commit, applied, snapshot, .. } = self;
        require(*commit <= last, || format!("entry {commit} is committed, but the log ends at {last}"))?;
        require(applied <= commit, || format!("entry {applied} is applied, but only {commit} is committed"))?;
        require(snapshot <= applied, || {
            format!("the snapshot ends at {snapshot}, but only {applied} is applied")
        })
    }
}
