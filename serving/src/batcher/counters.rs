//! Numbers about a batcher that other threads read while it works. Levels and totals only; no decisions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared between the thread and its handles.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) waiting: AtomicU64,
    pub(super) running: AtomicU64,
    pub(super) finished_total: AtomicU64,
    pub(super) cancelled_total: AtomicU64,
    pub(super) failed_total: AtomicU64,
    pub(super) refused_total: AtomicU64,
    pub(super) prompt_tokens_total: AtomicU64,
    pub(super) generation_tokens_total: AtomicU64,
    pub(super) steps_total: AtomicU64,
    pub(super) cache_tokens_total: AtomicU64,
    pub(super) cache_tokens_reserved: AtomicU64,
    pub(super) draining: AtomicBool,
}

/// A batcher's numbers at one moment. Totals count from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Requests in the engine.
    pub requests_running: u64,
    /// Requests in the queue.
    pub requests_waiting: u64,
    /// Requests answered in full.
    pub requests_finished_total: u64,
    /// Requests whose caller went away.
    pub requests_cancelled_total: u64,
    /// Requests that ended in an engine error.
    pub requests_failed_total: u64,
    /// Requests refused because too many waited.
    pub requests_refused_total: u64,
    /// Prompt tokens computed.
    pub prompt_tokens_total: u64,
    /// Tokens generated.
    pub generation_tokens_total: u64,
    /// Engine steps.
    pub steps_total: u64,
    /// Positions that the cache can hold.
    pub cache_tokens_total: u64,
    /// Positions reserved by running generations.
    pub cache_tokens_reserved: u64,
}

impl Counters {
    /// Levels first, in the order in which a request passes through them, and acquired: a request is counted
    /// where it comes to before it leaves where it was, so who sees it nowhere sees it in the totals.
    pub(super) fn snapshot(&self) -> Snapshot {
        let requests_waiting = self.waiting.load(Ordering::Acquire);
        let requests_running = self.running.load(Ordering::Acquire);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            requests_running,
            requests_waiting,
            requests_finished_total: read(&self.finished_total),
            requests_cancelled_total: read(&self.cancelled_total),
            requests_failed_total: read(&self.failed_total),
            requests_refused_total: read(&self.refused_total),
            prompt_tokens_total: read(&self.prompt_tokens_total),
            generation_tokens_total: read(&self.generation_tokens_total),
            steps_total: read(&self.steps_total),
            cache_tokens_total: read(&self.cache_tokens_total),
            cache_tokens_reserved: read(&self.cache_tokens_reserved),
        }
    }
}

/// Add to a counter.
pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}

/// Take one from a level, after what became of it was counted. Release, so that whoever sees a level of zero
/// sees all work before it.
pub(super) fn leave(level: &AtomicU64) {
    level.fetch_sub(1, Ordering::AcqRel);
}
