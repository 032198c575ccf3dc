//! Invariants of the batcher's thread, checked between two steps.
//!
//! Two kinds. Those of [`Worker::check_answers`] protect the answers: a violation would mix sequences or feed
//! a token at the wrong position, so it ends the process in release builds too. The others protect order,
//! limits and counters. They hold for every script of requests and are checked after each step of the tests.

use super::Worker;
use crate::batcher::embedding::EmbeddingTask;

impl Worker {
    /// Checks what every answer relies on: distinct sequences, and the position of each request's next input.
    ///
    /// # Errors
    /// Describes the first violation.
    pub(super) fn check_answers(&self) -> Result<(), String> {
        for (index, running) in self.running.iter().enumerate() {
            let sequence = running.sequence;
            if self.running[..index].iter().any(|earlier| earlier.sequence == sequence) {
                return Err(format!("two generations share sequence {}", sequence.0));
            }
            running.check_invariants()?;
        }
        self.embeddings.iter().try_for_each(EmbeddingTask::check_invariants)
    }
}

#[cfg(test)]
impl Worker {
    /// Checks all invariants.
    ///
    /// # Errors
    /// Describes the first violation.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        self.check_answers()?;
        self.check_order()?;
        self.check_cache()?;
        self.check_counters()
    }

    /// Checks that requests are served in order of arrival, within the limit on generations.
    fn check_order(&self) -> Result<(), String> {
        if self.running.len() > self.limits.sequences_max {
            let (running, limit) = (self.running.len(), self.limits.sequences_max);
            return Err(format!("{running} generations run, at most {limit}"));
        }
        // An engine numbers its sequences in the order in which they are opened.
        if !self.running.is_sorted_by_key(|running| running.sequence) {
            return Err("running generations are not in order of arrival".to_owned());
        }
        if self.embeddings.iter().skip(1).any(EmbeddingTask::is_begun) {
            return Err("an embedding request has begun before an older one".to_owned());
        }
        match self.embeddings.iter().any(EmbeddingTask::is_complete) {
            true => Err("a complete embedding request is still queued".to_owned()),
            false => Ok(()),
        }
    }

    /// Checks that the engine's reservations are those of the running generations, and fit its cache.
    fn check_cache(&self) -> Result<(), String> {
        let capacity = self.engine.capacity();
        let reserved: usize = self.running.iter().map(|running| running.tokens_reserved()).sum();
        if capacity.tokens_reserved > capacity.tokens_total {
            return Err(format!(
                "{} cache positions are reserved of {}",
                capacity.tokens_reserved, capacity.tokens_total
            ));
        }
        if capacity.tokens_reserved < reserved {
            let held = capacity.tokens_reserved;
            return Err(format!("running generations need {reserved} cache positions, {held} are reserved"));
        }
        if self.running.is_empty() && capacity.tokens_reserved > 0 {
            return Err(format!("{} cache positions are reserved for none", capacity.tokens_reserved));
        }
        Ok(())
    }

    /// Checks that the levels that other threads read are those of this thread.
    fn check_counters(&self) -> Result<(), String> {
        let counted = self.counters.snapshot();
        let running = self.running.len() as u64;
        if counted.requests_running != running {
            return Err(format!("{running} requests run, {} are counted", counted.requests_running));
        }
        // Handles count a request before they tokenize it, so more may be counted than are queued here.
        let queued = (self.generations.len() + self.embeddings.len()) as u64;
        if counted.requests_waiting < queued {
            return Err(format!("{queued} requests wait, {} are counted", counted.requests_waiting));
        }
        // No handle is at work in these tests: one that is rejected would be counted for a moment.
        if counted.requests_waiting > self.limits.waiting_max as u64 {
            let limit = self.limits.waiting_max;
            return Err(format!("{} requests wait, at most {limit}", counted.requests_waiting));
        }
        Ok(())
    }
}
