//! Main loop of the init: it holds the lease, answers the agent, keeps the worker's output, and ends the
//! sandbox. The sandbox ends when the worker exits, when the agent requests it, or when the lease expires.
//! The exit of the init makes the kernel kill every process in the sandbox.

use super::filter;
use super::logs::LogWriter;
use crate::wire::{FrameBuffer, frame};
use host::boot_time;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use protocol::BootTime;
use protocol::canonical;
use protocol::sandbox::SandboxExit;
use protocol::worker::{InitReply, InitRequest};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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

struct AgentConnection {
    socket: UnixStream,
    frames: FrameBuffer,
}

struct Supervisor {
    worker: Pid,
    lease: SandboxLease,
    /// End of a stopping worker's grace period.
    kill_at: Option<BootTime>,
    peers: Vec<AgentConnection>,
}

/// Runs until the sandbox must end, and writes the reason to a file. The caller exits.
pub(super) fn run(
    worker: Pid,
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
    for filter in filter::for_init().map_err(io::Error::other)? {
        seccompiler::apply_filter(&filter).map_err(io::Error::other)?;
    }
    let mut supervisor = Supervisor { worker, lease, kill_at: None, peers: Vec::new() };
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

        let output = logs.wanted(now);
        let timeout = output.is_none().then(|| {
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

    /// Reaps every dead process; returns the exit if the worker was among them.
    fn reap(&mut self) -> io::Result<Option<SandboxExit>> {
        let mut end = None;
        loop {
            let ended = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, SandboxExit::Exited { status }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, SandboxExit::Signaled { signal: signal as i32 })
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(end),
                Ok(_) => continue,
                Err(error) => return Err(error.into()),
            };
            if ended.0 == self.worker {
                let asked_for = self.kill_at.is_some();
                end = Some(if asked_for { SandboxExit::Stopped } else { ended.1 });
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
            match canonical::from_bytes(&request, REQUEST_BYTES_MAX).ok()? {
                InitRequest::Status => {}
                InitRequest::Renew { until_boottime_ms } => {
                    self.lease.renew(until_boottime_ms, boot_time());
                }
                InitRequest::Stop { grace_ms } => self.stop(boot_time().plus(grace_ms)),
            }
            let reply = InitReply { running: true, exit: None, lease_until_boottime_ms: self.lease.until };
            peer.socket.write_all(&frame(&canonical::to_bytes(&reply))).ok()?;
        }
        Some(())
    }

    /// Stops the worker. A second request may shorten the grace period, never extend it.
    fn stop(&mut self, kill_at: BootTime) {
        // The worker may be gone already; then the loop is about to detect it.
        let _ = kill(self.worker, Signal::SIGTERM);
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
        let mut supervisor =
            Supervisor { worker: Pid::from_raw(i32::MAX), lease, kill_at: None, peers: vec![] };
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
}
