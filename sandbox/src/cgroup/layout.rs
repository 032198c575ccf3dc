//! Layout of a sandbox's control groups, as pure functions. There is a group for the sandbox, and below it
//! one for the init and one for the worker.
//!
//! ```text
//! <agent's group>/<subtree>/<sandbox>/init     PID 1: no quota, a large share of the CPU, memory of its own
//! <agent's group>/<subtree>/<sandbox>/worker   everything else: quota, memory and process limits
//! ```
//!
//! An init that shared its worker's group could not run once the worker's threads have used up the quota. The
//! lease would then expire without a running init to end the sandbox.

use protocol::sandbox::SandboxLimits;
use std::path::{Path, PathBuf};

/// The scheduler's accounting period in microseconds. Quotas are per period, so a worker that has used up its
/// quota stalls for the rest of one. The kernel's default of 100 ms would be visible in response times. The
/// kernel's smallest quota of 1 ms is 50 millicores of this period, the smallest request that a manifest
/// allows.
const CPU_PERIOD_US: u64 = 20_000;
/// Smallest quota that the kernel accepts, in microseconds.
const CPU_QUOTA_US_MIN: u64 = 1_000;
const _: () = assert!(
    protocol::manifest::CPU_MILLICORES_MIN * CPU_PERIOD_US / 1000 >= CPU_QUOTA_US_MIN,
    "what a manifest asks for is what is enforced"
);
/// CPU shares of the init in version 1: the maximum; the default, which the worker has, is 1,024. An init
/// does next to nothing, so this takes nothing from its worker.
const MOST_SHARES: &str = "262144";
/// CPU weight of the init in version 2: the maximum; the default is 100.
const MOST_WEIGHT: &str = "10000";
/// Memory of an init that is not reclaimed in version 2, as far as the groups above the sandbox grant it. It
/// is several times an init's usage.
const INIT_MEMORY_BYTES: u64 = 8 << 20;

/// Writes before a worker is killed, in this order, as far as the files exist. First the quota is lifted:
/// threads that must wait for the next period before they can exit would take seconds. Then the sandbox gets
/// priority over its neighbours, which may spin too. Last, version 2 kills the whole group.
pub(super) const RELEASE: [(Part, &str, &str); 5] = [
    (Part::Worker, "cpu.cfs_quota_us", "-1"),
    (Part::Worker, "cpu.max", "max"),
    (Part::Sandbox, "cpu.shares", MOST_SHARES),
    (Part::Sandbox, "cpu.weight", MOST_WEIGHT),
    (Part::Worker, "cgroup.kill", "1"),
];

/// Writes that let a sandbox wait for its neighbours where all want the CPU at once: an eighth of the default
/// share. Its quota is its own as before, since quotas add up to what the node offers.
pub(super) const GIVE_WAY: [(Part, &str, &str); 2] =
    [(Part::Sandbox, "cpu.shares", "128"), (Part::Sandbox, "cpu.weight", "12")];

/// Controllers of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    CpuAccounting,
    Memory,
    Processes,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Cpu, Self::CpuAccounting, Self::Memory, Self::Processes];

    /// Returns its name in version 1, which is also its name in version 2 where it exists there.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
            Self::Memory => "memory",
            Self::Processes => "pids",
        }
    }

    /// Returns the label shown to people when it is missing; accounting limits nothing.
    pub(super) fn label(self) -> Option<&'static str> {
        match self {
            Self::Cpu => Some("cpu"),
            Self::CpuAccounting => None,
            Self::Memory => Some("memory"),
            Self::Processes => Some("pids"),
        }
    }
}

/// The groups of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Sandbox,
    Init,
    Worker,
}

impl Part {
    /// Groups that hold processes.
    pub(super) const LEAVES: [Self; 2] = [Self::Init, Self::Worker];

    /// Returns its directory, given that of the sandbox.
    pub(super) fn directory(self, sandbox: &Path) -> PathBuf {
        match self {
            Self::Sandbox => sandbox.to_path_buf(),
            Self::Init => sandbox.join("init"),
            Self::Worker => sandbox.join("worker"),
        }
    }
}

/// One write to a file of a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) part: Part,
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether the controller enforces nothing without it. Other settings are written where the kernel has
    /// them.
    pub(super) required: bool,
}

/// Returns the settings of a controller, in the order of writing.
pub(super) fn settings(version: u8, controller: Controller, limits: &SandboxLimits) -> Vec<Setting> {
    debug_assert!(matches!(version, 1 | 2), "version {version} of control groups");
    debug_assert!(limits.memory_bytes > 0 && limits.processes_max > 0, "a worker needs memory and a process");
    let required =
        |part, file, value: &dyn ToString| Setting { part, file, value: value.to_string(), required: true };
    let helpful =
        |part, file, value: &dyn ToString| Setting { part, file, value: value.to_string(), required: false };
    let quota = (limits.cpu_millicores * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
    let memory = limits.memory_bytes;
    use Part::{Init, Sandbox, Worker};
    match (controller, version) {
        (Controller::CpuAccounting, _) => vec![],
        (Controller::Cpu, 2) => vec![
            required(Init, "cpu.weight", &MOST_WEIGHT),
            required(Worker, "cpu.max", &format!("{quota} {CPU_PERIOD_US}")),
        ],
        (Controller::Cpu, _) => vec![
            required(Init, "cpu.shares", &MOST_SHARES),
            required(Worker, "cpu.cfs_period_us", &CPU_PERIOD_US),
            required(Worker, "cpu.cfs_quota_us", &quota),
        ],
        (Controller::Memory, 2) => vec![
            required(Worker, "memory.max", &memory),
            // Absent where swap is not accounted; then there is nothing to bound.
            helpful(Worker, "memory.swap.max", &0),
            helpful(Sandbox, "memory.min", &INIT_MEMORY_BYTES),
            helpful(Init, "memory.min", &INIT_MEMORY_BYTES),
        ],
        (Controller::Memory, _) => vec![
            required(Worker, "memory.limit_in_bytes", &memory),
            helpful(Worker, "memory.memsw.limit_in_bytes", &memory),
        ],
        (Controller::Processes, _) => vec![required(Worker, "pids.max", &limits.processes_max)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renders the settings as `part/file = value`, with `?` for optional ones.
    fn written(version: u8, controller: Controller, cpu_millicores: u64) -> String {
        let limits =
            SandboxLimits { cpu_millicores, memory_bytes: 64 << 20, processes_max: 32, open_files_max: 64 };
        let line = |setting: Setting| {
            let path = setting.part.directory(Path::new("s")).join(setting.file);
            let mark = if setting.required { "" } else { "?" };
            format!("{}{mark} = {}", path.display(), setting.value)
        };
        settings(version, controller, &limits).into_iter().map(line).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn limits_are_the_workers_and_the_init_has_a_share_of_its_own() {
        for (version, controller, expected) in [
            (
                1,
                Controller::Cpu,
                "s/init/cpu.shares = 262144, s/worker/cpu.cfs_period_us = 20000, \
                 s/worker/cpu.cfs_quota_us = 10000",
            ),
            (2, Controller::Cpu, "s/init/cpu.weight = 10000, s/worker/cpu.max = 10000 20000"),
            (
                1,
                Controller::Memory,
                "s/worker/memory.limit_in_bytes = 67108864, s/worker/memory.memsw.limit_in_bytes? = 67108864",
            ),
            (
                2,
                Controller::Memory,
                "s/worker/memory.max = 67108864, s/worker/memory.swap.max? = 0, s/memory.min? = 8388608, \
                 s/init/memory.min? = 8388608",
            ),
            (1, Controller::Processes, "s/worker/pids.max = 32"),
            (2, Controller::Processes, "s/worker/pids.max = 32"),
            (1, Controller::CpuAccounting, ""),
        ] {
            assert_eq!(written(version, controller, 500), expected, "version {version}, {controller:?}");
        }
    }

    #[test]
    fn every_limit_is_the_workers_alone_and_required() {
        for version in [1, 2] {
            for controller in Controller::ALL {
                let limits =
                    SandboxLimits { cpu_millicores: 1, memory_bytes: 1, processes_max: 1, open_files_max: 1 };
                for Setting { part, file, required, .. } in settings(version, controller, &limits) {
                    let limits_something =
                        file.ends_with("max") || file.contains("limit") || file.contains("quota");
                    assert!(part == Part::Worker || !limits_something, "{file} limits more than the worker");
                    assert!(part == Part::Worker || file.contains("cpu") || !required, "{file}");
                }
            }
        }
    }

    #[test]
    fn a_quota_is_never_below_the_kernels_least() {
        for (millicores, quota) in [(0, 1_000), (1, 1_000), (49, 1_000), (50, 1_000), (1_000, 20_000)] {
            let text = written(1, Controller::Cpu, millicores);
            assert!(text.ends_with(&format!("cpu.cfs_quota_us = {quota}")), "{millicores}: {text}");
        }
    }

    #[test]
    fn every_part_has_a_directory_of_its_own_below_the_sandboxs() {
        let sandbox = Path::new("/sys/fs/cgroup/quorate/chat-0");
        assert_eq!(Part::Sandbox.directory(sandbox), sandbox);
        let leaves = Part::LEAVES.map(|part| part.directory(sandbox));
        assert_ne!(leaves[0], leaves[1]);
        assert!(leaves.iter().all(|leaf| leaf.parent() == Some(sandbox)));
    }

    #[test]
    fn a_missing_controller_that_limits_something_has_a_label() {
        let labels = Controller::ALL.map(|controller| (controller.name(), controller.label()));
        let expected =
            [("cpu", Some("cpu")), ("cpuacct", None), ("memory", Some("memory")), ("pids", Some("pids"))];
        assert_eq!(labels, expected);
    }

    #[test]
    fn what_a_manifest_may_ask_for_is_what_is_enforced() {
        for (millicores, quota) in
            [(50, 1_000), (51, 1_020), (200, 4_000), (2_000, 40_000), (64_000, 1_280_000)]
        {
            let text = written(2, Controller::Cpu, millicores);
            assert!(text.ends_with(&format!("s/worker/cpu.max = {quota} 20000")), "{text}");
        }
    }

    #[test]
    fn the_quota_is_lifted_before_anything_is_killed() {
        let kill = RELEASE.iter().position(|(_, file, _)| *file == "cgroup.kill").expect("version 2 kills");
        assert!(RELEASE[..kill].iter().any(|(_, file, _)| *file == "cpu.max"));
        assert_eq!(kill, RELEASE.len() - 1);
    }
}
