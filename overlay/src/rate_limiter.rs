//! Rate limiter by the generic cell rate algorithm (GCRA, ITU-T I.371): each key may burst, and then gets one
//! request per interval. A limit on all keys together is optional.
//!
//! The limiter reads no clock; callers pass the time since an origin of their own. It remembers a bounded
//! number of keys: when it is full it forgets those whose burst is whole again, or else the key that is
//! nearest to it.

use std::collections::BTreeMap;
use std::time::Duration;

/// A rate: a burst, then one request per interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests allowed in a burst, 0 = none at all.
    pub burst: u32,
    /// Interval after which one more is allowed.
    pub interval: Duration,
}

impl Rate {
    /// Takes one request: returns the next theoretical arrival time, or the wait until one is available.
    ///
    /// The theoretical arrival time of the next request is the whole state of a limiter; it is when the burst
    /// is whole again.
    fn conform(self, theoretical_arrival: Duration, now: Duration) -> Result<Duration, Duration> {
        let next = theoretical_arrival.max(now) + self.interval;
        debug_assert!(next >= now, "a request arrives now or later");
        match (next - now).checked_sub(self.interval * self.burst) {
            None | Some(Duration::ZERO) => Ok(next),
            Some(early) => Err(early),
        }
    }
}

/// Rate limiters of keys that come and go.
#[derive(Debug)]
pub struct RateLimiter<K> {
    keys_max: usize,
    total: Option<Rate>,
    total_arrival: Duration,
    arrivals: BTreeMap<K, Duration>,
}

impl<K: Ord + Clone> RateLimiter<K> {
    /// Creates limiters of at most `keys_max` keys, which together get at most `total`, if given.
    ///
    /// # Panics
    /// Panics when `keys_max` is 0.
    #[must_use]
    pub fn new(keys_max: usize, total: Option<Rate>) -> Self {
        assert!(keys_max > 0, "a limiter remembers at least one key");
        Self { keys_max, total, total_arrival: Duration::ZERO, arrivals: BTreeMap::new() }
    }

    /// Takes one request of `key` at its own rate and at the rate of all keys.
    ///
    /// # Errors
    /// Returns the wait until one is available; nothing is taken.
    pub fn take(&mut self, key: &K, rate: Rate, now: Duration) -> Result<(), Duration> {
        let own = rate.conform(self.arrivals.get(key).copied().unwrap_or_default(), now)?;
        if let Some(total) = self.total {
            self.total_arrival = total.conform(self.total_arrival, now)?;
        }
        if self.arrivals.len() >= self.keys_max && !self.arrivals.contains_key(key) {
            self.evict(now);
        }
        self.arrivals.insert(key.clone(), own);
        assert!(self.arrivals.len() <= self.keys_max, "a key was evicted for the new one");
        Ok(())
    }

    /// Returns what is left of the burst of `key`, and the time until the burst is whole again.
    #[must_use]
    pub fn left(&self, key: &K, rate: Rate, now: Duration) -> (u32, Duration) {
        let arrival = self.arrivals.get(key).copied().unwrap_or_default();
        let whole_in = arrival.saturating_sub(now);
        let taken = whole_in.as_nanos().div_ceil(rate.interval.as_nanos().max(1));
        (rate.burst - u32::try_from(taken).unwrap_or(u32::MAX).min(rate.burst), whole_in)
    }

    /// Evicts the keys whose burst is whole, or else the key that is nearest to it.
    fn evict(&mut self, now: Duration) {
        self.arrivals.retain(|_, arrival| *arrival > now);
        if self.arrivals.len() >= self.keys_max {
            let nearest =
                self.arrivals.iter().min_by_key(|(_, arrival)| **arrival).map(|(key, _)| key.clone());
            nearest.map(|key| self.arrivals.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: Rate = Rate { burst: 3, interval: Duration::from_millis(100) };
    const TOTAL: Rate = Rate { burst: 5, interval: Duration::from_millis(10) };

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_burst_is_taken_immediately_and_refills_evenly() {
        let mut limiter = RateLimiter::new(8, Some(TOTAL));
        let mut at = |time: u64| limiter.take(&"a", EACH, ms(1_000 + time));
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!((at(0), at(40), at(99)), (Err(ms(100)), Err(ms(60)), Err(ms(1))));
        assert_eq!((at(100), at(100)), (Ok(()), Err(ms(100))));
        assert_eq!([at(10_000), at(10_000), at(10_000)], [Ok(()); 3]);
        assert_eq!(at(10_000), Err(ms(100)), "a whole burst grows no further");
        assert_eq!(at(0), Err(ms(10_100)), "a clock that went back adds nothing");
    }

    #[test]
    fn what_is_left_of_a_burst_is_what_may_be_taken() {
        let mut limiter = RateLimiter::new(8, None);
        assert_eq!(limiter.left(&"a", EACH, ms(50)), (3, ms(0)));
        for (time, left) in [(50, (2, ms(100))), (50, (1, ms(200))), (60, (0, ms(290)))] {
            assert_eq!(limiter.take(&"a", EACH, ms(time)), Ok(()));
            assert_eq!(limiter.left(&"a", EACH, ms(time)), left);
        }
        assert_eq!(limiter.left(&"a", EACH, ms(149)), (0, ms(201)));
        assert_eq!(limiter.left(&"a", EACH, ms(150)), (1, ms(200)));
        assert_eq!(limiter.left(&"a", EACH, ms(900)), (3, ms(0)));
        let none = Rate { burst: 0, interval: ms(60_000) };
        assert_eq!(limiter.left(&"b", none, ms(5)), (0, ms(0)));
        for time in (150..900).step_by(7) {
            let (left, _) = limiter.left(&"a", EACH, ms(time));
            let arrival = limiter.arrivals.clone();
            let taken = (0..9).take_while(|_| limiter.take(&"a", EACH, ms(time)).is_ok()).count();
            assert_eq!(taken, left as usize, "at {time}");
            limiter.arrivals = arrival;
        }
    }

    #[test]
    fn keys_have_rates_of_their_own_and_share_the_total() {
        let mut limiter = RateLimiter::new(8, Some(TOTAL));
        let mut take = |key, time| limiter.take(&key, EACH, ms(time));
        assert_eq!([take("a", 0), take("a", 0), take("a", 0), take("b", 0), take("b", 0)], [Ok(()); 5]);
        assert_eq!(take("c", 0), Err(ms(10)), "all together have used up theirs");
        assert_eq!(take("a", 10), Err(ms(90)), "its own rate is what it lacks");
        assert_eq!(take("c", 10), Ok(()));
    }

    #[test]
    fn without_a_total_keys_are_independent_and_a_burst_of_zero_gets_nothing() {
        let mut limiter = RateLimiter::new(8, None);
        let none = Rate { burst: 0, interval: ms(60_000) };
        for key in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!([0; 3].map(|_| limiter.take(&key, EACH, ms(5))), [Ok(()); 3]);
        }
        assert_eq!(limiter.take(&"g", none, ms(5)), Err(ms(60_000)));
    }

    #[test]
    fn no_more_keys_are_remembered_than_allowed() {
        let mut limiter = RateLimiter::new(2, None);
        let mut take = |key, time| limiter.take(&key, EACH, ms(time));
        assert_eq!((take("a", 0), take("a", 0), take("b", 0)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(take("c", 0), Ok(()), "`b` is nearest to a whole burst, and is evicted");
        assert_eq!((take("a", 0), take("a", 0)), (Ok(()), Err(ms(100))));
        assert_eq!(limiter.arrivals.keys().collect::<Vec<_>>(), [&"a", &"c"]);
    }

    /// Whether no interval between two of `times` holds more than a burst and the refill of the interval.
    fn within(rate: Rate, times: &[u64]) -> bool {
        let interval = rate.interval.as_millis() as u64;
        times.iter().enumerate().all(|(first, from)| {
            let counted = times[first..].iter().zip(1_u64..);
            counted.into_iter().all(|(to, count)| count <= u64::from(rate.burst) + (to - from) / interval)
        })
    }

    proptest! {
        #[test]
        fn no_key_gets_more_than_its_rate(steps in proptest::collection::vec((0u8..4, 0u64..60), 1..300)) {
            let mut limiter = RateLimiter::new(8, Some(TOTAL));
            let (mut now, mut taken) = (5_000, Vec::new());
            for (key, pause) in steps {
                now += pause;
                match limiter.take(&key, EACH, ms(now)) {
                    Ok(()) => taken.push((key, now)),
                    // A client that waits for the stated time is served, if no other came before.
                    Err(wait) => {
                        now += wait.as_millis() as u64;
                        prop_assert!(limiter.take(&key, EACH, ms(now)).is_ok());
                        taken.push((key, now));
                    }
                }
            }
            let times = |wanted: Option<u8>| -> Vec<u64> {
                let chosen = taken.iter().filter(|(key, _)| wanted.is_none_or(|wanted| *key == wanted));
                chosen.map(|(_, at)| *at).collect()
            };
            prop_assert!(within(TOTAL, &times(None)));
            for key in 0..4 {
                prop_assert!(within(EACH, &times(Some(key))));
            }
        }
    }
}
