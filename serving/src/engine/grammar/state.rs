//! The state of one answer in its grammar: which tokens may follow.
//!
//! The mask of the next token is computed once, by the first of those that ask: a thread that runs beside the
//! forward pass, or the sampler. The result is the same, so no answer depends on who was first.

use super::check::FinalCheck;
use super::error::refusal;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bits of one of the words that a mask consists of.
const WORD_BITS: usize = 32;

/// The state of one answer.
pub struct GrammarState(Mutex<GrammarProgress>);

struct GrammarProgress {
    matcher: Matcher,
    /// Tokens that may follow, once they are known.
    mask: Option<SimpleVob>,
    /// Reason for which no token may follow.
    failure: Option<String>,
    /// Check of the whole answer, if its grammar does not say all.
    check: Option<Arc<FinalCheck>>,
    /// Text so far, for the check.
    text: Vec<u8>,
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarState")
    }
}

impl PartialEq for GrammarState {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl GrammarState {
    pub(super) fn new(matcher: Matcher, check: Option<Arc<FinalCheck>>) -> Self {
        Self(Mutex::new(GrammarProgress { matcher, mask: None, failure: None, check, text: Vec::new() }))
    }

    fn progress(&self) -> MutexGuard<'_, GrammarProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes the mask of the next token, if it is not known.
    pub fn prepare(&self) {
        self.progress().prepare();
    }

    /// Forbids all tokens in a row of logits that may not follow: they get minus infinity. Forbids all where
    /// the grammar has failed.
    pub fn apply(&self, row: &mut [f32]) {
        let mut progress = self.progress();
        progress.prepare();
        let words = progress.mask.as_ref().map_or(&[][..], SimpleVob::as_slice);
        for (index, logits) in row.chunks_mut(WORD_BITS).enumerate() {
            let word = words.get(index).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Reports whether this token may follow.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        let mut progress = self.progress();
        progress.prepare();
        progress.may_follow(token)
    }

    /// Appends a token. One that may not follow fails the grammar.
    pub fn push(&self, token: u32) {
        let mut progress = self.progress();
        if progress.failure.is_some() {
            return;
        }
        if progress.matcher.is_stopped() {
            // The library takes no end token after a complete answer.
            progress.prepare();
            if !progress.may_follow(token) {
                progress.failure = Some(format!("token {token} follows the end of the answer"));
            }
            return;
        }
        progress.mask = None;
        if let Some(check) = progress.check.clone() {
            progress.text.extend_from_slice(check.bytes(token));
        }
        if let Err(error) = progress.matcher.consume_token(token) {
            progress.failure = Some(refusal(&error).to_string());
        }
    }

    /// Returns the reason for which no token may follow, if none may.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.progress().failure.clone()
    }
}

impl GrammarProgress {
    fn may_follow(&self, token: u32) -> bool {
        let mask = self.mask.as_ref().filter(|_| self.failure.is_none());
        mask.is_some_and(|mask| (token as usize) < mask.len() && mask.is_allowed(token))
    }

    fn prepare(&mut self) {
        if self.failure.is_some() {
            self.mask = None;
        }
        if self.mask.is_some() || self.failure.is_some() {
            return;
        }
        match self.matcher.compute_mask_or_eos() {
            Ok(mut mask) => {
                if let Some(check) = &self.check {
                    check.restrict(&self.text, &mut mask);
                }
                if mask.is_zero() {
                    self.failure = Some("the answer cannot become an instance of its schema".to_owned());
                } else {
                    self.mask = Some(mask);
                }
            }
            Err(error) => self.failure = Some(refusal(&error).to_string()),
        }
        debug_assert!(self.mask.is_some() != self.failure.is_some(), "a mask or a reason");
    }
}
