//! File system of a sandbox: a small read-only tree. It holds the worker, its libraries, a separate process
//! table, two devices, and nothing else of the host.
//!
//! Sources are opened first, as detached mounts, with the agent's own rights. The tree is then built with the
//! sandbox's ids, which cannot reach the host's directories.

use super::{InStep, StepResult};
use crate::system;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use protocol::sandbox::SandboxSpec;
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
/// A directory that exists on every machine and that every user may enter. The new root covers it while being
/// built, in this mount namespace only.
const SCAFFOLD: &str = "/dev";

/// Content of a path of the new root.
enum RootSource {
    /// A detached mount of a host file or directory.
    Mount { tree: OwnedFd, directory: bool },
    /// A symbolic link as on the host (`/lib` to `usr/lib`).
    Link(PathBuf),
}

/// Complete content of the new root.
pub(super) struct RootSources(Vec<(PathBuf, RootSource)>);

/// Opens the files and directories in the specification.
pub(super) fn open_sources(spec: &SandboxSpec) -> StepResult<RootSources> {
    let mut entries = vec![(WORKER_PATH.into(), open_mount(Path::new(&spec.binary), false)?)];
    for path in spec.read_only.iter().map(Path::new) {
        let metadata = fs::symlink_metadata(path).step(&format!("open {}", path.display()))?;
        let content = if metadata.is_symlink() && path.is_dir() {
            RootSource::Link(fs::read_link(path).step(&format!("read {}", path.display()))?)
        } else {
            open_mount(path, false)?
        };
        entries.push((path.to_path_buf(), content));
    }
    for path in DEVICES.into_iter().chain(spec.devices.iter().map(String::as_str)).map(Path::new) {
        entries.push((path.to_path_buf(), open_mount(path, true)?));
    }
    Ok(RootSources(entries))
}

fn open_mount(path: &Path, device: bool) -> StepResult<RootSource> {
    let step = format!("open {}", path.display());
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err("the path is not absolute and plain").step(&step);
    }
    let directory = fs::metadata(path).step(&step)?.is_dir();
    let text = CString::new(path.as_os_str().as_bytes()).step(&step)?;
    let tree = system::open_tree(&text).step(&step)?;
    let mut attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    attributes |= if device { libc::MOUNT_ATTR_NOEXEC } else { libc::MOUNT_ATTR_NODEV };
    system::add_mount_attributes(tree.as_fd(), attributes).step(&format!("{step} read-only"))?;
    Ok(RootSource::Mount { tree, directory })
}

/// Builds the tree and makes it the root of this mount namespace. Returns labels of the parts that are
/// unavailable.
pub(super) fn build(sources: RootSources) -> StepResult<Vec<String>> {
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .step("make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Space for mount points and links, the only things ever written here.
    mount(Some("tmpfs"), SCAFFOLD, Some("tmpfs"), flags, Some("size=1m,nr_inodes=8192,mode=0755"))
        .step("mount the new root")?;
    chdir(SCAFFOLD).step("enter the new root")?;
    for (path, content) in sources.0 {
        provide(&path, content)?;
    }
    let not_enforced = mount_process_table()?;
    pivot_root(".", ".").step("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).step("let go of the host's root")?;
    chdir("/").step("enter the root")?;
    let root = File::open("/").step("open the root")?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    system::add_mount_attributes(root.as_fd(), attributes).step("make the root read-only")?;
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
