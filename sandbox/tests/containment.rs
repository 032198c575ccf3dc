//! Containment tests: a hostile worker makes all known escape attempts. Each must fail inside by an expected
//! error. Outside it must succeed, or reach the kernel's check of its arguments: the positive control.
#![allow(clippy::unwrap_used)]

mod common;

use common::attempts::{HostTargets, Outside};
use common::{Bench, PATIENCE, until};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Uid;
use protocol::manifest::Isolation;
use sandbox::Running as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

/// Names of the attempts, so that a missing one is noticed.
#[rustfmt::skip]
const ATTEMPTS: &[&str] = &[
    "tcp-to-control", "tcp-to-store", "udp", "raw-socket", "packet-socket", "netlink-socket", "vsock",
    "unix-socket-of-another-worker", "abstract-socket", "connected-to-elsewhere", "connected-listen",
    "fresh-connect", "fresh-bind", "fresh-fast-open", "udp-send-to", "connected-setsockopt",
    "connected-sendmsg", "connected-sendmmsg", "connected-interfaces", "ptrace", "ptrace-init",
    "process-memory", "pidfd", "pidfd-getfd", "signal", "proc-of-another", "proc-of-init", "root-of-init",
    "processes-in-sight", "mount", "umount", "pivot-root", "chroot", "open-tree", "fsopen", "mount-setattr",
    "unshare-user", "unshare-network", "setns", "clone-namespace", "clone3", "fork", "become-root",
    "gain-capabilities", "limits-of-another", "keyring", "io-uring", "bpf", "perf", "userfaultfd",
    "load-module", "load-kernel", "reboot", "set-clock", "make-device", "shared-memory", "message-queue",
    "memory-file", "pin-to-cpu", "32-bit-numbers", "threads-without-end", "host-file", "users-of-the-host",
    "kernel-settings", "cgroup-files", "block-devices", "shell", "write-root", "write-scratch",
    "write-shared-file", "weights-write", "weights-map", "weights-remap", "weights-reopen",
    "weights-truncate", "weights-punch",
];

#[derive(Deserialize)]
struct ListedAttempt {
    name: String,
    needs: String,
    inside: Vec<i32>,
    outside: Outside,
}

/// Targets of a hostile worker, and a probe outside that makes the same attempts.
struct WorkerTargets {
    host: HostTargets,
    gateway: TcpListener,
    outside: Child,
    targets: String,
    socket: std::path::PathBuf,
}

impl WorkerTargets {
    fn new(bench: &Bench) -> Self {
        let path = |name: &str| bench.directory.path().join(name);
        let host = HostTargets::new(bench);
        let targets = host.values.to_string();
        let socket = path("outside");
        fs::write(path("outside.targets"), &targets).unwrap();
        let outside = Command::new(&bench.probe).arg("outside").arg(&socket).spawn().unwrap();
        // The socket's file exists before the probe listens.
        until("the probe outside listens", || UnixStream::connect(&socket).is_ok());
        let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { host, gateway, outside, targets, socket }
    }

    /// Returns the descriptor that the test passes along with an attempt.
    fn passed(&self, needs: &str, inside: bool) -> Option<OwnedFd> {
        let fresh = |kind| {
            use nix::sys::socket::{AddressFamily, SockFlag, socket};
            socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
        };
        match needs {
            "Connected" => Some(TcpStream::connect(self.gateway.local_addr().unwrap()).unwrap().into()),
            "FreshTcp" => Some(fresh(nix::sys::socket::SockType::Stream)),
            "Udp" => Some(UdpSocket::bind("127.0.0.1:0").unwrap().into()),
            "Weights" if inside => None, // The worker has its own.
            "Weights" => {
                let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
                let file = File::from(nix::sys::memfd::memfd_create("control", flags).unwrap());
                file.set_len(1 << 16).unwrap();
                Some(file.into())
            }
            _ => None,
        }
    }
}

impl Drop for WorkerTargets {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

/// Asks a probe to make an attempt. Returns 0, or the number of the error.
fn ask(probe: &mut BufReader<UnixStream>, name: &str, passed: Option<OwnedFd>) -> i32 {
    let line = format!("{name}\n");
    let numbers: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = [IoSlice::new(line.as_bytes())];
    let socket = probe.get_ref().as_raw_fd();
    sendmsg::<()>(socket, &bytes, control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    let mut answer = String::new();
    probe.read_line(&mut answer).unwrap_or_else(|error| panic!("{name}: {error}"));
    match answer.trim() {
        "ok" => 0,
        number => number.parse().unwrap_or_else(|_| panic!("{name}: the probe died: {number:?}")),
    }
}

fn connect(stream: UnixStream) -> BufReader<UnixStream> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

fn attempts(bench: &Bench) -> Vec<ListedAttempt> {
    let output = Command::new(&bench.probe).arg("list").output().unwrap();
    let attempts: Vec<ListedAttempt> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(attempts.iter().map(|attempt| attempt.name.as_str()).eq(ATTEMPTS.iter().copied()));
    attempts
}

#[test]
fn every_way_out_is_closed_inside_and_open_outside() {
    let bench = Bench::new("containment");
    let expected = if Uid::effective().is_root() { Isolation::Full } else { Isolation::SameUid };
    assert_eq!(bench.launcher.isolation().level, expected);
    let world = WorkerTargets::new(&bench);
    let running = bench.start("probe", "serve", world.targets.as_bytes());
    let mut inside = connect(running.connect_worker().unwrap());
    let mut outside = connect(UnixStream::connect(&world.socket).unwrap());
    let root = Uid::effective().is_root();
    let (mut denied, mut controls, mut wrong) = (0, 0, BTreeMap::new());
    for attempt in attempts(&bench) {
        let name = attempt.name.as_str();
        let found = ask(&mut inside, name, world.passed(&attempt.needs, true));
        denied += 1;
        if !attempt.inside.contains(&found) {
            wrong.insert(format!("{name} inside"), (attempt.inside.clone(), found));
        }
        let Some(wanted) = attempt.outside.expected(root) else { continue };
        let found = ask(&mut outside, name, world.passed(&attempt.needs, false));
        controls += 1;
        if !wanted.contains(&found) {
            wrong.insert(format!("{name} outside"), (wanted, found));
        }
    }
    eprintln!("{denied} attempts inside, {controls} positive controls outside, root {root}");
    eprintln!("not enforced: {:?}", running.not_enforced());
    let log = String::from_utf8_lossy(&running.output_tail(4096)).into_owned();
    assert_eq!(denied, ATTEMPTS.len());
    assert!(!root || controls == denied, "{controls} positive controls of {denied}");
    assert!(wrong.is_empty(), "expected and found error numbers: {wrong:#?}\n{log}");
    world.host.control.set_nonblocking(true).unwrap();
    running.remove().unwrap();
}

/// The same as an ordinary user, in user namespaces.
#[test]
fn every_way_out_is_closed_for_an_unprivileged_agent_too() {
    let test = "every_way_out_is_closed_inside_and_open_outside";
    if let Some(text) = common::rerun_unprivileged(&["--exact", test]) {
        assert!(text.contains("root false"), "{text}");
    }
}
