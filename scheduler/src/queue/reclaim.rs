//! Reclaim: gangs with a claim get back what others borrow.

use super::{GangRoom, GangTurn, Pass, WaitingGang};
use crate::fair_share::QuotaTree;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Most gangs of one pass for which victims are sought: each costs a look at every node for each of them.
const RECLAIMS_MAX: usize = 16;

impl<R: GangRoom> Pass<'_, R> {
    /// Decides the gangs with a claim, from the first of each project on, until one does not start and gets
    /// no room. Returns their positions.
    pub(super) fn decide_claims(&mut self, turns: &mut [GangTurn<R::Place>]) -> BTreeSet<usize> {
        let mut queues = self.queues();
        let mut decided = BTreeSet::new();
        while let Some(leaf) = self.later_quotas.next_claim(|leaf| {
            let at = *queues.get(&leaf)?.front()?;
            Some((self.waiting[at].charge, self.waiting[at].submitted_at, at))
        }) {
            let Some(at) = queues.get_mut(&leaf).and_then(VecDeque::pop_front) else { break };
            turns[at] = self.decide(at, true);
            decided.insert(at);
            if !matches!(turns[at], GangTurn::Starts(_) | GangTurn::Reclaims { .. }) {
                queues.remove(&leaf);
            }
        }
        debug_assert!(decided.len() <= self.waiting.len(), "each gang is decided once");
        decided
    }

    /// Returns the gangs of each leaf in their order, without those that would not fit if no other ran; none
    /// without projects.
    fn queues(&self) -> BTreeMap<usize, VecDeque<usize>> {
        if !self.quotas.has_projects() {
            return BTreeMap::new();
        }
        let mut empty = self.free.clone();
        self.state.running.iter().for_each(|gang| empty.give(&gang.gang, &gang.place));
        let mut queues: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
        for (at, entry) in self.waiting.iter().enumerate() {
            let is_within = self.quotas.permanent_shortfall(&entry.charge).is_none();
            if is_within && empty.place(&entry.gang).is_some() {
                queues.entry(entry.charge.leaf()).or_default().push_back(at);
            }
        }
        queues
    }

    /// Keeps room for a gang with a claim, of what ends, and preempts gangs that borrow if that does not
    /// suffice. Returns the time by which the room is free; none if no gang that it may reclaim from makes
    /// room for it.
    pub(super) fn reclaim(&mut self, at: usize) -> Option<u64> {
        let waiting = self.waiting;
        let entry = &waiting[at];
        if !fits(&self.later, &self.later_quotas, entry) {
            self.searches += 1;
            let victims = self.victims(entry)?;
            let freed = victims.len();
            for victim in victims {
                let gang = &self.state.running[victim];
                self.later.give(&gang.gang, &gang.place);
                self.later_quotas.give(&gang.charge);
                let grace_ms = gang.grace_ms.unwrap_or(0);
                self.ends[victim] = Some(self.state.now.saturating_add(grace_ms));
                debug_assert!(!self.preempted.contains(&victim), "a gang is preempted once");
                self.preempted.push(victim);
            }
            debug_assert!(freed > 0 && self.preempted.len() <= self.state.preempted_max, "as many as may be");
        }
        let place = self.later.place(&entry.gang)?;
        let taken = self.later.take(&entry.gang, &place);
        debug_assert!(taken, "a placement is of what will be free");
        self.later_quotas.take(&entry.charge);
        let by = self.ended_by();
        self.kept.push((at, place, by));
        Some(by)
    }

    /// Returns the gangs to preempt so that a gang fits: those of the lowest priority, then the latest, and
    /// none that need not go.
    fn victims(&self, entry: &WaitingGang<R::Gang>) -> Option<Vec<usize>> {
        let left = self.state.preempted_max.saturating_sub(self.preempted.len());
        if left == 0 || self.searches > RECLAIMS_MAX {
            return None;
        }
        let mut order: Vec<usize> =
            (0..self.state.running.len()).filter(|at| self.ends[*at].is_none()).collect();
        order.sort_by_key(|at| {
            let gang = &self.state.running[*at];
            (gang.priority, Reverse(gang.since), *at)
        });
        let (mut quotas, mut candidates) = (self.later_quotas.clone(), Vec::new());
        for at in order {
            let charge = &self.state.running[at].charge;
            if quotas.may_reclaim(&entry.charge, charge) {
                quotas.give(charge);
                candidates.push(at);
            }
        }
        let count = self.fewest(entry, &candidates)?;
        let mut victims = candidates[..count].to_vec();
        // A gang of a higher priority, or an earlier one, that need not go after all stays first.
        for at in (0..victims.len()).rev() {
            let mut others = victims.clone();
            others.remove(at);
            if self.fits_without(entry, &others) {
                victims = others;
            }
        }
        debug_assert!(self.fits_without(entry, &victims), "the gang fits without them");
        (victims.len() <= left).then_some(victims)
    }

    /// Returns the number of these gangs, from the first on, without which a gang fits; none if it does not
    /// fit without all of them. Each further one only adds room.
    fn fewest(&self, entry: &WaitingGang<R::Gang>, candidates: &[usize]) -> Option<usize> {
        if candidates.is_empty() || !self.fits_without(entry, candidates) {
            return None;
        }
        let (mut short, mut enough) = (0, candidates.len());
        while enough - short > 1 {
            let middle = short + (enough - short) / 2;
            match self.fits_without(entry, &candidates[..middle]) {
                true => enough = middle,
                false => short = middle,
            }
        }
        debug_assert!((1..=candidates.len()).contains(&enough), "at least one goes");
        Some(enough)
    }

    fn fits_without(&self, entry: &WaitingGang<R::Gang>, victims: &[usize]) -> bool {
        let (mut room, mut quotas) = (self.later.clone(), self.later_quotas.clone());
        for victim in victims {
            let gang = &self.state.running[*victim];
            room.give(&gang.gang, &gang.place);
            quotas.give(&gang.charge);
        }
        fits(&room, &quotas, entry)
    }
}

fn fits<R: GangRoom>(room: &R, quotas: &QuotaTree, entry: &WaitingGang<R::Gang>) -> bool {
    quotas.admits(&entry.charge) && room.place(&entry.gang).is_some()
}
