//! Many connections of one party against the few of others: addresses before a key is proven, keys that the
//! policy does not know, and keys that it does. And a listener that is none any more.

use crate::common::{Server, bind, get, identity, within_deadline};
use axum::Router;
use axum::routing::get as on_get;
use overlay::{Client, Error, Limits, PeerPolicy, connect};
use std::future::pending;
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

fn router() -> Router {
    Router::new().route("/", on_get(|| async { "in" }))
}

/// A connection from another address of this machine that never says a word.
async fn silent(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    socket.connect(server.address).await.unwrap()
}

async fn is_served(client: &Client) {
    assert_eq!(within_deadline(client.request(get("/"))).await.unwrap().body(), "in");
}

#[tokio::test]
async fn handshakes_that_hang_keep_no_other_address_out() {
    // No handshake ends by itself within this test, and twice as many hang as there are places of any kind.
    let limits = Limits {
        handshake: Duration::from_secs(3600),
        handshakes_max: 4,
        handshakes_waiting_max: 4,
        ..Limits::default()
    };
    let server = Server::start(PeerPolicy::any(), limits, router()).await;
    let mut hanging = Vec::new();
    for _ in 0..16 {
        hanging.push(silent(&server).await);
    }
    for seed in 10..20 {
        is_served(&server.client(seed, Limits::default())).await;
    }
    drop(hanging);
    server.stop().await;
}

#[tokio::test]
async fn a_key_with_many_connections_keeps_no_other_out() {
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let server = Server::start(PeerPolicy::any(), limits, router()).await;
    let many = [2, 2, 2].map(|seed| server.client(seed, Limits::default()));
    for client in &many {
        is_served(client).await;
    }
    let others = [3, 4].map(|seed| server.client(seed, Limits::default()));
    for client in &others {
        is_served(client).await;
    }
    let late = server.client(5, Limits::default());
    assert!(within_deadline(late.request(get("/"))).await.is_err(), "one each is not taken from anybody");
    for client in &others {
        is_served(client).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn strangers_take_no_places_of_peers_and_none_for_ever() {
    let limits = Limits { connections_max: 1, strangers_max: 2, ..Limits::default() };
    let policy = PeerPolicy::any().knowing(|key| *key == identity(3).public_key());
    let (begun, mut begins) = mpsc::unbounded_channel();
    let waits = move || {
        begun.send(()).unwrap();
        pending::<()>()
    };
    let router = router().route("/never", on_get(waits));
    let server = Server::start(policy, limits, router.clone()).await;
    let peer = server.client(3, Limits { request: Duration::from_secs(3600), ..Limits::default() });
    let request = peer.request(get("/never"));
    let mut request = std::pin::pin!(request);
    tokio::select! {
        ended = &mut request => panic!("answered {ended:?}"),
        begun = within_deadline(begins.recv()) => begun.unwrap(),
    }
    // Each stranger gets in, though none goes by itself; the peer keeps its one place all the while.
    let strangers: Vec<Client> = (10..30).map(|seed| server.client(seed, Limits::default())).collect();
    for stranger in &strangers {
        tokio::select! {
            ended = &mut request => panic!("the peer lost its place: {ended:?}"),
            () = is_served(stranger) => {}
        }
    }
    server.shutdown.cancel();

    let limits = Limits { stranger_life: Duration::from_millis(300), ..Limits::default() };
    let policy = PeerPolicy::any().knowing(|_| false);
    let server = Server::start(policy, limits, router).await;
    let (key, own) = (identity(2), server.identity.public_key());
    let mut idle = connect(&key, server.address, own, &Limits::default()).await.unwrap().stream;
    let mut rest = Vec::new();
    // However it ends, it ends.
    let _ = within_deadline(idle.read_to_end(&mut rest)).await;
    // Whoever has something to ask is not disturbed by the end of its connection: it comes again.
    let stranger = server.client(2, Limits::default());
    let before = tokio::time::Instant::now();
    while before.elapsed() < Duration::from_secs(1) {
        is_served(&stranger).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_listener_that_is_none_any_more_ends_its_service() {
    let (listener, _) = bind().await;
    let raw = listener.as_raw_fd();
    let server = Server::start_on(listener, identity(1), PeerPolicy::any(), Limits::default(), router());
    is_served(&server.client(2, Limits::default())).await;
    nix::sys::socket::shutdown(raw, nix::sys::socket::Shutdown::Both).unwrap();
    let ended = within_deadline(server.task).await.unwrap();
    assert!(matches!(ended, Err(Error::Listener(_))), "{ended:?}");
}
