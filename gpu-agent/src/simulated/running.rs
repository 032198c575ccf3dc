//! One simulated sandbox: its lease, its end, and the requests that its agent may send.

use super::worker::SimulatedWorker;
use super::{Behaviour, SimulatedLauncher};
use futures::FutureExt;
use futures::future::BoxFuture;
use host::Clock;
use protocol::BootTime;
use protocol::limits::LEASE_MS;
use protocol::sandbox::SandboxExit;
use protocol::worker::{InitReply, WorkerManifest};
use sandbox::{CgroupUsage, Ended, MetricsReader, OutputPosition, ProcessDescriptors, SandboxError};
use sandbox::{Running, Start};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Longest wait of an agent for a sandbox that the kernel does not end, as for a real one.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// A simulated sandbox.
#[derive(Debug)]
pub(super) struct SimulatedSandbox {
    name: String,
    not_enforced: Vec<String>,
    home: Weak<SimulatedLauncher>,
    clock: Clock,
    obeys_after: Option<Duration>,
    life: watch::Sender<Life>,
    worker: Arc<SimulatedWorker>,
    complete: AtomicBool,
}

/// State that the supervisor monitors.
#[derive(Debug, Clone, Copy)]
struct Life {
    lease_until: BootTime,
    /// Time and kind of the end that was requested.
    ends_at: Option<(BootTime, Ended)>,
    /// While set, it does not end under any circumstances.
    unkillable: bool,
    ended: Option<Ended>,
}

const STOPPED: Ended = Ended { exit: Some(SandboxExit::Stopped), out_of_memory: false };

impl SimulatedSandbox {
    /// Starts the sandbox: its worker waits for its weights, its supervisor for its end.
    pub(super) fn begin(
        home: Weak<SimulatedLauncher>,
        clock: Clock,
        start: Start,
        manifest: &WorkerManifest,
        behaviour: Behaviour,
        number: u64,
        not_enforced: Vec<String>,
    ) -> Arc<Self> {
        let end = |(after, ended): (Duration, Ended)| (clock.boot().plus(milliseconds(after)), ended);
        let life = Life {
            lease_until: start.lease_until,
            ends_at: behaviour.ends.map(end),
            unkillable: false,
            ended: None,
        };
        let sandbox = Arc::new(Self {
            name: start.name.clone(),
            not_enforced,
            home,
            obeys_after: behaviour.obeys_after,
            life: watch::Sender::new(life),
            worker: SimulatedWorker::new(&start.name, number, clock.clone(), &behaviour),
            clock,
            complete: AtomicBool::new(false),
        });
        tokio::spawn(sandbox.clone().supervise());
        let (worker, segments) = (sandbox.worker.clone(), manifest.segments.len());
        let gone = sandbox.gone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = worker.work(start.progress, segments, behaviour) => {}
                () = gone => {}
            }
        });
        sandbox
    }

    pub(super) fn worker(&self) -> &SimulatedWorker {
        &self.worker
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.life.borrow().ended
    }

    /// Ends it now, unless it has ended already.
    pub(super) fn end(&self, ended: Ended) {
        self.life.send_if_modified(|life| {
            let lives = life.ended.is_none();
            if life.unkillable {
                life.ends_at = Some((BootTime(0), ended));
            } else {
                life.ended = life.ended.or(Some(ended));
            }
            lives
        });
    }

    pub(super) fn set_unkillable(&self, unkillable: bool) {
        self.life.send_modify(|life| life.unkillable = unkillable);
    }

    /// Ends it when it is due. In a real sandbox the init does this, even if the agent is dead.
    async fn supervise(self: Arc<Self>) {
        let mut changes = self.life.subscribe();
        loop {
            let life = *changes.borrow_and_update();
            if life.ended.is_some() {
                return;
            }
            let lapse = (life.lease_until, Ended { exit: Some(SandboxExit::LeaseLapsed), ..STOPPED });
            let (at, ended) = life.ends_at.filter(|end| end.0 <= lapse.0).unwrap_or(lapse);
            let left_ms = at.since(self.clock.boot());
            if left_ms == 0 && !life.unkillable {
                return self.end(ended);
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(left_ms)), if !life.unkillable => {}
            }
        }
    }

    /// Returns when it has ended.
    fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut life = self.life.subscribe();
        async move {
            // If the sender is gone, nothing is left of the sandbox either.
            let _ = life.wait_for(|life| life.ended.is_some()).await;
        }
    }

    fn reply(&self) -> Result<InitReply, SandboxError> {
        let life = *self.life.borrow();
        match life.ended {
            None => {
                let lease_until_boottime_ms = life.lease_until;
                Ok(InitReply { running: true, exit: None, lease_until_boottime_ms })
            }
            Some(_) => {
                let detail = "connection refused".into();
                Err(SandboxError::Init { name: self.name.clone(), detail })
            }
        }
    }
}

impl Running for SimulatedSandbox {
    fn name(&self) -> &str {
        &self.name
    }

    fn not_enforced(&self) -> &[String] {
        &self.not_enforced
    }

    fn renew(self: Arc<Self>, until: BootTime) -> BoxFuture<'static, Result<InitReply, SandboxError>> {
        let until = until.min(self.clock.boot().plus(LEASE_MS));
        self.life.send_modify(|life| life.lease_until = life.lease_until.max(until));
        futures::future::ready(self.reply()).boxed()
    }

    fn stop(self: Arc<Self>, grace_ms: u64) -> BoxFuture<'static, Result<InitReply, SandboxError>> {
        let obeys_ms = self.obeys_after.map_or(u64::MAX, milliseconds);
        let at = self.clock.boot().plus(grace_ms.min(obeys_ms));
        self.life.send_modify(|life| {
            let sooner = life.ends_at.filter(|(before, _)| *before < at);
            life.ends_at = sooner.or(Some((at, STOPPED)));
        });
        futures::future::ready(self.reply()).boxed()
    }

    fn wait(self: Arc<Self>) -> BoxFuture<'static, io::Result<Ended>> {
        async move {
            self.gone().await;
            Ok(self.ended().expect("waited for"))
        }
        .boxed()
    }

    fn remove(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Ended>, SandboxError>> {
        async move {
            self.end(Ended { exit: None, out_of_memory: false });
            if self.ended().is_none() {
                tokio::time::sleep(KILL_WAIT).await;
                let detail = "the kernel has not ended it in time".to_string();
                return Err(SandboxError::Init { name: self.name.clone(), detail });
            }
            if let Some(home) = self.home.upgrade() {
                home.forget(&self.name);
            }
            Ok(self.ended())
        }
        .boxed()
    }

    fn descriptors(self: Arc<Self>) -> BoxFuture<'static, Result<ProcessDescriptors, SandboxError>> {
        futures::future::ready(Ok(ProcessDescriptors { ranks: vec![], gang_device: None })).boxed()
    }

    fn usage(&self) -> CgroupUsage {
        CgroupUsage::default()
    }

    fn connect_worker(&self) -> io::Result<UnixStream> {
        self.reply().map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let (ours, theirs) = UnixStream::pair()?;
        let (worker, gone) = (self.worker.clone(), self.gone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = worker.speak(theirs) => {}
                () = gone => {}
            }
        });
        Ok(ours)
    }

    fn metrics(&self) -> io::Result<MetricsReader> {
        let (reader, writer) = tokio::io::duplex(protocol::limits::METRICS_LINE_BYTES_MAX);
        let (worker, gone) = (self.worker.clone(), self.gone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = worker.write_metrics(writer) => {}
                () = gone => {}
            }
        });
        Ok(MetricsReader::of(reader))
    }

    fn output(&self, position: &mut OutputPosition) -> Vec<u8> {
        let output = self.worker.output();
        let from = usize::try_from(position.offsets[0]).map_or(output.len(), |from| from.min(output.len()));
        position.offsets[0] = output.len() as u64;
        output[from..].to_vec()
    }

    fn output_end(&self) -> OutputPosition {
        OutputPosition { offsets: [self.worker.output().len() as u64, 0] }
    }

    fn output_tail(&self, bytes_max: u64) -> Vec<u8> {
        let output = self.worker.output();
        let excess = output.len().saturating_sub(usize::try_from(bytes_max).unwrap_or(usize::MAX));
        output[excess..].to_vec()
    }

    fn mark_complete(&self) -> io::Result<()> {
        self.complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
