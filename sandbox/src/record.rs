//! Persistent record of a sandbox, written before its worker may start. It identifies the sandbox afterwards,
//! even if the agent was restarted and process ids were reused.

use super::cgroup;
use super::error::{During, SandboxError};
use super::system::{self, ProcessId};
use host::files;
use protocol::canonical;
use protocol::sandbox::{SANDBOX_RECORD_BYTES_MAX, SandboxExit, SandboxIdentity, SandboxRecord};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Field 22 of `/proc/PID/stat`, start time; counted after the program's name, which ends at the last `)`.
const START_TIME_AFTER_NAME: usize = 19;

/// Names of the files in a sandbox's directory.
pub(crate) mod names {
    pub(crate) const RECORD: &str = "record";
    pub(crate) const EXIT: &str = "exit";
    pub(crate) const INIT_SOCKET: &str = "init.sock";
    pub(crate) const WORKER_SOCKET: &str = "worker.sock";
    pub(crate) const METRICS: &str = "metrics";
    pub(crate) const LOGS: [&str; 2] = ["log.0", "log.1"];
    /// Marks that every byte of the weights is present.
    pub(crate) const COMPLETE: &str = "complete";
}

/// Writes the record atomically: after a power failure it is complete or absent.
pub(crate) fn write(directory: &Path, record: &SandboxRecord) -> Result<(), SandboxError> {
    let target = directory.join(names::RECORD);
    files::write_atomically(&target, &canonical::to_bytes(record), 0o600)
        .during(|| format!("write {}", target.display()))
}

/// Reads the record of a sandbox; none if it was never written or is damaged.
pub(crate) fn read(directory: &Path) -> Option<SandboxRecord> {
    let bytes = fs::read(directory.join(names::RECORD)).ok()?;
    canonical::from_bytes(&bytes, SANDBOX_RECORD_BYTES_MAX).ok()
}

/// Returns the end of the sandbox, if its init survived to record it.
pub(crate) fn read_exit(directory: &Path) -> Option<SandboxExit> {
    let bytes = fs::read(directory.join(names::EXIT)).ok()?;
    canonical::from_bytes(&bytes, SANDBOX_RECORD_BYTES_MAX).ok()
}

/// Returns a descriptor of the recorded init, if that very process is still alive.
pub(crate) fn open_process(record: &SandboxRecord) -> Option<OwnedFd> {
    // The descriptor is opened before the checks: it keeps referring to the same process even if the id is
    // reused.
    let pid = ProcessId(record.pid);
    let pidfd = system::pidfd_open(pid).ok()?;
    let groups: Vec<PathBuf> = record.cgroups.iter().map(PathBuf::from).collect();
    let same = boot_id().ok()? == record.boot_id
        && start_ticks(pid).ok()? == record.start_ticks
        && cgroup::contains(&groups, pid);
    same.then_some(pidfd)
}

/// Returns the record of an init that has just been created.
pub(crate) fn compose(
    name: &str,
    pid: ProcessId,
    identity: SandboxIdentity,
    group: &cgroup::Group,
) -> io::Result<SandboxRecord> {
    Ok(SandboxRecord {
        name: name.to_string(),
        boot_id: boot_id()?,
        pid: pid.0,
        start_ticks: start_ticks(pid)?,
        cgroups: group.directories.iter().map(|d| d.display().to_string()).collect(),
        identity,
        not_enforced: group.not_enforced.clone(),
    })
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

/// Returns the start time of a process that lives; `ESRCH` for one that has ended.
fn start_ticks(pid: ProcessId) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.0))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Parses the start time of a process from its `/proc/PID/stat`, in clock ticks since boot; none for one that
/// has ended. The program's name may contain spaces and parentheses, so the fields start after the last one.
#[must_use]
pub fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    // A zombie has ended, though its process id is still taken.
    let state = fields.next()?;
    let ticks = fields.nth(START_TIME_AFTER_NAME - 1)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_process() -> SandboxRecord {
        let group = cgroup::Group::default();
        compose("test", ProcessId(std::process::id()), SandboxIdentity::SameUid, &group).expect("compose")
    }

    #[test]
    fn the_same_process_is_recognised_and_any_other_is_not() {
        let own = of_this_process();
        assert!(open_process(&own).is_some());
        let check = |name: &str, change: &dyn Fn(&mut SandboxRecord)| {
            let mut record = own.clone();
            change(&mut record);
            assert!(open_process(&record).is_none(), "{name}");
        };
        check("another start time", &|record| record.start_ticks += 1);
        check("another boot", &|record| record.boot_id.push('0'));
        check("another cgroup", &|record| record.cgroups.push("/nowhere".into()));
        check("another process", &|record| record.pid = 1);
    }

    #[test]
    fn a_name_full_of_traps_does_not_confuse_the_parser() {
        let fields: Vec<String> = (3..=24).map(|n| n.to_string()).collect();
        let stat = |state: &str| format!("7 (a) b (c) {state} {}", fields[1..].join(" "));
        assert_eq!(parse_start_ticks(&stat("S")), Some(22));
        assert_eq!(parse_start_ticks(&stat("Z")), None);
        assert_eq!(parse_start_ticks("7 (a"), None);
    }

    #[test]
    fn a_process_that_ended_has_no_start_time() {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        let pid = ProcessId(child.id());
        let ended = Id::Pid(nix::unistd::Pid::from_raw(child.id().cast_signed()));
        waitid(ended, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it ends");
        let error = start_ticks(pid).expect_err("it has ended, and is not reaped");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        child.wait().expect("it is reaped");
    }

    #[test]
    fn any_record_cut_short_is_none() {
        let directory = tempfile::tempdir().expect("directory");
        write(directory.path(), &of_this_process()).expect("write");
        let path = directory.path().join(names::RECORD);
        let bytes = fs::read(&path).expect("read");
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).expect("truncate");
            assert_eq!(read(directory.path()), None, "{length} bytes");
        }
        fs::write(&path, [&bytes[..], b"\0"].concat()).expect("extend");
        assert_eq!(read(directory.path()), None, "one byte more");
        fs::write(&path, &bytes).expect("restore");
        assert_eq!(read(directory.path()), Some(of_this_process()));
    }

    #[test]
    fn an_end_is_read_once_it_is_whole() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(read_exit(directory.path()), None, "the init was killed");
        for exit in [
            SandboxExit::Exited { status: 7 },
            SandboxExit::Signaled { signal: 9 },
            SandboxExit::LeaseLapsed,
            SandboxExit::Stopped,
        ] {
            let (path, bytes) = (directory.path().join(names::EXIT), canonical::to_bytes(&exit));
            fs::write(&path, &bytes[..bytes.len() - 1]).expect("write a part");
            assert_eq!(read_exit(directory.path()), None, "{exit:?}");
            fs::write(&path, &bytes).expect("write");
            assert_eq!(read_exit(directory.path()), Some(exit));
        }
    }

    #[test]
    fn a_record_is_read_back_and_a_damaged_one_is_none() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(read(directory.path()), None);
        write(directory.path(), &of_this_process()).expect("write");
        assert_eq!(read(directory.path()), Some(of_this_process()));
        let path = directory.path().join(names::RECORD);
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("truncate");
        assert_eq!(read(directory.path()), None);
    }
}
