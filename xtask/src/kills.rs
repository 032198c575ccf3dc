//! `kill -9` of any process at any moment of the demonstration: round after round the story is told while
//! processes of it are killed, `up` itself among them. A round may end with an error, if it is a clear one;
//! nothing may panic, nothing may stay behind, and nothing that was decided may be lost: the last round,
//! undisturbed, has to hold from whatever the others left.
//!
//! What may surprise: moments are drawn from a seed, but what runs at a moment is the machine's affair, so
//! the same seed is not the same run.

use crate::cluster::{nothing_is_left, start};
use crate::process::{command, target};
use crate::{demo, minilm};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const HELP: &str = "\
cargo xtask kills [ROUNDS] [SEED]

Tells the demonstration's story ROUNDS times (3) while processes of it are killed at moments drawn from SEED.
";

/// Rounds that `cargo xtask test` plays; a machine with more time plays more, with other seeds.
const ROUNDS: u64 = 3;
/// Processes killed in a round.
const KILLS: u64 = 3;
/// Kills fall into this time after the start of a round: about as long as the story takes.
const STORY: Duration = Duration::from_secs(12);
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
    demo::build()?;
    let place = target().join("kill-cluster");
    let _ = std::fs::remove_dir_all(&place);
    let mut dice = Dice(seed);
    let mut decided = kill_up_alone(&place)?;
    for round in 1..=rounds {
        let outcome = disturbed(&place, &mut dice, round)?;
        decided = judge(&outcome, &place, decided)?;
        let verdict = match (outcome.up_was_killed, outcome.status.success()) {
            (true, _) => "`up` was killed; its leases ended everything".to_string(),
            (_, true) => "the story held all the same".to_string(),
            (_, false) => format!("ended with: {}", outcome.errors.lines().next().unwrap_or_default()),
        };
        println!("round {round}/{rounds}  {verdict}");
    }
    let last = undisturbed(&place)?;
    if !last.status.success() {
        return Err(format!("the undisturbed round: {}\n{}", last.printed.join("\n"), last.errors));
    }
    judge(&last, &place, decided)?;
    println!("undisturbed: the story holds from what {rounds} rounds of kills left");
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

/// Tells the story while processes are killed.
fn disturbed(place: &Path, dice: &mut Dice, round: u64) -> Result<Outcome, String> {
    let began = Instant::now();
    let (mut up, readers) = begin(place)?;
    let mut moments: Vec<Duration> = (0..KILLS).map(|_| STORY.mul_f64(dice.share())).collect();
    moments.sort();
    let mut up_was_killed = false;
    for moment in moments {
        sleep(moment.saturating_sub(began.elapsed()));
        if up.try_wait().map_err(|error| error.to_string())?.is_some() {
            break;
        }
        let (victim, name) = choose(up.id(), dice);
        println!("round {round}  {:5.2} s  kill -9 {name} ({victim})", began.elapsed().as_secs_f64());
        // One that ended in between is as good.
        let _ = command("kill", &["-9", &victim.to_string()]).stderr(Stdio::null()).status();
        up_was_killed |= victim == up.id();
    }
    finish(up, readers, up_was_killed)
}

fn undisturbed(place: &Path) -> Result<Outcome, String> {
    let (up, readers) = begin(place)?;
    finish(up, readers, false)
}

type Readers = (JoinHandle<Vec<String>>, JoinHandle<String>);

fn begin(place: &Path) -> Result<(Child, Readers), String> {
    let mut up = start(place, &["--once"], Stdio::piped())?;
    let (output, mut errors) = (up.stdout.take().ok_or("no output")?, up.stderr.take().ok_or("no errors")?);
    let printed = spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect());
    let complaints = spawn(move || {
        let mut text = String::new();
        // What is no text is no clear error either, and is judged as it is.
        let _ = errors.read_to_string(&mut text);
        text
    });
    Ok((up, (printed, complaints)))
}

fn finish(mut up: Child, readers: Readers, up_was_killed: bool) -> Result<Outcome, String> {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = up.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if began.elapsed() > ROUND_LIMIT {
            let _ = up.kill();
            return Err(format!("a round took more than {} s", ROUND_LIMIT.as_secs()));
        }
        sleep(Duration::from_millis(50));
    };
    let read = |_| "a reader of the story's output failed".to_string();
    let (printed, errors) = (readers.0.join().map_err(read)?, readers.1.join().map_err(read)?);
    Ok(Outcome { status, printed, errors, up_was_killed })
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

/// One of a demonstration's processes, and what it is.
fn choose(up: u32, dice: &mut Dice) -> (u32, String) {
    let mut family = vec![(up, "up".to_string())];
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
    family.swap_remove((dice.share() * family.len() as f64) as usize)
}

/// Process id, its parent's, and the words that tell daemons apart.
fn describe(process: &Path) -> Option<(u32, u32, String)> {
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one does not.
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

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    /// A number in [0, 1).
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
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

    #[test]
    fn this_process_is_described() {
        let (pid, _, _) = describe(Path::new("/proc/self")).map_or((0, 0, String::new()), |found| found);
        // `/proc/self` ends in no number.
        assert_eq!(pid, 0);
        let own = format!("/proc/{}", std::process::id());
        assert_eq!(describe(Path::new(&own)).map(|(pid, _, _)| pid), Some(std::process::id()));
    }
}
