//! Request quota of each API key: a minute's worth may come as a burst, and then one request per share of a
//! minute. A client never waits for a full minute to pass.

use overlay::{Rate, RateLimiter};
use protocol::TokenName;
use protocol::gateway::ApiKey;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
/// Maximum number of keys remembered: more than a route table holds, so that no quota is evicted in use.
const KEYS_MAX: usize = 8192;

/// The quotas of all keys that have one.
#[derive(Debug)]
pub(super) struct Quotas {
    /// Origin of the limiter's clock.
    began: Instant,
    limiter: Mutex<RateLimiter<TokenName>>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { began: Instant::now(), limiter: Mutex::new(RateLimiter::new(KEYS_MAX, None)) }
    }
}

impl Quotas {
    /// Takes one request from the key's quota.
    ///
    /// # Errors
    /// Returns the wait until one is available.
    pub(super) fn take(&self, key: &ApiKey, now: Instant) -> Result<(), Duration> {
        let Some(limit) = key.requests_per_minute else { return Ok(()) };
        let rate = Rate { burst: limit, interval: MINUTE / limit.max(1) };
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(&key.name, rate, now.saturating_duration_since(self.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    fn key(name: &str, requests_per_minute: Option<u32>) -> ApiKey {
        ApiKey {
            name: name.parse().expect("a name"),
            hash: Digest::of(b""),
            services: None,
            requests_per_minute,
        }
    }

    #[test]
    fn a_minutes_quota_may_come_as_a_burst_and_then_evenly() {
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
}
