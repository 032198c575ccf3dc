//! How sandboxes begin, live and end: leases, kills, limits, and agents that come back.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bench, LEASE_MS, LIMITS, PATIENCE, SHORT_LEASE_MS, children, lives, until};
use gpu_agent::sandbox::{Ended, Sandbox, SandboxError, SandboxLauncher, boottime_ms};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Pid, Uid};
use protocol::sandbox::{SandboxExit, SandboxLimits};
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const TARGETS: &[u8] = br#"{"control":"127.0.0.1:1","store":"127.0.0.1:1","unix_path":"",
    "abstract_name":"","victim":1,"secret":"","shared":""}"#;

fn wait_ended(running: &Sandbox) -> Ended {
    until("the sandbox has ended", || running.ended().is_some());
    running.ended().unwrap()
}

fn exit_of(ended: Ended) -> Option<SandboxExit> {
    ended.exit
}

#[test]
fn a_lease_that_nobody_renews_ends_the_sandbox() {
    let bench = Bench::new("lapse");
    let lease = boottime_ms() + SHORT_LEASE_MS;
    let running = bench.try_start("lapses", "serve", TARGETS, LIMITS, lease).unwrap();
    let worker = children(running.pid());
    assert_eq!(worker.len(), 1);
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::LeaseLapsed));
    assert!(boottime_ms() >= lease, "not before its time");
    assert!(!lives(worker[0]), "the worker ends with its init");
}

#[test]
fn renewals_keep_it_alive_beyond_its_first_lease() {
    let bench = Bench::new("renew");
    let first = boottime_ms() + SHORT_LEASE_MS;
    let running = bench.try_start("renewed", "serve", TARGETS, LIMITS, first).unwrap();
    until("its first lease is over", || {
        let wanted = boottime_ms() + SHORT_LEASE_MS;
        let reply = running.renew(wanted).unwrap();
        assert!(reply.running && reply.lease_until_boottime_ms >= wanted.max(first));
        boottime_ms() > first
    });
    assert!(running.ended().is_none());
    let reply = running.renew(u64::MAX).unwrap();
    assert!(reply.lease_until_boottime_ms <= boottime_ms() + LEASE_MS, "no lease for ever");
}

#[test]
fn a_killed_agent_takes_its_sandboxes_with_it_within_the_lease() {
    // The agent of this test is this test's own process, which cannot kill itself and go on: a child is
    // the agent. It starts a sandbox, says where, and is killed.
    let directory = tempfile::tempdir().unwrap();
    let agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_to_be_killed", "--nocapture"])
        .env("QUORATE_TEST_AGENT", directory.path())
        .env("TMPDIR", directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let said = directory.path().join("pids");
    until("the agent has started a sandbox", || said.exists());
    let pids: Vec<u32> = serde_json::from_slice(&fs::read(&said).unwrap()).unwrap();
    assert!(pids.len() == 2 && pids.iter().all(|pid| lives(*pid)), "{pids:?}");
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    let mut agent = agent;
    agent.wait().unwrap();
    until("everything has ended", || pids.iter().all(|pid| !lives(*pid)));
    let took = killed.elapsed();
    eprintln!("everything ended {took:?} after the agent was killed");
    // The lease is three seconds; the rest is what a busy machine may take to end processes and to look.
    assert!(took < Duration::from_millis(SHORT_LEASE_MS) + Duration::from_secs(10), "{took:?}");
    // The dead agent's successor has nothing to hold and sweeps what is left.
    let parent = format!("quorate-test/killed-{}-0", agent.id());
    gpu_agent::sandbox::Cgroups::detect(&parent).unwrap().sweep_stale();
}

/// Not a test by itself: the agent of the test above.
#[test]
fn agent_to_be_killed() {
    let Some(directory) = std::env::var_os("QUORATE_TEST_AGENT") else { return };
    let directory = Path::new(&directory);
    let bench = Bench::new("killed");
    let lease = || boottime_ms() + SHORT_LEASE_MS;
    let running = bench.try_start("orphan", "serve", TARGETS, LIMITS, lease()).unwrap();
    let pids = [vec![running.pid()], children(running.pid())].concat();
    fs::write(directory.join("new"), serde_json::to_vec(&pids).unwrap()).unwrap();
    fs::rename(directory.join("new"), directory.join("pids")).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let _ = running.renew(lease());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn how_a_worker_ended_is_written_down() {
    let bench = Bench::new("ends");
    let running = bench.start("exits", "exit-7", TARGETS);
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::Exited { status: 7 }));
    let log = String::from_utf8(running.log_tail(1000).unwrap()).unwrap();
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
    // The probe does not handle SIGTERM, so it ends at once: the grace is longer than this test's patience.
    let running = bench.start("stops", "serve", TARGETS);
    running.stop(LEASE_MS).unwrap();
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::Stopped));
}

/// The real worker's needs in small: a runtime, signals, a passed connection.
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
    let log = String::from_utf8_lossy(&running.log_tail(4096).unwrap()).into_owned();
    read.unwrap_or_else(|error| panic!("{error}: {log}"));
    assert_eq!(&answer, b"a question");
    running.stop(LEASE_MS).unwrap();
    assert_eq!(exit_of(wait_ended(&running)), Some(SandboxExit::Stopped));
}

#[test]
fn an_agent_that_comes_back_finds_and_holds_what_runs() {
    let bench = Bench::new("back");
    let pid = bench.start("survivor", "serve", TARGETS).pid();
    let dead = bench.start("dead", "exit-7", TARGETS);
    wait_ended(&dead);
    drop(dead);
    // A second launcher on the same state is what a restarted agent has.
    let successor = SandboxLauncher::new(bench.config.clone()).unwrap();
    let found = successor.list_running().unwrap();
    let names: Vec<_> = found.iter().map(|running| (running.name(), running.pid())).collect();
    assert_eq!(names, [("survivor", pid)]);
    let before = found[0].renew(0).unwrap().lease_until_boottime_ms;
    let after = found[0].renew(boottime_ms() + LEASE_MS).unwrap().lease_until_boottime_ms;
    assert!(after > before, "it is held");
    found[0].connect_worker().unwrap();
    assert_eq!(successor.sweep_stale().unwrap(), 1, "the dead one's directory");
    assert!(!bench.state("dead").exists() && bench.state("survivor").exists());
    let lease = boottime_ms() + LEASE_MS;
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
        let error = failing.try_start("x", "serve", TARGETS, LIMITS, boottime_ms() + LEASE_MS);
        let error = match error {
            Ok(_) => panic!("{binary} ran"),
            Err(error) => format!("{error} {:?}", std::error::Error::source(&error)),
        };
        assert!(error.contains(expected), "{error}");
        assert!(!failing.state("x").exists());
    }
    let closed = bench.directory.path().join("closed");
    fs::copy(&bench.probe, &closed).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let mut failing = Bench::new("closed");
    failing.probe = closed;
    let error = match failing.try_start("x", "serve", TARGETS, LIMITS, boottime_ms() + LEASE_MS) {
        Ok(_) => panic!("a file that may not be executed ran"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("execute the worker"), "{error}");
    assert!(!failing.state("x").exists());
    for name in ["", "A", "../x", "a/b"] {
        let error = failing.try_start(name, "serve", TARGETS, LIMITS, boottime_ms() + LEASE_MS);
        assert!(matches!(error, Err(SandboxError::Name { .. })), "{name}");
    }
}

#[test]
fn limits_hold_or_are_labelled() {
    let bench = Bench::new("limits");
    let limits = SandboxLimits { memory_bytes: 48 << 20, cpu_millicores: 100, ..LIMITS };
    let lease = boottime_ms() + LEASE_MS;
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
