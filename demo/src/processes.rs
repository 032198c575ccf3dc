//! Processes of the cluster, found in `/proc`, and signals to them.

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Timeout for a signal to take effect.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// Sends a signal. A process that has ended already is no error: it cannot do anything any more.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Returns the process of a daemon: the child of `quorate up` that works in this directory.
pub(crate) fn daemon(up: i32, directory: &Path) -> Result<i32> {
    let directory = directory.display().to_string();
    let works_there = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == directory.as_bytes())
    };
    let found = children(up)?.into_iter().find(works_there);
    found.with_context(|| format!("no process of `quorate up` works in `{directory}`"))
}

/// Returns every process below this one.
pub(crate) fn descendants(root: i32) -> Result<Vec<i32>> {
    let mut family = children(root)?;
    let mut at = 0;
    while let Some(parent) = family.get(at) {
        family.extend(children(*parent)?);
        at += 1;
    }
    Ok(family)
}

fn children(parent: i32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<i32>().ok());
        let of = pid.and_then(|_| fields(&path)?.get(1)?.parse::<i32>().ok());
        children.extend(pid.filter(|_| of == Some(parent)));
    }
    Ok(children)
}

/// Returns the fields of a process's `stat` after its name: state, parent, and so on.
fn fields(process: &Path) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may hold any character; the fields after the last parenthesis do not.
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_string).collect())
}

/// Waits until the kernel reports one of these states of a process: `T` is stopped, `Z` killed and not yet
/// waited for by the parent. A process that does not exist any more is in every state.
fn wait_for_state(pid: i32, expected: &str) -> Result<()> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let began = Instant::now();
    loop {
        match fields(&process).and_then(|fields| fields.into_iter().next()) {
            Some(state) if state != expected => {}
            _ => return Ok(()),
        }
        if began.elapsed() > SIGNAL_LIMIT {
            bail!("process {pid} is not in state {expected} within {} s", SIGNAL_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `quorate up` standing still: it restarts no daemon until this value is dropped.
#[derive(Debug)]
pub(crate) struct PausedSupervisor(i32);

impl PausedSupervisor {
    /// Stops the process and waits until the kernel has done so.
    pub(crate) fn pause(up: i32) -> Result<Self> {
        signal(up, Signal::SIGSTOP);
        let paused = Self(up);
        wait_for_state(up, "T").context("pause `quorate up`")?;
        Ok(paused)
    }
}

impl Drop for PausedSupervisor {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}

/// Ends a node as a power failure would: its agent and every process below it. Returns their number.
///
/// Call this while `quorate up` is paused: the agent stays a zombie then, and no other one takes its place.
pub(crate) fn kill_node(up: i32, directory: &Path) -> Result<usize> {
    let agent = daemon(up, directory)?;
    let mut family = descendants(agent)?;
    family.push(agent);
    for pid in &family {
        signal(*pid, Signal::SIGKILL);
    }
    wait_for_state(agent, "Z").context("kill a node")?;
    Ok(family.len())
}

/// Ends one daemon as `kill -9` does. Call this while `quorate up` is paused, for the same reason.
pub(crate) fn kill_daemon(up: i32, directory: &Path) -> Result<()> {
    let pid = daemon(up, directory)?;
    signal(pid, Signal::SIGKILL);
    wait_for_state(pid, "Z").context("kill a daemon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_paused_and_killed() {
        let own = i32::try_from(std::process::id()).expect("a process id");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("`sleep` starts");
        let pid = i32::try_from(child.id()).expect("a process id");
        assert!(descendants(own).expect("readable").contains(&pid));
        let state = || fields(Path::new(&format!("/proc/{pid}"))).expect("it runs")[0].clone();
        let paused = PausedSupervisor::pause(pid).expect("it can be paused");
        assert_eq!(state(), "T");
        drop(paused);
        signal(pid, Signal::SIGKILL);
        wait_for_state(pid, "Z").expect("it is killed");
        child.wait().expect("it ends");
        assert!(!descendants(own).expect("readable").contains(&pid));
    }
}
