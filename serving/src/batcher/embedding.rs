//! One embedding request inside the batcher, computed in portions: a large one can be abandoned midway, and
//! small ones share a step with it.

use tokio::sync::oneshot;

use super::BatchError;

/// A queued or half-computed embedding request.
pub(super) struct EmbeddingTask {
    /// Sequences still to compute, in order.
    sequences: std::vec::IntoIter<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, BatchError>>,
}

impl EmbeddingTask {
    pub(super) fn new(
        sequences: Vec<Vec<u32>>,
        reply: oneshot::Sender<Result<Vec<Vec<f32>>, BatchError>>,
    ) -> Self {
        Self { vectors: Vec::with_capacity(sequences.len()), sequences: sequences.into_iter(), reply }
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

    /// Moves sequences into `batch` until it holds `budget` tokens; at least one if the batch is empty.
    /// Returns the number of sequences moved.
    pub(super) fn take(&mut self, batch: &mut Vec<Vec<u32>>, tokens: &mut usize, budget: usize) -> usize {
        let mut moved = 0;
        while let Some(next) = self.sequences.as_slice().first() {
            if !batch.is_empty() && *tokens + next.len() > budget {
                break;
            }
            *tokens += next.len();
            batch.extend(self.sequences.next());
            moved += 1;
        }
        moved
    }

    pub(super) fn accept(&mut self, vectors: impl Iterator<Item = Vec<f32>>) {
        self.vectors.extend(vectors);
    }

    pub(super) fn finish(self, outcome: Result<(), BatchError>) {
        // The caller may have dropped the receiver; the answer is then discarded.
        let _ = self.reply.send(outcome.map(|()| self.vectors));
    }
}
