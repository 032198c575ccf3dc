//! Invariants of the scheduler, checked between two steps.
//!
//! A violation of [`Scheduler::check_answers`] would mix sequences or compute a token at the wrong position,
//! so it ends the process in release builds too. The others protect order, limits and blocks. They hold for
//! every script of requests and are checked after each step of the tests.

use super::Scheduler;
#[cfg(test)]
use super::Sequence;
use crate::engine::BLOCK_TOKENS;

impl Scheduler {
    /// Checks what every answer relies on: the tokens of each sequence are in its blocks, or still to be
    /// computed.
    ///
    /// # Errors
    /// Describes the first violation.
    pub(in crate::batcher) fn check_answers(&self) -> Result<(), String> {
        for sequence in &self.running {
            let (id, length, computed) = (sequence.id.0, sequence.tokens.len(), sequence.computed);
            if computed >= length || length < sequence.prompt {
                return Err(format!("request {id} has computed {computed} of {length} tokens"));
            }
            if computed > sequence.blocks.len() * BLOCK_TOKENS {
                let blocks = sequence.blocks.len();
                return Err(format!("request {id} has {computed} positions in {blocks} blocks"));
            }
        }
        match self.waiting.iter().find(|sequence| !sequence.blocks.is_empty() || sequence.computed > 0) {
            Some(sequence) => Err(format!("request {} has blocks while it waits", sequence.id.0)),
            None => Ok(()),
        }
    }

    /// Checks all invariants: answers, order, limits and blocks.
    ///
    /// # Errors
    /// Describes the first violation.
    #[cfg(test)]
    pub(in crate::batcher) fn check_invariants(&self) -> Result<(), String> {
        self.check_answers()?;
        if self.running.len() > self.limits.sequences_max {
            let (running, limit) = (self.running.len(), self.limits.sequences_max);
            return Err(format!("{running} requests run, at most {limit}"));
        }
        if !self.running.is_sorted_by_key(Sequence::order) {
            return Err("running requests are not in order of service".to_owned());
        }
        if !self.waiting.is_sorted_by_key(|sequence| sequence.id) {
            return Err("waiting requests are not in order of arrival".to_owned());
        }
        for sequence in &self.running {
            if let Some(other) = self.pool.other_tenant(&sequence.blocks, sequence.tenant.as_ref()) {
                return Err(format!("request {} has block {} of another tenant", sequence.id.0, other.0));
            }
        }
        self.pool.check_invariants(self.running.iter().flat_map(|sequence| sequence.blocks.iter().copied()))
    }
}
