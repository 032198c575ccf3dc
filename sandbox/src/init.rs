//! `quorate sandbox-init`: the process that builds a sandbox and then runs as its init.
//!
//! The *builder* is the process that the agent executes. It enters the init's cgroups, clones the *init* into
//! new namespaces, maps its ids, and exits. The init builds the root and forks the worker, which enters the
//! cgroups beside the init's. Then the init drops its privileges and holds the lease ([`supervise`]) until
//! the end. It is PID 1 of its namespace: when it exits, the kernel kills everything else in it.
//!
//! This code must stay single-threaded and must not be called from a process that does anything else. It does
//! not return from a successful start.

mod filter;
mod logs;
mod network;
mod process_root;
mod ranks;
mod root;
mod supervise;
mod worker;

pub(crate) use network::TUN_PATH;

use super::{memory_file, system, wire};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use protocol::canonical;
use protocol::sandbox::{
    SANDBOX_REPORT_BYTES_MAX, SANDBOX_SPEC_BYTES_MAX, SandboxGo, SandboxGroups, SandboxIdentity,
    SandboxProfile, SandboxReport, SandboxSpec,
};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Namespaces of every sandbox.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Exit statuses of `sandbox-init check`.
pub(crate) const CHECK_FULL: i32 = 10;
pub(crate) const CHECK_SAME_UID: i32 = 11;

/// Argument that requests a check instead of a sandbox, followed by the first id to try.
pub(crate) const CHECK_ARGUMENT: &str = "check";

/// A step that failed and the error of the system.
#[derive(Debug)]
pub(crate) struct FailedStep {
    step: String,
    detail: String,
}

pub(crate) type StepResult<T> = Result<T, FailedStep>;

/// Attaches the failed step to an error of the system.
pub(crate) trait InStep<T> {
    fn step(self, step: &str) -> StepResult<T>;
}

impl<T, E: std::fmt::Display> InStep<T> for Result<T, E> {
    fn step(self, step: &str) -> StepResult<T> {
        self.map_err(|error| FailedStep { step: step.to_string(), detail: error.to_string() })
    }
}

/// Files of the worker's control groups, opened while they can be reached.
struct WorkerGroups {
    /// Files through which the worker enters its groups.
    procs: Vec<File>,
    /// Writes before the worker is killed.
    release: Vec<(File, String)>,
}

impl WorkerGroups {
    fn open(groups: &SandboxGroups) -> StepResult<Self> {
        let open = |path: &String| File::options().write(true).open(path).step(&format!("open {path}"));
        let release = groups.release.iter().map(|write| Ok((open(&write.path)?, write.value.clone())));
        Ok(Self {
            procs: groups.worker.iter().map(open).collect::<StepResult<_>>()?,
            release: release.collect::<StepResult<_>>()?,
        })
    }
}

/// Descriptors that the launcher sends with the specification, in this order; the worker's follow.
pub(crate) struct Inherited {
    pub(crate) listener: OwnedFd,
    pub(crate) exit: OwnedFd,
    pub(crate) logs: [OwnedFd; 2],
    /// Held open but never read, so that the worker's metrics pipe has a reader while no agent is alive.
    pub(crate) metrics: OwnedFd,
    pub(crate) worker: Vec<OwnedFd>,
}

/// Runs `sandbox-init` with the arguments after that command and returns the process's exit status.
///
/// The process must have been executed for this alone, by [`crate::SandboxLauncher`]: it has one thread, and
/// its standard input is the launcher's socket.
pub fn main(arguments: impl IntoIterator<Item = String>) -> i32 {
    let mut arguments = arguments.into_iter();
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => build(),
        (Some(CHECK_ARGUMENT), Some(first)) => check(first.parse().unwrap_or(0)),
        _ => {
            eprintln!("sandbox-init is started by the agent and takes no orders from people");
            2
        }
    }
}

fn build() -> i32 {
    let socket = match take_standard_input() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("sandbox-init: {error}");
            return 2;
        }
    };
    match create_init(&socket) {
        Ok(()) => 0,
        Err(error) => {
            report_failure(&socket, error);
            1
        }
    }
}

/// Returns the launcher's socket. Standard input becomes `/dev/null`, and all other leaked descriptors are
/// closed.
fn take_standard_input() -> io::Result<OwnedFd> {
    system::close_from(3)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    system::duplicate_to(null.as_fd(), 0, 0)?;
    Ok(socket)
}

fn report(socket: &OwnedFd, report: &SandboxReport) -> io::Result<()> {
    wire::send(socket.as_fd(), &canonical::to_bytes(report), &[])
}

fn report_failure(socket: &OwnedFd, error: FailedStep) {
    let FailedStep { step, mut detail } = error;
    detail.truncate(detail.floor_char_boundary(SANDBOX_REPORT_BYTES_MAX / 2));
    // A launcher that is gone needs no answer.
    let _ = report(socket, &SandboxReport::Failed { step, detail });
}

fn create_init(socket: &OwnedFd) -> StepResult<()> {
    let (spec, inherited) = receive_spec(socket).step("receive the specification")?;
    for procs in &spec.groups.init {
        fs::write(procs, "0").step(&format!("enter {procs}"))?;
    }
    let groups = WorkerGroups::open(&spec.groups)?;
    worker::forbid_core_dumps();
    let (mapped, wait_mapped) = io::pipe().map(|(r, w)| (w, r)).step("create a pipe")?;
    // SAFETY: this process was executed to do this and has never started a thread.
    let init = unsafe { system::clone_process(NAMESPACES | libc::CLONE_PARENT) };
    match init.step("create the namespaces")? {
        Some(pid) => {
            drop((inherited, groups));
            let introduced = map_ids(pid, spec.identity).step("map the user ids").and_then(|()| {
                let pid = pid.as_raw().unsigned_abs();
                report(socket, &SandboxReport::Created { pid }).step("report the init")
            });
            if introduced.is_ok() {
                // The init continues when this pipe has a byte; it exits when the pipe closes without one.
                match io::Write::write_all(&mut &mapped, b"!") {
                    // The init has failed, and reports the reason itself.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    written => written.step("release the init")?,
                }
            }
            introduced
        }
        None => {
            drop(mapped);
            let status = match become_init(&spec, inherited, groups, socket, wait_mapped) {
                Ok(status) => status,
                Err(error) => {
                    report_failure(socket, error);
                    1
                }
            };
            system::exit_now(status)
        }
    }
}

fn receive_spec(socket: &OwnedFd) -> io::Result<(SandboxSpec, Inherited)> {
    let (_, descriptors) = wire::receive(socket.as_fd(), SANDBOX_REPORT_BYTES_MAX)?;
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("descriptors are missing"));
    let file = next()?;
    let inherited = Inherited {
        listener: next()?,
        exit: next()?,
        logs: [next()?, next()?],
        metrics: next()?,
        worker: descriptors.collect(),
    };
    if !memory_file::is_sealed(&file) {
        return Err(io::Error::other("the specification is not sealed"));
    }
    let file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length > SANDBOX_SPEC_BYTES_MAX {
        return Err(io::Error::other("the specification is too long"));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    let spec = canonical::from_bytes(&bytes, SANDBOX_SPEC_BYTES_MAX).map_err(io::Error::other)?;
    Ok((spec, inherited))
}

/// Maps the sandbox's ids to host ids. Inside, 0 is the init and 1 the worker; a single id is 1.
fn map_ids(pid: Pid, identity: SandboxIdentity) -> io::Result<()> {
    let write = |name: &str, text: String| fs::write(format!("/proc/{pid}/{name}"), text);
    match identity {
        SandboxIdentity::OwnIds { first } => {
            write("uid_map", format!("0 {first} 2\n"))?;
            write("gid_map", format!("0 {first} 2\n"))
        }
        SandboxIdentity::SameUid => {
            write("uid_map", format!("1 {} 1\n", Uid::effective()))?;
            // Without this, an unprivileged group map is refused, because groups may also deny permissions.
            write("setgroups", "deny".into())?;
            write("gid_map", format!("1 {} 1\n", Gid::effective()))
        }
    }
}

/// Runs in the new namespaces as PID 1. Returns the exit status, or the step that failed before the worker
/// ran.
fn become_init(
    spec: &SandboxSpec,
    inherited: Inherited,
    groups: WorkerGroups,
    socket: &OwnedFd,
    wait_mapped: io::PipeReader,
) -> StepResult<i32> {
    let mut byte = [0];
    io::Read::read_exact(&mut &wait_mapped, &mut byte).step("wait for the user ids")?;
    drop(wait_mapped);
    nix::unistd::setsid().step("leave the agent's session")?;
    block_signals().step("block signals")?;
    nix::unistd::sethostname(host_name(spec)).step("set the host name")?;
    // Both run as the agent's user still: its directories and devices may be closed to the sandbox's ids.
    let root = root::open_sources(spec)?;
    let gang_device = open_network(&spec.profile)?;
    take_ids(spec.identity).step("take the sandbox's ids")?;
    nix::sys::prctl::set_dumpable(false).step("become undumpable")?;
    let mut not_enforced = root::build(root)?;
    wait_for_go(socket).step("wait for the launcher")?;
    let Inherited { listener, exit, logs, metrics, worker } = inherited;
    let WorkerGroups { procs, release } = groups;
    let log_files = logs.map(File::from);
    let (workload, logs) = match &spec.profile {
        SandboxProfile::Engine(engine) => {
            let started = worker::start(spec, engine, &worker, &procs)?;
            not_enforced.extend(started.not_enforced);
            let logs = logs::LogWriter::new(started.output, log_files).step("open the logs")?;
            (supervise::Workload::engine(started.pid), logs)
        }
        SandboxProfile::Process(profile) => {
            let started = ranks::start(spec, profile, &procs)?;
            not_enforced.extend(started.not_enforced);
            let held = started.outputs.into_iter().chain(gang_device).collect();
            (supervise::Workload::ranks(&started.pids, held), logs::LogWriter::unused(log_files))
        }
    };
    drop((worker, procs));
    not_enforced.extend(kept_groups(spec.identity));
    worker::lock_down_init(spec.identity)?;
    // A rank may have ended already: from here on its agent has the output in every case.
    let started = canonical::to_bytes(&SandboxReport::Started { not_enforced });
    wire::send(socket.as_fd(), &started, &workload.held()).step("report the start")?;
    let lease = supervise::SandboxLease { until: spec.lease_until_boottime_ms, ms_max: spec.lease_ms_max };
    let ending = supervise::Ending { release, exit: exit.into(), _metrics: metrics };
    supervise::run(workload, lease, &listener, logs, ending).step("supervise the worker")?;
    Ok(0)
}

fn host_name(spec: &SandboxSpec) -> &str {
    match &spec.profile {
        SandboxProfile::Engine(_) => &spec.name,
        SandboxProfile::Process(profile) => &profile.host_name,
    }
}

/// Makes the network of a process sandbox, and returns the device of its gang if it has one. An engine has no
/// network: it cannot make a socket.
fn open_network(profile: &SandboxProfile) -> StepResult<Option<OwnedFd>> {
    match profile {
        SandboxProfile::Engine(_) => Ok(None),
        SandboxProfile::Process(profile) => {
            network::bring_up_loopback()?;
            profile.network.as_ref().map(network::create).transpose()
        }
    }
}

/// Blocks SIGCHLD, which is read from a descriptor; an init needs no other signal.
fn block_signals() -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)
}

fn take_ids(identity: SandboxIdentity) -> nix::Result<()> {
    if let SandboxIdentity::OwnIds { .. } = identity {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    Ok(())
}

/// Labels the supplementary groups, which an unprivileged process cannot drop.
fn kept_groups(identity: SandboxIdentity) -> Vec<String> {
    match identity {
        SandboxIdentity::OwnIds { .. } => vec![],
        SandboxIdentity::SameUid => {
            vec!["user-ids: the worker is the agent's own user, and keeps its groups".into()]
        }
    }
}

fn wait_for_go(socket: &OwnedFd) -> io::Result<()> {
    let (bytes, _) = wire::receive(socket.as_fd(), SANDBOX_REPORT_BYTES_MAX)?;
    let SandboxGo::Go = canonical::from_bytes(&bytes, 64).map_err(io::Error::other)?;
    Ok(())
}

/// Tries the first steps of a sandbox, and reports by its exit status the isolation available to this user.
fn check(first: u32) -> i32 {
    let attempt = |identity| -> io::Result<()> {
        let (wait, hold) = io::pipe()?;
        // SAFETY: this process was executed to do this and has never started a thread.
        let Some(pid) = (unsafe { system::clone_process(NAMESPACES) })? else {
            drop(hold);
            let _ = io::Read::read(&mut &wait, &mut [0]);
            system::exit_now(0);
        };
        let mapped = map_ids(pid, identity);
        drop(hold);
        nix::sys::wait::waitpid(pid, None)?;
        mapped
    };
    if Uid::effective().is_root() && attempt(SandboxIdentity::OwnIds { first }).is_ok() {
        CHECK_FULL
    } else if attempt(SandboxIdentity::SameUid).is_ok() {
        CHECK_SAME_UID
    } else {
        0
    }
}
