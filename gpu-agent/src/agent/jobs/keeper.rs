//! Data of a job on its way out of this node: packed, stored, and registered with control.
//!
//! ```text
//! packed --> in the stores, under a fresh key --> statement signed --> kept by control
//! ```
//!
//! Nothing counts before control keeps it. An agent that is killed on the way leaves shards without a
//! registration, which a collection of garbage removes.

use super::areas::SlotAreas;
use crate::agent::control_client::RequestOutcome;
use crate::agent::core::Refusal;
use crate::agent::models::StoredData;
use crate::agent::node::Node;
use human_chain::{Approved, JobGrant, data_recipients};
use model_store::{ArtifactBuilder, ArtifactError, ArtifactLimits, open_data};
use protocol::artifact::ARTIFACT_BYTES_MAX;
use protocol::job_data::{
    JOB_DATA_DOMAIN, JOB_DATA_VERSION, JobData, JobDataKind, RegisterJobData, SignedJobData, wraps_digest,
};
use protocol::{canonical, error_code};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Pause before control is asked again to keep data.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);

/// Means of a slot to let data of its job leave the node.
pub(super) struct Keeper {
    pub(super) node: Arc<Node>,
    pub(super) grant: Arc<Approved<JobGrant>>,
    pub(super) areas: Arc<SlotAreas>,
    /// Bound of what is packed at once, in bytes.
    pub(super) bytes_max: u64,
}

impl Keeper {
    /// Packs, stores and registers a directory; none if it is empty.
    ///
    /// # Errors
    /// If it holds what data may not, or too much, or no store or control takes it.
    pub(super) async fn keep(
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

    /// Asks control to keep stored data, until it answers.
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
        let wraps = stored.wraps(&data_recipients(&circle, &grant.manifest, &kind))?;
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

/// Runs work on files outside tokio's own threads.
pub(super) async fn blocking<T: Send + 'static>(
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
