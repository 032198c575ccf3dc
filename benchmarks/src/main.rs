//! Benchmarks against peers, alternated in one run: `benchmarks NAME [--quick] [--check]`.
//!
//! Each benchmark is one module with a `run` that returns a [`report::BenchmarkReport`]. It installs and
//! starts its peer on its own. Absolute figures are context; the ratio measured in the same run is the
//! result.

mod autonomy;
mod ceilings;
mod cluster;
mod consensus;
mod embeddings;
mod engine;
mod first_token;
mod human_chain;
mod jobs;
mod peer;
mod process;
mod quickstart;
mod report;

use anyhow::{Context, bail};
use clap::Parser;
use std::process::ExitCode;

/// Measure one area beside its peer, and write target/bench/NAME.json.
///
/// Example: benchmarks consensus --quick
#[derive(Parser)]
#[command(name = "benchmarks")]
struct Arguments {
    /// Name of the benchmark; `--list` shows the names.
    name: Option<String>,
    /// Run fewer rounds, or shorter ones.
    #[arg(long)]
    quick: bool,
    /// Exit with status 1 when a result misses its bar.
    #[arg(long)]
    check: bool,
    /// Compute on this CUDA device, on both sides (`embeddings`; built with `--features cuda`).
    #[arg(long, value_name = "ORDINAL")]
    gpu: Option<usize>,
    /// Measure only this part of the benchmark (`human-chain`: verification, session or fleet; `jobs`: plan,
    /// queue, link, artifacts, absence, kills or train).
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// List the benchmarks.
    #[arg(long)]
    list: bool,
    /// Run a part of the system under test, described by the parent process.
    #[arg(long, hide = true)]
    part: Option<String>,
}

/// Options of a benchmark.
struct Options {
    quick: bool,
    gpu: Option<usize>,
    only: Option<String>,
}

type BenchmarkFunction = fn(&Options) -> anyhow::Result<report::BenchmarkReport>;

/// Every benchmark: its name, its comparison, and its function.
const BENCHMARKS: &[(&str, &str, BenchmarkFunction)] = &[
    ("autonomy", "requests while every control replica is dead, beside the same with control", autonomy::run),
    ("consensus", "committed commands through 3 replicas with fsync, beside etcd", consensus::run),
    (
        "embeddings",
        "MiniLM vectors on the CPU, beside sentence-transformers and onnxruntime",
        embeddings::run,
    ),
    ("engine", "a decoder with weights of 8 bits on the CPU, beside llama.cpp", engine::run),
    (
        "human-chain",
        "certificates beside tough's TUF metadata; sessions, decisions and halts beside their bars",
        human_chain::run,
    ),
    (
        "jobs",
        "submission to first line, short jobs and the link of a gang, beside Slurm and iperf3",
        jobs::run,
    ),
    ("quickstart", "order accepted to last segment verified, beside candle's loaders", quickstart::run),
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, what, _) in BENCHMARKS {
            println!("{name:14} {what}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = arguments.name.context("name a benchmark; --list shows them")?;
    if let Some(part) = arguments.part {
        return match name.as_str() {
            "consensus" => consensus::part(&part).map(|()| ExitCode::SUCCESS),
            "human-chain" => human_chain::part(&part).map(|()| ExitCode::SUCCESS),
            "jobs" => jobs::part(&part).map(|()| ExitCode::SUCCESS),
            _ => bail!("`{name}` has no parts"),
        };
    }
    let Some((_, _, run)) = BENCHMARKS.iter().find(|(known, _, _)| *known == name) else {
        bail!("no benchmark is called `{name}`; --list shows them");
    };
    if arguments.gpu.is_some() && name != "embeddings" {
        bail!("`{name}` computes nothing on a GPU; `embeddings` does");
    }
    let sections = match name.as_str() {
        "human-chain" => &human_chain::SECTIONS[..],
        "jobs" => &jobs::SECTIONS[..],
        _ => &[],
    };
    if let Some(only) = arguments.only.as_deref().filter(|only| !sections.contains(only)) {
        bail!("`{name}` has no part `{only}`; its parts: {}", sections.join(", "));
    }
    let report = run(&Options { quick: arguments.quick, gpu: arguments.gpu, only: arguments.only })?;
    print!("{}", report.table());
    let path = report.write()?;
    println!("\nwritten to {}", path.display());
    let short = report.shortfalls();
    for row in &short {
        println!("falls short: {row}");
    }
    Ok(if arguments.check && !short.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_benchmark_has_a_name_of_its_own_and_a_comparison() {
        let names: BTreeSet<&str> = BENCHMARKS.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(names.len(), BENCHMARKS.len(), "{names:?}");
        assert!(BENCHMARKS.iter().all(|(_, comparison, _)| comparison.contains("beside")));
    }
}
