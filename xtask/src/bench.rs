//! `bench NAME` and `train-tiny`: ordinary programs of the workspace, started in the same way.

use crate::compile::{self, Selection};
use crate::process;

/// `cargo xtask bench NAME ...`: fetches the requirements of the named benchmark, then runs it; its arguments
/// pass through.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let name = arguments.first().map_or("--list", String::as_str);
    if matches!(name, "quickstart" | "embeddings") {
        crate::minilm::directory()?;
    }
    if matches!(name, "quickstart" | "autonomy" | "human-chain") {
        compile::build(Selection::Binaries)?;
    }
    let mut all = vec!["run", "--quiet", "--package", "benchmarks"];
    if arguments.iter().any(|argument| argument.starts_with("--gpu")) {
        all.extend(["--features", "cuda"]);
    }
    all.extend(["--", name]);
    all.extend(arguments.iter().skip(1).map(String::as_str));
    process::run(&mut process::command("cargo", &all))
}

/// Trains the shipped language model again.
pub(crate) fn train_tiny() -> Result<(), String> {
    process::run(&mut process::command("cargo", &["run", "--package", "serving", "--example", "train_tiny"]))
}
