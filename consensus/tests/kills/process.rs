//! Replica process of the kill test: this test's binary, started again.
//!
//! Its listener is passed as standard input, bound by the parent, so that the address remains reserved while
//! the replica is dead. The parent communicates with it over a socket that is passed as standard output.

use crate::history::{EMPTY, digest};
use bytes::Bytes;
use consensus::{
    Config, Frozen, GroupId, Handle, Limits, LogIndex, Replica, ReplicaAddress, SessionId, StateMachine,
    Timings,
};
use overlay::{CancellationToken, Identity, PeerPolicy};
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

/// Environment variable with the child's parameters.
const PARAMETERS: &str = "QUORATE_TEST_REPLICA";
/// Small limits, so that segments fill up and snapshots are taken between the kills.
const LIMITS: Limits = Limits {
    command_bytes_max: 64 * 1024,
    proposals_pending_max: 256,
    message_bytes: 256 * 1024,
    uncommitted_bytes_max: 4 * 1024 * 1024,
    inflight_messages_max: 64,
    outbox_messages_max: 256,
    snapshot_entries: 300,
    snapshot_bytes: 1024 * 1024,
    snapshot_bytes_max: 16 * 1024 * 1024,
    retained_entries: 50,
    segment_bytes: 64 * 1024,
};

/// Group of the replicas.
pub(crate) const GROUP: GroupId = GroupId([7; 32]);

pub(crate) const SEGMENT_BYTES: u64 = LIMITS.segment_bytes;

/// Fixed resources of one replica, whether it runs or not.
pub(crate) struct ReplicaResources {
    pub(crate) id: u64,
    pub(crate) directory: PathBuf,
    pub(crate) listener: std::net::TcpListener,
}

/// A running process.
pub(crate) struct Process {
    child: Child,
    pub(crate) link: Link,
}

/// Connection to a running process; requests fail once it is dead.
#[derive(Clone)]
pub(crate) struct Link {
    requests: mpsc::UnboundedSender<(String, oneshot::Sender<String>)>,
}

impl Process {
    /// Starts the replica of `resources`. Must be called within a tokio runtime.
    pub(crate) fn start(resources: &ReplicaResources, addresses: &[SocketAddr], create: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let directory = resources.directory.to_str().expect("a plain path");
        let parameters = format!("{}|{create}|{}|{directory}", resources.id, addresses.join(","));
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "a_replica_to_be_killed", "--nocapture"])
            .env(PARAMETERS, parameters)
            .stdin(Stdio::from(OwnedFd::from(resources.listener.try_clone().expect("a descriptor"))))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("this binary starts again");
        ours.set_nonblocking(true).expect("a socket");
        let (requests, inbox) = mpsc::unbounded_channel();
        tokio::spawn(talk(tokio::net::UnixStream::from_std(ours).expect("a socket"), inbox));
        Self { child, link: Link { requests } }
    }

    /// Sends SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        let early = self.child.try_wait().expect("a child");
        assert_eq!(early, None, "the replica ended by itself");
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Needed only after a failed test: otherwise the process has been killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Link {
    /// Returns the words of an answer, or the error code; `None` if the process died first.
    pub(crate) async fn ask(&self, request: String) -> Option<Result<String, String>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send((request, reply)).ok()?;
        let answer = answer.await.ok()?;
        let (kind, rest) = answer.split_once(' ').unwrap_or((&answer, ""));
        Some(if kind == "ok" { Ok(rest.to_owned()) } else { Err(rest.to_owned()) })
    }
}

/// Carries requests to the process, and answers back, until it is dead.
async fn talk(
    stream: tokio::net::UnixStream,
    mut inbox: mpsc::UnboundedReceiver<(String, oneshot::Sender<String>)>,
) {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    let mut waiting = BTreeMap::new();
    let mut made = 0u64;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                // End of the stream, or an incomplete line of a process that was killed while it wrote.
                let Ok(Some(line)) = line else { return };
                // The test harness writes there too; its lines begin with no number of a pending request.
                let (number, answer) = line.split_once(' ').unwrap_or_default();
                if let Some(reply) = number.parse().ok().and_then(|number: u64| waiting.remove(&number)) {
                    // A client that gave up has dropped its receiver.
                    let _: Result<(), String> = oneshot::Sender::send(reply, answer.to_owned());
                }
            }
            request = inbox.recv() => {
                let Some((request, reply)) = request else { return };
                made += 1;
                waiting.insert(made, reply);
                if writing.write_all(format!("{made} {request}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The replicated list.
#[derive(Default)]
struct List {
    lines: Vec<String>,
    digest: [u8; 32],
}

impl List {
    fn push(&mut self, line: &str) {
        self.digest = digest(&self.digest, line);
        self.lines.push(line.to_owned());
    }
}

impl StateMachine for List {
    fn apply(&mut self, _index: LogIndex, command: &[u8]) -> Vec<u8> {
        self.push(&String::from_utf8_lossy(command));
        self.lines.len().to_string().into_bytes()
    }

    fn freeze(&self) -> Frozen {
        let lines = self.lines.clone();
        Box::new(move || lines.join("\n").into_bytes())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(snapshot).map_err(|error| error.to_string())?;
        *self = Self { lines: Vec::new(), digest: EMPTY };
        text.lines().for_each(|line| self.push(line));
        Ok(())
    }
}

fn identity(id: u64) -> Identity {
    Identity::from_seed(&[id as u8; 32])
}

/// Returns the parent's parameters, if this process is a replica.
pub(crate) fn parameters() -> Option<String> {
    std::env::var(PARAMETERS).ok()
}

/// Runs a replica until the parent has ended or kills this process.
pub(crate) fn run(parameters: &str) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let fields: Vec<&str> = parameters.splitn(4, '|').collect();
        let id: u64 = fields[0].parse().expect("a number");
        let peer = |(ordinal, address): (usize, &str)| {
            let id = ordinal as u64 + 1;
            let address = address.parse().expect("an address");
            (ReplicaId(id), ReplicaAddress { address, key: identity(id).public_key() })
        };
        let peers: BTreeMap<ReplicaId, ReplicaAddress> = fields[2].split(',').enumerate().map(peer).collect();
        let keys: Vec<_> = peers.values().map(|peer| peer.key).collect();
        let config = Config {
            group: GROUP,
            id: ReplicaId(id),
            peers,
            directory: Path::new(fields[3]).to_owned(),
            create: fields[1] == "true",
            identity: Arc::new(identity(id)),
            seed: 5,
            timings: Timings {
                tick: Duration::from_millis(15),
                request: Duration::from_secs(2),
                ..Timings::default()
            },
            limits: LIMITS,
        };
        let replica = Replica::start(&config, List::default()).expect("starts");
        let router = replica.router();
        let listener = std::io::stdin().as_fd().try_clone_to_owned().expect("the listener");
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("the listener");
        tokio::spawn(async move {
            let limits = overlay::Limits::default();
            let policy = PeerPolicy::only(keys);
            let end = CancellationToken::new();
            overlay::serve(listener, &identity(id), policy, limits, router, end).await
        });
        let handle = replica.handle();
        tokio::select! {
            () = answer_all(handle) => std::process::exit(0),
            reason = replica.stopped() => {
                eprintln!("replica {id} stopped: {reason}");
                std::process::exit(1)
            }
        }
    })
}

async fn answer_all(handle: Handle<List>) {
    let stream = std::io::stdout().as_fd().try_clone_to_owned().expect("the parent's socket");
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true).expect("a socket");
    let stream = tokio::net::UnixStream::from_std(stream).expect("the parent's socket");
    let (reading, mut writing) = stream.into_split();
    // The test harness has begun a line.
    writing.write_all(b"\n").await.expect("the parent reads");
    let writing = Arc::new(tokio::sync::Mutex::new(writing));
    let mut lines = BufReader::new(reading).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let (handle, writing) = (handle.clone(), writing.clone());
        tokio::spawn(async move {
            let (number, request) = line.split_once(' ').expect("a number and a request");
            let answer = answer(&handle, request).await;
            let answer = answer.map_or_else(|code| format!("err {code}"), |text| format!("ok {text}"));
            say(&writing, &format!("{number} {answer}\n")).await;
        });
    }
}

async fn say(writing: &tokio::sync::Mutex<OwnedWriteHalf>, text: &str) {
    // A parent that has ended also ends the loop that reads.
    let _ = writing.lock().await.write_all(text.as_bytes()).await;
}

async fn answer(handle: &Handle<List>, request: &str) -> Result<String, String> {
    let words: Vec<&str> = request.split(' ').collect();
    let code = |code: protocol::ErrorCode| code.to_string();
    match words[..] {
        ["open"] => {
            let session = handle.open_session().await.map_err(|error| code(error.code()))?;
            Ok(session.0.to_string())
        }
        ["append", session, sequence, line] => {
            let session = SessionId(session.parse().expect("a number"));
            let sequence = sequence.parse().expect("a number");
            let line = Bytes::copy_from_slice(line.as_bytes());
            let answer = handle.propose(line, Some((session, sequence))).await;
            let answer = answer.map_err(|error| code(error.code()))?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
        ["read"] => {
            handle.read_barrier().await.map_err(|error| code(error.code()))?;
            let (length, digest) = handle.read(|list| (list.lines.len(), list.digest));
            Ok(format!("{length} {}", blake3::Hash::from(digest).to_hex()))
        }
        ["lines"] => {
            handle.read_barrier().await.map_err(|error| code(error.code()))?;
            Ok(handle.read(|list| list.lines.join(",")))
        }
        ["leader"] => handle.status().leader.map(|id| id.to_string()).ok_or_else(|| "none".to_owned()),
        _ => panic!("no such request: {request}"),
    }
}
