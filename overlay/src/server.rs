//! HTTP/2 service to admitted peers: the accept loop, the guard around every request, the orderly end.

use crate::Body;
use crate::channel::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::stream::Watched;
use crate::tls::{FORWARD, accept_as, acceptor};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
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
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The proven key of whoever sent a request: an extension of every request that [`serve`] and
/// [`crate::reverse_serve`] hand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub PublicKey);

/// Serves `router` over overlay connections until `shutdown`, then lets requests in progress end within
/// [`Limits::drain`]. Every request carries a [`Peer`] extension.
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
    let guard = Guard::new(router, Some(policy), limits.clone());
    let ending = shutdown.clone();
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, address, entry| {
        let (acceptor, limits) = (acceptor.clone(), limits.clone());
        let (guard, ending) = (guard.clone(), ending.clone());
        async move {
            let connection = accept_as(tcp, &acceptor, FORWARD, &limits).await;
            let connection = connection.map_err(|error| refused(address, &error)).ok()?;
            let _place = entry.admit(address)?;
            let guard = guard.of(connection.peer);
            serve_http2(connection.stream, guard, &limits, ending).await;
            Some(())
        }
    })
    .await
}

/// Logs why a handshake failed. Strangers cause these at will, so they are no warnings.
pub(crate) fn refused(address: SocketAddr, error: &Error) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::info!(%address, %error, cause, "connection refused");
}

/// A connection's way in: a place for its handshake now, one among the established later.
pub(crate) struct Entry {
    handshake: OwnedSemaphorePermit,
    connections: Arc<Semaphore>,
}

impl Entry {
    /// Gives up the place in the handshake for one among the established, if there is one.
    pub(crate) fn admit(self, address: SocketAddr) -> Option<OwnedSemaphorePermit> {
        drop(self.handshake);
        let place = self.connections.try_acquire_owned();
        place.map_err(|_| tracing::warn!(%address, "too many connections; turned away")).ok()
    }
}

/// Accepts until `shutdown`, running `handle` for each connection in a task of its own; returns when
/// the last task has ended. While all handshake places are taken the kernel's queue does the waiting.
pub(crate) async fn accept_loop<F, T>(
    listener: TcpListener,
    limits: &Limits,
    shutdown: CancellationToken,
    handle: F,
) -> Result<(), Error>
where
    F: Fn(TcpStream, SocketAddr, Entry) -> T,
    T: Future<Output = Option<()>> + Send + 'static,
{
    // Long enough not to spin, short enough not to matter, when descriptors or memory run out.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let mut tasks = JoinSet::new();
    loop {
        let next = async {
            let place = handshakes.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            (accepted, handshake) = next => match accepted {
                Ok((tcp, address)) => {
                    let entry = Entry { handshake, connections: connections.clone() };
                    tasks.spawn(handle(tcp, address, entry));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Serves HTTP/2 on one connection until it ends; after `shutdown`, until its requests have.
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

/// Serves HTTP/1.1 on one connection, likewise.
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

/// What stands between a connection and the router: admission, size and time of every request.
#[derive(Clone)]
pub(crate) struct Guard {
    router: Router,
    policy: Option<PeerPolicy>,
    peer: Option<PublicKey>,
    limits: Arc<Limits>,
}

impl Guard {
    pub(crate) fn new(router: Router, policy: Option<PeerPolicy>, limits: Arc<Limits>) -> Self {
        // Our own limit replaces axum's; a route may still set a smaller one.
        let router = router.layer(DefaultBodyLimit::disable());
        Self { router, policy, peer: None, limits }
    }

    pub(crate) fn of(&self, peer: PublicKey) -> Self {
        Self { peer: Some(peer), ..self.clone() }
    }

    /// The guard as the function that answers a connection's requests.
    fn into_answers(
        self,
    ) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        move |request| self.clone().answer(request).map(Ok).boxed()
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        if let Some(peer) = self.peer {
            if self.policy.as_ref().is_some_and(|policy| !policy.admits(&peer)) {
                return plain(StatusCode::FORBIDDEN, "this key is no longer admitted");
            }
            request.extensions_mut().insert(Peer(peer));
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

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
