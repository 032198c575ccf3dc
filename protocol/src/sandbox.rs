//! Messages between an agent and the sandboxes that it starts, and the records of them on disk.
//!
//! The specification travels in a sealed memfd. Arguments and the environment would be readable by other
//! processes of the machine. Nothing here crosses a network. Paths are UTF-8 by choice: the operator chooses
//! them and errors print them.

use crate::ids::BootTime;
use crate::keys::ByteString;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum size of an encoded [`SandboxSpec`] in bytes: arguments, variables, some dozens of library paths,
/// and the files in `/etc` of a process sandbox.
pub const SANDBOX_SPEC_BYTES_MAX: usize = 512 * 1024;
/// Maximum number of ranks in one sandbox: one per GPU of the largest common machine, 16.
pub const LOCAL_RANKS_MAX: usize = 16;
/// Maximum number of read-only inputs of a process sandbox: models, data sets, drivers.
pub const INPUTS_MAX: usize = 64;
/// Maximum number of addresses of a gang device: one of each IP version.
pub const GANG_ADDRESSES_MAX: usize = 2;
/// Largest packet that a gang device carries, in bytes: the largest IPv4 packet.
pub const GANG_MTU_MAX: u32 = 65_535;
/// Smallest MTU of a gang device, in bytes: IPv6 demands it of each link (RFC 8200, section 5).
pub const GANG_MTU_MIN: u32 = 1_280;
/// Name of the gang device inside a sandbox.
pub const GANG_DEVICE_NAME: &str = "gang0";
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
    /// Files through which the init enters its groups, before any other action.
    pub init: Vec<String>,
    /// Files through which the worker enters its groups, right before it executes its program.
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

/// Workload of a sandbox and its confinement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SandboxProfile {
    /// The product's own engine: threads, passed descriptors, no file that it can write, no socket.
    Engine(EngineProfile),
    /// A program that the product did not write: processes, bounded files, sockets in a network of its own.
    Process(Box<ProcessProfile>),
}

/// Profile of the product's own engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineProfile {
    /// Path of the worker's executable on the host; the sandbox sees it as `/worker`.
    pub binary: String,
    /// Arguments after the program name.
    pub arguments: Vec<String>,
    /// Complete environment of the worker.
    pub environment: BTreeMap<String, String>,
    /// Host files and directories that appear read-only under the same path: the loader and libraries.
    pub read_only: Vec<String>,
}

/// Profile of a foreign program: one sandbox with one process per local rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessProfile {
    /// Directory on the host that holds the unpacked artifact; its content is the read-only root inside.
    pub root: String,
    /// Host name inside. `etc.hosts` resolves it.
    pub host_name: String,
    /// Absolute path inside in which every rank starts.
    pub working_directory: String,
    /// Programs of the local ranks, in order: 1 to [`LOCAL_RANKS_MAX`].
    pub ranks: Vec<RankProgram>,
    /// Read-only directories and files of the host, at most [`INPUTS_MAX`].
    pub inputs: Vec<InputMount>,
    /// Directories that the ranks may write.
    pub areas: WritableAreas,
    /// Files of `/etc` that the agent provides.
    pub etc: EtcFiles,
    /// Network of the ranks; none = the loopback device alone.
    pub network: Option<GangDevice>,
}

/// Program of one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankProgram {
    /// Command with its arguments. The command is an absolute path inside, or a name that is looked up in the
    /// `PATH` of the environment.
    pub arguments: Vec<String>,
    /// Complete environment.
    pub environment: BTreeMap<String, String>,
}

/// A read-only file or directory of the host, inside a process sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputMount {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path inside, below a directory that the artifact does not have.
    pub path: String,
}

/// Directories of a process sandbox that its ranks may write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WritableAreas {
    /// Size of `/tmp` in bytes. It is memory, and counts as the ranks' memory too.
    pub tmp_bytes: u64,
    /// Size of `/dev/shm` in bytes, likewise in memory.
    pub shared_memory_bytes: u64,
    /// `/scratch`.
    pub scratch: DiskArea,
    /// `/checkpoint`.
    pub checkpoint: DiskArea,
    /// `/outputs`.
    pub outputs: DiskArea,
}

/// A directory that ranks may write and whose content can outlive the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskArea {
    /// Bound on its content in bytes.
    pub bytes_max: u64,
    /// Directory of the host that holds it; none = memory, which ends with the sandbox.
    pub directory: Option<String>,
}

/// Files of `/etc` inside a process sandbox, in place of those of the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcFiles {
    /// `passwd`.
    pub passwd: String,
    /// `group`.
    pub group: String,
    /// `hosts`: every rank's host name.
    pub hosts: String,
    /// `resolv.conf`.
    pub resolv_conf: String,
    /// `localtime`: a time zone in TZif format (RFC 9636); empty = UTC, and the file is absent.
    pub localtime: ByteString,
}

/// TUN device of a process sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangDevice {
    /// Addresses with their prefix length, for example `10.77.0.1/24`: 1 to [`GANG_ADDRESSES_MAX`].
    pub addresses: Vec<String>,
    /// Largest packet in bytes: [`GANG_MTU_MIN`] to [`GANG_MTU_MAX`].
    pub mtu: u32,
}

/// Specification from which an init builds a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name on this node; also the host name inside an engine's sandbox.
    pub name: String,
    /// Workload and its confinement.
    pub profile: SandboxProfile,
    /// User ids on the host.
    pub identity: SandboxIdentity,
    /// Control groups of the sandbox.
    pub groups: SandboxGroups,
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
    /// A rank failed, or the last rank exited.
    RankExited {
        /// Index of the rank among those of the sandbox.
        rank: u32,
        /// Exit status of the rank's program.
        status: i32,
    },
    /// A signal terminated a rank.
    RankSignaled {
        /// Index of the rank among those of the sandbox.
        rank: u32,
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

    fn spec(profile: SandboxProfile) -> SandboxSpec {
        SandboxSpec {
            name: "chat-0".into(),
            profile,
            identity: SandboxIdentity::OwnIds { first: 231_072 },
            groups: SandboxGroups {
                init: vec!["/sys/fs/cgroup/pids/quorate/chat-0/init/cgroup.procs".into()],
                worker: vec!["/sys/fs/cgroup/pids/quorate/chat-0/worker/cgroup.procs".into()],
                release: vec![GroupWrite {
                    path: "/sys/fs/cgroup/cpu/quorate/chat-0/worker/cpu.cfs_quota_us".into(),
                    value: "-1".into(),
                }],
            },
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
        }
    }

    fn process() -> ProcessProfile {
        let area = |directory: Option<&str>| DiskArea {
            bytes_max: 1 << 30,
            directory: directory.map(ToString::to_string),
        };
        ProcessProfile {
            root: "/var/lib/quorate/trees/09ab".into(),
            host_name: "rank-0".into(),
            working_directory: "/app".into(),
            ranks: vec![RankProgram {
                arguments: vec!["python3".into(), "train.py".into()],
                environment: BTreeMap::from([("RANK".into(), "0".into())]),
            }],
            inputs: vec![InputMount { source: "/var/lib/quorate/data".into(), path: "/data".into() }],
            areas: WritableAreas {
                tmp_bytes: 1 << 20,
                shared_memory_bytes: 1 << 24,
                scratch: area(None),
                checkpoint: area(Some("/var/lib/quorate/checkpoints/7")),
                outputs: area(Some("/var/lib/quorate/outputs/7")),
            },
            etc: EtcFiles {
                passwd: "job:x:1:1::/tmp:/bin/sh\n".into(),
                group: "job:x:1:\n".into(),
                hosts: "10.77.0.1 rank-0\n".into(),
                resolv_conf: String::new(),
                localtime: ByteString(b"TZif".to_vec()),
            },
            network: Some(GangDevice { addresses: vec!["10.77.0.1/24".into()], mtu: 1_500 }),
        }
    }

    #[test]
    fn a_specification_survives_its_encoding() {
        let engine = EngineProfile {
            binary: "/usr/bin/quorate-serve".into(),
            arguments: vec!["worker".into(), "--inherited".into()],
            environment: BTreeMap::from([("RUST_LOG".into(), "info".into())]),
            read_only: vec!["/lib64/ld-linux-x86-64.so.2".into()],
        };
        for profile in [SandboxProfile::Engine(engine), SandboxProfile::Process(Box::new(process()))] {
            let spec = spec(profile);
            assert_eq!(from_bytes(&to_bytes(&spec), SANDBOX_SPEC_BYTES_MAX), Ok(spec));
        }
    }

    #[test]
    fn the_largest_gang_on_a_node_fits_into_a_specification() {
        let mut profile = process();
        let variable = |n: u32| (format!("VARIABLE_{n}"), "x".repeat(100));
        profile.ranks = vec![
            RankProgram {
                arguments: vec!["x".repeat(100); 32],
                environment: (0..100).map(variable).collect(),
            };
            LOCAL_RANKS_MAX
        ];
        // A gang of 1,024 nodes.
        profile.etc.hosts = "10.77.100.100 rank-1000.job-with-a-long-name\n".repeat(1_024);
        let bytes = to_bytes(&spec(SandboxProfile::Process(Box::new(profile))));
        assert!(bytes.len() <= SANDBOX_SPEC_BYTES_MAX, "{} bytes", bytes.len());
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
            SandboxExit::RankExited { rank: 3, status: 137 },
            SandboxExit::RankSignaled { rank: 0, signal: 9 },
            SandboxExit::LeaseLapsed,
            SandboxExit::Stopped,
        ] {
            assert_eq!(from_bytes(&to_bytes(&exit), 64), Ok(exit));
        }
    }
}
