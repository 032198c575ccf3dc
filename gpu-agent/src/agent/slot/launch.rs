//! Preparation of a worker: a lease, its model, its sandbox.

use super::SlotTask;
use crate::agent::core::{Refusal, SlotKey};
use crate::agent::lease::Lease;
use crate::agent::models::{LoadedModel, ModelSource, threads};
use crate::agent::node::Node;
use protocol::manifest::ServiceManifest;
use protocol::sandbox::SandboxLimits;
use protocol::worker::WORKER_MANIFEST_BYTES_MAX;
use protocol::{Digest, Fence, canonical, error_code, limits};
use sandbox::{Running, Start};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Processes and threads of a worker besides its computing threads: init, runtime, loader.
const PROCESSES_BASE: u32 = 32;
/// Open files of a worker: its connections to gateways and its maps, with ample headroom.
const OPEN_FILES_MAX: u32 = 1024;
/// Characters of a service's name that fit into a sandbox's name beside a digest and a slot.
const NAME_PART: usize = 16;
/// Characters of the digest that stands for a name that is too long: 128 bits.
const DIGEST_PART: usize = 32;
/// Directories of a driver's user libraries on the supported systems.
const DRIVER_DIRECTORIES: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu"];

/// Returns the name of a slot's sandbox under an order: the same after an agent's restart, and different for
/// every fence.
pub(in crate::agent) fn sandbox_name(key: &SlotKey, fence: Fence) -> String {
    let name = format!("{}.{}.{fence}", key.service, key.slot);
    if name.len() <= limits::NAME_BYTES_MAX {
        return name;
    }
    let digest: String = Digest::of(name.as_bytes()).to_string().chars().take(DIGEST_PART).collect();
    let start: String = key.service.as_str().chars().take(NAME_PART).collect();
    format!("{start}_{digest}.{}", key.slot)
}

/// Inputs that a start waits for.
pub(super) struct PendingLaunch {
    pub(super) node: Arc<Node>,
    pub(super) service: ServiceManifest,
    pub(super) leases: watch::Receiver<Lease>,
    pub(super) source: watch::Receiver<Option<ModelSource>>,
}

impl PendingLaunch {
    /// Waits for a lease and for the model's location from control; then starts to load the model.
    pub(super) async fn prepare(&mut self) -> Result<Arc<LoadedModel>, Refusal> {
        let gone = |_| Refusal::new(error_code::CONTROL_UNAVAILABLE, "the agent is ending");
        let holds = |lease: &Lease| lease.holds(&self.service, &self.node.clock);
        self.leases.wait_for(holds).await.map_err(gone)?;
        let source = self.source.wait_for(Option::is_some).await.map_err(gone)?.clone();
        let source = source.expect("waited for");
        self.node.models.get(self.service.model.root, &source).await
    }
}

impl SlotTask {
    /// Starts the worker in a new sandbox.
    pub(super) async fn launch(&self, model: &LoadedModel) -> Result<Arc<dyn Running>, Refusal> {
        let node = &self.node;
        let service = &self.grant.get().service;
        let gpus = computing_gpus(node, &self.grant.get().gpus)?;
        let manifest = canonical::to_bytes(&model.worker_manifest(service, &self.order, &gpus));
        if manifest.len() > WORKER_MANIFEST_BYTES_MAX {
            let message = format!("the worker's manifest has {} bytes", manifest.len());
            return Err(Refusal::new(error_code::MODEL_TOO_LARGE, message));
        }
        let [weights, progress] =
            model.readers().map_err(|error| Refusal::new(error_code::SANDBOX_FAILED, error.to_string()))?;
        let threads = threads(service.resources.cpu_millicores);
        let start = Start {
            name: sandbox_name(&self.key, self.order.fence),
            binary: node.serve_program.clone(),
            arguments: vec!["worker".into(), "--inherited".into()],
            environment: BTreeMap::from([("QUORATE_LOG".into(), "info".into())]),
            limits: SandboxLimits {
                cpu_millicores: service.resources.cpu_millicores,
                memory_bytes: service.resources.memory_bytes,
                processes_max: PROCESSES_BASE + 4 * threads,
                open_files_max: OPEN_FILES_MAX,
            },
            read_only: if gpus.is_empty() { vec![] } else { driver_libraries() },
            devices: node.device.nodes(&gpus),
            weights,
            progress,
            manifest,
            lease_until: node.lease.borrow().until(service),
        };
        let started = node.launcher.clone().start(start).await;
        started.map_err(|error| Refusal::of(error.code(), &error))
    }
}

/// Returns the GPUs of an order that can compute; simulated ones cannot, and their worker uses the CPU. A GPU
/// that is gone or does not answer is an error: a worker never computes on less than was granted.
fn computing_gpus(node: &Node, granted: &[u32]) -> Result<Vec<u32>, Refusal> {
    let here = node.resources.gpus(&*node.device);
    let find = |index: &u32| here.iter().find(|gpu| gpu.index == *index && gpu.healthy);
    if let Some(lost) = granted.iter().find(|index| find(index).is_none()) {
        let message = format!("GPU {lost} of this node is gone or does not answer");
        return Err(Refusal::new(error_code::NODE_UNFIT, message));
    }
    let real = here.iter().filter(|gpu| !gpu.simulated && granted.contains(&gpu.index));
    Ok(real.map(|gpu| gpu.index).collect())
}

/// Returns the libraries that a GPU's driver loads at run time and that no executable names.
fn driver_libraries() -> Vec<PathBuf> {
    let belongs = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        (name.starts_with("libcuda.so") || name.starts_with("libnvidia-")) && name.contains(".so")
    };
    let list = |directory: &str| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = DRIVER_DIRECTORIES.iter().flat_map(|directory| list(directory)).map(|entry| entry.path());
    paths.filter(|path| belongs(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{ServiceName, SlotIndex};

    #[test]
    fn a_sandbox_is_named_after_its_slot_and_fence() {
        let key = |service: &str, slot| SlotKey {
            service: service.parse().expect("a name"),
            slot: SlotIndex(slot),
        };
        assert_eq!(sandbox_name(&key("chat", 3), Fence::new(1, 7)), "chat.3.1.7");
        let long = "x".repeat(63);
        let names = [
            sandbox_name(&key(&long, 3), Fence::new(1, 7)),
            sandbox_name(&key(&long, 3), Fence::new(1, 8)),
            sandbox_name(&key(&long, 4), Fence::new(1, 7)),
            sandbox_name(&key(&format!("{}y", "x".repeat(62)), 3), Fence::new(1, 7)),
            sandbox_name(&key(&long, u32::MAX), Fence::new(u64::MAX, u64::MAX)),
        ];
        for name in &names {
            assert!(name.parse::<ServiceName>().is_ok(), "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
