//! Connection to one worker over its unix socket. The worker sends its key and state. The agent sends
//! connections to every admitted gateway, and fresh tickets for them.
//!
//! Messages from a worker are data from untrusted code: it can claim a state and a key, nothing more. A
//! ticket for a false key is useless, since the gateway checks the key in its handshake.

use super::backoff::ExponentialBackoff;
use super::core::SlotKey;
use super::node::Node;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use overlay::PublicKey;
use overlay::descriptors::{FrameError, FrameReceiver, FrameSender, channel};
use protocol::Fence;
use protocol::manifest::ServiceManifest;
use protocol::order::SignedTicket;
use protocol::worker::{FromWorker, ToWorker, WorkerState};
use sandbox::InputPacer;
use sandbox::Running;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// Longest wait for a worker's hello; then it does not count as a worker.
const HELLO_LIMIT: Duration = Duration::from_secs(20);
/// Longest TCP connect to a gateway.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// Backoff between attempts to reach a gateway.
const DIAL_BACKOFF: ExponentialBackoff =
    ExponentialBackoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };
/// Lifetime after which a connection counts as good and its backoff is reset.
const HEALTHY_CONNECTION: Duration = Duration::from_secs(10);
/// Pause before reconnecting to the worker.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Frames accepted from a worker per second. A worker needs to send one when its state changes or a gateway
/// disconnects. The excess waits in the socket.
const FRAMES_PER_SECOND: u32 = 20;
/// Burst of frames: connections to all gateways may be lost at the same time.
const FRAMES_BURST: u32 = 128;

/// State that a worker reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkerStatus {
    pub(super) state: WorkerState,
    pub(super) detail: String,
}

/// The slot that the connection belongs to.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) node: &'a Node,
    pub(super) key: &'a SlotKey,
    pub(super) fence: Fence,
    /// Manifest of the slot's service, which bounds its lease.
    pub(super) service: &'a ServiceManifest,
}

/// Serves the connection for as long as it is polled. `status` receives the worker's state; `drain` becomes
/// true when the worker must drain.
pub(super) async fn talk(
    about: About<'_>,
    running: &dyn Running,
    status: &watch::Sender<Option<WorkerStatus>>,
    mut drain: watch::Receiver<bool>,
) {
    loop {
        if let Err(error) = converse(about, running, status, &mut drain).await {
            tracing::debug!(slot = %about.key, %error, "lost the connection to the worker");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn converse(
    about: About<'_>,
    running: &dyn Running,
    status: &watch::Sender<Option<WorkerStatus>>,
    drain: &mut watch::Receiver<bool>,
) -> Result<(), FrameError> {
    let (mut sender, mut receiver) = channel(running.connect_worker()?);
    sender.send(&ToWorker::Hello, &[]).await?;
    let hello = tokio::time::timeout(HELLO_LIMIT, receiver.receive::<FromWorker>()).await;
    let hello = hello.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let Some((FromWorker::Hello { worker, state }, _)) = hello else {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    };
    status.send_replace(Some(WorkerStatus { state, detail: String::new() }));
    let limiter = InputPacer::new(FRAMES_PER_SECOND, FRAMES_BURST);
    let talk = Talk { about, worker, links: BTreeMap::new(), dials: FuturesUnordered::new(), limiter };
    talk.run(&mut sender, &mut receiver, status, drain).await
}

/// State of this worker's connection to one gateway.
#[derive(Debug)]
struct GatewayLink {
    address: String,
    state: LinkState,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// Next dial, at this time.
    Waiting(Instant),
    Dialling,
    /// Connection passed to the worker at this time.
    Connected(Instant),
}

type PendingDial = Pin<Box<dyn Future<Output = (PublicKey, io::Result<TcpStream>)> + Send>>;

struct Talk<'a> {
    about: About<'a>,
    worker: PublicKey,
    links: BTreeMap<PublicKey, GatewayLink>,
    dials: FuturesUnordered<PendingDial>,
    limiter: InputPacer,
}

impl Talk<'_> {
    async fn run(
        mut self,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
        status: &watch::Sender<Option<WorkerStatus>>,
        drain: &mut watch::Receiver<bool>,
    ) -> Result<(), FrameError> {
        let node = self.about.node;
        let mut leases = node.lease.subscribe();
        let mut circles = node.circle.subscribe();
        let mut drain_sent = false;
        loop {
            if *drain.borrow_and_update() && !drain_sent {
                drain_sent = true;
                sender.send(&ToWorker::Drain, &[]).await?;
            }
            self.follow_roster();
            self.dial_due();
            let next_dial = self.next_dial();
            tokio::select! {
                // The worker comes last: one that never stops sending delays nothing.
                biased;
                Some((gateway, dialled)) = self.dials.next(), if !self.dials.is_empty() => {
                    self.hand_over(sender, gateway, dialled).await?;
                }
                Ok(()) = leases.changed() => self.renew_tickets(sender).await?,
                Ok(()) = circles.changed() => {}
                Ok(()) = drain.changed() => {}
                () = sleep_until(next_dial) => {}
                frame = next_frame(&self.limiter, receiver) => match frame? {
                    None => return Ok(()),
                    Some((message, _)) => {
                        self.limiter.take(1);
                        self.receive(message, status);
                    }
                },
            }
        }
    }

    fn receive(&mut self, message: FromWorker, status: &watch::Sender<Option<WorkerStatus>>) {
        match message {
            FromWorker::State { state, detail } => {
                status.send_replace(Some(WorkerStatus { state, detail }));
            }
            FromWorker::Disconnected { gateway } => {
                if let Some(link) = self.links.get_mut(&gateway) {
                    let was_healthy =
                        matches!(link.state, LinkState::Connected(at) if at.elapsed() > HEALTHY_CONNECTION);
                    link.failures = if was_healthy { 1 } else { link.failures.saturating_add(1) };
                    link.state = LinkState::Waiting(Instant::now() + DIAL_BACKOFF.pause(link.failures));
                }
            }
            FromWorker::Hello { .. } => {}
        }
    }

    /// Adds and removes gateways as the circle's decisions require.
    fn follow_roster(&mut self) {
        let roster = self.about.node.gateways();
        self.links.retain(|gateway, link| roster.get(gateway) == Some(&link.address));
        for (gateway, address) in roster {
            let state = LinkState::Waiting(Instant::now());
            self.links.entry(gateway).or_insert(GatewayLink { address, state, failures: 0 });
        }
    }

    /// Dials the gateways that are due. Without a lease there is no ticket to present.
    fn dial_due(&mut self) {
        let About { node, service, .. } = self.about;
        if !node.lease.borrow().holds(service, &node.clock) {
            return;
        }
        let now = Instant::now();
        for (gateway, link) in &mut self.links {
            if matches!(link.state, LinkState::Waiting(at) if at <= now) {
                link.state = LinkState::Dialling;
                let (gateway, address) = (*gateway, link.address.clone());
                self.dials.push(Box::pin(async move { (gateway, dial(&address).await) }));
            }
        }
    }

    fn next_dial(&self) -> Option<Instant> {
        let waiting = self.links.values().filter_map(|link| match link.state {
            LinkState::Waiting(at) => Some(at),
            _ => None,
        });
        // An expired lease leaves dials overdue: the renewal wakes this loop, not the timer.
        waiting.min().filter(|at| *at > Instant::now())
    }

    async fn hand_over(
        &mut self,
        sender: &mut FrameSender,
        gateway: PublicKey,
        dialled: io::Result<TcpStream>,
    ) -> Result<(), FrameError> {
        let ticket = self.ticket(gateway);
        let Some(link) = self.links.get_mut(&gateway) else { return Ok(()) };
        match dialled {
            Ok(tcp) => {
                sender.send(&ToWorker::Connection { gateway, ticket }, &[tcp.as_fd()]).await?;
                link.state = LinkState::Connected(Instant::now());
            }
            Err(error) => {
                tracing::debug!(slot = %self.about.key, address = link.address, %error, "dial the gateway");
                link.failures = link.failures.saturating_add(1);
                link.state = LinkState::Waiting(Instant::now() + DIAL_BACKOFF.pause(link.failures));
            }
        }
        Ok(())
    }

    fn ticket(&self, gateway: PublicKey) -> SignedTicket {
        let About { node, key, fence, service } = self.about;
        node.ticket((key, fence, service), self.worker, gateway)
    }

    async fn renew_tickets(&mut self, sender: &mut FrameSender) -> Result<(), FrameError> {
        for (gateway, link) in &self.links {
            if matches!(link.state, LinkState::Connected(_)) {
                let ticket = self.ticket(*gateway);
                sender.send(&ToWorker::Ticket(ticket), &[]).await?;
            }
        }
        Ok(())
    }
}

/// Returns the worker's next message, as fast as the rate limit allows.
async fn next_frame(
    limiter: &InputPacer,
    receiver: &mut FrameReceiver,
) -> Result<Option<(FromWorker, Vec<OwnedFd>)>, FrameError> {
    limiter.ready().await;
    receiver.receive().await
}

async fn dial(address: &str) -> io::Result<TcpStream> {
    let tcp = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(address)).await;
    let tcp = tcp.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // The agent sets it, because the worker's filter denies setsockopt.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
