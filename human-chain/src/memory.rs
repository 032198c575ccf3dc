//! Memory that replicas hold on one node. The scheduler places replicas by it, and the node judges its orders
//! by it: one function, so that both agree.

use protocol::ModelRoot;
use protocol::manifest::ServiceManifest;
use std::collections::BTreeMap;

/// Memory of the replicas on a node: that of each replica, and the weights of each of their models once,
/// since a node keeps one copy for all its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldMemory {
    /// Memory of the replicas without weights, in bytes.
    replicas_bytes: u64,
    /// Weights of each model, in bytes.
    weights: BTreeMap<ModelRoot, u64>,
}

impl HeldMemory {
    /// Returns the bytes that one more replica needs, whose model has weights of `weights_bytes`.
    #[must_use]
    pub fn needed(&self, service: &ServiceManifest, weights_bytes: u64) -> u64 {
        let kept = self.weights.get(&service.model.root).copied().unwrap_or(0);
        service.resources.memory_bytes.saturating_add(weights_bytes.saturating_sub(kept))
    }

    /// Adds a replica, whose model has weights of `weights_bytes`.
    pub fn add(&mut self, service: &ServiceManifest, weights_bytes: u64) {
        let (before, needed) = (self.bytes(), self.needed(service, weights_bytes));
        self.replicas_bytes = self.replicas_bytes.saturating_add(service.resources.memory_bytes);
        let kept = self.weights.entry(service.model.root).or_default();
        *kept = weights_bytes.max(*kept);
        debug_assert_eq!(self.bytes(), before.saturating_add(needed), "a replica holds what it needs");
    }

    /// Returns the bytes that all of them hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights.values().fold(self.replicas_bytes, |sum, weights| sum.saturating_add(*weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::Digest;
    use protocol::manifest::Manifest;

    /// Returns a service of a model, whose replicas have this memory.
    fn service(model: u8, memory_bytes: u64) -> ServiceManifest {
        let text = "kind = 'service'\nname = 'chat'\ntask = 'embed'\n\
            model = { name = 'minilm', root = 'ROOT' }\nreplicas = { min = 1, max = 2 }\n\
            resources = { cpu_millicores = 500, memory = '1 GiB' }\n";
        let manifest = Manifest::from_toml(&text.replace("ROOT", &"1".repeat(64))).expect("a sound manifest");
        let Manifest::Service(mut service) = manifest else { panic!("a service") };
        service.model.root = ModelRoot(Digest::of(&[model]));
        service.resources.memory_bytes = memory_bytes;
        service
    }

    #[test]
    fn weights_are_held_once_for_each_model() {
        let mut held = HeldMemory::default();
        assert_eq!((held.bytes(), held.needed(&service(1, 10), 100)), (0, 110));
        held.add(&service(1, 10), 100);
        assert_eq!((held.bytes(), held.needed(&service(1, 10), 100)), (110, 10), "the node keeps one copy");
        assert_eq!(held.needed(&service(2, 10), 100), 110, "another model has its own");
        held.add(&service(1, 20), 100);
        assert_eq!(held.bytes(), 130);
        assert_eq!(held.needed(&service(1, 10), 140), 50, "the larger of two reports counts");
        held.add(&service(2, u64::MAX), u64::MAX);
        assert_eq!(held.bytes(), u64::MAX, "no sum overflows");
    }

    proptest! {
        /// Control places replicas in one order, and the node sums up those that it holds in another.
        #[test]
        fn the_sum_depends_on_no_order(
            replicas in prop::collection::vec((0_u8..4, 0_u64..1000, 0_u64..1000), 0..12),
        ) {
            let sum = |replicas: &mut dyn Iterator<Item = &(u8, u64, u64)>| {
                let mut held = HeldMemory::default();
                replicas.for_each(|(model, memory, weights)| held.add(&service(*model, *memory), *weights));
                held
            };
            prop_assert_eq!(sum(&mut replicas.iter()), sum(&mut replicas.iter().rev()));
        }
    }
}
