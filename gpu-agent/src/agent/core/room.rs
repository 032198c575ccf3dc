//! Room on a node: the resources that its accepted orders hold, and whether one more order fits beside them.
//!
//! Control places orders. A hostile one could hand the same GPU to several slots, or more memory than there
//! is; the envelope that members approved would then be worth less than they read.
//!
//! The weights of a model take memory beside its replicas. Their size is no part of the approval: control
//! reports it, and the load refuses a model that is larger than reported.

use super::{NodeFacts, Refusal, SlotKey};
use human_chain::{HeldMemory, SlotGrant};
use protocol::ModelRoot;
use protocol::error_code;
use protocol::manifest::Resources;
use std::collections::BTreeMap;

/// A whole GPU, in percent.
const GPU_PERCENT_MAX: u32 = 100;

/// Resources that grants hold on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrantedResources {
    cpu_millicores: u64,
    /// Memory, weights included.
    memory: HeldMemory,
    gpus: BTreeMap<u32, GpuShares>,
}

/// Shares of one GPU that grants hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct GpuShares {
    percent: u32,
    memory_bytes: u64,
}

impl GrantedResources {
    /// Returns the sum of these grants, by the size of each model's weights in bytes.
    #[must_use]
    pub fn of<'a>(
        grants: impl IntoIterator<Item = &'a SlotGrant>,
        weights: &BTreeMap<ModelRoot, u64>,
    ) -> Self {
        let mut sum = Self::default();
        for grant in grants {
            sum.add(grant, weights);
        }
        sum
    }

    /// Adds a grant.
    pub fn add(&mut self, grant: &SlotGrant, weights: &BTreeMap<ModelRoot, u64>) {
        debug_assert!(grant.gpus.is_sorted_by(|a, b| a < b), "a grant names each of its GPUs once");
        let needs = &grant.service.resources;
        self.cpu_millicores = self.cpu_millicores.saturating_add(needs.cpu_millicores);
        self.memory.add(&grant.service, weights_of(grant, weights));
        for gpu in &grant.gpus {
            let shares = self.gpus.entry(*gpu).or_default();
            shares.percent = shares.percent.saturating_add(percent_of_each(needs));
            shares.memory_bytes = shares.memory_bytes.saturating_add(needs.gpu_memory_bytes);
        }
    }

    /// Returns the sum of their CPU in thousandths of a core.
    pub(super) fn cpu_millicores(&self) -> u64 {
        self.cpu_millicores
    }

    /// Returns the sum of their memory in bytes, weights included.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Returns whether one of them holds a GPU, or a share of it.
    pub(super) fn holds_gpu(&self, index: u32) -> bool {
        self.gpus.contains_key(&index)
    }

    /// Checks that a grant fits on a node beside these. A whole GPU belongs to one slot, and shares of one
    /// add up to at most all of it.
    ///
    /// # Errors
    /// The first resource of which too little is left.
    pub fn check_room(&self, grant: &SlotGrant, node: &NodeFacts) -> Result<(), Refusal> {
        let needs = &grant.service.resources;
        let memory_needed = self.memory.needed(&grant.service, weights_of(grant, &node.weights));
        let node = &node.resources;
        check_sum(
            "CPU, in millicores",
            self.cpu_millicores,
            needs.cpu_millicores,
            node.cpu_millicores,
            grant,
        )?;
        let what = "memory, in bytes with the model's weights";
        check_sum(what, self.memory.bytes(), memory_needed, node.memory_bytes, grant)?;
        for index in &grant.gpus {
            let held = self.gpus.get(index).copied().unwrap_or_default();
            let (percent, there) = (percent_of_each(needs), u64::from(GPU_PERCENT_MAX));
            let what = format!("GPU {index}, in percent");
            check_sum(&what, u64::from(held.percent), u64::from(percent), there, grant)?;
            let there = node.gpus.iter().find(|gpu| gpu.index == *index).map_or(0, |gpu| gpu.memory_bytes);
            let what = format!("memory of GPU {index}, in bytes");
            check_sum(&what, held.memory_bytes, needs.gpu_memory_bytes, there, grant)?;
        }
        Ok(())
    }
}

/// Returns the size of a grant's model in bytes; 0 for a model that this node does not know of.
fn weights_of(grant: &SlotGrant, weights: &BTreeMap<ModelRoot, u64>) -> u64 {
    weights.get(&grant.service.model.root).copied().unwrap_or(0)
}

/// Returns the percentage of each of its GPUs that a replica holds.
fn percent_of_each(needs: &Resources) -> u32 {
    debug_assert!(needs.gpu_count == 0 || needs.gpu_share_percent == 0, "whole GPUs or a share of one");
    if needs.gpu_count > 0 { GPU_PERCENT_MAX } else { needs.gpu_share_percent }
}

fn check_sum(what: &str, held: u64, needs: u64, there: u64, grant: &SlotGrant) -> Result<(), Refusal> {
    if held.checked_add(needs).is_some_and(|sum| sum <= there) {
        return Ok(());
    }
    debug_assert!(held > 0 || needs > there, "too little is left, or too little is there");
    let slot = SlotKey { service: grant.service.name.clone(), slot: grant.slot };
    let message = format!("{slot} needs {needs} of {what}; the node has {there}, other slots hold {held}");
    Err(Refusal::new(error_code::RESOURCES_EXCEEDED, message))
}

#[allow(clippy::unwrap_used)]
#[cfg(test)]
mod tests {
    use super::super::testing::service;
    use super::*;
    use proptest::prelude::*;
    use protocol::agent::{Gpu, NodeResources};
    use protocol::manifest::Isolation;
    use protocol::{Digest, Fence, NodeId, PublicKey, SlotIndex};

    const GIB: u64 = 1 << 30;

    fn grant(slot: u32, gpus: &[u32], change: impl FnOnce(&mut Resources)) -> SlotGrant {
        let mut manifest = service("chat", ModelRoot(Digest::of(b"model")), 64);
        change(&mut manifest.resources);
        SlotGrant {
            service: manifest,
            slot: SlotIndex(slot),
            fence: Fence::new(1, 1),
            node: NodeId(PublicKey([7; 32])),
            gpus: gpus.to_vec(),
            certificate: Digest::of(b"certificate"),
        }
    }

    /// Returns a node of 4 cores, 1 GiB and 2 GPUs of 80 GiB, on which no model has weights.
    fn node() -> NodeFacts {
        let gpu = |index| Gpu {
            index,
            uuid: format!("GPU-{index}"),
            name: "H100".into(),
            memory_bytes: 80 * GIB,
            simulated: true,
            healthy: true,
        };
        let resources = NodeResources { cpu_millicores: 4000, memory_bytes: GIB, gpus: vec![gpu(0), gpu(1)] };
        let id = NodeId(PublicKey([7; 32]));
        NodeFacts { id, isolation: Isolation::SameUid, resources, weights: BTreeMap::new() }
    }

    fn whole(slot: u32, gpus: &[u32]) -> SlotGrant {
        grant(slot, gpus, |needs| needs.gpu_count = gpus.len() as u32)
    }

    fn share(slot: u32, gpu: u32, percent: u32, memory: u64) -> SlotGrant {
        grant(slot, &[gpu], |needs| (needs.gpu_share_percent, needs.gpu_memory_bytes) = (percent, memory))
    }

    #[test]
    fn each_resource_is_held_once() {
        let memory = |slot, bytes| grant(slot, &[], |needs| needs.memory_bytes = bytes);
        let cpu = |slot, millicores| grant(slot, &[], |needs| needs.cpu_millicores = millicores);
        for (what, held, next, refused) in [
            ("nothing held", vec![], whole(0, &[0, 1]), None),
            ("the other GPU", vec![whole(0, &[1])], whole(1, &[0]), None),
            ("a whole GPU twice", vec![whole(0, &[0])], whole(1, &[0]), Some("GPU 0, in percent")),
            ("one of two", vec![whole(0, &[1])], whole(1, &[0, 1]), Some("GPU 1, in percent")),
            ("a share of a whole GPU", vec![whole(0, &[0])], share(1, 0, 1, 0), Some("GPU 0, in percent")),
            ("a shared GPU as a whole", vec![share(0, 0, 1, 0)], whole(1, &[0]), Some("GPU 0, in percent")),
            ("shares up to all", vec![share(0, 0, 60, 0)], share(1, 0, 40, 0), None),
            ("shares beyond", vec![share(0, 0, 60, 0)], share(1, 0, 41, 0), Some("GPU 0, in percent")),
            ("all of its memory", vec![share(0, 0, 9, 79 * GIB)], share(1, 0, 9, GIB), None),
            (
                "more of its memory",
                vec![share(0, 0, 9, 79 * GIB)],
                share(1, 0, 9, GIB + 1),
                Some("memory of GPU 0, in bytes"),
            ),
            ("all memory", vec![memory(0, GIB / 2)], memory(1, GIB / 2), None),
            ("more memory", vec![memory(0, GIB / 2)], memory(1, GIB / 2 + 1), Some("memory, in bytes with")),
            ("all cores", vec![cpu(0, 1500)], cpu(1, 2500), None),
            ("more cores", vec![cpu(0, 1500)], cpu(1, 2501), Some("CPU, in millicores")),
            ("no sum overflows", vec![cpu(0, u64::MAX)], cpu(1, u64::MAX), Some("CPU, in millicores")),
            ("a GPU that is not there", vec![], share(0, 9, 1, 1), Some("memory of GPU 9, in bytes")),
        ] {
            let found = GrantedResources::of(&held, &BTreeMap::new()).check_room(&next, &node());
            let found = found.err().map(|refusal| (refusal.code, refusal.message));
            let matches = match (&found, refused) {
                (None, None) => true,
                (Some((code, text)), Some(part)) => {
                    *code == error_code::RESOURCES_EXCEEDED && text.contains(part)
                }
                _ => false,
            };
            assert!(matches, "{what}: {found:?}");
        }
    }

    /// The attack: control orders slots whose own memory fits beside models that do not. The positive
    /// control: without the weights all of them fit.
    #[test]
    fn attack_more_weights_than_the_node_has_memory() {
        let of_model = |slot, model: &[u8]| {
            let mut grant = grant(slot, &[], |needs| needs.memory_bytes = GIB / 8);
            grant.service.model.root = ModelRoot(Digest::of(model));
            grant
        };
        let (one, other) = (ModelRoot(Digest::of(b"one")), ModelRoot(Digest::of(b"other")));
        let weights = BTreeMap::from([(one, GIB / 2), (other, GIB / 2)]);
        for (held, next, fits) in [
            (vec![], of_model(0, b"one"), true),
            (vec![of_model(0, b"one")], of_model(1, b"one"), true),
            (vec![of_model(0, b"one"), of_model(1, b"one"), of_model(2, b"one")], of_model(3, b"one"), true),
            (vec![of_model(0, b"one")], of_model(1, b"other"), false),
            (vec![of_model(0, b"one")], of_model(1, b"third"), true),
        ] {
            for (weights, expected) in [(weights.clone(), fits), (BTreeMap::new(), true)] {
                let sum = GrantedResources::of(&held, &weights);
                let outcome = sum.check_room(&next, &NodeFacts { weights, ..node() });
                assert_eq!(outcome.is_ok(), expected, "{outcome:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_was_let_in_exceeds_the_node(
            wishes in prop::collection::vec((0_u32..2, 0_u32..=100, 1_u64..2000, 1_u64..GIB), 0..20),
        ) {
            let mut held = GrantedResources::default();
            for (slot, (gpu, percent, cpu, memory)) in wishes.into_iter().enumerate() {
                let mut next = share(slot as u32, gpu, percent, 0);
                (next.service.resources.cpu_millicores, next.service.resources.memory_bytes) = (cpu, memory);
                if held.check_room(&next, &node()).is_ok() {
                    held.add(&next, &BTreeMap::new());
                }
            }
            prop_assert!(held.cpu_millicores <= 4000 && held.memory.bytes() <= GIB, "{held:?}");
            prop_assert!(held.gpus.values().all(|shares| shares.percent <= 100), "{held:?}");
        }
    }
}
