//! Invariants of the batcher's thread, checked between two steps.
//!
//! A violation of [`Worker::check_answers`] would mix answers, so it ends the process in release builds too.
//! The others protect order and counters. They hold for every script of requests and are checked after each
//! step of the tests.

use super::Worker;
use crate::batcher::embedding::EmbeddingTask;
use crate::batcher::generation::GeneratedText;

impl Worker {
    /// Checks what every answer relies on: the blocks of each sequence, and the length of each text.
    ///
    /// # Errors
    /// Describes the first violation.
    pub(super) fn check_answers(&self) -> Result<(), String> {
        self.scheduler.check_answers()?;
        self.texts.values().try_for_each(GeneratedText::check_invariants)?;
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
        self.scheduler.check_invariants()?;
        self.check_order()?;
        self.check_counters()
    }

    /// Checks that embeddings are computed in order of arrival, and that each generation has a text.
    fn check_order(&self) -> Result<(), String> {
        if self.embeddings.iter().skip(1).any(EmbeddingTask::is_begun) {
            return Err("an embedding request has begun before an older one".to_owned());
        }
        if self.embeddings.iter().any(EmbeddingTask::is_complete) {
            return Err("a complete embedding request is still queued".to_owned());
        }
        let (begun, waiting) = self.scheduler.levels();
        match self.texts.len() == begun + waiting {
            true => Ok(()),
            false => Err(format!("{} texts for {} generations", self.texts.len(), begun + waiting)),
        }
    }

    /// Checks that the levels that other threads read are those of this thread.
    fn check_counters(&self) -> Result<(), String> {
        let counted = self.counters.snapshot();
        let (begun, waiting) = self.scheduler.levels();
        if counted.requests_running != begun as u64 {
            return Err(format!("{begun} requests run, {} are counted", counted.requests_running));
        }
        // No handle is at work in these tests: one that tokenizes would be counted too.
        let waiting = waiting + self.embeddings.len();
        if counted.requests_waiting != waiting as u64 {
            return Err(format!("{waiting} requests wait, {} are counted", counted.requests_waiting));
        }
        if counted.cache_tokens_used > counted.cache_tokens_total {
            let (used, total) = (counted.cache_tokens_used, counted.cache_tokens_total);
            return Err(format!("{used} cache positions are used of {total}"));
        }
        Ok(())
    }
}
