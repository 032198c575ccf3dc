//! Requests that score documents for a query.

use super::embedding::EmbeddingTask;
use super::{BatchError, Batcher, BatcherCommand, Embedding, Embeddings, refuse};
use crate::engine::{EngineError, Operation, TextFrontend, TokenPair};
use protocol::limits::RERANK_TOKENS_MAX;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A request that has been tokenized and queued. Dropping it stops the work.
#[derive(Debug)]
pub struct Reranking(Embedding);

/// Scores of documents and their token count.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// One score per document, in order.
    pub scores: Vec<f32>,
    /// Tokens of all pairs.
    pub prompt_tokens: usize,
}

impl Reranking {
    /// Waits for the scores.
    ///
    /// # Errors
    /// [`BatchError::Failed`]: the engine failed, or its thread has ended.
    pub async fn computed(self) -> Result<Scores, BatchError> {
        let Embeddings { vectors, prompt_tokens } = self.0.computed().await?;
        debug_assert!(vectors.iter().all(|vector| vector.len() == 1), "a score is one number");
        Ok(Scores { scores: vectors.into_iter().flatten().collect(), prompt_tokens })
    }
}

impl Batcher {
    /// Tokenizes and queues the pairs of a query and each document.
    ///
    /// # Errors
    /// [`BatchError`]: the queue is full, the worker drains, or a pair is invalid for this model.
    pub async fn rerank(&self, query: String, documents: Arc<[String]>) -> Result<Reranking, BatchError> {
        self.expect_operation(Operation::Rerank)?;
        if documents.is_empty() || documents.len() > self.limits.inputs_max {
            let message = format!("{} documents, expected 1 to {}", documents.len(), self.limits.inputs_max);
            return Err(refuse(message));
        }
        let slot = self.take_slot()?;
        let count = documents.len();
        let bytes = query.len() + documents.iter().map(String::len).sum::<usize>();
        let encode = move |frontend: &TextFrontend, is_abandoned: &dyn Fn() -> bool| {
            pairs(frontend, &query, &documents, is_abandoned)
        };
        let (pairs, prompt_tokens) = self.tokenize(bytes, encode).await?;
        if prompt_tokens > RERANK_TOKENS_MAX {
            let message = format!(
                "the query with each document has more than {RERANK_TOKENS_MAX} tokens in all: send fewer \
                 documents at once"
            );
            return Err(refuse(message));
        }
        debug_assert_eq!(pairs.len(), count, "a caller that waits gets every pair tokenized");
        for pair in &pairs {
            self.check_tokens(&pair.tokens)?;
        }
        let (reply, answer) = oneshot::channel();
        self.submit(slot, BatcherCommand::Embed(EmbeddingTask::of_pairs(pairs, reply)))?;
        Ok(Reranking(Embedding { prompt_tokens, answer }))
    }
}

/// Tokenizes a query with each document, and counts the tokens. It ends once they are too many.
fn pairs(
    frontend: &TextFrontend,
    query: &str,
    documents: &[String],
    is_abandoned: &dyn Fn() -> bool,
) -> Result<(Vec<TokenPair>, usize), EngineError> {
    let query = frontend.encode_query(query)?;
    let (mut pairs, mut tokens) = (Vec::with_capacity(documents.len()), 0);
    for document in documents {
        if is_abandoned() || tokens > RERANK_TOKENS_MAX {
            break;
        }
        let pair = frontend.encode_pair(&query, document)?;
        tokens += pair.tokens.len();
        pairs.push(pair);
    }
    debug_assert!(pairs.len() <= documents.len(), "a pair for each document at most");
    Ok((pairs, tokens))
}
