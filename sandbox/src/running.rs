//! Handle of a running sandbox, started by this agent or by its predecessor. It renews the lease, connects to
//! the worker, reports the end, and removes the leftovers.

use super::cgroup::{self, CgroupUsage};
use super::error::{During, SandboxError};
use super::ids::UserIdPair;
use super::metrics::MetricsReader;
use super::output::{self, OutputPosition};
use super::record::{self, names};
use super::system;
use super::wire::{self, FrameBuffer};
use crate::launcher::Running;
use futures::FutureExt;
use futures::future::BoxFuture;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use protocol::BootTime;
use protocol::canonical;
use protocol::sandbox::{SandboxExit, SandboxRecord};
use protocol::worker::{InitReply, InitRequest};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Timeout of a request to an init. An init answers immediately or not at all: it does nothing else.
const INIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer of an init.
const REPLY_BYTES_MAX: usize = 1024;
/// Longest wait for the kernel to end a killed sandbox, in milliseconds.
const KILL_WAIT_MS: u16 = 10_000;

/// Pairs of user ids that are in use.
pub(crate) type IdsInUse = Arc<Mutex<BTreeSet<UserIdPair>>>;

/// A sandbox that was alive when this value was created. Dropping it ends nothing; only the lease does.
#[derive(Debug)]
pub struct Sandbox {
    record: SandboxRecord,
    directory: PathBuf,
    pidfd: OwnedFd,
    groups: Vec<PathBuf>,
    init: Mutex<Option<UnixStream>>,
    ids: IdsInUse,
    not_enforced: Vec<String>,
    /// Descriptors that came with the report of its start, until they are taken.
    handed: Mutex<Vec<OwnedFd>>,
}

/// End of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Reason recorded by its init; none if the init itself was killed.
    pub exit: Option<SandboxExit>,
    /// Whether the kernel killed one of its processes for lack of memory.
    pub out_of_memory: bool,
}

/// Pipes of one rank's output. They do not block.
#[derive(Debug)]
pub struct RankOutput {
    /// Reading end of its standard output.
    pub output: OwnedFd,
    /// Reading end of its standard error.
    pub error: OwnedFd,
}

/// Descriptors that the init of a process sandbox holds for its agent.
#[derive(Debug)]
pub struct ProcessDescriptors {
    /// Outputs of the ranks, by their index in the sandbox. A rank whose output is not read has to wait.
    pub ranks: Vec<RankOutput>,
    /// TUN device of its gang, if it has one: each read is a packet that a rank sent, each write one that
    /// they get. It does not block.
    pub gang_device: Option<OwnedFd>,
}

impl ProcessDescriptors {
    fn of(descriptors: Vec<OwnedFd>) -> Self {
        let mut descriptors = descriptors.into_iter();
        let mut ranks = Vec::new();
        loop {
            match (descriptors.next(), descriptors.next()) {
                (Some(output), Some(error)) => ranks.push(RankOutput { output, error }),
                (gang_device, _) => return Self { ranks, gang_device },
            }
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exit {
            Some(SandboxExit::Exited { status }) => write!(f, "the worker exited with status {status}")?,
            Some(SandboxExit::Signaled { signal }) => write!(f, "signal {signal} ended the worker")?,
            Some(SandboxExit::RankExited { rank, status }) => {
                write!(f, "local rank {rank} exited with status {status}")?;
            }
            Some(SandboxExit::RankSignaled { rank, signal }) => {
                write!(f, "signal {signal} ended local rank {rank}")?;
            }
            Some(SandboxExit::LeaseLapsed) => write!(f, "its lease lapsed")?,
            Some(SandboxExit::Stopped) => write!(f, "it was stopped")?,
            None => write!(f, "its init was killed")?,
        }
        if self.out_of_memory { write!(f, ", after it reached its memory limit") } else { Ok(()) }
    }
}

impl Sandbox {
    pub(crate) fn new(
        record: SandboxRecord,
        directory: PathBuf,
        pidfd: OwnedFd,
        ids: IdsInUse,
        not_enforced: Vec<String>,
    ) -> Self {
        let groups = record.cgroups.iter().map(PathBuf::from).collect();
        let (init, handed) = (Mutex::new(None), Mutex::default());
        Self { record, directory, pidfd, groups, init, ids, not_enforced, handed }
    }

    /// Adds the descriptors that came with the report of its start.
    pub(crate) fn holding(self, descriptors: Vec<OwnedFd>) -> Self {
        Self { handed: Mutex::new(descriptors), ..self }
    }

    /// Returns its name on this node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Returns the process id of its init, for people.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Returns the limits that are not enforced on it, each beginning with a label.
    #[must_use]
    pub fn not_enforced(&self) -> &[String] {
        &self.not_enforced
    }

    /// Extends its lease to this time of the boot clock ([`host::boot_time`]). Blocks for a moment.
    ///
    /// # Errors
    /// If its init does not answer: it has ended, or is about to.
    pub fn renew(&self, until: BootTime) -> Result<InitReply, SandboxError> {
        self.ask(&InitRequest::Renew { until_boottime_ms: until })
    }

    /// Queries the status of its init. Blocks for a moment.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn status(&self) -> Result<InitReply, SandboxError> {
        self.ask(&InitRequest::Status)
    }

    /// Asks the worker to end (SIGTERM) and ends the sandbox after the grace period. Blocks for a moment.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn stop(&self, grace_ms: u64) -> Result<InitReply, SandboxError> {
        self.ask(&InitRequest::Stop { grace_ms })
    }

    /// Returns copies of the descriptors that the init of a process sandbox holds; none of an engine's. After
    /// a start the first call always succeeds, even if every rank has ended: their output is in the pipes. A
    /// restarted agent asks the init. Blocks for a moment.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn descriptors(&self) -> Result<ProcessDescriptors, SandboxError> {
        let handed = std::mem::take(&mut *lock(&self.handed));
        if !handed.is_empty() {
            return Ok(ProcessDescriptors::of(handed));
        }
        let request = || -> io::Result<Vec<OwnedFd>> {
            let mut stream = connect_init(&self.directory)?;
            stream.write_all(&wire::frame(&canonical::to_bytes(&InitRequest::Descriptors)))?;
            let mut frames = FrameBuffer::default();
            let mut received = Vec::new();
            loop {
                if let Some(frame) = frames.next(REPLY_BYTES_MAX)? {
                    let InitReply { .. } =
                        canonical::from_bytes(&frame, REPLY_BYTES_MAX).map_err(io::Error::other)?;
                    return Ok(received);
                }
                let (bytes, descriptors) = wire::receive(stream.as_fd(), REPLY_BYTES_MAX)?;
                frames.push(&bytes);
                received.extend(descriptors);
            }
        };
        let failed = |error: io::Error| SandboxError::Init {
            name: self.record.name.clone(),
            detail: error.to_string(),
        };
        request().map(ProcessDescriptors::of).map_err(failed)
    }

    /// Kills all of its processes now, without warning.
    ///
    /// # Errors
    /// Errors of the system; a sandbox that has already ended is not an error.
    pub fn kill(&self) -> io::Result<()> {
        // An init is gone only when its whole namespace is, and threads without quota would take long to
        // exit.
        cgroup::release(&self.groups);
        match system::pidfd_kill(self.pidfd.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Opens a connection to the worker's socket.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn connect_worker(&self) -> io::Result<UnixStream> {
        connect(&self.directory, names::WORKER_SOCKET)
    }

    /// Opens the worker's metrics pipe. Needs a tokio runtime.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn metrics(&self) -> io::Result<MetricsReader> {
        MetricsReader::open(&self.directory.join(names::METRICS))
    }

    /// Returns its resource usage so far.
    #[must_use]
    pub fn usage(&self) -> CgroupUsage {
        cgroup::usage(&self.groups)
    }

    /// Returns its end; none while it is alive.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.wait_ms(0).then(|| {
            // It is this agent's child unless an earlier agent started it; then there is nothing to reap.
            let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
            Ended {
                exit: record::read_exit(&self.directory),
                out_of_memory: self.usage().out_of_memory_kills > 0,
            }
        })
    }

    /// Waits until it has ended. Safe to cancel. Needs a tokio runtime.
    ///
    /// # Errors
    /// Errors of the system.
    pub async fn wait(&self) -> io::Result<Ended> {
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: an `OwnedFd` keeps naming the same open file until it is dropped, and nothing closes it
        // before the registration is.
        let waiting =
            unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)?;
        loop {
            let mut ready = waiting.readable().await?;
            if let Some(ended) = self.ended() {
                return Ok(ended);
            }
            ready.clear_ready();
        }
    }

    /// Ends it if it is alive, and removes its cgroups and files. Blocks until it is gone. May be called
    /// again after an error.
    ///
    /// # Errors
    /// If the kernel does not end it, or something of it cannot be removed.
    pub fn remove(&self) -> Result<Option<Ended>, SandboxError> {
        self.kill().during(|| format!("kill sandbox `{}`", self.record.name))?;
        if !self.wait_ms(KILL_WAIT_MS) {
            let detail = "the kernel has not ended it in time".to_string();
            return Err(SandboxError::Init { name: self.record.name.clone(), detail });
        }
        let ended = self.ended();
        remove_leftovers(&self.directory, Some(&self.record), &self.ids)?;
        Ok(ended)
    }

    fn wait_ms(&self, timeout_ms: u16) -> bool {
        let mut waits = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let ready = system::uninterrupted(|| poll(&mut waits, PollTimeout::from(timeout_ms)));
        ready.is_ok_and(|ready| ready > 0)
    }

    fn ask(&self, request: &InitRequest) -> Result<InitReply, SandboxError> {
        let mut connection = lock(&self.init);
        let mut attempt = || -> io::Result<InitReply> {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => connect_init(&self.directory)?,
            };
            stream.write_all(&wire::frame(&canonical::to_bytes(request)))?;
            let reply = read_reply(&mut stream)?;
            *connection = Some(stream);
            Ok(reply)
        };
        // A kept connection may have been dropped in favour of another agent's: retry once with a new one.
        attempt()
            .or_else(|_| attempt())
            .map_err(|error| SandboxError::Init { name: self.record.name.clone(), detail: error.to_string() })
    }
}

impl Running for Sandbox {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn not_enforced(&self) -> &[String] {
        Self::not_enforced(self)
    }

    fn renew(self: Arc<Self>, until: BootTime) -> BoxFuture<'static, Result<InitReply, SandboxError>> {
        blocking(move || Self::renew(&self, until)).boxed()
    }

    fn stop(self: Arc<Self>, grace_ms: u64) -> BoxFuture<'static, Result<InitReply, SandboxError>> {
        blocking(move || Self::stop(&self, grace_ms)).boxed()
    }

    fn wait(self: Arc<Self>) -> BoxFuture<'static, io::Result<Ended>> {
        async move { Self::wait(&self).await }.boxed()
    }

    fn remove(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Ended>, SandboxError>> {
        blocking(move || Self::remove(&self)).boxed()
    }

    fn descriptors(self: Arc<Self>) -> BoxFuture<'static, Result<ProcessDescriptors, SandboxError>> {
        blocking(move || Self::descriptors(&self)).boxed()
    }

    fn usage(&self) -> CgroupUsage {
        Self::usage(self)
    }

    fn connect_worker(&self) -> io::Result<tokio::net::UnixStream> {
        let stream = Self::connect_worker(self)?;
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    }

    fn metrics(&self) -> io::Result<MetricsReader> {
        Self::metrics(self)
    }

    fn output(&self, position: &mut OutputPosition) -> Vec<u8> {
        output::since(&self.directory, position)
    }

    fn output_end(&self) -> OutputPosition {
        output::end(&self.directory)
    }

    fn output_tail(&self, bytes_max: u64) -> Vec<u8> {
        output::tail(&self.directory, bytes_max).unwrap_or_default()
    }

    fn mark_complete(&self) -> io::Result<()> {
        fs::write(self.directory.join(names::COMPLETE), b"")
    }

    fn is_complete(&self) -> bool {
        self.directory.join(names::COMPLETE).exists()
    }
}

/// Removes the leftovers of a dead sandbox: cgroups, directory, and the reservation of its ids.
pub(crate) fn remove_leftovers(
    directory: &Path,
    record: Option<&SandboxRecord>,
    ids: &IdsInUse,
) -> Result<(), SandboxError> {
    if let Some(record) = record {
        let groups: Vec<PathBuf> = record.cgroups.iter().map(PathBuf::from).collect();
        cgroup::remove(&groups).during(|| format!("remove the cgroups of `{}`", record.name))?;
        if let Some(pair) = UserIdPair::of(record.identity) {
            lock(ids).remove(&pair);
        }
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).during(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Runs blocking work on a thread meant for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and with it the task that waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A poisoned lock is still usable: every value behind these locks is consistent at any moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a socket's path through an open directory: state directories may exceed the limit on a socket
/// address, 107 bytes.
pub(crate) fn socket_path(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    UnixStream::connect(socket_path(&directory, name))
}

fn connect_init(directory: &Path) -> io::Result<UnixStream> {
    let stream = connect(directory, names::INIT_SOCKET)?;
    stream.set_read_timeout(Some(INIT_TIMEOUT))?;
    stream.set_write_timeout(Some(INIT_TIMEOUT))?;
    Ok(stream)
}

fn read_reply(stream: &mut UnixStream) -> io::Result<InitReply> {
    let mut frames = FrameBuffer::default();
    let mut bytes = [0; REPLY_BYTES_MAX];
    loop {
        if let Some(frame) = frames.next(REPLY_BYTES_MAX)? {
            return canonical::from_bytes(&frame, REPLY_BYTES_MAX).map_err(io::Error::other);
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => frames.push(&bytes[..length]),
            // With a time limit on its socket, a read that a signal interrupts is not started again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_names_the_rank_its_exit_code_or_signal_and_the_memory_limit() {
        let (rank, out_of_memory) = (3, true);
        for (exit, out_of_memory, expected) in [
            (
                Some(SandboxExit::RankExited { rank, status: 137 }),
                false,
                "local rank 3 exited with status 137",
            ),
            (
                Some(SandboxExit::RankSignaled { rank, signal: 9 }),
                out_of_memory,
                "signal 9 ended local rank 3, after it reached its memory limit",
            ),
            (Some(SandboxExit::Exited { status: 7 }), false, "the worker exited with status 7"),
            (None, false, "its init was killed"),
        ] {
            assert_eq!(Ended { exit, out_of_memory }.to_string(), expected);
        }
    }

    #[test]
    fn descriptors_are_two_of_each_rank_and_then_the_device() {
        for (count, ranks, device) in [(0, 0, false), (2, 1, false), (3, 1, true), (5, 2, true)] {
            let files = (0..count).map(|_| OwnedFd::from(File::open("/dev/null").expect("open"))).collect();
            let found = ProcessDescriptors::of(files);
            assert_eq!((found.ranks.len(), found.gang_device.is_some()), (ranks, device), "{count}");
        }
    }
}
