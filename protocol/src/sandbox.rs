//! What an agent and the sandboxes it starts say to each other, and what it keeps about them on disk.
//!
//! The specification travels in a sealed memfd, never in arguments or the environment, which other
//! processes of the machine could read. Nothing here crosses a network. Paths are UTF-8 by choice: they
//! are chosen by the operator and printed in errors.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest encoded [`SandboxSpec`]: arguments, a few variables and some dozens of library paths.
pub const SANDBOX_SPEC_BYTES_MAX: usize = 256 * 1024;
/// Largest message between a launcher and the init it starts.
pub const SANDBOX_REPORT_BYTES_MAX: usize = 16 * 1024;
/// Largest record of a sandbox on disk.
pub const SANDBOX_RECORD_BYTES_MAX: usize = 64 * 1024;

/// Whom the processes of a sandbox are to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxIdentity {
    /// Two host ids of its own, for users and groups alike: `first` for the init, `first + 1` for the
    /// worker, so that the worker may not even signal its init.
    OwnIds {
        /// The lower of the two.
        first: u32,
    },
    /// The agent's own user: all that an unprivileged agent can give.
    SameUid,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxLimits {
    /// CPU time, in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory in bytes, without the shared weights, which are charged to the node.
    pub memory_bytes: u64,
    /// Processes and threads of the worker.
    pub processes_max: u32,
    /// Open files of each process.
    pub open_files_max: u32,
}

/// Files of the control groups of a sandbox. The init and its worker are in groups beside each other, so that a
/// worker that uses up its share leaves the init its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxGroups {
    /// `cgroup.procs` files that the init enters before anything else.
    pub init: Vec<String>,
    /// `cgroup.procs` files that the worker enters before it becomes its program.
    pub worker: Vec<String>,
    /// Written in this order before the worker is killed, so that its processes can run to their end.
    pub release: Vec<GroupWrite>,
}

/// One write to a file of a control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupWrite {
    /// The file.
    pub path: String,
    /// What is written to it.
    pub value: String,
}

/// Everything an init needs to build a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Its name on this node; also its host name.
    pub name: String,
    /// The worker's executable on the host; it appears as `/worker`.
    pub binary: String,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// Who it is to the host.
    pub identity: SandboxIdentity,
    /// Its control groups.
    pub groups: SandboxGroups,
    /// Host files and directories that appear read-only under the same path: the loader, libraries.
    pub read_only: Vec<String>,
    /// Device nodes that appear under the same path.
    pub devices: Vec<String>,
    /// What it may use; the part that the kernel enforces per process.
    pub limits: SandboxLimits,
    /// Whether `limits.memory_bytes` must be held by `RLIMIT_DATA`, for want of a memory cgroup.
    pub memory_by_rlimit: bool,
    /// Whether the worker yields to its init by its nice value, for want of a CPU cgroup.
    pub cpu_by_nice: bool,
    /// First lease, `CLOCK_BOOTTIME` in milliseconds.
    pub lease_until_boottime_ms: u64,
    /// No renewal may reach further ahead than this.
    pub lease_ms_max: u64,
}

/// What a starting sandbox tells its launcher, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxReport {
    /// The init exists and waits for the launcher to have recorded it.
    Created {
        /// Its process id in the launcher's namespace.
        pid: u32,
    },
    /// The worker's executable runs.
    Started {
        /// What this kernel or user cannot enforce, each beginning with a label.
        not_enforced: Vec<String>,
    },
    /// It could not be built; nothing of it is left.
    Failed {
        /// What was being done.
        step: String,
        /// What the system answered.
        detail: String,
    },
}

/// What a launcher answers to [`SandboxReport::Created`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxGo {
    /// The record is durable: start the worker.
    Go,
}

/// A sandbox as its agent remembers it across its own restarts. A process is the one that was started
/// only if boot, pid, start time and cgroup all agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// Its name on this node.
    pub name: String,
    /// Which start of the machine.
    pub boot_id: String,
    /// The init's process id.
    pub pid: u32,
    /// The init's start time in clock ticks since boot, from `/proc/PID/stat`.
    pub start_ticks: u64,
    /// Its cgroup directories.
    pub cgroups: Vec<String>,
    /// Its own ids, if it has some.
    pub identity: SandboxIdentity,
    /// What is not enforced, as far as the launcher knows.
    pub not_enforced: Vec<String>,
}

/// How a sandbox ended, written by its init as its last act. No record: the init itself was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxExit {
    /// The worker ended by itself.
    Exited {
        /// Its exit status.
        status: i32,
    },
    /// A signal ended the worker.
    Signaled {
        /// Which.
        signal: i32,
    },
    /// Nobody renewed the lease.
    LeaseLapsed,
    /// The agent asked for it.
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
            lease_until_boottime_ms: 12_345,
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
