//! Handle to a replica: propose, read, status and metrics. Clones are cheap.

use crate::command::LogCommand;
use crate::driver::Event;
use crate::error::{LinearizableReadError, ProposeError};
use crate::ids::LogIndex;
use crate::machine::StateMachine;
use crate::metrics::{Metrics, ReplicaCounters};
use crate::sessions::SessionId;
use crate::status::RaftStatus;
use crate::transport::{Request, RequestError, Transport};
use bytes::Bytes;
use protocol::ReplicaId;
use raft::eraftpb::Message;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// Limit on peer messages queued for the raft loop; excess messages are dropped, and raft retransmits them.
const INBOX_MESSAGES_MAX: usize = 16_384;

/// Connection to the raft loop, independent of the state machine's type.
pub(crate) struct Inner {
    pub(crate) id: ReplicaId,
    events: UnboundedSender<Event>,
    transport: Arc<dyn Transport>,
    counters: Arc<ReplicaCounters>,
    status: watch::Receiver<RaftStatus>,
    applied: watch::Receiver<LogIndex>,
    leader: watch::Receiver<Option<ReplicaId>>,
    proposal_permits: Semaphore,
    read_permits: Semaphore,
    inbox: AtomicUsize,
    command_bytes_max: usize,
    request_timeout: Duration,
    retry_pause: Duration,
}

/// Constructor arguments of [`Inner`].
pub(crate) struct InnerParts {
    pub(crate) id: ReplicaId,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) counters: Arc<ReplicaCounters>,
    pub(crate) status: watch::Receiver<RaftStatus>,
    pub(crate) applied: watch::Receiver<LogIndex>,
    pub(crate) leader: watch::Receiver<Option<ReplicaId>>,
    pub(crate) limits: crate::config::Limits,
    pub(crate) timings: crate::config::Timings,
}

impl Inner {
    pub(crate) fn new(parts: InnerParts) -> Self {
        let InnerParts { id, events, transport, counters, status, applied, leader, limits, timings } = parts;
        Self {
            id,
            events,
            transport,
            counters,
            status,
            applied,
            leader,
            proposal_permits: Semaphore::new(limits.proposals_pending_max),
            read_permits: Semaphore::new(limits.proposals_pending_max),
            inbox: AtomicUsize::new(0),
            command_bytes_max: limits.command_bytes_max,
            request_timeout: timings.request,
            retry_pause: timings.tick,
        }
    }

    /// Queues a peer's message for the raft loop, or drops it if the queue is full.
    pub(crate) fn deliver(&self, message: Message) {
        if self.inbox.fetch_add(1, Ordering::Relaxed) >= INBOX_MESSAGES_MAX {
            self.inbox.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.send(Event::Message(Box::new(message)));
    }

    /// Records that the raft loop took `count` messages from the queue.
    pub(crate) fn dequeued(&self, count: usize) {
        self.inbox.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn unreachable(&self, peer: ReplicaId) {
        self.send(Event::Unreachable(peer));
    }

    pub(crate) fn snapshot_sent(&self, peer: ReplicaId, arrived: bool) {
        self.send(Event::SnapshotSent { peer, arrived });
    }

    /// Sends an event to the raft loop. After the replica has stopped, events are discarded.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Answers a request that a follower forwarded, or one of this replica's own while it leads.
    pub(crate) async fn answer(&self, request: Request) -> Result<Bytes, RequestError> {
        match request {
            Request::Propose(entry) => self.propose_here(entry).await,
            Request::Read => {
                let Ok(_permit) = self.read_permits.try_acquire() else {
                    return Err(ProposeError::Busy.into());
                };
                let (reply, answer) = oneshot::channel();
                // A raft loop that has ended accepts nothing: the caller must find another leader.
                self.events.send(Event::Read(reply)).map_err(|_| RequestError::NotLeader)?;
                let index = answer.await.map_err(|_| RequestError::Lost)??;
                Ok(Bytes::copy_from_slice(&index.0.to_le_bytes()))
            }
        }
    }

    async fn propose_here(&self, entry: Bytes) -> Result<Bytes, RequestError> {
        let limit = self.command_bytes_max;
        if entry.len() > limit + crate::command::OVERHEAD_BYTES_MAX {
            return Err(ProposeError::TooLarge { actual: entry.len(), limit }.into());
        }
        let Some(_) = LogCommand::decode(&entry) else { return Err(RequestError::Lost) };
        let Ok(_permit) = self.proposal_permits.try_acquire() else { return Err(ProposeError::Busy.into()) };
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Propose { entry, reply }).map_err(|_| RequestError::NotLeader)?;
        answer.await.map_err(|_| RequestError::Lost)?
    }

    /// Sends a request to the leader until it is answered, the deadline passes, or a retry could apply it
    /// twice.
    async fn ask_leader(&self, request: Request, repeatable: bool) -> Result<Bytes, RequestError> {
        let deadline = Instant::now() + self.request_timeout;
        let mut leader = self.leader.clone();
        // Error returned at the deadline: once a request may have reached a leader, its outcome is unknown.
        let mut at_deadline = RequestError::NotLeader;
        loop {
            let known = *leader.borrow_and_update();
            let attempt = async {
                match known {
                    None => Err(RequestError::NotLeader),
                    Some(id) if id == self.id => self.answer(request.clone()).await,
                    Some(id) => self.transport.forward(id, request.clone()).await,
                }
            };
            // A repeatable request is abandoned as soon as another replica leads: the former leader may be
            // paused and never answer. Other requests wait for their answer.
            let outcome = tokio::select! {
                biased;
                outcome = timeout_at(deadline, attempt) => outcome,
                () = another_leader(self.leader.clone(), known), if repeatable && known.is_some() => {
                    at_deadline = RequestError::Lost;
                    continue;
                }
            };
            match outcome {
                Err(_) => return Err(RequestError::Lost),
                Ok(Err(RequestError::NotLeader | RequestError::Unreachable)) => {}
                Ok(Err(RequestError::Lost)) if repeatable => at_deadline = RequestError::Lost,
                // An earlier attempt may have been applied, even though this one was rejected.
                Ok(Err(RequestError::Propose(ProposeError::SessionExpired)))
                    if at_deadline == RequestError::Lost =>
                {
                    return Err(RequestError::Lost);
                }
                Ok(Err(RequestError::Propose(_))) if at_deadline == RequestError::Lost => {}
                Ok(outcome) => return outcome,
            }
            if self.stopped().is_some() || Instant::now() >= deadline {
                return Err(at_deadline);
            }
            // The replica that was asked is not the leader (any more): retry when the leader changes, or
            // after a pause.
            if let Ok(Err(_)) = tokio::time::timeout(self.retry_pause, leader.changed()).await {
                return Err(at_deadline);
            }
        }
    }

    /// Returns the reason why the replica stopped, if it has; a raft loop that panicked left no reason.
    fn stopped(&self) -> Option<String> {
        let reason = self.status.borrow().stopped.clone();
        reason.or_else(|| self.status.has_changed().is_err().then(|| "its raft loop ended".to_string()))
    }
}

/// Waits until a leader other than `known` appears.
async fn another_leader(mut leader: watch::Receiver<Option<ReplicaId>>, known: Option<ReplicaId>) {
    let another = |leader: &Option<ReplicaId>| leader.is_some() && *leader != known;
    if leader.wait_for(another).await.is_err() {
        // The replica has stopped, and the pending request will fail.
        std::future::pending::<()>().await;
    }
}

/// Handle to a replica and to its state machine, which it shares with the raft loop.
pub struct Handle<M> {
    pub(crate) inner: Arc<Inner>,
    pub(crate) machine: Arc<RwLock<M>>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), machine: self.machine.clone() }
    }
}

impl<M: StateMachine> Handle<M> {
    /// Commits and applies `command`, whichever replica leads, and returns the state machine's response. With
    /// a session and a sequence number above all earlier ones, a command is applied exactly once, however
    /// often it is retried. The commands of one session are proposed one after the other.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        command: Bytes,
        session: Option<(SessionId, u64)>,
    ) -> Result<Bytes, ProposeError> {
        let (actual, limit) = (command.len(), self.inner.command_bytes_max);
        if actual > limit {
            return Err(ProposeError::TooLarge { actual, limit });
        }
        let command = match session {
            None => LogCommand::Plain(command),
            Some((session, sequence)) => LogCommand::InSession { session, sequence, command },
        };
        self.ask(&command, session.is_some()).await
    }

    /// Opens a client session. Beyond 4,096 sessions the least recently used ones expire.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn open_session(&self) -> Result<SessionId, ProposeError> {
        // A retry may open a second session; the unused one expires in time.
        let answer = self.ask(&LogCommand::OpenSession, true).await?;
        let index = crate::command::u64_at(&answer, 0).ok_or(ProposeError::OutcomeUnknown)?;
        Ok(SessionId(index))
    }

    async fn ask(&self, command: &LogCommand, repeatable: bool) -> Result<Bytes, ProposeError> {
        if let Some(reason) = self.inner.stopped() {
            return Err(ProposeError::Stopped(reason));
        }
        let request = Request::Propose(command.encode());
        self.inner.ask_leader(request, repeatable).await.map_err(|refusal| match refusal {
            RequestError::NotLeader | RequestError::Unreachable => ProposeError::NoLeader,
            RequestError::Lost => ProposeError::OutcomeUnknown,
            RequestError::Propose(error) => error,
        })
    }

    /// Waits until this replica has applied everything that was committed anywhere before the call, and
    /// returns the index. A [`Handle::read`] after it is linearizable.
    ///
    /// # Errors
    /// See [`LinearizableReadError`].
    pub async fn read_barrier(&self) -> Result<LogIndex, LinearizableReadError> {
        let deadline = Instant::now() + self.inner.request_timeout;
        let failed = |inner: &Inner| {
            inner.stopped().map_or(LinearizableReadError::NoLeader, LinearizableReadError::Stopped)
        };
        if self.inner.stopped().is_some() {
            return Err(failed(&self.inner));
        }
        // The leader makes a new token for every attempt, so a retry is always safe.
        let answer = self.inner.ask_leader(Request::Read, true).await.map_err(|refusal| match refusal {
            RequestError::Propose(ProposeError::Busy) => LinearizableReadError::Busy,
            _ => failed(&self.inner),
        })?;
        let index = crate::command::u64_at(&answer, 0).ok_or(LinearizableReadError::NoLeader)?;
        let index = LogIndex(index);
        let mut applied = self.inner.applied.clone();
        let reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await;
        reached.map_err(|_| LinearizableReadError::NoLeader)?.map_err(|_| failed(&self.inner))?;
        Ok(index)
    }

    /// Reads this replica's state, which may be stale. The closure must be short, because no command is
    /// applied while it runs, and must not call this function again.
    pub fn read<R>(&self, read: impl FnOnce(&M) -> R) -> R {
        read(&self.machine.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the status of this replica.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let mut status = self.inner.status.borrow().clone();
        status.applied = status.applied.max(*self.inner.applied.borrow());
        status
    }

    /// Bars these replicas from leading, and no others, until the next call. If this one is among them it
    /// leaves campaigns to the others and transfers its leadership; the others get none from it.
    pub fn bar(&self, replicas: BTreeSet<ReplicaId>) {
        self.inner.send(Event::Bar(replicas));
    }

    /// Returns a watch on the highest applied index.
    #[must_use]
    pub fn watch_applied(&self) -> watch::Receiver<LogIndex> {
        self.inner.applied.clone()
    }

    /// Returns the counters since the start of the replica.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.inner.counters.read()
    }

    /// Returns a watch on the status. It fires on changes of role, term and leader, on a full disk, and on a
    /// stop; the indices in it may lag.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.inner.status.clone()
    }
}
