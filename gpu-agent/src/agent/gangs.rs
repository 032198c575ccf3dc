//! Gangs on this node: the packets of their ranks, between slots of this node and over links to other nodes.
//!
//! ```text
//! rank -> gang device -> switch -> gang device of another slot here
//!                               -> link -> (overlay) -> link of the peer -> its switch -> its gang device
//! ```
//!
//! A gang is known here from the moment at which a slot of it is prepared until its last slot here has ended,
//! and only by orders that this node verified. Its members do not change in between: of two orders for one
//! rank, the first stands. Everything that is no packet between two of its ranks is dropped and counted.

mod accept;
mod link;
mod meeting;
mod path;
mod queue;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

pub(super) use accept::stream_handler;

use super::core::{GangOrders, Refusal};
use host::random::random_bytes;
use human_chain::CircleState;
use link::{BURST, GangLink, LinkEnd, read_message, write_message};
use meeting::Meetings;
use overlay::{
    Address, Connection, Identity, Limits, PeerPolicy, Stream, accept_inside, connect_inside, dial_stream,
};
use path::{LinkPath, link_path};
use protocol::gang::{
    GANG_ANSWER_BYTES_MAX, GANG_LINK_VERSION, GANG_LINKS_MAX, GANG_PACKET_BYTES_MAX, GangAnswer, GangHello,
    GangMeeting,
};
use protocol::{NodeId, SlotIndex, error_code};
use queue::{ALL_LINKS_BYTES_MAX, QueueBudget};
use sandbox::{AttachRefusal, GangId, PacketDevice, PacketSwitch, PortCounters, PortKind, SwitchPort};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Longest wait for the links of a slot that is prepared. The other nodes of a gang get their orders within
/// seconds; the fetch of an artifact is not part of it.
const LINK_PATIENCE: Duration = Duration::from_secs(60);
/// Time for which the dialling side of a meeting waits at each node, and the answering side: the first visits
/// every node while the second waits at one.
const MEETING_WAITS: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// Counters of the packets of all gangs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GangCounters {
    /// Packets that passed the switch.
    pub(super) packets: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Dropped packets by reason.
    pub(super) dropped: BTreeMap<&'static str, u64>,
    /// Links of other nodes that were refused.
    pub(super) links_refused: u64,
}

impl GangCounters {
    fn add(&mut self, port: &PortCounters) {
        self.packets += port.packets;
        self.bytes += port.bytes;
        for (reason, count) in &port.dropped {
            *self.dropped.entry(reason.label()).or_default() += count;
        }
    }
}

/// Gangs of this node.
pub(super) struct Gangs {
    identity: Identity,
    circle: watch::Receiver<Arc<CircleState>>,
    limits: Limits,
    budget: Arc<QueueBudget>,
    state: Mutex<GangsState>,
    meetings: Meetings<Stream>,
    places: accept::StreamPlaces,
}

#[derive(Debug, Default)]
struct GangsState {
    switch: PacketSwitch,
    sinks: BTreeMap<SwitchPort, PacketSink>,
    gangs: BTreeMap<GangId, KnownGang>,
    ports: u32,
    counters: GangCounters,
}

/// Where the switch's packets of a port go.
#[derive(Debug, Clone)]
enum PacketSink {
    Device(Arc<PacketDevice>),
    Link(Arc<GangLink>),
}

/// A gang of which this node holds a slot.
#[derive(Debug)]
struct KnownGang {
    orders: Arc<GangOrders>,
    /// Slots of this node that are prepared or run.
    slots: BTreeSet<SlotIndex>,
    links: BTreeMap<NodeId, Arc<GangLink>>,
    /// Tasks that keep the links; they end with the gang.
    _tasks: JoinSet<()>,
}

impl GangsState {
    fn port(&mut self) -> SwitchPort {
        self.ports = self.ports.wrapping_add(1);
        SwitchPort(self.ports)
    }

    fn detach(&mut self, port: SwitchPort) {
        self.sinks.remove(&port);
        if let Some(counters) = self.switch.detach(port) {
            self.counters.add(&counters);
        }
    }

    fn links(&self) -> usize {
        self.gangs.values().map(|gang| gang.links.len()).sum()
    }
}

impl Gangs {
    pub(super) fn new(identity: Identity, circle: watch::Receiver<Arc<CircleState>>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            circle,
            limits: Limits::default(),
            budget: QueueBudget::new(ALL_LINKS_BYTES_MAX),
            state: Mutex::default(),
            meetings: Meetings::default(),
            places: accept::StreamPlaces::default(),
        })
    }

    fn id(&self) -> NodeId {
        NodeId(self.identity.public_key())
    }

    fn lock(&self) -> MutexGuard<'_, GangsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counters of all gangs since the agent started.
    pub(super) fn counters(&self) -> GangCounters {
        let state = self.lock();
        let mut counters = state.counters.clone();
        state
            .sinks
            .keys()
            .filter_map(|port| state.switch.counters(*port))
            .for_each(|port| counters.add(port));
        counters
    }

    /// Enters a slot of this node into its gang, and begins to make the gang's links. They last until the
    /// last membership of the gang is dropped.
    ///
    /// # Errors
    /// Nodes that cannot meet; more links than a node has; a gang of which another slot here has other
    /// members.
    pub(super) fn join(self: &Arc<Self>, orders: &Arc<GangOrders>) -> Result<GangMembership, Refusal> {
        let (members, slot) = (&orders.members, orders.own.order.slot);
        let gang = GangId { job: members.id, attempt: members.attempt };
        let mut state = self.lock();
        match state.gangs.get_mut(&gang) {
            Some(known) if known.orders.members == *members && !known.slots.contains(&slot) => {
                known.slots.insert(slot);
            }
            Some(_) => {
                let message = "this node holds the attempt already, with other members or in the same slot";
                return Err(Refusal::new(error_code::ORDER_MISMATCH, message));
            }
            None => {
                let known = self.know(&mut state, gang, orders)?;
                state.gangs.insert(gang, known);
            }
        }
        Ok(GangMembership { gangs: self.clone(), gang, orders: orders.clone() })
    }

    /// Makes the links of a gang.
    fn know(
        self: &Arc<Self>,
        state: &mut GangsState,
        gang: GangId,
        orders: &Arc<GangOrders>,
    ) -> Result<KnownGang, Refusal> {
        let peers = orders.members.peers_of(self.id());
        let unavailable = |message: String| Refusal::new(error_code::GANG_NETWORK_UNAVAILABLE, message);
        if state.links() + peers.len() > GANG_LINKS_MAX {
            let message = format!("{} more nodes; a node has at most {GANG_LINKS_MAX} links", peers.len());
            return Err(unavailable(message));
        }
        let circle = self.circle.borrow().clone();
        for peer in &peers {
            link_path(&circle, gang, self.id(), *peer)?;
        }
        let (mut links, mut tasks) = (BTreeMap::new(), JoinSet::new());
        for peer in peers {
            let port = state.port();
            let attached = state.switch.attach(port, PortKind::Link, gang, &orders.addresses_of(peer));
            if let Err(refusal) = attached {
                links.values().for_each(|link: &Arc<GangLink>| state.detach(link.port));
                return Err(unavailable(refusal.to_string()));
            }
            let link = Arc::new(GangLink::new(peer, port, self.budget.clone()));
            state.sinks.insert(port, PacketSink::Link(link.clone()));
            tasks.spawn(self.clone().keep(gang, orders.clone(), link.clone()));
            links.insert(peer, link);
        }
        let slots = BTreeSet::from([orders.own.order.slot]);
        Ok(KnownGang { orders: orders.clone(), slots, links, _tasks: tasks })
    }

    fn leave(&self, gang: GangId, slot: SlotIndex) {
        let mut state = self.lock();
        let Some(known) = state.gangs.get_mut(&gang) else { return };
        known.slots.remove(&slot);
        if !known.slots.is_empty() {
            return;
        }
        if let Some(known) = state.gangs.remove(&gang) {
            for link in known.links.values() {
                link.leave();
                state.detach(link.port);
            }
        }
    }

    /// Returns the link to a node for a gang of which this node holds a slot.
    fn link(&self, gang: GangId, peer: NodeId) -> Option<Arc<GangLink>> {
        self.lock().gangs.get(&gang)?.links.get(&peer).cloned()
    }

    /// Moves a packet that came from a port to the port of its destination, or drops and counts it.
    fn forward(&self, from: SwitchPort, packet: &[u8]) {
        let mut state = self.lock();
        let Ok(to) = state.switch.forward(from, packet) else { return };
        let sink = state.sinks.get(&to).cloned();
        drop(state);
        let dropped = match sink {
            Some(PacketSink::Device(device)) => (!device.write(packet)).then_some("device-full"),
            Some(PacketSink::Link(link)) => link.queue.push(packet).err().map(queue::LinkDrop::label),
            None => Some("unknown-port"),
        };
        if let Some(reason) = dropped {
            *self.lock().counters.dropped.entry(reason).or_default() += 1;
        }
    }

    /// Keeps a link: dials again whenever its stream has ended.
    async fn keep(self: Arc<Self>, gang: GangId, orders: Arc<GangOrders>, link: Arc<GangLink>) {
        let (mut circle, mut failures, mut tries) = (self.circle.clone(), 0_u32, 0_usize);
        loop {
            let path = link_path(&circle.borrow_and_update().clone(), gang, self.id(), link.peer);
            let outcome = match path {
                Ok(LinkPath::Dial(address)) => self.dial(gang, &address, &link).await,
                Ok(LinkPath::Meet { at, dials }) => {
                    let (node, address) = &at[tries % at.len()];
                    self.meet(gang, &orders, (*node, address), dials, &link).await
                }
                Ok(LinkPath::Answer) => {
                    if circle.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(refusal) => Err(refusal),
            };
            tries = tries.wrapping_add(1);
            match outcome {
                Ok(end) => {
                    tracing::info!(peer = %link.peer, %end, "a link of a gang ended");
                    failures = 1;
                }
                Err(refusal) => {
                    link.note(refusal.to_string());
                    failures = failures.saturating_add(1);
                }
            }
            let jitter = u32::from_ne_bytes(random_bytes());
            tokio::time::sleep(self.limits.backoff.delay(failures, jitter)).await;
        }
    }

    /// Dials the peer, and carries packets until the stream ends.
    async fn dial(&self, gang: GangId, address: &Address, link: &GangLink) -> Result<LinkEnd, Refusal> {
        let dialled = dial_stream(&self.identity, address, link.peer.0, &self.limits).await;
        let mut connection = dialled.map_err(|error| Refusal::of(error.code(), &error))?;
        self.ask(&mut connection.stream, gang, None, self.limits.handshake).await?;
        Ok(self.carry(connection.stream, link).await)
    }

    /// Dials a third node, meets the peer there, and carries packets until the stream ends.
    async fn meet(
        &self,
        gang: GangId,
        orders: &GangOrders,
        (node, address): (NodeId, &Address),
        dials: bool,
        link: &GangLink,
    ) -> Result<LinkEnd, Refusal> {
        let dialled = dial_stream(&self.identity, address, node.0, &self.limits).await;
        let mut carrier = dialled.map_err(|error| Refusal::of(error.code(), &error))?.stream;
        let peer = orders.peers.iter().find(|signed| signed.order.node == link.peer);
        let unknown = || Refusal::new(error_code::ORDER_MISMATCH, "the peer has no order in this gang");
        let meeting = GangMeeting { own: orders.own.clone(), peer: peer.ok_or_else(unknown)?.clone() };
        let wait = if dials { MEETING_WAITS.0 } else { MEETING_WAITS.1 };
        self.ask(&mut carrier, gang, Some(meeting), wait).await?;
        let inside = if dials {
            connect_inside(carrier, &self.identity, link.peer.0, &self.limits).await
        } else {
            let policy = PeerPolicy::only([link.peer.0]);
            accept_inside(carrier, &self.identity, &policy, &self.limits).await
        };
        let Connection { stream, .. } = inside.map_err(|error| Refusal::of(error.code(), &error))?;
        Ok(self.carry(stream, link).await)
    }

    /// Sends a hello, and waits for its acceptance.
    async fn ask(
        &self,
        stream: &mut Stream,
        gang: GangId,
        meeting: Option<GangMeeting>,
        wait: Duration,
    ) -> Result<(), Refusal> {
        let lost = |error: &dyn std::error::Error| Refusal::of(error_code::PEER_LOST, error);
        let circle = self.circle.borrow().id();
        let GangId { job, attempt } = gang;
        let hello = GangHello { version: GANG_LINK_VERSION, circle, job, attempt, meeting };
        let exchange = async {
            write_message(stream, &hello).await?;
            read_message::<GangAnswer>(stream, GANG_ANSWER_BYTES_MAX).await
        };
        let answer = tokio::time::timeout(wait, exchange).await.map_err(|error| lost(&error))?;
        answer.map_err(|error| lost(&error))?.refusal.map_or(Ok(()), Err)
    }

    /// Carries the packets of a link over a stream whose peer has proven its key.
    async fn carry<S: AsyncRead + AsyncWrite>(&self, stream: S, link: &GangLink) -> LinkEnd {
        let (mut circle, peer) = (self.circle.clone(), link.peer);
        let removed = async move {
            // If the sender is gone, so is the agent.
            let _ = circle.wait_for(|state| state.node_by_id(peer).is_none()).await;
        };
        tracing::info!(%peer, "a link of a gang is up");
        let end = link.carry(stream, |packet| self.forward(link.port, packet), removed).await;
        if let LinkEnd::Oversized(_) = end {
            *self.lock().counters.dropped.entry("oversized").or_default() += 1;
        }
        end
    }
}

/// A slot of this node in its gang, until it is dropped.
pub(super) struct GangMembership {
    gangs: Arc<Gangs>,
    gang: GangId,
    orders: Arc<GangOrders>,
}

impl GangMembership {
    /// Waits until every link of the gang is up.
    ///
    /// # Errors
    /// [`error_code::GANG_LINK_DOWN`], with the node that was not reached in time and the last cause.
    pub(super) async fn linked(&self) -> Result<(), Refusal> {
        let links: Vec<Arc<GangLink>> = {
            let state = self.gangs.lock();
            state.gangs.get(&self.gang).map_or_else(Vec::new, |known| known.links.values().cloned().collect())
        };
        let until = tokio::time::Instant::now() + LINK_PATIENCE;
        for link in links {
            let mut status = link.subscribe();
            let up = tokio::time::timeout_at(until, status.wait_for(|status| status.is_up)).await;
            if !matches!(up, Ok(Ok(_))) {
                let cause = link.subscribe().borrow().trouble.clone();
                return Err(self.unreached(link.peer, &cause));
            }
        }
        Ok(())
    }

    fn unreached(&self, peer: NodeId, cause: &str) -> Refusal {
        let circle = self.gangs.circle.borrow();
        let name = circle.node_by_id(peer).map_or_else(|| peer.to_string(), |node| node.name.to_string());
        let cause = if cause.is_empty() { "it has not dialled this node" } else { cause };
        let message = format!("no link to node `{name}` within {} s: {cause}", LINK_PATIENCE.as_secs());
        Refusal::new(error_code::GANG_LINK_DOWN, message)
    }

    /// Attaches the device of the slot's sandbox. The future moves its packets until it ends; dropping the
    /// future detaches the device.
    ///
    /// # Errors
    /// The error of the runtime's reactor; a slot whose device is attached already.
    pub(super) fn attach(&self, device: OwnedFd) -> io::Result<impl Future<Output = ()> + use<>> {
        let device = Arc::new(PacketDevice::new(device)?);
        let gangs = self.gangs.clone();
        let mut state = gangs.lock();
        let (port, own) = (state.port(), self.orders.own.order.ranks.first);
        let address = super::core::slot_address(own);
        let attached = state.switch.attach(port, PortKind::Device, self.gang, &[address]);
        attached.map_err(|refusal: AttachRefusal| io::Error::other(refusal))?;
        state.sinks.insert(port, PacketSink::Device(device.clone()));
        drop(state);
        let attached = AttachedDevice { gangs, port };
        Ok(async move { attached.pump(&device).await })
    }
}

impl Drop for GangMembership {
    fn drop(&mut self) {
        self.gangs.leave(self.gang, self.orders.own.order.slot);
    }
}

/// A device that is attached to the switch, until it is dropped.
struct AttachedDevice {
    gangs: Arc<Gangs>,
    port: SwitchPort,
}

impl AttachedDevice {
    async fn pump(&self, device: &PacketDevice) {
        let mut packet = vec![0; GANG_PACKET_BYTES_MAX + 1];
        for moved in 1_u32.. {
            match device.read(&mut packet).await {
                Ok(0) | Err(_) => return,
                Ok(length) => self.gangs.forward(self.port, &packet[..length]),
            }
            if moved.is_multiple_of(BURST) {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for AttachedDevice {
    fn drop(&mut self) {
        self.gangs.lock().detach(self.port);
    }
}
