//! Rate limiting of unauthenticated parties, per party and in total: a burst, then one request per interval.
//!
//! The limiter reads no clock; callers pass the time.

use protocol::Millis;
use std::collections::BTreeMap;

/// A rate limit that refills evenly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// Number of requests allowed in a burst.
    pub(super) burst: u64,
    /// Interval at which one more is allowed, in milliseconds.
    pub(super) every_ms: u64,
}

impl Rate {
    /// Takes one request, or returns the milliseconds until one is available.
    ///
    /// The state is the time at which the limit is completely refilled, as in the generic cell rate algorithm
    /// (GCRA).
    fn after_one(self, whole_at: Millis, now: Millis) -> Result<Millis, u64> {
        let whole_at = whole_at.max(now).plus(self.every_ms);
        match whole_at.0.saturating_sub(now.0).checked_sub(self.burst * self.every_ms) {
            None | Some(0) => Ok(whole_at),
            Some(early) => Err(early),
        }
    }
}

/// Rate limiters of parties that come and go.
#[derive(Debug)]
pub(super) struct Allowance<P> {
    each: Rate,
    all: Rate,
    parties_max: usize,
    all_whole_at: Millis,
    /// Time of complete refill of each party whose limit is not refilled yet.
    whole_at: BTreeMap<P, Millis>,
}

impl<P: Ord + Clone> Allowance<P> {
    pub(super) fn new(each: Rate, all: Rate, parties_max: usize) -> Self {
        Self { each, all, parties_max, all_whole_at: Millis(0), whole_at: BTreeMap::new() }
    }

    /// Takes one request for `party`.
    ///
    /// # Errors
    /// Returns the milliseconds until one is available; nothing is taken.
    pub(super) fn take(&mut self, party: &P, now: Millis) -> Result<(), u64> {
        let before = self.whole_at.get(party).copied().unwrap_or_default();
        let own = self.each.after_one(before, now)?;
        self.all_whole_at = self.all.after_one(self.all_whole_at, now)?;
        if self.whole_at.len() >= self.parties_max && !self.whole_at.contains_key(party) {
            self.forget(now);
        }
        self.whole_at.insert(party.clone(), own);
        assert!(self.whole_at.len() <= self.parties_max, "a party was forgotten for the new one");
        Ok(())
    }

    /// Evicts the parties whose limit is refilled, or else the party that is nearest to it.
    fn forget(&mut self, now: Millis) {
        self.whole_at.retain(|_, whole_at| *whole_at > now);
        if self.whole_at.len() >= self.parties_max {
            let nearest = self.whole_at.iter().min_by_key(|(_, whole_at)| **whole_at);
            let nearest = nearest.map(|(party, _)| party.clone());
            nearest.map(|party| self.whole_at.remove(&party));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: Rate = Rate { burst: 3, every_ms: 100 };
    const ALL: Rate = Rate { burst: 5, every_ms: 10 };

    #[test]
    fn a_burst_is_taken_at_once_and_refills_evenly() {
        let mut allowance = Allowance::new(EACH, ALL, 8);
        let mut at = |ms: u64| allowance.take(&"a", Millis(1_000 + ms));
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!((at(0), at(40), at(99)), (Err(100), Err(60), Err(1)));
        assert_eq!((at(100), at(100)), (Ok(()), Err(100)));
        assert_eq!([at(10_000), at(10_000), at(10_000)], [Ok(()); 3]);
        assert_eq!(at(10_000), Err(100), "what is whole grows no further");
        assert_eq!(at(0), Err(10_100), "time that went back gives nothing");
    }

    #[test]
    fn parties_have_their_own_and_share_the_whole() {
        let mut allowance = Allowance::new(EACH, ALL, 8);
        let mut take = |party, ms: u64| allowance.take(&party, Millis(ms));
        assert_eq!([take("a", 0), take("a", 0), take("a", 0), take("b", 0), take("b", 0)], [Ok(()); 5]);
        assert_eq!(take("c", 0), Err(10), "all together have used up theirs");
        assert_eq!(take("a", 10), Err(90), "its own is what it lacks");
        assert_eq!(take("c", 10), Ok(()));
    }

    #[test]
    fn no_more_parties_are_remembered_than_there_may_be() {
        let mut allowance = Allowance::new(EACH, Rate { burst: 1000, every_ms: 1 }, 2);
        let mut take = |party, ms: u64| allowance.take(&party, Millis(ms));
        assert_eq!((take("a", 0), take("a", 0), take("b", 0)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(take("c", 0), Ok(()), "`b` is nearest to being whole, and is forgotten");
        assert_eq!((take("a", 0), take("a", 0)), (Ok(()), Err(100)));
        assert_eq!(allowance.whole_at.keys().collect::<Vec<_>>(), [&"a", &"c"]);
    }

    proptest! {
        /// In no interval does a party, or all of them together, get more than a burst and the refill of the
        /// interval.
        #[test]
        fn nobody_gets_more_than_the_rate(steps in proptest::collection::vec((0u8..4, 0u64..60), 1..300)) {
            let mut allowance = Allowance::new(EACH, ALL, 8);
            let (mut now, mut taken) = (5_000, Vec::new());
            for (party, pause) in steps {
                now += pause;
                if allowance.take(&party, Millis(now)).is_ok() {
                    taken.push((party, now));
                }
            }
            let within = |rate: Rate, times: &[u64]| {
                times.iter().enumerate().all(|(first, from)| {
                    times[first..].iter().zip(1..).all(|(to, count)| count <= rate.burst + (to - from) / rate.every_ms)
                })
            };
            let all: Vec<u64> = taken.iter().map(|(_, at)| *at).collect();
            prop_assert!(within(ALL, &all));
            for party in 0..4 {
                let own: Vec<u64> = taken.iter().filter(|(who, _)| *who == party).map(|(_, at)| *at).collect();
                prop_assert!(within(EACH, &own));
            }
        }
    }
}
