//! Simulated network: delivers each message once, immediately or after a delay.
//!
//! On command it cuts replicas off and loses answers.

use super::{Request, RequestError, Transport};
use crate::handle::Inner;
use bytes::Bytes;
use futures::future::BoxFuture;
use protocol::ReplicaId;
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Network shared by the replicas of one process. Clones are the same network.
#[derive(Clone, Default)]
pub struct SimulatedNetwork {
    state: Arc<Mutex<NetworkState>>,
    /// Replicas that are cut off from all others.
    isolated: Arc<watch::Sender<BTreeSet<ReplicaId>>>,
}

#[derive(Default)]
struct NetworkState {
    replicas: BTreeMap<ReplicaId, Arc<Inner>>,
    /// Replicas that receive no messages, so that they apply nothing.
    deaf: BTreeSet<ReplicaId>,
    /// Number of answers to lose, by the replica that forwarded the proposal.
    lost: BTreeMap<ReplicaId, usize>,
    delay: Duration,
}

/// Transport of one replica on the simulated network.
pub(crate) struct SimulatedTransport {
    id: ReplicaId,
    network: SimulatedNetwork,
}

impl SimulatedNetwork {
    /// Creates a network without replicas.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts `replica` off from all others, or reconnects it. Messages sent while it is cut off are lost. The
    /// answer to a request that had already arrived is delivered after the reconnection.
    pub fn set_isolated(&self, replica: ReplicaId, isolated: bool) {
        self.isolated.send_if_modified(
            |cut| {
                if isolated { cut.insert(replica) } else { cut.remove(&replica) }
            },
        );
    }

    /// Drops all messages to `replica`, or lets them pass again. Its requests to the leader are still
    /// answered.
    pub fn set_deaf(&self, replica: ReplicaId, deaf: bool) {
        let mut state = self.lock();
        if deaf {
            state.deaf.insert(replica)
        } else {
            state.deaf.remove(&replica)
        };
    }

    /// Loses the answers to the next `count` proposals that `replica` forwards. The proposals still take
    /// effect.
    pub fn lose_answers(&self, replica: ReplicaId, count: usize) {
        self.lock().lost.insert(replica, count);
    }

    /// Sets the delay of everything that one replica sends to another.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Waits for the delay between two replicas. There is none from a replica to itself.
    async fn travel(&self, from: ReplicaId, to: ReplicaId) {
        let delay = self.lock().delay;
        if from != to && !delay.is_zero() {
            sleep(delay).await;
        }
    }

    /// Delivers a message if its replica is reachable, and reports the outcome to the sender.
    fn deliver(&self, from: ReplicaId, message: Message) {
        let (to, kind) = (ReplicaId(message.to), message.get_msg_type());
        let target = self.reach(from, to).filter(|_| !self.lock().deaf.contains(&to));
        let own = self.reach(from, from);
        let arrived = target.is_some();
        if let Some(inner) = target {
            inner.deliver(message);
        }
        match own {
            Some(own) if kind == MessageType::MsgSnapshot => own.snapshot_sent(to, arrived),
            Some(own) if !arrived => own.unreachable(to),
            _ => {}
        }
    }

    fn loses_answer(&self, replica: ReplicaId) -> bool {
        let mut state = self.lock();
        let left = state.lost.get_mut(&replica).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }

    pub(crate) fn transport(&self, id: ReplicaId) -> SimulatedTransport {
        SimulatedTransport { id, network: self.clone() }
    }

    pub(crate) fn join(&self, id: ReplicaId, inner: Arc<Inner>) {
        self.lock().replicas.insert(id, inner);
    }

    pub(crate) fn leave(&self, id: ReplicaId) {
        self.lock().replicas.remove(&id);
    }

    /// Returns the replica `to`, if it runs and `from` can reach it.
    fn reach(&self, from: ReplicaId, to: ReplicaId) -> Option<Arc<Inner>> {
        let open = is_open(&self.isolated.borrow(), from, to);
        self.lock().replicas.get(&to).filter(|_| open).cloned()
    }

    /// Waits until the link between two replicas is not cut.
    async fn opened(&self, from: ReplicaId, to: ReplicaId) {
        let mut isolated = self.isolated.subscribe();
        // The wait cannot fail, because the network owns the sender.
        let _ = isolated.wait_for(|isolated| is_open(isolated, from, to)).await;
    }

    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the link between two replicas is open. A replica always reaches itself.
fn is_open(isolated: &BTreeSet<ReplicaId>, from: ReplicaId, to: ReplicaId) -> bool {
    from == to || !(isolated.contains(&from) || isolated.contains(&to))
}

impl Transport for SimulatedTransport {
    fn send(&self, messages: Vec<Message>) {
        let (network, id) = (self.network.clone(), self.id);
        // All of them go to other replicas, with the same delay.
        let delay = network.lock().delay;
        if delay.is_zero() {
            return messages.into_iter().for_each(|message| network.deliver(id, message));
        }
        tokio::spawn(async move {
            sleep(delay).await;
            messages.into_iter().for_each(|message| network.deliver(id, message));
        });
    }

    fn forward(
        &self,
        leader: ReplicaId,
        request: Request,
    ) -> BoxFuture<'static, Result<Bytes, RequestError>> {
        let (network, id) = (self.network.clone(), self.id);
        let proposes = matches!(request, Request::Propose(_));
        Box::pin(async move {
            network.travel(id, leader).await;
            let answer = network.reach(id, leader).ok_or(RequestError::Unreachable)?.answer(request).await;
            network.travel(leader, id).await;
            network.opened(id, leader).await;
            if proposes && network.loses_answer(id) { Err(RequestError::Lost) } else { answer }
        })
    }
}
