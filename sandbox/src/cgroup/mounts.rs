//! Discovery of the machine's control group mounts, and of the group below which an agent may create its own.

use super::create_if_missing;
use super::layout::Controller;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Leaf group into which an agent moves itself when its group must delegate controllers.
pub(super) const AGENT_LEAF: &str = "quorate-agent";

/// One mounted hierarchy and the controllers used in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: u8,
    /// The agent's own group in it.
    pub(super) base: PathBuf,
    /// Mount point.
    pub(super) root: PathBuf,
    pub(super) controllers: Vec<Controller>,
}

/// Returns the hierarchies in `/proc/self/mountinfo` and `/proc/self/cgroup`, each controller in one of them.
pub(super) fn hierarchies(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for controller in Controller::ALL {
        let Some((version, base, root)) = find_base(mounts, own, controller) else { continue };
        match hierarchies.iter_mut().find(|hierarchy| hierarchy.base == base) {
            Some(hierarchy) => hierarchy.controllers.push(controller),
            None => hierarchies.push(Hierarchy { version, base, root, controllers: vec![controller] }),
        }
    }
    hierarchies
}

/// Returns the group below which an agent's subtree may be created. In version 2 a group that holds processes
/// cannot delegate controllers, except the root. So an agent that is alone in its group (a service) moves
/// itself into a leaf. An agent that is not (a shell's job) may, as root, use the hierarchy's root.
pub(super) fn prepare_base(
    hierarchy: &Hierarchy,
    hand_down: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<&Path> {
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

/// Returns the agent's own group for a controller, and the hierarchy's root: version 1 if mounted so, else
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
    // An agent that has moved into its leaf still creates its groups beside it.
    let base = if base.ends_with(AGENT_LEAF) { base.parent()?.to_path_buf() } else { base };
    let offers = |directory: &Path| {
        let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|name| name == controller.name())
    };
    if offers(&base) { Some((2, base, root)) } else { offers(&root).then(|| (2, root.clone(), root)) }
}

/// A line of `/proc/self/mountinfo`, as far as it is used here.
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

    /// Returns the path of a group below this mount, which may show only a part of the hierarchy.
    fn locate(&self, path: &str) -> PathBuf {
        let relative = path.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("");
        Path::new(self.point).join(relative.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mount_is_read_as_the_kernel_writes_it() {
        let parts = |line| Mount::parse(line).map(|m| (m.root, m.point, m.kind, m.options));
        for (line, expected) in [
            (
                "35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate",
                Some(("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")),
            ),
            ("35 25 0:30 /a /b rw - tmpfs none rw", Some(("/a", "/b", "tmpfs", "rw"))),
            ("35 25 0:30 / /sys rw - cgroup cgroup", None),
            ("35 25 0:30 / /sys rw cgroup cgroup rw", None),
            ("35 25 - cgroup cgroup rw", None),
            ("", None),
        ] {
            assert_eq!(parts(line), expected, "{line}");
        }
    }

    #[test]
    fn a_group_is_located_below_the_part_that_is_mounted() {
        for (root, path, expected) in [
            ("/", "/", "/m"),
            ("/", "/a/b", "/m/a/b"),
            ("/docker/x", "/docker/x", "/m"),
            ("/docker/x", "/docker/x/agent", "/m/agent"),
            ("/docker/x", "/elsewhere", "/m"),
        ] {
            let mount = Mount { root, point: "/m", kind: "cgroup", options: "" };
            let located = mount.locate(path);
            assert_eq!(located.components().collect::<PathBuf>(), Path::new(expected), "{path} of {root}");
        }
    }

    #[test]
    fn controllers_of_one_hierarchy_share_it() {
        let mounts = "\
            35 25 0:30 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            36 25 0:31 / /cg/pids rw - cgroup cgroup rw,pids\n";
        let found = hierarchies(mounts, "2:cpu,cpuacct:/a\n1:pids:/a\n");
        let found: Vec<_> =
            found.iter().map(|one| (one.base.as_path(), one.controllers.as_slice())).collect();
        let cpu = [Controller::Cpu, Controller::CpuAccounting];
        let expected =
            [(Path::new("/cg/cpu/a"), &cpu[..]), (Path::new("/cg/pids/a"), &[Controller::Processes])];
        assert_eq!(found, expected);
        assert_eq!(hierarchies("", "0::/\n"), []);
        assert_eq!(hierarchies(mounts, ""), [], "mounted, but the agent is in no group of it");
    }

    proptest! {
        #[test]
        fn hostile_tables_do_not_panic_and_lead_below_the_mount(
            mounts in "([a-z0-9 /:,-]{0,40}( - cgroup2? cgroup rw,cpu)?\\n){0,4}",
            own in "([0-9]?:(cpu)?:[a-z/.]{0,12}\\n){0,3}",
        ) {
            for hierarchy in hierarchies(&mounts, &own) {
                prop_assert!(hierarchy.base.starts_with(&hierarchy.root));
                prop_assert!(!hierarchy.controllers.is_empty());
            }
        }
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
}
