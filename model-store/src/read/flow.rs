//! Flow control for reads from other machines. Requests go out when the [`Window`] has room. A request is
//! late only if the arrival of other bytes shows that its own should have arrived.
//!
//! A store that is slow because the link is full would only be slower if another were asked too. One more
//! store is therefore asked only if nothing arrives at all, or if three times as many bytes have passed as
//! were ahead. A wait far longer than the rate explains, or of [`WAIT_MAX`], counts as late too.

use super::window::Window;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Multiple of the bytes ahead of a request after which it counts as overtaken. Once is its turn; twice is
/// bad luck among requests that share a link.
const OVERTAKEN: u64 = 3;
/// Multiple of the time that the rate explains, beyond which a request is late.
const SLOWER: f64 = 4.0;
/// Wait that a slow link never explains: a segment at 100 kB/s. It bounds the gain of a store that sends a
/// byte now and then.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The flow of one reader's bytes.
#[derive(Debug)]
pub(super) struct Flow {
    began: Instant,
    state: Mutex<FlowState>,
    room: Notify,
}

#[derive(Debug)]
struct FlowState {
    window: Window,
    in_flight: u64,
    arrived: u64,
    last_at: Duration,
    /// Number of loads that wait for room.
    waiting: usize,
}

/// Permission to have `bytes` in flight; returned when dropped.
#[derive(Debug)]
pub(super) struct FlowPermit {
    flow: Arc<Flow>,
    bytes: u64,
}

/// State of the flow when a request went out.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlowMark {
    at: Duration,
    arrived: u64,
    ahead: u64,
}

/// Current state of the flow.
#[derive(Debug, Clone, Copy)]
struct Reading {
    now: Duration,
    arrived: u64,
    last_at: Duration,
    rate: Option<f64>,
}

impl Flow {
    /// Returns a flow that never has more than `most` bytes in flight.
    pub(super) fn new(most: u64) -> Self {
        let window = Window::new(Duration::ZERO, most);
        let state = FlowState { window, in_flight: 0, arrived: 0, last_at: Duration::ZERO, waiting: 0 };
        Self { began: Instant::now(), state: Mutex::new(state), room: Notify::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the plaintext bytes of the next batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.state().window.batch_bytes()
    }

    /// Waits until `bytes` more may be in flight.
    pub(super) async fn room(self: &Arc<Self>, bytes: u64) -> FlowPermit {
        let waiting = QueuedLoad::new(self);
        loop {
            let freed = self.room.notified();
            if self.take(bytes) {
                drop(waiting);
                return FlowPermit { flow: self.clone(), bytes };
            }
            freed.await;
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let mut state = self.state();
        if !state.window.has_room(state.in_flight, bytes) {
            return false;
        }
        if state.in_flight == 0 && state.waiting <= 1 {
            let now = self.began.elapsed();
            if now.saturating_sub(state.last_at) > Duration::from_secs(1) {
                state.window.resume(now);
            }
        }
        state.in_flight += bytes;
        true
    }

    /// Records bytes as they arrive.
    pub(super) fn arrived(&self, bytes: u64) {
        let now = self.began.elapsed();
        let mut state = self.state();
        state.arrived += bytes;
        state.last_at = now;
        let limited = state.waiting > 0;
        state.window.arrived(bytes, now, limited);
        drop(state);
        self.room.notify_waiters();
    }

    /// Returns the current state, for a request that goes out or that keeps waiting.
    pub(super) fn mark(&self) -> FlowMark {
        let state = self.state();
        FlowMark { at: self.began.elapsed(), arrived: state.arrived, ahead: state.in_flight }
    }

    /// Returns whether a request that went out at `mark` should have been answered by now.
    pub(super) fn is_late(&self, mark: &FlowMark, patience: Duration) -> bool {
        let state = self.state();
        let FlowState { arrived, last_at, .. } = *state;
        let reading = Reading { now: self.began.elapsed(), arrived, last_at, rate: state.window.rate() };
        is_late(mark, &reading, patience)
    }
}

/// Returns whether a request is late, by the rules in the module's documentation.
fn is_late(mark: &FlowMark, reading: &Reading, patience: Duration) -> bool {
    let waited = reading.now.saturating_sub(mark.at);
    if waited < patience {
        return false;
    }
    let silence = reading.now.saturating_sub(reading.last_at.max(mark.at));
    let passed = reading.arrived - mark.arrived;
    let explained = reading.rate.map(|rate| Duration::from_secs_f64(SLOWER * mark.ahead as f64 / rate));
    silence >= patience
        || passed >= OVERTAKEN * mark.ahead.max(1)
        || explained.is_some_and(|explained| waited >= patience + explained)
        || waited >= WAIT_MAX
}

impl Drop for FlowPermit {
    fn drop(&mut self) {
        self.flow.state().in_flight -= self.bytes;
        self.flow.room.notify_waiters();
    }
}

/// Counts a load among those that wait for room, until dropped.
struct QueuedLoad<'a>(&'a Flow);

impl<'a> QueuedLoad<'a> {
    fn new(flow: &'a Flow) -> Self {
        flow.state().waiting += 1;
        Self(flow)
    }
}

impl Drop for QueuedLoad<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn late_is_what_the_link_does_not_explain() {
        let second = Duration::from_secs;
        let mark = FlowMark { at: second(100), arrived: 0, ahead: 3_000_000 };
        let late = |seconds: u64, arrived: u64, silent: u64, rate: Option<f64>| {
            let now = second(100 + seconds);
            let reading = Reading { now, arrived, last_at: now - second(silent), rate };
            is_late(&mark, &reading, second(1))
        };
        let cases = [
            (0, 100_000_000, 0, None, false),
            (1, 0, 50, None, true),
            (2, 1, 0, None, false),
            (9, 1, 0, None, false),
            (10, 1, 0, None, true),
            (9, 8_999_999, 0, None, false),
            (2, 9_000_000, 0, None, true),
            (4, 3_000_000, 0, Some(3e6), false),
            (5, 3_000_000, 0, Some(3e6), true),
            (1, 1, 0, Some(3e9), false),
            (2, 1, 0, Some(3e9), true),
        ];
        for (seconds, arrived, silent, rate, expected) in cases {
            let verdict = late(seconds, arrived, silent, rate);
            assert_eq!(verdict, expected, "{seconds} s, {arrived} bytes, silent {silent} s, rate {rate:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_room_in_turn() {
        let flow = Arc::new(Flow::new(64 << 20));
        let first = flow.room(1 << 20).now_or_never().expect("room for one");
        assert!(flow.room(1 << 20).now_or_never().is_none());
        assert_eq!(flow.state().waiting, 0, "a load that left does not wait");
        let next = flow.room(1 << 20);
        let mut next = std::pin::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        tokio::time::advance(Duration::from_millis(100)).await;
        flow.arrived(1 << 20);
        let second = next.now_or_never().expect("the window has grown");
        drop((first, second));
        assert_eq!(flow.state().in_flight, 0);
    }
}
