//! Starts workers inside sandboxes, keeps them there, and finds them again after a restart.
//!
//! A sandbox consists of parts that fail independently:
//! - namespaces: nothing of the host is reachable;
//! - an empty read-only root;
//! - landlock: the same again, by another mechanism;
//! - a seccomp allow-list: the calls that could reach out are denied;
//! - cgroups and resource limits: it cannot starve its neighbours;
//! - a lease: it ends when the lease is not renewed, even if the agent is dead.
//!
//! Overview, from left to right in time:
//!
//! ```text
//! agent --spawns--> builder (`quorate sandbox-init`) --clones--> init = PID 1 --forks--> worker
//!   |                 joins the cgroups, maps the ids, exits        |  holds the lease     |
//!   '--- unix socket on the builder's standard input: spec, descriptors, go, started ---'   '- /worker
//! ```
//!
//! The builder clones the init with `CLONE_PARENT`, so the agent, not the builder, is the init's parent and
//! reaps it. Nothing runs between `fork` and `exec` in the (threaded) agent: all of the work happens in a
//! fresh single-threaded process.
//!
//! There are two profiles. The *engine* is the product's own worker: threads, passed descriptors, no file
//! that it can write and no socket. A *process* is a foreign program: ranks that may start processes, write
//! bounded areas, and use sockets in a network of their own, whose only way out is a TUN device that the
//! agent reads. [`PacketSwitch`] decides where its packets go.

mod cgroup;
mod elf;
mod error;
mod ids;
pub mod init;
mod launcher;
mod memory_file;
mod metrics;
mod output;
mod pacer;
mod packet_device;
mod profile;
mod quota;
mod record;
mod running;
mod switch;
mod system;
mod time_zone;
mod wire;

pub use cgroup::{CgroupUsage, Cgroups};
pub use elf::{DynamicDependencies, libraries_beside, libraries_of, linked_by};
pub use error::SandboxError;
pub use launcher::{
    IsolationReport, Launcher, LauncherConfig, Running, SandboxLauncher, Start, StartProcess,
};
pub use memory_file::{MemoryFile, sealed_bytes};
pub use metrics::{LineSplitter, MetricsReader};
pub use output::OutputPosition;
pub use pacer::InputPacer;
pub use packet_device::PacketDevice;
pub use profile::etc_files;
pub use record::parse_start_ticks;
pub use running::{Ended, ProcessDescriptors, RankOutput, Sandbox};
pub use switch::{
    AttachRefusal, GangId, PORT_ADDRESSES_MAX, PacketDrop, PacketSwitch, PortCounters, PortKind, SwitchPort,
};
pub use time_zone::time_zone_of_machine;
pub use wire::FrameBuffer;
