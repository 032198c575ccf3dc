//! `cargo xtask up`: builds both binaries, saying what will follow, and hands over to the demonstration.

use crate::process::{command, root, target};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const HELP: &str = "\
cargo xtask up [--once] [--fresh] [--model DIR]

Builds both binaries, then runs a whole cluster on this machine and tells its story.

  --once        run the story, stop everything, exit 0 only if every step held
  --fresh       forget what an earlier run left
  --model DIR   serve a Hugging Face model directory of your own instead of telling the story

Example: cargo xtask up --fresh
";

const STORY: &str = "\
What will happen
  1  build `quorate` and `quorate-serve` (minutes the first time, seconds afterwards)
  2  start 3 control replicas, 3 nodes and a gateway: real processes on loopback
  3  found a circle of three members with a 2-of-3 rule
  4  import two models, encrypted and erasure-coded 4+2 over six stores
  5  propose both deployments; two members sign; every node checks the signatures itself
  6  answer an embedding request and a streamed chat completion through the OpenAI API
  7  flip a bit in a shard; hand a node altered, replayed and unsigned orders
  8  kill a node while requests run
  9  check the circle's certificates offline, scan the nodes' ports
 10  wipe a node's disk, vote it in again, see it serve again
";

/// Builds, then becomes the demonstration.
pub(crate) fn up(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let own = arguments.iter().any(|argument| argument == "--model" || argument.starts_with("--model="));
    if !own {
        println!("{STORY}");
    }
    build()?;
    let mut all = if own { vec!["up".to_string()] } else { self::arguments()? };
    all.extend(arguments.iter().cloned());
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let program = target().join("debug/quorate").display().to_string();
    // In this process's place: Ctrl-C reaches the demonstration alone, and the prompt returns when it has ended.
    let error = command(&program, &all).exec();
    Err(format!("cannot run {program}: {error}"))
}

/// What the demonstration needs to be told: where its models and documents are.
pub(crate) fn arguments() -> Result<Vec<String>, String> {
    let minilm = crate::minilm::directory()?.display().to_string();
    let tiny = root().join("models/tiny").display().to_string();
    let documents = root().display().to_string();
    let words = ["up", "--demonstration", "--minilm", &minilm, "--tiny", &tiny, "--documents", &documents];
    Ok(words.map(str::to_string).to_vec())
}

/// Builds both binaries and shows how far it is.
pub(crate) fn build() -> Result<(), String> {
    let total = crates_to_build();
    let mut child =
        command("cargo", &["build", "--verbose", "--package", "control", "--package", "serving", "--bins"])
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
    let mut progress = Progress { started: Instant::now(), total, fresh: 0, built: 0 };
    let lines = child.stderr.take().map(BufReader::new).ok_or("cargo gave no output")?;
    let mut tail = Vec::new();
    for line in lines.lines().map_while(Result::ok) {
        progress.read(&line);
        // How each compiler was called helps nobody who looks for an error.
        if !["Fresh ", "Running "].iter().any(|word| line.trim_start().starts_with(word)) {
            tail.push(line);
        }
    }
    let status = child.wait().map_err(|error| format!("cannot wait for cargo: {error}"))?;
    if !status.success() {
        return Err(format!("{}\nthe build failed: {status}", tail.join("\n")));
    }
    println!("built quorate and quorate-serve in {:.0} s", progress.started.elapsed().as_secs_f64());
    Ok(())
}

/// How many packages the two binaries stand on.
fn crates_to_build() -> usize {
    let mut tree =
        command("cargo", &["tree", "--package", "control", "--package", "serving", "--prefix", "none"]);
    let text =
        crate::process::output(tree.args(["--edges", "normal,build", "--format", "{p}"])).unwrap_or_default();
    // A package that was listed before is marked so.
    let names = text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty());
    names.collect::<std::collections::BTreeSet<&str>>().len()
}

/// Seconds per crate on two cores before anything was measured.
const SECONDS_PER_CRATE_AT_FIRST: f64 = 1.2;

struct Progress {
    started: Instant,
    total: usize,
    /// Built by an earlier run.
    fresh: usize,
    built: usize,
}

impl Progress {
    fn read(&mut self, line: &str) {
        self.fresh += usize::from(line.trim_start().starts_with("Fresh "));
        let Some(name) = line.trim_start().strip_prefix("Compiling ") else {
            if line.starts_with("error") || line.starts_with("warning: unused") {
                println!("{line}");
            }
            return;
        };
        self.built += 1;
        if self.built == 1 || self.built.is_multiple_of(20) {
            println!(
                "building quorate, quorate-serve   {}/{} crates   about {} left   ({name})",
                self.built,
                self.total.saturating_sub(self.fresh).max(self.built),
                readable(self.left())
            );
        }
    }

    fn left(&self) -> Duration {
        let remaining = self.total.saturating_sub(self.fresh + self.built) as f64;
        let measured = self.started.elapsed().as_secs_f64() / self.built.max(1) as f64;
        let each = if self.built < 20 { SECONDS_PER_CRATE_AT_FIRST } else { measured };
        Duration::from_secs_f64(remaining * each)
    }
}

fn readable(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=89 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}
