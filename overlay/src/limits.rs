//! Limits of connections in time and size, and the back-off before another dial.
//!
//! Each attack by a peer or an unauthenticated client, its bound, and the test in `tests/loopback` that tries
//! it:
//!
//! - connect and say nothing, or half a handshake: `handshake`;
//!   `tls::a_handshake_that_never_ends_is_cut_off`
//! - many of these at the same time: `handshakes_max`, `handshake`;
//!   `hostile::stalled_handshakes_keep_others_out_no_longer_than_their_limit`
//! - many of these from one address: fair turns in `admission.rs`;
//!   `admission::stalled_handshakes_keep_no_other_address_out`
//! - more connections than `connections_max`: fair admission, idle ones evicted first;
//!   `admission::silent_connections_of_one_address_keep_no_other_client_out`,
//!   `admission::requests_under_way_are_evicted_last_and_never_for_more_than_a_share`
//! - more connections of one key than `connections_max`: fair admission by key;
//!   `admission::a_key_with_many_connections_keeps_no_other_out`
//! - bare streams of one key: fair admission by key, and a permit for each;
//!   `bare::streams_of_one_key_keep_no_other_out`,
//!   `bare::a_peer_that_is_admitted_but_unknown_gets_no_stream`
//! - connections of unknown keys: `unadmitted_max`, `unadmitted_timeout`;
//!   `admission::unadmitted_peers_take_no_permits_of_peers_and_hold_none_long`,
//!   `admission::many_unknown_keys_keep_no_admitted_key_from_a_reversed_listener`
//! - more connections than open files: `open_files::fit` lowers all bounds;
//!   `open_files::connections_never_take_the_reserve`
//! - shake hands, then silence: `idle`, `ping_timeout`;
//!   `http::a_peer_that_is_silent_after_its_handshake_is_dropped`
//! - a reversed connection without its preface: `handshake`, `PREFACE_BYTES_MAX`;
//!   `reverse::a_missing_preface_times_out`
//! - a head without end, a huge head: `header_bytes_max`;
//!   `hostile::a_head_that_never_ends_is_cut_off`,
//!   `hostile::a_head_above_the_limit_is_answered_431`
//! - too many concurrent requests: `streams_max`;
//!   `hostile::streams_beyond_the_limit_are_refused_one_by_one`
//! - requests begun and reset (rapid reset): the HTTP/2 library's count of unread resets;
//!   `hostile::requests_that_are_reset_as_soon_as_they_begin_end_the_connection`
//! - pings without end, nothing read: flow control, `ping_timeout`, `idle`;
//!   `hostile::pings_without_end_from_a_peer_that_reads_nothing_end_the_connection`
//! - stop reading an answer: `ping_timeout`, `idle` on a stalled write;
//!   `hostile::a_peer_that_stops_reading_is_dropped_and_its_work_ends`,
//!   `people::a_client_that_stops_reading_is_cut_off_and_its_work_ends`
//! - a large body, with or without a length: `request_bytes_max`, `response_bytes_max`;
//!   `http::bodies_above_the_limit_are_refused_on_both_sides`
//! - a body that trickles, an answer that never comes: `request`;
//!   `people::a_trickling_body_times_out`,
//!   `http::a_missing_response_times_out_on_the_side_with_the_shorter_limit`
//! - an answer that stalls: `body_idle`;
//!   `http::a_response_that_falls_silent_times_out`
//! - a server that vanishes silently: `ping_timeout`;
//!   `hostile::a_server_that_falls_silent_is_detected_long_before_the_request_would_time_out`
//! - an idle connection of a person's client: `idle`;
//!   `people::an_idle_connection_that_was_kept_alive_is_closed`
//! - a slow head of a person's client: `idle`;
//!   `people::slow_clients_are_cut_off`
//! - frames and descriptors on a unix socket: `FRAME_BYTES_MAX`, `DESCRIPTORS_MAX`;
//!   `descriptors::malformed_frames_are_refused`,
//!   `descriptors::descriptors_above_the_limit_are_refused_and_closed`
//!
//! Not bounded in time: a peer that answers pings and takes an answer slowly. It holds one of `streams_max`
//! requests of its own connection and one flow-control window, as a long answer to an honest peer does. The
//! peer on a unix socket is a local process that we started or that runs as our user: its reader sets its own
//! limit.

use std::time::Duration;

/// Limits of one listener or client. Every field is enforced; the defaults suit peers of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Longest TCP connect, and longest TLS handshake (with the preface of a reversed connection).
    pub handshake: Duration,
    /// Longest wait for a response's head, on both sides: the client times out, the server answers 504.
    pub request: Duration,
    /// Longest silence inside a response body that a client is reading.
    pub body_idle: Duration,
    /// Longest silence of the peer on a connection. Pings keep a healthy one from falling silent.
    pub idle: Duration,
    /// Interval between two pings of a quiet connection. The timer refuses zero, so keep it positive.
    pub ping_interval: Duration,
    /// Longest wait for the answer to a ping before the connection is closed.
    pub ping_timeout: Duration,
    /// Longest silence of the answers on a connection during an orderly shutdown, to an eighth. Answers that
    /// make progress are not cut, however long they are.
    pub drain: Duration,
    /// Largest request body in bytes that a server reads; more is answered 413.
    pub request_bytes_max: usize,
    /// Largest response body in bytes that a client reads.
    pub response_bytes_max: usize,
    /// Largest list of header fields in bytes; more is answered 431.
    pub header_bytes_max: u32,
    /// Most requests in progress on one connection.
    pub streams_max: u32,
    /// Most established connections of one listener. When all permits are held, a source with many loses one
    /// to a source with fewer, connections without a request under way first; see `admission/queue.rs`.
    pub connections_max: usize,
    /// Most established connections of unadmitted peers, whose keys the policy admits without knowing them.
    /// They are in addition to those above. A new one takes the permit of the oldest, from the address that
    /// has most.
    pub unadmitted_max: usize,
    /// Longest life of such a connection. A peer that is admitted by then reconnects, with a permit of its
    /// own.
    pub unadmitted_timeout: Duration,
    /// Most concurrent handshakes. An address that has several loses one to an address that has none.
    pub handshakes_max: usize,
    /// Most connections that wait for a handshake permit. Above it the address with most loses its newest.
    pub handshakes_waiting_max: usize,
    /// Wait between attempts to dial.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A handshake is 1 ms of computation and one round trip; 5 s tolerates a loaded machine.
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
            // Limit of nginx and Go, rounded down; our heads are below 1 KiB.
            header_bytes_max: 16 * 1024,
            streams_max: 256,
            connections_max: 1024,
            unadmitted_max: 64,
            unadmitted_timeout: Duration::from_secs(60),
            // About 30 kB of memory each.
            handshakes_max: 256,
            // As many as the kernel would queue for us.
            handshakes_waiting_max: 1024,
            backoff: Backoff::default(),
        }
    }
}

impl Limits {
    /// Returns the limits of a listener for a few local programs: metrics and health.
    #[must_use]
    pub fn of_operations() -> Self {
        Self {
            connections_max: 64,
            unadmitted_max: 1,
            handshakes_max: 16,
            handshakes_waiting_max: 48,
            ..Self::default()
        }
    }

    /// Returns the most descriptors that a listener's connections take.
    #[must_use]
    pub(crate) fn descriptors_max(&self) -> usize {
        self.connections_max + self.unadmitted_max + self.handshakes_max + self.handshakes_waiting_max
    }

    /// Returns the same limits for `part` of `whole` as many connections; at least one of each kind.
    #[must_use]
    pub(crate) fn scaled(self, part: usize, whole: usize) -> Self {
        debug_assert!(whole > 0 && part <= whole, "{part} of {whole} connections");
        let scale = |count: usize| (count.saturating_mul(part) / whole).max(1);
        Self {
            connections_max: scale(self.connections_max),
            unadmitted_max: scale(self.unadmitted_max),
            handshakes_max: scale(self.handshakes_max),
            handshakes_waiting_max: scale(self.handshakes_waiting_max),
            ..self
        }
    }
}

/// Exponential back-off with jitter in its upper half: attempts spread out, and none is immediate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        // A restarted replica is back within tens of milliseconds; a dead one should not be dialled
        // constantly.
        Self { first: Duration::from_millis(50), most: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// Returns the wait after `failures` failures in a row. It is between half and all of `first *
    /// 2^(failures - 1)`, capped at `most`. `jitter` is uniformly random; it is an argument so that the wait
    /// is a function of its inputs.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let doublings = (failures - 1).min(20);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.most);
        let half = ceiling / 2;
        let delay = half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        debug_assert!(delay <= self.most, "{delay:?} after {failures} failures");
        delay
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
