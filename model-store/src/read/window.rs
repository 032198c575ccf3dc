//! Window: the number of bytes that may be in flight, and those that are. Pure: time is an argument.
//!
//! Too few bytes leave a link idle; too many queue up, so that the first layer arrives with the last. The
//! right number is rate times delay, and neither is known. The window therefore starts with one segment and
//! doubles while that raises the rate (slow start). Then it returns to the size that sufficed, and probes a
//! larger one now and then.

use super::machine::FlowReading;
use std::time::Duration;

/// Smallest window: a segment with its tag and padding, for one of which there is always room.
pub(super) const WINDOW_MIN: u64 = (1 << 20) + (1 << 16);
/// Maximum plaintext bytes of a batch: large enough that a request's overhead is small beside its bytes.
pub(super) const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Minimum plaintext bytes of a batch: a segment.
const BATCH_BYTES_MIN: u64 = 1 << 20;
/// Number of batches for which a window has room: while one is awaited others arrive.
const BATCHES: u64 = 4;
/// A doubling that brings less than a quarter more has found the link's rate. Two are required, because one
/// may be noise.
const GROWTH: f64 = 1.25;
const FLAT_ROUNDS: u32 = 2;
/// Number of rounds between two probes of a larger window, and the growth that a probe must bring.
const PROBE_AFTER: u32 = 8;
const PROBE_GROWTH: f64 = 1.05;
/// Maximum window in seconds of the current rate: a link that became slow is not flooded.
const WINDOW_SECONDS: f64 = 2.0;
/// Pause after which a round starts again: the pause says nothing about the link.
const PAUSE: Duration = Duration::from_secs(1);

/// The bytes in flight of one reader, within its window.
#[derive(Debug, Clone)]
pub(super) struct BytesInFlight {
    window: Window,
    bytes: u64,
    /// Number of reservations that make up `bytes`.
    reservations: usize,
    arrived: u64,
    last_at: Duration,
    /// Number of loads that wait for room.
    waiting: usize,
}

/// Bytes that may be in flight, with the measurements that adjust their number.
#[derive(Debug, Clone)]
pub(super) struct Window {
    limit: u64,
    most: u64,
    phase: WindowPhase,
    round: Round,
    /// Bytes per second in the last round that counted; 0 before the first.
    rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum WindowPhase {
    /// Doubles in each round. `good` is the window of the last round that raised the rate.
    Start { best: f64, good: u64, flat: u32 },
    /// Keeps the window and counts rounds.
    Hold { rounds: u32 },
    /// Holds a larger window than `before`, under which the rate was `rate`.
    Probe { before: u64, rate: f64 },
}

/// Period until as many bytes have arrived as the window held.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Duration,
    length: u64,
    arrived: u64,
    /// Whether requests waited for room during the whole round.
    limited: bool,
}

impl BytesInFlight {
    /// Returns an empty flow that never has more than `most` bytes in flight.
    pub(super) fn new(most: u64) -> Self {
        let window = Window::new(Duration::ZERO, most);
        Self { window, bytes: 0, reservations: 0, arrived: 0, last_at: Duration::ZERO, waiting: 0 }
    }

    /// Returns the plaintext bytes of the next batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.window.batch_bytes()
    }

    /// Counts one more load that waits for room.
    pub(super) fn enqueue(&mut self) {
        self.waiting += 1;
    }

    /// Counts one load less that waits for room.
    pub(super) fn dequeue(&mut self) {
        debug_assert!(self.waiting > 0, "no load waits");
        self.waiting -= 1;
    }

    /// Reserves `bytes` if the window has room for them.
    pub(super) fn reserve(&mut self, bytes: u64, now: Duration) -> bool {
        debug_assert!(bytes > 0, "a reservation of nothing");
        if !self.window.has_room(self.bytes, bytes) {
            return false;
        }
        if self.bytes == 0 && self.waiting <= 1 && now.saturating_sub(self.last_at) > PAUSE {
            self.window.resume(now);
        }
        self.bytes += bytes;
        self.reservations += 1;
        true
    }

    /// Returns a reservation.
    pub(super) fn release(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.bytes && self.reservations > 0, "{bytes} bytes were not reserved");
        self.bytes -= bytes;
        self.reservations -= 1;
    }

    /// Records bytes as they arrive.
    pub(super) fn arrived(&mut self, bytes: u64, now: Duration) {
        self.arrived += bytes;
        self.last_at = now;
        self.window.arrived(bytes, now, self.waiting > 0);
    }

    /// Returns the current measurements.
    pub(super) fn reading(&self, now: Duration) -> FlowReading {
        let Self { bytes: in_flight, arrived, last_at, .. } = *self;
        FlowReading { now, arrived, last_at, in_flight, rate: self.window.rate() }
    }

    /// Returns the number of loads that wait for room.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the first contradiction in the state.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let Window { limit, most, .. } = self.window;
        let rules = [
            ("a lone reservation alone exceeds the window", self.reservations <= 1 || self.bytes <= most),
            ("the window is between its bounds", (WINDOW_MIN..=most).contains(&limit)),
            ("bytes in flight are reserved", (self.bytes > 0) == (self.reservations > 0)),
        ];
        let broken = rules.into_iter().find(|(_, holds)| !holds);
        broken.map_or(Ok(()), |(rule, _)| Err(format!("not so: {rule}: {self:?}")))
    }
}

impl Window {
    /// Returns the smallest window, at the time of the first request. It never has room for more than `most`
    /// bytes.
    pub(super) fn new(now: Duration, most: u64) -> Self {
        let limit = WINDOW_MIN;
        let phase = WindowPhase::Start { best: 0.0, good: limit, flat: 0 };
        Self { limit, most: most.max(limit), phase, round: Round::new(now, limit), rate: 0.0 }
    }

    /// Returns whether a request for `bytes` may go out while `in_flight` are in flight. A lone request
    /// always may.
    pub(super) fn has_room(&self, in_flight: u64, bytes: u64) -> bool {
        debug_assert!(self.limit <= self.most, "{self:?}");
        in_flight == 0 || in_flight + bytes <= self.limit
    }

    /// Returns the plaintext bytes of the next batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        (self.limit / BATCHES).clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX)
    }

    /// Returns the bytes per second; `None` while unknown.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.rate > 0.0).then_some(self.rate)
    }

    /// Starts a new round at the first request after a pause: the pause says nothing about the link.
    pub(super) fn resume(&mut self, now: Duration) {
        self.round = Round::new(now, self.limit);
    }

    /// Records that `bytes` arrived. `limited` is whether more requests wait for room.
    pub(super) fn arrived(&mut self, bytes: u64, now: Duration, limited: bool) {
        self.round.arrived += bytes;
        self.round.limited &= limited;
        if matches!(self.phase, WindowPhase::Start { .. }) && limited {
            self.limit = (self.limit + bytes).min(self.most);
        }
        let took = now.saturating_sub(self.round.began);
        if self.round.arrived < self.round.length || took.is_zero() {
            return;
        }
        // If the reader does not keep up, the rate is its own and not the link's.
        if self.round.limited {
            self.rate = self.round.arrived as f64 / took.as_secs_f64();
            self.adjust();
        }
        self.round = Round::new(now, self.limit);
    }

    fn adjust(&mut self) {
        let rate = self.rate;
        debug_assert!(rate > 0.0, "a round that counts has a rate");
        self.phase = match self.phase {
            WindowPhase::Start { best, .. } if rate >= best * GROWTH => {
                WindowPhase::Start { best: rate, good: self.round.length, flat: 0 }
            }
            WindowPhase::Start { best, good, flat } if flat + 1 < FLAT_ROUNDS && self.limit < self.most => {
                WindowPhase::Start { best: best.max(rate), good, flat: flat + 1 }
            }
            WindowPhase::Start { good, .. } => {
                // Growth of less than a quarter may still have been real.
                self.limit = (2 * good).min(self.most);
                WindowPhase::Hold { rounds: 0 }
            }
            WindowPhase::Hold { rounds } if rounds < PROBE_AFTER => WindowPhase::Hold { rounds: rounds + 1 },
            WindowPhase::Hold { .. } => {
                let before = self.limit;
                self.limit = (before + (before / 4).max(WINDOW_MIN)).min(self.most);
                WindowPhase::Probe { before, rate }
            }
            WindowPhase::Probe { rate: old, .. } if rate >= old * PROBE_GROWTH => {
                WindowPhase::Start { best: rate, good: self.limit, flat: 0 }
            }
            WindowPhase::Probe { before, .. } => {
                self.limit = before;
                WindowPhase::Hold { rounds: 0 }
            }
        };
        let enough = (rate * WINDOW_SECONDS) as u64;
        self.limit = self.limit.min(enough).max(WINDOW_MIN);
        debug_assert!((WINDOW_MIN..=self.most).contains(&self.limit), "{self:?}");
    }
}

impl Round {
    fn new(began: Duration, length: u64) -> Self {
        debug_assert!(length >= WINDOW_MIN, "a round of {length} bytes");
        Self { began, length, arrived: 0, limited: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: f64 = 1e6;

    /// Simulates a reader that always wants more, behind a link of a rate and a delay, for `bytes` bytes.
    /// Returns the final limit of the window, and the duration relative to that of the bytes alone.
    fn run(window: &mut Window, rate: f64, delay: f64, bytes: f64, began: f64) -> (f64, f64) {
        let (mut now, mut free, mut asked, mut arrived) = (began, began, 0.0, 0.0);
        let mut under_way = std::collections::VecDeque::new();
        while arrived < bytes {
            let size = window.batch_bytes() as f64;
            if window.has_room((asked - arrived) as u64, size as u64) {
                free = f64::max(free, now + delay) + size / rate;
                under_way.push_back((free, size));
                asked += size;
                continue;
            }
            let (at, size) = under_way.pop_front().expect("a full window has something under way");
            now = at;
            arrived += size;
            window.arrived(size as u64, Duration::from_secs_f64(now), true);
        }
        (window.limit as f64, (now - began) / (arrived / rate))
    }

    #[test]
    fn a_window_finds_rate_times_delay_on_any_link() {
        for (megabytes_per_second, delay, most) in [
            (0.3, 0.02, 1.05),
            (3.0, 0.05, 1.05),
            (3.0, 0.5, 1.2),
            (20.0, 0.05, 1.1),
            (100.0, 0.001, 1.05),
            (100.0, 0.1, 1.35),
            (500.0, 0.001, 1.05),
            (3_000.0, 0.0005, 1.1),
        ] {
            let rate = megabytes_per_second * MEGABYTE;
            let mut window = Window::new(Duration::ZERO, 256 << 20);
            let (limit, longer) = run(&mut window, rate, delay, 600.0 * MEGABYTE, 0.0);
            let needed = rate * delay;
            assert!(longer < most, "{megabytes_per_second} MB/s, {delay} s: {longer:.2} times as long");
            assert!(
                limit >= needed && limit <= f64::max(4.0 * needed, 0.0) + 8.0 * WINDOW_MIN as f64 * 4.0,
                "{megabytes_per_second} MB/s, {delay} s: {limit:.0} for {needed:.0}"
            );
        }
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let mut window = Window::new(Duration::ZERO, 256 << 20);
        let (fast, _) = run(&mut window, 100.0 * MEGABYTE, 0.05, 500.0 * MEGABYTE, 0.0);
        let (slow, _) = run(&mut window, MEGABYTE, 0.05, 60.0 * MEGABYTE, 100.0);
        assert!(slow <= WINDOW_SECONDS * 1.1 * MEGABYTE && slow < fast, "{fast} then {slow}");
        let (again, _) = run(&mut window, 100.0 * MEGABYTE, 0.05, 2_000.0 * MEGABYTE, 1_000.0);
        assert!(again >= 100.0 * MEGABYTE * 0.05, "{slow} then {again}");
    }

    #[test]
    fn a_slow_reader_is_no_slow_link() {
        let mut window = Window::new(Duration::ZERO, 64 << 20);
        run(&mut window, 100.0 * MEGABYTE, 0.05, 500.0 * MEGABYTE, 0.0);
        let (limit, rate) = (window.limit, window.rate);
        for second in 1_000..1_100 {
            window.arrived(1 << 20, Duration::from_secs(second), false);
        }
        assert_eq!((window.limit, window.rate), (limit, rate));
        window.resume(Duration::from_secs(5_000));
        window.arrived(window.limit, Duration::from_secs(5_001), true);
        assert!(window.rate > 1.0 * MEGABYTE, "the pause is not counted");
    }

    #[test]
    fn one_segment_of_any_size_has_room_and_the_window_has_a_maximum() {
        let mut window = Window::new(Duration::ZERO, 8 << 20);
        assert!(window.has_room(0, 100 << 20) && !window.has_room(1, 100 << 20));
        assert!(window.has_room(1 << 16, 1 << 20) && !window.has_room(1 << 20, 1 << 20));
        assert_eq!(window.batch_bytes(), BATCH_BYTES_MIN);
        run(&mut window, 1e9, 0.1, 1e9, 0.0);
        assert_eq!(window.limit, 8 << 20);
        let large = Window { limit: 1 << 30, ..window };
        assert_eq!(large.batch_bytes(), BATCH_BYTES_MAX);
    }
}
