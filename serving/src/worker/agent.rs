//! A worker's protocol with its agent, over the unix socket that it inherited. A restarted agent connects
//! again; the worker reports its state to each agent and accepts connections and tickets from any.

use super::inherited::serving_limits;
use super::outstanding::OutstandingCount;
use super::{Tickets, WorkerService};
use bytes::Bytes;
use overlay::descriptors::{FrameError, FrameSender};
use overlay::{CancellationToken, Identity, PublicKey, reverse_serve};
use protocol::canonical;
use protocol::order::SignedTicket;
use protocol::worker::{FromWorker, ToWorker, WorkerState};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::broadcast;

/// Pause after a failed accept: long enough not to spin when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Disconnections kept for a slow agent: more gateways than any cluster has. An agent that misses one learns
/// of it at its next connection attempt.
const DISCONNECTIONS_KEPT: usize = 64;

/// State shared by all conversations.
#[derive(Debug, Clone)]
pub(super) struct SandboxedWorker {
    identity: Identity,
    service: Arc<WorkerService>,
    tickets: Tickets,
    disconnected: broadcast::Sender<PublicKey>,
    exit: WorkerExit,
}

/// The end of a worker's connections: cancelled when it has nothing more to say, and the count of those that
/// still send it.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerExit {
    pub(super) closing: CancellationToken,
    pub(super) connections: OutstandingCount,
}

impl SandboxedWorker {
    pub(super) fn new(identity: Identity, service: Arc<WorkerService>, exit: WorkerExit) -> Self {
        let disconnected = broadcast::Sender::new(DISCONNECTIONS_KEPT);
        Self { identity, service, tickets: Tickets::default(), disconnected, exit }
    }
}

/// Serves agents indefinitely.
pub(super) async fn serve_agent(listener: UnixListener, worker: SandboxedWorker) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, worker.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an agent failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, worker: SandboxedWorker) {
    if let Err(error) = exchange_frames(stream, &worker).await {
        tracing::warn!(%error, "agent connection ended");
    }
}

async fn exchange_frames(stream: UnixStream, worker: &SandboxedWorker) -> Result<(), FrameError> {
    let (mut sender, mut receiver) = overlay::descriptors::channel(stream);
    let mut states = worker.service.states();
    let mut disconnected = worker.disconnected.subscribe();
    loop {
        tokio::select! {
            frame = receiver.receive::<ToWorker>() => match frame? {
                None => return Ok(()),
                Some((ToWorker::Hello, _)) => {
                    let state = states.borrow().0;
                    let hello = FromWorker::Hello { worker: worker.identity.public_key(), state };
                    sender.send(&hello, &[]).await?;
                    // The cause of a failure does not fit into the greeting.
                    if state == WorkerState::Failed {
                        let failure = states.borrow_and_update().clone();
                        send_state(&mut sender, &failure).await?;
                    }
                }
                Some((message, descriptors)) => worker.handle(message, descriptors),
            },
            Ok(()) = states.changed() => {
                let state = states.borrow_and_update().clone();
                send_state(&mut sender, &state).await?;
            }
            Ok(gateway) = disconnected.recv() => {
                sender.send(&FromWorker::Disconnected { gateway }, &[]).await?;
            }
        }
    }
}

async fn send_state(sender: &mut FrameSender, state: &(WorkerState, String)) -> Result<(), FrameError> {
    let (state, detail) = state.clone();
    sender.send(&FromWorker::State { state, detail }, &[]).await
}

impl SandboxedWorker {
    fn handle(&self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::Hello => {}
            ToWorker::Ticket(ticket) => self.tickets.put(ticket),
            ToWorker::Drain => self.service.drain(),
            ToWorker::Connection { gateway, ticket } => match <[OwnedFd; 1]>::try_from(descriptors) {
                Ok([descriptor]) => {
                    tokio::spawn(self.clone().serve_gateway(gateway, ticket, descriptor));
                }
                Err(wrong) => tracing::warn!(count = wrong.len(), "a connection needs one descriptor"),
            },
        }
    }

    async fn serve_gateway(self, gateway: PublicKey, ticket: SignedTicket, descriptor: OwnedFd) {
        self.tickets.put(ticket.clone());
        let tcp = std::net::TcpStream::from(descriptor);
        let tcp = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp));
        match tcp {
            Ok(tcp) => self.serve_stream(gateway, &ticket, tcp).await,
            Err(error) => tracing::warn!(%error, "descriptor is not a connection"),
        }
        // No agent may be connected; the next one finds the connection gone when it queries the gateway's
        // key.
        let _ = self.disconnected.send(gateway);
    }

    async fn serve_stream(&self, gateway: PublicKey, ticket: &SignedTicket, tcp: TcpStream) {
        let preface = Bytes::from(canonical::to_bytes(ticket));
        let router = self.tickets.router(self.service.clone());
        let closing = self.exit.closing.clone();
        let _open = self.exit.connections.begin();
        tracing::info!(gateway = gateway.short(), "serving a gateway");
        let served =
            reverse_serve(tcp, &self.identity, gateway, preface, serving_limits(), router, closing).await;
        match served {
            Ok(()) => tracing::info!(gateway = gateway.short(), "gateway disconnected"),
            Err(error) => tracing::warn!(gateway = gateway.short(), %error, "gateway connection failed"),
        }
    }
}
