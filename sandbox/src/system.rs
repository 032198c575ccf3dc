//! System calls that no library wraps safely. Each is a thin function with its safety argument beside it;
//! nothing here decides anything.

use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Forks a single-threaded process; `flags` are those of `clone(2)`. Returns the child's id to the parent and
/// none to the child.
///
/// # Safety
/// The calling process must have one thread only. The child is a copy of the calling thread alone, and a lock
/// held by another thread would stay locked in it forever.
pub(crate) unsafe fn clone_process(flags: libc::c_int) -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack, clone copies the address space and returns twice, like
    // fork; no pointer is passed. The caller guarantees the single thread.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    let pid = Errno::result(result)?;
    Ok((pid != 0).then(|| Pid::from_raw(i32::try_from(pid).expect("process ids are 32 bits"))))
}

/// Ends the process immediately: no destructors, no buffers, no exit handlers.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: passes three integers. The callers own every descriptor that they close here and do not
    // use them again (they are about to exec, or have just been executed).
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// Makes descriptor number `target` a copy of `source`. `on_exec` is 0 or `O_CLOEXEC`.
pub(crate) fn duplicate_to(source: BorrowedFd<'_>, target: RawFd, on_exec: i32) -> io::Result<()> {
    // SAFETY: passes three integers; `source` is open for as long as it is borrowed. The callers reserve the
    // numbers they target, so no owned descriptor is replaced by accident.
    Errno::result(unsafe { libc::dup3(source.as_raw_fd(), target, on_exec) })?;
    Ok(())
}

/// Repeats a system call that a signal interrupted; its time limit begins again. The kernel starts neither
/// `poll` again nor `recvmsg` on a socket with a time limit, which is interrupted even by a stop and a
/// continuation (signal(7)).
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// Takes ownership of a descriptor number that the kernel has just returned to this process.
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    debug_assert!(descriptor >= 0);
    // SAFETY: the callers pass numbers that a system call has just returned to them (recvmsg, a fresh
    // process's standard input). Nothing else in the process owns these numbers.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Registers a descriptor with the runtime's reactor, to wait until it can be read.
pub(crate) fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value owns a valid descriptor, and nothing replaces or closes it before the value is
    // dropped, since only shared references to it are given out.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)
}

/// Returns a detached copy of the mounts at `path` (`open_tree(2)`, recursive).
pub(crate) fn open_tree(path: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::c_uint::try_from(libc::AT_RECURSIVE).expect("a positive constant");
    // SAFETY: `path` is a valid C string for the duration of the call, which keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let descriptor = Errno::result(result)?;
    Ok(own(RawFd::try_from(descriptor).expect("descriptors are 32 bits")))
}

/// Attaches a detached tree at `target`.
pub(crate) fn move_mount(tree: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    // SAFETY: both strings are valid C strings for the duration of the call, which keeps no pointer;
    // the descriptor is open for as long as it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount whose root is `descriptor`, and to all below.
pub(crate) fn add_mount_attributes(descriptor: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    set_mount_attributes(descriptor, attributes, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount whose root is `descriptor`, and not to those below.
pub(crate) fn add_attributes_to_one_mount(descriptor: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    set_mount_attributes(descriptor, attributes, libc::AT_EMPTY_PATH)
}

fn set_mount_attributes(descriptor: BorrowedFd<'_>, attributes: u64, flags: libc::c_int) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the string is a valid C string, the structure is fully initialised and its true size is given;
    // the call reads both and keeps no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            descriptor.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Id of a process, which the kernel reuses once the process has been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId(pub(crate) u32);

/// Opens a descriptor of a process, which stays valid even if the process id is reused.
pub(crate) fn pidfd_open(pid: ProcessId) -> io::Result<OwnedFd> {
    // SAFETY: passes two integers.
    let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })?;
    Ok(own(RawFd::try_from(descriptor).expect("descriptors are 32 bits")))
}

/// Sends SIGKILL to the process of this descriptor.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null information pointer is allowed; the descriptor is open for as long as borrowed.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0)
    })?;
    Ok(())
}

/// Reaps one child that has ended and returns its id and status; none if no child has. Any signal may have
/// ended it, also a real-time signal, which `nix` has no name for.
pub(crate) fn reap_child() -> io::Result<Option<(Pid, libc::c_int)>> {
    let mut status = 0;
    // SAFETY: the status outlives the call, which writes nothing else.
    match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
        Ok(0) | Err(Errno::ECHILD) => Ok(None),
        Ok(pid) => Ok(Some((Pid::from_raw(pid), status))),
        Err(error) => Err(error.into()),
    }
}

/// Sets this process's nice value; it can be raised, never lowered again without privileges.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: passes integers; 0 is the calling process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })?;
    Ok(())
}

/// Locks the rule that user id 0 grants no privileges (`SECBIT_NOROOT` and related bits, locked).
pub(crate) fn forget_root_rules() -> io::Result<()> {
    // From <linux/securebits.h>: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each locked.
    const BITS: libc::c_ulong = 0b1 | 0b10 | 0b100 | 0b1000 | 0b10_0000 | 0b100_0000 | 0b1000_0000;
    // SAFETY: passes integers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, BITS, 0, 0, 0) })?;
    Ok(())
}

/// Drops every capability from the bounding set, which limits the privileges of all later programs.
pub(crate) fn drop_bounding_set() -> io::Result<()> {
    // The kernel reports the end of its list; the set has space for 64.
    for capability in 0..64 {
        // SAFETY: passes integers.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Restores the default handling of SIGPIPE, which Rust programs change and children inherit.
pub(crate) fn restore_sigpipe() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default handler is no function of this program and has no requirements.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// Size of the kernel's `struct ifreq` in bytes: a name of 16 and a union of 24.
const INTERFACE_REQUEST_BYTES: usize = 40;

/// Argument of an `ioctl` about a network interface: a `struct ifreq`, or the shorter `struct in6_ifreq`.
#[repr(C, align(8))]
pub(crate) struct InterfaceRequest(pub(crate) [u8; INTERFACE_REQUEST_BYTES]);

/// Makes a request about a network interface. The kernel reads and writes the argument.
pub(crate) fn interface_ioctl(
    descriptor: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: &mut InterfaceRequest,
) -> io::Result<()> {
    let address = std::ptr::from_mut(argument);
    // SAFETY: the callers pass requests whose argument is at most a `struct ifreq`. This structure has the
    // same size and alignment, and outlives the call; the descriptor is open for as long as it is borrowed.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioctl, descriptor.as_raw_fd(), request, address) })?;
    Ok(())
}

/// The kernel's `struct fsxattr`, from `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// Makes a directory and everything that is created below it later belong to a quota project.
pub(crate) fn set_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    // From <linux/fs.h>: FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT.
    const GET: libc::c_ulong = 0x801c_581f;
    const SET: libc::c_ulong = 0x401c_5820;
    const INHERIT: u32 = 0x200;
    let mut attributes = FileAttributes::default();
    let address = std::ptr::from_mut(&mut attributes);
    // SAFETY: the structure has the layout that the kernel writes, and outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioctl, directory.as_raw_fd(), GET, address) })?;
    attributes.flags |= INHERIT;
    attributes.project = project;
    let address = std::ptr::from_ref(&attributes);
    // SAFETY: the structure has the layout that the kernel reads, and outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioctl, directory.as_raw_fd(), SET, address) })?;
    Ok(())
}

/// Sets the hard limits of a quota project on the file system of a directory: blocks of 1 KiB, and files.
pub(crate) fn set_project_limits(
    directory: BorrowedFd<'_>,
    project: u32,
    blocks: u64,
    files: u64,
) -> io::Result<()> {
    // QCMD(Q_SETQUOTA, PRJQUOTA) of <linux/quota.h>.
    const SET_PROJECT_QUOTA: libc::c_ulong = 0x8000_0802;
    let limits = libc::dqblk {
        dqb_bhardlimit: blocks,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: files,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: libc::QIF_BLIMITS | libc::QIF_ILIMITS,
    };
    let address = std::ptr::from_ref(&limits);
    // SAFETY: the structure is fully initialised, has the kernel's layout, and outlives the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_raw_fd(),
            SET_PROJECT_QUOTA,
            libc::c_ulong::from(project),
            address,
        )
    })?;
    Ok(())
}
