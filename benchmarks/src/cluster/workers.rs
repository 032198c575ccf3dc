//! Processes of real workers, below a `quorate agent run`.

use anyhow::Result;

/// Name of a worker's process: that of its program in the sandbox.
const WORKER: &str = "worker";

/// Returns the processes of the workers below this agent.
pub(crate) fn workers_of(agent: u32) -> Result<Vec<u32>> {
    Ok(processes()?.into_iter().filter(|pid| is_worker_of(*pid, agent)).collect())
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

/// Returns whether a process is a worker below this agent.
fn is_worker_of(pid: u32, agent: u32) -> bool {
    let Some(mut at) = stat(pid).filter(|stat| stat.name == WORKER) else { return false };
    while at.parent > 1 {
        if at.parent == agent {
            return true;
        }
        let Some(next) = stat(at.parent) else { return false };
        at = next;
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
        assert!(!is_worker_of(pid, std::process::id()), "it is no worker");
        child.kill().expect("killed");
        let deadline = Instant::now() + Duration::from_secs(60);
        while lives(pid) {
            assert!(Instant::now() < deadline, "it was killed");
        }
        child.wait().expect("ended");
        assert!(!lives(pid));
    }
}
