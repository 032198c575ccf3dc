//! How long and how large anything on a connection may be, and how long to wait before dialling again.

use std::time::Duration;

/// Limits of one listener or client. Every field is enforced; the defaults suit peers of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Longest TCP connect, and longest TLS handshake (with the preface of a reversed connection).
    pub handshake: Duration,
    /// Longest wait for a response's head, on both sides: the client gives up, the server answers 504.
    pub request: Duration,
    /// Longest silence inside a response body that a client is reading.
    pub body_idle: Duration,
    /// Longest silence of the peer on a connection. Pings keep a healthy one from ever being silent.
    pub idle: Duration,
    /// How often a quiet connection is pinged. Zero is refused by the timer, so keep it positive.
    pub ping_interval: Duration,
    /// How long a ping may go unanswered before the connection is closed.
    pub ping_timeout: Duration,
    /// How long an orderly shutdown waits for requests in progress.
    pub drain: Duration,
    /// Largest request body in bytes that a server reads; more is answered 413.
    pub request_bytes_max: usize,
    /// Largest response body in bytes that a client reads.
    pub response_bytes_max: usize,
    /// Largest list of header fields in bytes.
    pub header_bytes_max: u32,
    /// Most requests in progress on one connection.
    pub streams_max: u32,
    /// Most established connections of one listener; further peers are turned away after the handshake.
    pub connections_max: usize,
    /// Most handshakes in progress at once, so that strangers cannot occupy the places of peers.
    pub handshakes_max: usize,
    /// Waiting between attempts to dial.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A handshake is 1 ms of computation and one round trip; 5 s forgives a loaded machine.
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(30),
            body_idle: Duration::from_secs(30),
            // Two pings may be lost before the peer counts as silent.
            idle: Duration::from_secs(15),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(5),
            request_bytes_max: protocol::limits::SYNC_BYTES_MAX,
            response_bytes_max: protocol::limits::MODEL_MANIFEST_BYTES_MAX,
            // What nginx and Go accept, rounded down; ours are below 1 KiB.
            header_bytes_max: 16 * 1024,
            streams_max: 256,
            connections_max: 1024,
            handshakes_max: 64,
            backoff: Backoff::default(),
        }
    }
}

/// Exponential back-off with full jitter above half: attempts spread out, none comes at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        // A restarted replica is back within tens of milliseconds; a dead one should not be hammered.
        Self { first: Duration::from_millis(50), most: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row: between half and all of
    /// `first * 2^(failures - 1)`, capped at `most`. `jitter` is uniformly random; it is an argument so
    /// that the wait is a function of its inputs.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let doublings = (failures - 1).min(20);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.most);
        let half = ceiling / 2;
        half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wait_doubles_up_to_the_cap() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(1) };
        let waits: Vec<u128> = (0..7).map(|failures| backoff.delay(failures, u32::MAX).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay(1, 0).as_millis(), 50);
    }

    proptest! {
        #[test]
        fn the_wait_stays_between_half_and_all_of_the_cap(failures in 1u32.., jitter: u32) {
            let backoff = Backoff::default();
            let wait = backoff.delay(failures, jitter);
            prop_assert!(wait <= backoff.most);
            prop_assert!(wait >= backoff.first / 2);
        }
    }

    #[test]
    fn a_healthy_connection_is_never_silent_for_too_long() {
        let limits = Limits::default();
        assert!(limits.ping_interval + limits.ping_timeout < limits.idle);
    }
}
