//! Main loop of the init: it holds the lease, answers the agent, keeps the worker's output, and ends the
//! sandbox. The sandbox ends when the worker exits, when a rank fails or the last one exits, when the agent
//! requests it, or when the lease expires. The exit of the init makes the kernel kill every process in the
//! sandbox.

use super::filter;
use super::logs::LogWriter;
use crate::wire::{self, FrameBuffer, frame};
use host::boot_time;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use protocol::BootTime;
use protocol::canonical;
use protocol::sandbox::SandboxExit;
use protocol::worker::{InitReply, InitRequest};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// Maximum number of agent connections: one, and a successor whose predecessor's end has not been noticed
/// yet.
const PEERS_MAX: usize = 4;
/// Longest request: a command and a number.
const REQUEST_BYTES_MAX: usize = 256;
/// Time before the end of its lease at which a sandbox is ended: the time a busy machine takes to notice and
/// to kill. Control may assign the slot to another node at the very end of the lease.
const END_BEFORE_MS: u64 = 250;
/// Maximum number of output chunks that are still written after the worker's end.
const LAST_WORDS_MAX: usize = 32;

/// Time until which the sandbox may live.
#[derive(Debug, Clone, Copy)]
pub(super) struct SandboxLease {
    pub(super) until: BootTime,
    /// Maximum distance of a renewal into the future, in milliseconds.
    pub(super) ms_max: u64,
}

impl SandboxLease {
    /// Returns the time at which the sandbox is ended, so that it is gone when the lease expires.
    fn ends_at(&self) -> BootTime {
        BootTime(self.until.0.saturating_sub(END_BEFORE_MS))
    }

    /// Extends the lease. A renewal never shortens it, nor extends it beyond the limit of one renewal.
    fn renew(&mut self, wanted: BootTime, now: BootTime) {
        let before = self.until;
        self.until = self.until.max(wanted.min(now.plus(self.ms_max)));
        debug_assert!(self.until >= before && self.until <= before.max(now.plus(self.ms_max)));
    }
}

/// Resources needed once the sandbox must end.
pub(super) struct Ending {
    /// Writes that lift the worker's limits so that its processes can exit.
    pub(super) release: Vec<(File, String)>,
    /// File for the reason of the end.
    pub(super) exit: File,
    /// A reader of the worker's metrics pipe, held until the end.
    pub(super) _metrics: OwnedFd,
}

impl Ending {
    /// Ends every process of the sandbox but this one, and returns when they are gone. Neither their groups'
    /// limits nor a slow disk delay it: files are written afterwards.
    fn kill_all(&self) {
        for (file, value) in &self.release {
            // The write may fail: a worker without a quota needs none lifted.
            let _ = (&mut &*file).write_all(value.as_bytes());
        }
        // Kills every process of this namespace but its init.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        while !matches!(waitpid(None::<Pid>, None), Err(Errno::ECHILD)) {}
    }
}

/// Main processes of a sandbox.
pub(super) struct Workload {
    /// The worker, or the ranks by their index; none for one that has ended.
    processes: Vec<Option<Pid>>,
    /// Whether they are ranks.
    are_ranks: bool,
    /// Descriptors held for the agent: outputs of the ranks, then the gang device.
    held: Vec<OwnedFd>,
}

impl Workload {
    /// Returns the workload of an engine: one worker.
    pub(super) fn engine(worker: Pid) -> Self {
        Self { processes: vec![Some(worker)], are_ranks: false, held: vec![] }
    }

    /// Returns the workload of a process sandbox.
    pub(super) fn ranks(ranks: &[Pid], held: Vec<OwnedFd>) -> Self {
        Self { processes: ranks.iter().copied().map(Some).collect(), are_ranks: true, held }
    }

    /// Returns the descriptors held for the agent.
    pub(super) fn held(&self) -> Vec<BorrowedFd<'_>> {
        self.held.iter().map(AsFd::as_fd).collect()
    }

    /// Asks every process that lives to end.
    fn terminate(&self) {
        for pid in self.processes.iter().flatten() {
            // It may be gone already; then the loop is about to detect it.
            let _ = kill(*pid, Signal::SIGTERM);
        }
    }

    /// Notes the end of a process. Returns the end of the workload, if this is it: that of an engine's
    /// worker, and of ranks the first failure or the last exit. Ranks that were asked to end may do so one by
    /// one.
    fn note(&mut self, pid: Pid, end: SandboxExit, stopping: bool) -> Option<SandboxExit> {
        let rank = self.processes.iter().position(|process| *process == Some(pid))?;
        self.processes[rank] = None;
        let rank_index = u32::try_from(rank).expect("a sandbox has few ranks");
        let failed = end != SandboxExit::Exited { status: 0 };
        let named = match end {
            SandboxExit::Exited { status } if self.are_ranks => {
                SandboxExit::RankExited { rank: rank_index, status }
            }
            SandboxExit::Signaled { signal } if self.are_ranks => {
                SandboxExit::RankSignaled { rank: rank_index, signal }
            }
            other => other,
        };
        let all_ended = self.processes.iter().all(Option::is_none);
        (all_ended || (failed && !stopping)).then_some(named)
    }
}

struct AgentConnection {
    socket: UnixStream,
    frames: FrameBuffer,
}

struct Supervisor {
    workload: Workload,
    lease: SandboxLease,
    /// End of a stopping worker's grace period.
    kill_at: Option<BootTime>,
    peers: Vec<AgentConnection>,
}

/// Runs until the sandbox must end, and writes the reason to a file. The caller exits.
pub(super) fn run(
    workload: Workload,
    lease: SandboxLease,
    listener: &OwnedFd,
    mut logs: LogWriter,
    ending: Ending,
) -> io::Result<()> {
    let mut child_signal = SigSet::empty();
    child_signal.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&child_signal, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
    for filter in filter::for_init(!workload.held.is_empty()).map_err(io::Error::other)? {
        seccompiler::apply_filter(&filter).map_err(io::Error::other)?;
    }
    let mut supervisor = Supervisor { workload, lease, kill_at: None, peers: Vec::new() };
    let end = supervisor.watch(&signals, &timer, listener, &mut logs);
    ending.kill_all();
    let end = end?;
    for _ in 0..LAST_WORDS_MAX {
        if !logs.copy() {
            break;
        }
    }
    ending.exit.write_all_at(&canonical::to_bytes(&end), 0)?;
    ending.exit.sync_data()
}

impl Supervisor {
    /// Returns the reason once the sandbox must end.
    fn watch(
        &mut self,
        signals: &SignalFd,
        timer: &TimerFd,
        listener: &OwnedFd,
        logs: &mut LogWriter,
    ) -> io::Result<SandboxExit> {
        loop {
            if let Some(end) = self.due(boot_time()) {
                return Ok(end);
            }
            if let Some(end) = self.turn(signals, timer, listener, logs)? {
                return Ok(end);
            }
        }
    }

    /// Returns the reason if a deadline has passed.
    fn due(&self, now: BootTime) -> Option<SandboxExit> {
        if self.kill_at.is_some_and(|at| now >= at) {
            Some(SandboxExit::Stopped)
        } else if now >= self.lease.ends_at() {
            Some(SandboxExit::LeaseLapsed)
        } else {
            None
        }
    }

    /// Waits for an event and handles it.
    fn turn(
        &mut self,
        signals: &SignalFd,
        timer: &TimerFd,
        listener: &OwnedFd,
        logs: &mut LogWriter,
    ) -> io::Result<Option<SandboxExit>> {
        let now = boot_time();
        let next = self.kill_at.unwrap_or(BootTime(u64::MAX)).min(self.lease.ends_at());
        let at = TimeSpec::milliseconds(i64::try_from(next.0).unwrap_or(i64::MAX / 1_000_000));
        timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;

        let logs_open = logs.is_open();
        let output = logs.wanted(now);
        let timeout = (output.is_none() && logs_open).then(|| {
            let rest_ms = 1000 - now.0 % 1000;
            TimeSpec::milliseconds(i64::try_from(rest_ms).expect("at most 1000"))
        });
        let mut waits: Vec<PollFd<'_>> = [signals.as_fd(), timer.as_fd(), listener.as_fd()]
            .into_iter()
            .chain(self.peers.iter().map(|peer| peer.socket.as_fd()))
            .chain(output)
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut waits, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> =
            waits.iter().map(|wait| wait.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(waits);
        let count = self.peers.len();
        if ready.get(3 + count).copied().unwrap_or(false) {
            logs.copy();
        }
        self.answer_peers(&ready[3..3 + count]);
        if ready[2] {
            self.accept(listener);
        }
        if ready[0] {
            while signals.read_signal()?.is_some() {}
            return self.reap();
        }
        Ok(None)
    }

    /// Reaps every dead process; returns the exit if the workload ended with one of them.
    fn reap(&mut self) -> io::Result<Option<SandboxExit>> {
        let mut end = None;
        loop {
            let Some((pid, status)) = crate::system::reap_child()? else { return Ok(end) };
            let exit = if libc::WIFEXITED(status) {
                SandboxExit::Exited { status: libc::WEXITSTATUS(status) }
            } else {
                SandboxExit::Signaled { signal: libc::WTERMSIG(status) }
            };
            let asked_for = self.kill_at.is_some();
            if let Some(found) = self.workload.note(pid, exit, asked_for) {
                // The first failure counts: the others follow from it.
                end = end.or(Some(if asked_for { SandboxExit::Stopped } else { found }));
            }
        }
    }

    fn accept(&mut self, listener: &OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(descriptor) = accept4(listener.as_raw_fd(), flags) else { return };
        let socket = UnixStream::from(crate::system::own(descriptor));
        if self.peers.len() >= PEERS_MAX {
            self.peers.remove(0);
        }
        self.peers.push(AgentConnection { socket, frames: FrameBuffer::default() });
    }

    /// Reads the requests of ready peers; a peer that is malformed or gone is dropped.
    fn answer_peers(&mut self, ready: &[bool]) {
        let peers = std::mem::take(&mut self.peers);
        for (mut peer, ready) in peers.into_iter().zip(ready) {
            if !ready || self.answer(&mut peer).is_some() {
                self.peers.push(peer);
            }
        }
    }

    fn answer(&mut self, peer: &mut AgentConnection) -> Option<()> {
        let mut bytes = [0; REQUEST_BYTES_MAX];
        let length = peer.socket.read(&mut bytes).ok().filter(|length| *length > 0)?;
        peer.frames.push(&bytes[..length]);
        while let Some(request) = peer.frames.next(REQUEST_BYTES_MAX).ok()? {
            let mut hands_over = false;
            match canonical::from_bytes(&request, REQUEST_BYTES_MAX).ok()? {
                InitRequest::Status => {}
                InitRequest::Descriptors => hands_over = !self.workload.held.is_empty(),
                InitRequest::Renew { until_boottime_ms } => {
                    self.lease.renew(until_boottime_ms, boot_time());
                }
                InitRequest::Stop { grace_ms } => self.stop(boot_time().plus(grace_ms)),
            }
            let reply = InitReply { running: true, exit: None, lease_until_boottime_ms: self.lease.until };
            let bytes = frame(&canonical::to_bytes(&reply));
            if hands_over {
                wire::send(peer.socket.as_fd(), &bytes, &self.workload.held()).ok()?;
            } else {
                peer.socket.write_all(&bytes).ok()?;
            }
        }
        Some(())
    }

    /// Stops the workload. A second request may shorten the grace period, never extend it.
    fn stop(&mut self, kill_at: BootTime) {
        self.workload.terminate();
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lengthens_within_its_bound_and_never_shortens() {
        for (name, until, wanted, now, expected) in [
            ("renewed", 1_000, 3_500, 600, 3_500),
            ("asked for too much", 1_000, 9_000, 600, 3_600),
            ("late message", 3_000, 2_000, 1_500, 3_000),
            ("for ever", 1_000, u64::MAX, 600, 3_600),
        ] {
            let mut lease = SandboxLease { until: BootTime(until), ms_max: 3_000 };
            lease.renew(BootTime(wanted), BootTime(now));
            assert_eq!(lease.until, BootTime(expected), "{name}");
        }
    }

    #[test]
    fn the_grace_ends_before_the_lease_and_both_end_the_sandbox() {
        let lease = SandboxLease { until: BootTime(2_000), ms_max: 3_000 };
        let workload = Workload::engine(Pid::from_raw(i32::MAX));
        let mut supervisor = Supervisor { workload, lease, kill_at: None, peers: vec![] };
        assert_eq!(supervisor.due(BootTime(1_749)), None);
        assert_eq!(
            supervisor.due(BootTime(1_750)),
            Some(SandboxExit::LeaseLapsed),
            "gone when the lease is over"
        );
        supervisor.stop(BootTime(1_500));
        supervisor.stop(BootTime(1_900));
        assert_eq!(supervisor.due(BootTime(1_499)), None);
        assert_eq!(supervisor.due(BootTime(1_500)), Some(SandboxExit::Stopped));
    }

    /// Ends of ranks 0 to 2 in this order: pid, status or negated signal.
    fn ends(order: &[(i32, i32)], stopping: bool) -> Vec<Option<SandboxExit>> {
        let ranks = [10, 11, 12].map(Pid::from_raw);
        let mut workload = Workload::ranks(&ranks, vec![]);
        let note = |(pid, code): &(i32, i32)| {
            let end = match *code {
                status if status >= 0 => SandboxExit::Exited { status },
                signal => SandboxExit::Signaled { signal: -signal },
            };
            workload.note(Pid::from_raw(*pid), end, stopping)
        };
        order.iter().map(note).collect()
    }

    #[test]
    fn ranks_end_with_the_first_failure_or_the_last_exit() {
        let exited = |rank, status| Some(SandboxExit::RankExited { rank, status });
        assert_eq!(ends(&[(11, 0), (10, 0), (12, 0)], false), [None, None, exited(2, 0)]);
        assert_eq!(ends(&[(11, 0), (12, 137)], false), [None, exited(2, 137)]);
        let killed = Some(SandboxExit::RankSignaled { rank: 0, signal: 9 });
        assert_eq!(ends(&[(10, -9)], false), [killed]);
        assert_eq!(ends(&[(99, 1), (10, 1)], false), [None, exited(0, 1)], "an orphan is no rank");
        assert_eq!(ends(&[(10, 0), (10, 1)], false), [None, None], "an id that is used again");
        // Each may still write its checkpoint.
        assert_eq!(ends(&[(10, 143), (11, -15), (12, 0)], true), [None, None, exited(2, 0)]);
    }

    #[test]
    fn an_engine_ends_with_its_worker() {
        let mut workload = Workload::engine(Pid::from_raw(10));
        assert_eq!(workload.note(Pid::from_raw(11), SandboxExit::Exited { status: 1 }, false), None);
        let end = SandboxExit::Exited { status: 0 };
        assert_eq!(workload.note(Pid::from_raw(10), end, false), Some(end));
    }
}
