//! Processes of real workers, below a `quorate agent run`.

use anyhow::Result;

/// Name of a worker's process: that of its program in the sandbox.
const WORKER: &str = "worker";

/// Returns the processes of the workers below this agent.
pub(crate) fn workers_of(agent: u32) -> Result<Vec<u32>> {
    let is_worker = |pid: &u32| stat(*pid).is_some_and(|stat| stat.name == WORKER);
    Ok(processes_below(agent)?.into_iter().filter(is_worker).collect())
}

/// Returns all processes below this one.
pub(crate) fn processes_below(parent: u32) -> Result<Vec<u32>> {
    Ok(processes()?.into_iter().filter(|pid| is_below(*pid, parent)).collect())
}

fn processes() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// State, parent and name of a process.
struct ProcessStat {
    name: String,
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<ProcessStat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(ProcessStat { name: name.to_string(), state, parent: fields.next()?.parse().ok()? })
}

/// Returns whether a process has not ended.
pub(crate) fn lives(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

fn is_below(pid: u32, parent: u32) -> bool {
    let mut at = stat(pid);
    while let Some(stat_of) = at.filter(|stat| stat.parent > 1) {
        if stat_of.parent == parent {
            return true;
        }
        at = stat(stat_of.parent);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("started");
        let pid = child.id();
        assert!(lives(pid) && stat(pid).expect("it runs").parent == std::process::id());
        let own = std::process::id();
        let below = |parent: u32| processes_below(parent).expect("/proc");
        assert!(below(own).contains(&pid) && !below(pid).contains(&own));
        assert_eq!(workers_of(own).expect("/proc"), Vec::<u32>::new(), "it is no worker");
        child.kill().expect("killed");
        let deadline = Instant::now() + Duration::from_secs(60);
        while lives(pid) {
            assert!(Instant::now() < deadline, "it was killed");
        }
        child.wait().expect("ended");
        assert!(!lives(pid));
    }
}
