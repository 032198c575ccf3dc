//! Node capacity: the resources that a node has left, whether a replica fits, and how well.
//!
//! Amounts are the node's offer less the resources of its orders, never the current usage: a plan must hold
//! at a replica's peak.

mod ranks;

use crate::allocation::gpu_demand;
use crate::clock::{ClusterTime, LeaderTime};
use crate::cluster::{Cluster, Holding, HoldingPhase, Service};
use crate::jobs::JobBook;
use crate::observed::Liveness;
use crate::view::ClusterView;
use human_chain::HeldMemory;
use protocol::governance::{NodeAdmission, NodeRole};
use protocol::manifest::{Isolation, Resources, ServiceManifest, format_bytes};
use protocol::{HaltId, NodeId, NodeName, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) use ranks::{has_meeting_node, ranks_of_empty_nodes};

/// A node and its remaining capacity.
#[derive(Debug, Clone)]
pub(crate) struct NodeCapacity {
    pub(crate) id: NodeId,
    pub(crate) name: NodeName,
    admission: NodeAdmission,
    liveness: Liveness,
    isolation: Option<Isolation>,
    cpu_offered: u64,
    cpu_free: u64,
    memory_offered: u64,
    /// Memory that its replicas hold, weights included.
    memory_held: HeldMemory,
    /// Memory that ranks of jobs hold, in bytes.
    ranks_memory: u64,
    pub(crate) gpus: Vec<GpuCapacity>,
    /// Number of running replicas of each service.
    pub(crate) replicas: BTreeMap<ServiceName, u32>,
}

/// A GPU and its remaining capacity.
#[derive(Debug, Clone)]
pub(crate) struct GpuCapacity {
    pub(crate) index: u32,
    uuid: String,
    /// Product name.
    model: String,
    pub(crate) simulated: bool,
    healthy: bool,
    memory_bytes: u64,
    memory_free: u64,
    percent_free: u32,
}

/// A reason for which a node cannot take a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unschedulable {
    NotWorker,
    Unknown {
        until: LeaderTime,
    },
    Dead {
        silent_since: LeaderTime,
    },
    Region {
        has: String,
        allowed: Vec<String>,
    },
    Label {
        key: String,
        wanted: String,
        has: Option<String>,
    },
    Isolation {
        wanted: Isolation,
        provides: Isolation,
    },
    NoWrap,
    /// A halt covers the service on this node.
    Halted {
        id: HaltId,
        text: String,
    },
    Avoided {
        until: ClusterTime,
    },
    Cpu {
        needs: u64,
        free: u64,
        offers: u64,
    },
    Memory {
        needs: u64,
        free: u64,
        offers: u64,
    },
    /// `has` counts the healthy GPUs.
    GpuCount {
        needs: u32,
        free: u32,
        has: u32,
        unhealthy: u32,
        simulated: bool,
    },
    /// `has` counts the healthy GPUs.
    GpuShare {
        needs: u32,
        free: u32,
        has: u32,
        unhealthy: u32,
    },
    GpuMemory {
        needs: u64,
        largest: u64,
    },
}

impl std::fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotWorker => f.write_str("is not admitted as a worker"),
            Self::Unknown { .. } => f.write_str("has sent no heartbeat to this leader yet"),
            Self::Dead { .. } => f.write_str("sends no heartbeat; its lease has expired"),
            Self::Region { has, allowed } if has.is_empty() => {
                write!(f, "has no region; allowed: {}", allowed.join(", "))
            }
            Self::Region { has, allowed } => write!(f, "is in region {has}; allowed: {}", allowed.join(", ")),
            Self::Label { key, wanted, has: Some(has) } => write!(f, "has label {key}={has}, needs {wanted}"),
            Self::Label { key, wanted, has: None } => write!(f, "lacks label {key}={wanted}"),
            Self::Isolation { wanted, provides } => {
                write!(f, "provides isolation {provides}, needs {wanted}")
            }
            Self::NoWrap => f.write_str("has no key wrap for the model"),
            Self::Halted { text, .. } => write!(f, "is {text}"),
            Self::Avoided { .. } => f.write_str("failed to run it recently"),
            Self::Cpu { needs, free, offers } if needs > offers => {
                write!(f, "needs {needs} millicores, the node offers {offers} ({free} free)")
            }
            Self::Cpu { needs, free, .. } => write!(f, "needs {needs} millicores, {free} free"),
            Self::Memory { needs, free, .. } => {
                write!(f, "needs {} of memory, {} free", format_bytes(*needs), format_bytes(*free))
            }
            Self::GpuCount { needs, free, has, unhealthy, simulated } => {
                let kind = if *simulated { "simulated " } else { "" };
                write!(f, "needs {needs} whole GPUs, {free} of {has} {kind}free")?;
                if *unhealthy > 0 { write!(f, ", {unhealthy} unhealthy") } else { Ok(()) }
            }
            Self::GpuShare { needs, has: 0, unhealthy: 1.., .. } => {
                write!(f, "needs {needs} % of a GPU, has no healthy one")
            }
            Self::GpuShare { needs, has: 0, .. } => write!(f, "needs {needs} % of a GPU, has no GPU"),
            Self::GpuShare { needs, free, .. } => {
                write!(f, "needs {needs} % of a GPU, at most {free} % free on one")
            }
            Self::GpuMemory { needs, largest } => {
                write!(
                    f,
                    "needs {} on each GPU, at most {} free",
                    format_bytes(*needs),
                    format_bytes(*largest)
                )
            }
        }
    }
}

/// Returns every admitted node with the capacity that these services and all jobs leave, by name.
pub(crate) fn capacities(view: ClusterView, services: &BTreeMap<ServiceName, Service>) -> Vec<NodeCapacity> {
    capacities_beside(view, services, view.cluster.jobs())
}

/// Returns every admitted node with the capacity that these services and jobs leave, by name.
pub(crate) fn capacities_beside(
    view: ClusterView,
    services: &BTreeMap<ServiceName, Service>,
    jobs: &JobBook,
) -> Vec<NodeCapacity> {
    let cluster = view.cluster;
    let mut capacities: Vec<NodeCapacity> =
        cluster.nodes().map(|node| NodeCapacity::empty(node, view)).collect();
    capacities.sort_by(|a, b| a.name.cmp(&b.name));
    let positions: BTreeMap<NodeId, usize> =
        capacities.iter().enumerate().map(|(i, capacity)| (capacity.id, i)).collect();
    debug_assert_eq!(positions.len(), capacities.len(), "a key admits one node");
    for service in services.values() {
        for (_, holding) in service.held() {
            let Some(position) = positions.get(&holding.order.node) else { continue };
            let capacity = &mut capacities[*position];
            let manifest = cluster.manifest_of(&holding.order.certificate).unwrap_or(&service.manifest);
            let bytes = model_bytes(cluster, manifest);
            match holding.phase {
                HoldingPhase::Running => capacity.host(manifest, &holding.order.gpus, bytes),
                _ => capacity.take(manifest, &holding.order.gpus, bytes),
            }
        }
    }
    for (_, held) in jobs.held() {
        let Some(position) = positions.get(&held.node) else { continue };
        let Some(manifest) = cluster.job_manifest(&held.certificate) else { continue };
        capacities[*position].take_ranks(&manifest.resources, held.ranks.count, &held.gpus);
    }
    capacities
}

/// Returns the capacity of one node beside these holdings of it alone.
pub(crate) fn capacity_beside<'a>(
    view: ClusterView,
    node: &NodeAdmission,
    holdings: impl Iterator<Item = &'a Holding>,
) -> NodeCapacity {
    let mut capacity = NodeCapacity::empty(node, view);
    for holding in holdings {
        debug_assert_eq!(holding.order.node, node.id, "holdings of one node");
        let Some(manifest) = view.cluster.manifest_of(&holding.order.certificate) else { continue };
        capacity.host(manifest, &holding.order.gpus, model_bytes(view.cluster, manifest));
    }
    for (_, held) in view.cluster.jobs().held().filter(|(_, held)| held.node == node.id) {
        let Some(manifest) = view.cluster.job_manifest(&held.certificate) else { continue };
        capacity.take_ranks(&manifest.resources, held.ranks.count, &held.gpus);
    }
    capacity
}

/// Returns the size of a manifest's model in bytes; a node keeps one copy for all its replicas.
pub(crate) fn model_bytes(cluster: &Cluster, manifest: &ServiceManifest) -> u64 {
    cluster.models.get(&manifest.model.root).map_or(0, |record| record.bytes)
}

impl NodeCapacity {
    fn empty(admission: &NodeAdmission, view: ClusterView) -> Self {
        let known = view.observed.node(&admission.id);
        let resources = known.map(|node| node.resources.clone()).unwrap_or_default();
        // A node that reports an index twice offers that GPU once. Orders name GPUs by rising index, in
        // whichever order the node reports them.
        let mut seen = BTreeSet::new();
        let distinct = resources.gpus.iter().filter(|gpu| seen.insert(gpu.index));
        let mut gpus: Vec<GpuCapacity> = distinct
            .map(|gpu| GpuCapacity {
                index: gpu.index,
                uuid: gpu.uuid.clone(),
                model: gpu.name.clone(),
                simulated: gpu.simulated,
                healthy: gpu.healthy,
                memory_bytes: gpu.memory_bytes,
                memory_free: gpu.memory_bytes,
                percent_free: 100,
            })
            .collect();
        gpus.sort_unstable_by_key(|gpu| gpu.index);
        debug_assert!(gpus.is_sorted_by(|a, b| a.index < b.index), "each GPU is offered once");
        Self {
            id: admission.id,
            name: admission.name.clone(),
            admission: admission.clone(),
            liveness: view.liveness(&admission.id),
            isolation: known.map(|node| node.isolation),
            cpu_offered: resources.cpu_millicores,
            cpu_free: resources.cpu_millicores,
            memory_offered: resources.memory_bytes,
            memory_held: HeldMemory::default(),
            ranks_memory: 0,
            gpus,
            replicas: BTreeMap::new(),
        }
    }

    /// Counts a running replica and the resources that it holds.
    pub(crate) fn host(&mut self, manifest: &ServiceManifest, gpus: &[u32], model_bytes: u64) {
        self.take(manifest, gpus, model_bytes);
        *self.replicas.entry(manifest.name.clone()).or_default() += 1;
    }

    /// Deducts the resources that a replica holds, whether it runs or drains.
    fn take(&mut self, manifest: &ServiceManifest, gpus: &[u32], model_bytes: u64) {
        let needs = &manifest.resources;
        debug_assert_eq!(gpus.len(), gpu_demand(needs).0, "an order names the GPUs that it asks for");
        self.cpu_free = self.cpu_free.saturating_sub(needs.cpu_millicores);
        self.memory_held.add(manifest, model_bytes);
        for gpu in self.gpus.iter_mut().filter(|gpu| gpus.contains(&gpu.index)) {
            if needs.gpu_count > 0 {
                (gpu.percent_free, gpu.memory_free) = (0, 0);
            } else {
                gpu.percent_free = gpu.percent_free.saturating_sub(needs.gpu_share_percent);
                gpu.memory_free = gpu.memory_free.saturating_sub(needs.gpu_memory_bytes);
            }
        }
    }

    /// Returns the memory that is left, in bytes.
    fn memory_free(&self) -> u64 {
        self.memory_offered.saturating_sub(self.memory_held.bytes().saturating_add(self.ranks_memory))
    }

    /// Returns every obstacle on this node that is independent of free resources: those in its
    /// admission, and its isolation.
    pub(crate) fn unfit(&self, manifest: &ServiceManifest) -> Vec<Unschedulable> {
        let placement = &manifest.placement;
        let mut obstacles = Vec::new();
        if !self.admission.roles.contains(&NodeRole::Worker) {
            obstacles.push(Unschedulable::NotWorker);
        }
        if !placement.regions.is_empty() && !placement.regions.contains(&self.admission.region) {
            let (has, allowed) = (self.admission.region.clone(), placement.regions.clone());
            obstacles.push(Unschedulable::Region { has, allowed });
        }
        for (key, wanted) in &placement.node_selector {
            let has = self.admission.labels.get(key);
            if has != Some(wanted) {
                let (key, wanted, has) = (key.clone(), wanted.clone(), has.cloned());
                obstacles.push(Unschedulable::Label { key, wanted, has });
            }
        }
        if let Some(provides) = self.isolation.filter(|provides| *provides < placement.isolation) {
            obstacles.push(Unschedulable::Isolation { wanted: placement.isolation, provides });
        }
        obstacles
    }

    /// Returns the first of these GPUs that is gone or unhealthy, as reported by a node that is alive.
    pub(crate) fn lost_gpu(&self, gpus: &[u32]) -> Option<u32> {
        let works = |index: &u32| self.gpus.iter().any(|gpu| gpu.index == *index && gpu.healthy);
        let lost = gpus.iter().copied().find(|index| !works(index));
        lost.filter(|_| self.liveness == Liveness::Alive)
    }

    /// Returns the GPUs that one more replica would get, or every obstacle if it does not fit.
    pub(crate) fn fit(
        &self,
        manifest: &ServiceManifest,
        model_bytes: u64,
    ) -> Result<Vec<u32>, Vec<Unschedulable>> {
        let mut obstacles = self.unfit(manifest);
        match self.liveness {
            Liveness::Alive => {}
            Liveness::Unknown { until } => obstacles.push(Unschedulable::Unknown { until }),
            Liveness::Dead { silent_since } => obstacles.push(Unschedulable::Dead { silent_since }),
        }
        if self.liveness != Liveness::Alive {
            debug_assert!(!obstacles.is_empty(), "a lost node is an obstacle");
            return Err(obstacles);
        }
        let needs = &manifest.resources;
        if needs.cpu_millicores > self.cpu_free {
            let (needs, free, offers) = (needs.cpu_millicores, self.cpu_free, self.cpu_offered);
            obstacles.push(Unschedulable::Cpu { needs, free, offers });
        }
        let (memory, free) = (self.memory_held.needed(manifest, model_bytes), self.memory_free());
        if memory > free {
            let offers = self.memory_offered;
            obstacles.push(Unschedulable::Memory { needs: memory, free, offers });
        }
        let gpus = self
            .choose_gpus(needs)
            .map_err(|unschedulable| obstacles.push(unschedulable))
            .unwrap_or_default();
        if !obstacles.is_empty() {
            return Err(obstacles);
        }
        debug_assert_eq!(gpus.len(), gpu_demand(needs).0, "a replica gets the GPUs that it asks for");
        Ok(gpus)
    }

    /// Chooses whole GPUs by lowest index, or a share on the fullest GPU that can hold it.
    fn choose_gpus(&self, needs: &Resources) -> Result<Vec<u32>, Unschedulable> {
        let healthy = || self.gpus.iter().filter(|gpu| gpu.healthy);
        let has = healthy().count() as u32;
        let unhealthy = self.gpus.len() as u32 - has;
        if needs.gpu_count > 0 {
            let free: Vec<&GpuCapacity> = healthy().filter(|gpu| gpu.percent_free == 100).collect();
            let simulated = self.gpus.iter().any(|gpu| gpu.simulated);
            let count = needs.gpu_count as usize;
            if free.len() < count {
                let free = free.len() as u32;
                return Err(Unschedulable::GpuCount {
                    needs: needs.gpu_count,
                    free,
                    has,
                    unhealthy,
                    simulated,
                });
            }
            let large = free.iter().filter(|gpu| gpu.memory_bytes >= needs.gpu_memory_bytes);
            let chosen: Vec<u32> = large.map(|gpu| gpu.index).take(count).collect();
            if chosen.len() < count {
                let mut sizes: Vec<u64> = free.iter().map(|gpu| gpu.memory_bytes).collect();
                sizes.sort_unstable_by(|a, b| b.cmp(a));
                let largest = sizes[count - 1];
                debug_assert!(largest < needs.gpu_memory_bytes, "fewer GPUs are large enough than asked for");
                return Err(Unschedulable::GpuMemory { needs: needs.gpu_memory_bytes, largest });
            }
            debug_assert!(chosen.is_sorted_by(|a, b| a < b), "an order names GPUs by rising index");
            return Ok(chosen);
        }
        if needs.gpu_share_percent > 0 {
            let shared: Vec<&GpuCapacity> =
                healthy().filter(|gpu| gpu.percent_free >= needs.gpu_share_percent).collect();
            let large = shared.iter().filter(|gpu| gpu.memory_free >= needs.gpu_memory_bytes);
            return match large.min_by_key(|gpu| (gpu.percent_free, gpu.index)) {
                Some(gpu) => Ok(vec![gpu.index]),
                None if shared.is_empty() => {
                    let free = healthy().map(|gpu| gpu.percent_free).max().unwrap_or(0);
                    Err(Unschedulable::GpuShare { needs: needs.gpu_share_percent, free, has, unhealthy })
                }
                None => {
                    let largest = shared.iter().map(|gpu| gpu.memory_free).max().unwrap_or(0);
                    debug_assert!(
                        largest < needs.gpu_memory_bytes,
                        "no GPU with a free share is large enough"
                    );
                    Err(Unschedulable::GpuMemory { needs: needs.gpu_memory_bytes, largest })
                }
            };
        }
        Ok(Vec::new())
    }

    /// Returns the node's region as the circle admitted it; empty if none was given.
    pub(crate) fn region(&self) -> &str {
        &self.admission.region
    }

    /// Scores this node for one more replica, given that it fits; lower is better. The first criterion
    /// spreads the replicas of a service over nodes, since nodes fail as a whole. The second spreads them
    /// over regions; `region_replicas` counts those in this node's region. The third keeps GPUs whole, and
    /// nodes with GPUs free for services that need them. The last prefers the fullest node, so that large
    /// replicas fit elsewhere.
    pub(crate) fn score(
        &self,
        manifest: &ServiceManifest,
        gpus: &[u32],
        model_bytes: u64,
        region_replicas: u32,
    ) -> Score {
        let needs = &manifest.resources;
        debug_assert!(needs.cpu_millicores <= self.cpu_free, "only a node that fits is scored");
        debug_assert_eq!(gpus.len(), gpu_demand(needs).0, "the GPUs are those of the fit");
        let whole: Vec<u32> = self
            .gpus
            .iter()
            .filter(|gpu| gpu.healthy && gpu.percent_free == 100)
            .map(|gpu| gpu.index)
            .collect();
        let touched = whole.iter().filter(|index| gpus.contains(index)).count() as u32;
        let cpu_left = self.cpu_free.saturating_sub(needs.cpu_millicores);
        let memory_left = self.memory_free().saturating_sub(self.memory_held.needed(manifest, model_bytes));
        Score {
            replicas: self.replicas.get(&manifest.name).copied().unwrap_or(0),
            region_replicas,
            gpus_broken: if needs.gpu_share_percent > 0 { touched } else { 0 },
            gpus_left: whole.len() as u32 - touched,
            cpu_left_permille: permille(cpu_left, self.cpu_offered),
            memory_left_permille: permille(memory_left, self.memory_offered),
        }
    }
}

/// A node's score for a replica, compared field by field; lower is better. Ties go to the lower node name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    pub(crate) replicas: u32,
    region_replicas: u32,
    gpus_broken: u32,
    gpus_left: u32,
    cpu_left_permille: u64,
    memory_left_permille: u64,
}

fn permille(part: u64, whole: u64) -> u64 {
    debug_assert!(part <= whole, "a part of a whole");
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u64
}
