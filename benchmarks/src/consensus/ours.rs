//! Our side of the benchmark: three processes of this binary, each one replica of a key-value map, and a
//! client.

use super::load::Put;
use crate::process::{ChildGuard, free_ports};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use consensus::{Config, Frozen, GroupId, Handle, Limits, Replica, ReplicaAddress, StateMachine, Timings};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use overlay::{CancellationToken, Identity, PeerPolicy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Time for three replicas to elect a leader.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A map from keys to values: the function of etcd without its history.
#[derive(Default)]
struct Map {
    values: BTreeMap<Bytes, Bytes>,
}

impl StateMachine for Map {
    fn apply(&mut self, _index: consensus::LogIndex, command: &[u8]) -> Vec<u8> {
        let Some((length, rest)) = command.split_first_chunk::<2>() else { return vec![1] };
        let Some((key, value)) = rest.split_at_checked(u16::from_le_bytes(*length) as usize) else {
            return vec![1];
        };
        self.values.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        vec![0]
    }

    fn freeze(&self) -> Frozen {
        let mut bytes = Vec::new();
        for part in self.values.iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        Box::new(|| bytes)
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), String> {
        let mut parts = Vec::new();
        while let Some((length, rest)) = snapshot.split_first_chunk::<4>() {
            let (part, rest) =
                rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("a part is cut off")?;
            parts.push(Bytes::copy_from_slice(part));
            snapshot = rest;
        }
        let pairs = parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        self.values = pairs.collect();
        Ok(())
    }
}

/// Arguments of a replica process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicaArguments {
    id: u64,
    peers: BTreeMap<u64, SocketAddr>,
    clients: SocketAddr,
    directory: PathBuf,
}

/// Returns the identity of a benchmark replica. Its key is a function of the replica's number, for this
/// purpose alone.
fn identity(id: u64) -> Identity {
    Identity::from_seed(&[id as u8; 32])
}

/// Runs one replica until the process is killed.
pub(crate) fn part(text: &str) -> anyhow::Result<()> {
    let part: ReplicaArguments = serde_json::from_str(text).context("read the part")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(part))
}

async fn serve(part: ReplicaArguments) -> anyhow::Result<()> {
    let peer = |(id, at): (&u64, &SocketAddr)| {
        (protocol::ReplicaId(*id), ReplicaAddress { address: (*at).into(), key: identity(*id).public_key() })
    };
    let peers: BTreeMap<_, ReplicaAddress> = part.peers.iter().map(peer).collect();
    let keys: Vec<_> = peers.values().map(|peer| peer.key).collect();
    let identity = Arc::new(identity(part.id));
    let listener = TcpListener::bind(part.peers[&part.id]).await?;
    let config = Config {
        group: GroupId([0; 32]),
        id: protocol::ReplicaId(part.id),
        peers,
        directory: part.directory,
        create: true,
        identity: identity.clone(),
        seed: part.id,
        timings: Timings::default(),
        limits: Limits::default(),
    };
    let replica = Replica::start(&config, Map::default())?;
    let router = replica.router();
    tokio::spawn(async move {
        let limits = overlay::Limits::default();
        let policy = PeerPolicy::only(keys);
        overlay::serve(listener, &identity, policy, limits, router, CancellationToken::new()).await
    });
    let clients = TcpListener::bind(part.clients).await?;
    let handle = replica.handle();
    let accepting = async {
        loop {
            let (stream, _) = clients.accept().await?;
            tokio::spawn(answer_connection(stream, handle.clone()));
        }
    };
    tokio::select! {
        reason = replica.stopped() => bail!("the replica stopped: {reason}"),
        outcome = accepting => outcome,
    }
}

async fn answer_connection(stream: TcpStream, handle: Handle<Map>) {
    // Errors are ignored: a disconnected client needs no response.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, handle.clone()));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    handle: Handle<Map>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let respond = |status: StatusCode, body: Bytes| {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        Ok(response)
    };
    if request.uri().path() == "/leads" {
        let status = handle.status();
        let leads = status.leader == Some(status.id);
        return respond(StatusCode::OK, Bytes::from_static(if leads { b"yes" } else { b"no" }));
    }
    let Ok(body) = request.into_body().collect().await else {
        return respond(StatusCode::BAD_REQUEST, Bytes::new());
    };
    match handle.propose(body.to_bytes(), None).await {
        Ok(response) => respond(StatusCode::OK, response),
        Err(error) => respond(StatusCode::SERVICE_UNAVAILABLE, Bytes::from(error.to_string())),
    }
}

/// A cluster of three replicas on loopback.
pub(super) struct ReplicaCluster {
    _replicas: Vec<ChildGuard>,
    leader: SocketAddr,
}

impl ReplicaCluster {
    /// Starts the replicas and waits for a leader.
    pub(super) async fn start(directory: &Path) -> anyhow::Result<Self> {
        super::prepare(directory)?;
        let ports = free_ports(6)?;
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let peers: BTreeMap<u64, SocketAddr> =
            (1..).zip(ports[..3].iter().map(|port| address(*port))).collect();
        let mut replicas = Vec::new();
        for (id, port) in (1u64..).zip(&ports[3..]) {
            let directory = directory.join(id.to_string());
            let part = ReplicaArguments { id, peers: peers.clone(), clients: address(*port), directory };
            let text = serde_json::to_string(&part)?;
            replicas.push(ChildGuard::start(Command::new(std::env::current_exe()?).args([
                "consensus",
                "--part",
                &text,
            ]))?);
        }
        let clients: Vec<SocketAddr> = ports[3..].iter().map(|port| address(*port)).collect();
        Ok(Self { _replicas: replicas, leader: find_leader(&clients).await? })
    }

    /// Opens a new connection to the leader.
    pub(super) async fn connect(&self) -> anyhow::Result<ReplicaClient> {
        ReplicaClient::connect(self.leader).await
    }
}

async fn find_leader(clients: &[SocketAddr]) -> anyhow::Result<SocketAddr> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        for address in clients {
            let Ok(mut client) = ReplicaClient::connect(*address).await else { continue };
            if client.ask("/leads", Bytes::new()).await.is_ok_and(|answer| answer == "yes") {
                return Ok(*address);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("our replicas elected no leader within {START_TIMEOUT:?}")
}

/// A client on one HTTP/2 connection.
pub(super) struct ReplicaClient {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl ReplicaClient {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // The connection task ends with the client; an earlier error fails the put that uses the connection.
        tokio::spawn(connection.map(drop));
        Ok(Self { sender, authority: address.to_string() })
    }

    async fn ask(&mut self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let request = Request::post(format!("http://{}{path}", self.authority)).body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

impl Put for ReplicaClient {
    fn put(&mut self, key: String, value: Bytes) -> BoxFuture<'_, anyhow::Result<()>> {
        let mut body = Vec::with_capacity(2 + key.len() + value.len());
        body.extend_from_slice(&(key.len() as u16).to_le_bytes());
        body.extend_from_slice(key.as_bytes());
        body.extend_from_slice(&value);
        Box::pin(async move {
            let answer = self.ask("/put", Bytes::from(body)).await?;
            ensure!(answer[..] == [0], "the map refused a put");
            Ok(())
        })
    }
}
