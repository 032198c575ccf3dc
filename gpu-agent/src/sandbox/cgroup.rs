//! Limits on what a sandbox may use: control groups, version 1 and version 2, whichever this machine has
//! for each controller. Groups are created by name below the agent's own group, never elsewhere.
//!
//! What cannot be created or written is not an error but a label: an unprivileged agent works, and says
//! what it cannot enforce.

use protocol::sandbox::SandboxLimits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The scheduler's accounting period in microseconds: the kernel's default. Quotas are per period.
const CPU_PERIOD_US: u64 = 100_000;
/// Least quota the kernel takes: 1 ms per period.
const CPU_QUOTA_US_MIN: u64 = 1_000;
/// How long removal waits for the last process to be gone from a group: it has been killed already.
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// Another agent that sweeps may remove an empty parent that both share, between two steps of ours.
const CREATE_ATTEMPTS_MAX: u32 = 8;

/// Where a group of version 2 is told which controllers its children have.
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
/// Where an agent moves itself when its group must hand controllers down.
const AGENT_LEAF: &str = "quorate-agent";

/// What a controller can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Cpu,
    CpuAccounting,
    Memory,
    Processes,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Cpu, Self::CpuAccounting, Self::Memory, Self::Processes];

    /// Its name in version 1, which is also its name in version 2 where it has one there.
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
            Self::Memory => "memory",
            Self::Processes => "pids",
        }
    }

    /// The label a person reads when it is missing; accounting limits nothing.
    fn label(self) -> Option<&'static str> {
        match self {
            Self::Cpu => Some("cpu"),
            Self::CpuAccounting => None,
            Self::Memory => Some("memory"),
            Self::Processes => Some("pids"),
        }
    }
}

/// One mounted hierarchy and what we use it for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: u8,
    /// The agent's own group in it.
    base: PathBuf,
    /// Where it is mounted.
    root: PathBuf,
    controllers: Vec<Controller>,
}

/// The groups of one agent.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// Path of the agent's subtree below its own group.
    parent: PathBuf,
}

/// The group of one sandbox, in each hierarchy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) not_enforced: Vec<String>,
    pub(crate) memory_enforced: bool,
}

/// What a sandbox has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupUsage {
    /// Memory now, in bytes; none without a memory controller.
    pub memory_bytes: Option<u64>,
    /// CPU time since its start, in microseconds; none without accounting.
    pub cpu_us: Option<u64>,
    /// Times the kernel killed a process of it for want of memory.
    pub out_of_memory_kills: u64,
}

impl Cgroups {
    /// Finds the hierarchies of this machine. `parent` is the agent's subtree, `quorate/node-1` say,
    /// below the group that the agent runs in.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn detect(parent: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::from_tables(&mounts, &own, parent))
    }

    fn from_tables(mounts: &str, own: &str, parent: &str) -> Self {
        let parts = parent.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for controller in Controller::ALL {
            let Some((version, base, root)) = find_base(mounts, own, controller) else { continue };
            match hierarchies.iter_mut().find(|hierarchy| hierarchy.base == base) {
                Some(hierarchy) => hierarchy.controllers.push(controller),
                None => hierarchies.push(Hierarchy { version, base, root, controllers: vec![controller] }),
            }
        }
        Self { hierarchies, parent: parts.collect() }
    }

    /// Creates the group of one sandbox and writes its limits.
    pub(crate) fn create(&self, name: &str, limits: &SandboxLimits) -> Group {
        let mut group = Group::default();
        let mut enforced = Vec::new();
        let mut reasons = Vec::new();
        for hierarchy in &self.hierarchies {
            let made = match hierarchy.version {
                2 => self.make_v2(hierarchy, name),
                _ => self.make_v1(hierarchy, name),
            };
            let directory = match made {
                Ok(directory) => directory,
                Err(error) => {
                    let all = hierarchy.controllers.iter();
                    reasons.extend(all.map(|controller| (*controller, error.to_string())));
                    continue;
                }
            };
            for controller in &hierarchy.controllers {
                match write_limit(&directory, hierarchy.version, *controller, limits) {
                    Ok(()) => enforced.push(*controller),
                    Err(error) => reasons.push((*controller, error.to_string())),
                }
            }
            group.directories.push(directory);
        }
        for controller in Controller::ALL {
            let Some(label) = controller.label() else { continue };
            if !enforced.contains(&controller) {
                let reason = reasons.iter().find(|(failed, _)| *failed == controller);
                let reason = reason.map_or("no such control group controller", |(_, text)| text);
                group.not_enforced.push(format!("{label}: {reason}"));
            }
        }
        group.memory_enforced = enforced.contains(&Controller::Memory);
        group
    }

    fn make_v1(&self, hierarchy: &Hierarchy, name: &str) -> io::Result<PathBuf> {
        let directory = hierarchy.base.join(&self.parent).join(name);
        let mut attempts = 0..CREATE_ATTEMPTS_MAX;
        loop {
            match fs::create_dir_all(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts.next().is_some() => {}
                result => return result.map(|()| directory),
            }
        }
    }

    fn make_v2(&self, hierarchy: &Hierarchy, name: &str) -> io::Result<PathBuf> {
        let wanted: Vec<_> = hierarchy.controllers.iter().map(|c| format!("+{}", c.name())).collect();
        let wanted = wanted.join(" ");
        let hand_down = |directory: &Path| fs::write(directory.join(SUBTREE_CONTROL), &wanted);
        let mut directory = prepare_base(hierarchy, hand_down)?.to_path_buf();
        for part in &self.parent {
            directory.push(part);
            create_if_missing(&directory)?;
            hand_down(&directory)?;
        }
        directory.push(name);
        create_if_missing(&directory)?;
        Ok(directory)
    }

    /// Removes every empty group in the agent's subtree, and the subtree when nothing is left of it: what
    /// a crash of the machine's agents left. Groups that hold processes stay. Returns how many
    /// directories went. Not to be called while a start is under way.
    pub fn sweep_stale(&self) -> usize {
        let sweep = |base: &PathBuf| {
            let mut swept = sweep_children(&base.join(&self.parent));
            for parent in self.parent.ancestors().filter(|path| !path.as_os_str().is_empty()) {
                swept += usize::from(fs::remove_dir(base.join(parent)).is_ok());
            }
            swept
        };
        let bases = self.hierarchies.iter().flat_map(|hierarchy| [&hierarchy.base, &hierarchy.root]);
        bases.map(sweep).sum()
    }
}

impl Group {
    /// The files through which a process enters the group.
    pub(crate) fn procs_files(&self) -> impl Iterator<Item = PathBuf> {
        self.directories.iter().map(|directory| directory.join("cgroup.procs"))
    }
}

/// Whether a process is a member of each of these groups.
pub(crate) fn contains(directories: &[PathBuf], pid: u32) -> bool {
    directories.iter().all(|directory| {
        let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        procs.lines().any(|line| line.parse() == Ok(pid))
    })
}

/// Removes the directories of one sandbox, waiting a moment for its last process to be gone.
pub(crate) fn remove(directories: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + REMOVE_WAIT;
    for directory in directories {
        loop {
            match fs::remove_dir(directory) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                // Busy: the kernel still takes the killed processes apart. It tells nobody when it is done.
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
    Ok(())
}

/// What the processes in these groups have used.
pub(crate) fn usage(directories: &[PathBuf]) -> CgroupUsage {
    let number = |name: &str| {
        directories.iter().find_map(|d| fs::read_to_string(d.join(name)).ok()?.trim().parse().ok())
    };
    let field = |name: &str, key: &str| -> Option<u64> {
        directories.iter().find_map(|directory| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
            line.trim().parse().ok()
        })
    };
    CgroupUsage {
        memory_bytes: number("memory.usage_in_bytes").or_else(|| number("memory.current")),
        cpu_us: number("cpuacct.usage")
            .map(|nanoseconds: u64| nanoseconds / 1000)
            .or_else(|| field("cpu.stat", "usage_usec")),
        out_of_memory_kills: field("memory.oom_control", "oom_kill")
            .or_else(|| field("memory.events", "oom_kill"))
            .unwrap_or(0),
    }
}

fn write_limit(
    directory: &Path,
    version: u8,
    controller: Controller,
    limits: &SandboxLimits,
) -> io::Result<()> {
    let write = |name: &str, value: String| fs::write(directory.join(name), value);
    let quota = (limits.cpu_millicores * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
    match (controller, version) {
        (Controller::CpuAccounting, _) => Ok(()),
        (Controller::Cpu, 2) => write("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
        (Controller::Cpu, _) => {
            write("cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
            write("cpu.cfs_quota_us", quota.to_string())
        }
        (Controller::Memory, 2) => {
            write("memory.max", limits.memory_bytes.to_string())?;
            // Absent where swap is not accounted; then there is nothing to bound.
            let _ = write("memory.swap.max", "0".into());
            Ok(())
        }
        (Controller::Memory, _) => {
            write("memory.limit_in_bytes", limits.memory_bytes.to_string())?;
            let _ = write("memory.memsw.limit_in_bytes", limits.memory_bytes.to_string());
            Ok(())
        }
        (Controller::Processes, _) => write("pids.max", limits.processes_max.to_string()),
    }
}

fn create_if_missing(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Children first: `remove_dir` refuses a group that holds processes or groups, which is what we want.
fn sweep_children(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    children
        .map(|child| {
            let below = sweep_children(&child.path());
            below + usize::from(fs::remove_dir(child.path()).is_ok())
        })
        .sum()
}

/// The group below which an agent's subtree may be made. Version 2 lets no group hand controllers down
/// that holds processes, the root excepted. So an agent that is alone in its group (a service) moves
/// itself into a leaf; one that is not (a shell's job) may, as root, use the hierarchy's root.
fn prepare_base(hierarchy: &Hierarchy, hand_down: impl Fn(&Path) -> io::Result<()>) -> io::Result<&Path> {
    if hand_down(&hierarchy.base).is_ok() {
        return Ok(&hierarchy.base);
    }
    let own = std::process::id().to_string();
    let procs = fs::read_to_string(hierarchy.base.join("cgroup.procs")).unwrap_or_default();
    if !procs.lines().all(|line| line == own) {
        hand_down(&hierarchy.root)?;
        return Ok(&hierarchy.root);
    }
    let leaf = hierarchy.base.join(AGENT_LEAF);
    create_if_missing(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), own)?;
    hand_down(&hierarchy.base)?;
    Ok(&hierarchy.base)
}

/// The agent's own group for a controller, and the hierarchy's root: version 1 if it is mounted so, else
/// version 2.
fn find_base(mounts: &str, own: &str, controller: Controller) -> Option<(u8, PathBuf, PathBuf)> {
    let mounts = || mounts.lines().filter_map(Mount::parse);
    let path_of = |key: &str| {
        own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == key).then_some(path)
        })
    };
    let v1 = mounts().find(|mount| {
        mount.kind == "cgroup" && mount.options.split(',').any(|option| option == controller.name())
    });
    if let Some(mount) = v1 {
        return Some((1, mount.locate(path_of(controller.name())?), mount.point.into()));
    }
    let v2 = mounts().find(|mount| mount.kind == "cgroup2")?;
    let (base, root) = (v2.locate(path_of("")?), PathBuf::from(v2.point));
    // An agent that has moved into its leaf still builds beside it.
    let base = if base.ends_with(AGENT_LEAF) { base.parent()?.to_path_buf() } else { base };
    let offers = |directory: &Path| {
        let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|name| name == controller.name())
    };
    if offers(&base) { Some((2, base, root)) } else { offers(&root).then(|| (2, root.clone(), root)) }
}

/// A line of `/proc/self/mountinfo`, as far as it matters here.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        Some(Self { root, point, kind: right.next()?, options: right.nth(1)? })
    }

    /// Where a group's path is found below this mount, which may show only a part of the hierarchy.
    fn locate(&self, path: &str) -> PathBuf {
        let relative = path.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("");
        Path::new(self.point).join(relative.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SandboxLimits =
        SandboxLimits { cpu_millicores: 500, memory_bytes: 64 << 20, processes_max: 32, open_files_max: 64 };

    fn line(point: &Path, kind: &str, options: &str) -> String {
        format!("30 20 0:26 / {} rw,relatime - {kind} {kind} rw,{options}\n", point.display())
    }

    #[test]
    fn each_controller_is_found_where_this_machine_mounts_it() {
        let mounts = "\
            35 25 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            36 25 0:31 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "3:memory:/docker/x/agent\n2:cpu,cpuacct:/\n0::/\n";
        let check = |controller, expected: Option<&str>| {
            let found = find_base(mounts, own, controller);
            let found = found.map(|(version, base, _)| (version, base));
            assert_eq!(found, expected.map(|path| (1, PathBuf::from(path))), "{controller:?}");
        };
        check(Controller::Cpu, Some("/sys/fs/cgroup/cpu"));
        check(Controller::CpuAccounting, Some("/sys/fs/cgroup/cpu"));
        check(Controller::Memory, Some("/sys/fs/cgroup/memory/agent"));
        check(Controller::Processes, None);
    }

    #[test]
    fn version_1_limits_are_written() {
        let root = tempfile::tempdir().expect("directory");
        let mut mounts = String::new();
        for name in ["cpu", "memory", "pids"] {
            fs::create_dir(root.path().join(name)).expect("mkdir");
            mounts += &line(&root.path().join(name), "cgroup", name);
        }
        let own = "3:cpu:/\n2:memory:/\n1:pids:/\n";
        let groups = Cgroups::from_tables(&mounts, own, "quorate/../node-1");
        let group = groups.create("chat-0", &LIMITS);
        assert_eq!(group.not_enforced, Vec::<String>::new());
        assert!(group.memory_enforced);
        for (file, expected) in [
            ("cpu/quorate/node-1/chat-0/cpu.cfs_quota_us", "50000"),
            ("cpu/quorate/node-1/chat-0/cpu.cfs_period_us", "100000"),
            ("memory/quorate/node-1/chat-0/memory.limit_in_bytes", "67108864"),
            ("pids/quorate/node-1/chat-0/pids.max", "32"),
        ] {
            let written = fs::read_to_string(root.path().join(file)).expect(file);
            assert_eq!(written, expected, "{file}");
        }
    }

    #[test]
    fn version_2_limits_are_written_and_controllers_handed_down() {
        let root = tempfile::tempdir().expect("directory");
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").expect("write");
        let groups = Cgroups::from_tables(&line(root.path(), "cgroup2", ""), "0::/\n", "quorate");
        let group = groups.create("chat-0", &LIMITS);
        assert_eq!(group.not_enforced, Vec::<String>::new());
        for (file, expected) in [
            ("cgroup.subtree_control", "+cpu +memory +pids"),
            ("quorate/cgroup.subtree_control", "+cpu +memory +pids"),
            ("quorate/chat-0/cpu.max", "50000 100000"),
            ("quorate/chat-0/memory.max", "67108864"),
            ("quorate/chat-0/pids.max", "32"),
        ] {
            let written = fs::read_to_string(root.path().join(file)).expect(file);
            assert_eq!(written, expected, "{file}");
        }
    }

    /// A directory in place of the control file fails every write, as a group with processes does.
    #[test]
    fn an_agent_among_others_uses_the_root_and_one_alone_makes_a_leaf() {
        let root = tempfile::tempdir().expect("directory");
        let scope = root.path().join("session.scope");
        fs::create_dir_all(scope.join(SUBTREE_CONTROL)).expect("mkdir");
        for directory in [root.path(), &scope] {
            fs::write(directory.join("cgroup.controllers"), "cpu memory pids\n").expect("write");
        }
        fs::write(scope.join("cgroup.procs"), format!("1\n{}\n", std::process::id())).expect("write");
        let mounts = line(root.path(), "cgroup2", "");
        let groups = Cgroups::from_tables(&mounts, "0::/session.scope\n", "quorate");
        let group = groups.create("chat-0", &LIMITS);
        assert_eq!(group.directories, [root.path().join("quorate/chat-0")]);

        fs::write(scope.join("cgroup.procs"), std::process::id().to_string()).expect("write");
        let group = groups.create("chat-1", &LIMITS);
        let moved = fs::read_to_string(scope.join(AGENT_LEAF).join("cgroup.procs")).expect("moved");
        assert_eq!(moved, std::process::id().to_string());
        assert_eq!(group.not_enforced.len(), 3, "this imitation stays closed after the move");
        let groups = Cgroups::from_tables(&mounts, "0::/session.scope/quorate-agent\n", "quorate");
        assert_eq!(groups.hierarchies[0].base, scope);
    }

    #[test]
    fn what_is_missing_is_labelled() {
        let groups = Cgroups::from_tables("", "0::/\n", "quorate");
        let group = groups.create("chat-0", &LIMITS);
        let labels: Vec<_> = group.not_enforced.iter().filter_map(|l| l.split(':').next()).collect();
        assert_eq!(labels, ["cpu", "memory", "pids"]);
        assert!(!group.memory_enforced);
    }

    #[test]
    fn a_sweep_removes_empty_groups_only() {
        let root = tempfile::tempdir().expect("directory");
        let pids = root.path().join("pids");
        fs::create_dir_all(pids.join("quorate/empty/below")).expect("mkdir");
        fs::create_dir_all(pids.join("quorate/busy")).expect("mkdir");
        // A real group with processes answers EBUSY; a directory with a file in it ENOTEMPTY.
        fs::write(pids.join("quorate/busy/file"), "").expect("write");
        let groups = Cgroups::from_tables(&line(&pids, "cgroup", "pids"), "1:pids:/\n", "quorate");
        assert_eq!(groups.sweep_stale(), 2, "the parent holds a busy group");
        assert!(pids.join("quorate/busy").exists() && !pids.join("quorate/empty").exists());
        fs::remove_file(pids.join("quorate/busy/file")).expect("remove");
        assert_eq!(groups.sweep_stale(), 2, "the busy group and the subtree");
        assert!(pids.exists(), "the agent's own group is not ours to remove");
    }

    #[test]
    fn usage_reads_both_versions() {
        let root = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).expect(name);
        write("memory.current", "4096\n");
        write("cpu.stat", "usage_usec 77\nuser_usec 70\n");
        write("memory.events", "oom 3\noom_kill 2\n");
        let found = usage(&[root.path().to_path_buf()]);
        let expected = CgroupUsage { memory_bytes: Some(4096), cpu_us: Some(77), out_of_memory_kills: 2 };
        assert_eq!(found, expected);
        write("memory.usage_in_bytes", "8192\n");
        write("cpuacct.usage", "5000\n");
        let found = usage(&[root.path().to_path_buf()]);
        assert_eq!((found.memory_bytes, found.cpu_us), (Some(8192), Some(5)));
    }
}
