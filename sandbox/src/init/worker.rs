//! Start of a worker or a rank, from a copy of the init to its program: descriptors, limits, no capabilities,
//! landlock, seccomp, exec. Each step drops privileges that no later step needs.

use super::{FailedStep, InStep, StepResult, filter, process_root, root};
use crate::ids::WORKER_ID;
use crate::profile::file_bytes_max;
use crate::{system, wire};
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};
use protocol::canonical;
use protocol::sandbox::{
    EngineProfile, SANDBOX_REPORT_BYTES_MAX, SandboxIdentity, SandboxProfile, SandboxReport, SandboxSpec,
};
use seccompiler::BpfProgram;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// First descriptor after standard input, output and error.
const FIRST_DESCRIPTOR: RawFd = 3;
/// Lowest descriptor number of temporary copies: above every descriptor that a worker is given.
const SPARE_DESCRIPTOR: RawFd = 64;
/// Requested landlock version; an older kernel enforces the part that it supports.
const LANDLOCK_ABI: ABI = ABI::V7;
/// Size limit of a crashed worker's core dump. With 0 the host's dump handler (`core_pattern` with a pipe)
/// would still receive all of it, prompts and weights. 1 forbids that too, and is too small for a file.
const CORE_BYTES_MAX: u64 = 1;
/// A worker that runs its program.
pub(super) struct Started {
    pub(super) pid: Pid,
    /// Reading end of its standard output and error.
    pub(super) output: OwnedFd,
    pub(super) not_enforced: Vec<String>,
}

/// Nice value of a worker without a quota, which yields to its init and its agent. It gets a third of their
/// share of a busy core, and all of an idle one.
const NICE_WITHOUT_QUOTA: i32 = 5;

/// Data prepared before the fork, while allocating and failing are still easy.
pub(super) struct Program {
    /// Paths at which the program may be, in the order of the search.
    pub(super) paths: Vec<CString>,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) filters: Vec<BpfProgram>,
    /// Step of its execution, for people.
    pub(super) step: String,
}

/// Descriptors of a program beside its standard input, which is `/dev/null`.
pub(super) struct Streams<'a> {
    /// Those from number 3 on.
    pub(super) passed: &'a [OwnedFd],
    pub(super) output: &'a OwnedFd,
    pub(super) error: &'a OwnedFd,
}

/// Starts the worker in the groups of these files and waits until its program runs.
pub(super) fn start(
    spec: &SandboxSpec,
    engine: &EngineProfile,
    passed: &[OwnedFd],
    groups: &[File],
) -> StepResult<Started> {
    let program = Program::of_engine(spec, engine)?;
    let (output, output_end) = io::pipe().step("create a pipe for output")?;
    let output_end = OwnedFd::from(output_end);
    let streams = Streams { passed, output: &output_end, error: &output_end };
    let (pid, not_enforced) = spawn(spec, &program, &streams, groups)?;
    Ok(Started { pid, output: output.into(), not_enforced })
}

/// Starts a program and waits until it runs. Returns its process id and the limits that are not enforced.
pub(super) fn spawn(
    spec: &SandboxSpec,
    program: &Program,
    streams: &Streams<'_>,
    groups: &[File],
) -> StepResult<(Pid, Vec<String>)> {
    let (status, status_end) = io::pipe().step("create a pipe for the start")?;
    // SAFETY: the init is a clone of a process that was executed to do this and has one thread.
    let pid = unsafe { system::clone_process(0) }.step("create the worker process")?;
    let Some(pid) = pid else {
        let status_end = OwnedFd::from(status_end);
        system::exit_now(become_worker(spec, program, streams, groups, &status_end))
    };
    drop(status_end);
    Ok((pid, read_status(status)?))
}

/// Reads the status pipe, which closes when the program is executed. By then it has held labels, and no
/// failure.
fn read_status(status: io::PipeReader) -> StepResult<Vec<String>> {
    let mut bytes = Vec::new();
    let limit = 4 * SANDBOX_REPORT_BYTES_MAX as u64;
    status.take(limit).read_to_end(&mut bytes).step("wait for the worker")?;
    let mut frames = wire::FrameBuffer::default();
    frames.push(&bytes);
    let mut labels = None;
    while let Some(frame) = frames.next(SANDBOX_REPORT_BYTES_MAX).step("read the worker's start")? {
        match canonical::from_bytes(&frame, SANDBOX_REPORT_BYTES_MAX) {
            Ok(SandboxReport::Started { not_enforced }) => labels = Some(not_enforced),
            Ok(SandboxReport::Failed { step, detail }) => return Err(FailedStep { step, detail }),
            Ok(SandboxReport::Created { .. }) => {
                return Err("an unexpected report").step("read the worker's start");
            }
            Err(error) => return Err(error).step("read the worker's start"),
        }
    }
    labels.ok_or("it ended before it began").step("start the worker")
}

impl Program {
    fn of_engine(spec: &SandboxSpec, engine: &EngineProfile) -> StepResult<Self> {
        let words = std::iter::once(root::WORKER_PATH.to_string()).chain(engine.arguments.clone());
        Ok(Self {
            paths: texts([root::WORKER_PATH.to_string()])?,
            arguments: texts(words)?,
            environment: variables(&engine.environment)?,
            filters: filter::for_worker(!spec.devices.is_empty()).step("prepare the filter")?,
            step:
                "execute the worker (its file must be readable and executable for every user of the machine)"
                    .into(),
        })
    }
}

/// Returns texts as the kernel takes them.
pub(super) fn texts(texts: impl IntoIterator<Item = String>) -> StepResult<Vec<CString>> {
    texts.into_iter().map(|text| CString::new(text).step("prepare arguments")).collect()
}

/// Returns an environment as the kernel takes it.
pub(super) fn variables(environment: &BTreeMap<String, String>) -> StepResult<Vec<CString>> {
    texts(environment.iter().map(|(name, value)| format!("{name}={value}")))
}

/// Becomes the worker. Returns only on failure, after reporting the reason, with the exit status.
fn become_worker(
    spec: &SandboxSpec,
    program: &Program,
    streams: &Streams<'_>,
    groups: &[File],
    status: &OwnedFd,
) -> i32 {
    let failed = |file: &mut File, error: FailedStep| {
        let FailedStep { step, detail } = error;
        let bytes = canonical::to_bytes(&SandboxReport::Failed { step, detail });
        let _ = file.write_all(&wire::frame(&bytes));
        1
    };
    let (mut status, groups) = match arrange_descriptors(streams, status, groups) {
        Ok(arranged) => arranged,
        Err(_) => return 1, // An empty status means that the worker ended before it began.
    };
    match restrict(spec).and_then(|labels| {
        // As late as possible: what it took to get here is not charged to the program's quota.
        groups.iter().try_for_each(|mut group| group.write_all(b"0")).step("enter the worker's groups")?;
        let bytes = canonical::to_bytes(&SandboxReport::Started { not_enforced: labels });
        status.write_all(&wire::frame(&bytes)).step("report the restrictions")?;
        execute(program)
    }) {
        Ok(never) => match never {},
        Err(error) => failed(&mut status, error),
    }
}

/// Sets up the descriptors: 0 = nothing, 1 and 2 = output and error, 3.. = those passed to the worker, then
/// the status pipe and the files of the worker's groups, which close on exec. Everything else is closed: the
/// init's socket, its timer, the host's root. Returns those that close.
fn arrange_descriptors(
    streams: &Streams<'_>,
    status: &OwnedFd,
    groups: &[File],
) -> io::Result<(File, Vec<File>)> {
    let spare = |fd: BorrowedFd<'_>| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(SPARE_DESCRIPTOR)).map(system::own);
    let passed = streams.passed.iter().map(|fd| spare(fd.as_fd())).collect::<nix::Result<Vec<_>>>()?;
    let (output, error) = (spare(streams.output.as_fd())?, spare(streams.error.as_fd())?);
    let closing = std::iter::once(status.as_fd()).chain(groups.iter().map(File::as_fd));
    let closing = closing.map(spare).collect::<nix::Result<Vec<_>>>()?;
    let null = File::open("/dev/null")?;
    system::duplicate_to(null.as_fd(), 0, 0)?;
    system::duplicate_to(output.as_fd(), 1, 0)?;
    system::duplicate_to(error.as_fd(), 2, 0)?;
    let flags = passed.iter().map(|copy| (copy, 0)).chain(closing.iter().map(|copy| (copy, libc::O_CLOEXEC)));
    let mut next = FIRST_DESCRIPTOR;
    for (copy, flags) in flags {
        debug_assert!(copy.as_raw_fd() > next, "no copy is overwritten");
        system::duplicate_to(copy.as_fd(), next, flags)?;
        next += 1;
    }
    let first = FIRST_DESCRIPTOR + passed.len() as RawFd;
    // All of these are above the last, and closed by number in one call.
    std::mem::forget((passed, output, error, closing, null));
    system::close_from(next)?;
    let mut arranged = (first..next).map(|number| File::from(system::own(number)));
    let status = arranged.next().ok_or_else(|| io::Error::other("no status pipe"))?;
    Ok((status, arranged.collect()))
}

fn restrict(spec: &SandboxSpec) -> StepResult<Vec<String>> {
    nix::unistd::setsid().step("start a session")?;
    set_limits(spec).step("set resource limits")?;
    if spec.cpu_by_nice {
        system::set_nice(NICE_WITHOUT_QUOTA).step("yield to the init")?;
    }
    system::drop_bounding_set().step("empty the bounding set")?;
    system::forget_root_rules().step("lock the security bits")?;
    if let SandboxIdentity::OwnIds { .. } = spec.identity {
        let (uid, gid) = (Uid::from_raw(WORKER_ID), Gid::from_raw(WORKER_ID));
        setresgid(gid, gid, gid).step("take the worker's group")?;
        setresuid(uid, uid, uid).step("take the worker's user")?;
    }
    drop_capabilities(&CapsHashSet::new()).step("drop capabilities")?;
    nix::sys::prctl::set_no_new_privs().step("forbid new privileges")?;
    let mut labels = restrict_files(spec).step("restrict files with landlock")?;
    if getrlimit(Resource::RLIMIT_CORE).step("read a resource limit")?.0 != CORE_BYTES_MAX {
        labels.push(
            "core-dumps: a program of the host may be given the memory of a worker that crashed".into(),
        );
    }
    if let SandboxProfile::Process(profile) = &spec.profile {
        nix::unistd::chdir(profile.working_directory.as_str()).step("enter the working directory")?;
    }
    system::restore_sigpipe().step("restore signals")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).step("unblock signals")?;
    Ok(labels)
}

fn execute(program: &Program) -> StepResult<std::convert::Infallible> {
    // The last filter is applied first: each must be allowed by those already in force.
    for filter in program.filters.iter().rev() {
        seccompiler::apply_filter(filter).step("filter system calls")?;
    }
    let mut failure = Errno::ENOENT;
    for path in &program.paths {
        let Err(error) = nix::unistd::execve(path, &program.arguments, &program.environment);
        // As shells do: a file that is there but may not be executed says more than one that is not there.
        if !matches!(error, Errno::ENOENT | Errno::ENOTDIR) {
            failure = error;
        }
    }
    Err(failure).step(&program.step)
}

/// Forbids core dumps in this process and its descendants. Must be called with the agent's own rights,
/// because root can raise a limit of 0. If this fails, the worker gets a label.
pub(super) fn forbid_core_dumps() {
    let _ = setrlimit(Resource::RLIMIT_CORE, CORE_BYTES_MAX, CORE_BYTES_MAX);
}

fn set_limits(spec: &SandboxSpec) -> nix::Result<()> {
    let same = |resource, value| setrlimit(resource, value, value);
    let file_bytes = match &spec.profile {
        SandboxProfile::Engine(_) => 0,
        SandboxProfile::Process(profile) => file_bytes_max(&profile.areas),
    };
    same(Resource::RLIMIT_FSIZE, file_bytes)?;
    same(Resource::RLIMIT_MEMLOCK, 0)?;
    same(Resource::RLIMIT_MSGQUEUE, 0)?;
    same(Resource::RLIMIT_NOFILE, u64::from(spec.limits.open_files_max))?;
    // Counted per user namespace since Linux 5.14: the sandbox's own processes, not the user's others.
    same(Resource::RLIMIT_NPROC, u64::from(spec.limits.processes_max))?;
    if spec.memory_by_rlimit {
        same(Resource::RLIMIT_DATA, spec.limits.memory_bytes)?;
    }
    Ok(())
}

/// Keeps these capabilities in the process and lets no program inherit any.
fn drop_capabilities(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)
}

/// Drops the init's privileges once its worker runs. It keeps only the right to signal a worker of another
/// id, in its own namespace.
pub(super) fn lock_down_init(identity: SandboxIdentity) -> StepResult<()> {
    let kept = match identity {
        SandboxIdentity::OwnIds { .. } => CapsHashSet::from([Capability::CAP_KILL]),
        SandboxIdentity::SameUid => CapsHashSet::new(),
    };
    system::drop_bounding_set().step("empty the init's bounding set")?;
    drop_capabilities(&kept).step("drop the init's capabilities")?;
    nix::sys::prctl::set_no_new_privs().step("forbid the init new privileges")
}

/// Restricts files to what the profile grants a second time, by a mechanism independent of mounts. An engine
/// is also denied network, abstract sockets and signals beyond the sandbox. Ranks use all three among
/// themselves; their namespaces end at the sandbox.
fn restrict_files(spec: &SandboxSpec) -> Result<Vec<String>, RulesetError> {
    let status = match &spec.profile {
        SandboxProfile::Engine(engine) => restrict_engine(spec, engine)?,
        SandboxProfile::Process(_) => restrict_ranks(spec)?,
    };
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => vec![],
        RulesetStatus::PartiallyEnforced => {
            vec!["landlock: this kernel knows only a part of it".into()]
        }
        RulesetStatus::NotEnforced => vec!["landlock: this kernel has none".into()],
    })
}

fn restrict_engine(spec: &SandboxSpec, engine: &EngineProfile) -> Result<RestrictionStatus, RulesetError> {
    let run = AccessFs::Execute | AccessFs::ReadFile;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let devices = spec.devices.iter().map(String::as_str).chain(["/dev/null"]);
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .add_rules(path_beneath_rules([root::WORKER_PATH], run))?
        .add_rules(path_beneath_rules(&engine.read_only, run | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/proc"], AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/dev/urandom"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(devices, device))?
        .restrict_self()
}

fn restrict_ranks(spec: &SandboxSpec) -> Result<RestrictionStatus, RulesetError> {
    let run = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(LANDLOCK_ABI) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let devices = spec.devices.iter().map(String::as_str).chain(process_root::DEVICES);
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .create()?
        .add_rules(path_beneath_rules(["/"], run))?
        .add_rules(path_beneath_rules(process_root::WRITABLE, write))?
        .add_rules(path_beneath_rules(["/proc"], run | AccessFs::WriteFile | AccessFs::Truncate))?
        .add_rules(path_beneath_rules(devices, device))?
        .restrict_self()
}
