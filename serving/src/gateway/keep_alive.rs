//! Comments that keep a silent stream open: events of no meaning to the client, which proxies and the
//! client's own timeouts see as bytes.
//!
//! A stream's headers go out with its first event, or after [`KEEP_ALIVE_INTERVAL`] of silence. Until then
//! an error has its own status; later it is an event in the stream, as it is after the first token. A comment
//! follows each further interval of silence: while the request waits for a worker or for its prompt, and
//! while the stream is continued on another worker. Comments stand between events, never in one.

use crate::metrics::Observation;
use crate::openai::{ApiError, error_event};
use crate::worker::event_stream;
use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::StatusCode;
use protocol::error_code as code;
use std::time::Duration;
use tokio::time::timeout;

/// Longest silence of a stream: the interval that the HTML standard advises for comments. It exceeds
/// [`super::HOLD_TIMEOUT`], so a request that finds no worker still gets its status.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const _: () = assert!(super::HOLD_TIMEOUT.as_secs() < KEEP_ALIVE_INTERVAL.as_secs());

/// The comment. The empty line ends it as an event, which parsers drop.
const COMMENT: &[u8] = b": keep-alive\n\n";
/// Longest refusal of a worker that is repeated as an event, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Outcome of a request's way through the gateway.
type Forwarded = Result<Response, (ApiError, Observation)>;

/// Part of a stream that is still to come.
enum Remainder {
    /// Its beginning.
    Answer(BoxFuture<'static, Forwarded>),
    Body(BodyDataStream),
    Nothing,
}

/// A stream with comments in its silences.
struct KeptAlive {
    rest: Remainder,
    /// Last two bytes that were sent: only after an empty line is a comment no part of an event.
    end: [u8; 2],
    /// Whether the headers went out before the first event; a comment follows them immediately.
    is_late: bool,
}

/// Waits for a stream's first event or for the first interval of silence; returns the response.
///
/// # Errors
/// Those of `forwarding`, if it fails before the headers go out.
pub(super) async fn kept_alive(forwarding: impl Future<Output = Forwarded> + Send + 'static) -> Forwarded {
    let mut forwarding: BoxFuture<'static, Forwarded> = Box::pin(forwarding);
    let (head, kept) = match timeout(KEEP_ALIVE_INTERVAL, &mut forwarding).await {
        Ok(Ok(response)) if response.status() == StatusCode::OK => {
            let (head, body) = response.into_parts();
            (head, KeptAlive::new(Remainder::Body(body.into_data_stream()), false))
        }
        Ok(refused) => return refused,
        Err(_) => {
            let (mut head, ()) = Response::new(()).into_parts();
            event_stream(&mut head.headers);
            (head, KeptAlive::new(Remainder::Answer(forwarding), true))
        }
    };
    let chunks = futures::stream::unfold(kept, KeptAlive::next);
    Ok(Response::from_parts(head, Body::from_stream(chunks)))
}

impl KeptAlive {
    fn new(rest: Remainder, is_late: bool) -> Self {
        Self { rest, end: *b"\n\n", is_late }
    }

    /// Returns the next bytes for the client.
    async fn next(mut self) -> Option<(Result<Bytes, axum::Error>, Self)> {
        if std::mem::take(&mut self.is_late) {
            return Some((Ok(Bytes::from_static(COMMENT)), self));
        }
        loop {
            let silent = match &mut self.rest {
                Remainder::Nothing => return None,
                Remainder::Answer(forwarding) => match timeout(KEEP_ALIVE_INTERVAL, forwarding).await {
                    Ok(Ok(response)) if response.status() == StatusCode::OK => {
                        self.rest = Remainder::Body(response.into_body().into_data_stream());
                        continue;
                    }
                    Ok(outcome) => {
                        self.rest = Remainder::Nothing;
                        return Some((Ok(refusal_event(outcome).await), self));
                    }
                    Err(silent) => silent,
                },
                Remainder::Body(body) => match timeout(KEEP_ALIVE_INTERVAL, body.next()).await {
                    Ok(next) => {
                        let next = next?;
                        self.remember(next.as_deref().unwrap_or_default());
                        return Some((next, self));
                    }
                    Err(silent) => silent,
                },
            };
            tracing::trace!(%silent, "stream kept alive");
            if self.end == *b"\n\n" {
                return Some((Ok(Bytes::from_static(COMMENT)), self));
            }
        }
    }

    fn remember(&mut self, sent: &[u8]) {
        for byte in &sent[sent.len().saturating_sub(2)..] {
            self.end = [self.end[1], *byte];
        }
    }
}

/// Writes a refusal as an event, where the headers have gone out.
async fn refusal_event(outcome: Forwarded) -> Bytes {
    let response = match outcome {
        Err((error, mut observation)) => {
            observation.end(error.status, error.code.as_str());
            return error_event(&error);
        }
        Ok(response) => response,
    };
    // Written again, so that a worker's line breaks make no further events.
    let body = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    match serde_json::from_slice::<serde_json::Value>(&body) {
        Ok(refusal) => Bytes::from(format!("data: {refusal}\n\n")),
        Err(_) => {
            let message = "the worker's refusal is not in the API's format";
            error_event(&ApiError::new(StatusCode::BAD_GATEWAY, code::ENGINE_FAILED, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::convert::Infallible;
    use tokio::time::Instant;

    /// Returns an answer whose pieces come after as many seconds each.
    fn answer(pieces: &'static [(u64, &'static str)]) -> Response {
        let chunks = futures::stream::iter(pieces).then(|(after, piece)| async move {
            tokio::time::sleep(Duration::from_secs(*after)).await;
            Ok::<_, Infallible>(Bytes::from_static(piece.as_bytes()))
        });
        Response::new(Body::from_stream(chunks))
    }

    /// Returns the text of a stream, each piece after the second at which it came.
    async fn timeline(response: Response) -> Vec<(u64, String)> {
        let (began, mut pieces) = (Instant::now(), Vec::new());
        let mut body = response.into_body().into_data_stream();
        while let Some(piece) = body.next().await {
            let piece = String::from_utf8(piece.expect("whole").to_vec()).expect("UTF-8");
            pieces.push((began.elapsed().as_secs(), piece));
        }
        pieces
    }

    fn owned(pieces: &[(u64, &str)]) -> Vec<(u64, String)> {
        pieces.iter().map(|(second, piece)| (*second, (*piece).to_owned())).collect()
    }

    const KEEP: &str = ": keep-alive\n\n";

    #[tokio::test(start_paused = true)]
    async fn silences_between_events_get_a_comment_each_interval() {
        let forwarding =
            async { Ok(answer(&[(1, "data: a\n\n"), (40, "data: b\n\n"), (14, "data: c\n\n")])) };
        let Ok(response) = kept_alive(forwarding).await else { panic!("an answer") };
        let expected = [(1, "data: a\n\n"), (16, KEEP), (31, KEEP), (41, "data: b\n\n"), (55, "data: c\n\n")];
        assert_eq!(timeline(response).await, owned(&expected));
    }

    /// Attack: a worker's event is cut in two, with a silence between them.
    #[tokio::test(start_paused = true)]
    async fn no_comment_is_written_into_an_event() {
        let forwarding =
            async { Ok(answer(&[(0, "data: a"), (40, "b"), (20, "\n"), (20, "\n"), (20, "data: c\n\n")])) };
        let Ok(response) = kept_alive(forwarding).await else { panic!("an answer") };
        let expected = [(0, "data: a"), (40, "b"), (60, "\n"), (80, "\n"), (95, KEEP), (100, "data: c\n\n")];
        assert_eq!(timeline(response).await, owned(&expected));
    }

    #[tokio::test(start_paused = true)]
    async fn headers_wait_one_interval_and_comments_follow_them() {
        let began = Instant::now();
        let forwarding = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            Ok(answer(&[(0, "data: a\n\n")]))
        };
        let Ok(response) = kept_alive(forwarding).await else { panic!("headers") };
        assert_eq!((began.elapsed(), response.status()), (KEEP_ALIVE_INTERVAL, StatusCode::OK));
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let expected = [(0, KEEP), (15, KEEP), (30, KEEP), (35, "data: a\n\n")];
        assert_eq!(timeline(response).await, owned(&expected));
    }

    async fn refused(after: u64, body: &'static str) -> Forwarded {
        tokio::time::sleep(Duration::from_secs(after)).await;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        Ok(response)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_has_a_status_until_the_headers_go_out() {
        let Ok(response) = kept_alive(refused(14, r#"{"error": 1}"#)).await else { panic!("a refusal") };
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(body, r#"{"error": 1}"#);
        for (body, event) in [
            ("{\"error\":\n\n1}", "data: {\"error\":1}\n\n"),
            (
                "no JSON",
                "data: {\"error\":{\"message\":\"the worker's refusal is not in the API's format\",\
                \"type\":\"server_error\",\"param\":null,\"code\":\"engine_failed\"}}\n\n",
            ),
        ] {
            let Ok(response) = kept_alive(refused(16, body)).await else { panic!("headers") };
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(timeline(response).await, owned(&[(0, KEEP), (1, event)]));
        }
    }
}
