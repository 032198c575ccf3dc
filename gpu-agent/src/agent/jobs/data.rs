//! Checkpoints and outputs of the slot of rank 0: found, and kept while their job may still need them.

use super::areas::SlotAreas;
use super::keeper::{Keeper, blocking};
use super::output::keep_lines;
use super::rank_log::RankLog;
use super::watch::CheckpointWatch;
use crate::agent::core::Refusal;
use crate::agent::models::StoredData;
use crate::agent::node::Node;
use human_chain::{JobGrant, check_checkpoint};
use model_store::unpack_data;
use overlay::CancellationToken;
use protocol::artifact::ARTIFACT_INDEX_BYTES_MAX;
use protocol::job_data::{JobDataKind, JobDataSource};
use protocol::{CheckpointName, error_code};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two looks at the renames of ranks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Longest text of a refusal in the lines of a job, in characters.
const REASON_CHARACTERS_MAX: usize = 1024;

/// Work of a slot on the data of its job.
pub(super) struct SlotData {
    keeper: Keeper,
    /// Output of rank 0, among which the people of the job find what is not kept.
    log: Arc<RankLog>,
    /// Checkpoints that control keeps of this attempt, oldest first, and that this node may remove.
    made: VecDeque<StoredData>,
    /// Names that were taken in this attempt.
    names: BTreeSet<CheckpointName>,
}

impl SlotData {
    /// Returns the data of a slot that has left none yet.
    pub(super) fn new(keeper: Keeper, log: Arc<RankLog>) -> Self {
        Self { keeper, log, made: VecDeque::new(), names: BTreeSet::new() }
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
        let parent = self.keeper.areas.checkpoint();
        match self.keeper.keep(JobDataKind::Checkpoint(name.clone()), &parent, Some(directory)).await {
            Ok(Some(stored)) => {
                tracing::info!(job = %self.keeper.grant.get().id, checkpoint = %name, "checkpoint kept");
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
        let most = self.keeper.grant.get().manifest.checkpoints as usize;
        while self.made.len() > most {
            let Some(oldest) = self.made.pop_front() else { break };
            self.keeper.node.models.let_go(&oldest).await;
        }
    }

    /// Keeps the outputs of ranks that have all succeeded. Nothing is kept of an empty directory.
    ///
    /// # Errors
    /// If they hold what data may not, or too much, or no store or control takes them.
    pub(super) async fn keep_outputs(&self) -> Result<(), Refusal> {
        let kept = self.keeper.keep(JobDataKind::Outputs, &self.keeper.areas.outputs(), None).await?;
        if let Some(stored) = kept {
            tracing::info!(job = %self.keeper.grant.get().id, bytes = stored.record().bytes, "outputs kept");
        }
        Ok(())
    }

    /// Writes a line for the people of the job, among those of rank 0.
    fn tell(&self, text: &str) {
        tracing::warn!(job = %self.keeper.grant.get().id, text, "data of a job");
        keep_lines(&self.keeper.node, &self.log, vec![format!("quorate: {text}")]);
    }
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
