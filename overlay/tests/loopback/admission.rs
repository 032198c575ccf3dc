//! Tests of fair admission: many connections of one source against the few of others, on every kind of
//! listener.
//!
//! Sources are addresses before a key is proven, keys that the policy does not know, and keys that it does.
//! Another test covers a listener that is no longer usable. Each attack is shown to be under way while others
//! are served: its connections are held, or were evicted.

use crate::common::{Server, bind, get, identity, patient, until_some, within_deadline};
use axum::Router;
use axum::routing::get as on_get;
use overlay::people::{self, KeyExchanges};
use overlay::{
    Arrival, CancellationToken, Client, Error, Limits, PeerPolicy, Reversed, accept_reverse_loop, connect,
    open_files, reverse_serve,
};
use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const GOOD: &str = "127.0.0.1";
const ATTACKER: &str = "127.0.0.2";
const HELLO: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn router() -> Router {
    Router::new().route("/", on_get(|| async { "in" }))
}

/// Returns a router with a path that never answers, and a receiver of its requests.
fn waiting_router() -> (Router, mpsc::UnboundedReceiver<()>) {
    let (begun, begins) = mpsc::unbounded_channel();
    let waits = move || {
        // The test may have ended.
        let _ = begun.send(());
        pending::<()>()
    };
    (router().route("/never", on_get(waits)), begins)
}

/// Opens a connection from one of this machine's addresses, and sends `opening` on it.
async fn dial(from: &str, server: SocketAddr, opening: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = within_deadline(socket.connect(server)).await.unwrap();
    // The listener may have evicted it already.
    let _ = stream.write_all(opening).await;
    stream
}

/// Returns whether the server has ended a connection; reads and discards its earlier answers.
fn is_over(stream: &TcpStream) -> bool {
    let mut answer = [0; 1024];
    loop {
        match stream.try_read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

async fn is_served(client: &Client) {
    assert_eq!(within_deadline(client.request(get("/"))).await.unwrap().body(), "in");
}

/// A listener for people.
struct Site {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Site {
    async fn start(limits: Limits, router: Router) -> Self {
        let (listener, address) = bind().await;
        let shutdown = CancellationToken::new();
        let exchanges = Arc::new(KeyExchanges::default());
        let served = people::serve(listener, None, limits, router, exchanges, shutdown.clone());
        Self { address, shutdown, task: tokio::spawn(served) }
    }

    /// Returns whether a client with a connection of its own is served.
    async fn serves(&self, from: &str) -> bool {
        let mut stream =
            dial(from, self.address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        // A reset is as good an end as any other.
        let _ = within_deadline(stream.read_to_end(&mut answer)).await;
        answer.ends_with(b"in")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within_deadline(self.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn silent_connections_of_one_address_keep_no_other_client_out() {
    const COUNT: usize = 1_100;
    let [limits] = open_files::fit(2 * COUNT, [patient()]);
    let most = limits.connections_max;
    assert!(most < COUNT);
    // Nothing at all, a head that never ends, and connections kept alive after a request.
    for opening in [&b""[..], b"GET / HTTP/1.1\r\nhost: l", HELLO] {
        let site = Site::start(limits.clone(), router()).await;
        // A good client's connection that is kept alive.
        let mut kept = dial(GOOD, site.address, HELLO).await;
        let mut answer = [0; 1024];
        within_deadline(kept.read(&mut answer)).await.unwrap();
        let mut attack = Vec::new();
        for _ in 0..COUNT {
            attack.push(dial(ATTACKER, site.address, opening).await);
        }
        let held = || attack.iter().filter(|stream| !is_over(stream)).count();
        until_some(async || {
            tokio::task::yield_now().await;
            (held() < most).then_some(())
        })
        .await;
        for _ in 0..20 {
            assert!(site.serves(GOOD).await);
            assert!(held() > most / 2, "the attack is under way: {} connections are held", held());
        }
        assert!(site.serves(ATTACKER).await, "its own newest replaces its own oldest");
        kept.write_all(HELLO).await.unwrap();
        let length = within_deadline(kept.read(&mut answer)).await.unwrap();
        assert!(answer[..length].ends_with(b"in"), "a kept connection of another address is kept");
        drop(attack);
        site.stop().await;
    }
}

#[tokio::test]
async fn requests_under_way_are_evicted_last_and_never_for_more_than_a_share() {
    let (router, mut begins) = waiting_router();
    let site = Site::start(Limits { connections_max: 4, ..patient() }, router).await;
    const NEVER: &[u8] = b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(dial(ATTACKER, site.address, NEVER).await);
        within_deadline(begins.recv()).await.unwrap();
    }
    let mut idle = dial(ATTACKER, site.address, HELLO).await;
    let mut answer = [0; 1024];
    within_deadline(idle.read(&mut answer)).await.unwrap();
    let mut good = Vec::new();
    for _ in 0..2 {
        good.push(dial(GOOD, site.address, NEVER).await);
        within_deadline(begins.recv()).await.unwrap();
    }
    // The idle one was evicted for the first, the oldest request for the second.
    let mut rest = Vec::new();
    let _ = within_deadline(idle.read_to_end(&mut rest)).await;
    let _ = within_deadline(busy[0].read_to_end(&mut rest)).await;
    assert!(!is_over(&busy[1]) && !is_over(&busy[2]));
    // Two and two: neither takes from the other.
    for from in [GOOD, ATTACKER] {
        assert!(!site.serves(from).await);
    }
    assert!(site.serves("127.0.0.3").await, "a third has a share too");
    until_some(async || {
        tokio::task::yield_now().await;
        (good.iter().chain(&busy[1..]).filter(|stream| !is_over(stream)).count() == 3).then_some(())
    })
    .await;
    drop((busy, good));
    site.stop().await;
}

#[tokio::test]
async fn stalled_handshakes_keep_no_other_address_out() {
    // No handshake times out within this test, and twice as many stall as there are permits of any kind.
    let limits = Limits { handshakes_max: 4, handshakes_waiting_max: 4, ..patient() };
    let server = Server::start(PeerPolicy::any(), limits, router()).await;
    let mut hanging = Vec::new();
    for _ in 0..16 {
        hanging.push(dial(ATTACKER, server.address, b"").await);
    }
    for seed in 10..20 {
        is_served(&server.client(seed, patient())).await;
        assert!(hanging.iter().filter(|stream| !is_over(stream)).count() >= 3, "the attack is under way");
    }
    drop(hanging);
    server.stop().await;
}

#[tokio::test]
async fn a_key_with_many_connections_keeps_no_other_out() {
    let limits = Limits { connections_max: 3, ..patient() };
    let (router, mut begins) = waiting_router();
    let server = Server::start(PeerPolicy::any(), limits, router).await;
    let mut requests = Vec::new();
    for seed in [2, 2, 2, 3, 4] {
        let client = server.client(seed, patient());
        requests.push(tokio::spawn(async move { client.request(get("/never")).await }));
        within_deadline(begins.recv()).await.unwrap();
    }
    let others = requests.split_off(3);
    let [first, second, third]: [_; 3] = requests.try_into().unwrap();
    for evicted in [first, second] {
        assert!(matches!(within_deadline(evicted).await.unwrap(), Err(Error::Lost { .. })));
    }
    let late = server.client(5, patient());
    assert!(
        within_deadline(late.request(get("/"))).await.is_err(),
        "a request each is not taken from any key"
    );
    assert!(!third.is_finished() && others.iter().all(|request| !request.is_finished()));
    third.abort();
    until_some(async || late.request(get("/")).await.ok()).await;
    others.iter().for_each(JoinHandle::abort);
    drop(late);
    server.stop().await;
}

#[tokio::test]
async fn unadmitted_peers_take_no_permits_of_peers_and_hold_none_long() {
    let limits = Limits { connections_max: 1, unadmitted_max: 2, ..patient() };
    let policy = PeerPolicy::any().knowing(|key| *key == identity(3).public_key());
    let (router, mut begins) = waiting_router();
    let server = Server::start(policy, limits, router.clone()).await;
    let peer = server.client(3, patient());
    let request = tokio::spawn(async move { peer.request(get("/never")).await });
    within_deadline(begins.recv()).await.unwrap();
    // Each unadmitted peer gets in, though none leaves voluntarily; the peer keeps its one permit throughout.
    let unadmitted: Vec<Client> = (10..30).map(|seed| server.client(seed, patient())).collect();
    for client in &unadmitted {
        is_served(client).await;
        assert!(!request.is_finished(), "the peer lost its permit");
    }
    request.abort();
    drop(unadmitted);
    server.stop().await;

    let limits = Limits { unadmitted_timeout: Duration::from_millis(300), ..patient() };
    let policy = PeerPolicy::any().knowing(|_| false);
    let server = Server::start(policy, limits, router).await;
    let (key, own) = (identity(2), server.identity.public_key());
    let mut idle = connect(&key, server.address, own, &patient()).await.unwrap().stream;
    let mut rest = Vec::new();
    // The server waits for nothing when it ends a connection in order, so the test detects the end by
    // reading.
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let answered = async {
        let mut bytes = [0; 1024];
        loop {
            let length = idle.read(&mut bytes).await.unwrap_or(0);
            rest.extend_from_slice(&bytes[..length]);
            // A GOAWAY frame: eight bytes or more of type 7.
            if length == 0 || rest.windows(9).any(|head| head[..2] == [0, 0] && head[3..5] == [7, 0]) {
                return;
            }
        }
    };
    within_deadline(answered).await;
    // A peer that has a request reconnects.
    let client = server.client(2, patient());
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        until_some(async || client.request(get("/")).await.ok()).await;
    }
    drop(idle);
    server.shutdown.cancel();
}

/// Runs a worker's half of a reversed connection from `from`; the task resolves when the connection is over.
fn reversed_worker(seed: u8, from: &'static str, gateway: SocketAddr) -> JoinHandle<()> {
    tokio::spawn(async move {
        let tcp = dial(from, gateway, b"").await;
        let (key, gateway) = (identity(seed), identity(1).public_key());
        let never = CancellationToken::new();
        // The connection is over, evicted or not.
        let _ = reverse_serve(tcp, &key, gateway, vec![seed].into(), patient(), router(), never).await;
    })
}

#[tokio::test]
async fn many_unknown_keys_keep_no_admitted_key_from_a_reversed_listener() {
    let (listener, address) = bind().await;
    let limits = Limits { connections_max: 2, unadmitted_max: 4, ..patient() };
    let shutdown = CancellationToken::new();
    let (came, mut comes) = mpsc::unbounded_channel();
    // Keys from 100 on belong to unadmitted peers, which wait indefinitely.
    let handle = move |reversed: Reversed, mut arrival: Arrival| {
        let came = came.clone();
        async move {
            let seed = reversed.preface[0];
            let is_known = seed < 100;
            let is_admitted =
                if is_known { arrival.admit(reversed.peer()) } else { arrival.wait_unadmitted() };
            if is_admitted {
                let channel = reversed.open().await.unwrap();
                let ended = CancellationToken::new();
                let _ended = ended.clone().drop_guard();
                // The test may have ended.
                let _ = came.send((seed, ended, is_known.then(|| channel.clone())));
                pending::<()>().await;
            }
        }
    };
    let (key, ending) = (identity(1), shutdown.clone());
    let serving = tokio::spawn(async move {
        accept_reverse_loop(listener, &key, &PeerPolicy::any(), limits, ending, handle).await
    });
    let _first = reversed_worker(2, GOOD, address);
    let (seed, first_ended, first) = within_deadline(comes.recv()).await.unwrap();
    assert_eq!(seed, 2);
    let strangers: Vec<JoinHandle<()>> =
        (100..140).map(|seed| reversed_worker(seed, ATTACKER, address)).collect();
    let mut came_in = Vec::new();
    while came_in.len() < 40 {
        came_in.push(within_deadline(comes.recv()).await.unwrap().1);
    }
    // All came in, and 36 of them were evicted for others; four are held.
    until_some(async || {
        tokio::task::yield_now().await;
        (came_in.iter().filter(|ended| ended.is_cancelled()).count() == 36).then_some(())
    })
    .await;
    let _late = reversed_worker(3, GOOD, address);
    let (seed, late_ended, late) = within_deadline(comes.recv()).await.unwrap();
    assert_eq!(seed, 3, "an admitted key gets in beside them");
    for channel in [first, late] {
        let answer = within_deadline(channel.unwrap().request(get("/"))).await.unwrap();
        assert_eq!(answer.body(), "in");
    }
    assert!(!first_ended.is_cancelled() && !late_ended.is_cancelled());
    strangers.iter().for_each(JoinHandle::abort);
    serving.abort();
}

#[tokio::test]
async fn an_unusable_listener_ends_its_service() {
    let (listener, _) = bind().await;
    let raw = listener.as_raw_fd();
    let server = Server::start_on(listener, identity(1), PeerPolicy::any(), patient(), router());
    is_served(&server.client(2, patient())).await;
    nix::sys::socket::shutdown(raw, nix::sys::socket::Shutdown::Both).unwrap();
    let ended = within_deadline(server.task).await.unwrap();
    assert!(matches!(ended, Err(Error::Listener(_))), "{ended:?}");
}
