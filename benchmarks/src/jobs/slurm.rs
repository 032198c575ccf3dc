//! Slurm as the peer: one controller and one node on loopback, with munge, installed from Debian's packages.

use super::load::{AT_ONCE, PROGRAM};
use crate::cluster::fresh_directory;
use crate::process::{ChildGuard, free_ports};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Debian packages of the peer.
const PACKAGES: [&str; 2] = ["slurm-wlm", "munge"];
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(300);
/// Pause between two looks at a file or the queue.
const LOOK: Duration = Duration::from_millis(5);
const QUEUE_LOOK: Duration = Duration::from_millis(50);

/// A running Slurm.
pub(super) struct Slurm {
    directory: PathBuf,
    daemons: Vec<ChildGuard>,
}

impl Slurm {
    /// Installs what is missing, and starts munge, the controller and the node.
    pub(super) fn start() -> Result<Self> {
        install("slurmctld", &PACKAGES)?;
        let directory = fresh_directory("slurm")?;
        for folder in ["state", "spool"] {
            fs::create_dir(directory.join(folder))?;
        }
        fs::write(directory.join("slurm.conf"), configuration(&directory)?)?;
        let mut slurm = Self { directory, daemons: Vec::new() };
        slurm.start_munge()?;
        let conf = slurm.path("slurm.conf");
        for daemon in ["slurmctld", "slurmd"] {
            let log = fs::File::create(slurm.directory.join(format!("{daemon}.out")))?;
            let mut command = Command::new(format!("/usr/sbin/{daemon}"));
            command.args(["-D", "-f", &conf]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            slurm.daemons.push(ChildGuard::start(&mut command)?);
        }
        slurm.wait_until_idle()?;
        Ok(slurm)
    }

    fn start_munge(&mut self) -> Result<()> {
        let key = self.directory.join("munge.key");
        fs::write(&key, host::random::random_bytes::<128>())?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        let file = |name: &str| self.path(name);
        let arguments = [
            "--foreground".into(),
            "--force".into(),
            format!("--key-file={}", file("munge.key")),
            format!("--socket={}", file("munge.socket")),
            format!("--pid-file={}", file("munge.pid")),
            format!("--log-file={}", file("munge.log")),
            format!("--seed-file={}", file("munge.seed")),
        ];
        let mut command = Command::new("/usr/sbin/munged");
        let null = [Stdio::null(), Stdio::null(), Stdio::null()];
        let [stdin, stdout, stderr] = null;
        self.daemons
            .push(ChildGuard::start(command.args(arguments).stdin(stdin).stdout(stdout).stderr(stderr))?);
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Ends the daemons.
    pub(super) fn stop(&mut self) {
        self.daemons.clear();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.path("slurm.conf")).current_dir(&self.directory);
        command
    }

    /// Returns the version, as Slurm says it.
    pub(super) fn version(&self) -> String {
        let text = self.output(self.command("sinfo").arg("--version")).unwrap_or_default();
        text.trim().to_string()
    }

    fn output(&self, command: &mut Command) -> Result<String> {
        let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{:?}: {problem}", command.get_program());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn wait_until_idle(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let state = self.output(self.command("sinfo").args(["-h", "-o", "%t"])).unwrap_or_default();
            if state.trim() == "idle" {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "the node of Slurm is `{}`", state.trim());
            sleep(Duration::from_millis(100));
        }
    }

    /// Waits until no job is in the queue.
    fn wait_until_empty(&self) -> Result<()> {
        let began = Instant::now();
        while !self.output(self.command("squeue").arg("-h"))?.trim().is_empty() {
            ensure!(began.elapsed() < LIMIT, "jobs are still in the queue of Slurm");
            sleep(QUEUE_LOOK);
        }
        Ok(())
    }

    /// Returns the seconds from `sbatch` to the first line in the job's file.
    pub(super) fn batch_first_line(&self) -> Result<f64> {
        let file = self.directory.join("first-line");
        let _ = fs::remove_file(&file);
        let began = Instant::now();
        let wrap = format!("{PROGRAM} 1 1");
        self.output(self.command("sbatch").args(["-o", &self.path("first-line"), "--wrap", &wrap]))?;
        while fs::metadata(&file).map_or(0, |data| data.len()) == 0 {
            ensure!(began.elapsed() < LIMIT, "a job of Slurm printed nothing");
            sleep(LOOK);
        }
        let seconds = began.elapsed().as_secs_f64();
        self.wait_until_empty()?;
        Ok(seconds)
    }

    /// Returns the seconds from `srun` to its first line.
    pub(super) fn run_first_line(&self) -> Result<f64> {
        let began = Instant::now();
        let mut command = self.command("srun");
        let mut child = command.args([PROGRAM, "1", "1"]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(child.wait()?.success() && line.trim() == "1", "srun printed `{}`", line.trim());
        self.wait_until_empty()?;
        Ok(seconds)
    }

    /// Returns the seconds for an array of jobs that print nothing.
    pub(super) fn array(&self, count: usize) -> Result<f64> {
        let (began, wrap) = (Instant::now(), format!("{PROGRAM} 1 0"));
        let array = format!("--array=1-{count}");
        self.output(self.command("sbatch").args([&array, "-o", "/dev/null", "--wrap", &wrap]))?;
        self.wait_until_empty()?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Returns the seconds for as many calls of `sbatch`, one after another, and the ends of their jobs.
    pub(super) fn loop_of_jobs(&self, count: usize) -> Result<f64> {
        let (began, wrap) = (Instant::now(), format!("{PROGRAM} 1 0"));
        for _ in 0..count {
            self.output(self.command("sbatch").args(["-o", "/dev/null", "--wrap", &wrap]))?;
        }
        self.wait_until_empty()?;
        Ok(began.elapsed().as_secs_f64())
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the configuration: Slurm's defaults, without the delays of its scheduler.
fn configuration(directory: &Path) -> Result<String> {
    let ports = free_ports(2)?;
    let place = directory.display();
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let host = host.trim().split('.').next().unwrap_or("localhost");
    Ok(format!(
        "ClusterName=bench\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
         AuthType=auth/munge\nAuthInfo=socket={place}/munge.socket\nCryptoType=crypto/munge\n\
         StateSaveLocation={place}/state\nSlurmdSpoolDir={place}/spool\n\
         SlurmctldPidFile={place}/ctld.pid\nSlurmdPidFile={place}/d.pid\n\
         SlurmctldLogFile={place}/ctld.log\nSlurmdLogFile={place}/d.log\n\
         SlurmctldPort={}\nSlurmdPort={}\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n\
         SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nReturnToService=2\nMinJobAge=2\n\
         SchedulerParameters=batch_sched_delay=0,sched_min_interval=0\n\
         SlurmdParameters=config_overrides\n\
         NodeName={host} NodeAddr=127.0.0.1 CPUs={AT_ONCE} State=UNKNOWN\n\
         PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
        ports[0], ports[1]
    ))
}

/// Installs Debian packages unless this program of theirs is there.
///
/// # Errors
/// If the packages cannot be installed, as without root.
pub(super) fn install(program: &str, packages: &[&str]) -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
    if places.map(|place| place.join(program)).any(|path| path.is_file()) {
        return Ok(());
    }
    eprintln!("installing {}", packages.join(", "));
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    let status = command.args(["install", "-y", "--no-install-recommends"]).args(packages).status()?;
    ensure!(status.success(), "`apt-get install {}` failed: {status}", packages.join(" "));
    Ok(())
}
