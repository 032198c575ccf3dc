//! Slots of gangs that a node is to run.
//!
//! Orders leave this module unsigned: the shell signs them with its control key when it answers.

use crate::cluster::Cluster;
use crate::jobs::{JobHoldingPhase, JobState};
use protocol::NodeId;
use protocol::job::JobOrder;
use protocol::job_data::JobDataSource;
use protocol::job_report::ArtifactSource;
use protocol::manifest::ModelChoice;
use protocol::model::{ModelRecord, StoredKind};

/// One slot of a gang on a node: `protocol::job_report::JobAssignment` before its orders are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeJobAssignment {
    /// Order for the slot.
    pub order: JobOrder,
    /// True once every slot of the attempt was ready, and at once for a slot of all ranks.
    pub start: bool,
    /// Orders for the other slots of the attempt.
    pub peers: Vec<JobOrder>,
    /// Location of the artifact; none if no artifact of its root is imported.
    pub artifact: Option<ArtifactSource>,
    /// Location of each model and dataset that the ranks read, as far as they are registered.
    pub inputs: Vec<ArtifactSource>,
    /// Checkpoint with which the attempt begins; none once its ranks run, which may leave others.
    pub checkpoint: Option<JobDataSource>,
}

/// Returns the slots of gangs that a node is to run. A slot that is absent here must end. A node that is not
/// admitted gets none.
#[must_use]
pub fn desired_jobs(cluster: &Cluster, node: NodeId) -> Vec<NodeJobAssignment> {
    if cluster.node(&node).is_none() {
        return Vec::new();
    }
    let jobs = cluster.jobs();
    let active = |phase: JobHoldingPhase| phase == JobHoldingPhase::Active;
    let mine = jobs.held().filter(|(_, held)| held.node == node && active(held.phase));
    let assignment = |(name, held): (crate::jobs::JobSlotName, &crate::jobs::JobHolding)| {
        let gang = jobs.gang(held.id).filter(|(other, _)| *other != name);
        let peers: Vec<JobOrder> = gang.filter_map(|(name, held)| cluster.job_order(&name, held)).collect();
        let state = jobs.jobs().get(&held.id)?.state;
        debug_assert!(state.is_placed(), "an active slot is of an attempt under way");
        let order = cluster.job_order(&name, held)?;
        let artifact = artifact_source(cluster, &order, node);
        let runs = state == JobState::Running;
        // A slot of all ranks waits for no other.
        let is_whole = cluster.job_manifest(&held.certificate).map(|job| job.ranks) == Some(held.ranks.count);
        let start = runs || is_whole;
        let checkpoint = if runs { None } else { jobs.checkpoint_for(cluster, held) };
        let inputs = input_sources(cluster, &order, node);
        Some(NodeJobAssignment { order, start, peers, artifact, inputs, checkpoint })
    };
    mine.filter_map(assignment).collect()
}

/// Returns the location of each model and dataset that a job reads, with its key for the node.
fn input_sources(cluster: &Cluster, order: &JobOrder, node: NodeId) -> Vec<ArtifactSource> {
    let Some(manifest) = cluster.job_manifest(&order.certificate) else { return Vec::new() };
    let inputs = manifest.models.iter().chain(&manifest.datasets);
    let source = |choice: &ModelChoice| {
        let record = cluster.models().get(&choice.root)?.clone();
        Some(ArtifactSource { wrap: cluster.wrap_for(&record.root, node).cloned(), record })
    };
    let found: Vec<ArtifactSource> = inputs.filter_map(source).collect();
    debug_assert!(found.len() <= manifest.models.len() + manifest.datasets.len(), "one for each at most");
    found
}

/// Returns the location of the artifact of an order, with its key for the node. Of several imports of one
/// tree, one whose key the node has comes first.
fn artifact_source(cluster: &Cluster, order: &JobOrder, node: NodeId) -> Option<ArtifactSource> {
    let manifest = cluster.job_manifest(&order.certificate)?;
    let chosen = manifest.artifact.as_ref().or(order.submission.submission.artifact.as_ref())?;
    let is_chosen = |kind: &StoredKind| matches!(kind, StoredKind::Artifact { tree } if *tree == chosen.root);
    let imports = cluster.models().values().filter(|record| is_chosen(&record.kind));
    let source = |record: &ModelRecord| ArtifactSource {
        wrap: cluster.wrap_for(&record.root, node).cloned(),
        record: record.clone(),
    };
    let found = imports.map(source).min_by_key(|source| source.wrap.is_none());
    debug_assert!(
        found.as_ref().is_none_or(|source| is_chosen(&source.record.kind)),
        "it is of the order's root"
    );
    found
}
