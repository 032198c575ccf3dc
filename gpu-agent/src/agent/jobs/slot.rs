//! Task of one slot of a job: it checks the artifact and the checkpoint, waits for the start of the gang,
//! runs the ranks, and ends them on command, at the time limit, or when the autonomy of the job is over. The
//! slot of rank 0 keeps what the job leaves.

use super::areas::SlotAreas;
use super::data::{SlotData, restore};
use super::etc::{LOCALTIME, etc_of};
use super::inputs::{SlotInputs, place_inputs};
use super::keeper::Keeper;
use super::network::network_of;
use super::output::read_rank;
use super::rank_log::RankLog;
use super::slot_logs::SlotLogs;
use super::watch::CheckpointWatch;
use crate::agent::core::{GangOrders, JobSlotEnd, Refusal, SlotKey, job_end, lapsed};
use crate::agent::gangs::GangMembership;
use crate::agent::models::ModelSource;
use crate::agent::node::Node;
use crate::agent::slot::sandbox_name;
use human_chain::{Approved, JobGrant, RankCommand, rank_host};
use model_store::TreeInUse;
use overlay::CancellationToken;
use protocol::job::SlotRanks;
use protocol::job_data::JobDataSource;
use protocol::job_report::{JobSlotReport, JobSlotState, RankOutcome};
use protocol::manifest::Resources;
use protocol::model::StoredKind;
use protocol::sandbox::{DiskArea, ProcessProfile, RankProgram, SandboxLimits, WritableAreas};
use protocol::{Fence, error_code};
use sandbox::{Ended, Running, StartProcess};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Processes and threads of each rank: interpreters of machine learning start one thread per core and
/// library.
const PROCESSES_PER_RANK: u32 = 1024;
/// Open files of each process of a rank.
const OPEN_FILES_MAX: u32 = 4096;
/// Smallest writable area in bytes.
const AREA_BYTES_MIN: u64 = 4096;
/// Longest wait for the rest of the output once every rank has ended.
const OUTPUT_WAIT: Duration = Duration::from_secs(2);
/// Longest time for which a slot whose ranks have ended stores and registers what they left. Control ends an
/// attempt whose outputs take longer than its run time.
const KEEP_LIMIT: Duration = Duration::from_secs(3600);
/// Pause before the removal of a sandbox is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(1);

/// Command to a slot of a job. It only ever rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) enum JobSlotCommand {
    /// Get ready, and wait.
    Prepare,
    /// Run the ranks.
    Start,
    /// SIGTERM, then SIGKILL after a grace.
    End {
        /// In milliseconds.
        grace_ms: u64,
    },
    /// SIGKILL now: a member has halted the slot.
    Kill,
}

/// Status of a slot that is prepared or runs.
#[derive(Debug)]
pub(in crate::agent) struct JobSlotStatus {
    pub(in crate::agent) state: JobSlotState,
    pub(in crate::agent) cpu_micros: u64,
    /// Limits that are not enforced on the sandbox.
    pub(in crate::agent) not_enforced: Vec<String>,
}

/// The agent's handle of a slot.
#[derive(Debug)]
pub(in crate::agent) struct JobSlotHandle {
    pub(in crate::agent) fence: Fence,
    pub(in crate::agent) grace_ms: u64,
    status: Arc<Mutex<JobSlotStatus>>,
    command: watch::Sender<JobSlotCommand>,
}

impl JobSlotHandle {
    /// Sends a command. Returns true if it is higher than the current one.
    pub(in crate::agent) fn command(&self, command: JobSlotCommand) -> bool {
        self.command.send_if_modified(|current| {
            let rises =
                std::mem::discriminant(current) != std::mem::discriminant(&command) && command > *current;
            if rises {
                *current = command;
            }
            rises
        })
    }

    /// Locks the status for reading.
    pub(in crate::agent) fn status(&self) -> MutexGuard<'_, JobSlotStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot's task has ended and nothing of the slot runs any more.
#[derive(Debug)]
pub(in crate::agent) struct JobSlotEnded {
    pub(in crate::agent) key: SlotKey,
    pub(in crate::agent) fence: Fence,
    pub(in crate::agent) end: JobSlotEnd,
}

/// Needs of a slot before its ranks start.
struct PreparedSlot {
    tree: TreeInUse,
    /// Membership in a gang of several slots.
    membership: Option<GangMembership>,
    inputs: SlotInputs,
    areas: Arc<SlotAreas>,
}

/// State that a running slot keeps of its ranks.
struct KeptSlot {
    running: Arc<dyn Running>,
    /// Watch on `/checkpoint`; none if this slot keeps no checkpoints.
    watch: Option<CheckpointWatch>,
}

struct JobTask {
    node: Arc<Node>,
    key: SlotKey,
    ranks: SlotRanks,
    grant: Arc<Approved<JobGrant>>,
    gang: Arc<GangOrders>,
    sources: SlotSources,
    command: watch::Receiver<JobSlotCommand>,
    status: Arc<Mutex<JobSlotStatus>>,
}

/// Locations of what a slot needs, as control names them.
#[derive(Debug, Default)]
pub(in crate::agent) struct SlotSources {
    pub(in crate::agent) artifact: Option<ModelSource>,
    /// Models and datasets that the ranks read.
    pub(in crate::agent) inputs: Vec<ModelSource>,
    /// Checkpoint with which the attempt begins.
    pub(in crate::agent) checkpoint: Option<JobDataSource>,
}

/// Starts a slot's task. `report` is the slot as accepted.
pub(in crate::agent) fn spawn(
    tasks: &mut JoinSet<JobSlotEnded>,
    node: Arc<Node>,
    (grant, gang): (Arc<Approved<JobGrant>>, Arc<GangOrders>),
    report: &JobSlotReport,
    sources: SlotSources,
) -> JobSlotHandle {
    let (command, receiver) = watch::channel(JobSlotCommand::Prepare);
    let status = JobSlotStatus { state: JobSlotState::Preparing, cpu_micros: 0, not_enforced: vec![] };
    let status = Arc::new(Mutex::new(status));
    let (fence, ranks) = (report.fence, report.ranks);
    let grace_ms = grant.get().manifest.grace_seconds.saturating_mul(1000);
    let key = SlotKey { service: report.job.clone(), slot: report.slot };
    let handle = JobSlotHandle { fence, grace_ms, status: status.clone(), command };
    let task = JobTask { node, key, ranks, grant, gang, sources, command: receiver, status };
    tasks.spawn(task.run());
    handle
}

impl JobTask {
    async fn run(self) -> JobSlotEnded {
        let end = match self.ready().await {
            Ok(prepared) => match self.launch(&prepared).await {
                Ok(kept) => self.supervise(kept, &prepared).await,
                Err(refusal) => self.unstarted(refusal),
            },
            Err(end) => end,
        };
        let grant = self.grant.get();
        self.node.rank_lines.end(grant.id, grant.attempt);
        tracing::info!(slot = %self.key, fence = %grant.fence, ends = ?end.ends, "job slot ended");
        let fence = grant.fence;
        JobSlotEnded { key: self.key, fence, end }
    }

    /// Prepares the slot and waits for its start. An error is the end of a slot that never started.
    async fn ready(&self) -> Result<PreparedSlot, JobSlotEnd> {
        let stopped = || JobSlotEnd::of_all(self.ranks, RankOutcome::Stopped, None);
        let prepared = tokio::select! {
            biased;
            _ = ending(self.command.clone()) => return Err(stopped()),
            prepared = self.prepare() => prepared.map_err(|refusal| self.unstarted(refusal))?,
        };
        self.enter(JobSlotState::Ready);
        loop {
            let until = self.node.lease.borrow().until_job(&self.grant.get().manifest);
            if self.node.clock.boot() >= until {
                return Err(lapsed(self.ranks));
            }
            let wait = Duration::from_millis(until.since(self.node.clock.boot()));
            tokio::select! {
                biased;
                starts = started(self.command.clone()) => {
                    return if starts { Ok(prepared) } else { Err(stopped()) };
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Fetches the artifact, the inputs and the checkpoint, and makes the links of the gang, concurrently: a
    /// slot with all of them is ready.
    async fn prepare(&self) -> Result<PreparedSlot, Refusal> {
        let (rank, source) = (self.first_rank()?, self.sources.artifact.as_ref());
        let areas = self.node.areas.make(&sandbox_name(&self.key, self.grant.get().fence));
        let areas = Arc::new(areas.map_err(|error| {
            let message = format!("make the areas of the slot: {error}");
            Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
        })?);
        let artifact = StoredKind::Artifact { tree: rank.artifact.root };
        let tree = self.node.trees.get(&self.node.models, artifact, source);
        let inputs = place_inputs(&self.node, &areas, &rank.inputs, &self.sources.inputs);
        let restored = self.restore(&areas);
        if !self.gang.needs_network() {
            let (tree, inputs, ()) = tokio::try_join!(tree, inputs, restored)?;
            return Ok(PreparedSlot { tree, membership: None, inputs, areas: areas.clone() });
        }
        let membership = self.node.gangs.join(&self.gang)?;
        let (tree, inputs, (), ()) = tokio::try_join!(tree, inputs, restored, membership.linked())?;
        Ok(PreparedSlot { tree, membership: Some(membership), inputs, areas: areas.clone() })
    }

    /// Places the checkpoint with which the attempt begins.
    async fn restore(&self, areas: &Arc<SlotAreas>) -> Result<(), Refusal> {
        let grant = self.grant.get();
        let Some(source) = self.sources.checkpoint.as_ref().filter(|_| grant.manifest.checkpoints > 0) else {
            return Ok(());
        };
        restore(&self.node, grant, areas, area_bytes(&grant.manifest.resources, self.ranks.count), source)
            .await
    }

    /// Returns whether the slot keeps what the job leaves: that of rank 0 does.
    fn keeps_data(&self) -> bool {
        self.ranks.first == 0
    }

    /// Returns the command of the first rank: all ranks run the same artifact.
    fn first_rank(&self) -> Result<&RankCommand, Refusal> {
        let first = self.grant.get().ranks.first();
        first.ok_or_else(|| Refusal::new(error_code::ORDER_MISMATCH, "the slot has no rank"))
    }

    async fn launch(&self, prepared: &PreparedSlot) -> Result<KeptSlot, Refusal> {
        let (node, grant, tree) = (&self.node, self.grant.get(), &prepared.tree);
        let network = network_of(&self.gang);
        let of_error = |error: &sandbox::SandboxError| Refusal::of(error.code(), error);
        let etc = etc_of(&network, Path::new(LOCALTIME)).map_err(|error| of_error(&error))?;
        let Some(start) = &tree.index.start else {
            let message = "what the job names as its artifact is data, and no program";
            return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
        };
        let program = |rank: &RankCommand| {
            let mut environment = start.environment.clone();
            environment.extend(rank.environment.clone());
            RankProgram { arguments: rank.arguments.clone(), environment }
        };
        let profile = ProcessProfile {
            root: tree.path.display().to_string(),
            host_name: rank_host(self.ranks.first),
            working_directory: start.working_directory.clone(),
            ranks: grant.ranks.iter().map(program).collect(),
            inputs: prepared.inputs.mounts.clone(),
            areas: self.writable(&prepared.areas),
            etc,
            network: network.device,
        };
        let start = StartProcess {
            name: sandbox_name(&self.key, grant.fence),
            profile,
            limits: limits(&grant.manifest.resources, self.ranks.count),
            devices: self.devices()?,
            lease_until: node.lease.borrow().until_job(&grant.manifest),
        };
        // Before the first rank can rename anything.
        let keeps = self.keeps_data() && grant.manifest.checkpoints > 0;
        let watch = keeps.then(|| CheckpointWatch::new(&prepared.areas.checkpoint())).transpose();
        let watch = watch.map_err(|error| {
            let message = format!("watch /checkpoint: {error}");
            Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
        })?;
        let started = node.launcher.clone().start_process(start).await;
        let running = started.map_err(|error| of_error(&error))?;
        Ok(KeptSlot { running, watch })
    }

    /// Returns the writable areas of the slot. Those whose content is kept, or was placed before, are on
    /// disk; the others are in memory, and end with the sandbox.
    fn writable(&self, slot: &SlotAreas) -> WritableAreas {
        let manifest = &self.grant.get().manifest;
        let mut areas = areas(&manifest.resources, self.ranks.count);
        let shown = |path: PathBuf| path.display().to_string();
        if manifest.checkpoints > 0 {
            areas.checkpoint.directory = Some(shown(slot.checkpoint()));
        }
        if self.keeps_data() {
            areas.outputs.directory = Some(shown(slot.outputs()));
        }
        areas
    }

    /// Returns the device nodes of the slot's GPUs. A GPU that is gone or does not answer is an error.
    fn devices(&self) -> Result<Vec<std::path::PathBuf>, Refusal> {
        let (node, mut indices) = (&self.node, Vec::new());
        let here = node.resources.gpus(&*node.device);
        for uuid in &self.grant.get().gpus {
            let Some(gpu) = here.iter().find(|gpu| gpu.uuid == *uuid && gpu.healthy) else {
                let message = format!("GPU `{uuid}` of this node is gone or does not answer");
                return Err(Refusal::new(error_code::NODE_UNFIT, message));
            };
            if !gpu.simulated && !indices.contains(&gpu.index) {
                indices.push(gpu.index);
            }
        }
        Ok(node.device.nodes(&indices))
    }

    /// Runs the ranks to their end, and keeps what they leave.
    async fn supervise(&self, slot: KeptSlot, prepared: &PreparedSlot) -> JobSlotEnd {
        let KeptSlot { running, watch } = slot;
        self.status().not_enforced = running.not_enforced().to_vec();
        self.enter(JobSlotState::Running);
        let (mut readers, mut links) = (JoinSet::new(), JoinSet::new());
        let logs = SlotLogs::new(self.grant.get(), self.ranks, &prepared.areas);
        self.read(&running, &mut readers, &mut links, (prepared.membership.as_ref(), logs.ranks())).await;
        let (keeping, over) = self.keep(prepared, watch, logs.ranks().first());
        let mut cause = None;
        let ended = self.follow(&running, &mut cause).await;
        over.cancel();
        let all = async { while readers.join_next().await.is_some() {} };
        if tokio::time::timeout(OUTPUT_WAIT, all).await.is_err() {
            tracing::warn!(slot = %self.key, "the rest of the output of the ranks is not read");
        }
        readers.abort_all();
        let cpu_micros = self.measure(&*running);
        while let Err(error) = running.clone().remove().await {
            let error = protocol::error_chain(&error);
            tracing::error!(slot = %self.key, error, "remove the sandbox of a job");
            tokio::time::sleep(REMOVE_AGAIN).await;
        }
        let exit = ended.map_or((None, false), |ended| (ended.exit, ended.out_of_memory));
        let end = job_end(self.ranks, exit, cause, cpu_micros);
        let end = self.finish(keeping, end).await;
        logs.leave(self.node.clone(), self.grant.clone(), prepared.areas.clone());
        end
    }

    /// Starts to read the output of the ranks, and to move the packets of their gang.
    async fn read(
        &self,
        running: &Arc<dyn Running>,
        readers: &mut JoinSet<()>,
        links: &mut JoinSet<()>,
        (gang, logs): (Option<&GangMembership>, &[Arc<RankLog>]),
    ) {
        match running.clone().descriptors().await {
            Ok(descriptors) => {
                for (log, output) in logs.iter().zip(descriptors.ranks) {
                    read_rank(readers, &self.node, log, output);
                }
                if let Some(gang) = gang {
                    self.attach(links, gang, descriptors.gang_device);
                }
            }
            // Its init has ended or is about to; the wait for its end reports that.
            Err(error) => tracing::warn!(slot = %self.key, %error, "the output of the ranks is lost"),
        }
    }

    /// Starts to keep what the ranks leave. The token reports that they have ended.
    fn keep(
        &self,
        prepared: &PreparedSlot,
        watch: Option<CheckpointWatch>,
        first: Option<&Arc<RankLog>>,
    ) -> (Option<KeepingTask>, CancellationToken) {
        let over = CancellationToken::new();
        let Some(log) = first.filter(|_| self.keeps_data()) else { return (None, over) };
        let bytes_max = area_bytes(&self.grant.get().manifest.resources, self.ranks.count);
        let (node, grant, areas) = (self.node.clone(), self.grant.clone(), prepared.areas.clone());
        let data = SlotData::new(Keeper { node, grant, areas, bytes_max }, log.clone());
        (Some(KeepingTask(tokio::spawn(data.follow(watch, over.clone())))), over)
    }

    /// Waits for the last checkpoints, and keeps the outputs of ranks that have all succeeded. A halt ends
    /// it, and so does its limit.
    async fn finish(&self, keeping: Option<KeepingTask>, end: JobSlotEnd) -> JobSlotEnd {
        let Some(mut keeping) = keeping else { return end };
        let succeeded = end.refusal.is_none() && end.ends.iter().all(|end| end.outcome.is_success());
        let finishing = async {
            let data = (&mut keeping.0).await.map_err(|error| {
                Refusal::new(error_code::ARTIFACT_UNREADABLE, format!("keep what the job left: {error}"))
            })?;
            if succeeded { data.keep_outputs().await } else { Ok(()) }
        };
        let refusal = tokio::select! {
            biased;
            () = killed(self.command.clone()) => return end,
            finished = tokio::time::timeout(KEEP_LIMIT, finishing) => match finished {
                Ok(finished) => finished.err(),
                Err(_) => {
                    let message = "what the job left could not be stored and registered within an hour";
                    Some(Refusal::new(error_code::STORE_UNREACHABLE, message))
                }
            },
        };
        match refusal.filter(|_| succeeded) {
            // Without its outputs, the attempt is no success.
            Some(refusal) => JobSlotEnd { refusal: Some(refusal), ..end },
            None => end,
        }
    }

    /// Moves the packets of the ranks while they run. Without its device the ranks of a slot reach no others,
    /// and end by their own time limits or that of the job.
    fn attach(&self, links: &mut JoinSet<()>, gang: &GangMembership, device: Option<OwnedFd>) {
        let Some(device) = device else {
            tracing::error!(slot = %self.key, "the sandbox has no gang device");
            return;
        };
        match gang.attach(device) {
            Ok(moves) => drop(links.spawn(moves)),
            Err(error) => tracing::error!(slot = %self.key, %error, "the gang device cannot be read"),
        }
    }

    /// Renews the lease, and ends the ranks for a cause, until they have ended. None if the end is not known.
    async fn follow(&self, running: &Arc<dyn Running>, cause: &mut Option<RankOutcome>) -> Option<Ended> {
        let manifest = &self.grant.get().manifest;
        let mut leases = self.node.lease.subscribe();
        let mut ended = running.clone().wait();
        let limit = Instant::now() + Duration::from_secs(manifest.run_seconds_max);
        let grace_ms = manifest.grace_seconds.saturating_mul(1000);
        let mut is_killed = false;
        loop {
            let stop_ms = tokio::select! {
                biased;
                ended = &mut ended => return ended.ok(),
                () = killed(self.command.clone()), if !is_killed => {
                    is_killed = true;
                    Some((RankOutcome::Stopped, 0))
                }
                Some(grace_ms) = ending(self.command.clone()), if cause.is_none() && !is_killed => {
                    Some((RankOutcome::Stopped, grace_ms))
                }
                () = tokio::time::sleep_until(limit), if cause.is_none() => {
                    Some((RankOutcome::TimeLimit, grace_ms))
                }
                Ok(()) = leases.changed() => None,
            };
            let answer = match stop_ms {
                Some((outcome, grace_ms)) => {
                    cause.get_or_insert(outcome);
                    running.clone().stop(grace_ms).await
                }
                None => {
                    let until = self.node.lease.borrow().until_job(manifest);
                    running.clone().renew(until).await
                }
            };
            if let Err(error) = answer {
                tracing::debug!(slot = %self.key, %error, "the init of a job does not answer");
            }
            self.measure(&**running);
        }
    }

    /// Returns the CPU time of the ranks so far in microseconds, which never falls.
    fn measure(&self, running: &dyn Running) -> u64 {
        let used = running.usage().cpu_us.unwrap_or(0);
        let mut status = self.status();
        status.cpu_micros = status.cpu_micros.max(used);
        status.cpu_micros
    }

    fn unstarted(&self, refusal: Refusal) -> JobSlotEnd {
        let (slot, code, error) = (&self.key, refusal.code, &refusal.message);
        tracing::warn!(%slot, %code, error, "job slot not started");
        JobSlotEnd { ends: Vec::new(), refusal: Some(refusal), cpu_micros: 0 }
    }

    fn status(&self) -> MutexGuard<'_, JobSlotStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: JobSlotState) {
        self.status().state = state;
        self.node.news.notify_one();
    }
}

/// Task that keeps what the ranks leave; it ends with its slot.
struct KeepingTask(JoinHandle<SlotData>);

impl Drop for KeepingTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a command beyond the preparation, and returns whether it is to start.
async fn started(mut command: watch::Receiver<JobSlotCommand>) -> bool {
    let commanded = command.wait_for(|command| *command > JobSlotCommand::Prepare).await;
    commanded.is_ok_and(|command| *command == JobSlotCommand::Start)
}

/// Waits for the command to kill. If the handle is gone, so is the agent.
async fn killed(mut command: watch::Receiver<JobSlotCommand>) {
    let _ = command.wait_for(|command| *command == JobSlotCommand::Kill).await;
}

/// Waits for the command to end, and returns its grace in milliseconds; none if the agent is gone.
async fn ending(mut command: watch::Receiver<JobSlotCommand>) -> Option<u64> {
    match *command.wait_for(|command| *command > JobSlotCommand::Start).await.ok()? {
        JobSlotCommand::End { grace_ms } => Some(grace_ms),
        JobSlotCommand::Prepare | JobSlotCommand::Start | JobSlotCommand::Kill => Some(0),
    }
}

/// Returns the limits of all ranks of a slot together.
fn limits(each: &Resources, ranks: u32) -> SandboxLimits {
    SandboxLimits {
        cpu_millicores: each.cpu_millicores.saturating_mul(u64::from(ranks)),
        memory_bytes: each.memory_bytes.saturating_mul(u64::from(ranks)),
        processes_max: PROCESSES_PER_RANK.saturating_mul(ranks),
        open_files_max: OPEN_FILES_MAX,
    }
}

/// Returns the bound of each writable area of a slot in bytes.
fn area_bytes(each: &Resources, ranks: u32) -> u64 {
    (each.memory_bytes.saturating_mul(u64::from(ranks)) / 2).max(AREA_BYTES_MIN)
}

/// Returns the writable areas of a slot, all of them in memory, which counts as that of the ranks: a program
/// that fills them reaches its memory limit.
fn areas(each: &Resources, ranks: u32) -> WritableAreas {
    let half = area_bytes(each, ranks);
    let area = || DiskArea { bytes_max: half, directory: None };
    WritableAreas {
        tmp_bytes: half,
        shared_memory_bytes: half,
        scratch: area(),
        checkpoint: area(),
        outputs: area(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_a_job_only_rises() {
        let (soon, later) = (JobSlotCommand::End { grace_ms: 0 }, JobSlotCommand::End { grace_ms: 9 });
        for (before, command, rises) in [
            (JobSlotCommand::Prepare, JobSlotCommand::Prepare, false),
            (JobSlotCommand::Prepare, JobSlotCommand::Start, true),
            (JobSlotCommand::Start, JobSlotCommand::Prepare, false),
            (JobSlotCommand::Prepare, later, true),
            (soon, later, false),
            (later, JobSlotCommand::Start, false),
            (later, JobSlotCommand::Kill, true),
            (JobSlotCommand::Kill, soon, false),
        ] {
            let handle = JobSlotHandle {
                fence: Fence::new(1, 1),
                grace_ms: 0,
                status: Arc::new(Mutex::new(JobSlotStatus {
                    state: JobSlotState::Preparing,
                    cpu_micros: 0,
                    not_enforced: vec![],
                })),
                command: watch::Sender::new(before),
            };
            assert_eq!(handle.command(command), rises, "{before:?}, then {command:?}");
        }
    }

    #[test]
    fn a_slot_has_the_resources_of_its_ranks() {
        let each = Resources {
            cpu_millicores: 500,
            memory_bytes: 1 << 20,
            gpu_count: 0,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        };
        let limits = limits(&each, 3);
        assert_eq!((limits.cpu_millicores, limits.memory_bytes), (1500, 3 << 20));
        assert_eq!(areas(&each, 3).outputs.bytes_max, 3 << 19);
        assert_eq!(areas(&Resources { memory_bytes: 1, ..each }, 1).tmp_bytes, AREA_BYTES_MIN);
    }
}
