//! Tests of process sandboxes: hostile ranks make every known escape attempt, ordinary ones find what they
//! need, each end is named, and ranks of a gang reach each other and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use common::attempts::{HostTargets, Outside};
use common::process::{
    AREA_BYTES, Artifact, Printed, area_directory, may_make_gangs, next_packet, process, try_process,
};
use common::{Bench, LEASE_MS, TARGETS, children, insist, lives, until};
use nix::unistd::Uid;
use protocol::error_code;
use protocol::sandbox::{DiskArea, SandboxExit};
use protocol::{Digest, JobId};
use sandbox::{Ended, GangId, PacketDrop, PacketSwitch, PortKind, Sandbox, SandboxLauncher, SwitchPort};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

/// Targets of hostile ranks.
struct Targets {
    values: serde_json::Value,
    _host: HostTargets,
    _control_v6: TcpListener,
}

impl Targets {
    fn new(bench: &Bench) -> Self {
        let host = HostTargets::new(bench);
        // A host without IPv6 has no such way to close.
        let v6 = TcpListener::bind("[::1]:0").unwrap_or_else(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let values = serde_json::json!({
            "worker": host.values,
            "control_v6": v6.local_addr().unwrap(),
            "agent_socket": bench.state("hostile").join("init.sock"),
            "neighbour": area_directory(bench, "neighbour"),
            "fill_bytes": 2 * AREA_BYTES,
        });
        Self { values, _host: host, _control_v6: v6 }
    }

    /// Returns the targets as a rank sees them: the directory of the artifact, and of its writable area.
    fn seen(&self, tree: &str, scratch: &str) -> String {
        let mut values = self.values.clone();
        values["tree"] = tree.into();
        values["scratch"] = scratch.into();
        values.to_string()
    }
}

/// Returns the results of attempts by their names.
fn results(text: &str) -> BTreeMap<String, i32> {
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, result)| (name.to_string(), result.parse().unwrap())).collect()
}

#[test]
fn every_way_out_is_closed_to_ranks_and_open_outside() {
    let bench = Bench::new("ranks");
    let artifact = Artifact::new(&bench);
    let targets = Targets::new(&bench);
    let inside = targets.seen("", "/scratch");
    // The second rank keeps the sandbox alive, whose socket the controls need.
    let (running, mut printed) =
        process(&bench, "hostile", artifact.profile(&[&["attempts", inside.as_str()], &["say", "here"]]));
    let beside = area_directory(&bench, "beside");
    let outside = targets.seen(artifact.tree.to_str().unwrap(), beside.to_str().unwrap());
    let control = Command::new(&bench.probe).args(["rank", "attempts", &outside]).output().unwrap();
    let found = results(&printed[0].rest());
    let controls = results(&String::from_utf8(control.stdout).unwrap());
    let listed = Command::new(&bench.probe).args(["rank", "list"]).output().unwrap();
    let listed: Vec<(String, Vec<i32>, Outside)> = serde_json::from_slice(&listed.stdout).unwrap();
    let root = Uid::effective().is_root();
    let (mut wrong, mut controlled) = (BTreeMap::new(), 0);
    for (name, expected, outside) in &listed {
        if !found.get(name).is_some_and(|result| expected.contains(result)) {
            wrong.insert(format!("{name} inside"), (expected.clone(), found.get(name).copied()));
        }
        let Some(expected) = outside.expected(root) else { continue };
        controlled += 1;
        if !controls.get(name).is_some_and(|result| expected.contains(result)) {
            wrong.insert(format!("{name} outside"), (expected, controls.get(name).copied()));
        }
    }
    eprintln!("{} attempts inside, {controlled} positive controls outside, root {root}", listed.len());
    eprintln!("not enforced: {:?}", running.not_enforced());
    assert!(wrong.is_empty(), "expected and found error numbers: {wrong:#?}\n{}", printed[0].error());
    assert!(listed.len() >= 75 && found.len() == listed.len(), "{} and {}", listed.len(), found.len());
    assert!(!root || controlled == listed.len(), "{controlled} positive controls of {}", listed.len());
}

#[test]
fn ordinary_programs_find_what_they_need() {
    let bench = Bench::new("needs");
    let artifact = Artifact::new(&bench);
    let (running, mut printed) = process(&bench, "needs", artifact.profile(&[&["needs"]]));
    let text = printed[0].rest();
    let hidden = running.not_enforced().iter().any(|label| label.starts_with("proc:"));
    let missed: Vec<&str> = text
        .lines()
        .filter(|line| !line.ends_with(" ok"))
        // A container that hides parts of its own /proc permits none of these; the label says so.
        .filter(|line| !hidden || !["cpuinfo", "meminfo"].iter().any(|name| line.starts_with(name)))
        .collect();
    assert!(missed.is_empty(), "{missed:#?}\n{}", printed[0].error());
    assert!(text.lines().count() >= 30, "{text}");
}

fn wait_ended(running: &Sandbox) -> Ended {
    until("the sandbox has ended", || running.ended().is_some());
    running.ended().unwrap()
}

#[test]
fn the_end_of_a_rank_is_named_with_its_code_or_signal() {
    let bench = Bench::new("ends");
    let artifact = Artifact::new(&bench);
    let exited = |rank, status| Some(SandboxExit::RankExited { rank, status });
    type Case<'a> = (&'a str, &'a [&'a [&'a str]], Option<SandboxExit>);
    let cases: [Case<'_>; 4] = [
        ("fails", &[&["say", "x"], &["exit", "137"]], exited(1, 137)),
        ("killed", &[&["kill", "9"], &["say", "x"]], Some(SandboxExit::RankSignaled { rank: 0, signal: 9 })),
        // A real-time signal has no name.
        ("odd", &[&["kill", "40"]], Some(SandboxExit::RankSignaled { rank: 0, signal: 40 })),
        ("done", &[&["exit", "0"]], exited(0, 0)),
    ];
    for (name, ranks, expected) in cases {
        let running = try_process(&bench, name, artifact.profile(ranks)).unwrap();
        let init = running.pid();
        assert_eq!(wait_ended(&running).exit, expected, "{name}");
        assert!(!lives(init), "every rank ends with the first that fails");
        running.remove().unwrap();
    }
    // The output of ranks that have ended is not lost.
    let both = try_process(&bench, "both", artifact.profile(&[&["print", "last"], &["exit", "0"]])).unwrap();
    assert!(matches!(wait_ended(&both).exit, Some(SandboxExit::RankExited { status: 0, .. })));
    let printed = both.descriptors().unwrap().ranks.into_iter().map(|rank| Printed::new(rank).rest());
    assert_eq!(printed.collect::<Vec<_>>(), ["last\n", ""]);
}

#[test]
fn a_rank_that_takes_all_memory_ends_alone_and_by_name() {
    let bench = Bench::new("hog");
    let artifact = Artifact::new(&bench);
    let (beside, mut printed) = process(&bench, "beside", artifact.profile(&[&["say", "alive"]]));
    let hog = try_process(&bench, "hog", artifact.profile(&[&["hog"]])).unwrap();
    let ended = wait_ended(&hog);
    if hog.not_enforced().iter().any(|label| label.starts_with("memory")) {
        assert!(matches!(ended.exit, Some(SandboxExit::RankSignaled { .. })), "by RLIMIT_DATA: {ended}");
    } else {
        assert!(ended.out_of_memory && ended.to_string().contains("memory limit"), "{ended}");
    }
    printed[0].wait_for("alive");
    assert!(beside.ended().is_none());
}

#[test]
fn a_fork_bomb_and_a_flood_of_output_stall_alone_and_end_with_their_sandbox() {
    let bench = Bench::new("bomb");
    let artifact = Artifact::new(&bench);
    let (beside, mut said) = process(&bench, "beside", artifact.profile(&[&["say", "alive"]]));
    let (bomb, mut printed) = process(&bench, "bomb", artifact.profile(&[&["bomb"]]));
    printed[0].wait_for("no more processes");
    // Nothing reads this one's output: it waits for its reader, and its neighbour in the sandbox does not.
    let (flood, mut two) = process(&bench, "flood", artifact.profile(&[&["flood"], &["say", "beside it"]]));
    two[1].wait_for("beside it");
    until("its standard error", || {
        two[1].read();
        two[1].error() == "error: beside it\n"
    });
    assert!(flood.ended().is_none() && bomb.ended().is_none());
    for running in [bomb, flood] {
        let (init, name) = (running.pid(), running.name().to_string());
        running.remove().unwrap();
        assert!(!lives(init) && !bench.state(&name).exists(), "{name}");
    }
    said[0].wait_for("alive");
    assert!(beside.ended().is_none());
}

#[test]
fn a_stop_lets_a_rank_write_its_checkpoint_and_directories_outlive_the_sandbox() {
    let bench = Bench::new("stop");
    let artifact = Artifact::new(&bench);
    let directory = area_directory(&bench, "checkpoint");
    let mut profile = artifact.profile(&[&["checkpoint"]]);
    let text = directory.display().to_string();
    profile.areas.checkpoint = DiskArea { bytes_max: AREA_BYTES, directory: Some(text) };
    let (running, mut printed) = process(&bench, "stops", profile);
    printed[0].wait_for("waiting");
    until("the sandbox has stopped", || running.stop(LEASE_MS).is_err() && running.ended().is_some());
    assert_eq!(running.ended().unwrap().exit, Some(SandboxExit::Stopped));
    running.remove().unwrap();
    assert_eq!(fs::read_to_string(directory.join("step-7")).unwrap(), "state");
}

#[test]
fn a_directory_without_a_quota_has_a_label() {
    let bench = Bench::new("labels");
    let artifact = Artifact::new(&bench);
    let directory = area_directory(&bench, "outputs");
    let mut profile = artifact.profile(&[&["say", "x"]]);
    let text = directory.display().to_string();
    profile.areas.outputs = DiskArea { bytes_max: AREA_BYTES, directory: Some(text) };
    let running = try_process(&bench, "labelled", profile).unwrap();
    let labels: Vec<_> = running.not_enforced().iter().filter(|l| l.starts_with("storage:")).collect();
    let size = nix::sys::statvfs::statvfs(&directory).unwrap();
    let bounded = size.blocks() * size.fragment_size() <= AREA_BYTES;
    assert_eq!(labels.len(), usize::from(!bounded), "{labels:?}");
    assert!(labels.iter().all(|label| label.contains("/outputs")), "{labels:?}");
    // A single file is bounded in any case.
    let limits = fs::read_to_string(format!("/proc/{}/limits", children(running.pid())[0])).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert!(line.contains(&(AREA_BYTES + 4096).to_string()), "{line}");
}

/// A file system with project quotas, in a file that is mounted for this test alone. Needs root, a loop
/// device and `mkfs.ext4`.
struct QuotaDisk<'a>(&'a Path);

impl<'a> QuotaDisk<'a> {
    fn mount(image: &Path, at: &'a Path) -> Option<Self> {
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        fs::create_dir(at).unwrap();
        fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
        let (image, at_text) = (image.to_str().unwrap(), at.to_str().unwrap());
        let features = ["-q", "-O", "quota,project", "-E", "quotatype=prjquota", image];
        let mounted = Uid::effective().is_root()
            && run("mkfs.ext4", &features)
            && run("mount", &["-o", "loop,prjquota", image, at_text]);
        mounted.then_some(Self(at))
    }
}

impl Drop for QuotaDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_disk_with_project_quotas_bounds_a_directory() {
    let bench = Bench::new("quota");
    let artifact = Artifact::new(&bench);
    let at = bench.directory.path().join("disk");
    let Some(_disk) = QuotaDisk::mount(&bench.directory.path().join("image"), &at) else {
        eprintln!("skipped: this user or machine mounts no file system with project quotas");
        return;
    };
    let scratch = at.join("scratch");
    fs::create_dir(&scratch).unwrap();
    let targets = Targets::new(&bench);
    let seen = targets.seen("", "/scratch");
    let mut profile = artifact.profile(&[&["attempts", seen.as_str()]]);
    let text = scratch.display().to_string();
    profile.areas.scratch = DiskArea { bytes_max: AREA_BYTES, directory: Some(text) };
    let (running, mut printed) = process(&bench, "hostile", profile);
    assert!(!running.not_enforced().iter().any(|label| label.starts_with("storage:")));
    let found = results(&printed[0].rest());
    let full = [libc_error("ENOSPC"), libc_error("EDQUOT"), libc_error("EFBIG")];
    for name in ["disk-filler", "file-filler"] {
        assert!(full.contains(&found[name]), "{name}: {}", found[name]);
    }
    running.remove().unwrap();
}

fn libc_error(name: &str) -> i32 {
    use nix::errno::Errno;
    let error = match name {
        "ENOSPC" => Errno::ENOSPC,
        "EDQUOT" => Errno::EDQUOT,
        _ => Errno::EFBIG,
    };
    error as i32
}

#[test]
fn a_restarted_agent_gets_outputs_and_device_again() {
    let bench = Bench::new("again");
    let artifact = Artifact::new(&bench);
    let (running, mut printed) =
        process(&bench, "kept", artifact.profile(&[&["say", "one"], &["say", "two"]]));
    printed[0].wait_for("one");
    drop((running, printed));
    let successor = SandboxLauncher::new(bench.config.clone()).unwrap();
    let found = successor.list_running().unwrap();
    let descriptors = insist("its descriptors", || found[0].descriptors());
    assert!(descriptors.gang_device.is_none());
    let mut printed: Vec<Printed> = descriptors.ranks.into_iter().map(Printed::new).collect();
    printed[1].wait_for("two");
    assert_eq!((printed.len(), printed[0].output()), (2, String::new()), "the predecessor read it");
    let engine = bench.start("engine", "serve", TARGETS);
    let none = insist("its descriptors", || engine.descriptors());
    assert!(none.ranks.is_empty() && none.gang_device.is_none(), "an engine's init holds none");
}

#[test]
fn a_start_that_cannot_succeed_names_the_reason_and_leaves_nothing() {
    let bench = Bench::new("refused");
    let artifact = Artifact::new(&bench);
    let refused = |profile| match try_process(&bench, "refused", profile) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    };
    let mut profile = artifact.profile(&[&["exit", "0"]]);
    profile.areas.scratch.bytes_max = 0;
    let error = refused(profile);
    assert_eq!(error.code(), error_code::PROCESS_PROFILE_INVALID, "{error}");
    let mut profile = artifact.profile(&[&["exit", "0"], &["exit", "0"]]);
    profile.ranks[1].arguments[0] = "not-there".into();
    let error = refused(profile);
    assert!(error.to_string().contains("execute not-there"), "{error}");
    let mut profile = artifact.profile(&[&["exit", "0"]]);
    profile.inputs[0].path = "/opt/data".into();
    let error = refused(profile);
    assert!(error.to_string().contains("the artifact has this directory"), "{error}");
    let mut profile = artifact.profile(&[&["exit", "0"]]);
    profile.working_directory = "/nowhere".into();
    assert!(refused(profile).to_string().contains("enter the working directory"));
    if !may_make_gangs() {
        let error = refused(artifact.gang_profile(&["10.77.0.1/24"], &[&["exit", "0"]]));
        assert_eq!(error.code(), error_code::GANG_NETWORK_UNAVAILABLE, "{error}");
    }
    assert!(!bench.state("refused").exists());
}

/// Moves the packets of some sandboxes, as an agent does.
struct Relay {
    switch: PacketSwitch,
    devices: Vec<OwnedFd>,
}

impl Relay {
    fn attach(&mut self, running: &Sandbox, attempt: u32, addresses: &[&str]) -> SwitchPort {
        let port = SwitchPort(u32::try_from(self.devices.len()).unwrap());
        let gang = GangId { job: JobId(Digest::of(b"train")), attempt };
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.switch.attach(port, PortKind::Device, gang, &addresses).unwrap();
        self.devices.push(running.descriptors().unwrap().gang_device.unwrap());
        port
    }

    /// Moves every packet that waits.
    fn turn(&mut self) {
        for (number, device) in self.devices.iter().enumerate() {
            let from = SwitchPort(u32::try_from(number).unwrap());
            while let Some(packet) = next_packet(device) {
                if let Ok(to) = self.switch.forward(from, &packet) {
                    // A full queue loses packets, as a network does.
                    let _ = nix::unistd::write(self.devices[to.0 as usize].as_fd(), &packet);
                }
            }
        }
    }
}

#[test]
fn ranks_of_a_gang_reach_each_other_through_the_switch_and_nothing_else() {
    if !may_make_gangs() {
        eprintln!("skipped: this user may not open /dev/net/tun");
        return;
    }
    let bench = Bench::new("gang");
    let artifact = Artifact::new(&bench);
    let mut relay = Relay { switch: PacketSwitch::default(), devices: vec![] };
    let start = |name: &str, address: &str, v6: &str, mode: &[&str]| {
        let addresses = [format!("{address}/24"), format!("{v6}/64")];
        let profile = artifact.gang_profile(&addresses.each_ref().map(String::as_str), &[mode]);
        process(&bench, name, profile)
    };
    let (listens, mut answers) = start("listens", "10.77.0.1", "fd00::1", &["listen"]);
    relay.attach(&listens, 2, &["10.77.0.1", "fd00::1"]);
    answers[0].wait_for("listening");
    for (number, to) in ["10.77.0.1:7007", "[fd00::1]:7007"].into_iter().enumerate() {
        let (name, own, v6) = (format!("asks-{number}"), "10.77.0.2", "fd00::2");
        let (asks, mut said) = start(&name, own, v6, &["connect", to]);
        let port = relay.attach(&asks, 2, &[own, v6]);
        until("the answer is whole", || {
            relay.turn();
            said[0].read();
            said[0].output().contains("echoed true")
        });
        let counters = relay.switch.detach(port).unwrap();
        assert!(counters.packets > 0 && counters.bytes > 1 << 20, "{counters:?}");
    }
    until("both were accepted", || {
        relay.turn();
        answers[0].read();
        answers[0].output().matches("accepted").count() == 2
    });
    // The same address and program under an earlier attempt, and the metadata service.
    for (number, (attempt, to)) in [(1, "10.77.0.1:7007"), (2, "10.77.0.99:80")].into_iter().enumerate() {
        let (name, own) = (format!("outsider-{number}"), "10.77.0.3");
        let (outsider, _said) = start(&name, own, "fd00::3", &["reach", to]);
        let port = relay.attach(&outsider, attempt, &[own, "fd00::3"]);
        until("its packets are dropped", || {
            relay.turn();
            let dropped = &relay.switch.counters(port).unwrap().dropped;
            dropped.get(&PacketDrop::NoSuchRank).is_some_and(|count| *count > 0)
        });
        assert_eq!(relay.switch.detach(port).unwrap().packets, 0, "none passed");
    }
    answers[0].read();
    assert_eq!(answers[0].output().matches("accepted").count(), 2);
}

/// All of the above as an ordinary user, in user namespaces.
#[test]
fn an_unprivileged_agent_runs_ranks_too() {
    common::rerun_unprivileged(&["--test-threads=2"]);
}
