//! Fixtures of process sandboxes: an artifact that holds the probe, profiles, and readers of ranks' outputs.

use super::program::copy_program;
use super::{Bench, LEASE_MS, until};
use host::boot_time;
use protocol::sandbox::{
    DiskArea, GangDevice, InputMount, ProcessProfile, RankProgram, SandboxLimits, WritableAreas,
};
use sandbox::{RankOutput, Sandbox, SandboxError, StartProcess};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Size of each writable area in these tests.
pub const AREA_BYTES: u64 = 1 << 20;
/// Limits with few processes, and memory for the areas too.
pub const RANK_LIMITS: SandboxLimits =
    SandboxLimits { cpu_millicores: 1000, memory_bytes: 96 << 20, processes_max: 24, open_files_max: 1024 };

/// An unpacked artifact with the probe, its libraries, and hostile entries.
pub struct Artifact {
    pub tree: PathBuf,
    pub input: PathBuf,
}

impl Artifact {
    pub fn new(bench: &Bench) -> Self {
        let tree = bench.directory.path().join("tree");
        for directory in ["usr/bin", "opt", "etc"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        let copy = |from: &Path, to: PathBuf, mode| {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            copy_program(from, &to);
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        };
        copy(&bench.probe, tree.join("usr/bin/probe"), 0o755);
        copy(&bench.probe, tree.join("opt/set-id"), 0o4755);
        for library in sandbox::libraries_of(&bench.probe).unwrap() {
            let to = tree.join(library.strip_prefix("/").unwrap());
            copy(&library, to, 0o755);
        }
        fs::write(tree.join("opt/open"), "content").unwrap();
        fs::set_permissions(tree.join("opt/open"), fs::Permissions::from_mode(0o666)).unwrap();
        // Entries that an artifact should not have, and that must have no effect.
        fs::write(tree.join("etc/passwd"), "root::0:0::/:/bin/sh\n").unwrap();
        symlink("/proc/1/environ", tree.join("etc/hosts")).unwrap();
        symlink("usr/bin", tree.join("bin")).unwrap();
        if nix::unistd::Uid::effective().is_root() {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let mode = Mode::from_bits_truncate(0o666);
            mknod(&tree.join("opt/zero"), SFlag::S_IFCHR, mode, makedev(1, 5)).unwrap();
        }
        let input = bench.directory.path().join("input");
        fs::create_dir(&input).unwrap();
        fs::write(input.join("input"), "data").unwrap();
        Self { tree, input }
    }

    /// Returns a profile whose ranks run the probe in these modes, without a gang.
    pub fn profile(&self, ranks: &[&[&str]]) -> ProcessProfile {
        let rank = |(number, mode): (usize, &&[&str])| RankProgram {
            arguments: ["/usr/bin/probe", "rank"].iter().chain(*mode).map(ToString::to_string).collect(),
            environment: BTreeMap::from([
                ("RANK".to_string(), number.to_string()),
                ("PATH".to_string(), "/nowhere:/usr/bin".to_string()),
            ]),
        };
        let area = || DiskArea { bytes_max: AREA_BYTES, directory: None };
        let hosts = [("10.77.0.1".parse().unwrap(), "rank-0".to_string())];
        ProcessProfile {
            root: self.tree.display().to_string(),
            host_name: "rank-0".into(),
            working_directory: "/scratch".into(),
            ranks: ranks.iter().enumerate().map(rank).collect(),
            inputs: vec![InputMount { source: self.input.display().to_string(), path: "/data".into() }],
            areas: WritableAreas {
                tmp_bytes: AREA_BYTES,
                shared_memory_bytes: AREA_BYTES,
                scratch: area(),
                checkpoint: area(),
                outputs: area(),
            },
            etc: sandbox::etc_files(&hosts, b"TZif".to_vec()).unwrap(),
            network: None,
        }
    }

    /// Returns the same with a gang device.
    pub fn gang_profile(&self, addresses: &[&str], ranks: &[&[&str]]) -> ProcessProfile {
        let addresses = addresses.iter().map(ToString::to_string).collect();
        ProcessProfile { network: Some(GangDevice { addresses, mtu: 9_000 }), ..self.profile(ranks) }
    }
}

/// Starts a process sandbox whose lease no test outlives.
pub fn try_process(bench: &Bench, name: &str, profile: ProcessProfile) -> Result<Sandbox, SandboxError> {
    bench.launcher.start_process(&StartProcess {
        name: name.into(),
        profile,
        limits: RANK_LIMITS,
        devices: vec![],
        lease_until: boot_time().plus(LEASE_MS),
    })
}

/// Starts a process sandbox, and reads what its ranks print.
pub fn process(bench: &Bench, name: &str, profile: ProcessProfile) -> (Sandbox, Vec<Printed>) {
    let running = try_process(bench, name, profile).unwrap();
    let descriptors = running.descriptors().unwrap();
    (running, descriptors.ranks.into_iter().map(Printed::new).collect())
}

/// Output of a rank so far.
#[derive(Debug)]
pub struct Printed {
    pipes: [File; 2],
    texts: [Vec<u8>; 2],
}

impl Printed {
    pub fn new(pipes: RankOutput) -> Self {
        let RankOutput { output, error } = pipes;
        Self { pipes: [output, error].map(File::from), texts: [vec![], vec![]] }
    }

    /// Reads what is there; true when no more will come.
    pub fn read(&mut self) -> bool {
        let mut ended = [false; 2];
        for ((pipe, text), ended) in self.pipes.iter_mut().zip(&mut self.texts).zip(&mut ended) {
            match pipe.read_to_end(text) {
                Ok(_) => *ended = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        ended == [true; 2]
    }

    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.texts[0]).into_owned()
    }

    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.texts[1]).into_owned()
    }

    /// Waits until the output has a text.
    pub fn wait_for(&mut self, text: &str) {
        until(text, || {
            self.read();
            self.output().contains(text)
        });
    }

    /// Waits for the end of the rank, and returns its output.
    pub fn rest(&mut self) -> String {
        until("the rank has ended", || self.read());
        self.output()
    }
}

/// Returns a directory of the host for a writable area.
pub fn area_directory(bench: &Bench, name: &str) -> PathBuf {
    let directory = bench.directory.path().join(name);
    fs::create_dir(&directory).unwrap();
    directory
}

/// Returns whether this user may make a gang device.
pub fn may_make_gangs() -> bool {
    File::options().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// Returns the next packet of a gang device; none if there is none now.
pub fn next_packet(device: &OwnedFd) -> Option<Vec<u8>> {
    let mut packet = vec![0; 65_536];
    match nix::unistd::read(device, &mut packet) {
        Ok(length) => {
            packet.truncate(length);
            Some(packet)
        }
        Err(_) => None,
    }
}
