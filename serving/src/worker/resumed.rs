//! Beginning of an answer: a fresh one, or the continuation of one that another worker began.
//!
//! A gateway fixes id and time of an answer, and repeats the tokens that it handed out. The worker puts them
//! through the same pipeline of text and sends the rest.

use super::WorkerService;
use crate::batcher::{BatchError, Batcher, GenerateRequest, Generation, TokenPiece};
use crate::engine::TextFrontend;
use crate::openai::{ApiError, Delivery, Generate};
use crate::resumable::{RESUMABLE, StreamOrigin, TOKEN_BYTES, read_tokens};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use protocol::Millis;
use protocol::error_code as code;

/// Reads the gateway's header, if this worker serves gateways: the origin of the stream, and the number of
/// tokens before the body.
///
/// # Errors
/// 400: the header is not one that a gateway writes.
pub(super) fn origin(
    service: &WorkerService,
    headers: &HeaderMap,
) -> Result<Option<(StreamOrigin, usize)>, ApiError> {
    // Clients reach a worker on local files directly; its answers are never in frames.
    let value = headers.get(RESUMABLE).filter(|_| service.model().is_none());
    let Some(value) = value else { return Ok(None) };
    match StreamOrigin::parse(value) {
        Some(found) => Ok(Some(found)),
        None => Err(invalid("the header `quorate-resumable` is not one that a gateway writes")),
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code::REQUEST_INVALID, message)
}

/// Beginning of one answer.
#[derive(Debug)]
pub(super) struct StreamBeginning {
    origin: StreamOrigin,
    /// Tokens that were handed out, of an answer in frames.
    drawn: Option<Vec<u32>>,
}

impl StreamBeginning {
    /// Begins an answer of its own.
    pub(super) fn fresh(number: u64, at: Millis) -> Self {
        Self { origin: StreamOrigin { number, at }, drawn: None }
    }

    /// Takes `tokens` tokens from the front of a body.
    ///
    /// # Errors
    /// 400: the body is shorter.
    pub(super) fn resumed(origin: StreamOrigin, tokens: usize, body: &mut Bytes) -> Result<Self, ApiError> {
        let bytes = tokens * TOKEN_BYTES;
        if body.len() < bytes {
            return Err(invalid("the body ends within the tokens that `quorate-resumable` announces"));
        }
        Ok(Self { origin, drawn: Some(read_tokens(&body.split_to(bytes))) })
    }

    /// Checks that an answer in frames is a stream with one choice: tokens have no index.
    ///
    /// # Errors
    /// 400.
    pub(super) fn check(&self, generate: &Generate) -> Result<(), ApiError> {
        let is_single = generate.prompts.len() == 1 && generate.choices == 1 && !generate.echo;
        let is_stream = matches!(generate.delivery, Delivery::Stream { .. });
        if self.drawn.is_none() || (is_single && is_stream) {
            return Ok(());
        }
        Err(invalid("`quorate-resumable` is for a stream with one choice and without `echo`"))
    }

    /// Returns number and time of the answer.
    pub(super) fn origin(&self) -> StreamOrigin {
        self.origin
    }

    /// Reports whether the answer is in frames.
    pub(super) fn is_framed(&self) -> bool {
        self.drawn.is_some()
    }

    /// Queues the generation of one choice.
    ///
    /// # Errors
    /// Those of [`Batcher::generate`] and [`Batcher::resume`].
    pub(super) async fn generate(
        &self,
        batcher: &Batcher,
        request: GenerateRequest,
    ) -> Result<Generation, BatchError> {
        match &self.drawn {
            Some(drawn) => batcher.resume(request, drawn.clone()).await,
            None => batcher.generate(request).await,
        }
    }

    /// Returns the characters of the tokens that were handed out, where the answer counts them; `None` for an
    /// answer of which nothing was.
    pub(super) fn characters_sent(&self, frontend: &TextFrontend, is_counted: bool) -> Option<usize> {
        let drawn = self.drawn.as_ref().filter(|drawn| !drawn.is_empty())?;
        let characters = |token: &u32| TokenPiece { bytes: frontend.token_bytes(*token) }.characters();
        Some(if is_counted { drawn.iter().map(characters).sum() } else { 0 })
    }
}

#[cfg(test)]
mod tests;
