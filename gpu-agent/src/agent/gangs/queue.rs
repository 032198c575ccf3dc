//! Packets that wait for a link, framed as they are sent: bounded in bytes for each link, and for all
//! together.
//!
//! A packet that finds no room is dropped, as by any network: the ranks' TCP sends it again, and slows down.

use protocol::gang::GANG_PACKET_BYTES_MAX;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most bytes that wait for one link: several times what a flow between two machines has under way.
pub(super) const LINK_BYTES_MAX: usize = 4 << 20;
/// Most bytes that wait for all links of a node, or are being written.
pub(super) const ALL_LINKS_BYTES_MAX: usize = 128 << 20;
/// Bytes of a packet's length on a link.
pub(super) const LENGTH_BYTES: usize = 2;

/// Reason to drop a packet that the switch sent to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkDrop {
    /// The link is not up.
    Down,
    /// As many bytes wait as may.
    Full,
}

impl LinkDrop {
    /// Returns a label for metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Down => "link-down",
            Self::Full => "queue-full",
        }
    }
}

/// Bytes that wait for all links of a node.
#[derive(Debug)]
pub(super) struct QueueBudget {
    used: AtomicUsize,
    max: usize,
}

impl QueueBudget {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "no more is given back than was taken");
    }
}

/// Packets that wait for one link.
#[derive(Debug)]
pub(super) struct LinkQueue {
    waiting: Mutex<WaitingFrames>,
    news: Notify,
    budget: Arc<QueueBudget>,
}

#[derive(Debug, Default)]
struct WaitingFrames {
    bytes: Vec<u8>,
    is_open: bool,
}

impl LinkQueue {
    pub(super) fn new(budget: Arc<QueueBudget>) -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), budget }
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// The reason of the drop.
    pub(super) fn push(&self, packet: &[u8]) -> Result<(), LinkDrop> {
        let mut waiting = self.lock();
        if !waiting.is_open {
            return Err(LinkDrop::Down);
        }
        let length = u16::try_from(packet.len()).map_err(|_| LinkDrop::Full)?;
        debug_assert!((1..=GANG_PACKET_BYTES_MAX).contains(&packet.len()), "a device has an MTU");
        let bytes = LENGTH_BYTES + packet.len();
        if waiting.bytes.len() + bytes > LINK_BYTES_MAX || !self.budget.take(bytes) {
            return Err(LinkDrop::Full);
        }
        waiting.bytes.extend_from_slice(&length.to_be_bytes());
        waiting.bytes.extend_from_slice(packet);
        drop(waiting);
        self.news.notify_one();
        Ok(())
    }

    /// Waits for packets, and returns all that wait.
    pub(super) async fn take(&self) -> FrameBatch {
        loop {
            let bytes = std::mem::take(&mut self.lock().bytes);
            if !bytes.is_empty() {
                return FrameBatch { bytes, budget: self.budget.clone() };
            }
            self.news.notified().await;
        }
    }

    /// Lets packets in from now on.
    pub(super) fn open(&self) {
        self.lock().is_open = true;
    }

    /// Drops what waits, and what comes until the next opening.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_open = false;
        let bytes = std::mem::take(&mut waiting.bytes);
        self.budget.give(bytes.len());
    }

    fn lock(&self) -> MutexGuard<'_, WaitingFrames> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LinkQueue {
    fn drop(&mut self) {
        self.close();
    }
}

/// Frames that are being written. They count for the budget until they are dropped.
#[derive(Debug)]
pub(super) struct FrameBatch {
    pub(super) bytes: Vec<u8>,
    budget: Arc<QueueBudget>,
}

impl Drop for FrameBatch {
    fn drop(&mut self) {
        self.budget.give(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn pushed(queue: &LinkQueue, packet: &[u8], times: usize) -> usize {
        (0..times).take_while(|_| queue.push(packet).is_ok()).count()
    }

    #[tokio::test]
    async fn a_flood_waits_in_bounded_memory_and_the_rest_is_dropped() {
        let budget = QueueBudget::new(LINK_BYTES_MAX * 3 / 2);
        let (one, other) = (LinkQueue::new(budget.clone()), LinkQueue::new(budget.clone()));
        assert_eq!(one.push(b"early"), Err(LinkDrop::Down), "a link that is down takes nothing");
        one.open();
        other.open();
        let packet = vec![7; GANG_PACKET_BYTES_MAX];
        let fit = LINK_BYTES_MAX / (LENGTH_BYTES + packet.len());
        assert_eq!(pushed(&one, &packet, 1000), fit);
        assert_eq!(one.push(&packet), Err(LinkDrop::Full));
        let rest = pushed(&other, &packet, 1000);
        assert!((1..fit).contains(&rest), "all links share a budget: {rest} of {fit}");
        let batch = one.take().now_or_never().expect("packets wait");
        assert_eq!(batch.bytes.len(), fit * (LENGTH_BYTES + packet.len()));
        assert_eq!(other.push(&packet), Err(LinkDrop::Full), "what is being written counts");
        drop(batch);
        assert_eq!(other.push(&packet), Ok(()), "positive control: there is room again");
        other.close();
        drop(other);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0, "nothing is left of them");
        assert!(one.take().now_or_never().is_none(), "nothing waits");
    }
}
