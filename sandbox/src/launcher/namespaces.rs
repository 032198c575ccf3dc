//! Launcher that starts sandboxes and finds them again. Its own functions block, for tens of milliseconds at
//! most on a healthy machine; as a [`Launcher`] it runs them on the runtime's blocking threads.

use super::{IsolationReport, Launcher, Running, Start, StartProcess};
use crate::cgroup::{Cgroups, Group, give_way};
use crate::elf::libraries_of;
use crate::error::{During, SandboxError};
use crate::ids::{UserIdPair, free_pair};
use crate::memory_file::sealed_bytes;
use crate::output::tail;
use crate::record::{self, names};
use crate::running::{IdsInUse, Sandbox, blocking, lock, remove_leftovers, socket_path};
use crate::system::ProcessId;
use crate::{cgroup, init, profile, quota, system, wire};
use futures::FutureExt;
use futures::future::BoxFuture;
use host::files;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use protocol::canonical;
use protocol::manifest::Isolation;
use protocol::sandbox::{
    EngineProfile, SANDBOX_REPORT_BYTES_MAX, SANDBOX_SPEC_BYTES_MAX, SandboxGo, SandboxIdentity,
    SandboxLimits, SandboxProfile, SandboxRecord, SandboxReport, SandboxSpec,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Timeout of a start in seconds. It takes tens of milliseconds; on a machine that swaps, seconds.
const START_TIMEOUT_S: i64 = 20;
/// Bytes of a specification beside its profile, amply: groups, devices, limits.
const SPEC_REST_BYTES: usize = 16 * 1024;
/// Bytes of a failed worker's output that go into the error.
const FAILURE_LOG_BYTES: u64 = 2048;

/// Configuration of a launcher.
#[derive(Debug, Clone)]
pub struct LauncherConfig {
    /// Path of the agent's own executable, which has the command `sandbox-init`.
    pub program: PathBuf,
    /// Arguments with which it runs [`init::main`].
    pub arguments: Vec<String>,
    /// Directory of the sandboxes' records, sockets and logs; closed to other users.
    pub state_dir: PathBuf,
    /// The agent's subtree of control groups, below the group it runs in, for example `quorate/node-1`.
    pub cgroup_parent: String,
    /// First user id available to sandboxes, each of which takes two; used by root only. The range must not
    /// contain ids of an account or of another agent.
    pub ids_first: u32,
    /// Number of id pairs in the range.
    pub id_pairs: u32,
    /// Longest lease that a renewal may grant, in milliseconds.
    pub lease_ms_max: u64,
}

/// Launcher of sandboxes for one agent.
#[derive(Debug)]
pub struct SandboxLauncher {
    config: LauncherConfig,
    cgroups: Cgroups,
    isolation: IsolationReport,
    ids: IdsInUse,
    libraries: Mutex<BTreeMap<(PathBuf, SystemTime), Vec<PathBuf>>>,
}

/// A start under one of the two profiles.
#[derive(Clone, Copy)]
enum Launch<'a> {
    Engine(&'a Start),
    Process(&'a StartProcess),
}

impl Launch<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Engine(start) => &start.name,
            Self::Process(start) => &start.name,
        }
    }

    fn limits(&self) -> SandboxLimits {
        match self {
            Self::Engine(start) => start.limits,
            Self::Process(start) => start.limits,
        }
    }
}

/// The two ends of a worker's metrics pipe that its sandbox holds.
struct Metrics {
    /// The init's end: it prevents a broken pipe at the worker while no agent is alive.
    kept: File,
    /// The worker's end: write-only, so the worker cannot take back data that its agent has not read yet.
    written: File,
}

impl Metrics {
    fn create(path: &Path, mode: u32) -> io::Result<Self> {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(mode))?;
        let open = |read| File::options().read(read).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        Ok(Self { kept: open(true)?, written: open(false)? })
    }
}

/// Descriptors and paths of a sandbox that is being started.
struct SandboxDirectory {
    directory: PathBuf,
    init_listener: UnixListener,
    worker_listener: UnixListener,
    metrics: Metrics,
    exit: File,
    logs: [File; 2],
}

impl SandboxLauncher {
    /// Creates a launcher and probes the isolation that this machine and user can enforce.
    ///
    /// # Errors
    /// If the state directory cannot be created, or the program cannot be executed.
    pub fn new(config: LauncherConfig) -> Result<Self, SandboxError> {
        files::private_directory(&config.state_dir)
            .during(|| format!("create {}", config.state_dir.display()))?;
        let cgroups = Cgroups::detect(&config.cgroup_parent).during(|| "find cgroups".into())?;
        let level = check_namespaces(&config)?;
        let mut not_enforced = probe_cgroups(&cgroups);
        if level == Isolation::SameUid {
            not_enforced.push("user-ids: workers are the agent's own user".into());
        }
        let isolation = IsolationReport { level, not_enforced };
        let (ids, libraries) = (IdsInUse::default(), Mutex::default());
        let launcher = Self { config, cgroups, isolation, ids, libraries };
        for (_, record) in launcher.directories()? {
            record.iter().for_each(|record| launcher.hold_ids(record));
        }
        Ok(launcher)
    }

    fn hold_ids(&self, record: &SandboxRecord) {
        lock(&self.ids).extend(UserIdPair::of(record.identity));
    }

    /// Returns the isolation that this machine and user can enforce.
    #[must_use]
    pub fn isolation(&self) -> &IsolationReport {
        &self.isolation
    }

    /// Starts a worker in a new sandbox. When this returns, its program runs and its record is durable.
    ///
    /// # Errors
    /// See [`SandboxError`]. A failed start leaves nothing behind.
    pub fn start(&self, start: &Start) -> Result<Sandbox, SandboxError> {
        self.launch(Launch::Engine(start))
    }

    /// Starts the ranks of a process sandbox. When this returns, the program of each rank runs and the
    /// sandbox's record is durable. [`Sandbox::descriptors`] has their outputs and the device of their gang.
    ///
    /// # Errors
    /// See [`SandboxError`]. A failed start leaves nothing behind.
    pub fn start_process(&self, start: &StartProcess) -> Result<Sandbox, SandboxError> {
        profile::check(&start.profile)?;
        let bytes = canonical::to_bytes(&start.profile).len();
        let bytes_max = SANDBOX_SPEC_BYTES_MAX - SPEC_REST_BYTES;
        if bytes > bytes_max {
            let detail = format!("it has {bytes} bytes; at most {bytes_max}");
            return Err(SandboxError::Profile { detail });
        }
        if start.profile.network.is_some() {
            let path = init::TUN_PATH;
            let opened = File::options().read(true).write(true).open(path);
            opened.map_err(|source| SandboxError::NoGangDevice { path, source })?;
        }
        self.launch(Launch::Process(start))
    }

    fn launch(&self, launch: Launch<'_>) -> Result<Sandbox, SandboxError> {
        if self.isolation.level == Isolation::None {
            return Err(SandboxError::NoIsolation);
        }
        let name = launch.name();
        check_name(name)?;
        let directory = self.config.state_dir.join(name);
        self.clear_old(name, &directory)?;
        let identity = self.take_ids()?;
        let mut group = self.cgroups.create(name, &launch.limits());
        // A client waits for the answer of an engine; no client waits for a rank.
        if matches!(launch, Launch::Process(_)) {
            give_way(&group.directories);
        }
        let started = prepare_areas(launch, identity).and_then(|labels| {
            group.not_enforced.extend(labels);
            self.start_in(launch, identity, &group, &directory)
        });
        if started.is_err() {
            let record = SandboxRecord {
                name: name.to_string(),
                boot_id: String::new(),
                pid: 0,
                start_ticks: 0,
                cgroups: group.directories.iter().map(|path| path.display().to_string()).collect(),
                identity,
                not_enforced: vec![],
            };
            remove_leftovers(&directory, Some(&record), &self.ids)?;
        }
        started
    }

    /// Returns all live sandboxes, including those of other agents: an agent calls this first after its own
    /// restart.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn list_running(&self) -> Result<Vec<Sandbox>, SandboxError> {
        let mut running = Vec::new();
        for (directory, record) in self.directories()? {
            let Some(record) = record else { continue };
            // It may belong to an agent that was still starting sandboxes when this launcher was created.
            self.hold_ids(&record);
            if let Some(pidfd) = record::open_process(&record) {
                let labels = record.not_enforced.clone();
                running.push(Sandbox::new(record, directory, pidfd, Arc::clone(&self.ids), labels));
            }
        }
        Ok(running)
    }

    /// Removes the directories and cgroups of sandboxes that have ended, and returns their number. Must not
    /// be called during a start.
    ///
    /// # Errors
    /// If the state directory cannot be read, or something cannot be removed.
    pub fn remove_stale(&self) -> Result<usize, SandboxError> {
        let mut removed = 0;
        for (directory, record) in self.directories()? {
            if record.as_ref().is_none_or(|record| record::open_process(record).is_none()) {
                remove_leftovers(&directory, record.as_ref(), &self.ids)?;
                removed += 1;
            }
        }
        self.cgroups.remove_stale();
        Ok(removed)
    }

    fn directories(&self) -> Result<Vec<(PathBuf, Option<SandboxRecord>)>, SandboxError> {
        let read = || -> io::Result<Vec<_>> {
            let mut all = Vec::new();
            for entry in fs::read_dir(&self.config.state_dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    all.push((entry.path(), record::read(&entry.path())));
                }
            }
            all.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(all)
        };
        read().during(|| format!("read {}", self.config.state_dir.display()))
    }

    fn clear_old(&self, name: &str, directory: &Path) -> Result<(), SandboxError> {
        if !directory.exists() {
            return Ok(());
        }
        let record = record::read(directory);
        if record.as_ref().is_some_and(|record| record::open_process(record).is_some()) {
            return Err(SandboxError::Exists { name: name.to_string() });
        }
        remove_leftovers(directory, record.as_ref(), &self.ids)
    }

    fn take_ids(&self) -> Result<SandboxIdentity, SandboxError> {
        if self.isolation.level != Isolation::Full {
            return Ok(SandboxIdentity::SameUid);
        }
        let mut in_use = lock(&self.ids);
        let count = self.config.id_pairs;
        let pair = free_pair(self.config.ids_first, count, &in_use);
        let pair = pair.ok_or(SandboxError::IdsExhausted { count })?;
        in_use.insert(pair);
        Ok(pair.identity())
    }

    fn start_in(
        &self,
        launch: Launch<'_>,
        identity: SandboxIdentity,
        group: &Group,
        directory: &Path,
    ) -> Result<Sandbox, SandboxError> {
        let failed = |step: &str, detail: String| SandboxError::Start {
            name: launch.name().to_string(),
            step: step.to_string(),
            detail,
        };
        let prepared =
            SandboxDirectory::create(directory).during(|| format!("create {}", directory.display()))?;
        let spec = self.specify(launch, identity, group)?;
        let (socket, mut builder) = self
            .spawn_builder(&prepared)
            .map_err(|error| failed("execute the agent's program", error.to_string()))?;
        let mut pidfd = None;
        let mut talk = || -> Result<StartedInit, (String, String)> {
            let text = |step: &'static str| move |error: io::Error| (step.into(), error.to_string());
            send_spec(&socket, &spec, launch, &prepared).map_err(text("send the specification"))?;
            let (SandboxReport::Created { pid }, _) = next_report(&socket)? else {
                return Err(("create the init".into(), "it answered out of turn".into()));
            };
            let pid = ProcessId(pid);
            // The init is this process's child and is waiting, so its process id is not reused until it is
            // reaped.
            pidfd = Some(system::pidfd_open(pid).map_err(text("open the init"))?);
            let composed = record::compose(launch.name(), pid, identity, group);
            let record = composed.map_err(|error| undescribed(&socket, &error))?;
            record::write(directory, &record).map_err(|error| {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                (error.to_string(), source.unwrap_or_default())
            })?;
            match wire::send(socket.as_fd(), &canonical::to_bytes(&SandboxGo::Go), &[]) {
                // The init has failed already, and its report waits to be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                sent => sent.map_err(text("release the init"))?,
            }
            match next_report(&socket)? {
                (SandboxReport::Started { not_enforced }, held) => Ok((record, not_enforced, held)),
                _ => Err(("start the worker".into(), "it answered out of turn".into())),
            }
        };
        let talked = talk();
        if talked.is_err() {
            let _ = builder.kill();
        }
        let _ = builder.wait();
        match (talked, pidfd) {
            (Ok((mut record, more, held)), Some(pidfd)) => {
                record.not_enforced.extend(more);
                let labels = record.not_enforced.clone();
                let ids = Arc::clone(&self.ids);
                Ok(Sandbox::new(record, directory.to_path_buf(), pidfd, ids, labels).holding(held))
            }
            (Ok(_), None) => Err(failed("open the init", "it vanished".into())),
            (Err((step, mut detail)), pidfd) => {
                if let Some(pidfd) = pidfd {
                    end_failed(&pidfd, group);
                }
                let log = tail(directory, FAILURE_LOG_BYTES).unwrap_or_default();
                if !log.is_empty() {
                    detail = format!("{detail}; it printed: {}", String::from_utf8_lossy(&log).trim());
                }
                Err(failed(&step, detail))
            }
        }
    }

    fn specify(
        &self,
        launch: Launch<'_>,
        identity: SandboxIdentity,
        group: &Group,
    ) -> Result<SandboxSpec, SandboxError> {
        let (profile, devices, lease_until) = match launch {
            Launch::Engine(start) => (self.engine_profile(start)?, &start.devices, start.lease_until),
            Launch::Process(start) => {
                (SandboxProfile::Process(Box::new(start.profile.clone())), &start.devices, start.lease_until)
            }
        };
        Ok(SandboxSpec {
            name: launch.name().to_string(),
            profile,
            identity,
            groups: group.files(),
            devices: devices.iter().map(|path| path.display().to_string()).collect(),
            limits: launch.limits(),
            memory_by_rlimit: !group.memory_enforced,
            cpu_by_nice: !group.cpu_enforced,
            lease_until_boottime_ms: lease_until,
            lease_ms_max: self.config.lease_ms_max,
        })
    }

    fn engine_profile(&self, start: &Start) -> Result<SandboxProfile, SandboxError> {
        let text = |path: &Path| path.display().to_string();
        let binary = fs::canonicalize(&start.binary)
            .during(|| format!("find the worker {}", start.binary.display()))?;
        let mut read_only: Vec<String> = self.libraries(&binary)?.iter().map(|p| text(p)).collect();
        read_only.extend(start.read_only.iter().map(|path| text(path)));
        Ok(SandboxProfile::Engine(EngineProfile {
            binary: text(&binary),
            arguments: start.arguments.clone(),
            environment: start.environment.clone(),
            read_only,
        }))
    }

    /// Returns the libraries of an executable, cached by its path and modification time: reading them takes
    /// longer than a start.
    fn libraries(&self, binary: &Path) -> Result<Vec<PathBuf>, SandboxError> {
        let find = || -> io::Result<Vec<PathBuf>> {
            let key = (binary.to_path_buf(), fs::metadata(binary)?.modified()?);
            let known = lock(&self.libraries).get(&key).cloned();
            match known {
                Some(libraries) => Ok(libraries),
                None => {
                    let libraries = libraries_of(binary)?;
                    lock(&self.libraries).insert(key, libraries.clone());
                    Ok(libraries)
                }
            }
        };
        find().during(|| format!("find the libraries of {}", binary.display()))
    }

    fn spawn_builder(&self, prepared: &SandboxDirectory) -> io::Result<(OwnedFd, Child)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let timeout = TimeVal::seconds(START_TIMEOUT_S);
        setsockopt(&ours, sockopt::ReceiveTimeout, &timeout)?;
        setsockopt(&theirs, sockopt::ReceiveTimeout, &timeout)?;
        let child = Command::new(&self.config.program)
            .args(&self.config.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(prepared.logs[0].try_clone()?))
            .spawn()?;
        Ok((ours, child))
    }
}

impl Launcher for SandboxLauncher {
    fn isolation(&self) -> &IsolationReport {
        Self::isolation(self)
    }

    fn start(self: Arc<Self>, start: Start) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>> {
        blocking(move || Ok(Arc::new(Self::start(&self, &start)?) as Arc<dyn Running>)).boxed()
    }

    fn start_process(
        self: Arc<Self>,
        start: StartProcess,
    ) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>> {
        blocking(move || Ok(Arc::new(Self::start_process(&self, &start)?) as Arc<dyn Running>)).boxed()
    }

    fn list_running(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<Arc<dyn Running>>, SandboxError>> {
        let shared = |sandbox| Arc::new(sandbox) as Arc<dyn Running>;
        blocking(move || Ok(Self::list_running(&self)?.into_iter().map(shared).collect())).boxed()
    }

    fn remove_stale(self: Arc<Self>) -> BoxFuture<'static, Result<usize, SandboxError>> {
        blocking(move || Self::remove_stale(&self)).boxed()
    }
}

impl SandboxDirectory {
    fn create(directory: &Path) -> io::Result<Self> {
        files::private_directory(directory)?;
        let handle = File::open(directory)?;
        let listen = |name| UnixListener::bind(socket_path(&handle, name));
        let mode = 0o600;
        let log = |name| File::options().create(true).append(true).mode(mode).open(directory.join(name));
        Ok(Self {
            directory: directory.to_path_buf(),
            init_listener: listen(names::INIT_SOCKET)?,
            worker_listener: listen(names::WORKER_SOCKET)?,
            metrics: Metrics::create(&directory.join(names::METRICS), mode)?,
            exit: File::options()
                .create_new(true)
                .write(true)
                .mode(mode)
                .open(directory.join(names::EXIT))?,
            logs: [log(names::LOGS[0])?, log(names::LOGS[1])?],
        })
    }
}

/// Gives the directories of a process sandbox to its ranks, and bounds them. Returns a label for each that
/// cannot be bounded.
fn prepare_areas(launch: Launch<'_>, identity: SandboxIdentity) -> Result<Vec<String>, SandboxError> {
    let Launch::Process(start) = launch else { return Ok(vec![]) };
    let mut labels = Vec::new();
    for (index, (path, area)) in (0..).zip(profile::disk_areas(&start.profile.areas)) {
        let Some(directory) = area.directory.as_ref().map(Path::new) else { continue };
        let give = || -> io::Result<()> {
            if let Some(pair) = UserIdPair::of(identity) {
                give_all(directory, pair.worker())?;
            }
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        };
        give().during(|| format!("give {} to the ranks", directory.display()))?;
        let bounded = match quota::project_of(identity, index) {
            Some(project) => quota::bound(directory, project, area.bytes_max),
            None => Err(io::Error::other("an ordinary user cannot set a quota")),
        };
        if let Err(error) = bounded {
            labels.push(format!(
                "storage: {path} is bounded file by file, not in total; its file system has no project quota \
                 for it ({error})"
            ));
        }
    }
    Ok(labels)
}

/// Gives a directory with everything in it to a user, so that ranks may replace what was placed there. No
/// link is followed.
fn give_all(directory: &Path, user: u32) -> io::Result<()> {
    lchown(directory, Some(user), Some(user))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_all(&entry.path(), user)?;
        } else {
            lchown(entry.path(), Some(user), Some(user))?;
        }
    }
    Ok(())
}

/// The order is that of `init::receive_spec`, then of the descriptor numbers in `protocol::worker`. Ranks get
/// no descriptor of the host.
fn send_spec(
    socket: &OwnedFd,
    spec: &SandboxSpec,
    launch: Launch<'_>,
    prepared: &SandboxDirectory,
) -> io::Result<()> {
    let spec = sealed_bytes("sandbox-spec", &canonical::to_bytes(spec))?;
    let manifest = match launch {
        Launch::Engine(start) => Some(sealed_bytes("worker-manifest", &start.manifest)?),
        Launch::Process(_) => None,
    };
    let mut descriptors = vec![
        spec.as_fd(),
        prepared.init_listener.as_fd(),
        prepared.exit.as_fd(),
        prepared.logs[0].as_fd(),
        prepared.logs[1].as_fd(),
        prepared.metrics.kept.as_fd(),
    ];
    if let (Launch::Engine(start), Some(manifest)) = (launch, &manifest) {
        descriptors.extend([
            prepared.worker_listener.as_fd(),
            start.weights.as_fd(),
            start.progress.as_fd(),
            prepared.metrics.written.as_fd(),
            manifest.as_fd(),
        ]);
    }
    debug_assert!(prepared.directory.is_dir());
    wire::send(socket.as_fd(), b"spec", &descriptors)
}

/// Record of a sandbox that has started, the labels of what is not enforced, and the descriptors to hold.
type StartedInit = (SandboxRecord, Vec<String>, Vec<OwnedFd>);

/// Receives the next report and the descriptors that come with it; a reported failure becomes an error.
fn next_report(socket: &OwnedFd) -> Result<(SandboxReport, Vec<OwnedFd>), (String, String)> {
    let receive = || -> io::Result<(SandboxReport, Vec<OwnedFd>)> {
        let (bytes, descriptors) = wire::receive(socket.as_fd(), SANDBOX_REPORT_BYTES_MAX)?;
        let report = canonical::from_bytes(&bytes, SANDBOX_REPORT_BYTES_MAX).map_err(io::Error::other)?;
        Ok((report, descriptors))
    };
    // A peer that ended with unread bytes resets the connection once; its last report is read after that.
    let received = match receive() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(),
        received => received,
    };
    match received {
        Ok((SandboxReport::Failed { step, detail }, _)) => Err((step, detail)),
        Ok(report) => Ok(report),
        Err(error) => Err(("wait for the sandbox's init".into(), error.to_string())),
    }
}

/// Returns the step and the detail of a start whose init could not be described: the init's own, from the
/// report that waits, if it has ended already.
fn undescribed(socket: &OwnedFd, error: &io::Error) -> (String, String) {
    let has_ended = error.raw_os_error() == Some(libc::ESRCH);
    let own = if has_ended { next_report(socket).err() } else { None };
    own.unwrap_or_else(|| ("describe the init".into(), error.to_string()))
}

/// Kills and reaps an init whose start failed, so that its cgroups can be removed.
fn end_failed(pidfd: &OwnedFd, group: &Group) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    cgroup::release(&group.directories);
    let _ = system::pidfd_kill(pidfd.as_fd());
    let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
}

fn check_name(name: &str) -> Result<(), SandboxError> {
    match name.parse::<protocol::ServiceName>() {
        Ok(_) => Ok(()),
        Err(_) => Err(SandboxError::Name { name: name.escape_debug().to_string() }),
    }
}

/// Probes namespaces in a separate process, since the attempt changes the process that makes it.
fn check_namespaces(config: &LauncherConfig) -> Result<Isolation, SandboxError> {
    let status = Command::new(&config.program)
        .args(&config.arguments)
        .args([init::CHECK_ARGUMENT, &config.ids_first.to_string()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .during(|| format!("execute {}", config.program.display()))?;
    Ok(match status.code() {
        Some(init::CHECK_FULL) => Isolation::Full,
        Some(init::CHECK_SAME_UID) => Isolation::SameUid,
        _ => Isolation::None,
    })
}

/// Creates an empty group, writes limits, and removes it: any failure here also affects workers.
fn probe_cgroups(cgroups: &Cgroups) -> Vec<String> {
    let limits =
        SandboxLimits { cpu_millicores: 1000, memory_bytes: 1 << 30, processes_max: 64, open_files_max: 64 };
    let group = cgroups.create(&format!("probe-{}", std::process::id()), &limits);
    let _ = cgroup::remove(&group.directories);
    group.not_enforced
}
