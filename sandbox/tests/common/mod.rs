//! Fixtures of the sandbox tests: a launcher in a temporary directory, and the probe as its worker.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod attempts;
pub mod process;
pub mod program;

use host::boot_time;
use program::copy_program;
use protocol::BootTime;
use protocol::sandbox::SandboxLimits;
use sandbox::Start;
use sandbox::{LauncherConfig, MemoryFile, Sandbox, SandboxLauncher};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for any condition. It only keeps a test from hanging: a busy machine passes too.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Lease in milliseconds for tests without an expiry: it is not renewed, and no test takes that long.
pub const LEASE_MS: u64 = 900_000;
/// Lease in milliseconds for tests with an expiry, as in production.
pub const SHORT_LEASE_MS: u64 = protocol::limits::LEASE_MS;

/// A launcher whose state is below a temporary directory.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub launcher: SandboxLauncher,
    pub probe: PathBuf,
    pub config: LauncherConfig,
}

/// Returns the probe's executable; the parent copies it where the test runs as another user.
pub fn probe_path() -> PathBuf {
    std::env::var_os("QUORATE_TEST_PROBE")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_sandbox-probe")), PathBuf::from)
}

impl Bench {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The copy is in a directory where every user may execute it: a build directory may be closed to
        // others.
        let probe = directory.path().join("probe");
        copy_program(&probe_path(), &probe);
        let shared = directory.path().join("shared");
        fs::write(&shared, "seen by the worker").unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o666)).unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let config = LauncherConfig {
            program: probe.clone(),
            arguments: vec!["sandbox-init".into()],
            state_dir: directory.path().join("state"),
            cgroup_parent: format!("quorate-test/{name}-{}-{number}", std::process::id()),
            ids_first: 231_072,
            id_pairs: 8,
            lease_ms_max: LEASE_MS,
        };
        let launcher = SandboxLauncher::new(config.clone()).unwrap();
        Self { directory, launcher, probe, config }
    }

    pub fn start(&self, name: &str, mode: &str, manifest: &[u8]) -> Sandbox {
        self.try_start(name, mode, manifest, LIMITS, boot_time().plus(LEASE_MS)).unwrap()
    }

    pub fn try_start(
        &self,
        name: &str,
        mode: &str,
        manifest: &[u8],
        limits: SandboxLimits,
        lease_until: BootTime,
    ) -> Result<Sandbox, sandbox::SandboxError> {
        let weights = MemoryFile::create("weights", 1 << 16).unwrap();
        weights.write(0, b"weights");
        let progress = MemoryFile::create("progress", 16).unwrap();
        let (weights, progress) = (weights.reader().unwrap(), progress.reader().unwrap());
        self.launcher.start(&Start {
            name: name.into(),
            binary: self.probe.clone(),
            arguments: vec!["worker".into(), mode.into()],
            environment: BTreeMap::new(),
            limits,
            read_only: vec![self.directory.path().join("shared")],
            devices: vec![],
            weights,
            progress,
            manifest: manifest.into(),
            lease_until,
        })
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for running in self.launcher.list_running().unwrap_or_default() {
            let _ = running.remove();
        }
        let _ = self.launcher.remove_stale();
    }
}

/// Generous limits with few processes.
pub const LIMITS: SandboxLimits =
    SandboxLimits { cpu_millicores: 1000, memory_bytes: 64 << 20, processes_max: 24, open_files_max: 64 };

/// Manifest of a probe that runs as a worker: targets that are not there.
pub const TARGETS: &[u8] = br#"{"control":"127.0.0.1:1","store":"127.0.0.1:1","unix_path":"",
    "abstract_name":"","victim":1,"secret":"","shared":""}"#;

/// Waits until a condition holds; panics with `what` after `PATIENCE`.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Retries a request to an init until it answers: on a busy machine it may miss its limit of a second.
pub fn insist<T, E: std::fmt::Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "still not: {what}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns whether a process is alive (a zombie is not).
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Returns the children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Runs this test program again as `nobody`, from a directory that every user may read. Returns its output;
/// none if this process is not root, which is then the unprivileged run itself.
pub fn rerun_unprivileged(arguments: &[&str]) -> Option<String> {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        copy_program(from, &to);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let test = copy(&std::env::current_exe().unwrap(), "test");
    let probe = copy(&probe_path(), "probe");
    let output = std::process::Command::new(test)
        .args(arguments)
        .arg("--nocapture")
        .env_clear()
        .env("QUORATE_TEST_PROBE", probe)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{text}");
    Some(text)
}
