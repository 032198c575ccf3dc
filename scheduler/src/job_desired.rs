//! Slots of gangs that a node is to run.
//!
//! Orders leave this module unsigned: the shell signs them with its control key when it answers.

use crate::cluster::Cluster;
use crate::jobs::{JobHoldingPhase, JobState};
use protocol::NodeId;
use protocol::job::JobOrder;

/// One slot of a gang on a node: `protocol::job_report::JobAssignment` before its orders are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeJobAssignment {
    /// Order for the slot.
    pub order: JobOrder,
    /// True once every slot of the attempt was ready.
    pub start: bool,
    /// Orders for the other slots of the attempt.
    pub peers: Vec<JobOrder>,
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
        Some(NodeJobAssignment { order, start: state == JobState::Running, peers })
    };
    mine.filter_map(assignment).collect()
}
