//! Halt book: the halts that a node or a control replica has taken, in the order of their arrival.
//!
//! The book never loses a halt that stands. A lifted one is removed, and is refused from then on, since the
//! circle's state keeps its id.

use super::{VerifiedHalt, check_halt, covers, halt_stands};
use crate::{ChainError, CircleState};
use protocol::governance::NodeAdmission;
use protocol::halt::{
    HALT_BOOK_VERSION, HALTS_PAGE_MAX, HALTS_PER_MEMBER_MAX, Halt, HaltBookRecord, HaltScope, SignedHalt,
};
use protocol::{CircleId, HaltId, ServiceName};
use std::collections::{BTreeMap, VecDeque};

/// Maximum number of halts of one source that wait for the circle's history. One source pushes out none of
/// another.
const DEFERRED_MAX: usize = 256;

/// Halts that one party has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HaltBook {
    halts: BTreeMap<HaltId, SignedHalt>,
    /// Halts by the number of their arrival, from 1; a number is never used again.
    arrivals: BTreeMap<u64, HaltId>,
    last: u64,
}

impl HaltBook {
    /// Takes a verified halt. Returns false if it is in the book already.
    ///
    /// # Errors
    /// Returns an error when as many halts of its member stand as one member may have.
    pub fn accept(&mut self, verified: VerifiedHalt) -> Result<bool, ChainError> {
        let VerifiedHalt { id, signed } = verified;
        if self.contains(&id) {
            return Ok(false);
        }
        let member = &signed.halt.member;
        let standing = self.halts.values().filter(|other| other.halt.member == *member).count();
        if standing >= HALTS_PER_MEMBER_MAX {
            return Err(ChainError::TooManyHalts(member.clone()));
        }
        self.insert(id, signed);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(true)
    }

    /// Takes a verified halt, or this copy of it in place of one that verifies no longer. Returns false if
    /// there is no need of either.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn take(&mut self, state: &CircleState, verified: VerifiedHalt) -> Result<bool, ChainError> {
        let id = verified.id;
        if !self.contains(&id) {
            return self.accept(verified);
        }
        if !self.lacks(state, &verified.signed) {
            return Ok(false);
        }
        self.halts.remove(&id);
        self.arrivals.retain(|_, arrived| *arrived != id);
        // It arrives again, for the parties that have refused the earlier copy.
        self.insert(id, verified.signed);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(true)
    }

    /// Returns whether a halt is new to the book, or may be a sound copy of one that verifies no longer: its
    /// member has other keys since, so no other party takes it from here.
    #[must_use]
    pub fn lacks(&self, state: &CircleState, signed: &SignedHalt) -> bool {
        let known = self.halts.get(&signed.halt.id());
        known.is_none_or(|known| known != signed && check_halt(state, known.clone()).is_err())
    }

    fn insert(&mut self, id: HaltId, signed: SignedHalt) {
        debug_assert!(!self.contains(&id), "a halt arrives once");
        self.last += 1;
        self.arrivals.insert(self.last, id);
        self.halts.insert(id, signed);
    }

    /// Returns whether the book has the halt of this id.
    #[must_use]
    pub fn contains(&self, id: &HaltId) -> bool {
        self.halts.contains_key(id)
    }

    /// Removes the halts that stand no longer. Returns true if there were any.
    pub fn prune(&mut self, state: &CircleState) -> bool {
        let before = self.halts.len();
        self.halts.retain(|id, signed| halt_stands(state, id, &signed.halt));
        self.arrivals.retain(|_, id| self.halts.contains_key(id));
        debug_assert!(self.halts.keys().all(|id| state.lifted(id).is_none()), "no lifted halt is left");
        debug_assert_eq!(self.check_invariants(), Ok(()));
        self.halts.len() < before
    }

    /// Returns the halts that stand, by id.
    pub fn in_force<'a>(&'a self, state: &'a CircleState) -> impl Iterator<Item = &'a Halt> {
        let standing = self.halts.iter().filter(|(id, signed)| halt_stands(state, id, &signed.halt));
        standing.map(|(_, signed)| &signed.halt)
    }

    /// Returns the number of halts that stand, by the kind of their scope: every kind is listed.
    #[must_use]
    pub fn standing_by_kind(&self, state: &CircleState) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, _> = HaltScope::KINDS.into_iter().map(|kind| (kind, 0)).collect();
        for halt in self.in_force(state) {
            *counts.entry(halt.scope.kind()).or_default() += 1;
        }
        debug_assert_eq!(counts.len(), HaltScope::KINDS.len(), "each scope has a known kind");
        counts
    }

    /// Returns a halt in force that covers this service on this node.
    #[must_use]
    pub fn covering(
        &self,
        state: &CircleState,
        service: &ServiceName,
        node: &NodeAdmission,
    ) -> Option<&Halt> {
        // The scope is compared first: it decides for most halts, and costs no digest.
        let covering = self.halts.iter().filter(|(_, signed)| covers(&signed.halt, service, node));
        let standing = covering.filter(|(id, signed)| halt_stands(state, id, &signed.halt));
        standing.map(|(_, signed)| &signed.halt).next()
    }

    /// Returns the signed halts, by id.
    pub fn signed(&self) -> impl Iterator<Item = (&HaltId, &SignedHalt)> {
        self.halts.iter()
    }

    /// Returns the halts that arrived after this number, as many as one answer holds, and the number of the
    /// last one.
    #[must_use]
    pub fn after(&self, number: u64) -> (u64, Vec<SignedHalt>) {
        let later = self.arrivals.range(number.saturating_add(1)..).take(HALTS_PAGE_MAX);
        let (numbers, halts): (Vec<u64>, Vec<SignedHalt>) =
            later.filter_map(|(number, id)| Some((*number, self.halts.get(id)?.clone()))).unzip();
        debug_assert!(numbers.first().is_none_or(|first| *first > number), "only later arrivals follow");
        debug_assert!(halts.len() <= HALTS_PAGE_MAX, "an answer has its size");
        (numbers.last().copied().unwrap_or(number), halts)
    }

    /// Returns the number of the last arrival.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the record to persist.
    #[must_use]
    pub fn to_record(&self, circle: CircleId) -> HaltBookRecord {
        HaltBookRecord { version: HALT_BOOK_VERSION, circle, halts: self.halts.values().cloned().collect() }
    }

    /// Restores a book from this party's own record. Each halt in it was verified when it was taken. It is
    /// not verified again: its member may have other keys now.
    #[must_use]
    pub fn from_record(record: HaltBookRecord) -> Self {
        let mut book = Self::default();
        for signed in record.halts {
            book.insert(signed.halt.id(), signed);
        }
        debug_assert_eq!(book.check_invariants(), Ok(()));
        book
    }

    /// Checks that each halt has one arrival, not after the last, and is known by its own id.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.arrivals.len() != self.halts.len() {
            return Err(format!("{} arrivals of {} halts", self.arrivals.len(), self.halts.len()));
        }
        if let Some(unknown) = self.arrivals.values().find(|id| !self.halts.contains_key(id)) {
            return Err(format!("halt {unknown} arrived, and is not in the book"));
        }
        match self.arrivals.last_key_value().filter(|(number, _)| **number > self.last) {
            Some((number, _)) => Err(format!("arrival {number} is after the last, {}", self.last)),
            None => Ok(()),
        }
    }
}

/// Halts that do not verify yet, by the party that sent them. The circle's history here may be behind: the
/// halt of a new member is judged again with each decision.
#[derive(Debug, Clone)]
pub struct DeferredHalts<S> {
    by_source: BTreeMap<S, VecDeque<SignedHalt>>,
}

impl<S> Default for DeferredHalts<S> {
    fn default() -> Self {
        Self { by_source: BTreeMap::new() }
    }
}

impl<S: Ord + Copy> DeferredHalts<S> {
    /// Keeps a halt for later. Beyond the limit of its source, the oldest one is dropped.
    pub fn defer(&mut self, source: S, signed: SignedHalt) {
        let waiting = self.by_source.entry(source).or_default();
        if waiting.contains(&signed) {
            return;
        }
        if waiting.len() >= DEFERRED_MAX {
            waiting.pop_front();
        }
        waiting.push_back(signed);
        debug_assert!(waiting.len() <= DEFERRED_MAX, "a source has its share");
    }

    /// Takes all halts out, with their sources, to judge them again.
    pub fn take(&mut self) -> Vec<(S, SignedHalt)> {
        let all = std::mem::take(&mut self.by_source).into_iter();
        debug_assert!(self.by_source.is_empty(), "each halt is judged again once");
        all.flat_map(|(source, halts)| halts.into_iter().map(move |halt| (source, halt))).collect()
    }
}
