//! Resource limits of a sandbox by control groups, of version 1 or version 2 depending on where the machine
//! has each controller. Groups are created by name below the agent's own group, never elsewhere.
//!
//! A group or limit that cannot be created or written yields a label instead of an error. An unprivileged
//! agent therefore works, and reports the limits that it cannot enforce.

mod layout;
mod mounts;

use crate::system::ProcessId;
use layout::{Controller, GIVE_WAY, Part, RELEASE, Setting, settings};
use mounts::{Hierarchy, hierarchies, prepare_base};
use protocol::sandbox::{GroupWrite, SandboxGroups, SandboxLimits};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait of a removal for the last process of a group, which has been killed already.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// Attempts at creating a group: another agent's garbage collection may remove an empty shared parent between
/// two steps.
const CREATE_ATTEMPTS_MAX: u32 = 8;
/// File of a version 2 group that lists the controllers of its children.
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
/// File through which a process enters a group.
const PROCS: &str = "cgroup.procs";
/// File through which a thread enters a group of version 1. A process of one thread that enters by it waits
/// for no grace period of RCU, which takes 10 ms (`cgroup_procs_write_start` in the kernel).
const TASKS: &str = "tasks";

/// Control groups of one agent.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// Path of the agent's subtree below its own group.
    parent: PathBuf,
}

/// Control groups of one sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    /// The sandbox's directory in each hierarchy; the groups of its init and worker are below it.
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) not_enforced: Vec<String>,
    pub(crate) cpu_enforced: bool,
    pub(crate) memory_enforced: bool,
}

/// Resource usage of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupUsage {
    /// Current memory in bytes; none without a memory controller.
    pub memory_bytes: Option<u64>,
    /// CPU time since its start, in microseconds; none without accounting.
    pub cpu_us: Option<u64>,
    /// Number of its processes that the kernel killed for lack of memory.
    pub out_of_memory_kills: u64,
}

impl Cgroups {
    /// Finds the hierarchies of this machine. `parent` is the agent's subtree below the group that the agent
    /// runs in, for example `quorate/node-1`.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn detect(parent: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::from_tables(&mounts, &own, parent))
    }

    fn from_tables(mounts: &str, own: &str, parent: &str) -> Self {
        let parts = parent.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
        Self { hierarchies: hierarchies(mounts, own), parent: parts.collect() }
    }

    /// Creates the groups of one sandbox and writes its limits.
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
                match write_all(&directory, settings(hierarchy.version, *controller, limits)) {
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
        group.cpu_enforced = enforced.contains(&Controller::Cpu);
        group.memory_enforced = enforced.contains(&Controller::Memory);
        group
    }

    fn make_v1(&self, hierarchy: &Hierarchy, name: &str) -> io::Result<PathBuf> {
        let directory = hierarchy.base.join(&self.parent).join(name);
        let mut attempts = 0..CREATE_ATTEMPTS_MAX;
        let make = || Part::LEAVES.iter().try_for_each(|part| fs::create_dir_all(part.directory(&directory)));
        loop {
            match make() {
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
        // The sandbox's own group holds no process either: init and worker are in the groups below it.
        for part in self.parent.iter().chain([name.as_ref()]) {
            directory.push(part);
            create_if_missing(&directory)?;
            hand_down(&directory)?;
        }
        Part::LEAVES.iter().try_for_each(|part| create_if_missing(&part.directory(&directory)))?;
        Ok(directory)
    }

    /// Removes every empty group in the agent's subtree, and the subtree when nothing is left of it. Such
    /// groups are leftovers of a crash. Groups with processes stay. Returns the number of directories
    /// removed. Must not be called during a start.
    pub fn remove_stale(&self) -> usize {
        let sweep = |base: &PathBuf| {
            let mut removed = remove_empty_groups(&base.join(&self.parent));
            for parent in self.parent.ancestors().filter(|path| !path.as_os_str().is_empty()) {
                removed += usize::from(fs::remove_dir(base.join(parent)).is_ok());
            }
            removed
        };
        let bases = self.hierarchies.iter().flat_map(|hierarchy| [&hierarchy.base, &hierarchy.root]);
        bases.map(sweep).sum()
    }
}

impl Group {
    /// Returns the files of the groups that a starting sandbox needs.
    pub(crate) fn files(&self) -> SandboxGroups {
        let text = |path: PathBuf| path.display().to_string();
        let entry = |group: PathBuf| {
            let tasks = group.join(TASKS);
            text(if tasks.exists() { tasks } else { group.join(PROCS) })
        };
        let entries =
            |part: Part| self.directories.iter().map(|sandbox| entry(part.directory(sandbox))).collect();
        let release = existing_files(&self.directories, &RELEASE);
        let release = release.map(|(path, value)| GroupWrite { path: text(path), value: value.to_string() });
        SandboxGroups { init: entries(Part::Init), worker: entries(Part::Worker), release: release.collect() }
    }
}

/// Lets a sandbox wait for its neighbours where all want the CPU at once, as far as the kernel supports that.
pub(crate) fn give_way(directories: &[PathBuf]) {
    for (path, value) in existing_files(directories, &GIVE_WAY) {
        if let Err(error) = fs::write(&path, value) {
            tracing::debug!(path = %path.display(), %error, "lower the share of a sandbox");
        }
    }
}

/// Returns whether a process is the init of the sandbox with these directories.
pub(crate) fn contains(directories: &[PathBuf], pid: ProcessId) -> bool {
    directories.iter().all(|sandbox| {
        let procs = fs::read_to_string(Part::Init.directory(sandbox).join(PROCS)).unwrap_or_default();
        procs.lines().any(|line| line.parse() == Ok(pid.0))
    })
}

/// Lifts the worker's limits so that its processes can exit, and has the kernel kill the group where it
/// supports that. The worker is unusable afterwards. Missing files are skipped: a worker without a quota
/// needs none lifted, and the end of its init kills it too.
pub(crate) fn release(directories: &[PathBuf]) {
    for (path, value) in existing_files(directories, &RELEASE) {
        if let Err(error) = fs::write(&path, value) {
            tracing::debug!(path = %path.display(), %error, "release a worker's group");
        }
    }
}

fn existing_files<'a>(
    directories: &'a [PathBuf],
    writes: &'a [(Part, &str, &'static str)],
) -> impl Iterator<Item = (PathBuf, &'static str)> + use<'a> {
    let files = writes.iter().flat_map(move |(part, file, value)| {
        directories.iter().map(move |sandbox| (part.directory(sandbox).join(file), *value))
    });
    files.filter(|(path, _)| path.exists())
}

/// Removes the directories of one sandbox, waiting for its last process to exit.
pub(crate) fn remove(directories: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + REMOVE_WAIT;
    let parts = [Part::Worker, Part::Init, Part::Sandbox];
    for directory in directories.iter().flat_map(|sandbox| parts.map(|part| part.directory(sandbox))) {
        loop {
            match fs::remove_dir(&directory) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                // Busy: the kernel is still tearing down the killed processes. There is no notification, so
                // poll.
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
    Ok(())
}

/// Returns the resource usage of the worker in these groups.
pub(crate) fn usage(directories: &[PathBuf]) -> CgroupUsage {
    let read = |name: &str| {
        let files = directories.iter().map(|sandbox| Part::Worker.directory(sandbox).join(name));
        files.filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>()
    };
    let number = |name: &str| read(name).iter().find_map(|text| text.trim().parse().ok());
    let field = |name: &str, key: &str| -> Option<u64> {
        read(name).iter().find_map(|text| {
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

fn write_all(sandbox: &Path, settings: Vec<Setting>) -> io::Result<()> {
    settings.into_iter().try_for_each(|Setting { part, file, value, required }| {
        let written = fs::write(part.directory(sandbox).join(file), value);
        if required { written } else { Ok(()) }
    })
}

fn create_if_missing(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Children first: `remove_dir` fails for a group that holds processes or groups, as intended.
fn remove_empty_groups(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    children
        .map(|child| {
            let below = remove_empty_groups(&child.path());
            below + usize::from(fs::remove_dir(child.path()).is_ok())
        })
        .sum()
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
        assert!(group.cpu_enforced && group.memory_enforced);
        for (file, expected) in [
            ("cpu/quorate/node-1/chat-0/init/cpu.shares", "262144"),
            ("cpu/quorate/node-1/chat-0/worker/cpu.cfs_quota_us", "10000"),
            ("cpu/quorate/node-1/chat-0/worker/cpu.cfs_period_us", "20000"),
            ("memory/quorate/node-1/chat-0/worker/memory.limit_in_bytes", "67108864"),
            ("pids/quorate/node-1/chat-0/worker/pids.max", "32"),
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
            ("quorate/chat-0/cgroup.subtree_control", "+cpu +memory +pids"),
            ("quorate/chat-0/init/cpu.weight", "10000"),
            ("quorate/chat-0/init/memory.min", "8388608"),
            ("quorate/chat-0/worker/cpu.max", "10000 20000"),
            ("quorate/chat-0/worker/memory.max", "67108864"),
            ("quorate/chat-0/worker/pids.max", "32"),
        ] {
            let written = fs::read_to_string(root.path().join(file)).expect(file);
            assert_eq!(written, expected, "{file}");
        }
    }

    #[test]
    fn a_sandbox_that_gives_way_has_an_eighth_of_a_share_until_it_is_released() {
        for (file, default, less, most) in
            [("cpu.shares", "1024", "128", "262144"), ("cpu.weight", "100", "12", "10000")]
        {
            let sandbox = tempfile::tempdir().expect("directory");
            let directories = [sandbox.path().to_path_buf()];
            let value = || fs::read_to_string(sandbox.path().join(file)).expect(file);
            give_way(&directories);
            assert!(!sandbox.path().join(file).exists(), "a kernel without the file gets none");
            fs::write(sandbox.path().join(file), default).expect("write");
            give_way(&directories);
            assert_eq!(value(), less);
            release(&directories);
            assert_eq!(value(), most);
        }
    }

    /// A directory in place of the control file fails every write, like a group with processes.
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
        let moved = fs::read_to_string(scope.join(mounts::AGENT_LEAF).join("cgroup.procs")).expect("moved");
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
        assert!(!group.cpu_enforced && !group.memory_enforced);
    }

    #[test]
    fn only_empty_groups_are_removed() {
        let root = tempfile::tempdir().expect("directory");
        let pids = root.path().join("pids");
        fs::create_dir_all(pids.join("quorate/empty/below")).expect("mkdir");
        fs::create_dir_all(pids.join("quorate/busy")).expect("mkdir");
        // A real group with processes answers EBUSY; a directory with a file in it ENOTEMPTY.
        fs::write(pids.join("quorate/busy/file"), "").expect("write");
        let groups = Cgroups::from_tables(&line(&pids, "cgroup", "pids"), "1:pids:/\n", "quorate");
        assert_eq!(groups.remove_stale(), 2, "the parent holds a busy group");
        assert!(pids.join("quorate/busy").exists() && !pids.join("quorate/empty").exists());
        fs::remove_file(pids.join("quorate/busy/file")).expect("remove");
        assert_eq!(groups.remove_stale(), 2, "the busy group and the subtree");
        assert!(pids.exists(), "the agent's own group is not ours to remove");
    }

    /// All leftovers of a sandbox are removed. Only release files that the kernel provides are written.
    #[test]
    fn a_worker_is_released_by_the_files_that_are_there_and_all_of_its_groups_go() {
        let root = tempfile::tempdir().expect("directory");
        let [cpu, memory] = ["cpu", "memory"].map(|name| root.path().join(name).join("chat-0"));
        for directory in [&cpu, &memory] {
            for part in Part::LEAVES {
                fs::create_dir_all(part.directory(directory)).expect("mkdir");
            }
        }
        let quota = cpu.join("worker/cpu.cfs_quota_us");
        fs::write(&quota, "1000").expect("write");
        // As in a kernel directory of version 1.
        fs::write(cpu.join("init").join(TASKS), "").expect("write");
        let directories = vec![cpu.clone(), memory.clone()];
        let group = Group { directories: directories.clone(), ..Group::default() };
        let files = group.files();
        let expected = [cpu.join("init/tasks"), memory.join("init/cgroup.procs")];
        assert_eq!(files.init, expected.map(|path| path.display().to_string()));
        assert!(files.worker.iter().all(|path| path.ends_with("chat-0/worker/cgroup.procs")), "{files:?}");
        let wanted = GroupWrite { path: quota.display().to_string(), value: "-1".into() };
        assert_eq!(files.release, [wanted]);
        release(&directories);
        assert_eq!(fs::read_to_string(&quota).expect("read"), "-1");
        assert!(!memory.join("worker/cgroup.kill").exists(), "nothing is made");
        // In a kernel directory the files would not count.
        fs::remove_file(&quota).expect("remove");
        fs::remove_file(cpu.join("init").join(TASKS)).expect("remove");
        remove(&directories).expect("remove");
        assert!(!cpu.exists() && !memory.exists());
        remove(&directories).expect("there is nothing left");
    }

    #[test]
    fn usage_reads_both_versions() {
        let root = tempfile::tempdir().expect("directory");
        fs::create_dir(root.path().join("worker")).expect("mkdir");
        let write = |name: &str, text: &str| {
            fs::write(root.path().join("worker").join(name), text).expect(name);
        };
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
