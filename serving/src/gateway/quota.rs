//! Request quota of each API key: a minute's worth may come as a burst, and then one request per share of a
//! minute. A client never waits for a full minute to pass.

use http::{HeaderMap, HeaderValue};
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
    /// Takes one request from the key's quota, if it has one. Returns what is left of it.
    pub(super) fn take(&self, key: &ApiKey, now: Instant) -> Option<QuotaLeft> {
        let limit = key.requests_per_minute?;
        let rate = Rate { burst: limit, interval: MINUTE / limit.max(1) };
        let now = now.saturating_duration_since(self.began);
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = limiter.take(&key.name, rate, now);
        let (remaining, whole_in) = limiter.left(&key.name, rate, now);
        Some(QuotaLeft { limit, remaining, whole_in, taken })
    }
}

/// A key's quota after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuotaLeft {
    /// Requests per minute, which may come as a burst.
    pub(super) limit: u32,
    /// Requests that may come at once from here on.
    remaining: u32,
    /// Time until the whole burst may come.
    whole_in: Duration,
    /// Whether the request was within the quota, or the wait until one is.
    pub(super) taken: Result<(), Duration>,
}

impl QuotaLeft {
    /// Writes OpenAI's headers on the limit of requests. Tokens have no limit here, so no header.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        headers.insert("x-ratelimit-limit-requests", self.limit.into());
        headers.insert("x-ratelimit-remaining-requests", self.remaining.into());
        let reset = HeaderValue::try_from(duration_text(self.whole_in));
        headers
            .insert("x-ratelimit-reset-requests", reset.expect("digits and letters are valid in a header"));
    }
}

/// Writes a duration as OpenAI's API does, rounded up to milliseconds: `20ms`, `1.5s`, `1m0s`.
fn duration_text(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    let fraction = fraction.trim_end_matches('0');
    match (seconds / 60, seconds % 60) {
        (0, 0) if rest > 0 => format!("{rest}ms"),
        (0, seconds) => format!("{seconds}{fraction}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}{fraction}s"),
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

    /// Takes one request; returns the wait, if the key has a quota that is used up.
    fn take(quotas: &Quotas, key: &ApiKey, now: Instant) -> Result<(), Duration> {
        quotas.take(key, now).map_or(Ok(()), |left| left.taken)
    }

    #[test]
    fn a_minutes_quota_may_come_as_a_burst_and_then_evenly() {
        let (quotas, start) = (Quotas::default(), Instant::now());
        let key = key("a", Some(60));
        for _ in 0..60 {
            assert_eq!(take(&quotas, &key, start), Ok(()));
        }
        assert_eq!(take(&quotas, &key, start), Err(Duration::from_secs(1)));
        assert_eq!(take(&quotas, &key, start + Duration::from_secs(1)), Ok(()));
        assert!(take(&quotas, &key, start + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn keys_do_not_share_and_some_have_no_limit() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        assert_eq!(take(&quotas, &key("a", Some(1)), now), Ok(()));
        assert!(take(&quotas, &key("a", Some(1)), now).is_err());
        assert_eq!(take(&quotas, &key("b", Some(1)), now), Ok(()));
        assert!((0..1000).all(|_| take(&quotas, &key("c", None), now).is_ok()));
        assert_eq!(take(&quotas, &key("d", Some(0)), now), Err(Duration::from_secs(60)));
    }

    #[test]
    fn a_quota_is_reported_in_openais_headers() {
        let (quotas, start) = (Quotas::default(), Instant::now());
        let key = key("a", Some(90));
        let mut seen = Vec::new();
        for at in [0, 0, 500, 3_000] {
            let mut headers = HeaderMap::new();
            let left = quotas.take(&key, start + Duration::from_millis(at)).expect("a quota");
            left.write(&mut headers);
            let header = |name: &str| {
                headers[format!("x-ratelimit-{name}-requests")].to_str().expect("text").to_owned()
            };
            seen.push([header("limit"), header("remaining"), header("reset")].join(" "));
        }
        assert_eq!(seen, ["90 89 667ms", "90 88 1.334s", "90 87 1.5s", "90 89 667ms"]);
        assert_eq!(quotas.take(&self::key("b", None), start), None);
    }

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_010_000_000, "1m30.01s"),
        ] {
            assert_eq!(duration_text(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
