//! Escape attempts, as many as are known. Each lists the errors by which it must fail inside a sandbox, and
//! its result without one. That positive control is needed, because a denial alone proves nothing.

use crate::call::{SystemCallResult, address, address_mut, call, last_error};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// Targets of the attempts, created by the test and alive while it runs.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct AttemptTargets {
    /// Address of a listening control replica.
    pub(crate) control: SocketAddr,
    /// Address of a listening store.
    pub(crate) store: SocketAddr,
    /// Path of a unix socket on which another worker listens.
    pub(crate) unix_path: String,
    /// Name of an abstract socket, without its leading zero.
    pub(crate) abstract_name: String,
    /// Process id of a process of the same user.
    pub(crate) victim: u32,
    /// Path of a file that every user of the host may read.
    pub(crate) secret: String,
    /// Path of a file that every user may write, and that the sandbox sees read-only.
    pub(crate) shared: String,
}

/// Descriptor that an attempt needs besides the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Needs {
    Nothing,
    /// A passed TCP connection to the gateway.
    Connected,
    /// A passed TCP socket that is not connected.
    FreshTcp,
    /// A passed UDP socket.
    Udp,
    /// The weights. Inside these are the worker's own; outside, an unsealed memory file that can be written.
    Weights,
}

/// Result of an attempt without a sandbox.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) enum Outside {
    /// It succeeds for every user.
    Succeeds,
    SucceedsForRoot,
    /// The kernel reaches its check of the (deliberately wrong) arguments and fails by one of these errors; 0
    /// is success.
    FailsBy(&'static [i32]),
    /// The same for root; other users fail earlier.
    FailsByForRoot(&'static [i32]),
}

/// One escape attempt.
#[derive(serde::Serialize)]
pub(crate) struct EscapeAttempt {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) inside: &'static [i32],
    pub(crate) outside: Outside,
    #[serde(skip)]
    pub(crate) run: fn(&AttemptTargets, RawFd) -> SystemCallResult,
}

const NOT_PERMITTED: &[i32] = &[libc::EPERM];
const NOT_THERE: &[i32] = &[libc::ENOENT, libc::EACCES, libc::ENOTDIR];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES, libc::ENOENT];

/// `clone`'s flag for a namespace that any root may make.
const NEW_UTS: usize = libc::CLONE_NEWUTS as usize;

/// Flags of a new System V object for oneself.
const NEW_IPC: usize = 0o600 | libc::IPC_CREAT as usize;

macro_rules! attempts {
    ($($name:literal, $needs:ident, $inside:expr, $outside:expr, $run:expr;)*) => {
        /// All attempts.
        pub(crate) const ATTEMPTS: &[EscapeAttempt] = &[$(EscapeAttempt {
            name: $name,
            needs: Needs::$needs,
            inside: $inside,
            outside: $outside,
            run: $run,
        }),*];
    };
}

use Outside::{FailsBy, FailsByForRoot, Succeeds, SucceedsForRoot};

attempts! {
    // New sockets.
    "tcp-to-control", Nothing, NOT_PERMITTED, Succeeds, |t, _| tcp(t.control);
    "tcp-to-store", Nothing, NOT_PERMITTED, Succeeds, |t, _| tcp(t.store);
    "udp", Nothing, NOT_PERMITTED, Succeeds, |t, _| udp(t.control);
    "raw-socket", Nothing, NOT_PERMITTED, SucceedsForRoot, |_, _| socket(libc::AF_INET, libc::SOCK_RAW, 1);
    "packet-socket", Nothing, NOT_PERMITTED, SucceedsForRoot,
        |_, _| socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    "netlink-socket", Nothing, NOT_PERMITTED, Succeeds, |_, _| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
    "vsock", Nothing, NOT_PERMITTED, Succeeds, |_, _| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    "unix-socket-of-another-worker", Nothing, NOT_PERMITTED, Succeeds, |t, _| unix(&t.unix_path);
    "abstract-socket", Nothing, NOT_PERMITTED, Succeeds, |t, _| abstract_unix(&t.abstract_name);
    // Passed sockets.
    "connected-to-elsewhere", Connected, NOT_PERMITTED, Succeeds, reconnect;
    "connected-listen", FreshTcp, NOT_PERMITTED, Succeeds, |_, fd| on(libc::SYS_listen, fd, &[1]);
    "fresh-connect", FreshTcp, NOT_PERMITTED, Succeeds, |t, fd| connect(fd, t.control);
    "fresh-bind", FreshTcp, NOT_PERMITTED, Succeeds, bind;
    "fresh-fast-open", FreshTcp, NOT_PERMITTED, FailsBy(&[0, libc::EINPROGRESS]), fast_open;
    "udp-send-to", Udp, NOT_PERMITTED, Succeeds, |t, fd| send_to(fd, t.control, 0);
    "connected-setsockopt", Connected, NOT_PERMITTED, Succeeds, set_option;
    "connected-sendmsg", Connected, NOT_PERMITTED, Succeeds, |_, fd| send_message(libc::SYS_sendmsg, fd);
    "connected-sendmmsg", Connected, NOT_PERMITTED, Succeeds, |_, fd| send_message(libc::SYS_sendmmsg, fd);
    "connected-interfaces", Connected, NOT_PERMITTED, Succeeds, interfaces;
    // Other processes.
    "ptrace", Nothing, NOT_PERMITTED, Succeeds, |t, _| ptrace(t.victim);
    "ptrace-init", Nothing, NOT_PERMITTED, SucceedsForRoot, |t, _| ptrace(init_of(t));
    "process-memory", Nothing, NOT_PERMITTED, FailsBy(&[libc::EFAULT, 0]), |t, _| process_memory(t.victim);
    "pidfd", Nothing, NOT_PERMITTED, Succeeds,
        |t, _| done(call(libc::SYS_pidfd_open, &[t.victim as usize, 0]));
    "pidfd-getfd", Nothing, NOT_PERMITTED, FailsBy(&[libc::EBADF]),
        |_, _| done(call(libc::SYS_pidfd_getfd, &[999, 0, 0]));
    "signal", Nothing, NOT_PERMITTED, Succeeds, |t, _| done(call(libc::SYS_kill, &[t.victim as usize, 0]));
    "proc-of-another", Nothing, NOT_THERE, Succeeds, |t, _| read(&format!("/proc/{}/status", t.victim));
    "proc-of-init", Nothing, NOT_THERE, Succeeds, |_, _| read("/proc/1/status");
    "root-of-init", Nothing, NOT_THERE, Succeeds,
        |t, _| read(&format!("/proc/{}/root{}", init_of(t), t.secret));
    "processes-in-sight", Nothing, NOT_THERE, Succeeds, |_, _| count_processes();
    // Namespaces, mounts, privileges.
    "mount", Nothing, NOT_PERMITTED, SucceedsForRoot, mount;
    "umount", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EINVAL, libc::ENOENT]),
        |_, _| path_call(libc::SYS_umount2, c"/nowhere");
    "pivot-root", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EFAULT]),
        |_, _| done(call(libc::SYS_pivot_root, &[]));
    "chroot", Nothing, NOT_PERMITTED, SucceedsForRoot, |_, _| path_call(libc::SYS_chroot, c"/");
    "open-tree", Nothing, NOT_PERMITTED, SucceedsForRoot, open_tree;
    "fsopen", Nothing, NOT_PERMITTED, SucceedsForRoot, |_, _| path_call(libc::SYS_fsopen, c"tmpfs");
    "mount-setattr", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EINVAL]),
        |_, _| done(call(libc::SYS_mount_setattr, &[]));
    "unshare-user", Nothing, NOT_PERMITTED, Succeeds,
        |_, _| done(call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]));
    "unshare-network", Nothing, NOT_PERMITTED, SucceedsForRoot,
        |_, _| done(call(libc::SYS_unshare, &[libc::CLONE_NEWNET as usize]));
    "setns", Nothing, &[libc::EPERM, libc::ENOENT, libc::EACCES], SucceedsForRoot, setns;
    "clone-namespace", Nothing, NOT_PERMITTED, SucceedsForRoot, |_, _| split(NEW_UTS);
    "clone3", Nothing, &[libc::ENOSYS], FailsBy(&[libc::EINVAL]), |_, _| done(call(libc::SYS_clone3, &[]));
    "fork", Nothing, NOT_PERMITTED, Succeeds, |_, _| split(0);
    "become-root", Nothing, NOT_PERMITTED, SucceedsForRoot,
        |_, _| done(call(libc::SYS_setresuid, &[0, 0, 0]));
    "gain-capabilities", Nothing, NOT_PERMITTED, FailsBy(&[libc::EFAULT]),
        |_, _| done(call(libc::SYS_capset, &[]));
    "limits-of-another", Nothing, NOT_PERMITTED, Succeeds, limits_of_another;
    "keyring", Nothing, NOT_PERMITTED, Succeeds, |_, _| done(call(libc::SYS_keyctl, &[0, usize::MAX - 2, 1]));
    // The kernel's large interfaces.
    "io-uring", Nothing, NOT_PERMITTED, Succeeds, io_uring;
    "bpf", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EINVAL, libc::E2BIG, libc::EFAULT]),
        |_, _| done(call(libc::SYS_bpf, &[usize::MAX, 0, 0]));
    "perf", Nothing, NOT_PERMITTED, FailsBy(&[libc::EFAULT, libc::EACCES]),
        |_, _| done(call(libc::SYS_perf_event_open, &[]));
    "userfaultfd", Nothing, NOT_PERMITTED, SucceedsForRoot, |_, _| done(call(libc::SYS_userfaultfd, &[]));
    "load-module", Nothing, NOT_PERMITTED,
        FailsByForRoot(&[libc::EFAULT, libc::ENOEXEC, libc::EINVAL, libc::ENOSYS]),
        |_, _| done(call(libc::SYS_init_module, &[]));
    "load-kernel", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EINVAL, libc::ENOSYS, libc::EBUSY]),
        |_, _| done(call(libc::SYS_kexec_load, &[0, 0, 0, usize::MAX]));
    "reboot", Nothing, NOT_PERMITTED, FailsByForRoot(&[libc::EINVAL]),
        |_, _| done(call(libc::SYS_reboot, &[]));
    "set-clock", Nothing, NOT_PERMITTED, FailsBy(&[libc::EFAULT]),
        |_, _| done(call(libc::SYS_clock_settime, &[0, 1]));
    "make-device", Nothing, NOT_PERMITTED, SucceedsForRoot, make_device;
    "shared-memory", Nothing, NOT_PERMITTED, Succeeds,
        |_, _| make_and_remove(libc::SYS_shmget, &[0, 4096, NEW_IPC], libc::SYS_shmctl);
    "message-queue", Nothing, NOT_PERMITTED, Succeeds,
        |_, _| make_and_remove(libc::SYS_msgget, &[0, NEW_IPC], libc::SYS_msgctl);
    "memory-file", Nothing, NOT_PERMITTED, Succeeds, |_, _| path_call(libc::SYS_memfd_create, c"x");
    "pin-to-cpu", Nothing, NOT_PERMITTED, FailsBy(&[libc::EFAULT, libc::EINVAL]),
        |_, _| done(call(libc::SYS_sched_setaffinity, &[]));
    "32-bit-numbers", Nothing, &[libc::EPERM, libc::ENOSYS], FailsBy(&[libc::ENOSYS]),
        |_, _| done(call(libc::SYS_getpid | 0x4000_0000, &[]));
    "threads-without-end", Nothing, &[libc::EAGAIN], Succeeds, |_, _| threads();
    // Files.
    "host-file", Nothing, NOT_THERE, Succeeds, |t, _| read(&t.secret);
    "users-of-the-host", Nothing, NOT_THERE, Succeeds, |_, _| read("/etc/passwd");
    "kernel-settings", Nothing, NOT_THERE, Succeeds, |_, _| read("/proc/sys/kernel/ostype");
    "cgroup-files", Nothing, NOT_THERE, Succeeds, |_, _| list("/sys/fs/cgroup");
    "block-devices", Nothing, NOT_THERE, Succeeds, |_, _| list("/sys/block");
    "shell", Nothing, NOT_THERE, Succeeds, |_, _| path_access(c"/bin/sh");
    "write-root", Nothing, READ_ONLY, SucceedsForRoot, |_, _| create("/sandbox-probe");
    "write-scratch", Nothing, READ_ONLY, Succeeds, |t, _| create(&format!("{}.new", t.secret));
    "write-shared-file", Nothing, READ_ONLY, Succeeds,
        |t, _| io(File::options().append(true).open(&t.shared));
    // The weights, shared by every worker of the node.
    "weights-write", Weights, &[libc::EBADF], Succeeds,
        |_, fd| on(libc::SYS_pwrite64, fd, &[address(b"x"), 1, 0]);
    "weights-map", Weights, &[libc::EACCES, libc::EPERM], Succeeds,
        |_, fd| map(fd, libc::PROT_READ | libc::PROT_WRITE).map(drop);
    "weights-remap", Weights, &[libc::EACCES, libc::EPERM], Succeeds, remap;
    "weights-reopen", Weights, &[libc::EACCES, libc::EPERM], Succeeds, reopen;
    "weights-truncate", Weights, &[libc::EPERM, libc::EINVAL], Succeeds,
        |_, fd| on(libc::SYS_ftruncate, fd, &[1]);
    "weights-punch", Weights, &[libc::EPERM, libc::EBADF], Succeeds, punch;
}

pub(crate) fn done(result: SystemCallResult<usize>) -> SystemCallResult {
    result.map(drop)
}

pub(crate) fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}

pub(crate) fn io<T>(result: std::io::Result<T>) -> SystemCallResult {
    result.map(drop).map_err(|error| errno(&error))
}

pub(crate) fn on(number: i64, fd: RawFd, rest: &[usize]) -> SystemCallResult {
    let first = fd as usize;
    done(call(number, &[&[first], rest].concat()))
}

fn path_call(number: i64, path: &std::ffi::CStr) -> SystemCallResult {
    done(call(number, &[path.as_ptr() as usize]))
}

fn path_access(path: &std::ffi::CStr) -> SystemCallResult {
    let here = libc::AT_FDCWD as usize;
    done(call(libc::SYS_faccessat, &[here, path.as_ptr() as usize, libc::X_OK as usize]))
}

pub(crate) fn tcp(to: SocketAddr) -> SystemCallResult {
    io(TcpStream::connect(to))
}

fn udp(to: SocketAddr) -> SystemCallResult {
    io(UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"x", to)))
}

pub(crate) fn unix(path: &str) -> SystemCallResult {
    io(UnixStream::connect(path))
}

pub(crate) fn abstract_unix(name: &str) -> SystemCallResult {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
    io(address.and_then(|address| UnixStream::connect_addr(&address)))
}

pub(crate) fn socket(family: i32, kind: i32, protocol: usize) -> SystemCallResult {
    done(call(libc::SYS_socket, &[family as usize, kind as usize, protocol]))
}

/// Returns an IPv4 address in the kernel's format.
fn raw_address(to: SocketAddr) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    raw[2..4].copy_from_slice(&to.port().to_be_bytes());
    if let SocketAddr::V4(v4) = to {
        raw[4..8].copy_from_slice(&v4.ip().octets());
    }
    raw
}

fn connect(fd: RawFd, to: SocketAddr) -> SystemCallResult {
    on(libc::SYS_connect, fd, &[address(&raw_address(to)), 16])
}

/// `AF_UNSPEC` dissolves a connection; the socket can then be connected again, in the host's network.
fn reconnect(target: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    on(libc::SYS_connect, fd, &[address(&[0u8; 16]), 16])?;
    connect(fd, target.control)
}

fn bind(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    let any = raw_address(([127, 0, 0, 1], 0).into());
    on(libc::SYS_bind, fd, &[address(&any), 16])
}

fn send_to(fd: RawFd, to: SocketAddr, flags: i32) -> SystemCallResult {
    on(libc::SYS_sendto, fd, &[address(b"x"), 1, flags as usize, address(&raw_address(to)), 16])
}

fn fast_open(target: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    send_to(fd, target.control, libc::MSG_FASTOPEN)
}

fn set_option(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    let level = libc::SOL_SOCKET as usize;
    on(libc::SYS_setsockopt, fd, &[level, libc::SO_KEEPALIVE as usize, address(&1i32), 4])
}

fn send_message(number: i64, fd: RawFd) -> SystemCallResult {
    let part = libc::iovec { iov_base: address(b"x") as *mut libc::c_void, iov_len: 1 };
    // SAFETY: an all-zero message header is valid and names nothing.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = address(&part) as *mut libc::iovec;
    message.msg_hdr.msg_iovlen = 1;
    // `sendmsg` takes the header with which the list's only element begins; the 1 is its flags or count.
    let count = usize::from(number == libc::SYS_sendmmsg);
    on(number, fd, &[address_mut(&mut message), count, 0])
}

fn interfaces(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    const SIOCGIFCONF: usize = 0x8912;
    on(libc::SYS_ioctl, fd, &[SIOCGIFCONF, address_mut(&mut [0u64; 2])])
}

/// Returns the sandbox's init, process 1, when inside; outside, the victim stands in for it.
fn init_of(target: &AttemptTargets) -> u32 {
    if std::path::Path::new("/etc/passwd").exists() { target.victim } else { 1 }
}

fn ptrace(pid: u32) -> SystemCallResult {
    done(call(libc::SYS_ptrace, &[libc::PTRACE_ATTACH as usize, pid as usize, 0, 0]))
}

fn process_memory(pid: u32) -> SystemCallResult {
    let mut bytes = [0u8; 1];
    let here = libc::iovec { iov_base: address_mut(&mut bytes) as *mut libc::c_void, iov_len: 1 };
    let there = libc::iovec { iov_base: 4096 as *mut libc::c_void, iov_len: 1 };
    let (here, there) = (address(&here), address(&there));
    done(call(libc::SYS_process_vm_readv, &[pid as usize, here, 1, there, 1, 0]))
}

pub(crate) fn read(path: &str) -> SystemCallResult {
    io(fs::read(path))
}

pub(crate) fn list(path: &str) -> SystemCallResult {
    io(fs::read_dir(path))
}

fn create(path: &str) -> SystemCallResult {
    let result = io(File::options().create_new(true).write(true).open(path));
    let _ = fs::remove_file(path);
    result
}

/// Succeeds if another process is visible.
fn count_processes() -> SystemCallResult {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").map_err(|error| errno(&error))?;
    let is_other = |name: &str| name != own && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    if names.any(|name| is_other(&name)) { Ok(()) } else { Err(libc::ENOENT) }
}

fn mount(_: &AttemptTargets, _: RawFd) -> SystemCallResult {
    // Outside, this runs in a new mount namespace; inside, that call fails first and does not matter.
    let _ = call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize]);
    let (kind, to) = (c"tmpfs".as_ptr() as usize, c"/proc".as_ptr() as usize);
    done(call(libc::SYS_mount, &[kind, to, kind, 0, 0]))
}

fn open_tree(_: &AttemptTargets, _: RawFd) -> SystemCallResult {
    let (here, path) = (libc::AT_FDCWD as usize, c"/".as_ptr() as usize);
    done(call(libc::SYS_open_tree, &[here, path, libc::OPEN_TREE_CLONE as usize]))
}

fn setns(_: &AttemptTargets, _: RawFd) -> SystemCallResult {
    let file = File::open("/proc/self/ns/net").map_err(|error| errno(&error))?;
    done(call(libc::SYS_setns, &[file.as_raw_fd() as usize, 0]))
}

fn split(flags: usize) -> SystemCallResult {
    let child = call(libc::SYS_clone, &[flags | libc::SIGCHLD as usize])?;
    if child == 0 {
        // SAFETY: takes no pointer and does not return.
        unsafe { libc::_exit(0) }
    }
    Ok(())
}

fn make_and_remove(make: i64, arguments: &[usize], control: i64) -> SystemCallResult {
    let id = call(make, arguments)?;
    done(call(control, &[id, libc::IPC_RMID as usize, 0]))
}

fn limits_of_another(target: &AttemptTargets, _: RawFd) -> SystemCallResult {
    let mut limit = [0u64; 2];
    let (victim, files) = (target.victim as usize, libc::RLIMIT_NOFILE as usize);
    done(call(libc::SYS_prlimit64, &[victim, files, 0, address_mut(&mut limit)]))
}

fn io_uring(_: &AttemptTargets, _: RawFd) -> SystemCallResult {
    let mut parameters = [0u8; 256];
    done(call(libc::SYS_io_uring_setup, &[1, address_mut(&mut parameters)]))
}

fn make_device(target: &AttemptTargets, _: RawFd) -> SystemCallResult {
    let path = std::ffi::CString::new(format!("{}.device", target.secret)).map_err(|_| -1)?;
    let mode = libc::S_IFCHR as usize | 0o600;
    // Device 1, 3 is /dev/null.
    let made = call(libc::SYS_mknodat, &[libc::AT_FDCWD as usize, path.as_ptr() as usize, mode, 0x103]);
    let _ = fs::remove_file(path.to_string_lossy().as_ref());
    done(made)
}

/// Starts more threads than a sandbox of these tests may have, and fewer than a host allows.
fn threads() -> SystemCallResult {
    let (release, wait) = std::sync::mpsc::sync_channel::<()>(0);
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let mut result = Ok(());
    let mut handles = Vec::new();
    for _ in 0..100 {
        let wait = std::sync::Arc::clone(&wait);
        let builder = std::thread::Builder::new().stack_size(64 * 1024);
        match builder.spawn(move || drop(wait.lock().map(|wait| wait.recv()))) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                result = Err(errno(&error));
                break;
            }
        }
    }
    drop(release);
    for handle in handles {
        let _ = handle.join();
    }
    result
}

fn map(fd: RawFd, protection: i32) -> SystemCallResult<*mut libc::c_void> {
    // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, fd, 0) };
    if map == libc::MAP_FAILED { Err(last_error()) } else { Ok(map) }
}

fn remap(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    let map = map(fd, libc::PROT_READ)?;
    let both = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    done(call(libc::SYS_mprotect, &[map as usize, 4096, both]))
}

fn reopen(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    let file = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
    let file = file.map_err(|error| errno(&error))?;
    on(libc::SYS_pwrite64, file.as_raw_fd(), &[address(b"x"), 1, 0])
}

fn punch(_: &AttemptTargets, fd: RawFd) -> SystemCallResult {
    let mode = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as usize;
    on(libc::SYS_fallocate, fd, &[mode, 0, 4096])
}
