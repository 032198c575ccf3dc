//! A hostile rank of a process sandbox. Like the hostile worker it makes each attempt inside and outside; it
//! may start processes, so each attempt runs in a child.

use crate::attempts::{ATTEMPTS, AttemptTargets, Outside, abstract_unix, done, errno, io, list, on, read};
use crate::attempts::{socket, tcp, unix};
use crate::call::{SystemCallResult, address, address_mut, call, in_a_child, last_error};
use crate::needs;
use std::fs::{self, File};
use std::io::{self as stdio, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Targets of a rank's attempts.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct RankTargets {
    /// Those that it shares with a worker.
    worker: AttemptTargets,
    /// Address of a listener of the host, by IPv6 where the host has it.
    control_v6: SocketAddr,
    /// Path of the socket of its own init, on the host.
    agent_socket: String,
    /// Directory of the host that another sandbox may write.
    neighbour: String,
    /// Prefix of paths in the artifact: empty inside, its directory outside.
    tree: String,
    /// Directory that the rank may write.
    scratch: String,
    /// Bytes that exceed the bound of that directory, and of `/dev/shm`.
    fill_bytes: usize,
}

/// Attempts of a worker that a rank makes too, with the same results inside and outside.
#[rustfmt::skip]
const SHARED: &[&str] = &[
    "raw-socket", "packet-socket", "vsock", "ptrace", "process-memory", "pidfd", "pidfd-getfd",
    "proc-of-another", "proc-of-init", "root-of-init", "mount", "umount", "pivot-root", "chroot",
    "open-tree", "fsopen", "mount-setattr", "unshare-user", "unshare-network", "setns", "clone-namespace",
    "clone3", "become-root", "gain-capabilities", "limits-of-another", "keyring", "io-uring", "bpf", "perf",
    "userfaultfd", "load-module", "load-kernel", "reboot", "set-clock", "make-device", "shared-memory",
    "message-queue", "memory-file", "32-bit-numbers", "threads-without-end", "host-file", "cgroup-files",
    "block-devices", "write-root", "write-scratch", "write-shared-file",
];

/// One attempt of a rank alone.
struct RankAttempt {
    name: &'static str,
    inside: &'static [i32],
    outside: Outside,
    run: fn(&RankTargets) -> SystemCallResult,
}

const NOT_PERMITTED: &[i32] = &[libc::EPERM];
const NOT_THERE: &[i32] = &[libc::ENOENT];
const REFUSED: &[i32] = &[libc::ECONNREFUSED];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES];
const FULL: &[i32] = &[libc::ENOSPC, libc::EDQUOT];
/// More files than a small area may hold, and fewer than a disk.
const MANY_FILES: usize = 600;

use Outside::{FailsBy, FailsByForRoot, Succeeds, SucceedsForRoot};

macro_rules! rank_attempts {
    ($($name:literal, $inside:expr, $outside:expr, $run:expr;)*) => {
        const RANK_ATTEMPTS: &[RankAttempt] =
            &[$(RankAttempt { name: $name, inside: $inside, outside: $outside, run: $run }),*];
    };
}

rank_attempts! {
    // The host's network, by every way to a socket.
    "control-by-ipv4", REFUSED, Succeeds, |t| tcp(t.worker.control);
    "control-by-ipv6", REFUSED, Succeeds, |t| tcp(t.control_v6);
    "metadata-address", &[libc::ENETUNREACH],
        FailsBy(&[0, libc::EINPROGRESS, libc::ENETUNREACH, libc::EHOSTUNREACH]), |_| metadata();
    "agent-socket", NOT_THERE, Succeeds, |t| unix(&t.agent_socket);
    "unix-socket-of-another", NOT_THERE, Succeeds, |t| unix(&t.worker.unix_path);
    "abstract-socket-of-another", REFUSED, Succeeds, |t| abstract_unix(&t.worker.abstract_name);
    "generic-netlink", NOT_PERMITTED, Succeeds, |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 16);
    "diagnostic-netlink", NOT_PERMITTED, FailsBy(&[0, libc::EPROTONOSUPPORT]),
        |_| socket(libc::AF_NETLINK, libc::SOCK_DGRAM, 4);
    "crypto-socket", NOT_PERMITTED, FailsBy(&[0, libc::EAFNOSUPPORT]),
        |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0);
    "multipath-tcp", NOT_PERMITTED, FailsBy(&[0, libc::ENOPROTOOPT, libc::EPROTONOSUPPORT]),
        |_| socket(libc::AF_INET, libc::SOCK_STREAM, 262);
    "filter-program", NOT_PERMITTED, FailsBy(&[libc::EINVAL, libc::EFAULT]),
        |_| with_udp(|fd| on(libc::SYS_setsockopt, fd, &[1, libc::SO_ATTACH_FILTER as usize, 0, 0]));
    "upper-layer-protocol", NOT_PERMITTED,
        FailsBy(&[libc::EINVAL, libc::EFAULT, libc::ENOPROTOOPT, libc::ENOTSUP]),
        |_| with_udp(|fd| on(libc::SYS_setsockopt, fd, &[libc::IPPROTO_TCP as usize, 31, 0, 0]));
    "out-of-band", NOT_PERMITTED, FailsBy(&[0, libc::EOPNOTSUPP]), |_| out_of_band();
    "interface-address", NOT_PERMITTED, FailsByForRoot(&[libc::ENODEV]), |_| with_udp(set_interface);
    "tun-device", NOT_THERE, SucceedsForRoot, |_| io(File::options().write(true).open("/dev/net/tun"));
    // Other processes and sandboxes.
    "signal-to-the-host", &[libc::ESRCH], Succeeds,
        |t| done(call(libc::SYS_kill, &[t.worker.victim as usize, 0]));
    "area-of-another", NOT_THERE, Succeeds, |t| list(&t.neighbour);
    // The artifact and the files around it.
    "set-id", NOT_PERMITTED, SucceedsForRoot, set_id;
    "device-node-of-the-artifact", &[libc::EACCES, libc::ENOENT], SucceedsForRoot,
        |t| read_some(&format!("{}/opt/zero", t.tree));
    "write-artifact", READ_ONLY, Succeeds,
        |t| io(File::options().append(true).open(format!("{}/opt/open", t.tree)));
    "write-hosts", READ_ONLY, SucceedsForRoot, |_| io(File::options().append(true).open("/etc/hosts"));
    "passwords", NOT_THERE, SucceedsForRoot, |_| read("/etc/shadow");
    "kernel-symbols", &[libc::EACCES, libc::ENOENT], Succeeds, |_| read_some("/proc/kallsyms");
    "kernel-keys", &[libc::EACCES, libc::ENOENT], Succeeds, |_| read("/proc/keys");
    "kernel-memory", &[libc::EACCES, libc::ENOENT], FailsByForRoot(&[0, libc::ENOENT, libc::EPERM]),
        |_| io(File::open("/proc/kcore"));
    "kernel-command", &[libc::EACCES, libc::ENOENT], Succeeds, |_| read("/proc/cmdline");
    "kernel-settings", &[libc::EROFS, libc::EACCES, libc::ENOENT], SucceedsForRoot,
        |_| io(File::options().write(true).open("/proc/sys/kernel/core_pattern"));
    "interrupts", &[libc::EACCES, libc::ENOENT], Succeeds, |_| read_some("/proc/interrupts");
    // Resources without end.
    "fork-bomb", &[libc::EAGAIN], Succeeds, |_| fork_bomb();
    "disk-filler", FULL, Succeeds, |t| fill(&t.scratch, t.fill_bytes);
    "memory-disk-filler", FULL, Succeeds, |t| fill("/dev/shm", t.fill_bytes);
    "file-filler", FULL, Succeeds, |t| many_files(&t.scratch);
}

/// Runs a rank. The first argument is its mode.
pub(crate) fn run(arguments: &[String]) -> stdio::Result<()> {
    let argument = |at: usize| arguments.get(at).map(String::as_str).unwrap_or_default();
    match argument(0) {
        "attempts" => attempts(argument(1)),
        "list" => list_attempts(),
        "needs" => needs::run(),
        "euid" => {
            // SAFETY: takes no argument and always succeeds.
            let is_root = unsafe { libc::geteuid() } == 0;
            std::process::exit(if is_root { 0 } else { libc::EPERM });
        }
        "exit" => std::process::exit(argument(1).parse::<i32>().map_err(stdio::Error::other)?),
        "kill" => {
            let signal: usize = argument(1).parse().map_err(stdio::Error::other)?;
            call(libc::SYS_kill, &[std::process::id() as usize, signal]).map_err(from_errno)?;
            park()
        }
        "print" => {
            println!("{}", argument(1));
            Ok(())
        }
        "say" => {
            println!("{}", argument(1));
            eprintln!("error: {}", argument(1));
            park()
        }
        "flood" => loop {
            stdio::stdout().write_all(&[b'x'; 4096])?;
        },
        "hog" => loop {
            std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 20]));
        },
        "bomb" => bomb(),
        "checkpoint" => needs::checkpoint_at_the_end(),
        "listen" => listen(),
        "connect" => connect(argument(1)),
        "reach" => {
            let to: SocketAddr = argument(1).parse().map_err(stdio::Error::other)?;
            let tried = TcpStream::connect_timeout(&to, Duration::from_secs(3600));
            println!("reached: {}", tried.is_ok());
            Ok(())
        }
        other => Err(stdio::Error::other(format!("no mode {other}"))),
    }
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn from_errno(errno: i32) -> stdio::Error {
    stdio::Error::from_raw_os_error(errno)
}

/// Makes every attempt and prints its name and its result: 0, or the number of the error.
fn attempts(targets: &str) -> stdio::Result<()> {
    let targets: RankTargets = serde_json::from_str(targets)?;
    for name in SHARED {
        let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == *name);
        let attempt = attempt.ok_or_else(|| stdio::Error::other(format!("no attempt {name}")))?;
        let result = in_a_child(|| (attempt.run)(&targets.worker, -1));
        println!("{name} {}", result.err().unwrap_or(0));
    }
    for attempt in RANK_ATTEMPTS {
        let result = in_a_child(|| (attempt.run)(&targets));
        println!("{} {}", attempt.name, result.err().unwrap_or(0));
    }
    Ok(())
}

/// Prints the attempts with their expected results, for the test to compare.
fn list_attempts() -> stdio::Result<()> {
    let shared = SHARED.iter().filter_map(|name| ATTEMPTS.iter().find(|attempt| attempt.name == *name));
    let shared = shared.map(|attempt| serde_json::json!([attempt.name, attempt.inside, attempt.outside]));
    let own = RANK_ATTEMPTS
        .iter()
        .map(|attempt| serde_json::json!([attempt.name, attempt.inside, attempt.outside]));
    serde_json::to_writer(stdio::stdout(), &shared.chain(own).collect::<Vec<_>>())
        .map_err(stdio::Error::other)
}

/// Connects to the metadata service of clouds without waiting for an answer, which most hosts do not give.
fn metadata() -> SystemCallResult {
    let kind = (libc::SOCK_STREAM | libc::SOCK_NONBLOCK) as usize;
    let fd = call(libc::SYS_socket, &[libc::AF_INET as usize, kind, 0])?;
    let mut raw = [0_u8; 16];
    raw[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    raw[2..8].copy_from_slice(&[0, 80, 169, 254, 169, 254]);
    done(call(libc::SYS_connect, &[fd, address(&raw), 16]))
}

fn with_udp(attempt: impl FnOnce(RawFd) -> SystemCallResult) -> SystemCallResult {
    let fd = call(libc::SYS_socket, &[libc::AF_INET as usize, libc::SOCK_DGRAM as usize, 0])?;
    attempt(RawFd::try_from(fd).map_err(|_| -1)?)
}

fn out_of_band() -> SystemCallResult {
    let mut pair = [0_i32; 2];
    let (family, kind) = (libc::AF_UNIX as usize, libc::SOCK_STREAM as usize);
    call(libc::SYS_socketpair, &[family, kind, 0, address_mut(&mut pair)])?;
    on(libc::SYS_sendto, pair[0], &[address(b"x"), 1, libc::MSG_OOB as usize, 0, 0])
}

/// Sets the address of an interface that is not there.
fn set_interface(fd: RawFd) -> SystemCallResult {
    const SIOCSIFADDR: usize = 0x8916;
    let mut request = [0_u8; 40];
    request[..8].copy_from_slice(b"nonesuch");
    request[16] = libc::AF_INET as u8;
    on(libc::SYS_ioctl, fd, &[SIOCSIFADDR, address_mut(&mut request)])
}

/// Executes a set-id copy of this program, as a user that is not root. It reports whether it became root.
fn set_id(target: &RankTargets) -> SystemCallResult {
    let path = std::ffi::CString::new(format!("{}/opt/set-id", target.tree)).map_err(|_| -1)?;
    // Outside, root steps down first; inside, these calls fail and do not matter.
    let _ = call(libc::SYS_setresgid, &[65_534, 65_534, 65_534]);
    let _ = call(libc::SYS_setresuid, &[65_534, 65_534, 65_534]);
    let words = [path.as_ptr(), c"rank".as_ptr(), c"euid".as_ptr(), std::ptr::null()];
    let none: [*const libc::c_char; 1] = [std::ptr::null()];
    done(call(libc::SYS_execve, &[path.as_ptr() as usize, address(&words), address(&none)]))
}

fn read_some(path: &str) -> SystemCallResult {
    let mut file = File::open(path).map_err(|error| errno(&error))?;
    match file.read(&mut [0; 16]) {
        Ok(0) => Err(libc::ENODATA),
        result => io(result),
    }
}

/// Starts more processes than a sandbox of these tests may have, and fewer than a host allows.
fn fork_bomb() -> SystemCallResult {
    let mut children = Vec::new();
    let mut result = Ok(());
    for _ in 0..100 {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => park(),
            -1 => {
                result = Err(last_error());
                break;
            }
            child => children.push(child),
        }
    }
    for child in children {
        // SAFETY: each is a child that has not been reaped, so its id is its own; no pointer is passed.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
    result
}

/// Starts processes that start processes, without end.
fn bomb() -> ! {
    loop {
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } == -1 {
            println!("no more processes");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn fill(directory: &str, bytes: usize) -> SystemCallResult {
    let path = format!("{directory}/probe-fill-{}", std::process::id());
    let result = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![1; bytes])?;
        file.sync_all()
    });
    let _ = fs::remove_file(&path);
    io(result)
}

fn many_files(directory: &str) -> SystemCallResult {
    let directory = format!("{directory}/probe-files-{}", std::process::id());
    let result = fs::create_dir(&directory).and_then(|()| {
        (0..MANY_FILES).try_for_each(|number| File::create(format!("{directory}/{number}")).map(drop))
    });
    let _ = fs::remove_dir_all(&directory);
    io(result)
}

/// Answers every connection on port 7007 of both IP versions with what it sends.
fn listen() -> stdio::Result<()> {
    let listener = TcpListener::bind("[::]:7007")?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        println!("accepted {}", stream.peer_addr()?.ip());
        let mut answer = stream.try_clone()?;
        stdio::copy(&mut stream, &mut answer)?;
    }
    Ok(())
}

/// Sends a megabyte to a listening rank and compares what comes back.
fn connect(to: &str) -> stdio::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let mut writer = stream.try_clone()?;
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    writing.join().map_err(|_| stdio::Error::other("the writer panicked"))??;
    println!("echoed {}", received == sent);
    Ok(())
}

/// Takes ownership of a descriptor that a call has just returned.
pub(crate) fn owned(fd: usize) -> OwnedFd {
    let fd = RawFd::try_from(fd).expect("descriptors are 32 bits");
    // SAFETY: the kernel has just returned this number to this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
