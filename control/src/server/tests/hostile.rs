//! Hostile unadmitted peers against a running control plane, over real connections.
//!
//! They complete handshakes and fall silent, fill the listeners, send forbidden requests, and ask for
//! admission under a hundred names. Admitted nodes and replicas must be served all the while.

use super::circle::{admission, genesis, other, replica, sync_request};
use super::{WAIT_LIMIT, in_time};
use crate::server::peers::AliveAnswer;
use crate::server::{ServerConfig, create_replica, run};
use bytes::Bytes;
use http::{Request, StatusCode};
use overlay::{Body, CancellationToken, Client, Identity, Limits};
use protocol::agent::{EnrolRequest, SyncResponse};
use protocol::governance::SignedGenesis;
use protocol::limits::SYNC_BYTES_MAX;
use protocol::{ReplicaId, canonical};
use std::net::SocketAddr;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// Number of the only admitted node.
const NODE: u16 = 0;

pub(super) struct Plane {
    directory: TempDir,
    genesis: SignedGenesis,
    /// The overlay address and the API address of each replica.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    running: Vec<Option<(JoinHandle<anyhow::Result<()>>, CancellationToken)>>,
}

impl Plane {
    pub(super) async fn start() -> Self {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push((bind().await, bind().await));
        }
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let addresses: Vec<_> = listeners.iter().map(|(o, a)| (address(o), address(a))).collect();
        // Addresses are host names: replicas connect to one another by the names in genesis.
        let name = |overlay: &SocketAddr| format!("localhost:{}", overlay.port());
        let named: Vec<_> = addresses.iter().map(|(o, a)| (name(o), format!("http://{a}"))).collect();
        let node = admission("node-0", &other(NODE));
        let genesis = genesis(&named, vec![node]);
        let directory = tempfile::tempdir().unwrap();
        let mut plane = Self { directory, genesis, addresses, running: vec![None, None, None] };
        for (index, (overlay, api)) in listeners.into_iter().enumerate() {
            plane.begin(index, overlay, api);
        }
        plane
    }

    fn begin(&mut self, index: usize, overlay: TcpListener, api: TcpListener) {
        let id = index as u64 + 1;
        let directory = self.directory.path().join(id.to_string());
        if !directory.exists() {
            // The test's genesis uses another key; only the bootstrap marker is needed here.
            create_replica(&directory).unwrap();
        }
        let config = ServerConfig {
            id: ReplicaId(id),
            directory,
            identity: replica(id),
            genesis: self.genesis.clone(),
            overlay,
            api,
            certificate: None,
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(config, shutdown.clone()));
        self.running[index] = Some((task, shutdown));
    }

    pub(super) async fn stop(&mut self, index: usize) {
        let (task, shutdown) = self.running[index].take().unwrap();
        shutdown.cancel();
        in_time(task).await.unwrap().unwrap();
    }

    pub(super) async fn end(&mut self) {
        self.running.iter().flatten().for_each(|(_, shutdown)| shutdown.cancel());
        for index in 0..3 {
            self.stop(index).await;
        }
    }

    /// Starts a replica again on its own ports.
    pub(super) async fn start_again(&mut self, index: usize) {
        let (overlay, api) = self.addresses[index];
        // Connections that are closing may hold a port a little longer.
        let listen = |address: SocketAddr| async move {
            loop {
                match overlay::listen::tcp(&address.to_string()).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let (overlay, api) = in_time(async { (listen(overlay).await, listen(api).await) }).await;
        self.begin(index, overlay, api);
    }

    fn client(&self, index: usize, identity: Identity) -> Client {
        let key = replica(index as u64 + 1).public_key();
        Client::new(identity, self.addresses[index].0, key, Limits::default())
    }

    /// Fetches a page of a replica's API.
    pub(super) async fn page(&self, index: usize, path: &str) -> (StatusCode, String) {
        let url = format!("http://{}{path}", self.addresses[index].1);
        let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
        (StatusCode::from_u16(answer.status().as_u16()).unwrap(), answer.text().await.unwrap())
    }

    pub(super) async fn until_ready(&self, index: usize) {
        in_time(async { while self.page(index, "/readyz").await.0 != StatusCode::OK {} }).await;
    }

    async fn applied(&self, index: usize) -> u64 {
        let (_, text) = self.page(index, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix("quorate_control_applied_index "));
        line.unwrap().parse().unwrap()
    }
}

async fn bind() -> TcpListener {
    overlay::listen::tcp("127.0.0.1:0").await.unwrap()
}

/// Sends the admitted node's sync to every replica until one of them, the leader, serves it.
async fn node_is_served(clients: &[Client]) {
    let request = sync_request();
    let body = Bytes::from(canonical::to_bytes(&request));
    in_time(async {
        loop {
            for client in clients {
                let request = Request::post("/agent/v1/sync").body(body.clone()).unwrap();
                let Ok(answer) = client.request(request).await else { continue };
                if answer.status() == StatusCode::OK {
                    let answer: SyncResponse = canonical::from_bytes(answer.body(), SYNC_BYTES_MAX).unwrap();
                    assert!(answer.lease_ms > 0);
                    return;
                }
            }
        }
    })
    .await;
}

/// Asks for admission until a replica answers: a handshake on a busy machine may pass its limit.
async fn enrol(client: &Client, name: &str, identity: &Identity) -> StatusCode {
    let body = Bytes::from(canonical::to_bytes(&EnrolRequest { admission: admission(name, identity) }));
    in_time(async {
        loop {
            let request = Request::post("/agent/v1/enrol").body(body.clone()).unwrap();
            if let Ok(answer) = client.request(request).await {
                return answer.status();
            }
        }
    })
    .await
}

/// Connects from one of this machine's addresses.
async fn dial_from(address: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    in_time(socket.connect(to)).await.unwrap()
}

/// Opens connections from another address that never send a byte: more than the permits for handshakes.
async fn silent(plane: &Plane) -> Vec<TcpStream> {
    let most = Limits::default().handshakes_max + 100;
    let mut streams = Vec::new();
    for (address, _) in &plane.addresses {
        for _ in 0..most {
            streams.push(dial_from("127.0.0.9", *address).await);
        }
    }
    streams
}

#[tokio::test(flavor = "multi_thread")]
async fn unadmitted_peers_keep_out_neither_nodes_nor_replicas() {
    let mut plane = Plane::start().await;
    let node: Vec<Client> = (0..3).map(|index| plane.client(index, other(NODE))).collect();
    node_is_served(&node).await;
    let before = plane.applied(0).await;

    let hanging = silent(&plane).await;
    // An unadmitted peer that holds its permit with a request that never ends.
    let patient =
        plane.client(0, other(5_000)).with_limits(Limits { request: WAIT_LIMIT, ..Limits::default() });
    let endless = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let endless = Request::post("/agent/v1/enrol").body(endless).unwrap();
    let endless = tokio::spawn(async move { patient.send(endless).await.map(|answer| answer.status()) });
    // Established connections, with more keys than there are permits for unadmitted peers. Each asks for
    // admission.
    let count = Limits::default().unadmitted_max as u16 + 30;
    let (mut outsiders, mut refused) = (Vec::new(), 0);
    for number in 1..=count {
        let identity = other(number);
        let client = plane.client(0, identity.clone());
        let status = enrol(&client, &format!("stranger-{number}"), &identity).await;
        assert!([StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(&status), "{status}");
        refused += u16::from(status == StatusCode::TOO_MANY_REQUESTS);
        outsiders.push(client);
    }
    let ended = in_time(endless).await.unwrap();
    assert!(matches!(ended, Err(overlay::Error::Lost { .. })), "its place is another stranger's: {ended:?}");
    // The burst of one address and the refill of a minute allow fewer writes than all of them requested.
    assert!(refused > 0, "{count} strangers wrote to the log");

    // The node is served on its old connections and on new ones.
    node_is_served(&node).await;
    let fresh: Vec<Client> = (0..3).map(|index| plane.client(index, other(NODE))).collect();
    node_is_served(&fresh).await;
    // So is a replica: it stops, starts again, and catches up with the entries committed in between.
    plane.stop(2).await;
    node_is_served(&node).await;
    plane.start_again(2).await;
    plane.until_ready(2).await;
    let applied = plane.applied(0).await;
    in_time(async { while plane.applied(2).await < applied {} }).await;
    assert!(
        applied - before <= u64::from(count - refused) + 40,
        "{before} to {applied}: who wrote all this?"
    );

    // A peer that was rejected is served after a while: no peer is shut out indefinitely.
    let (late, identity) = (plane.client(1, other(9_999)), other(9_999));
    in_time(async { while enrol(&late, "late", &identity).await != StatusCode::OK {} }).await;
    drop((hanging, outsiders));
    plane.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_block_clients_of_the_api() {
    let mut plane = Plane::start().await;
    plane.until_ready(0).await;
    let (_, api) = plane.addresses[0];
    let is_held = |stream: &TcpStream| {
        let read = stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let most = Limits::default().connections_max;
    let hanging = in_time(async {
        loop {
            let mut hanging = Vec::new();
            for _ in 0..most + 76 {
                hanging.push(dial_from("127.0.0.9", api).await);
            }
            for _ in 0..50 {
                assert_eq!(plane.page(0, "/readyz").await.0, StatusCode::OK);
            }
            // If all but the few evicted connections are still held, the attack was under way. Otherwise this
            // round took longer than the idle timeout of a connection, and is repeated.
            if hanging.iter().filter(|stream| is_held(stream)).count() > most / 2 {
                return hanging;
            }
        }
    })
    .await;
    drop(hanging);
    plane.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_unadmitted_peers_are_not_read_and_repeated_requests_are_not_logged() {
    let mut plane = Plane::start().await;
    let node: Vec<Client> = (0..3).map(|index| plane.client(index, other(NODE))).collect();
    node_is_served(&node).await;
    let (client, identity) = (plane.client(0, other(1)), other(1));
    plane.until_ready(0).await;
    for path in ["/agent/v1/sync", "/consensus/v1/propose", "/consensus/v1/snapshot", "/no/such/path"] {
        // A body that never arrives: a handler that waited for it would not respond.
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let answer = in_time(client.send(Request::post(path).body(body).unwrap())).await.unwrap();
        let refused = [StatusCode::FORBIDDEN, StatusCode::MISDIRECTED_REQUEST];
        assert!(refused.contains(&answer.status()), "{path}: {}", answer.status());
    }
    for (asker, expected) in [(identity.clone(), 403), (other(NODE), 403), (replica(2), 200)] {
        let request = Request::get("/control/v1/alive").body(Bytes::new()).unwrap();
        let answer = in_time(plane.client(0, asker).request(request)).await.unwrap();
        assert_eq!(answer.status(), expected);
        let shows_its_clock = canonical::from_bytes::<AliveAnswer>(answer.body(), 64).is_ok();
        assert_eq!(shows_its_clock, expected == 200);
    }
    let large = Request::post("/agent/v1/enrol").body(Bytes::from(vec![0; 64 * 1024])).unwrap();
    assert_eq!(in_time(client.request(large)).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);

    assert_eq!(enrol(&client, "patient", &identity).await, StatusCode::OK);
    // Each replica must first apply the request; then repeating it writes nothing to the log, whichever
    // replica is asked.
    let others: Vec<Client> = (0..3).map(|index| plane.client(index, identity.clone())).collect();
    let noted = plane.applied(0).await;
    for index in 0..3 {
        in_time(async { while plane.applied(index).await < noted {} }).await;
    }
    let before = plane.applied(0).await;
    for client in others.iter().cycle().take(60) {
        assert_eq!(enrol(client, "patient", &identity).await, StatusCode::OK);
    }
    // The cluster's own ticks and plans may write a few entries; the requests alone would write sixty.
    let written = plane.applied(0).await - before;
    assert!(written < 20, "{written} entries for what was known");
    plane.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_host_names_in_the_genesis_find_one_another() {
    let mut plane = Plane::start().await;
    assert!(plane.genesis.genesis.control.iter().all(|replica| replica.address.starts_with("localhost:")));
    for index in 0..3 {
        plane.until_ready(index).await;
        let all =
            || async { plane.page(index, "/metrics").await.1.contains("quorate_control_replicas_alive 3\n") };
        in_time(async { while !all().await {} }).await;
    }
    plane.end().await;
}
