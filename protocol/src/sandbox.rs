//! Messages between an agent and the sandboxes that it starts, and the records of them on disk.
//!
//! The specification travels in a sealed memfd. Arguments and the environment would be readable by other
//! processes of the machine. Nothing here crosses a network. Paths are UTF-8 by choice: the operator chooses
//! them and errors print them.

use crate::ids::BootTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum size of an encoded [`SandboxSpec`] in bytes: arguments, a few variables and some dozens of library
/// paths.
pub const SANDBOX_SPEC_BYTES_MAX: usize = 256 * 1024;
/// Maximum size of a message between a launcher and the init that it starts, in bytes.
pub const SANDBOX_REPORT_BYTES_MAX: usize = 16 * 1024;
/// Maximum size of a sandbox's record on disk, in bytes.
pub const SANDBOX_RECORD_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(
    SANDBOX_SPEC_BYTES_MAX <= crate::limits::FRAME_BYTES_MAX
        && SANDBOX_REPORT_BYTES_MAX <= crate::limits::FRAME_BYTES_MAX,
    "messages of a sandbox are frames"
);

/// User ids that a sandbox's processes have on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxIdentity {
    /// Two host ids of the sandbox's own, for users and groups alike: `first` for the init, `first + 1` for
    /// the worker. The worker can therefore not even signal its init.
    OwnIds {
        /// Lower one of the two ids.
        first: u32,
    },
    /// Id of the agent's own user: the only choice for an unprivileged agent.
    SameUid,
}

/// Resource limits of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxLimits {
    /// CPU in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory in bytes, without the shared weights, which are charged to the node.
    pub memory_bytes: u64,
    /// Maximum number of processes and threads of the worker.
    pub processes_max: u32,
    /// Maximum number of open files per process.
    pub open_files_max: u32,
}

/// Control group files of a sandbox. The init and its worker are in sibling groups, so that a worker that
/// exhausts its share cannot starve the init.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxGroups {
    /// `cgroup.procs` files that the init enters before any other action.
    pub init: Vec<String>,
    /// `cgroup.procs` files that the worker enters before it executes its program.
    pub worker: Vec<String>,
    /// Writes to perform in this order before the worker is killed, so that its processes can run to their
    /// end.
    pub release: Vec<GroupWrite>,
}

/// One write to a file of a control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupWrite {
    /// Path of the file.
    pub path: String,
    /// Text to write.
    pub value: String,
}

/// Specification from which an init builds a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name on this node; also the host name inside the sandbox.
    pub name: String,
    /// Path of the worker's executable on the host; the sandbox sees it as `/worker`.
    pub binary: String,
    /// Arguments after the program name.
    pub arguments: Vec<String>,
    /// Complete environment of the worker.
    pub environment: BTreeMap<String, String>,
    /// User ids on the host.
    pub identity: SandboxIdentity,
    /// Control groups of the sandbox.
    pub groups: SandboxGroups,
    /// Host files and directories that appear read-only under the same path: the loader and libraries.
    pub read_only: Vec<String>,
    /// Device nodes that appear under the same path.
    pub devices: Vec<String>,
    /// Resource limits. The init enforces those that the kernel applies per process.
    pub limits: SandboxLimits,
    /// True if `limits.memory_bytes` must be enforced by `RLIMIT_DATA`, because there is no memory cgroup.
    pub memory_by_rlimit: bool,
    /// True if the worker yields to its init by its nice value, because there is no CPU cgroup.
    pub cpu_by_nice: bool,
    /// End of the first lease.
    pub lease_until_boottime_ms: BootTime,
    /// Maximum length of a lease in milliseconds; no renewal may reach further ahead.
    pub lease_ms_max: u64,
}

/// Reports of a starting sandbox to its launcher, sent in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxReport {
    /// The init exists and waits until the launcher has recorded it.
    Created {
        /// Process id of the init in the launcher's namespace.
        pid: u32,
    },
    /// The worker's executable runs.
    Started {
        /// Limits that this kernel or user cannot enforce, each beginning with a label.
        not_enforced: Vec<String>,
    },
    /// The sandbox could not be built; nothing of it is left.
    Failed {
        /// Step that failed.
        step: String,
        /// Error that the system returned.
        detail: String,
    },
}

/// Answer of a launcher to [`SandboxReport::Created`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxGo {
    /// The record is durable: start the worker.
    Go,
}

/// Record by which an agent recognises a sandbox after a restart. A process counts as the recorded one only
/// if boot, pid, start time and cgroup all agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// Name on this node.
    pub name: String,
    /// Boot id of the machine at the start of the sandbox.
    pub boot_id: String,
    /// Process id of the init.
    pub pid: u32,
    /// Start time of the init in clock ticks since boot, from `/proc/PID/stat`.
    pub start_ticks: u64,
    /// Control group directories of the sandbox.
    pub cgroups: Vec<String>,
    /// User ids on the host.
    pub identity: SandboxIdentity,
    /// Limits that are not enforced, as far as the launcher knows.
    pub not_enforced: Vec<String>,
}

/// Exit reason of a sandbox, written by its init as its last action. A missing record means that the init
/// itself was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxExit {
    /// The worker exited on its own.
    Exited {
        /// Exit status of the worker.
        status: i32,
    },
    /// A signal terminated the worker.
    Signaled {
        /// Number of the signal.
        signal: i32,
    },
    /// The lease expired without a renewal.
    LeaseLapsed,
    /// The agent requested the stop.
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};

    #[test]
    fn a_specification_survives_its_encoding() {
        let spec = SandboxSpec {
            name: "chat-0".into(),
            binary: "/usr/bin/quorate-serve".into(),
            arguments: vec!["worker".into(), "--inherited".into()],
            environment: BTreeMap::from([("RUST_LOG".into(), "info".into())]),
            identity: SandboxIdentity::OwnIds { first: 231_072 },
            groups: SandboxGroups {
                init: vec!["/sys/fs/cgroup/pids/quorate/chat-0/init/cgroup.procs".into()],
                worker: vec!["/sys/fs/cgroup/pids/quorate/chat-0/worker/cgroup.procs".into()],
                release: vec![GroupWrite {
                    path: "/sys/fs/cgroup/cpu/quorate/chat-0/worker/cpu.cfs_quota_us".into(),
                    value: "-1".into(),
                }],
            },
            read_only: vec!["/lib64/ld-linux-x86-64.so.2".into()],
            devices: vec![],
            limits: SandboxLimits {
                cpu_millicores: 500,
                memory_bytes: 1 << 28,
                processes_max: 64,
                open_files_max: 256,
            },
            memory_by_rlimit: false,
            cpu_by_nice: true,
            lease_until_boottime_ms: BootTime(12_345),
            lease_ms_max: 3_000,
        };
        assert_eq!(from_bytes(&to_bytes(&spec), SANDBOX_SPEC_BYTES_MAX), Ok(spec));
    }

    #[test]
    fn reports_and_ends_survive_their_encoding() {
        for report in [
            SandboxReport::Created { pid: 7 },
            SandboxReport::Started { not_enforced: vec!["cpu: no cgroup".into()] },
            SandboxReport::Failed { step: "mount /proc".into(), detail: "EPERM".into() },
        ] {
            assert_eq!(from_bytes(&to_bytes(&report), SANDBOX_REPORT_BYTES_MAX), Ok(report));
        }
        for exit in [
            SandboxExit::Exited { status: -1 },
            SandboxExit::Signaled { signal: 9 },
            SandboxExit::LeaseLapsed,
            SandboxExit::Stopped,
        ] {
            assert_eq!(from_bytes(&to_bytes(&exit), 64), Ok(exit));
        }
    }
}
