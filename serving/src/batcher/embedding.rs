//! One request to embed or to rerank inside the batcher, computed in portions: a large one can be abandoned
//! midway, and small ones share a step with it. A score is a vector of one number.

use super::BatchError;
use crate::engine::TokenPair;
use tokio::sync::oneshot;

/// A queued or half-computed embedding request.
pub(super) struct EmbeddingTask {
    /// Sequences still to compute, in order.
    sequences: std::vec::IntoIter<TokenPair>,
    vectors: Vec<Vec<f32>>,
    /// Number of sequences at the start.
    inputs: usize,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, BatchError>>,
}

impl EmbeddingTask {
    /// Creates the request for the vectors of texts.
    pub(super) fn new(
        texts: Vec<Vec<u32>>,
        reply: oneshot::Sender<Result<Vec<Vec<f32>>, BatchError>>,
    ) -> Self {
        let alone = |tokens: Vec<u32>| TokenPair { second: tokens.len(), tokens };
        Self::of_pairs(texts.into_iter().map(alone).collect(), reply)
    }

    /// Creates the request for the scores of pairs.
    pub(super) fn of_pairs(
        sequences: Vec<TokenPair>,
        reply: oneshot::Sender<Result<Vec<Vec<f32>>, BatchError>>,
    ) -> Self {
        let inputs = sequences.len();
        assert!(inputs > 0, "checked when the request was queued");
        debug_assert!(sequences.iter().all(|pair| !pair.tokens.is_empty()), "each input has a token");
        Self { vectors: Vec::with_capacity(inputs), sequences: sequences.into_iter(), inputs, reply }
    }

    /// Reports whether the caller has dropped the request.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Reports whether every value computed so far is finite.
    pub(super) fn is_number(&self) -> bool {
        self.vectors.iter().flatten().all(|number| number.is_finite())
    }

    /// Reports whether all sequences are computed.
    pub(super) fn is_complete(&self) -> bool {
        self.sequences.len() == 0
    }

    /// Reports whether a part of the vectors has been computed.
    #[cfg(test)]
    pub(super) fn is_begun(&self) -> bool {
        !self.vectors.is_empty()
    }

    /// Checks the state between two steps: each input is computed or still to be computed, and none is lost.
    ///
    /// # Errors
    /// Describes the violation.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let found = self.vectors.len() + self.sequences.len();
        if found == self.inputs {
            return Ok(());
        }
        Err(format!("an embedding request has {found} vectors and inputs, expected {}", self.inputs))
    }

    /// Moves sequences into `batch` until it holds `budget` tokens; at least one if the batch is empty.
    /// Returns the number of sequences moved.
    pub(super) fn take(&mut self, batch: &mut Vec<TokenPair>, tokens: &mut usize, budget: usize) -> usize {
        assert!(budget > 0, "a step computes at least one token");
        let mut moved = 0;
        while let Some(next) = self.sequences.as_slice().first() {
            if !batch.is_empty() && *tokens + next.tokens.len() > budget {
                break;
            }
            *tokens += next.tokens.len();
            batch.extend(self.sequences.next());
            moved += 1;
        }
        assert!(*tokens <= budget || batch.len() == 1, "only one text alone may exceed a step");
        debug_assert!(!batch.is_empty() || self.is_complete(), "an empty step takes the next text");
        moved
    }

    pub(super) fn accept(&mut self, vectors: impl Iterator<Item = Vec<f32>>) {
        self.vectors.extend(vectors);
        assert!(self.vectors.len() <= self.inputs, "no more vectors than inputs");
    }

    pub(super) fn finish(self, outcome: Result<(), BatchError>) {
        assert!(
            outcome.is_err() || self.vectors.len() == self.inputs,
            "an answer has a vector for each input"
        );
        debug_assert!(outcome.is_err() || self.is_number(), "an answer has numbers only");
        // The caller may have dropped the receiver; the answer is then discarded.
        let _ = self.reply.send(outcome.map(|()| self.vectors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_ends_at_the_budget_and_a_batch_is_never_empty() {
        let (reply, _answer) = oneshot::channel();
        let mut task = EmbeddingTask::new(vec![vec![1; 9], vec![1; 4], vec![1; 4], vec![1; 4]], reply);
        let shares = [1, 2, 1, 0].map(|expected| {
            let (mut batch, mut tokens) = (Vec::new(), 0);
            let moved = task.take(&mut batch, &mut tokens, 8);
            assert_eq!(tokens, batch.iter().map(|pair| pair.tokens.len()).sum::<usize>());
            (moved, expected)
        });
        assert!(shares.iter().all(|(moved, expected)| moved == expected), "{shares:?}");
        assert!(task.is_complete());
    }

    #[test]
    fn a_lost_input_is_reported() {
        let (reply, _answer) = oneshot::channel();
        let mut task = EmbeddingTask::new(vec![vec![1; 4]; 2], reply);
        assert_eq!(task.check_invariants(), Ok(()));
        task.take(&mut Vec::new(), &mut 0, 4);
        let found = task.check_invariants().expect_err("one of two is left");
        assert_eq!(found, "an embedding request has 1 vectors and inputs, expected 2");
        task.accept(std::iter::once(vec![0.5]));
        assert_eq!(task.check_invariants(), Ok(()));
    }
}
