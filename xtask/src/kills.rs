//! Fault-injection test of the whole demonstration: `kill -9` of any process at any moment.
//!
//! Round after round the demonstration runs while its processes are killed, `demo` itself among them. Control
//! replicas, the leader most often, are killed and paused. A round may end with an error, if the error is a
//! clear one. No process may panic or remain, and no decision may be lost. The last round has no faults, and
//! must complete from the state that the others left.
//!
//! A client writes through the control API in every round. At the end, each acknowledged write must be
//! present once, each write refused as not done must be absent, and each other write must be present once or
//! not at all.
//!
//! Caveat: the moments are drawn from a seed, but the machine decides which code runs at a moment. The same
//! seed is therefore not the same run.

mod faults;
mod history;
mod http;
mod writer;

use crate::cluster::{self, STAYS_UP, nothing_is_left};
use crate::compile::{self, Selection};
use crate::minilm;
use crate::process::{command, target};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};
use writer::{Notes, WriterThread};

const HELP: &str = "\
cargo xtask kills [ROUNDS] [SEED]

Runs the demonstration ROUNDS times (3). At moments drawn from SEED, its processes are killed, and control
replicas are killed and paused, while a client writes through the control API.
";

/// Rounds in `cargo xtask test`; a machine with more time runs more, with other seeds.
const ROUNDS: u64 = 3;
/// Time limit of a round on a busy machine: longer than those of the demonstration's own waits, which name
/// what they wait for.
const ROUND_LIMIT: Duration = Duration::from_secs(300);
/// Time limit within which leases end the processes of a killed `up`, on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Texts that the demonstration prints when a decision was acknowledged.
const DECIDED: [&str; 2] = ["(Ed25519 and ML-DSA-65)  2 of 2", "admitted by 2 votes"];
/// Text that the demonstration prints once the whole cluster runs.
const FIRST_ANSWER: &str = "first answer";
/// Signal of a killed process, as the standard library reports it.
const KILLED: i32 = 9;

/// Output and exit status of a round.
struct RoundOutcome {
    status: ExitStatus,
    printed: Vec<String>,
    errors: String,
    up_was_killed: bool,
}

/// `cargo xtask kills`.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|argument| argument.starts_with('-')) {
        print!("{HELP}");
        return Ok(());
    }
    let number = |place: usize, otherwise: u64| match arguments.get(place) {
        Some(text) => text.parse().map_err(|_| format!("`{text}` is not a number\n\n{HELP}")),
        None => Ok(otherwise),
    };
    run_rounds(number(0, ROUNDS)?, number(1, 1)?)
}

/// The step of `cargo xtask test`.
pub(crate) fn in_tests() -> Result<(), String> {
    run_rounds(ROUNDS, 1)
}

fn run_rounds(rounds: u64, seed: u64) -> Result<(), String> {
    minilm::directory()?;
    compile::build(Selection::Everything)?;
    let place = target().join("kill-cluster");
    let _ = std::fs::remove_dir_all(&place);
    let (mut dice, mut notes) = (SplitMix64(seed), Notes::new(&place, seed));
    let mut decided = kill_up_alone(&place)?;
    for round in 1..=rounds {
        notes.scales = true;
        let writer = WriterThread::start(notes);
        let outcome = run_with_faults(&place, &mut dice, round);
        notes = writer.stop()?;
        let outcome = outcome?;
        decided = judge(&outcome, &place, decided)?;
        let verdict = match (outcome.up_was_killed, outcome.status.success()) {
            (true, _) => "`demo` was killed; its leases ended everything".to_string(),
            (_, true) => "the story held all the same".to_string(),
            (_, false) => format!("ended with: {}", outcome.errors.lines().next().unwrap_or_default()),
        };
        println!("round {round}/{rounds}  {verdict}");
    }
    notes.scales = false;
    let (last, written) = run_without_faults(&place, notes)?;
    if !last.status.success() {
        return Err(format!("the round without faults: {}\n{}", last.printed.join("\n"), last.errors));
    }
    judge(&last, &place, decided)?;
    println!("without faults: the demonstration completes from the state after {rounds} rounds of kills");
    println!("a client of the control API: {}", written?);
    Ok(())
}

/// Kills `demo` itself while the whole cluster runs: `quorate up` and its daemons must die with it, and
/// leases must end the other processes. Returns the number of acknowledged decisions.
fn kill_up_alone(place: &Path) -> Result<u64, String> {
    let mut up = cluster::start(place, &["--once"], Stdio::inherit())?;
    let lines = BufReader::new(up.stdout.take().ok_or("no output")?).lines().map_while(Result::ok);
    let mut printed = Vec::new();
    for line in lines {
        let answers = line.contains(FIRST_ANSWER);
        printed.push(line);
        if answers {
            break;
        }
    }
    up.kill().map_err(|error| error.to_string())?;
    let status = up.wait().map_err(|error| error.to_string())?;
    if !printed.last().is_some_and(|line| line.contains(FIRST_ANSWER)) {
        return Err(format!(
            "the demonstration ended before its first answer: {status}\n{}",
            printed.join("\n")
        ));
    }
    let began = Instant::now();
    let outcome = RoundOutcome { status, printed, errors: String::new(), up_was_killed: true };
    let decided = judge(&outcome, place, 0)?;
    println!("`demo` alone killed: nothing is left after {:.1} s", began.elapsed().as_secs_f64());
    Ok(decided)
}

/// Runs the demonstration while its processes are killed and paused.
fn run_with_faults(place: &Path, dice: &mut SplitMix64, round: u64) -> Result<RoundOutcome, String> {
    let run = DemonstrationRun::start(place, &["--once"])?;
    let (run, up_was_killed) = faults::strike(run, place, dice, round)?;
    run.finish(up_was_killed)
}

/// Runs the demonstration once more while the client writes, checks the client's writes while the cluster
/// runs, and ends it.
fn run_without_faults(place: &Path, notes: Notes) -> Result<(RoundOutcome, Result<String, String>), String> {
    let writer = WriterThread::start(notes);
    let mut run = DemonstrationRun::start(place, &[])?;
    let stands = run.wait_until(|line| line.contains(STAYS_UP));
    let notes = writer.stop()?;
    let written = match stands {
        Ok(true) => notes.judge(),
        Ok(false) => Err("the cluster ended before the client's writes were checked".into()),
        Err(error) => Err(error),
    };
    // The demonstration may have ended already.
    let _ = command("kill", &["-INT", &run.up.id().to_string()]).stderr(Stdio::null()).status();
    Ok((run.finish(false)?, written))
}

/// A running demonstration, and its output so far.
struct DemonstrationRun {
    up: Child,
    began: Instant,
    printed: Arc<Mutex<Vec<String>>>,
    readers: (JoinHandle<()>, JoinHandle<String>),
}

impl DemonstrationRun {
    fn start(place: &Path, flags: &[&str]) -> Result<Self, String> {
        let mut up = cluster::start(place, flags, Stdio::piped())?;
        let (output, mut errors) =
            (up.stdout.take().ok_or("no output")?, up.stderr.take().ok_or("no errors")?);
        let printed = Arc::new(Mutex::new(Vec::new()));
        let shared = printed.clone();
        let lines = spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let errors_reader = spawn(move || {
            let mut text = String::new();
            // Output that is not text is no clear error either, and is judged as it is.
            let _ = errors.read_to_string(&mut text);
            text
        });
        Ok(Self { up, began: Instant::now(), printed, readers: (lines, errors_reader) })
    }

    fn has_ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.up.try_wait().map_err(|error| error.to_string())
    }

    /// Waits for a line; false when the demonstration ended without it.
    fn wait_until(&mut self, enough: impl Fn(&str) -> bool) -> Result<bool, String> {
        loop {
            let ended = self.has_ended()?.is_some();
            if self.printed.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|line| enough(line)) {
                return Ok(true);
            }
            if ended {
                return Ok(false);
            }
            self.pause()?;
        }
    }

    fn finish(mut self, up_was_killed: bool) -> Result<RoundOutcome, String> {
        let status = loop {
            match self.has_ended()? {
                Some(status) => break status,
                None => self.pause()?,
            }
        };
        let read = |_| "a reader of the demonstration's output failed".to_string();
        self.readers.0.join().map_err(read)?;
        let errors = self.readers.1.join().map_err(read)?;
        let printed = std::mem::take(&mut *self.printed.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(RoundOutcome { status, printed, errors, up_was_killed })
    }

    fn pause(&mut self) -> Result<(), String> {
        if self.began.elapsed() > ROUND_LIMIT {
            let _ = self.up.kill();
            let printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            return Err(format!("a round took more than {} s:\n{printed}", ROUND_LIMIT.as_secs()));
        }
        sleep(Duration::from_millis(50));
        Ok(())
    }
}

/// Checks that a round ended in an allowed way and lost no decision; returns the number of known decisions.
fn judge(outcome: &RoundOutcome, place: &Path, decided_before: u64) -> Result<u64, String> {
    wait_until_nothing_is_left(place)?;
    no_panic(outcome, place)?;
    let ended_clearly = outcome.status.success()
        || outcome.up_was_killed && signal_of(outcome.status) == Some(KILLED)
        || outcome.status.code() == Some(1) && outcome.errors.starts_with("error");
    if !ended_clearly {
        return Err(format!("no clear end: {}\n{}", outcome.status, outcome.errors));
    }
    let mut decided = decided_before;
    for line in &outcome.printed {
        decided += u64::from(DECIDED.iter().any(|text| line.contains(text)));
        match decisions_in(line) {
            Some(held) if held < decided => {
                return Err(format!("{decided} decisions were acknowledged, the history holds {held}"));
            }
            // The history may hold more decisions: a vote counts even if its member was killed before it
            // learned so.
            Some(held) => decided = held,
            None => {}
        }
    }
    Ok(decided)
}

fn signal_of(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

fn wait_until_nothing_is_left(place: &Path) -> Result<(), String> {
    let began = Instant::now();
    loop {
        match nothing_is_left(place) {
            Err(left) if began.elapsed() > END_LIMIT => return Err(left),
            Err(_) => sleep(Duration::from_millis(100)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Checks that neither the demonstration nor any daemon panicked.
fn no_panic(outcome: &RoundOutcome, place: &Path) -> Result<(), String> {
    let mut texts = vec![("the demonstration".to_string(), outcome.errors.clone())];
    // A round may be killed before it has logs.
    let logs = std::fs::read_dir(place.join("logs")).into_iter().flatten().filter_map(Result::ok);
    texts.extend(logs.map(|log| {
        let text = std::fs::read(log.path()).unwrap_or_default();
        (log.path().display().to_string(), String::from_utf8_lossy(&text).into_owned())
    }));
    match texts.iter().find_map(|(name, text)| Some((name, text.find("panicked at")?, text))) {
        Some((name, at, text)) => Err(format!("{name}: {}", text[at..].lines().next().unwrap_or_default())),
        None => Ok(()),
    }
}

/// Reads the number from the demonstration's line `offline: 3 decisions, ...`.
fn decisions_in(line: &str) -> Option<u64> {
    line.split_once("offline: ")?.1.split_once(" decisions")?.0.parse().ok()
}

/// A random number generator: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    /// Draws a number in [0, 1).
    fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Draws a number of 64 bits.
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read_from_the_line_of_the_demonstration() {
        assert_eq!(decisions_in("  7.99 s  offline: 12 decisions, 4 ballots, every"), Some(12));
        assert_eq!(decisions_in("  7.99 s  status: ok"), None);
    }

    #[test]
    fn shares_are_between_zero_and_one() {
        let mut dice = SplitMix64(1);
        let shares: Vec<f64> = (0..1000).map(|_| dice.share()).collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        assert!(shares.iter().any(|share| *share < 0.05) && shares.iter().any(|share| *share > 0.95));
    }
}
