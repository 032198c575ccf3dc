//! A network in memory: delivers at once, each message once, cuts links and loses answers on command.

use super::{Refusal, Request, Transport};
use crate::handle::Port;
use bytes::Bytes;
use futures::future::BoxFuture;
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A network that replicas of one process share. Clones are the same network.
#[derive(Clone, Default)]
pub struct SimulatedNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    ports: BTreeMap<u64, Arc<Port>>,
    cut: BTreeSet<(u64, u64)>,
    /// Answers to lose, by who asks.
    lost: BTreeMap<u64, usize>,
}

/// One replica's side of the network.
pub(crate) struct SimulatedTransport {
    id: u64,
    network: SimulatedNetwork,
}

impl SimulatedNetwork {
    /// A network without replicas.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts `replica` off from all others, or joins it again.
    pub fn set_isolated(&self, replica: u64, isolated: bool) {
        let mut state = self.lock();
        let others: Vec<u64> = state.ports.keys().copied().filter(|id| *id != replica).collect();
        for other in others {
            for link in [(replica, other), (other, replica)] {
                if isolated {
                    state.cut.insert(link);
                } else {
                    state.cut.remove(&link);
                }
            }
        }
    }

    /// Loses the answers to the next `count` proposals that `replica` forwards: they are done all the same.
    pub fn lose_answers(&self, replica: u64, count: usize) {
        self.lock().lost.insert(replica, count);
    }

    fn loses_answer(&self, replica: u64) -> bool {
        let mut state = self.lock();
        let left = state.lost.get_mut(&replica).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }

    pub(crate) fn transport(&self, id: u64) -> SimulatedTransport {
        SimulatedTransport { id, network: self.clone() }
    }

    pub(crate) fn join(&self, id: u64, port: Arc<Port>) {
        self.lock().ports.insert(id, port);
    }

    pub(crate) fn leave(&self, id: u64) {
        self.lock().ports.remove(&id);
    }

    fn port(&self, from: u64, to: u64) -> Option<Arc<Port>> {
        let state = self.lock();
        let open = !state.cut.contains(&(from, to)) && !state.cut.contains(&(to, from));
        state.ports.get(&to).filter(|_| open).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for SimulatedTransport {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let (to, kind) = (message.to, message.get_msg_type());
            let target = self.network.port(self.id, to);
            let own = self.network.port(self.id, self.id);
            let arrived = target.is_some();
            if let Some(port) = target {
                port.deliver(message);
            }
            match own {
                Some(own) if kind == MessageType::MsgSnapshot => own.snapshot_sent(to, arrived),
                Some(own) if !arrived => own.unreachable(to),
                _ => {}
            }
        }
    }

    fn forward(&self, leader: u64, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let target = self.network.port(self.id, leader);
        let (network, id) = (self.network.clone(), self.id);
        let proposes = matches!(request, Request::Propose(_));
        Box::pin(async move {
            let answer = target.ok_or(Refusal::Unreachable)?.answer(request).await;
            if proposes && network.loses_answer(id) { Err(Refusal::Lost) } else { answer }
        })
    }
}
