//! Request quota of each API key: a token bucket that holds a minute's worth and refills evenly. A client may
//! burst, and never waits for a full minute to pass.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::TokenName;
use protocol::gateway::ApiKey;
use tokio::time::Instant;

/// Number of buckets above which full ones are garbage-collected.
const BUCKETS_KEPT: usize = 8192;

/// The buckets of all keys that have a quota.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<BTreeMap<TokenName, Bucket>>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Requests allowed now; the fraction is the refill in progress.
    requests: f64,
    at: Instant,
}

impl Quotas {
    /// Takes one request from the key's bucket.
    ///
    /// # Errors The time until one is available.
    pub(super) fn take(&self, key: &ApiKey, now: Instant) -> Result<(), Duration> {
        let Some(limit) = key.requests_per_minute else { return Ok(()) };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > BUCKETS_KEPT {
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < Duration::from_secs(60));
        }
        let full = Bucket { requests: f64::from(limit), at: now };
        buckets.entry(key.name.clone()).or_insert(full).take(limit, now)
    }
}

impl Bucket {
    fn take(&mut self, limit: u32, now: Instant) -> Result<(), Duration> {
        let per_second = f64::from(limit) / 60.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.requests = (self.requests + passed * per_second).min(f64::from(limit));
        self.at = now;
        if self.requests >= 1.0 {
            self.requests -= 1.0;
            return Ok(());
        }
        if limit == 0 {
            return Err(Duration::from_secs(60));
        }
        Err(Duration::from_secs_f64((1.0 - self.requests) / per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::Digest;

    fn key(name: &str, requests_per_minute: Option<u32>) -> ApiKey {
        ApiKey { name: name.parse().expect("a name"), hash: Digest::of(b""), requests_per_minute }
    }

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_evenly() {
        let (quotas, start) = (Quotas::default(), Instant::now());
        let key = key("a", Some(60));
        for _ in 0..60 {
            assert_eq!(quotas.take(&key, start), Ok(()));
        }
        assert_eq!(quotas.take(&key, start), Err(Duration::from_secs(1)));
        assert_eq!(quotas.take(&key, start + Duration::from_secs(1)), Ok(()));
        assert!(quotas.take(&key, start + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn keys_do_not_share_and_some_have_no_limit() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        assert_eq!(quotas.take(&key("a", Some(1)), now), Ok(()));
        assert!(quotas.take(&key("a", Some(1)), now).is_err());
        assert_eq!(quotas.take(&key("b", Some(1)), now), Ok(()));
        assert!((0..1000).all(|_| quotas.take(&key("c", None), now).is_ok()));
        assert_eq!(quotas.take(&key("d", Some(0)), now), Err(Duration::from_secs(60)));
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_burst_and_refill(
            limit in 1u32..600, gaps in proptest::collection::vec(0u64..3000, 1..200),
        ) {
            let (quotas, start) = (Quotas::default(), Instant::now());
            let key = key("a", Some(limit));
            let (mut passed, mut taken) = (0u64, 0u64);
            for gap in gaps {
                passed += gap;
                let now = start + Duration::from_millis(passed);
                match quotas.take(&key, now) {
                    Ok(()) => taken += 1,
                    // A client that waits for the stated time is served.
                    Err(wait) => {
                        passed += wait.as_millis() as u64 + 1;
                        prop_assert!(quotas.take(&key, start + Duration::from_millis(passed)).is_ok());
                        taken += 1;
                    }
                }
            }
            prop_assert!(taken <= u64::from(limit) + passed * u64::from(limit) / 60_000 + 1);
        }
    }
}
