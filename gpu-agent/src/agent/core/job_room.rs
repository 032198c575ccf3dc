//! Room for jobs on a node: the resources that job slots hold, and those that they leave to services.
//!
//! A GPU serves replicas or jobs, never both: a rank addresses it by its UUID and computes on it alone or
//! beside ranks that have a share.

use super::{GrantedResources, Refusal, SlotKey};
use human_chain::JobGrant;
use protocol::agent::NodeResources;
use protocol::error_code;
use std::collections::BTreeMap;

/// A whole GPU, in percent.
const GPU_PERCENT_MAX: u64 = 100;

/// Resources of one job slot, or of several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct SlotNeeds {
    cpu_millicores: u64,
    memory_bytes: u64,
    /// Percent and bytes of memory of each GPU, by its UUID.
    gpus: BTreeMap<String, (u64, u64)>,
}

impl SlotNeeds {
    /// Returns the resources of all ranks of a slot.
    fn of(grant: &JobGrant) -> Self {
        let (each, ranks) = (&grant.manifest.resources, grant.ranks.len() as u64);
        let percent =
            if each.gpu_share_percent > 0 { u64::from(each.gpu_share_percent) } else { GPU_PERCENT_MAX };
        let mut needs = Self {
            cpu_millicores: each.cpu_millicores.saturating_mul(ranks),
            memory_bytes: each.memory_bytes.saturating_mul(ranks),
            gpus: BTreeMap::new(),
        };
        for uuid in &grant.gpus {
            let (held, memory) = needs.gpus.entry(uuid.clone()).or_default();
            *held = held.saturating_add(percent);
            *memory = memory.saturating_add(each.gpu_memory_bytes);
        }
        debug_assert!(needs.gpus.len() <= grant.gpus.len(), "each GPU is counted once");
        needs
    }

    fn add(&mut self, other: &Self) {
        self.cpu_millicores = self.cpu_millicores.saturating_add(other.cpu_millicores);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        for (uuid, (percent, memory)) in &other.gpus {
            let (held, held_memory) = self.gpus.entry(uuid.clone()).or_default();
            *held = held.saturating_add(*percent);
            *held_memory = held_memory.saturating_add(*memory);
        }
    }
}

/// Resources that job slots hold on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldByJobs {
    slots: BTreeMap<SlotKey, SlotNeeds>,
}

impl HeldByJobs {
    /// Returns the resources of these grants.
    #[must_use]
    pub fn of<'a>(grants: impl IntoIterator<Item = (&'a SlotKey, &'a JobGrant)>) -> Self {
        let slots = grants.into_iter().map(|(key, grant)| (key.clone(), SlotNeeds::of(grant)));
        Self { slots: slots.collect() }
    }

    /// Adds a grant; it replaces that of its slot.
    pub fn add(&mut self, key: &SlotKey, grant: &JobGrant) {
        self.slots.insert(key.clone(), SlotNeeds::of(grant));
    }

    fn sum_without(&self, key: Option<&SlotKey>) -> SlotNeeds {
        let mut sum = SlotNeeds::default();
        for (_, needs) in self.slots.iter().filter(|(other, _)| Some(*other) != key) {
            sum.add(needs);
        }
        sum
    }

    /// Checks that a grant fits beside those of other slots into what services leave `free`.
    ///
    /// # Errors
    /// The first resource of which too little is left.
    pub fn check(&self, key: &SlotKey, grant: &JobGrant, free: &NodeResources) -> Result<(), Refusal> {
        let (held, needs) = (self.sum_without(Some(key)), SlotNeeds::of(grant));
        let check = |what: &str, held: u64, needs: u64, there: u64| {
            if held.checked_add(needs).is_some_and(|sum| sum <= there) {
                return Ok(());
            }
            let message =
                format!("{key} needs {needs} of {what}; services leave {there}, other jobs hold {held}");
            Err(Refusal::new(error_code::RESOURCES_EXCEEDED, message))
        };
        check("CPU, in millicores", held.cpu_millicores, needs.cpu_millicores, free.cpu_millicores)?;
        check("memory, in bytes", held.memory_bytes, needs.memory_bytes, free.memory_bytes)?;
        for (uuid, (percent, memory)) in &needs.gpus {
            let gpu = free.gpus.iter().find(|gpu| gpu.uuid == *uuid);
            let (held_percent, held_memory) = held.gpus.get(uuid).copied().unwrap_or_default();
            let there = gpu.map_or(0, |_| GPU_PERCENT_MAX);
            check(&format!("GPU `{uuid}`, in percent"), held_percent, *percent, there)?;
            let there = gpu.map_or(0, |gpu| gpu.memory_bytes);
            check(&format!("memory of GPU `{uuid}`, in bytes"), held_memory, *memory, there)?;
        }
        Ok(())
    }

    /// Returns what these slots leave of a node's resources to services.
    #[must_use]
    pub fn left_of(&self, node: &NodeResources) -> NodeResources {
        let held = self.sum_without(None);
        let gpus = node.gpus.iter().filter(|gpu| !held.gpus.contains_key(&gpu.uuid));
        let left = NodeResources {
            cpu_millicores: node.cpu_millicores.saturating_sub(held.cpu_millicores),
            memory_bytes: node.memory_bytes.saturating_sub(held.memory_bytes),
            gpus: gpus.cloned().collect(),
        };
        debug_assert!(left.cpu_millicores <= node.cpu_millicores && left.gpus.len() <= node.gpus.len());
        left
    }
}

impl GrantedResources {
    /// Returns what these grants of services leave of a node's resources to jobs.
    #[must_use]
    pub fn left_of(&self, node: &NodeResources) -> NodeResources {
        let gpus = node.gpus.iter().filter(|gpu| !self.holds_gpu(gpu.index));
        let left = NodeResources {
            cpu_millicores: node.cpu_millicores.saturating_sub(self.cpu_millicores()),
            memory_bytes: node.memory_bytes.saturating_sub(self.memory_bytes()),
            gpus: gpus.cloned().collect(),
        };
        debug_assert!(left.memory_bytes <= node.memory_bytes, "services hold no negative amount");
        left
    }
}
