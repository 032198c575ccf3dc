//! The worker in a simulated sandbox: it speaks the protocol of a real one and computes nothing.

use super::{Behaviour, lock};
use host::Clock;
use overlay::descriptors::{FrameError, FrameSender, channel};
use protocol::order::SignedTicket;
use protocol::worker::{FromWorker, ToWorker, WorkerMetrics, WorkerState};
use protocol::{Digest, PublicKey};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Interval at which it polls for its weights.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(10);
/// Interval between two metrics lines, as for a real one.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// A worker, shared by its connections.
#[derive(Debug)]
pub(super) struct SimulatedWorker {
    key: PublicKey,
    clock: Clock,
    state: watch::Sender<SimulatedState>,
    output: Mutex<Vec<u8>>,
    tickets: Mutex<Vec<SignedTicket>>,
    /// Connections to gateways, kept open.
    gateways: Mutex<BTreeMap<PublicKey, OwnedFd>>,
}

/// Mutable state of a worker.
#[derive(Debug, Clone)]
struct SimulatedState {
    state: WorkerState,
    detail: String,
    hangs: bool,
    requests_running: u32,
    /// Number of times that it lost its gateways.
    disconnections: u64,
}

impl SimulatedWorker {
    /// Creates the `number`-th worker of a node, with a unique key.
    pub(super) fn new(name: &str, number: u64, clock: Clock, behaviour: &Behaviour) -> Arc<Self> {
        let state = SimulatedState {
            state: WorkerState::Loading,
            detail: String::new(),
            hangs: !behaviour.speaks,
            requests_running: behaviour.requests_running,
            disconnections: 0,
        };
        Arc::new(Self {
            key: PublicKey(*Digest::of(format!("simulated worker {number} {name}").as_bytes()).as_bytes()),
            clock,
            state: watch::Sender::new(state),
            output: Mutex::default(),
            tickets: Mutex::default(),
            gateways: Mutex::default(),
        })
    }

    pub(super) fn hang(&self) {
        self.state.send_modify(|state| state.hangs = true);
    }

    pub(super) fn set_requests(&self, running: u32) {
        self.state.send_modify(|state| state.requests_running = running);
    }

    pub(super) fn disconnect(&self) {
        self.state.send_modify(|state| state.disconnections += 1);
    }

    pub(super) fn print(&self, line: &str) {
        lock(&self.output).extend(line.bytes().chain([b'\n']));
    }

    pub(super) fn output(&self) -> Vec<u8> {
        lock(&self.output).clone()
    }

    pub(super) fn tickets(&self) -> Vec<SignedTicket> {
        lock(&self.tickets).clone()
    }

    /// Waits for its weights, then becomes ready or reports its failure.
    pub(super) async fn work(&self, progress: OwnedFd, segments: usize, behaviour: Behaviour) {
        self.print("a simulated worker: it computes nothing");
        let progress = File::from(progress);
        let mut present = vec![0; segments];
        while progress.read_exact_at(&mut present, 0).is_err() || present.contains(&0) {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
        let Some(ready_after) = behaviour.ready_after else { return };
        tokio::time::sleep(ready_after).await;
        self.state.send_modify(|state| match behaviour.failure {
            Some(reason) => (state.state, state.detail) = (WorkerState::Failed, reason),
            None if state.state == WorkerState::Loading => state.state = WorkerState::Ready,
            None => {}
        });
    }

    /// Serves one agent until the connection closes.
    pub(super) async fn speak(&self, stream: UnixStream) -> Result<(), FrameError> {
        let (mut sender, mut receiver) = channel(stream);
        let mut changes = self.state.subscribe();
        let mut sent = changes.borrow_and_update().clone();
        loop {
            tokio::select! {
                biased;
                frame = receiver.receive::<ToWorker>() => {
                    let Some((message, mut descriptors)) = frame? else { return Ok(()) };
                    if !self.state.borrow().hangs {
                        self.answer(&mut sender, message, descriptors.pop()).await?;
                    }
                }
                Ok(()) = changes.changed() => {
                    let state = changes.borrow_and_update().clone();
                    if !state.hangs {
                        self.send(&mut sender, &sent, &state).await?;
                    }
                    sent = state;
                }
            }
        }
    }

    async fn answer(
        &self,
        sender: &mut FrameSender,
        message: ToWorker,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), FrameError> {
        match message {
            ToWorker::Hello => {
                let SimulatedState { state, detail, .. } = self.state.borrow().clone();
                sender.send(&FromWorker::Hello { worker: self.key, state }, &[]).await?;
                sender.send(&FromWorker::State { state, detail }, &[]).await
            }
            ToWorker::Connection { gateway, ticket } => {
                lock(&self.gateways).extend(descriptor.map(|descriptor| (gateway, descriptor)));
                lock(&self.tickets).push(ticket);
                Ok(())
            }
            ToWorker::Ticket(ticket) => {
                lock(&self.tickets).push(ticket);
                Ok(())
            }
            ToWorker::Drain => {
                self.state.send_modify(|state| state.state = WorkerState::Draining);
                Ok(())
            }
        }
    }

    /// Sends the differences between two states.
    async fn send(
        &self,
        sender: &mut FrameSender,
        sent: &SimulatedState,
        state: &SimulatedState,
    ) -> Result<(), FrameError> {
        if (sent.state, &sent.detail) != (state.state, &state.detail) {
            let message = FromWorker::State { state: state.state, detail: state.detail.clone() };
            sender.send(&message, &[]).await?;
        }
        if sent.disconnections != state.disconnections {
            let lost = std::mem::take(&mut *lock(&self.gateways));
            for gateway in lost.into_keys() {
                sender.send(&FromWorker::Disconnected { gateway }, &[]).await?;
            }
        }
        Ok(())
    }

    /// Writes its metrics until the pipe has no reader.
    pub(super) async fn write_metrics(&self, mut pipe: DuplexStream) {
        loop {
            tokio::time::sleep(METRICS_INTERVAL).await;
            let SimulatedState { hangs, requests_running, .. } = self.state.borrow().clone();
            if hangs {
                continue;
            }
            let metrics =
                WorkerMetrics { at: self.clock.wall(), requests_running, ..WorkerMetrics::default() };
            let line = serde_json::to_string(&metrics).expect("numbers are JSON") + "\n";
            if pipe.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
