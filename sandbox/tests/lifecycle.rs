//! Tests of the life of sandboxes: leases, kills, limits, and restarted agents.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bench, LEASE_MS, LIMITS, PATIENCE, SHORT_LEASE_MS, TARGETS, children, insist, lives, until};
use host::boot_time;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Pid, Uid};
use protocol::BootTime;
use protocol::canonical;
use protocol::sandbox::{SandboxExit, SandboxLimits};
use sandbox::{Ended, Running as _, Sandbox, SandboxError, SandboxLauncher};
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time before the end of its lease at which a sandbox may end, in milliseconds.
const END_BEFORE_MS: u64 = 250;

fn wait_ended(running: &Sandbox) -> Ended {
    until("the sandbox has ended", || running.ended().is_some());
    running.ended().unwrap()
}

/// Requests a stop repeatedly until the sandbox has ended.
fn stop(running: &Sandbox) -> Ended {
    until("the sandbox has stopped", || running.stop(LEASE_MS).is_err() && running.ended().is_some());
    running.ended().unwrap()
}

fn exit_of(ended: Ended) -> Option<SandboxExit> {
    ended.exit
}

#[test]
fn a_lease_that_nobody_renews_ends_the_sandbox() {
    let bench = Bench::new("lapse");
    let lease = boot_time().plus(SHORT_LEASE_MS);
    let running = bench.try_start("lapses", "serve", TARGETS, LIMITS, lease).unwrap();
    let init = running.pid();
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::LeaseLapsed));
    assert!(boot_time().plus(END_BEFORE_MS) >= lease, "not before its time");
    assert!(!lives(init));
}

#[test]
fn renewals_keep_it_alive_beyond_its_first_lease() {
    let bench = Bench::new("renew");
    // A lease that expired before this test could renew it proves nothing: retry with a longer one.
    let mut first_ms = SHORT_LEASE_MS;
    let (running, first) = loop {
        let first = boot_time().plus(first_ms);
        let running = bench.try_start("renewed", "serve", TARGETS, LIMITS, first).unwrap();
        if running.renew(boot_time().plus(LEASE_MS)).is_ok() {
            break (running, first);
        }
        running.remove().unwrap();
        first_ms *= 2;
    };
    until("its first lease is over", || boot_time() > first);
    assert!(running.ended().is_none());
    let before = insist("its status", || running.status()).lease_until_boottime_ms;
    let reply = insist("a renewal", || running.renew(BootTime(u64::MAX)));
    assert!(reply.running && reply.lease_until_boottime_ms >= before);
    assert!(reply.lease_until_boottime_ms <= boot_time().plus(LEASE_MS), "no lease for ever");
}

/// A sandbox of an agent in another process: its init, its worker, and its directory.
type Orphan = (u32, u32, PathBuf);

/// An agent in a separate process, since this one cannot be killed or stopped and continue. It holds a
/// sandbox for each of these modes until a signal ends it.
struct Agent {
    _directory: tempfile::TempDir,
    process: std::process::Child,
    orphans: Vec<Orphan>,
}

impl Agent {
    fn new(modes: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent_of_another_process", "--nocapture"])
            .env("QUORATE_TEST_AGENT", directory.path())
            .env("QUORATE_TEST_MODES", modes.join(" "))
            .env("TMPDIR", directory.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let said = directory.path().join("orphans");
        until("the agent holds its sandboxes", || said.exists());
        let orphans: Vec<Orphan> = serde_json::from_slice(&fs::read(&said).unwrap()).unwrap();
        assert_eq!(orphans.len(), modes.len());
        Self { _directory: directory, process, orphans }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Waits until all processes of its sandboxes have ended, and returns the end of each.
    fn ends(&self) -> Vec<Option<SandboxExit>> {
        until("everything has ended", || {
            self.orphans.iter().all(|(init, worker, _)| !lives(*init) && !lives(*worker))
        });
        let exit = |(_, _, directory): &Orphan| {
            let bytes = fs::read(directory.join("exit")).unwrap();
            canonical::from_bytes(&bytes, 64).ok()
        };
        self.orphans.iter().map(exit).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The dead agent's successor holds no sandbox and removes the leftovers.
        let parent = format!("quorate-test/another-{}-0", self.process.id());
        sandbox::Cgroups::detect(&parent).unwrap().remove_stale();
    }
}

/// Not a test on its own: the agent of the tests below.
#[test]
fn agent_of_another_process() {
    let Some(directory) = std::env::var_os("QUORATE_TEST_AGENT") else { return };
    let modes = std::env::var("QUORATE_TEST_MODES").unwrap();
    let directory = Path::new(&directory);
    let bench = Bench::new("another");
    let lease = || boot_time().plus(SHORT_LEASE_MS);
    let limits = SandboxLimits { cpu_millicores: 50, ..LIMITS };
    let start = |(number, mode): (usize, &str)| {
        let name = format!("orphan-{number}");
        bench.try_start(&name, mode, TARGETS, limits, lease()).unwrap()
    };
    let mut held: Vec<Sandbox> = modes.split(' ').enumerate().map(start).collect();
    let mut said = false;
    loop {
        for (number, mode) in modes.split(' ').enumerate() {
            // On a busy machine its lease may expire before it is renewed. That proves nothing: start
            // another.
            if !said && held[number].renew(lease()).is_err() {
                held[number].remove().unwrap();
                held[number] = start((number, mode));
            } else if said {
                let _ = held[number].renew(lease());
            }
        }
        let begun = |running: &Sandbox| {
            let log = running.output_tail(1 << 20);
            let log = String::from_utf8_lossy(&log).into_owned();
            log.contains("exhausted") || log.contains("mode \"serve\"") || log.len() > 1 << 19
        };
        if !said && held.iter().all(begun) {
            let orphans: Vec<Orphan> = held
                .iter()
                .map(|running| (running.pid(), children(running.pid())[0], bench.state(running.name())))
                .collect();
            fs::write(directory.join("new"), serde_json::to_vec(&orphans).unwrap()).unwrap();
            fs::rename(directory.join("new"), directory.join("orphans")).unwrap();
            said = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_agent_takes_its_sandboxes_with_it_within_the_lease() {
    let agent = Agent::new(&["serve"]);
    agent.signal(Signal::SIGKILL);
    assert_eq!(agent.ends(), [Some(SandboxExit::LeaseLapsed)]);
}

/// An init has its own reserve of every resource that its worker exhausts, and a stopped agent cannot help.
#[test]
fn a_worker_that_uses_everything_up_ends_with_its_lease_though_its_agent_be_stopped() {
    let modes = [
        "exhaust=processes,cpu",
        "exhaust=memory",
        "exhaust=descriptors",
        "exhaust=metrics",
        "exhaust=logs",
        "exhaust=memory,metrics,processes,cpu,descriptors,logs",
    ];
    let agent = Agent::new(&modes);
    agent.signal(Signal::SIGSTOP);
    assert_eq!(agent.ends(), [Some(SandboxExit::LeaseLapsed); 6]);
}

/// Returns the group of a process for a controller, and the content of one of its files.
fn group_file(pid: u32, controller: &str, file: &str) -> Option<(PathBuf, String)> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.trim_start_matches('/').to_string())
    })?;
    let path = Path::new("/sys/fs/cgroup").join(controller).join(group).join(file);
    let text = fs::read_to_string(&path).ok()?;
    Some((path, text.trim().to_string()))
}

/// Checked in the kernel's files: the worker's limits do not apply to its init, and a worker that must end is
/// released from them first.
#[test]
fn an_init_has_its_own_share_and_the_quota_of_its_worker_is_lifted_before_the_end() {
    let bench = Bench::new("groups");
    let limits = SandboxLimits { cpu_millicores: 50, ..LIMITS };
    let start = |name: &str, lease_ms: u64| {
        let lease = boot_time().plus(lease_ms);
        bench.try_start(name, "exhaust=processes,cpu", TARGETS, limits, lease).unwrap()
    };
    let lapses = start("lapses", SHORT_LEASE_MS);
    let quota = |pid| group_file(pid, "cpu", "cpu.cfs_quota_us");
    let lapsing = children(lapses.pid()).first().and_then(|worker| quota(*worker));
    let killed = start("killed", LEASE_MS);
    let (init, worker) = (killed.pid(), children(killed.pid())[0]);
    if killed.not_enforced().iter().any(|label| label.starts_with("cpu:")) {
        let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
        let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap();
        assert_eq!(nice, "5", "without a quota it yields");
        return;
    }
    // For other setups than version 1, the layout's own tests must suffice.
    let Some((path, limit)) = quota(worker) else { return };
    assert!(path.ends_with("killed/worker/cpu.cfs_quota_us"), "{}", path.display());
    assert_eq!(limit, "1000");
    let (path, limit) = quota(init).unwrap();
    assert!(path.ends_with("killed/init/cpu.cfs_quota_us") && limit == "-1", "{}: {limit}", path.display());
    for (pid, part) in [(init, "init"), (worker, "worker")] {
        for (controller, file) in [("memory", "memory.limit_in_bytes"), ("pids", "pids.max")] {
            let Some((path, limit)) = group_file(pid, controller, file) else { continue };
            assert!(path.parent().unwrap().ends_with(part), "{}", path.display());
            let bounded =
                limit == LIMITS.memory_bytes.to_string() || limit == LIMITS.processes_max.to_string();
            assert_eq!(bounded, part == "worker", "{}: {limit}", path.display());
        }
    }
    let (path, _) = quota(worker).unwrap();
    killed.kill().unwrap();
    wait_ended(&killed);
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), "-1", "lifted by the agent");
    killed.remove().unwrap();
    assert!(!path.parent().unwrap().parent().unwrap().exists());
    wait_ended(&lapses);
    if let Some((path, _)) = lapsing {
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), "-1", "lifted by the init");
    }
}

/// The prompts of a worker that crashes stay inside: 1 also forbids the dump to a program of the host that 0
/// permits. A worker also cannot take back metrics that it has written.
#[test]
fn a_worker_leaves_no_core_dump_and_reads_no_metrics() {
    let bench = Bench::new("quiet");
    let quiet = bench.start("quiet", "metrics-read", TARGETS);
    let limits = fs::read_to_string(format!("/proc/{}/limits", children(quiet.pid())[0])).unwrap();
    let core: Vec<&str> = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(core[4..6], ["1", "1"]);
    until("it has tried", || {
        String::from_utf8_lossy(&quiet.output_tail(4096)).contains("its own numbers: Some(9)")
    });
}

#[test]
fn how_a_worker_ended_is_written_down() {
    let bench = Bench::new("ends");
    let running = bench.start("exits", "exit-7", TARGETS);
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::Exited { status: 7 }));
    let log = String::from_utf8(running.output_tail(1000)).unwrap();
    assert!(log.contains("the probe runs as a worker"), "{log:?}");

    let running = bench.start("killed", "serve", TARGETS);
    let worker = children(running.pid())[0];
    kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::Signaled { signal: 9 }));

    let running = bench.start("init-killed", "serve", TARGETS);
    let worker = children(running.pid())[0];
    running.kill().unwrap();
    assert_eq!(exit_of(wait_ended(&running)), None);
    until("the worker is gone", || !lives(worker));
}

#[test]
fn a_stop_is_a_signal_and_then_an_end() {
    let bench = Bench::new("stop");
    // The probe does not handle SIGTERM, so it ends immediately: the grace period is longer than this test's
    // patience.
    let running = bench.start("stops", "serve", TARGETS);
    assert_eq!(exit_of(stop(&running)), Some(SandboxExit::Stopped));
}

/// A minimal form of the real worker's needs: a runtime, signals, a passed connection.
#[test]
fn what_a_worker_needs_works_under_its_filter() {
    let bench = Bench::new("runtime");
    let running = bench.start("runs", "runtime", TARGETS);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut gateway, _) = listener.accept().unwrap();
    gateway.set_read_timeout(Some(PATIENCE)).unwrap();
    let worker = running.connect_worker().unwrap();
    let numbers = [passed.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let bytes = [IoSlice::new(b"connection\n")];
    sendmsg::<()>(worker.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
    drop(passed);
    gateway.write_all(b"a question").unwrap();
    let mut answer = [0; 10];
    let read = gateway.read_exact(&mut answer);
    let log = String::from_utf8_lossy(&running.output_tail(4096)).into_owned();
    read.unwrap_or_else(|error| panic!("{error}: {log}"));
    assert_eq!(&answer, b"a question");
    assert_eq!(exit_of(stop(&running)), Some(SandboxExit::Stopped));
}

#[test]
fn an_agent_that_comes_back_finds_and_holds_what_runs() {
    let bench = Bench::new("back");
    let pid = bench.start("survivor", "serve", TARGETS).pid();
    let dead = bench.start("dead", "exit-7", TARGETS);
    wait_ended(&dead);
    drop(dead);
    // A second launcher on the same state simulates a restarted agent.
    let successor = SandboxLauncher::new(bench.config.clone()).unwrap();
    let found = successor.list_running().unwrap();
    let names: Vec<_> = found.iter().map(|running| (running.name(), running.pid())).collect();
    assert_eq!(names, [("survivor", pid)]);
    let before = insist("a renewal", || found[0].renew(BootTime(0))).lease_until_boottime_ms;
    let after = insist("a renewal", || found[0].renew(boot_time().plus(LEASE_MS))).lease_until_boottime_ms;
    assert!(after > before, "it is held");
    found[0].connect_worker().unwrap();
    assert_eq!(successor.remove_stale().unwrap(), 1, "the dead one's directory");
    assert!(!bench.state("dead").exists() && bench.state("survivor").exists());
    let lease = boot_time().plus(LEASE_MS);
    let error = match bench.try_start("survivor", "serve", TARGETS, LIMITS, lease) {
        Ok(_) => panic!("two of one name"),
        Err(error) => error,
    };
    assert!(matches!(error, SandboxError::Exists { .. }), "{error}");
    found.into_iter().next().unwrap().remove().unwrap();
    assert!(!lives(pid) && !bench.state("survivor").exists());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let bench = Bench::new("fails");
    let script = bench.directory.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    for (binary, expected) in [("/does/not/exist", "find the worker"), (script.to_str().unwrap(), "ELF")] {
        let mut failing = Bench::new("failing");
        failing.probe = binary.into();
        let error = failing.try_start("x", "serve", TARGETS, LIMITS, boot_time().plus(LEASE_MS));
        let error = match error {
            Ok(_) => panic!("{binary} ran"),
            Err(error) => format!("{error} {:?}", std::error::Error::source(&error)),
        };
        assert!(error.contains(expected), "{error}");
        assert!(!failing.state("x").exists());
    }
    let closed = bench.directory.path().join("closed");
    common::program::copy_program(&bench.probe, &closed);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o400)).unwrap();
    let mut failing = Bench::new("closed");
    failing.probe = closed;
    let error = match failing.try_start("x", "serve", TARGETS, LIMITS, boot_time().plus(LEASE_MS)) {
        Ok(_) => panic!("a file that may not be executed ran"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("execute the worker"), "{error}");
    assert!(!failing.state("x").exists());
    for name in ["", "A", "../x", "a/b"] {
        let error = failing.try_start(name, "serve", TARGETS, LIMITS, boot_time().plus(LEASE_MS));
        assert!(matches!(error, Err(SandboxError::Name { .. })), "{name}");
    }
}

#[test]
fn limits_hold_or_are_labelled() {
    let bench = Bench::new("limits");
    let limits = SandboxLimits { memory_bytes: 48 << 20, cpu_millicores: 100, ..LIMITS };
    let lease = boot_time().plus(LEASE_MS);
    let running = bench.try_start("hungry", "eat-memory", TARGETS, limits, lease).unwrap();
    let ended = wait_ended(&running);
    let labels: Vec<&str> =
        running.not_enforced().iter().filter_map(|label| label.split(':').next()).collect();
    if labels.contains(&"memory") {
        assert!(matches!(ended.exit, Some(SandboxExit::Signaled { .. })), "by RLIMIT_DATA: {ended}");
    } else {
        assert!(ended.out_of_memory, "{ended}");
    }
    if !labels.contains(&"cpu") {
        assert!(running.usage().cpu_us.is_some());
    }
    if Uid::effective().is_root() {
        assert!(!labels.contains(&"user-ids"));
    } else {
        assert!(labels.contains(&"user-ids"));
    }
}

#[tokio::test]
async fn metrics_come_out_and_garbage_is_counted() {
    let bench = Bench::new("metrics");
    let running = bench.start("talks", "metrics", TARGETS);
    let mut metrics = running.metrics().unwrap();
    let found = metrics.next().await.unwrap().expect("the worker lives");
    assert_eq!((found.requests_running, found.requests_total), (2, 9));
    assert!(metrics.refused() >= 1);
    running.kill().unwrap();
    let ended = tokio::time::timeout(PATIENCE, running.wait()).await.unwrap().unwrap();
    assert_eq!(ended.exit, None);
}

/// All of the above as an ordinary user, in user namespaces.
#[test]
fn an_unprivileged_agent_can_do_all_of_this_too() {
    common::rerun_unprivileged(&["--test-threads=2"]);
}
