//! What several tests need: keys, quick limits, a running server, waiting with a deadline.

use axum::Router;
use bytes::Bytes;
use overlay::{CancellationToken, Client, Error, Identity, Limits, PeerPolicy};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// No test waits longer for anything; a machine under load needs the room, a failing test uses it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A limit that a test waits to be reached while others must not reach it: far longer than an answer on
/// loopback takes on any machine, far shorter than the deadline.
pub(crate) const REACHED: Duration = Duration::from_secs(1);

pub(crate) fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

pub(crate) async fn within_deadline<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("the deadline of the test has passed")
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
