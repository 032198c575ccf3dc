//! Fault injection into a running demonstration: any of its processes is killed, and control replicas, the
//! leader most often, are killed and paused.

use super::http::{HttpOutcome, ReplicaRequest, send};
use super::writer::OperatorContext;
use super::{DemonstrationRun, SplitMix64};
use crate::process::command;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Processes of any kind killed in a round.
const KILLS: usize = 2;
/// Control replicas that are killed or paused in a round in addition.
const CONTROL_FAULTS: usize = 3;
/// Period after the start of a round in which faults occur: about as long as the demonstration takes.
const FAULT_PERIOD: Duration = Duration::from_secs(12);
/// Shortest and longest pause: the first is too short to be detected, the second lets another replica lead.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(4)];
/// Time limit within which a replica must report whether it leads.
const REQUEST_LIMIT: Duration = Duration::from_millis(500);

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ProcessFault {
    /// Any process, `demo` and `quorate up` among them.
    Kill,
    KillControl,
    PauseControl(Duration),
}

/// Injects faults into a demonstration at drawn moments; returns whether `demo` itself was killed.
pub(super) fn strike(
    mut run: DemonstrationRun,
    place: &Path,
    dice: &mut SplitMix64,
    round: u64,
) -> Result<(DemonstrationRun, bool), String> {
    let (mut up_was_killed, mut paused) = (false, Vec::new());
    for (moment, fault) in draw(dice) {
        sleep(moment.saturating_sub(run.began.elapsed()));
        if run.has_ended()?.is_some() {
            break;
        }
        let family = family(run.up.id());
        let (victim, name) = match fault {
            ProcessFault::Kill => family[(dice.share() * family.len() as f64) as usize].clone(),
            _ => match control(&family, place, dice) {
                Some(control) => control,
                None => continue,
            },
        };
        let word = match fault {
            ProcessFault::PauseControl(time) => format!("pause {:4.1} s", time.as_secs_f64()),
            _ => "kill -9".to_string(),
        };
        println!("round {round}  {:5.2} s  {word} {name} ({victim})", run.began.elapsed().as_secs_f64());
        match fault {
            ProcessFault::PauseControl(time) => {
                signal("-STOP", victim);
                paused.push(spawn(move || {
                    sleep(time);
                    signal("-CONT", victim);
                }));
            }
            _ => signal("-9", victim),
        }
        up_was_killed |= victim == run.up.id();
    }
    for pause in paused {
        pause.join().map_err(|_| "a pause did not end".to_string())?;
    }
    Ok((run, up_was_killed))
}

/// Sends a signal to a process; one that has exited already counts as hit.
fn signal(which: &str, process: u32) {
    let _ = command("kill", &[which, &process.to_string()]).stderr(Stdio::null()).status();
}

/// Draws the faults of a round, in the order of their moments.
fn draw(dice: &mut SplitMix64) -> Vec<(Duration, ProcessFault)> {
    let mut faults: Vec<(Duration, ProcessFault)> =
        (0..KILLS).map(|_| (FAULT_PERIOD.mul_f64(dice.share()), ProcessFault::Kill)).collect();
    for _ in 0..CONTROL_FAULTS {
        let moment = FAULT_PERIOD.mul_f64(dice.share());
        let fault = match dice.share() < 0.5 {
            true => ProcessFault::KillControl,
            false => ProcessFault::PauseControl(PAUSES[0] + (PAUSES[1] - PAUSES[0]).mul_f64(dice.share())),
        };
        faults.push((moment, fault));
    }
    faults.sort_by_key(|(moment, _)| *moment);
    faults
}

/// Selects the control replica to hit: the leader in two of three cases.
fn control(family: &[(u32, String)], place: &Path, dice: &mut SplitMix64) -> Option<(u32, String)> {
    let all: Vec<&(u32, String)> = family.iter().filter(|(_, name)| name.starts_with("control ")).collect();
    let leads = if dice.share() < 0.66 { leader(place) } else { None };
    let leading = leads.and_then(|name| all.iter().find(|(_, known)| *known == name));
    let any = || all.get((dice.share() * all.len() as f64) as usize);
    leading.or_else(any).map(|found| (*found).clone())
}

/// Returns the control replica that reports itself as leader.
fn leader(place: &Path) -> Option<String> {
    let context = OperatorContext::read(place)?;
    let request = ReplicaRequest { method: "GET", path: "/metrics", token: "", key: None, body: "" };
    let leads = |replica: &String| match send(replica, &request, REQUEST_LIMIT) {
        HttpOutcome::Answer { body, .. } => body.contains("\nquorate_control_is_leader 1\n"),
        _ => false,
    };
    let began = Instant::now();
    let found = context.replicas.iter().position(leads).map(|at| format!("control control-{}", at + 1));
    found.filter(|_| began.elapsed() < REQUEST_LIMIT * 4)
}

/// Returns the demonstration's processes, and a description of each.
fn family(up: u32) -> Vec<(u32, String)> {
    let mut family = vec![(up, "demo".to_string())];
    let mut at = 0;
    let processes: Vec<(u32, u32, String)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|process| describe(&process.ok()?.path()))
        .collect();
    while at < family.len() {
        let parent = family[at].0;
        let children = processes.iter().filter(|(_, of, _)| *of == parent);
        family.extend(children.map(|(pid, _, name)| (*pid, name.clone())));
        at += 1;
    }
    family
}

/// Returns the process id, its parent's, and the words that identify a daemon.
fn describe(process: &Path) -> Option<(u32, u32, String)> {
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may contain any character; the text after the last parenthesis does not.
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    let line = std::fs::read(process.join("cmdline")).ok()?;
    let words: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let place = words.iter().position(|word| word == "--dir").and_then(|at| words.get(at + 1));
    let last =
        |path: &String| PathBuf::from(path).file_name().map(|name| name.to_string_lossy().into_owned());
    let name =
        [words.get(1).cloned(), place.and_then(last)].into_iter().flatten().collect::<Vec<_>>().join(" ");
    Some((pid, parent, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_in_the_order_of_their_moments_and_of_every_kind() {
        let mut dice = SplitMix64(1);
        let rounds: Vec<_> = (0..20).map(|_| draw(&mut dice)).collect();
        assert!(
            rounds.iter().all(
                |faults| faults.len() == KILLS + CONTROL_FAULTS && faults.is_sorted_by_key(|(at, _)| *at)
            )
        );
        let pauses = rounds.iter().flatten().filter_map(|(_, fault)| match fault {
            ProcessFault::PauseControl(time) => Some(*time),
            _ => None,
        });
        assert!(
            pauses.clone().count() > 10 && pauses.clone().all(|time| time >= PAUSES[0] && time <= PAUSES[1])
        );
        assert!(rounds.iter().flatten().any(|(_, fault)| *fault == ProcessFault::KillControl));
    }

    #[test]
    fn this_process_is_described() {
        let (pid, _, _) = describe(Path::new("/proc/self")).map_or((0, 0, String::new()), |found| found);
        // `/proc/self` does not end in a number.
        assert_eq!(pid, 0);
        let own = format!("/proc/{}", std::process::id());
        assert_eq!(describe(Path::new(&own)).map(|(pid, _, _)| pid), Some(std::process::id()));
    }
}
