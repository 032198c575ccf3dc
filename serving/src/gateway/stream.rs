//! Streams that outlive their worker.
//!
//! A worker sends a stream in frames: tokens, and the bytes for the client that they complete
//! ([`crate::resumable`]). The gateway keeps the request and the tokens that it handed out. When the worker
//! is lost, it sends both to another worker of the same numeric class, which sends the rest; the client's
//! bytes are those of an undisturbed stream. Only whole frames reach the client, so that its bytes always end
//! where the tokens do.
//!
//! All of that is charged to the key's share of the memory budget, while a quarter of it is free. A stream
//! that is evicted from it remains, but ends with its worker. A stream whose worker breaks the framing ends
//! at once.
//!
//! A stream continues after one loss. Its tokens prove that its worker read it without harm, so it is not
//! tried alone, as an unanswered suspect is; but a request ends two workers at most.

use super::Gateway;
use super::answer::{AnswerFrame, AttemptFailure, WorkerAnswer, count, send, worker_lost};
use super::target::{InferenceTarget, StreamKind};
use crate::memory::Charge;
use crate::metrics::Observation;
use crate::openai::{ApiError, error_event};
use crate::resumable::{
    RESUMABLE, StreamFrame, StreamOrigin, StreamReader, TOKEN_BYTES, TOKENS_MAX, write_tokens,
};
use crate::worker::{COMPLETION_TOKENS, PROMPT_TOKENS, TENANT, event_stream};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use overlay::CancellationToken;
use protocol::{Digest, TokenName};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum workers that may reject the continuation of one stream.
const CONTINUATIONS_MAX: usize = 3;
/// Tokens by which the charge for a stream grows.
const CHARGE_TOKENS: usize = 1024;
/// Longest wait of a stream for memory to keep its tokens: its client waits for the text as long.
const CHARGE_TIMEOUT: Duration = Duration::from_millis(100);

/// Builds a request to a worker; `resumed` asks for an answer in frames that follows these tokens.
pub(super) fn request(
    wanted: &InferenceTarget,
    tenant: &TokenName,
    body: Bytes,
    resumed: Option<(StreamOrigin, &[u32])>,
) -> http::Request<Body> {
    let mut request = http::Request::post(wanted.endpoint.path())
        .header(header::CONTENT_TYPE, "application/json")
        .header(TENANT, tenant.as_str());
    let mut tokens = Bytes::new();
    if let Some((origin, drawn)) = resumed {
        request = request.header(RESUMABLE, origin.header(drawn.len()));
        tokens = write_tokens(drawn);
    }
    let body = if tokens.is_empty() {
        Body::from(body)
    } else {
        Body::from_stream(stream::iter([Ok::<_, Infallible>(tokens), Ok(body)]))
    };
    request.body(body).expect("a literal path, and a name of letters, digits and hyphens, are valid")
}

/// Everything that continues a stream on another worker, beside its tokens.
pub(super) struct KeptRequest {
    pub(super) gateway: Arc<Gateway>,
    pub(super) wanted: InferenceTarget,
    pub(super) body: Bytes,
    pub(super) charge: Charge<TokenName>,
    pub(super) origin: StreamOrigin,
    /// Workers that have had the request.
    pub(super) tried: Vec<u64>,
    /// Whether a worker was lost with the request.
    pub(super) was_lost: bool,
}

/// A streamed answer that has begun.
pub(super) struct StreamedAnswer {
    answer: WorkerAnswer,
    observation: Observation,
    /// First bytes for the client.
    first: Bytes,
    /// Reader of an answer in frames, and the class of workers that can continue it.
    framed: Option<(StreamReader, Digest)>,
    /// Number of tokens so far, and their limit.
    tokens: (usize, usize),
    /// Whether the last frame has arrived.
    is_complete: bool,
    /// Tokens handed out, while the stream can continue.
    drawn: Option<Vec<u32>>,
    /// Number of tokens that are charged.
    charged: usize,
    kept: Option<KeptRequest>,
}

/// The next piece of a stream.
enum StreamPiece {
    /// Bytes for the client; may be none.
    Data(Bytes),
    End,
    Lost,
}

impl StreamedAnswer {
    /// Waits for the first bytes: until they arrive, the request can still be retried on another worker.
    /// `class` is that of a worker that was asked for frames.
    ///
    /// # Errors
    /// The observation, and whether the worker was lost; otherwise it ended the answer before it began.
    pub(super) async fn begin(
        headers: &HeaderMap,
        answer: WorkerAnswer,
        observation: Observation,
        delivery: StreamKind,
        class: Option<Digest>,
    ) -> Result<Self, (bool, Observation)> {
        let class = class.filter(|_| headers.contains_key(RESUMABLE));
        let tokens_max = match delivery {
            StreamKind::Resumable { tokens_max } => tokens_max,
            StreamKind::Whole | StreamKind::Bound => TOKENS_MAX,
        };
        let mut begun = Self {
            answer,
            observation,
            first: Bytes::new(),
            framed: class.map(|class| (StreamReader::default(), class)),
            tokens: (0, tokens_max),
            is_complete: false,
            drawn: class.map(|_| Vec::new()),
            charged: 0,
            kept: None,
        };
        while begun.first.is_empty() {
            begun.first = match begun.next_piece().await {
                StreamPiece::Data(data) => data,
                StreamPiece::Lost => return Err((true, begun.observation)),
                StreamPiece::End => return Err((false, begun.observation)),
            };
        }
        begun.observation.tokens(count(headers, &PROMPT_TOKENS), None);
        begun.observation.chunk();
        Ok(begun)
    }

    /// Builds the response. The request is kept, except where no other worker can continue the stream, or
    /// where memory is scarce.
    pub(super) fn into_response(mut self, kept: KeptRequest) -> Response {
        // A stream that is evicted from memory only loses its right to continue.
        self.observation.evicted_by(CancellationToken::new());
        // A key's streams must not have its next requests refused.
        if self.framed.is_some() && !kept.gateway.memory.is_scarce() {
            self.kept = Some(kept);
        } else {
            self.give_up();
        }
        let first = stream::iter([Ok::<_, Infallible>(std::mem::take(&mut self.first))]);
        let rest = stream::unfold(Some(self), |answer| async move { answer?.chunk().await });
        let mut response = Response::new(Body::from_stream(futures::StreamExt::chain(first, rest)));
        event_stream(response.headers_mut());
        response
    }

    /// Returns the next chunk for the client, and the remainder.
    async fn chunk(mut self) -> Option<(Result<Bytes, Infallible>, Option<Self>)> {
        loop {
            match self.next_piece().await {
                StreamPiece::Data(data) if data.is_empty() => {}
                StreamPiece::Data(data) => {
                    self.observation.chunk();
                    return Some((Ok(data), Some(self)));
                }
                StreamPiece::End => {
                    // The engine has reported its failure in the stream, which then lacks the count of
                    // tokens.
                    let code = if self.observation.is_complete() { "" } else { "failed-in-stream" };
                    self.observation.end(StatusCode::OK, code);
                    return None;
                }
                StreamPiece::Lost => {
                    if let Err(error) = self.continue_elsewhere().await {
                        self.observation.end(error.status, error.code.as_str());
                        return Some((Ok(error_event(&error)), None));
                    }
                }
            }
        }
    }

    async fn next_piece(&mut self) -> StreamPiece {
        loop {
            if let Some((reader, _)) = &mut self.framed
                && !self.is_complete
            {
                match reader.next_frame() {
                    Ok(Some(frame)) => return self.accept(frame).await,
                    Ok(None) => {}
                    Err(error) => return self.refuse(&error.to_string()),
                }
            }
            let eviction = self.kept.as_ref().map(|kept| kept.charge.eviction());
            let evicted = async move {
                match eviction {
                    Some(eviction) => eviction.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                frame = self.answer.next() => frame,
                () = evicted => {
                    self.give_up();
                    continue;
                }
            };
            match (frame, &mut self.framed) {
                // No bytes follow the last frame; those of a worker that sends some reach no client.
                (AnswerFrame::Data(_), Some(_)) if self.is_complete => return StreamPiece::End,
                (AnswerFrame::Data(data), Some((reader, _))) => reader.push(&data),
                (AnswerFrame::Data(data), None) => {
                    self.answer.permit.answer_begins();
                    return StreamPiece::Data(data);
                }
                (AnswerFrame::Trailers(trailers), _) => {
                    let generated = count(&trailers, &COMPLETION_TOKENS);
                    self.observation.tokens(count(&trailers, &PROMPT_TOKENS), generated);
                }
                (AnswerFrame::End, Some(_)) if !self.is_complete => return StreamPiece::Lost,
                (AnswerFrame::End, _) => return StreamPiece::End,
                (AnswerFrame::Lost, _) if self.is_complete => {
                    self.observation.tokens(None, Some(self.tokens.0 as u64));
                    return StreamPiece::End;
                }
                (AnswerFrame::Lost, _) => return StreamPiece::Lost,
            }
        }
    }

    /// Records a frame's tokens; returns its bytes.
    async fn accept(&mut self, frame: StreamFrame) -> StreamPiece {
        self.answer.permit.answer_begins();
        self.tokens.0 += frame.tokens.len();
        if self.tokens.0 > self.tokens.1 {
            return self.refuse("more tokens than were requested");
        }
        self.is_complete = frame.is_last;
        self.keep(&frame.tokens).await;
        StreamPiece::Data(frame.data)
    }

    /// Ends a stream whose worker breaks the framing. Its tokens are not to be trusted on another worker.
    fn refuse(&mut self, reason: &str) -> StreamPiece {
        let worker = self.answer.permit.link().channel.peer();
        tracing::warn!(worker = worker.short(), reason, "stream refused");
        self.give_up();
        StreamPiece::Lost
    }

    /// Drops what would continue the stream elsewhere.
    fn give_up(&mut self) {
        (self.kept, self.drawn) = (None, None);
    }

    /// Keeps tokens that are handed out, as far as the memory budget allows. The first are part of the
    /// smallest charge.
    async fn keep(&mut self, tokens: &[u32]) {
        let Some(drawn) = &mut self.drawn else { return };
        drawn.extend_from_slice(tokens);
        let Some(kept) = &mut self.kept else { return };
        while self.charged < drawn.len() {
            // A vector has room for twice its length.
            let growth = kept.charge.grow(2 * CHARGE_TOKENS * TOKEN_BYTES);
            if !matches!(tokio::time::timeout(CHARGE_TIMEOUT, growth).await, Ok(Ok(()))) {
                return self.give_up();
            }
            self.charged += CHARGE_TOKENS;
        }
    }

    /// Sends the request with the tokens handed out to another worker of the class.
    ///
    /// # Errors
    /// There is none, or none may be tried.
    async fn continue_elsewhere(&mut self) -> Result<(), ApiError> {
        let class = self.framed.as_ref().map(|(_, class)| *class);
        let (Some(class), Some(mut kept), Some(drawn)) = (class, self.kept.take(), self.drawn.take()) else {
            return Err(worker_lost());
        };
        debug_assert_eq!(self.tokens.0, drawn.len(), "each token handed out is kept");
        let mut is_orderly = self.answer.permit.link().left_in_order();
        let until = Instant::now() + kept.gateway.hold_timeout;
        for _ in 0..CONTINUATIONS_MAX {
            if !is_orderly && std::mem::replace(&mut kept.was_lost, true) {
                break;
            }
            let found = kept.gateway.wait_for_class(&kept.wanted, &kept.tried, class, until).await?;
            let Some(permit) = found else { break };
            let link = permit.link().clone();
            kept.tried.push(link.id);
            kept.gateway.metrics.retried(kept.wanted.model.as_str());
            self.observation.sent_to(&link.channel.peer());
            let resumed = Some((kept.origin, drawn.as_slice()));
            let request = request(&kept.wanted, kept.charge.key(), kept.body.clone(), resumed);
            is_orderly = match send(permit, request).await {
                Ok((head, answer)) if head.headers.contains_key(RESUMABLE) => {
                    self.answer = answer;
                    self.framed = Some((StreamReader::default(), class));
                    (self.kept, self.drawn) = (Some(kept), Some(drawn));
                    return Ok(());
                }
                Ok((head, _)) if head.status == StatusCode::SERVICE_UNAVAILABLE => true,
                Ok((head, _)) => {
                    let (worker, status) = (link.channel.peer(), head.status.as_u16());
                    tracing::warn!(worker = worker.short(), status, "stream not continued");
                    break;
                }
                Err(AttemptFailure::Unsent) => true,
                Err(AttemptFailure::Lost) => link.left_in_order(),
            };
        }
        Err(worker_lost())
    }
}
