//! File system of a process sandbox: the artifact's tree, read-only, with the directories that every program
//! expects laid over it.
//!
//! The root is a small memory file system of the sandbox's own. Each entry of the artifact's top directory is
//! mounted into it, and each entry of its `/etc`, so that no mount point has to exist in the artifact and
//! nothing is ever written to it. Set-id bits and device nodes of the artifact have no effect.

use super::root::{DEVICE, READ_ONLY, RootKind, RootSource, RootSources, open_mount};
use super::{InStep, StepResult};
use crate::ids::WORKER_ID;
use crate::profile::{PROVIDED, disk_areas, files_max, first_component};
use crate::system;
use nix::mount::{MsFlags, mount};
use protocol::sandbox::{EtcFiles, ProcessProfile};
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Devices of a process sandbox.
pub(super) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Directories that ranks may write.
pub(super) const WRITABLE: [&str; 5] = ["/tmp", "/dev/shm", "/scratch", "/checkpoint", "/outputs"];
/// Options of the memory file system that holds mount points, links and the files of `/etc`.
pub(super) const SCAFFOLD_OPTIONS: &str = "size=8m,nr_inodes=16384,mode=0755";
/// Maximum number of entries in the artifact's top directory, and in its `/etc`: each becomes a mount.
const ENTRIES_MAX: usize = 4096;
/// Links in `/dev` that programs expect.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
/// Entries of `/proc` beside the processes that stay visible. Everything else there, present or future, is
/// covered.
const PROC_ENTRIES: [&str; 12] = [
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "self",
    "stat",
    "sys",
    "thread-self",
    "uptime",
    "version",
];
/// Rules of the C library's look-ups where the artifact has none. Without them some versions ask a name
/// server first.
const NAME_SERVICES: &[u8] = b"passwd: files\ngroup: files\nhosts: files\n";

/// A writable area in memory.
pub(super) struct MemoryArea {
    /// Path below the root, without the leading slash.
    path: &'static str,
    bytes: u64,
    /// Whether every user may write it, as `/tmp`; else the ranks' user alone.
    shared: bool,
    /// Whether programs may be executed from it.
    executable: bool,
}

impl MemoryArea {
    fn options(&self) -> String {
        let owner = if self.shared {
            "mode=1777".to_string()
        } else {
            format!("mode=0700,uid={WORKER_ID},gid={WORKER_ID}")
        };
        format!("size={},nr_inodes={},{owner}", self.bytes, files_max(self.bytes))
    }
}

/// Opens everything that the profile names, as the agent's user.
pub(super) fn open_sources(profile: &ProcessProfile, devices: &[String]) -> StepResult<RootSources> {
    let root = Path::new(&profile.root);
    let mut entries = Vec::new();
    let mut names = Vec::new();
    for (name, path) in list(root)? {
        if !PROVIDED.contains(&name.as_str()) {
            entries.extend(open_entry(&path)?.map(|source| (Path::new("/").join(&name), source)));
            names.push(name);
        }
    }
    entries.extend(open_etc(root, &profile.etc)?);
    for path in DEVICES.into_iter().chain(devices.iter().map(String::as_str)).map(Path::new) {
        entries.push((path.to_path_buf(), open_mount(path, DEVICE)?));
    }
    let links = DEVICE_LINKS.map(|(path, to)| (PathBuf::from(path), RootSource::Link(to.into())));
    entries.extend(links);
    for input in &profile.inputs {
        if first_component(&input.path).is_some_and(|first| names.iter().any(|name| name == first)) {
            return Err("the artifact has this directory").step(&format!("place {}", input.path));
        }
        entries.push((PathBuf::from(&input.path), open_mount(Path::new(&input.source), READ_ONLY)?));
    }
    let mut memory = vec![
        MemoryArea { path: "tmp", bytes: profile.areas.tmp_bytes, shared: true, executable: true },
        MemoryArea {
            path: "dev/shm",
            bytes: profile.areas.shared_memory_bytes,
            shared: true,
            executable: false,
        },
    ];
    for (path, area) in disk_areas(&profile.areas) {
        match &area.directory {
            Some(directory) => {
                let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
                entries.push((PathBuf::from(path), open_mount(Path::new(directory), attributes)?));
            }
            None => {
                let path = path.trim_start_matches('/');
                memory.push(MemoryArea { path, bytes: area.bytes_max, shared: false, executable: true });
            }
        }
    }
    let places = memory.iter().map(|area| (Path::new("/").join(area.path), RootSource::Directory));
    entries.extend(places);
    Ok(RootSources { entries, kind: RootKind::Process(memory) })
}

/// Returns names and paths of a directory's entries, sorted.
fn list(directory: &Path) -> StepResult<Vec<(String, PathBuf)>> {
    let step = format!("list {}", directory.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).step(&step)? {
        let entry = entry.step(&step)?;
        let name = entry.file_name().into_string().map_err(|_| "a name is not UTF-8").step(&step)?;
        entries.push((name, entry.path()));
        if entries.len() > ENTRIES_MAX {
            return Err(format!("more than {ENTRIES_MAX} entries")).step(&step);
        }
    }
    entries.sort();
    Ok(entries)
}

/// Opens an entry of the artifact; none for devices, pipes and sockets, which have no use here.
fn open_entry(path: &Path) -> StepResult<Option<RootSource>> {
    let step = format!("open {}", path.display());
    let metadata = fs::symlink_metadata(path).step(&step)?;
    if metadata.is_symlink() {
        return Ok(Some(RootSource::Link(fs::read_link(path).step(&step)?)));
    }
    if metadata.is_dir() || metadata.is_file() { open_mount(path, READ_ONLY).map(Some) } else { Ok(None) }
}

/// Returns the content of `/etc`: the artifact's, with the agent's files in place of its own.
fn open_etc(root: &Path, files: &EtcFiles) -> StepResult<Vec<(PathBuf, RootSource)>> {
    let mut texts: Vec<(&str, &[u8])> = vec![
        ("passwd", files.passwd.as_bytes()),
        ("group", files.group.as_bytes()),
        ("hosts", files.hosts.as_bytes()),
        ("resolv.conf", files.resolv_conf.as_bytes()),
    ];
    if !files.localtime.0.is_empty() {
        texts.push(("localtime", &files.localtime.0));
    }
    let etc = root.join("etc");
    let present = match fs::symlink_metadata(&etc) {
        Ok(metadata) if metadata.is_dir() => list(&etc)?,
        _ => vec![],
    };
    if !present.iter().any(|(name, _)| name == "nsswitch.conf") {
        texts.push(("nsswitch.conf", NAME_SERVICES));
    }
    let mut entries = Vec::new();
    for (name, path) in &present {
        if name != "localtime" && !texts.iter().any(|(own, _)| own == name) {
            entries.extend(open_entry(path)?.map(|source| (Path::new("/etc").join(name), source)));
        }
    }
    let own = texts
        .into_iter()
        .map(|(name, bytes)| (Path::new("/etc").join(name), RootSource::Text(bytes.to_vec())));
    entries.extend(own);
    Ok(entries)
}

/// Mounts the memory areas and the process table into the new root, which is the working directory. Returns
/// labels of what is unavailable.
pub(super) fn finish(areas: &[MemoryArea]) -> StepResult<Vec<String>> {
    for area in areas {
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if !area.executable {
            flags |= MsFlags::MS_NOEXEC;
        }
        let options = area.options();
        mount(Some("tmpfs"), area.path, Some("tmpfs"), flags, Some(options.as_str()))
            .step(&format!("mount /{}", area.path))?;
    }
    for directory in ["proc", "sys"] {
        fs::create_dir_all(directory).step(&format!("create /{directory}"))?;
    }
    mount_process_table()
}

/// Mounts a `/proc` of the sandbox's own processes, in which ranks see only themselves and the entries of
/// [`PROC_ENTRIES`]. A host that hides parts of its own `/proc` (a container) permits at most one without
/// these entries.
fn mount_process_table() -> StepResult<Vec<String>> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let attempt = |options: &str| mount(Some("proc"), "proc", Some("proc"), flags, Some(options));
    if attempt("hidepid=2").is_ok() {
        cover_entries()?;
        return Ok(vec![]);
    }
    match attempt("hidepid=2,subset=pid") {
        Ok(()) => Ok(vec!["proc: this host permits no cpuinfo and no meminfo inside".into()]),
        Err(error) => Ok(vec![format!("proc: there is none inside ({error})")]),
    }
}

/// Covers all entries of `/proc` but the processes and those that stay visible: files with a device that
/// cannot be opened, directories with an empty one. The kernel's settings become read-only.
fn cover_entries() -> StepResult<()> {
    for (name, path) in list(Path::new("proc"))? {
        let is_process = name.bytes().all(|byte| byte.is_ascii_digit());
        if is_process || PROC_ENTRIES.contains(&name.as_str()) {
            continue;
        }
        let step = format!("cover /proc/{name}");
        let metadata = fs::symlink_metadata(&path).step(&step)?;
        if !metadata.is_symlink() {
            let source = if metadata.is_dir() { c"sys" } else { c"dev/null" };
            let target = CString::new(format!("proc/{name}")).step(&step)?;
            bind_inert(source, &target).step(&step)?;
        }
    }
    bind_inert(c"proc/sys", c"proc/sys").step("make the kernel's settings read-only")
}

fn bind_inert(source: &CStr, target: &CStr) -> std::io::Result<()> {
    let tree = system::open_tree(source)?;
    system::add_mount_attributes(tree.as_fd(), READ_ONLY | libc::MOUNT_ATTR_NOEXEC)?;
    system::move_mount(tree.as_fd(), target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::keys::ByteString;
    use std::os::unix::fs::symlink;

    fn etc() -> EtcFiles {
        EtcFiles {
            passwd: "p".into(),
            group: "g".into(),
            hosts: "h".into(),
            resolv_conf: "r".into(),
            localtime: ByteString(vec![]),
        }
    }

    fn rendered(entries: &[(PathBuf, RootSource)]) -> Vec<String> {
        let content = |source: &RootSource| match source {
            RootSource::Mount { .. } => "mount".to_string(),
            RootSource::Link(to) => format!("-> {}", to.display()),
            RootSource::Text(bytes) => String::from_utf8_lossy(bytes).lines().next().unwrap_or("").into(),
            RootSource::Directory => "directory".into(),
        };
        entries.iter().map(|(path, source)| format!("{} {}", path.display(), content(source))).collect()
    }

    #[test]
    fn the_agents_files_of_etc_take_the_place_of_the_artifacts() {
        let root = tempfile::tempdir().expect("directory");
        let all = ["group g", "hosts h", "nsswitch.conf passwd: files", "passwd p", "resolv.conf r"];
        let expected: Vec<String> = all.iter().map(|line| format!("/etc/{line}")).collect();
        let found = |files: &EtcFiles| {
            let mut lines = rendered(&open_etc(root.path(), files).expect("sources"));
            lines.sort();
            lines
        };
        assert_eq!(found(&etc()), expected, "an artifact without the directory");
        fs::create_dir(root.path().join("etc")).expect("mkdir");
        // Links that would lead elsewhere if they were followed.
        for name in ["passwd", "localtime", "mtab"] {
            symlink("/proc/1/environ", root.path().join("etc").join(name)).expect("link");
        }
        let mut sorted = expected.clone();
        sorted.push("/etc/mtab -> /proc/1/environ".into());
        sorted.sort();
        assert_eq!(found(&etc()), sorted);
        let zone = EtcFiles { localtime: ByteString(b"TZif".to_vec()), ..etc() };
        assert!(found(&zone).contains(&"/etc/localtime TZif".to_string()));
    }

    #[test]
    fn an_etc_that_is_a_link_is_not_followed() {
        let root = tempfile::tempdir().expect("directory");
        symlink("/etc", root.path().join("etc")).expect("link");
        assert_eq!(open_etc(root.path(), &etc()).expect("sources").len(), 5);
    }

    #[test]
    fn a_memory_area_has_a_bound_in_bytes_and_files() {
        let area = MemoryArea { path: "tmp", bytes: 1 << 20, shared: true, executable: true };
        assert_eq!(area.options(), "size=1048576,nr_inodes=256,mode=1777");
        let area = MemoryArea { path: "outputs", shared: false, ..area };
        assert_eq!(area.options(), "size=1048576,nr_inodes=256,mode=0700,uid=1,gid=1");
    }

    #[test]
    fn what_ranks_may_write_is_what_the_sandbox_provides() {
        for path in WRITABLE {
            let first = first_component(path).expect("absolute");
            assert!(PROVIDED.contains(&first), "{path}");
        }
        let areas = disk_areas(&protocol::sandbox::WritableAreas {
            tmp_bytes: 0,
            shared_memory_bytes: 0,
            scratch: protocol::sandbox::DiskArea { bytes_max: 0, directory: None },
            checkpoint: protocol::sandbox::DiskArea { bytes_max: 0, directory: None },
            outputs: protocol::sandbox::DiskArea { bytes_max: 0, directory: None },
        })
        .map(|(path, _)| path);
        assert_eq!(WRITABLE[2..], areas);
    }

    #[test]
    fn an_artifact_with_too_many_entries_is_refused() {
        let root = tempfile::tempdir().expect("directory");
        for number in 0..=ENTRIES_MAX {
            fs::write(root.path().join(number.to_string()), "").expect("write");
        }
        let error = list(root.path()).expect_err("too many");
        assert!(error.detail.contains("4096"), "{error:?}");
    }
}
