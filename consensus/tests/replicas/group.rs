//! Test group: three replicas on disk and TLS in one process, with everything that a restart needs.

use bytes::Bytes;
use consensus::{
    Config, Frozen, GroupId, Handle, Limits, LogIndex, ProposeError, RaftStatus, Replica, ReplicaAddress,
    SessionId, StateMachine, Timings,
};
use overlay::{CancellationToken, Identity, PeerPolicy};
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Timeout of every wait in a test: generous, because machines are shared.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Group of the replicas.
pub(crate) const GROUP: GroupId = GroupId([7; 32]);

/// Line that the state machine cannot serialize.
pub(crate) const UNSPEAKABLE: &str = "unspeakable";

/// State machine that stores every command, and responds with the number of commands.
#[derive(Default)]
pub(crate) struct Notebook {
    pub(crate) lines: Vec<Vec<u8>>,
    /// Largest snapshot from which it was restored: number of lines, and bytes.
    pub(crate) restored: (usize, usize),
    /// Blocks the serialization of frozen states while it is true. Unsuitable for simulated time: it blocks
    /// the thread.
    pub(crate) held: Arc<AtomicBool>,
}

impl StateMachine for Notebook {
    fn apply(&mut self, _index: LogIndex, command: &[u8]) -> Vec<u8> {
        self.lines.push(command.to_vec());
        self.lines.len().to_string().into_bytes()
    }

    fn freeze(&self) -> Frozen {
        let (lines, held) = (self.lines.clone(), self.held.clone());
        Box::new(move || {
            while held.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut bytes = Vec::new();
            for line in &lines {
                assert_ne!(line, UNSPEAKABLE.as_bytes());
                bytes.extend_from_slice(&(line.len() as u32).to_le_bytes());
                bytes.extend_from_slice(line);
            }
            bytes
        })
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), String> {
        self.lines.clear();
        let bytes = snapshot.len();
        while let Some((length, rest)) = snapshot.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let line = rest.get(..length).ok_or("a line is cut off")?;
            self.lines.push(line.to_vec());
            snapshot = &rest[length..];
        }
        self.restored = self.restored.max((self.lines.len(), bytes));
        Ok(())
    }
}

/// Configurations of three replicas, and everything that a restart needs.
pub(crate) struct Group {
    directory: TempDir,
    /// Directories of the replicas that are not in `directory`.
    elsewhere: BTreeMap<ReplicaId, PathBuf>,
    pub(crate) identities: BTreeMap<ReplicaId, Arc<Identity>>,
    pub(crate) peers: BTreeMap<ReplicaId, ReplicaAddress>,
    /// Kept while a replica is dead, so that its port remains reserved.
    listeners: BTreeMap<ReplicaId, std::net::TcpListener>,
    limits: Limits,
    timings: Timings,
    pub(crate) running: BTreeMap<ReplicaId, ServedReplica>,
}

pub(crate) struct ServedReplica {
    pub(crate) replica: Replica<Notebook>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), overlay::Error>>,
}

impl Group {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::start_at(limits, quick(), BTreeMap::new())
    }

    pub(crate) fn start_at(
        limits: Limits,
        timings: Timings,
        elsewhere: BTreeMap<ReplicaId, PathBuf>,
    ) -> Self {
        let mut identities = BTreeMap::new();
        let mut peers = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        for id in ids() {
            let identity = Arc::new(Identity::generate().expect("randomness"));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("bound");
            peers.insert(id, ReplicaAddress { address: address.into(), key: identity.public_key() });
            identities.insert(id, identity);
            listeners.insert(id, listener);
        }
        let directory = TempDir::new().expect("temporary directory");
        let running = BTreeMap::new();
        let mut group = Self { directory, elsewhere, identities, peers, listeners, limits, timings, running };
        ids().for_each(|id| group.start_one(id, true));
        group
    }

    pub(crate) fn config(&self, id: ReplicaId, create: bool) -> Config {
        Config {
            group: GROUP,
            id,
            peers: self.peers.clone(),
            directory: self.path(id),
            create,
            identity: self.identities[&id].clone(),
            seed: 1,
            timings: self.timings,
            limits: self.limits,
        }
    }

    pub(crate) fn path(&self, id: ReplicaId) -> PathBuf {
        self.elsewhere.get(&id).cloned().unwrap_or_else(|| self.directory.path().join(id.to_string()))
    }

    fn start_one(&mut self, id: ReplicaId, create: bool) {
        let listener = self.listeners[&id].try_clone().expect("a descriptor");
        let listener = TcpListener::from_std(listener).expect("a socket");
        let replica = Replica::start(&self.config(id, create), Notebook::default()).expect("starts");
        let keys: Vec<_> = self.peers.values().map(|peer| peer.key).collect();
        let (shutdown, identity) = (CancellationToken::new(), self.identities[&id].clone());
        let (router, ending) = (replica.router(), shutdown.clone());
        let server = tokio::spawn(async move {
            let limits = overlay::Limits { drain: Duration::ZERO, ..overlay::Limits::default() };
            overlay::serve(listener, &identity, PeerPolicy::only(keys), limits, router, ending).await
        });
        self.running.insert(id, ServedReplica { replica, shutdown, server });
    }

    /// Stops a replica without notifying the others.
    pub(crate) async fn stop(&mut self, id: ReplicaId) {
        let ServedReplica { replica, shutdown, server } = self.running.remove(&id).expect("running");
        shutdown.cancel();
        tokio::task::spawn_blocking(move || drop(replica)).await.expect("stops");
        server.await.expect("no panic").expect("orderly end");
    }

    pub(crate) fn restart(&mut self, id: ReplicaId) {
        self.start_one(id, false);
    }

    pub(crate) fn handle(&self, id: ReplicaId) -> Handle<Notebook> {
        self.running[&id].replica.handle()
    }

    pub(crate) async fn leader(&self) -> ReplicaId {
        let any = *self.running.keys().next().expect("a running replica");
        let mut watch = self.handle(any).watch_status();
        let known = |status: &RaftStatus| status.leader.is_some_and(|id| self.running.contains_key(&id));
        let found = tokio::time::timeout(WAIT_TIMEOUT, watch.wait_for(known)).await;
        let status = found.expect("a leader in time").expect("still running").clone();
        status.leader.expect("just checked")
    }

    pub(crate) fn follower_of(&self, leader: ReplicaId) -> ReplicaId {
        *self.running.keys().find(|id| **id != leader).expect("more than one")
    }
}

/// A client with a session. The leader may change at any moment on a busy machine; each command is
/// nevertheless applied once and answered.
pub(crate) struct Client {
    session: SessionId,
    sequence: u64,
}

impl Client {
    pub(crate) async fn new(handle: &Handle<Notebook>) -> Self {
        Self { session: handle.open_session().await.expect("a leader in time"), sequence: 0 }
    }

    /// Proposes the session's next command, through any replica.
    pub(crate) async fn propose(
        &mut self,
        through: &Handle<Notebook>,
        command: impl Into<Bytes>,
    ) -> Result<Bytes, ProposeError> {
        self.sequence += 1;
        through.propose(command.into(), Some((self.session, self.sequence))).await
    }
}

/// Proposes without a session until the command is accepted; it may be applied more than once.
pub(crate) async fn insist(handle: &Handle<Notebook>, command: &str) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while let Err(error) = handle.propose(text(command), None).await {
        assert!(Instant::now() < deadline, "`{command}` is not taken: {error}");
    }
}

/// Returns the ids of the replicas of a group.
pub(crate) fn ids() -> impl Iterator<Item = ReplicaId> {
    (1..=3).map(ReplicaId)
}

/// Returns the replica after `id` in a ring of three.
pub(crate) fn after(id: ReplicaId) -> ReplicaId {
    ReplicaId(1 + id.0 % 3)
}

pub(crate) fn quick() -> Timings {
    Timings { tick: Duration::from_millis(20), request: WAIT_TIMEOUT, ..Timings::default() }
}

pub(crate) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) async fn lines(handle: &Handle<Notebook>) -> Vec<String> {
    handle.read_barrier().await.expect("a leader confirms");
    handle.read(|book| book.lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}
