//! `cargo xtask up`: builds the binaries, prints the steps that follow, and replaces itself by the
//! demonstration, or by `quorate up` with a model of the user.

use crate::compile::{Selection, build};
use crate::process::{command, root, target};
use std::os::unix::process::CommandExt;

const HELP: &str = "\
cargo xtask up [--once] [--fresh] [--model DIR]

Builds both binaries, then runs a whole cluster on this machine and shows each step.

  --once        run every step, stop everything, exit 0 only if every step held
  --fresh       delete the state of an earlier run
  --model DIR   serve a Hugging Face model directory of your own instead of the demonstration

Example: cargo xtask up --fresh
";

const STORY: &str = "\
What will happen
  1  build `quorate`, `quorate-serve` and the demonstration (minutes the first time, seconds afterwards)
  2  `quorate up`: 3 control replicas, 3 nodes and a gateway, real processes on loopback
  3  found a circle of three members with a 2-of-3 rule
  4  import two models, encrypted and erasure-coded 4+2 over six stores
  5  propose both deployments; two members sign; every node checks the signatures itself
  6  answer an embedding request and a streamed chat completion through the OpenAI API
  7  run a job within what was approved; train a model on two nodes, kill one, resume, vote the outcome in
  8  flip a bit in a shard; hand a node altered, replayed and unsigned orders
  9  kill a node while requests run
 10  check the circle's certificates offline, scan the nodes' ports
 11  wipe a node's disk, vote it in again, see it serve again
";

/// Builds, then executes the demonstration in this process.
pub(crate) fn up(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let own = arguments.iter().any(|argument| argument == "--model" || argument.starts_with("--model="));
    if !own {
        println!("{STORY}");
    }
    build(if own { Selection::Binaries } else { Selection::Demonstration })?;
    let (name, mut all) =
        if own { ("quorate", vec!["up".to_string()]) } else { ("demo", self::arguments()?) };
    all.extend(arguments.iter().cloned());
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let program = target().join("debug").join(name).display().to_string();
    // `exec` keeps this process: Ctrl-C reaches the demonstration alone, and the prompt returns when it has
    // ended.
    let error = command(&program, &all).exec();
    Err(format!("cannot run {program}: {error}"))
}

/// Returns the arguments of the demonstration: the paths of its models and documents.
pub(crate) fn arguments() -> Result<Vec<String>, String> {
    let minilm = crate::minilm::directory()?.display().to_string();
    let tiny = root().join("models/tiny").display().to_string();
    let documents = root().display().to_string();
    let words = ["--minilm", &minilm, "--tiny", &tiny, "--documents", &documents];
    Ok(words.map(str::to_string).to_vec())
}
