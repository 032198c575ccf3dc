//! Fair admission to a limited number of permits, as a pure function of arrivals, requests and departures.
//!
//! [`FairQueue`] admits a newcomer immediately while a permit is free. When all are held,
//! [`EvictionPolicy::MaxMinFair`] evicts a connection of a source that holds more than an equal share. It
//! first evicts one that has not sent a request yet, then the one that has been idle longest. One with a
//! request under way comes last. A source that holds no more than an equal share therefore loses nothing to
//! another source. An idle connection is kept while permits are free. If no other source must yield, a
//! newcomer replaces a connection of its own source that has no request under way. Otherwise it waits or is
//! rejected.
//!
//! Caveats: with more sources than permits the equal share is zero, and idle connections are evicted for each
//! other. A queue in which connections wait suits busy ones, such as handshakes: silent ones would replace
//! each other instead.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The rule that selects the connection to evict for a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictionPolicy {
    /// The least active connection of a source that holds more than its share; see the module's
    /// documentation.
    MaxMinFair,
    /// The oldest connection of the source that holds most, counting the newcomer with its own source. It
    /// suits connections that are worth little after their first message.
    EvictOldest,
}

/// The cost of evicting a connection; the lowest is evicted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Activity {
    /// No request has arrived on the connection yet.
    Silent,
    /// The connection has carried a request, and none is under way.
    Idle,
    /// A request or a handshake is under way.
    Busy,
}

/// The outcome for one connection, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The connection holds a permit.
    Admit(u64),
    /// The connection has lost its permit to another.
    Evict(u64),
    /// The connection was waiting, and too many do.
    Reject(u64),
}

/// A fair queue; see the module's documentation. Connections are numbered in order of arrival.
#[derive(Debug)]
pub(super) struct FairQueue<S> {
    policy: EvictionPolicy,
    permits: usize,
    waiting_max: usize,
    /// Number of the next arrival.
    next: u64,
    /// Number of changes of activity so far, which orders them.
    changes: u64,
    members: BTreeMap<u64, TrackedConnection<S>>,
    holders: BTreeMap<S, Holdings>,
    waiting: BTreeMap<S, BTreeSet<u64>>,
    admitted: usize,
}

#[derive(Debug)]
struct TrackedConnection<S> {
    source: S,
    activity: Activity,
    /// Number of the change that gave it its present activity.
    since: u64,
    /// Number of requests under way.
    requests: u32,
    is_admitted: bool,
}

/// The connections of one source that hold permits, least active and longest unchanged first.
type Holdings = BTreeSet<(Activity, u64, u64)>;

impl<S: Ord + Clone> FairQueue<S> {
    pub(super) fn new(policy: EvictionPolicy, permits: usize, waiting_max: usize) -> Self {
        Self {
            policy,
            permits,
            waiting_max,
            next: 0,
            changes: 0,
            members: BTreeMap::new(),
            holders: BTreeMap::new(),
            waiting: BTreeMap::new(),
            admitted: 0,
        }
    }

    /// Adds a connection of `source`. Returns its number, and the decisions about it and others.
    pub(super) fn arrive(&mut self, source: S, activity: Activity) -> (u64, Vec<Decision>) {
        let number = self.next;
        self.next += 1;
        let since = self.change();
        self.waiting.entry(source.clone()).or_default().insert(number);
        self.members
            .insert(number, TrackedConnection { source, activity, since, requests: 0, is_admitted: false });
        let mut decisions = self.settle();
        while self.members.len() - self.admitted > self.waiting_max {
            let newest = self.last_waiting().expect("more connections wait than may, so one does");
            self.remove(newest);
            decisions.push(Decision::Reject(newest));
        }
        debug_assert!(self.members.len() <= self.admitted + self.waiting_max, "too many connections wait");
        (number, decisions)
    }

    /// Removes a connection; it may have departed already.
    pub(super) fn depart(&mut self, number: u64) -> Vec<Decision> {
        self.remove(number);
        self.settle()
    }

    /// Records that a request arrived on a connection.
    pub(super) fn begin(&mut self, number: u64) {
        let Some(member) = self.members.get_mut(&number) else { return };
        member.requests += 1;
        if member.requests == 1 {
            self.set_activity(number, Activity::Busy);
        }
    }

    /// Records that a request on a connection has been answered.
    pub(super) fn end(&mut self, number: u64) {
        let Some(member) = self.members.get_mut(&number) else { return };
        debug_assert!(member.requests > 0, "no request of connection {number} is under way");
        member.requests -= 1;
        if member.requests == 0 {
            self.set_activity(number, Activity::Idle);
        }
    }

    /// Returns the number of connections that hold a permit.
    #[cfg(test)]
    pub(super) fn admitted(&self) -> usize {
        self.admitted
    }

    fn set_activity(&mut self, number: u64, activity: Activity) {
        let since = self.change();
        let Some(member) = self.members.get_mut(&number) else { return };
        let before = (member.activity, member.since, number);
        (member.activity, member.since) = (activity, since);
        if let Some(holdings) = self.holders.get_mut(&member.source)
            && holdings.remove(&before)
        {
            holdings.insert((activity, since, number));
        }
    }

    fn change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// Admits every connection that may be admitted now.
    fn settle(&mut self) -> Vec<Decision> {
        let mut decisions = Vec::new();
        while let Some((source, number)) = self.first_waiting() {
            if self.admitted >= self.permits {
                let Some(victim) = self.victim(&source) else { break };
                self.remove(victim);
                decisions.push(Decision::Evict(victim));
            }
            self.admit(source, number);
            decisions.push(Decision::Admit(number));
        }
        debug_assert!(self.admitted <= self.permits, "{} of {} permits", self.admitted, self.permits);
        decisions
    }

    fn admit(&mut self, source: S, number: u64) {
        let member = self.members.get_mut(&number).expect("a connection that waits is a member");
        debug_assert!(!member.is_admitted, "a connection takes one permit");
        member.is_admitted = true;
        let holding = (member.activity, member.since, number);
        take(&mut self.waiting, &source, &number);
        self.holders.entry(source).or_default().insert(holding);
        self.admitted += 1;
    }

    /// Returns the next connection to admit: of the source with fewest permits, the one that has waited
    /// longest.
    fn first_waiting(&self) -> Option<(S, u64)> {
        let firsts = self.waiting.iter().filter_map(|(source, numbers)| Some((source, *numbers.first()?)));
        firsts
            .min_by_key(|(source, number)| (self.held_by(source), *number))
            .map(|(source, number)| (source.clone(), number))
    }

    /// Returns the next connection to reject: the newest of the source with most connections in all.
    fn last_waiting(&self) -> Option<u64> {
        let lasts =
            self.waiting.iter().filter_map(|(source, numbers)| Some((source, numbers, *numbers.last()?)));
        let most = lasts.max_by_key(|(source, numbers, last)| (numbers.len() + self.held_by(source), *last));
        most.map(|(_, _, last)| last)
    }

    /// Returns the connection that yields its permit to a newcomer of `source`, if one must.
    fn victim(&self, source: &S) -> Option<u64> {
        match self.policy {
            EvictionPolicy::MaxMinFair => self.above_its_share(source).or_else(|| self.replaceable(source)),
            EvictionPolicy::EvictOldest => self.oldest_of_the_most(source),
        }
    }

    /// Returns the least active connection of the sources that hold more than an equal share, and enough more
    /// than `source`. A source that yields a busy connection must keep as many as `source` then has. Two
    /// sources thus never take requests from each other in turn.
    fn above_its_share(&self, source: &S) -> Option<u64> {
        debug_assert!(self.admitted >= self.permits, "no connection yields while a permit is free");
        let held = self.held_by(source);
        let equal_share = self.permits / (self.holders.len() + usize::from(held == 0));
        let others = self.holders.iter().filter(|(other, _)| *other != source);
        let yielding = others.filter_map(|(_, holdings)| {
            let &(activity, since, number) = holdings.first()?;
            let kept = equal_share.max(held + usize::from(activity == Activity::Busy));
            (holdings.len() > kept).then_some((activity, Reverse(holdings.len()), since, number))
        });
        yielding.min().map(|(.., number)| number)
    }

    /// Returns a connection of the newcomer's own source that has no request under way.
    fn replaceable(&self, source: &S) -> Option<u64> {
        let &(activity, _, number) = self.holders.get(source)?.first()?;
        (activity < Activity::Busy).then_some(number)
    }

    fn oldest_of_the_most(&self, source: &S) -> Option<u64> {
        let oldest = |holdings: &Holdings| holdings.iter().map(|(.., number)| *number).min();
        let sources = self.holders.iter().filter_map(|(other, holdings)| {
            let newcomer = usize::from(other == source);
            Some((Reverse(holdings.len() + newcomer), oldest(holdings)?))
        });
        sources.min().map(|(_, number)| number)
    }

    fn held_by(&self, source: &S) -> usize {
        self.holders.get(source).map_or(0, BTreeSet::len)
    }

    fn remove(&mut self, number: u64) {
        let Some(member) = self.members.remove(&number) else { return };
        if member.is_admitted {
            take(&mut self.holders, &member.source, &(member.activity, member.since, number));
            self.admitted -= 1;
        } else {
            take(&mut self.waiting, &member.source, &number);
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        let admitted: usize = self.holders.values().map(BTreeSet::len).sum();
        let waiting: usize = self.waiting.values().map(BTreeSet::len).sum();
        assert_eq!((admitted, admitted + waiting), (self.admitted, self.members.len()));
        assert!(admitted <= self.permits && waiting <= self.waiting_max);
        assert!(waiting == 0 || admitted == self.permits, "none waits beside a free permit");
        assert!(self.holders.values().all(|holdings| !holdings.is_empty()));
        assert!(self.waiting.values().all(|numbers| !numbers.is_empty()));
        for (number, member) in &self.members {
            assert!(member.requests == 0 || member.activity == Activity::Busy, "{number}");
        }
    }
}

fn take<S: Ord, T: Ord>(sets: &mut BTreeMap<S, BTreeSet<T>>, source: &S, item: &T) {
    let Some(set) = sets.get_mut(source) else { return };
    set.remove(item);
    if set.is_empty() {
        sets.remove(source);
    }
}

#[cfg(test)]
mod tests;
