//! File system of a sandbox. An engine gets a small read-only tree: the worker, its libraries, a separate
//! process table, two devices, and nothing else of the host. The tree of ranks is in [`process_root`].
//!
//! Sources are opened first, as detached mounts, with the agent's own rights. The tree is then built with the
//! sandbox's ids, which cannot reach the host's directories.

use super::process_root::{self, MemoryArea};
use super::{InStep, StepResult};
use crate::system;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use protocol::sandbox::{EngineProfile, SandboxProfile, SandboxSpec};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Path of the worker's executable inside.
pub(crate) const WORKER_PATH: &str = "/worker";
/// Devices that every program expects in `/dev`.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// Attributes of a file or directory that nothing inside can change.
pub(super) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// Attributes of a device node.
pub(super) const DEVICE: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
/// A directory that exists on every machine and that every user may enter. The new root covers it while being
/// built, in this mount namespace only.
const SCAFFOLD: &str = "/dev";

/// Content of a path of the new root.
pub(super) enum RootSource {
    /// A detached mount of a host file or directory.
    Mount { tree: OwnedFd, directory: bool },
    /// A symbolic link as on the host (`/lib` to `usr/lib`).
    Link(PathBuf),
    /// A file with this content.
    Text(Vec<u8>),
    /// An empty directory: a place to mount on.
    Directory,
}

/// Complete content of the new root.
pub(super) struct RootSources {
    pub(super) entries: Vec<(PathBuf, RootSource)>,
    pub(super) kind: RootKind,
}

/// Kind of a root, which decides how it is finished.
pub(super) enum RootKind {
    /// Everything is read-only.
    Engine,
    /// These areas in memory are writable, and directories among the entries.
    Process(Vec<MemoryArea>),
}

/// Opens the files and directories in the specification.
pub(super) fn open_sources(spec: &SandboxSpec) -> StepResult<RootSources> {
    match &spec.profile {
        SandboxProfile::Engine(engine) => open_engine_sources(engine, &spec.devices),
        SandboxProfile::Process(profile) => process_root::open_sources(profile, &spec.devices),
    }
}

fn open_engine_sources(engine: &EngineProfile, devices: &[String]) -> StepResult<RootSources> {
    let mut entries = vec![(WORKER_PATH.into(), open_mount(Path::new(&engine.binary), READ_ONLY)?)];
    for path in engine.read_only.iter().map(Path::new) {
        let metadata = fs::symlink_metadata(path).step(&format!("open {}", path.display()))?;
        let content = if metadata.is_symlink() && path.is_dir() {
            RootSource::Link(fs::read_link(path).step(&format!("read {}", path.display()))?)
        } else {
            open_mount(path, READ_ONLY)?
        };
        entries.push((path.to_path_buf(), content));
    }
    for path in DEVICES.into_iter().chain(devices.iter().map(String::as_str)).map(Path::new) {
        entries.push((path.to_path_buf(), open_mount(path, DEVICE)?));
    }
    Ok(RootSources { entries, kind: RootKind::Engine })
}

/// Opens a file or directory of the host as a detached mount with some attributes.
pub(super) fn open_mount(path: &Path, attributes: u64) -> StepResult<RootSource> {
    let step = format!("open {}", path.display());
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err("the path is not absolute and plain").step(&step);
    }
    let directory = fs::metadata(path).step(&step)?.is_dir();
    let text = CString::new(path.as_os_str().as_bytes()).step(&step)?;
    let tree = system::open_tree(&text).step(&step)?;
    system::add_mount_attributes(tree.as_fd(), attributes).step(&format!("{step} with its attributes"))?;
    Ok(RootSource::Mount { tree, directory })
}

/// Builds the tree and makes it the root of this mount namespace. Returns labels of the parts that are
/// unavailable.
pub(super) fn build(sources: RootSources) -> StepResult<Vec<String>> {
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .step("make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Space for mount points, links and small files, the only things ever written here.
    let options = match &sources.kind {
        RootKind::Engine => "size=1m,nr_inodes=8192,mode=0755",
        RootKind::Process(_) => process_root::SCAFFOLD_OPTIONS,
    };
    mount(Some("tmpfs"), SCAFFOLD, Some("tmpfs"), flags, Some(options)).step("mount the new root")?;
    chdir(SCAFFOLD).step("enter the new root")?;
    for (path, content) in sources.entries {
        provide(&path, content)?;
    }
    let not_enforced = match &sources.kind {
        RootKind::Engine => mount_process_table()?,
        RootKind::Process(areas) => process_root::finish(areas)?,
    };
    pivot_root(".", ".").step("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).step("let go of the host's root")?;
    chdir("/").step("enter the root")?;
    let root = File::open("/").step("open the root")?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    let set = match sources.kind {
        RootKind::Engine => system::add_mount_attributes(root.as_fd(), attributes),
        // Its parts have their attributes already, and some are writable.
        RootKind::Process(_) => system::add_attributes_to_one_mount(root.as_fd(), attributes),
    };
    set.step("make the root read-only")?;
    Ok(not_enforced)
}

fn provide(path: &Path, content: RootSource) -> StepResult<()> {
    let step = format!("place {}", path.display());
    let target = Path::new(".").join(path.strip_prefix("/").step(&step)?);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).step(&step)?;
    }
    match content {
        RootSource::Link(to) => symlink(to, &target).step(&step),
        RootSource::Text(bytes) => fs::write(&target, bytes).step(&step),
        RootSource::Directory => fs::create_dir_all(&target).step(&step),
        RootSource::Mount { tree, directory } => {
            if directory {
                fs::create_dir_all(&target).step(&step)?;
            } else {
                File::create(&target).step(&step)?;
            }
            let target = CString::new(target.as_os_str().as_bytes()).step(&step)?;
            system::move_mount(tree.as_fd(), &target).step(&step)
        }
    }
}

/// Mounts the sandbox's own `/proc`, in which each process sees only itself. A host that hides parts of its
/// own `/proc` (a container) does not permit it: the sandbox then has none and gets a label.
fn mount_process_table() -> StepResult<Vec<String>> {
    fs::create_dir_all("proc").step("create /proc")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let attempt = |options| mount(Some("proc"), "proc", Some("proc"), flags, Some(options));
    if attempt("hidepid=invisible,subset=pid").is_ok() {
        return Ok(vec![]);
    }
    match attempt("hidepid=2") {
        Ok(()) => Ok(vec!["proc: the kernel's own files in /proc stay visible".into()]),
        Err(error) => Ok(vec![format!("proc: there is none inside ({error})")]),
    }
}
