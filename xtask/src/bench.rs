//! `bench NAME` and `train-tiny`: ordinary programs of the workspace.

use crate::compile::{self, Selection};
use crate::process;

/// `cargo xtask bench NAME ...`: builds a release, fetches the requirements of the named benchmark, then runs
/// it; its arguments pass through.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let name = arguments.first().map_or("--list", String::as_str);
    if name == "structured" {
        return structured();
    }
    if matches!(name, "quickstart" | "embeddings") {
        crate::minilm::directory()?;
    }
    let measures_gpu = arguments.iter().any(|argument| argument.starts_with("--gpu"));
    compile::build(if measures_gpu { Selection::ReleaseForGpu } else { Selection::Release })?;
    let program = process::target().join("release").join("benchmarks").display().to_string();
    let arguments: Vec<&str> = match arguments {
        [] => vec!["--list"],
        given => given.iter().map(String::as_str).collect(),
    };
    process::run(&mut process::command(&program, &arguments))
}

/// Holds real JSON schemas to their instances, token by token; `QUORATE_DATA` names the data's directory.
fn structured() -> Result<(), String> {
    let example = ["run", "--release", "--package", "serving", "--example", "structured"];
    process::run(&mut process::command("cargo", &example))
}

/// Trains the shipped language model again.
pub(crate) fn train_tiny() -> Result<(), String> {
    process::run(&mut process::command("cargo", &["run", "--package", "serving", "--example", "train_tiny"]))
}
