//! Shared helpers of the tests: keys, limits, a running server, waiting with a deadline.

use axum::Router;
use bytes::Bytes;
use overlay::{Backoff, CancellationToken, Client, Error, Identity, Limits, PeerPolicy};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest wait of any test: a machine under load needs it, and only a failing test uses it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A limit that a test waits to reach. A machine under load may reach it before the test is ready for it, so
/// the test repeats the steps before it: see [`until_some`].
pub(crate) const REACHED: Duration = Duration::from_secs(1);

/// Limits that no test reaches, however busy the machine is: each test sets those that it wants reached.
pub(crate) fn patient() -> Limits {
    let never = Duration::from_secs(3600);
    Limits {
        handshake: never,
        request: never,
        body_idle: never,
        idle: never,
        ping_interval: never,
        ping_timeout: never,
        drain: never,
        unadmitted_timeout: never,
        backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(50) },
        ..Limits::default()
    }
}

pub(crate) fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

pub(crate) async fn within_deadline<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("the deadline of the test has passed")
}

/// Returns the first result of an attempt that is repeated until it has one.
pub(crate) async fn until_some<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    within_deadline(async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
        }
    })
    .await
}

pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
    let listener = overlay::listen::tcp("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) struct Server {
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Server {
    pub(crate) async fn start(policy: PeerPolicy, limits: Limits, router: Router) -> Self {
        let (listener, _) = bind().await;
        Self::start_on(listener, identity(1), policy, limits, router)
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        identity: Identity,
        policy: PeerPolicy,
        limits: Limits,
        router: Router,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (key, ending) = (identity.clone(), shutdown.clone());
        let task =
            tokio::spawn(async move { overlay::serve(listener, &key, policy, limits, router, ending).await });
        Self { identity, address, shutdown, task }
    }

    pub(crate) fn client(&self, seed: u8, limits: Limits) -> Client {
        Client::new(identity(seed), self.address, self.identity.public_key(), limits)
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        within_deadline(self.task).await.unwrap().unwrap();
    }
}

pub(crate) fn get(path: &str) -> ::http::Request<Bytes> {
    ::http::Request::get(path).body(Bytes::new()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> ::http::Request<Bytes> {
    ::http::Request::post(path).body(body.into()).unwrap()
}
