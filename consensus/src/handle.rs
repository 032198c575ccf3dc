//! How everything else talks to a replica: propose, read, look, wait. Clones are cheap.

use crate::command::Command;
use crate::driver::Event;
use crate::error::{ProposeError, ReadError};
use crate::machine::StateMachine;
use crate::metrics::{Counters, Metrics};
use crate::sessions::SessionId;
use crate::transport::{Refusal, Request, Transport};
use bytes::Bytes;
use raft::eraftpb::Message;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// Messages from peers that wait for the raft loop; beyond it they are dropped, and raft sends again.
const INBOX_MESSAGES_MAX: usize = 16_384;

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Decides what is appended.
    Leader,
    /// Follows a leader.
    Follower,
    /// Knows no leader.
    Candidate,
}

/// Where a replica stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub id: u64,
    /// What it is.
    pub role: Role,
    /// Whom it takes for the leader.
    pub leader: Option<u64>,
    /// The current term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index applied to the state machine.
    pub applied: u64,
    /// The last index of the log.
    pub last: u64,
    /// Whether proposals are refused because the disk is about to be full.
    pub disk_full: bool,
    /// Why the replica stopped, if it has.
    pub stopped: Option<String>,
}

/// A replica's inner side that does not know the state machine's type.
pub(crate) struct Port {
    pub(crate) id: u64,
    events: UnboundedSender<Event>,
    transport: Arc<dyn Transport>,
    counters: Arc<Counters>,
    status: watch::Receiver<Status>,
    applied: watch::Receiver<u64>,
    leader: watch::Receiver<Option<u64>>,
    places: Semaphore,
    read_places: Semaphore,
    inbox: AtomicUsize,
    command_bytes_max: usize,
    request_timeout: Duration,
    retry_pause: Duration,
}

/// What a port is made from.
pub(crate) struct PortParts {
    pub(crate) id: u64,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) applied: watch::Receiver<u64>,
    pub(crate) leader: watch::Receiver<Option<u64>>,
    pub(crate) limits: crate::config::Limits,
    pub(crate) timings: crate::config::Timings,
}

impl Port {
    pub(crate) fn new(parts: PortParts) -> Self {
        let PortParts { id, events, transport, counters, status, applied, leader, limits, timings } = parts;
        Self {
            id,
            events,
            transport,
            counters,
            status,
            applied,
            leader,
            places: Semaphore::new(limits.proposals_pending_max),
            read_places: Semaphore::new(limits.proposals_pending_max),
            inbox: AtomicUsize::new(0),
            command_bytes_max: limits.command_bytes_max,
            request_timeout: timings.request,
            retry_pause: timings.tick,
        }
    }

    /// Hands a peer's message to the raft loop, or drops it when too many wait.
    pub(crate) fn deliver(&self, message: Message) {
        if self.inbox.fetch_add(1, Ordering::Relaxed) >= INBOX_MESSAGES_MAX {
            self.inbox.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.tell(Event::Message(Box::new(message)));
    }

    /// Says that the raft loop has taken `count` messages.
    pub(crate) fn taken(&self, count: usize) {
        self.inbox.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn unreachable(&self, peer: u64) {
        self.tell(Event::Unreachable(peer));
    }

    pub(crate) fn snapshot_sent(&self, peer: u64, arrived: bool) {
        self.tell(Event::SnapshotSent { peer, arrived });
    }

    /// Nobody listens any more once the replica has stopped, and then nothing matters.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Answers a request that a follower forwarded, or one of our own while we lead.
    pub(crate) async fn answer(&self, request: Request) -> Result<Bytes, Refusal> {
        match request {
            Request::Propose(entry) => self.propose_here(entry).await,
            Request::Read => {
                let Ok(_place) = self.read_places.try_acquire() else {
                    return Err(ProposeError::Busy.into());
                };
                let (reply, answer) = oneshot::channel();
                // A raft loop that has ended takes nothing: whoever asks must look for another leader.
                self.events.send(Event::Read(reply)).map_err(|_| Refusal::NotLeader)?;
                let index = answer.await.map_err(|_| Refusal::Lost)??;
                Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
            }
        }
    }

    async fn propose_here(&self, entry: Bytes) -> Result<Bytes, Refusal> {
        let limit = self.command_bytes_max;
        if entry.len() > limit + crate::command::OVERHEAD_BYTES_MAX {
            return Err(ProposeError::TooLarge { actual: entry.len(), limit }.into());
        }
        let Some(_) = Command::decode(&entry) else { return Err(Refusal::Lost) };
        let Ok(_place) = self.places.try_acquire() else { return Err(ProposeError::Busy.into()) };
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Propose { entry, reply }).map_err(|_| Refusal::NotLeader)?;
        answer.await.map_err(|_| Refusal::Lost)?
    }

    /// Asks whoever leads until an answer comes, the deadline passes, or asking again could do it twice.
    async fn ask_leader(&self, request: Request, repeatable: bool) -> Result<Bytes, Refusal> {
        let deadline = Instant::now() + self.request_timeout;
        let mut leader = self.leader.clone();
        // What to say at the deadline: once a request may have reached a leader, its outcome is open.
        let mut at_deadline = Refusal::NotLeader;
        loop {
            let known = *leader.borrow_and_update();
            let attempt = async {
                match known {
                    None => Err(Refusal::NotLeader),
                    Some(id) if id == self.id => self.answer(request.clone()).await,
                    Some(id) => self.transport.forward(id, request.clone()).await,
                }
            };
            // Asked elsewhere once another leads: the one that was asked may be paused, and answer never. What
            // must not be done twice waits for it all the same.
            let outcome = tokio::select! {
                biased;
                outcome = timeout_at(deadline, attempt) => outcome,
                () = another_leader(self.leader.clone(), known), if repeatable && known.is_some() => {
                    at_deadline = Refusal::Lost;
                    continue;
                }
            };
            match outcome {
                Err(_) => return Err(Refusal::Lost),
                Ok(Err(Refusal::NotLeader | Refusal::Unreachable)) => {}
                Ok(Err(Refusal::Lost)) if repeatable => at_deadline = Refusal::Lost,
                // An earlier attempt may have been applied: that this one was refused does not undo it.
                Ok(Err(Refusal::Propose(ProposeError::SessionExpired))) if at_deadline == Refusal::Lost => {
                    return Err(Refusal::Lost);
                }
                Ok(Err(Refusal::Propose(_))) if at_deadline == Refusal::Lost => {}
                Ok(outcome) => return outcome,
            }
            if self.stopped().is_some() || Instant::now() >= deadline {
                return Err(at_deadline);
            }
            // Whoever was asked does not lead (any more): look again when that is known, or soon.
            if let Ok(Err(_)) = tokio::time::timeout(self.retry_pause, leader.changed()).await {
                return Err(at_deadline);
            }
        }
    }

    /// Why the replica stopped, if it has; a raft loop that panicked left no reason.
    fn stopped(&self) -> Option<String> {
        let reason = self.status.borrow().stopped.clone();
        reason.or_else(|| self.status.has_changed().is_err().then(|| "its raft loop ended".to_string()))
    }
}

/// Waits until another replica than `known` is taken for the leader.
async fn another_leader(mut leader: watch::Receiver<Option<u64>>, known: Option<u64>) {
    let another = |leader: &Option<u64>| leader.is_some() && *leader != known;
    if leader.wait_for(another).await.is_err() {
        // The replica has ended, and so will what was asked of it.
        std::future::pending::<()>().await;
    }
}

/// The way to a replica's state machine, which it shares with the raft loop.
pub struct Handle<M> {
    pub(crate) port: Arc<Port>,
    pub(crate) machine: Arc<RwLock<M>>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { port: self.port.clone(), machine: self.machine.clone() }
    }
}

impl<M: StateMachine> Handle<M> {
    /// Has `command` committed and applied, wherever the leader is, and returns the state machine's
    /// response. With a session and a sequence number above all earlier ones, a command is applied exactly
    /// once, however often it is asked. A session's commands are asked one after the other.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        command: Bytes,
        session: Option<(SessionId, u64)>,
    ) -> Result<Bytes, ProposeError> {
        let (actual, limit) = (command.len(), self.port.command_bytes_max);
        if actual > limit {
            return Err(ProposeError::TooLarge { actual, limit });
        }
        let command = match session {
            None => Command::Plain(command),
            Some((SessionId(session), sequence)) => Command::InSession { session, sequence, command },
        };
        self.ask(&command, session.is_some()).await
    }

    /// Opens a session. Sessions unused for long are forgotten when there are more than 4,096.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn open_session(&self) -> Result<SessionId, ProposeError> {
        // Asked twice, it opens two sessions, of which one is soon forgotten.
        let answer = self.ask(&Command::OpenSession, true).await?;
        let index = crate::command::u64_at(&answer, 0).ok_or(ProposeError::OutcomeUnknown)?;
        Ok(SessionId(index))
    }

    async fn ask(&self, command: &Command, repeatable: bool) -> Result<Bytes, ProposeError> {
        if let Some(reason) = self.port.stopped() {
            return Err(ProposeError::Stopped(reason));
        }
        let request = Request::Propose(command.encode());
        self.port.ask_leader(request, repeatable).await.map_err(|refusal| match refusal {
            Refusal::NotLeader | Refusal::Unreachable => ProposeError::NoLeader,
            Refusal::Lost => ProposeError::OutcomeUnknown,
            Refusal::Propose(error) => error,
        })
    }

    /// Waits until this replica has applied everything that was committed anywhere before the call, and
    /// returns the index. A [`Handle::read`] after it is linearizable.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_barrier(&self) -> Result<u64, ReadError> {
        let deadline = Instant::now() + self.port.request_timeout;
        let failed = |port: &Port| port.stopped().map_or(ReadError::NoLeader, ReadError::Stopped);
        if self.port.stopped().is_some() {
            return Err(failed(&self.port));
        }
        // Every attempt gets a fresh token from the leader, so asking again is always right.
        let answer = self.port.ask_leader(Request::Read, true).await.map_err(|refusal| match refusal {
            Refusal::Propose(ProposeError::Busy) => ReadError::Busy,
            _ => failed(&self.port),
        })?;
        let index = crate::command::u64_at(&answer, 0).ok_or(ReadError::NoLeader)?;
        let mut applied = self.port.applied.clone();
        let reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await;
        reached.map_err(|_| ReadError::NoLeader)?.map_err(|_| failed(&self.port))?;
        Ok(index)
    }

    /// Looks at the state as this replica has it, current or not. Keep it short: nothing is applied
    /// meanwhile, and never call it from within itself.
    pub fn read<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&self.machine.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where this replica stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.port.status.borrow().clone();
        status.applied = status.applied.max(*self.port.applied.borrow());
        status
    }

    /// The highest applied index, as it rises.
    #[must_use]
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.port.applied.clone()
    }

    /// What the replica has counted since its start.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.port.counters.read()
    }

    /// Whom this replica takes for the leader, as it changes.
    #[must_use]
    pub fn watch_leader(&self) -> watch::Receiver<Option<u64>> {
        self.port.leader.clone()
    }

    /// Role, term and whether the replica has stopped, as they change. Indices in it may lag a little.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.port.status.clone()
    }
}
