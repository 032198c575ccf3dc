//! Flow control for reads from other machines: a load waits until its bytes have room in flight.
//!
//! [`BytesInFlight`] decides; this file adds the clock, the lock, and the waiting.

use super::machine::FlowReading;
use super::window::BytesInFlight;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The flow of one reader's bytes.
#[derive(Debug)]
pub(super) struct Flow {
    began: Instant,
    state: Mutex<BytesInFlight>,
    room: Notify,
}

/// Permission to have `bytes` in flight; returned when dropped.
#[derive(Debug)]
pub(super) struct FlowPermit {
    flow: Arc<Flow>,
    bytes: u64,
}

impl Flow {
    /// Returns a flow that never has more than `most` bytes in flight.
    pub(super) fn new(most: u64) -> Self {
        Self { began: Instant::now(), state: Mutex::new(BytesInFlight::new(most)), room: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, BytesInFlight> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the plaintext bytes of the next batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.state().batch_bytes()
    }

    /// Waits until `bytes` more may be in flight.
    pub(super) async fn room(self: &Arc<Self>, bytes: u64) -> FlowPermit {
        let waiting = QueuedLoad::new(self);
        loop {
            let freed = self.room.notified();
            if self.state().reserve(bytes, self.began.elapsed()) {
                drop(waiting);
                return FlowPermit { flow: self.clone(), bytes };
            }
            freed.await;
        }
    }

    /// Records bytes as they arrive.
    pub(super) fn arrived(&self, bytes: u64) {
        self.state().arrived(bytes, self.began.elapsed());
        self.room.notify_waiters();
    }

    /// Returns the current measurements, for a request that goes out or that keeps waiting.
    pub(super) fn reading(&self) -> FlowReading {
        self.state().reading(self.began.elapsed())
    }
}

impl Drop for FlowPermit {
    fn drop(&mut self) {
        self.flow.state().release(self.bytes);
        self.flow.room.notify_waiters();
    }
}

/// Counts a load among those that wait for room, until dropped.
struct QueuedLoad<'a>(&'a Flow);

impl<'a> QueuedLoad<'a> {
    fn new(flow: &'a Flow) -> Self {
        flow.state().enqueue();
        Self(flow)
    }
}

impl Drop for QueuedLoad<'_> {
    fn drop(&mut self) {
        self.0.state().dequeue();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_room_in_turn() {
        let flow = Arc::new(Flow::new(64 << 20));
        let first = flow.room(1 << 20).now_or_never().expect("room for one");
        assert!(flow.room(1 << 20).now_or_never().is_none());
        assert_eq!(flow.state().waiting(), 0, "a load that was dropped does not wait");
        let next = flow.room(1 << 20);
        let mut next = std::pin::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        tokio::time::advance(Duration::from_millis(100)).await;
        flow.arrived(1 << 20);
        let second = next.now_or_never().expect("the window has grown");
        drop((first, second));
        assert_eq!(flow.reading().in_flight, 0);
    }
}
