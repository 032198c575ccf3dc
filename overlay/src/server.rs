//! HTTP service on one connection: admission of its peer, the guard around every request, orderly shutdown.

use crate::Body;
use crate::accept::{Arrival, accept_loop};
use crate::admission::{Activity, ActivityMeter, ConnectionSource, RequestUnderWay, SourcePrefix};
use crate::channel::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::refusal::{HEAD_TOO_LARGE, RefusalForm};
use crate::stream::Watched;
use crate::tls::{BARE, Connection, FORWARD, accept_as, acceptor};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use protocol::PublicKey;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Proven key of a request's sender: an extension of every request that [`serve`] and
/// [`crate::reverse_serve`] pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub PublicKey);

/// Address from which a request's connection comes: an extension of every request that [`serve`] passes on.
/// It distinguishes one flood from another; it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

impl PeerAddress {
    /// Returns the prefix that counts as one source.
    #[must_use]
    pub fn source_prefix(&self) -> SourcePrefix {
        SourcePrefix::of(self.0.ip())
    }
}

/// Serves `router` over overlay connections until `shutdown`, then gives requests in progress
/// [`Limits::drain`] to end. Every request carries a [`Peer`] extension.
///
/// # Errors
/// [`Error::Listener`] when the listener itself is unusable; a failing connection ends alone.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    policy: PeerPolicy,
    limits: Limits,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    serve_protocols(listener, identity, policy, limits, router, None, shutdown).await
}

/// Serves as [`serve`] does, and gives `streams` each connection by [`crate::dial_stream`]. Such a stream
/// counts as a busy connection of its key; it is dropped at `shutdown`, and when its permit passes to
/// another. The policy is consulted in its handshake alone: `streams` must watch that its peer stays
/// admitted.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with_streams(
    listener: TcpListener,
    identity: &Identity,
    policy: PeerPolicy,
    limits: Limits,
    router: Router,
    streams: StreamHandler,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    serve_protocols(listener, identity, policy, limits, router, Some(streams), shutdown).await
}

/// Work of a listener on one bare stream, until it ends.
pub type StreamHandler = Arc<dyn Fn(Connection) -> BoxFuture<'static, ()> + Send + Sync>;

async fn serve_protocols(
    listener: TcpListener,
    identity: &Identity,
    policy: PeerPolicy,
    limits: Limits,
    router: Router,
    streams: Option<StreamHandler>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let protocols: &'static [&'static [u8]] = if streams.is_some() { &[FORWARD, BARE] } else { &[FORWARD] };
    let acceptor = acceptor(identity, &policy, protocols);
    let limits = Arc::new(limits);
    let guard = Guard::new(router, Some(policy.clone()), limits.clone());
    let ending = shutdown.clone();
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, mut arrival| {
        let (acceptor, limits, policy) = (acceptor.clone(), limits.clone(), policy.clone());
        let (guard, ending, streams) = (guard.clone(), ending.clone(), streams.clone());
        async move {
            let connection = match accept_as(tcp, &acceptor, protocols, &limits).await {
                Ok(connection) => connection,
                Err(error) => return arrival.failed(&error),
            };
            let key = connection.peer;
            let is_known = policy.knows(&key);
            if connection.inside() == Some(BARE) {
                if let Some(handle) = streams.filter(|_| is_known && arrival.admit(key)) {
                    ending.run_until_cancelled(handle(connection)).await;
                }
                return;
            }
            let is_admitted = match is_known {
                true => arrival.take_permit(ConnectionSource::Key(key), Activity::Silent),
                false => arrival.wait_unadmitted(),
            };
            if !is_admitted {
                return;
            }
            let until = ending.child_token();
            let guard = guard.of(key).on(&arrival);
            let serving = serve_http2(connection.stream, guard, &limits, until.clone());
            if is_known {
                serving.await;
            } else {
                serve_for(serving, limits.unadmitted_timeout, &until).await;
            }
        }
    })
    .await
}

/// Runs `serving`; after `timeout`, cancels `until` so that it ends in order.
async fn serve_for(serving: impl Future<Output = ()>, timeout: Duration, until: &CancellationToken) {
    let mut serving = pin!(serving);
    if tokio::time::timeout(timeout, &mut serving).await.is_err() {
        until.cancel();
        serving.await;
    }
}

/// Serves HTTP/2 on one connection until it ends; after `shutdown`, until its requests have ended.
pub(crate) async fn serve_http2<S>(
    stream: Watched<S>,
    guard: Guard,
    limits: &Limits,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_max)
        // The library refuses a head above its limit without a body; the guard has the words for one above
        // ours.
        .max_header_list_size(limits.header_bytes_max.saturating_mul(2))
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout)
        .serve_connection(TokioIo::new(stream), service_fn(guard.clone().into_answers()));
    drive(connection, &guard.progress, limits.drain, shutdown).await;
}

/// Serves HTTP/1.1 on one connection in the same way.
pub(crate) async fn serve_http1<S>(stream: S, guard: Guard, limits: &Limits, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs from the end of the last answer, so it bounds idle connections and slow heads alike.
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.header_bytes_max as usize)
        .serve_connection(TokioIo::new(stream), service_fn(guard.clone().into_answers()));
    drive(connection, &guard.progress, limits.drain, shutdown).await;
}

/// Parts of [`Limits::drain`] in which an orderly shutdown looks for progress.
const DRAIN_CHECKS: u32 = 8;

/// Drives a connection to its end. After `shutdown` its answers may end, as long as none of `drain` passes
/// without a piece of one: their length is not limited.
async fn drive<C>(connection: C, progress: &AnswerProgress, drain: Duration, shutdown: CancellationToken)
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            until_silent(connection.as_mut(), progress, drain).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits for the end of a connection, but no longer than its answers make progress.
async fn until_silent<E>(
    mut connection: Pin<&mut impl Future<Output = Result<(), E>>>,
    progress: &AnswerProgress,
    drain: Duration,
) -> Result<(), E> {
    let mut silent_checks = 0;
    let mut seen = progress.count();
    while silent_checks < DRAIN_CHECKS {
        if let Ok(ended) = tokio::time::timeout(drain / DRAIN_CHECKS, connection.as_mut()).await {
            return ended;
        }
        let before = std::mem::replace(&mut seen, progress.count());
        silent_checks = if seen == before { silent_checks + 1 } else { 0 };
    }
    Ok(())
}

/// Number of pieces of answers that a connection has taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnswerProgress(Arc<AtomicU64>);

impl AnswerProgress {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The guard between a connection and the router: admission, size and time of every request.
#[derive(Clone)]
pub(crate) struct Guard {
    router: Router,
    policy: Option<PeerPolicy>,
    peer: Option<PublicKey>,
    address: Option<SocketAddr>,
    meter: Option<ActivityMeter>,
    limits: Arc<Limits>,
    refusals: RefusalForm,
    progress: AnswerProgress,
}

impl Guard {
    pub(crate) fn new(router: Router, policy: Option<PeerPolicy>, limits: Arc<Limits>) -> Self {
        // Our own limit replaces axum's; a route may still set a smaller one.
        let router = router.layer(DefaultBodyLimit::disable());
        let (refusals, progress) = (RefusalForm::default(), AnswerProgress::default());
        Self { router, policy, peer: None, address: None, meter: None, limits, refusals, progress }
    }

    /// Returns this guard with another form of refusals.
    pub(crate) fn refusing(self, refusals: RefusalForm) -> Self {
        Self { refusals, ..self }
    }

    pub(crate) fn of(&self, peer: PublicKey) -> Self {
        Self { peer: Some(peer), ..self.clone() }
    }

    /// Returns the guard of one connection, whose requests count for its admission and whose answers for its
    /// progress.
    pub(crate) fn on(&self, arrival: &Arrival) -> Self {
        let (address, meter) = (Some(arrival.address()), Some(arrival.meter()));
        Self { address, meter, progress: AnswerProgress::default(), ..self.clone() }
    }

    /// Converts the guard into the function that answers a connection's requests.
    fn into_answers(
        self,
    ) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        move |request| {
            // Here and not in the answer's future, so that the connection counts as busy immediately.
            let under_way = self.meter.as_ref().map(ActivityMeter::begin);
            let progress = self.progress.clone();
            let answer = self.clone().answer(request);
            answer.map(|response| Ok(response.map(|body| until_answered(body, under_way, progress)))).boxed()
        }
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        if let Some(peer) = self.peer {
            if self.policy.as_ref().is_some_and(|policy| !policy.admits(&peer)) {
                return self.refusals.response(StatusCode::FORBIDDEN, "this key is no longer admitted");
            }
            request.extensions_mut().insert(Peer(peer));
        }
        if let Some(address) = self.address {
            request.extensions_mut().insert(PeerAddress(address));
        }
        if head_bytes(&request) > self.limits.header_bytes_max as usize {
            return self.refusals.response(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, HEAD_TOO_LARGE);
        }
        let limit = self.limits.request_bytes_max;
        if request.body().size_hint().lower() > limit as u64 {
            return self.refusals.response(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        match tokio::time::timeout(self.limits.request, self.router.oneshot(request)).await {
            Ok(Ok(response)) => response,
            Err(_) => self.refusals.response(StatusCode::GATEWAY_TIMEOUT, "the answer took too long"),
        }
    }
}

/// Returns the bytes of a request's head as HTTP/2 counts them: 32 for each field beside its text.
fn head_bytes(request: &Request<Incoming>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let uri = request.uri();
    let path = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    path + fields.sum::<usize>()
}

/// Wraps a body so that its request stays under way until it has been sent or dropped, and its frames count
/// as progress.
fn until_answered(body: Body, under_way: Option<RequestUnderWay>, progress: AnswerProgress) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(MeteredBody { body, progress, _under_way: under_way })
}

struct MeteredBody {
    body: Body,
    progress: AnswerProgress,
    _under_way: Option<RequestUnderWay>,
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.progress.add();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(40);

    /// Returns how long a connection lives after a shutdown that makes progress at these times, in seconds.
    async fn lives(progress_at: &[u64], ends_at: u64) -> u64 {
        let progress = AnswerProgress::default();
        let began = tokio::time::Instant::now();
        let connection = async {
            for at in progress_at {
                tokio::time::sleep_until(began + Duration::from_secs(*at)).await;
                progress.add();
            }
            tokio::time::sleep_until(began + Duration::from_secs(ends_at)).await;
            Ok::<(), Infallible>(())
        };
        let mut connection = pin!(connection);
        assert_eq!(until_silent(connection.as_mut(), &progress, DRAIN).await, Ok(()));
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn an_orderly_shutdown_limits_silence_and_not_length() {
        assert_eq!(lives(&[], 7).await, 7, "its answers end first");
        assert_eq!(lives(&[], 1000).await, 40, "silence is limited");
        let minutes: Vec<u64> = (1..60).map(|piece| piece * 30).collect();
        assert_eq!(lives(&minutes, 1800).await, 1800, "an answer of half an hour is not cut");
        assert_eq!(lives(&[30], 1000).await, 70, "silence begins with the last piece");
    }
}
