//! Capacity for ranks of jobs, beside the replicas of services.

use super::{GpuCapacity, NodeCapacity};
use crate::allocation::gpu_demand;
use crate::cluster::Cluster;
use crate::jobs::RankGpu;
use crate::observed::Liveness;
use crate::view::ClusterView;
use human_chain::placement_allows;
use protocol::NodeId;
use protocol::governance::NodeRole;
use protocol::manifest::{JobManifest, Resources};
use protocol::usage::UsageRate;

/// Returns the number of ranks of a job that each admitted node holds in one slot while nothing else runs
/// there, the largest first; none while this leader does not know every worker.
pub(crate) fn ranks_of_empty_nodes(view: ClusterView, manifest: &JobManifest) -> Option<Vec<u32>> {
    let workers = || view.cluster.nodes().filter(|node| node.roles.contains(&NodeRole::Worker));
    if workers().any(|node| view.observed.node(&node.id).is_none()) {
        return None;
    }
    let empty = workers().map(|node| NodeCapacity::empty(node, view));
    let fits = |node: NodeCapacity| match node.allows(manifest) {
        true => node.fit_ranks(manifest, manifest.ranks_per_slot).len() as u32,
        false => 0,
    };
    let mut counts: Vec<u32> = empty.map(fits).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    debug_assert!(counts.iter().all(|count| *count <= manifest.ranks_per_slot), "one slot on each node");
    Some(counts)
}

/// Returns whether any two nodes of a gang can reach each other: one of them has a storage address, at which
/// its agent listens, or both dial a third node that has one.
pub(crate) fn has_meeting_node(cluster: &Cluster) -> bool {
    cluster.nodes().any(|node| node.storage.is_some())
}

impl NodeCapacity {
    /// Returns whether the envelope of a job admits this node.
    pub(crate) fn allows(&self, manifest: &JobManifest) -> bool {
        let provides = self.isolation.is_some_and(|isolation| isolation >= manifest.placement.isolation);
        provides
            && self.admission.roles.contains(&NodeRole::Worker)
            && placement_allows(&manifest.placement, &self.admission)
    }

    /// Returns what the node offers, without GPUs that are not healthy.
    pub(crate) fn offers(&self) -> UsageRate {
        let healthy = self.gpus.iter().filter(|gpu| gpu.healthy).count() as u64;
        UsageRate {
            gpu_millis: healthy * 1000,
            cpu_millicores: self.cpu_offered,
            memory_mib: self.memory_offered / (1024 * 1024),
        }
    }

    /// Returns whether its lease certainly holds.
    pub(crate) fn is_alive(&self) -> bool {
        self.liveness == Liveness::Alive
    }

    /// Returns whether this is the node with this identity.
    pub(crate) fn is_node(&self, id: NodeId) -> bool {
        self.id == id
    }

    /// Returns the GPUs of each further rank that fits, for at most this many ranks.
    pub(crate) fn fit_ranks(&self, manifest: &JobManifest, most: u32) -> Vec<Vec<RankGpu>> {
        let needs = &manifest.resources;
        let by = |free: u64, need: u64| free.checked_div(need).unwrap_or(u64::from(most));
        let count = by(self.cpu_free, needs.cpu_millicores).min(by(self.memory_free(), needs.memory_bytes));
        let count = count.min(u64::from(most)) as u32;
        let mut gpus: Vec<GpuCapacity> = self.gpus.iter().filter(|gpu| gpu.healthy).cloned().collect();
        gpus.retain(|gpu| manifest.gpu_models.is_empty() || manifest.gpu_models.contains(&gpu.model));
        let mut ranks = Vec::new();
        for _ in 0..count {
            let Some(chosen) = choose(&mut gpus, needs) else { break };
            ranks.push(chosen);
        }
        debug_assert!(ranks.len() as u32 <= most, "no more than asked for");
        ranks
    }

    /// Returns whether these ranks, with these GPUs, fit beside everything else.
    pub(crate) fn has_room(&self, needs: &Resources, count: u32, gpus: &[RankGpu]) -> bool {
        let times = |amount: u64| amount.saturating_mul(u64::from(count));
        let (_, percent) = gpu_demand(needs);
        let is_free = |gpu: &RankGpu| {
            let same = gpus.iter().filter(|other| other.index == gpu.index).count() as u32;
            let known = self.gpus.iter().find(|known| known.index == gpu.index && known.healthy);
            known.is_some_and(|known| {
                let memory = needs.gpu_memory_bytes.saturating_mul(u64::from(same));
                known.percent_free >= percent.saturating_mul(same) && known.memory_free >= memory
            })
        };
        times(needs.cpu_millicores) <= self.cpu_free
            && times(needs.memory_bytes) <= self.memory_free()
            && gpus.iter().all(is_free)
    }

    /// Deducts what ranks hold.
    pub(crate) fn take_ranks(&mut self, needs: &Resources, count: u32, gpus: &[RankGpu]) {
        let times = |amount: u64| amount.saturating_mul(u64::from(count));
        self.cpu_free = self.cpu_free.saturating_sub(times(needs.cpu_millicores));
        self.ranks_memory = self.ranks_memory.saturating_add(times(needs.memory_bytes));
        for gpu in gpus {
            if let Some(known) = self.gpus.iter_mut().find(|known| known.index == gpu.index) {
                take_share(known, needs);
            }
        }
    }

    /// Gives back what ranks held.
    pub(crate) fn give_ranks(&mut self, needs: &Resources, count: u32, gpus: &[RankGpu]) {
        let times = |amount: u64| amount.saturating_mul(u64::from(count));
        self.cpu_free = self.cpu_free.saturating_add(times(needs.cpu_millicores)).min(self.cpu_offered);
        self.ranks_memory = self.ranks_memory.saturating_sub(times(needs.memory_bytes));
        debug_assert!(self.cpu_free <= self.cpu_offered, "a node has no more than it offers");
        for gpu in gpus {
            let Some(known) = self.gpus.iter_mut().find(|known| known.index == gpu.index) else { continue };
            if needs.gpu_count > 0 {
                (known.percent_free, known.memory_free) = (100, known.memory_bytes);
            } else {
                known.percent_free = known.percent_free.saturating_add(needs.gpu_share_percent).min(100);
                let memory = known.memory_free.saturating_add(needs.gpu_memory_bytes);
                known.memory_free = memory.min(known.memory_bytes);
            }
        }
    }
}

/// Takes the GPUs of one rank: whole ones by lowest index, or a share on the fullest GPU that can hold it.
fn choose(gpus: &mut [GpuCapacity], needs: &Resources) -> Option<Vec<RankGpu>> {
    let (count, percent) = gpu_demand(needs);
    let mut chosen = Vec::new();
    for _ in 0..count {
        let free = gpus
            .iter_mut()
            .filter(|gpu| gpu.percent_free >= percent && gpu.memory_free >= needs.gpu_memory_bytes);
        let best = free.min_by_key(|gpu| (gpu.percent_free, gpu.index))?;
        take_share(best, needs);
        chosen.push(RankGpu { index: best.index, uuid: best.uuid.clone() });
    }
    debug_assert_eq!(chosen.len(), count, "a rank has the GPUs that its manifest grants");
    Some(chosen)
}

fn take_share(gpu: &mut GpuCapacity, needs: &Resources) {
    debug_assert!(gpu.percent_free <= 100 && gpu.memory_free <= gpu.memory_bytes, "no more than a whole one");
    if needs.gpu_count > 0 {
        (gpu.percent_free, gpu.memory_free) = (0, 0);
    } else {
        gpu.percent_free = gpu.percent_free.saturating_sub(needs.gpu_share_percent);
        gpu.memory_free = gpu.memory_free.saturating_sub(needs.gpu_memory_bytes);
    }
}
