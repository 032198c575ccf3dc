//! Counters of a batcher, readable by other threads while it works. Levels and totals only; no decisions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters shared between the thread and its handles.
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
    pub(super) cache_tokens_used: AtomicU64,
    pub(super) shared_tokens_total: AtomicU64,
    pub(super) preemptions_total: AtomicU64,
    pub(super) draining: AtomicBool,
}

/// A batcher's counters at one moment. Totals count from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatcherSnapshot {
    /// Requests whose computation has begun.
    pub requests_running: u64,
    /// Requests in the queue.
    pub requests_waiting: u64,
    /// Requests answered in full.
    pub requests_finished_total: u64,
    /// Requests whose caller cancelled.
    pub requests_cancelled_total: u64,
    /// Requests that ended in an engine error.
    pub requests_failed_total: u64,
    /// Requests rejected because the queue was full.
    pub requests_refused_total: u64,
    /// Tokens of the prompts to which an answer began.
    pub prompt_tokens_total: u64,
    /// Tokens generated.
    pub generation_tokens_total: u64,
    /// Engine steps.
    pub steps_total: u64,
    /// Positions that the cache can hold.
    pub cache_tokens_total: u64,
    /// Positions in the blocks of running generations.
    pub cache_tokens_used: u64,
    /// Prompt tokens that were in the cache and not computed again.
    pub shared_tokens_total: u64,
    /// Generations that gave up their place in the cache for a while.
    pub preemptions_total: u64,
}

impl Counters {
    /// Reads the counters: levels first, with acquire order, in the order in which a request passes through
    /// them. A request is counted in its next stage before it leaves the previous one. A reader that sees it
    /// in no level therefore sees it in the totals.
    pub(super) fn snapshot(&self) -> BatcherSnapshot {
        let requests_waiting = self.waiting.load(Ordering::Acquire);
        let requests_running = self.running.load(Ordering::Acquire);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BatcherSnapshot {
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
            cache_tokens_used: read(&self.cache_tokens_used),
            shared_tokens_total: read(&self.shared_tokens_total),
            preemptions_total: read(&self.preemptions_total),
        }
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}

/// Decrements a level after the request's next stage was counted. Release order, so that a reader that sees a
/// level of zero sees all work before it.
pub(super) fn leave(level: &AtomicU64) {
    let before = level.fetch_sub(1, Ordering::AcqRel);
    assert!(before > 0, "a request leaves only a level that it has entered");
}
