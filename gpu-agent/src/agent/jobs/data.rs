//! Checkpoints and outputs of the slot of rank 0: packed, stored, and registered with control.
//!
//! ```text
//! renamed --> packed --> in the stores, under a fresh key --> statement signed --> kept by control
//! ```
//!
//! Nothing counts before control keeps it. An agent that is killed on the way leaves shards without a
//! registration, which a collection of garbage removes.

use super::areas::SlotAreas;
use super::lines::RankKey;
use super::output::keep_lines;
use super::watch::CheckpointWatch;
use crate::agent::control_client::RequestOutcome;
use crate::agent::core::Refusal;
use crate::agent::models::StoredData;
use crate::agent::node::Node;
use human_chain::{Approved, JobGrant, check_checkpoint, data_recipients};
use model_store::{ArtifactBuilder, ArtifactError, ArtifactLimits, open_data, unpack_data};
use overlay::CancellationToken;
use protocol::artifact::{ARTIFACT_BYTES_MAX, ARTIFACT_INDEX_BYTES_MAX};
use protocol::job_data::{
    JOB_DATA_DOMAIN, JOB_DATA_VERSION, JobData, JobDataKind, JobDataSource, RegisterJobData, SignedJobData,
    wraps_digest,
};
use protocol::{CheckpointName, canonical, error_code};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Pause between two looks at the renames of ranks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before control is asked again to keep data.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);
/// Longest text of a refusal in the lines of a job, in characters.
const REASON_CHARACTERS_MAX: usize = 1024;

/// Work of a slot on the data of its job.
pub(super) struct SlotData {
    node: Arc<Node>,
    grant: Arc<Approved<JobGrant>>,
    areas: Arc<SlotAreas>,
    /// Bound of each area in bytes, and so of what is stored of it.
    bytes_max: u64,
    /// Number of the last line of rank 0.
    lines: Arc<AtomicU64>,
    /// Checkpoints that control keeps of this attempt, oldest first, and that this node may remove.
    made: VecDeque<StoredData>,
    /// Names that were taken in this attempt.
    names: BTreeSet<CheckpointName>,
}

impl SlotData {
    /// Returns the data of a slot that has left none yet.
    pub(super) fn new(
        node: Arc<Node>,
        grant: Arc<Approved<JobGrant>>,
        areas: Arc<SlotAreas>,
        bytes_max: u64,
        lines: Arc<AtomicU64>,
    ) -> Self {
        Self { node, grant, areas, bytes_max, lines, made: VecDeque::new(), names: BTreeSet::new() }
    }

    /// Keeps what the ranks rename into `/checkpoint`, until they have ended and nothing is left to keep.
    pub(super) async fn follow(mut self, watch: Option<CheckpointWatch>, ended: CancellationToken) -> Self {
        let Some(watch) = watch else { return self };
        loop {
            // Read before the look: a rename before the end is seen by it.
            let is_over = ended.is_cancelled();
            match watch.renames() {
                Ok(renames) => {
                    if renames.is_incomplete {
                        self.tell("too many renames at once: some checkpoints were not seen");
                    }
                    for name in renames.names {
                        self.keep_checkpoint(&name).await;
                    }
                }
                Err(error) => self.tell(&format!("the renames of checkpoints cannot be read: {error}")),
            }
            if is_over {
                return self;
            }
            tokio::select! {
                () = ended.cancelled() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Keeps one directory of `/checkpoint`, or says in the lines of the job why not.
    async fn keep_checkpoint(&mut self, directory: &OsStr) {
        let shown = directory.to_string_lossy().into_owned();
        let name = match shown.parse::<CheckpointName>() {
            Ok(name) if self.names.insert(name.clone()) => name,
            Ok(name) => return self.tell(&format!("checkpoint `{name}` was kept before in this attempt")),
            Err(reason) => return self.tell(&format!("a checkpoint is not kept: {reason}")),
        };
        let parent = self.areas.checkpoint();
        match self.keep(JobDataKind::Checkpoint(name.clone()), &parent, Some(directory)).await {
            Ok(Some(stored)) => {
                tracing::info!(job = %self.grant.get().id, checkpoint = %name, "checkpoint kept");
                self.made.push_back(stored);
            }
            Ok(None) => self.tell(&format!("checkpoint `{name}` is empty, and not kept")),
            Err(refusal) => {
                // A program may write it again.
                self.names.remove(&name);
                let reason: String = refusal.to_string().chars().take(REASON_CHARACTERS_MAX).collect();
                self.tell(&format!("checkpoint `{name}` is not kept: {reason}"));
            }
        }
        let most = self.grant.get().manifest.checkpoints as usize;
        while self.made.len() > most {
            let Some(oldest) = self.made.pop_front() else { break };
            self.node.models.let_go(&oldest).await;
        }
    }

    /// Keeps the outputs of ranks that have all succeeded. Nothing is kept of an empty directory.
    ///
    /// # Errors
    /// If they hold what data may not, or too much, or no store or control takes them.
    pub(super) async fn keep_outputs(&self) -> Result<(), Refusal> {
        let kept = self.keep(JobDataKind::Outputs, &self.areas.outputs(), None).await?;
        if let Some(stored) = kept {
            tracing::info!(job = %self.grant.get().id, bytes = stored.record().bytes, "outputs kept");
        }
        Ok(())
    }

    /// Packs, stores and registers a directory; none if it is empty.
    async fn keep(
        &self,
        kind: JobDataKind,
        parent: &Path,
        name: Option<&OsStr>,
    ) -> Result<Option<StoredData>, Refusal> {
        let (areas, bytes_max) = (self.areas.clone(), self.bytes_max);
        let (parent, name) = (parent.to_path_buf(), name.map(OsStr::to_os_string));
        let packed = blocking(move || pack(&areas, bytes_max, &parent, name.as_deref())).await?;
        let Some(packed) = packed else { return Ok(None) };
        let item = format!("job-{}-{}", self.grant.get().id.short(), self.grant.get().attempt);
        let item =
            item.parse().map_err(|reason: String| Refusal::new(error_code::JOB_DATA_INVALID, reason))?;
        let stored = self.node.models.store_data(&packed, &item).await;
        let _ = fs::remove_file(&packed);
        let stored = stored?;
        match self.register(kind, &stored).await {
            Ok(()) => Ok(Some(stored)),
            Err(refusal) => {
                self.node.models.let_go(&stored).await;
                Err(refusal)
            }
        }
    }

    /// Asks control to keep stored data until it answers.
    async fn register(&self, kind: JobDataKind, stored: &StoredData) -> Result<(), Refusal> {
        let request = self.statement(kind, stored)?;
        loop {
            stored.check_fresh()?;
            match self.node.control.register_job_data(&request).await {
                RequestOutcome::Answered(answer) => match answer.body.refusal {
                    None => return Ok(()),
                    // Control takes one after another.
                    Some(refusal) if refusal.code == error_code::LIMIT_REACHED => {}
                    Some(refusal) => return Err(refusal),
                },
                RequestOutcome::NotAdmitted => {
                    let message = "control says that no certificate admits this node";
                    return Err(Refusal::new(error_code::NODE_NOT_ADMITTED, message));
                }
                RequestOutcome::Failed(reasons) => {
                    tracing::debug!(reasons, "no control replica takes a registration; it is sent again");
                }
            }
            tokio::time::sleep(REGISTER_AGAIN).await;
        }
    }

    fn statement(&self, kind: JobDataKind, stored: &StoredData) -> Result<RegisterJobData, Refusal> {
        let (grant, circle) = (self.grant.get(), self.node.circle.borrow().clone());
        let wraps = stored.wraps(&data_recipients(&circle, &grant.manifest))?;
        let data = JobData {
            version: JOB_DATA_VERSION,
            circle: circle.id(),
            node: self.node.id(),
            job: grant.manifest.name.clone(),
            id: grant.id,
            attempt: grant.attempt,
            slot: grant.slot,
            fence: grant.fence,
            ranks: grant.place,
            kind,
            stored: stored.record().clone(),
            key_commitment: stored.key_commitment(),
            wraps: wraps_digest(&wraps),
        };
        let signature = self.node.identity.sign(JOB_DATA_DOMAIN, &canonical::to_bytes(&data));
        Ok(RegisterJobData { signed: SignedJobData { data, signature }, wraps })
    }

    /// Writes a line for the people of the job, among those of rank 0.
    fn tell(&self, text: &str) {
        let grant = self.grant.get();
        tracing::warn!(job = %grant.id, text, "data of a job");
        let key = RankKey { id: grant.id, attempt: grant.attempt, rank: grant.place.first };
        keep_lines(&self.node, key, &self.lines, vec![format!("quorate: {text}")]);
    }
}

/// Packs a directory; returns the packed file, or none if the directory is empty.
fn pack(
    areas: &SlotAreas,
    bytes_max: u64,
    parent: &Path,
    name: Option<&OsStr>,
) -> Result<Option<PathBuf>, Refusal> {
    let failed = |error: io::Error| {
        let message = format!("read what the job left: {error}");
        Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
    };
    let of_data = |error: ArtifactError| Refusal::of(error.code(), &error);
    let parent = File::open(parent).map_err(failed)?;
    let directory = match name {
        Some(name) => open_data(&parent, name).map_err(failed)?,
        None => parent,
    };
    let limits = ArtifactLimits { bytes: bytes_max.min(ARTIFACT_BYTES_MAX), ..ArtifactLimits::default() };
    let work = areas.fresh_work().map_err(failed)?;
    let mut builder = ArtifactBuilder::new(&work, limits).map_err(of_data)?;
    builder.add_data(&directory, Path::new(name.unwrap_or(OsStr::new("outputs")))).map_err(of_data)?;
    Ok(builder.pack_data().map_err(of_data)?.map(|packed| packed.path))
}

/// Places a checkpoint in `/checkpoint`, verified against the root that its node signed.
///
/// # Errors
/// If it is of another job, or of no earlier attempt; if it is larger than the area, no store has it, this
/// node has no key for it, or its bytes are others.
pub(super) async fn restore(
    node: &Node,
    grant: &JobGrant,
    areas: &Arc<SlotAreas>,
    bytes_max: u64,
    source: &JobDataSource,
) -> Result<(), Refusal> {
    check_checkpoint(&node.circle.borrow().clone(), &source.signed, grant)?;
    let data = &source.signed.data;
    let JobDataKind::Checkpoint(name) = &data.kind else {
        return Err(Refusal::new(error_code::JOB_DATA_INVALID, "outputs are no checkpoint"));
    };
    let tree = data.tree().ok_or_else(|| {
        Refusal::new(error_code::JOB_DATA_INVALID, format!("checkpoint `{name}` has no tree"))
    })?;
    // A node that registers more than an area holds would fill the disks of others.
    if data.stored.bytes > bytes_max.saturating_add(ARTIFACT_INDEX_BYTES_MAX as u64) {
        let message = format!("checkpoint `{name}` has {} bytes, /checkpoint {bytes_max}", data.stored.bytes);
        return Err(Refusal::new(error_code::ARTIFACT_TOO_LARGE, message));
    }
    let failed = |error: io::Error| {
        Refusal::new(error_code::ARTIFACT_UNREADABLE, format!("place checkpoint `{name}`: {error}"))
    };
    let path = areas.fresh_work().map_err(failed)?.join("restored");
    let opened = File::options().read(true).write(true).create_new(true).open(&path);
    let file = opened.map_err(failed)?;
    node.models.fetch_data(source, &file).await?;
    let to = areas.checkpoint().join(name.as_str());
    blocking(move || unpack_data(&file, tree, &to).map_err(|error| Refusal::of(error.code(), &error)))
        .await?;
    fs::remove_file(path).map_err(failed)?;
    tracing::info!(job = %grant.id, attempt = grant.attempt, checkpoint = %name, "checkpoint placed");
    Ok(())
}

/// Runs work on files outside tokio's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Refusal::new(error_code::ARTIFACT_UNREADABLE, error.to_string())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::agent::jobs::areas::JobAreas;
    use std::os::unix::fs::symlink;

    fn areas(directory: &Path) -> SlotAreas {
        let all = JobAreas::new(directory).unwrap();
        all.clear().unwrap();
        all.make("train.0.1.1").unwrap()
    }

    #[test]
    fn a_directory_is_packed_by_its_tree_and_an_empty_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let areas = areas(directory.path());
        let (checkpoint, outputs) = (areas.checkpoint(), areas.outputs());
        let pack_step = || pack(&areas, 1 << 20, &checkpoint, Some(OsStr::new("step"))).unwrap();
        fs::create_dir(checkpoint.join("step")).unwrap();
        assert_eq!(pack_step(), None);
        assert_eq!(pack(&areas, 1 << 20, &outputs, None).unwrap(), None);
        fs::write(checkpoint.join("step/weights"), "x").unwrap();
        fs::write(outputs.join("weights"), "x").unwrap();
        let bytes = fs::read(pack_step().unwrap()).unwrap();
        let same = pack(&areas, 1 << 20, &outputs, None).unwrap().unwrap();
        assert_eq!(fs::read(same).unwrap(), bytes, "the same tree");
        assert_eq!(fs::read_dir(areas.fresh_work().unwrap()).unwrap().count(), 0);
    }

    /// Attacks of a rank: a link in place of the directory, more bytes than its area holds, and a name that
    /// is gone when the agent looks.
    #[test]
    fn a_directory_that_is_exchanged_or_too_large_is_refused_by_code() {
        let directory = tempfile::tempdir().unwrap();
        let areas = areas(directory.path());
        let checkpoint = areas.checkpoint();
        let code = |name: &str| pack(&areas, 1000, &checkpoint, Some(OsStr::new(name))).unwrap_err().code;
        symlink("/etc", checkpoint.join("link")).unwrap();
        assert_eq!(code("link"), error_code::ARTIFACT_UNREADABLE);
        assert_eq!(code("gone"), error_code::ARTIFACT_UNREADABLE);
        fs::create_dir(checkpoint.join("large")).unwrap();
        fs::write(checkpoint.join("large/weights"), [1; 1001]).unwrap();
        assert_eq!(code("large"), error_code::ARTIFACT_TOO_LARGE);
        fs::write(checkpoint.join("large/weights"), [1; 1000]).unwrap();
        assert!(pack(&areas, 1000, &checkpoint, Some(OsStr::new("large"))).unwrap().is_some());
        fs::create_dir(checkpoint.join("out")).unwrap();
        symlink("../../../etc/passwd", checkpoint.join("out/passwd")).unwrap();
        assert_eq!(code("out"), error_code::ARTIFACT_LINK_REFUSED);
    }
}
