//! HTTP/2 service to admitted peers: the accept loop, the guard around every request, the orderly end.

use crate::Body;
use crate::channel::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::{Backoff, Limits};
use crate::places::{Gate, Pass, Rule, Site};
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
use std::io;
use std::net::{IpAddr, SocketAddr};
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

/// Where the connection of a request comes from: an extension of every request that [`serve`] hands on. It
/// tells one flood from another; it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

impl PeerAddress {
    /// What counts as one party: the address itself, or of an IPv6 address the network of 64 bits.
    #[must_use]
    pub fn site(&self) -> IpAddr {
        Site::of(self.0.ip()).address()
    }
}

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
    let seats = Seats::new(&policy, &limits);
    let guard = Guard::new(router, Some(policy), limits.clone());
    let ending = shutdown.clone();
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, address, entry| {
        let (acceptor, limits, seats) = (acceptor.clone(), limits.clone(), seats.clone());
        let (guard, ending) = (guard.clone(), ending.clone());
        async move {
            let connection = accept_as(tcp, &acceptor, FORWARD, &limits).await;
            let connection = connection.map_err(|error| refused(address, &error)).ok()?;
            let seat = seats.take(entry, connection.peer, address)?;
            let guard = guard.of(connection.peer).at(address);
            let until = ending.child_token();
            let serving = serve_http2(connection.stream, guard, &limits, until.clone());
            seat.sit(serving, &until).await;
            Some(())
        }
    })
    .await
}

/// Places of established connections: those of peers that the policy knows, and the few of strangers.
#[derive(Clone)]
struct Seats {
    policy: PeerPolicy,
    known: Gate<PublicKey>,
    strangers: Gate<Site>,
    stranger_life: Duration,
}

enum Seat {
    Known(Pass<PublicKey>),
    Stranger(Pass<Site>, Duration),
}

impl Seats {
    fn new(policy: &PeerPolicy, limits: &Limits) -> Self {
        Self {
            policy: policy.clone(),
            known: Gate::new(Rule::Fair, limits.connections_max, 0),
            strangers: Gate::new(Rule::Renewing, limits.strangers_max, 0),
            stranger_life: limits.stranger_life,
        }
    }

    /// Gives up the place in the handshake for one among the established, if there is one.
    fn take(&self, entry: Entry, peer: PublicKey, address: SocketAddr) -> Option<Seat> {
        drop(entry);
        if !self.policy.knows(&peer) {
            let pass = self.strangers.arrive(Site::of(address.ip())).enter_now()?;
            return Some(Seat::Stranger(pass, self.stranger_life));
        }
        let pass = self.known.arrive(peer).enter_now();
        if pass.is_none() {
            tracing::warn!(%peer, %address, "too many connections; turned away");
        }
        pass.map(Seat::Known)
    }
}

impl Seat {
    /// Runs `serving` as long as the place is this one's; `until` ends it in order.
    async fn sit(self, serving: impl Future<Output = ()>, until: &CancellationToken) {
        let (ended, life) = match &self {
            Self::Known(pass) => (pass.ended(), None),
            Self::Stranger(pass, life) => (pass.ended(), Some(*life)),
        };
        let over = async {
            match life {
                Some(life) => tokio::time::sleep(life).await,
                None => std::future::pending().await,
            }
            until.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serving => {}
            () = ended.cancelled() => tracing::info!("a connection was ended for another's"),
            () = over => {}
        }
    }
}

/// Logs why a handshake failed. Strangers cause these at will, so they are no warnings.
pub(crate) fn refused(address: SocketAddr, error: &Error) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::info!(%address, %error, cause, "connection refused");
}

/// A connection's way in: a place for its handshake now, one among the established later.
pub(crate) struct Entry {
    handshake: Pass<Site>,
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
/// the last task has ended. Handshakes wait their turn, address by address.
pub(crate) async fn accept_loop<F, T>(
    listener: TcpListener,
    limits: &Limits,
    shutdown: CancellationToken,
    handle: F,
) -> Result<(), Error>
where
    F: Fn(TcpStream, SocketAddr, Entry) -> T + Clone + Send + 'static,
    T: Future<Output = Option<()>> + Send + 'static,
{
    let handshakes = Gate::new(Rule::Fair, limits.handshakes_max, limits.handshakes_waiting_max);
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let mut tasks = JoinSet::new();
    let mut failures = 0;
    let outcome = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, address)) => {
                    failures = 0;
                    let pass = handshakes.arrive(Site::of(address.ip()));
                    let (connections, handle) = (connections.clone(), handle.clone());
                    tasks.spawn(async move {
                        let handshake = pass.enter().await?;
                        let given_away = handshake.ended();
                        let handled = handle(tcp, address, Entry { handshake, connections });
                        // Only while it shakes hands: the pass is gone when that is over.
                        given_away.run_until_cancelled(handled).await?
                    });
                }
                Err(error) => match after_failure(&error) {
                    AfterFailure::GiveUp => break Err(Error::Listener(error)),
                    AfterFailure::GoOn => tracing::debug!(%error, "a connection was gone before it was accepted"),
                    AfterFailure::Wait => {
                        failures += 1;
                        if failures == 1 {
                            tracing::warn!(%error, "cannot accept; trying again until it passes");
                        }
                        let pause = ACCEPT_BACKOFF.delay(failures, u32::MAX);
                        // Tasks that end meanwhile are what mends it.
                        let _ = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                    }
                },
            },
        }
    };
    drop(listener);
    // A listener's connections end with it: whoever hears of that starts anew.
    outcome?;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Long enough not to spin, short enough not to matter, when descriptors or memory run out.
const ACCEPT_BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(1) };

/// What a failure to accept means for the listener.
#[derive(Debug, PartialEq, Eq)]
enum AfterFailure {
    /// It was that connection's alone.
    GoOn,
    /// The machine lacks something that it may have again.
    Wait,
    /// The listener is none any more.
    GiveUp,
}

fn after_failure(error: &io::Error) -> AfterFailure {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => {
            AfterFailure::GiveUp
        }
        // Linux hands on what became of a connection before it was accepted (accept(2)).
        Some(
            Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::EPERM
            | Errno::EINTR,
        ) => AfterFailure::GoOn,
        // Descriptors or memory are short; or something that trying again at once would hardly mend.
        _ => AfterFailure::Wait,
    }
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
    address: Option<SocketAddr>,
    limits: Arc<Limits>,
}

impl Guard {
    pub(crate) fn new(router: Router, policy: Option<PeerPolicy>, limits: Arc<Limits>) -> Self {
        // Our own limit replaces axum's; a route may still set a smaller one.
        let router = router.layer(DefaultBodyLimit::disable());
        Self { router, policy, peer: None, address: None, limits }
    }

    pub(crate) fn of(&self, peer: PublicKey) -> Self {
        Self { peer: Some(peer), ..self.clone() }
    }

    fn at(self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self }
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

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn only_failures_that_cannot_pass_end_a_listener() {
        use AfterFailure::{GiveUp, GoOn, Wait};
        let table = [
            (Errno::EBADF, GiveUp),
            (Errno::EINVAL, GiveUp),
            (Errno::ENOTSOCK, GiveUp),
            (Errno::EMFILE, Wait),
            (Errno::ENFILE, Wait),
            (Errno::ENOBUFS, Wait),
            (Errno::ENOMEM, Wait),
            (Errno::ECONNABORTED, GoOn),
            (Errno::EPROTO, GoOn),
            (Errno::EHOSTUNREACH, GoOn),
        ];
        for (errno, expected) in table {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert_eq!(after_failure(&error), expected, "{errno}");
        }
        assert_eq!(after_failure(&io::Error::other("no errno")), Wait);
    }
}
