//! Admission tests at a gateway's listeners, with more connections than the process may open files. Others
//! use arbitrary keys, each with a well-formed ticket signed by a node that no table names.

use crate::cluster::{Cluster, chat, echo, eventually, signed_by};
use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit};
use overlay::{CancellationToken, Identity, reverse_serve};
use protocol::{Fence, NodeId, canonical};
use serving::worker::{Tickets, WorkerService, serving_limits};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// Several times the number of connections that may wait for a table.
const STRANGERS: usize = 48;

/// Connects from one of this machine's addresses.
async fn dial(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse().expect("an address"))?;
    socket.connect(to).await
}

/// Connects unadmitted workers one after another, each from another local address, until the task is aborted.
fn outsider(cluster: &Cluster, came: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let (workers, gateway) = (cluster.workers, cluster.gateway.public_key());
    let template = cluster.ticket(&cluster.node, "chat", 0);
    let came = came.clone();
    tokio::spawn(async move {
        loop {
            let identity = Identity::generate().expect("randomness");
            let mut ticket = template.clone();
            (ticket.worker, ticket.node) = (identity.public_key(), NodeId(identity.public_key()));
            ticket.fence = Fence::new(1, 7);
            let preface = Bytes::from(canonical::to_bytes(&signed_by(&identity, ticket)));
            let Ok(tcp) = dial("127.0.0.2", workers).await else { continue };
            let router = Tickets::default().router(Arc::new(WorkerService::new(None)));
            let (limits, never) = (serving_limits(), CancellationToken::new());
            // It ends when the gateway closes it; a whole ticket was sent by then.
            if reverse_serve(tcp, &identity, gateway, preface, limits, router, never).await.is_ok() {
                came.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_unknown_nodes_keep_no_worker_out() {
    let cluster = Cluster::start().await;
    let before = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let came = Arc::new(AtomicUsize::new(0));
    let outsiders: Vec<_> = (0..STRANGERS).map(|_| outsider(&cluster, &came)).collect();
    let more = |than: usize| {
        let came = came.clone();
        eventually("strangers come and are ended", async move || came.load(Ordering::Relaxed) > than)
    };
    more(2 * STRANGERS).await;
    // Beside them a worker of a node in the table keeps its connection, and others connect.
    for _ in 0..3 {
        let next = cluster.worker("chat", 1, echo(Duration::ZERO)).await;
        assert_eq!(cluster.json("/v1/chat/completions", &chat("hi", "")).await.0, 200);
        more(came.load(Ordering::Relaxed)).await;
        next.kill();
        eventually("it is gone", async || cluster.ready().await == 1).await;
    }
    assert!(!before.is_left(), "the first worker is still connected");
    outsiders.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_worker_of_an_unknown_node_waits_for_the_table_that_names_it() {
    let cluster = Cluster::start().await;
    // Retried if the table came later than a lease: test machines are shared.
    for fence in 2.. {
        let (node, fence) = (Identity::generate().expect("randomness"), Fence::new(1, fence));
        let worker = cluster
            .outsider(echo(Duration::ZERO), |worker| {
                let mut ticket = cluster.ticket(worker, "chat", 0);
                (ticket.node, ticket.fence) = (NodeId(node.public_key()), fence);
                signed_by(&node, ticket)
            })
            .await;
        let mut table = cluster.table(fence);
        for service in &mut table.services {
            service.routes.iter_mut().for_each(|route| route.node = NodeId(node.public_key()));
        }
        cluster.push(table).await;
        let mut is_connected = false;
        eventually("it is connected, or the table came too late", async || {
            is_connected = cluster.connected().await == 1;
            is_connected || worker.is_left()
        })
        .await;
        if is_connected {
            return;
        }
    }
}

/// A gateway that may open 64 files until it raises its limit.
struct Limited(Child);

impl Drop for Limited {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Limited {
    fn start(directory: &std::path::Path, more: &str) -> (Self, SocketAddr) {
        let script = format!("ulimit -Sn 64 && {more} exec \"$@\"");
        let log = std::fs::File::create(directory.join("log")).expect("a file");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_quorate-serve"), "gateway"])
            .args(["--public", "127.0.0.1:0", "--workers", "127.0.0.1:0"])
            .arg("--control-socket")
            .arg(directory.join("gateway.sock"))
            .arg("--identity")
            .arg(directory.join("gateway.key"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        (Self(child), said["public"].as_str().expect("text").parse().expect("an address"))
    }

    /// Returns the soft limit in force.
    fn files(&self) -> u64 {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.0.id())).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("there is one");
        line.split_whitespace().nth(3).expect("a number").parse().expect("a number")
    }
}

/// Sends a request on a new connection; reports whether it was answered.
async fn is_answered(gateway: SocketAddr) -> bool {
    let Ok(mut stream) = dial("127.0.0.1", gateway).await else { return false };
    let request = b"GET /v1/models HTTP/1.1\r\nhost: q\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let sent = stream.write_all(request).await;
    sent.is_ok() && stream.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 401")
}

#[tokio::test]
async fn a_gateway_with_few_open_files_serves_beside_more_connections_than_these() {
    const FILES: u64 = 512;
    let directory = tempfile::tempdir().expect("a directory");
    let (gateway, public) = Limited::start(directory.path(), &format!("ulimit -Hn {FILES} &&"));
    assert!(is_answered(public).await);
    assert_eq!(gateway.files(), FILES, "it raised its limit as far as it may");
    let log = std::fs::read_to_string(directory.path().join("log")).expect("a log");
    assert!(log.contains("too few open files allowed"), "{log}");
    let mut silent = Vec::new();
    for _ in 0..FILES + 100 {
        silent.push(dial("127.0.0.2", public).await.expect("the kernel takes it"));
    }
    for _ in 0..50 {
        assert!(is_answered(public).await);
    }
    drop(silent);
}

#[tokio::test]
async fn a_gateway_raises_its_limit_of_open_files_to_what_its_listeners_need() {
    let directory = tempfile::tempdir().expect("a directory");
    let (gateway, public) = Limited::start(directory.path(), "");
    assert!(is_answered(public).await);
    let needed = 4096 + 1024;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(gateway.files() >= hard.min(needed), "{} of {hard}", gateway.files());
}
