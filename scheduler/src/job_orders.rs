//! Orders of gangs, their manifests, and the GPUs that they hold.

use crate::allocation::gpu_demand;
use crate::cluster::Cluster;
use crate::jobs::{JobBook, JobHolding, JobSlotName};
use protocol::governance::Change;
use protocol::job::JobOrder;
use protocol::manifest::{JobManifest, Manifest};
use protocol::{Digest, NodeId};
use std::collections::BTreeMap;

impl JobBook {
    /// Returns the allocated percentage of each GPU, by node and index.
    pub(crate) fn allocated_gpus(&self, cluster: &Cluster) -> BTreeMap<(NodeId, u32), u32> {
        let mut allocated: BTreeMap<(NodeId, u32), u32> = BTreeMap::new();
        for (_, holding) in self.held() {
            let Some(manifest) = cluster.job_manifest(&holding.certificate) else { continue };
            let (_, percent) = gpu_demand(&manifest.resources);
            for gpu in &holding.gpus {
                let sum = allocated.entry((holding.node, gpu.index)).or_default();
                *sum = sum.saturating_add(percent);
            }
        }
        allocated
    }
}

impl Cluster {
    /// Returns the jobs.
    #[must_use]
    pub fn jobs(&self) -> &JobBook {
        &self.jobs
    }

    /// Returns the manifest of a job that this certificate approves, in force or not.
    #[must_use]
    pub fn job_manifest(&self, certificate: &Digest) -> Option<&JobManifest> {
        let Change::Deploy(manifest) = &self.bundle(certificate)?.certificate.proposal.change else {
            return None;
        };
        match manifest.as_ref() {
            Manifest::Job(manifest) => Some(manifest),
            Manifest::Service(_) | Manifest::Edge(_) => None,
        }
    }

    /// Returns the order by which a node holds a slot of a job; none if the job is forgotten.
    #[must_use]
    pub fn job_order(&self, name: &JobSlotName, holding: &JobHolding) -> Option<JobOrder> {
        let job = self.jobs.jobs.get(&holding.id)?;
        debug_assert_eq!(job.submission().job, name.job, "a slot is of the job that it runs");
        Some(JobOrder {
            circle: self.circle_id()?,
            certificate: holding.certificate,
            submission: job.signed.clone(),
            attempt: holding.attempt,
            slot: name.slot,
            fence: name.fence,
            node: holding.node,
            ranks: holding.ranks,
            gpus: holding.gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
            issued_at: holding.issued_at,
        })
    }
}
