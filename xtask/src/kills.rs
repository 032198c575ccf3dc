//! `kill -9` of any process at any moment of the demonstration: round after round the story is told while
//! processes of it are killed, `up` itself among them, and control replicas, the leader above all, are killed and
//! paused. A round may end with an error, if it is a clear one; nothing may panic, nothing may stay behind, and
//! nothing that was decided may be lost: the last round, undisturbed, has to hold from whatever the others left.
//!
//! A client writes through the control API all the while. In the end every write that was acknowledged is found
//! once, every one that was refused as not done is not found, and every other is found once or not at all.
//!
//! What may surprise: moments are drawn from a seed, but what runs at a moment is the machine's affair, so
//! the same seed is not the same run.

mod faults;
mod history;
mod http;
mod writer;

use crate::cluster::{STAYS_UP, nothing_is_left, start};
use crate::compile::{self, Selection};
use crate::minilm;
use crate::process::{command, target};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};
use writer::{Notes, Writer};

const HELP: &str = "\
cargo xtask kills [ROUNDS] [SEED]

Tells the demonstration's story ROUNDS times (3) while processes of it are killed and control replicas are killed and
paused, at moments drawn from SEED, and a client writes through the control API.
";

/// Rounds that `cargo xtask test` plays; a machine with more time plays more, with other seeds.
const ROUNDS: u64 = 3;
/// How long a round may take on a busy machine.
const ROUND_LIMIT: Duration = Duration::from_secs(180);
/// How long leases may take to end what a killed `up` left, on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(20);
/// What the story says when a decision was acknowledged.
const DECIDED: [&str; 2] = ["(Ed25519 and ML-DSA-65)  2 of 2", "admitted by 2 votes"];
/// What the story says once everything runs.
const FIRST_ANSWER: &str = "first answer";
/// Exit status of a signal's victim, as the standard library shows it.
const KILLED: i32 = 9;

/// What a round printed and how it ended.
struct Outcome {
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
    play(number(0, ROUNDS)?, number(1, 1)?)
}

/// What `cargo xtask test` runs.
pub(crate) fn in_tests() -> Result<(), String> {
    play(ROUNDS, 1)
}

fn play(rounds: u64, seed: u64) -> Result<(), String> {
    minilm::directory()?;
    compile::build(Selection::Everything)?;
    let place = target().join("kill-cluster");
    let _ = std::fs::remove_dir_all(&place);
    let (mut dice, mut notes) = (Dice(seed), Notes::new(&place, seed));
    let mut decided = kill_up_alone(&place)?;
    for round in 1..=rounds {
        notes.scales = true;
        let writer = Writer::start(notes);
        let outcome = disturbed(&place, &mut dice, round);
        notes = writer.stop()?;
        let outcome = outcome?;
        decided = judge(&outcome, &place, decided)?;
        let verdict = match (outcome.up_was_killed, outcome.status.success()) {
            (true, _) => "`up` was killed; its leases ended everything".to_string(),
            (_, true) => "the story held all the same".to_string(),
            (_, false) => format!("ended with: {}", outcome.errors.lines().next().unwrap_or_default()),
        };
        println!("round {round}/{rounds}  {verdict}");
    }
    notes.scales = false;
    let (last, written) = undisturbed(&place, notes)?;
    if !last.status.success() {
        return Err(format!("the undisturbed round: {}\n{}", last.printed.join("\n"), last.errors));
    }
    judge(&last, &place, decided)?;
    println!("undisturbed: the story holds from what {rounds} rounds of kills left");
    println!("a client of the control API: {}", written?);
    Ok(())
}

/// `up` itself is killed while everything runs: leases end what it left. How many decisions were acknowledged.
fn kill_up_alone(place: &Path) -> Result<u64, String> {
    let mut up = start(place, &["--once"], Stdio::inherit())?;
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
        return Err(format!("the story ended before its first answer: {status}\n{}", printed.join("\n")));
    }
    let began = Instant::now();
    let outcome = Outcome { status, printed, errors: String::new(), up_was_killed: true };
    let decided = judge(&outcome, place, 0)?;
    println!("`up` alone killed: nothing is left after {:.1} s", began.elapsed().as_secs_f64());
    Ok(decided)
}

/// Tells the story while processes are killed and paused.
fn disturbed(place: &Path, dice: &mut Dice, round: u64) -> Result<Outcome, String> {
    let story = Story::begin(place, &["--once"])?;
    let (story, up_was_killed) = faults::strike(story, place, dice, round)?;
    story.finish(up_was_killed)
}

/// Tells the story once more while the client writes, looks at what the client wrote while the cluster stands, and ends
/// it.
fn undisturbed(place: &Path, notes: Notes) -> Result<(Outcome, Result<String, String>), String> {
    let writer = Writer::start(notes);
    let mut story = Story::begin(place, &[])?;
    let stands = story.wait_until(|line| line.contains(STAYS_UP));
    let notes = writer.stop()?;
    let written = match stands {
        Ok(true) => notes.judge(),
        Ok(false) => Err("the cluster ended before the client's writes were looked at".into()),
        Err(error) => Err(error),
    };
    // One that has ended cannot be told to.
    let _ = command("kill", &["-INT", &story.up.id().to_string()]).stderr(Stdio::null()).status();
    Ok((story.finish(false)?, written))
}

/// A demonstration that runs, and what it has printed so far.
struct Story {
    up: Child,
    began: Instant,
    printed: Arc<Mutex<Vec<String>>>,
    readers: (JoinHandle<()>, JoinHandle<String>),
}

impl Story {
    fn begin(place: &Path, flags: &[&str]) -> Result<Self, String> {
        let mut up = start(place, flags, Stdio::piped())?;
        let (output, mut errors) =
            (up.stdout.take().ok_or("no output")?, up.stderr.take().ok_or("no errors")?);
        let printed = Arc::new(Mutex::new(Vec::new()));
        let shared = printed.clone();
        let lines = spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let complaints = spawn(move || {
            let mut text = String::new();
            // What is no text is no clear error either, and is judged as it is.
            let _ = errors.read_to_string(&mut text);
            text
        });
        Ok(Self { up, began: Instant::now(), printed, readers: (lines, complaints) })
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

    fn finish(mut self, up_was_killed: bool) -> Result<Outcome, String> {
        let status = loop {
            match self.has_ended()? {
                Some(status) => break status,
                None => self.pause()?,
            }
        };
        let read = |_| "a reader of the story's output failed".to_string();
        self.readers.0.join().map_err(read)?;
        let errors = self.readers.1.join().map_err(read)?;
        let printed = std::mem::take(&mut *self.printed.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Outcome { status, printed, errors, up_was_killed })
    }

    fn pause(&mut self) -> Result<(), String> {
        if self.began.elapsed() > ROUND_LIMIT {
            let _ = self.up.kill();
            return Err(format!("a round took more than {} s", ROUND_LIMIT.as_secs()));
        }
        sleep(Duration::from_millis(50));
        Ok(())
    }
}

/// Whether a round ended as it may and lost no decision; how many are known to be made now.
fn judge(outcome: &Outcome, place: &Path, decided_before: u64) -> Result<u64, String> {
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
        decided += u64::from(DECIDED.iter().any(|said| line.contains(said)));
        match decisions_in(line) {
            Some(held) if held < decided => {
                return Err(format!("{decided} decisions were acknowledged, the history holds {held}"));
            }
            // More than were seen: a vote may count although whoever voted was killed before it was told.
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

/// Neither the story nor any daemon panicked.
fn no_panic(outcome: &Outcome, place: &Path) -> Result<(), String> {
    let mut texts = vec![("the demonstration".to_string(), outcome.errors.clone())];
    // A round may be killed before it had logs.
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

/// `offline: 3 decisions, ...` of the story.
fn decisions_in(line: &str) -> Option<u64> {
    line.split_once("offline: ")?.1.split_once(" decisions")?.0.parse().ok()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// A number in [0, 1).
    fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number of 64 bits.
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
    fn decisions_are_read_from_the_storys_line() {
        assert_eq!(decisions_in("  7.99 s  offline: 12 decisions, 4 ballots, every"), Some(12));
        assert_eq!(decisions_in("  7.99 s  status: ok"), None);
    }

    #[test]
    fn dice_fall_between_nothing_and_one() {
        let mut dice = Dice(1);
        let throws: Vec<f64> = (0..1000).map(|_| dice.share()).collect();
        assert!(throws.iter().all(|share| (0.0..1.0).contains(share)));
        assert!(throws.iter().any(|share| *share < 0.05) && throws.iter().any(|share| *share > 0.95));
    }
}
