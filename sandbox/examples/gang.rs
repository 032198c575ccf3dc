//! Measures the link between two ranks of a gang on one node: `cargo run -p sandbox --example gang`.
//!
//! Two process sandboxes of one gang each have a TUN device. This process moves packets between them, as an
//! agent does, while one rank sends to the other over plain TCP. Both ranks are this program, in an artifact
//! of its own.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use host::boot_time;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::sandbox::{DiskArea, GangDevice, ProcessProfile, RankProgram, SandboxLimits, WritableAreas};
use protocol::{Digest, JobId};
use sandbox::{
    GangId, LauncherConfig, PORT_ADDRESSES_MAX, PacketSwitch, PortKind, Sandbox, SandboxLauncher,
    StartProcess, SwitchPort, etc_files, init, libraries_of,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that one rank sends to the other.
const SENT_BYTES: u64 = 2 << 30;
/// Port on which the receiver listens.
const PORT: u16 = 7007;
/// Packets moved from one device before the other's turn.
const BURST: usize = 64;
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const MTU: u32 = 60_000;
const LEASE_MS: u64 = 120_000;
const LIMITS: SandboxLimits =
    SandboxLimits { cpu_millicores: 4000, memory_bytes: 256 << 20, processes_max: 16, open_files_max: 64 };

type ExampleResult<T = ()> = Result<T, Box<dyn Error>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let status = match arguments.first().map(String::as_str) {
        Some("sandbox-init") => init::main(arguments.into_iter().skip(1)),
        Some("receive") => report(receive()),
        Some("send") => report(send()),
        None => report(measure()),
        Some(_) => {
            eprintln!("this example takes no arguments");
            2
        }
    };
    std::process::exit(status);
}

fn report(outcome: ExampleResult) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("gang: {error}");
            1
        }
    }
}

fn receive() -> ExampleResult {
    let (mut stream, _) = TcpListener::bind(("0.0.0.0", PORT))?.accept()?;
    let (mut buffer, mut left) = (vec![0; 1 << 20], SENT_BYTES);
    while left > 0 {
        let length = stream.read(&mut buffer)?;
        left = left.checked_sub(length as u64).filter(|_| length > 0).ok_or("another number of bytes")?;
    }
    stream.write_all(b"!")?;
    Ok(())
}

fn send() -> ExampleResult {
    let mut stream = loop {
        match TcpStream::connect((ADDRESSES[0], PORT)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let (buffer, started) = (vec![7; 1 << 20], Instant::now());
    for _ in 0..SENT_BYTES / buffer.len() as u64 {
        stream.write_all(&buffer)?;
    }
    stream.read_exact(&mut [0])?;
    println!("{:.2} GB/s", SENT_BYTES as f64 / started.elapsed().as_secs_f64() / 1e9);
    Ok(())
}

fn measure() -> ExampleResult {
    let directory = std::env::temp_dir().join(format!("quorate-gang-{}", std::process::id()));
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let measured = measure_in(&directory);
    fs::remove_dir_all(&directory)?;
    measured
}

fn measure_in(directory: &Path) -> ExampleResult {
    let program = directory.join("tree/bin/gang");
    let own = std::env::current_exe()?;
    let files = libraries_of(&own)?
        .into_iter()
        .map(|path| (path.clone(), directory.join("tree").join(path.strip_prefix("/").unwrap_or(&path))));
    for (from, to) in files.chain([(own.clone(), program.clone())]) {
        fs::create_dir_all(to.parent().unwrap_or(directory))?;
        fs::copy(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    let launcher = SandboxLauncher::new(LauncherConfig {
        program: own,
        arguments: vec!["sandbox-init".into()],
        state_dir: directory.join("state"),
        cgroup_parent: format!("quorate-gang/{}", std::process::id()),
        ids_first: 232_096,
        id_pairs: 2,
        lease_ms_max: LEASE_MS,
    })?;
    let started = [("receive", ADDRESSES[0]), ("send", ADDRESSES[1])]
        .into_iter()
        .map(|(mode, address)| start(&launcher, directory, mode, address))
        .collect::<ExampleResult<Vec<Sandbox>>>();
    let moved = started.and_then(|ranks| relay(&ranks));
    for running in launcher.list_running()? {
        running.remove()?;
    }
    launcher.remove_stale()?;
    moved
}

fn start(launcher: &SandboxLauncher, directory: &Path, mode: &str, address: &str) -> ExampleResult<Sandbox> {
    let area = || DiskArea { bytes_max: 1 << 20, directory: None };
    let hosts: [(IpAddr, String); 1] = [(address.parse()?, mode.to_string())];
    let profile = ProcessProfile {
        root: directory.join("tree").display().to_string(),
        host_name: mode.into(),
        working_directory: "/".into(),
        ranks: vec![RankProgram {
            arguments: vec!["gang".into(), mode.into()],
            environment: BTreeMap::new(),
        }],
        inputs: vec![],
        areas: WritableAreas {
            tmp_bytes: 1 << 20,
            shared_memory_bytes: 1 << 20,
            scratch: area(),
            checkpoint: area(),
            outputs: area(),
        },
        etc: etc_files(&hosts, vec![])?,
        network: Some(GangDevice { addresses: vec![format!("{address}/24")], mtu: MTU }),
    };
    let lease_until = boot_time().plus(LEASE_MS);
    let start = StartProcess { name: mode.into(), profile, limits: LIMITS, devices: vec![], lease_until };
    Ok(launcher.start_process(&start)?)
}

/// Moves packets until the sender has ended, and prints what it printed.
fn relay(ranks: &[Sandbox]) -> ExampleResult {
    let mut switch = PacketSwitch::default();
    let gang = GangId { job: JobId(Digest::of(b"measure")), attempt: 1 };
    let (mut devices, mut outputs): (Vec<OwnedFd>, Vec<fs::File>) = (vec![], vec![]);
    for (number, (running, address)) in (0..).zip(ranks.iter().zip(ADDRESSES)) {
        let descriptors = running.descriptors()?;
        devices.extend(descriptors.gang_device);
        outputs.extend(descriptors.ranks.into_iter().map(|rank| fs::File::from(rank.output)));
        switch.attach(SwitchPort(number), PortKind::Device, gang, &[address.parse()?])?;
    }
    let mut packet = vec![0; 1 << 16];
    while ranks.iter().any(|running| running.ended().is_none()) {
        let mut waits: Vec<PollFd<'_>> =
            devices.iter().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut waits, PollTimeout::from(100_u16))?;
        for (number, device) in (0..).zip(&devices) {
            for _ in 0..BURST {
                let Ok(length) = nix::unistd::read(device, &mut packet) else { break };
                if let Ok(SwitchPort(to)) = switch.forward(SwitchPort(number), &packet[..length]) {
                    let _ = nix::unistd::write(&devices[to as usize], &packet[..length]);
                }
            }
        }
    }
    for mut output in outputs {
        let mut text = String::new();
        output.read_to_string(&mut text)?;
        print!("{text}");
    }
    for (number, address) in (0..).zip(ADDRESSES) {
        let counters = switch.counters(SwitchPort(number)).ok_or("the port is attached")?;
        let dropped: Vec<String> =
            counters.dropped.iter().map(|(reason, count)| format!("{} {count}", reason.label())).collect();
        println!("{address}: {} packets, {} bytes; dropped: {dropped:?}", counters.packets, counters.bytes);
        switch.detach(SwitchPort(number));
    }
    let unknown = switch.dropped_of_unknown_ports();
    println!("{unknown} of unknown ports; a port has up to {PORT_ADDRESSES_MAX} addresses");
    Ok(())
}
