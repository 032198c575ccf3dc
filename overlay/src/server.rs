//! HTTP service on one connection: admission of its peer, the guard around every request, orderly shutdown.

use crate::Body;
use crate::accept::{Arrival, accept_loop};
use crate::admission::{Activity, ActivityMeter, ConnectionSource, RequestUnderWay, SourcePrefix};
use crate::channel::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::stream::Watched;
use crate::tls::{FORWARD, accept_as, acceptor};
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
    let acceptor = acceptor(identity, &policy, FORWARD);
    let limits = Arc::new(limits);
    let guard = Guard::new(router, Some(policy.clone()), limits.clone());
    let ending = shutdown.clone();
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, mut arrival| {
        let (acceptor, limits, policy) = (acceptor.clone(), limits.clone(), policy.clone());
        let (guard, ending) = (guard.clone(), ending.clone());
        async move {
            let connection = match accept_as(tcp, &acceptor, FORWARD, &limits).await {
                Ok(connection) => connection,
                Err(error) => return arrival.failed(&error),
            };
            let key = connection.peer;
            let is_known = policy.knows(&key);
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
        .max_header_list_size(limits.header_bytes_max)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout)
        .serve_connection(TokioIo::new(stream), service_fn(guard.into_answers()));
    drive(connection, limits.drain, shutdown).await;
}

/// Serves HTTP/1.1 on one connection in the same way.
pub(crate) async fn serve_http1<S>(
    stream: Watched<S>,
    guard: Guard,
    limits: &Limits,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs from the end of the last answer, so it bounds idle connections and slow heads alike.
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.header_bytes_max as usize)
        .serve_connection(TokioIo::new(stream), service_fn(guard.into_answers()));
    drive(connection, limits.drain, shutdown).await;
}

async fn drive<C>(connection: C, drain: Duration, shutdown: CancellationToken)
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(drain, connection.as_mut()).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
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
}

impl Guard {
    pub(crate) fn new(router: Router, policy: Option<PeerPolicy>, limits: Arc<Limits>) -> Self {
        // Our own limit replaces axum's; a route may still set a smaller one.
        let router = router.layer(DefaultBodyLimit::disable());
        Self { router, policy, peer: None, address: None, meter: None, limits }
    }

    pub(crate) fn of(&self, peer: PublicKey) -> Self {
        Self { peer: Some(peer), ..self.clone() }
    }

    /// Returns the guard of one connection, whose requests count for its admission.
    pub(crate) fn on(&self, arrival: &Arrival) -> Self {
        Self { address: Some(arrival.address()), meter: Some(arrival.meter()), ..self.clone() }
    }

    /// Converts the guard into the function that answers a connection's requests.
    fn into_answers(
        self,
    ) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        move |request| {
            // Here and not in the answer's future, so that the connection counts as busy immediately.
            let under_way = self.meter.as_ref().map(ActivityMeter::begin);
            let answer = self.clone().answer(request);
            answer.map(|response| Ok(response.map(|body| until_answered(body, under_way)))).boxed()
        }
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        if let Some(peer) = self.peer {
            if self.policy.as_ref().is_some_and(|policy| !policy.admits(&peer)) {
                return plain(StatusCode::FORBIDDEN, "this key is no longer admitted");
            }
            request.extensions_mut().insert(Peer(peer));
        }
        if let Some(address) = self.address {
            request.extensions_mut().insert(PeerAddress(address));
        }
        let limit = self.limits.request_bytes_max;
        if request.body().size_hint().lower() > limit as u64 {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        match tokio::time::timeout(self.limits.request, self.router.oneshot(request)).await {
            Ok(Ok(response)) => response,
            Err(_) => plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long"),
        }
    }
}

/// Wraps a body so that its request stays under way until it has been sent or dropped.
fn until_answered(body: Body, under_way: Option<RequestUnderWay>) -> Body {
    match under_way {
        Some(under_way) if !body.is_end_stream() => Body::new(MeteredBody { body, _under_way: under_way }),
        _ => body,
    }
}

struct MeteredBody {
    body: Body,
    _under_way: RequestUnderWay,
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
