//! Runner of the Rust tests, each in a process of its own: listed by their binaries, run in parallel on all
//! cores, timed, repeated on request, and reported by name.
//!
//! libtest gives no durations on a stable compiler and no repetition, and cargo-nextest takes minutes to
//! build on a fresh machine. `docs/decisions/2026-11-22-our-own-test-runner.md` weighs the two. A test that
//! hangs is killed with its whole process group and counts as failed. Otherwise no verdict depends on a
//! test's duration.

mod binaries;
mod report;
mod run;

pub(crate) use report::TestReport;

use crate::process;
use std::path::PathBuf;
use std::process::Command;

/// Crates whose tests only compute: no clock, thread, socket, process or disk (`tidy/purity.rs`).
const PURE: [&str; 3] = crate::tidy::PURE_CRATES;

/// One test of one binary.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    package: String,
    /// Short name of the test binary: that of the crate, or of a file in `tests/`.
    target: String,
    /// Path of the test within the binary.
    name: String,
    program: PathBuf,
    /// Directory of the crate, which is a test's working directory.
    directory: PathBuf,
}

impl Test {
    /// Returns the test's name in lists: crate, binary and path.
    fn title(&self) -> String {
        if self.target == self.package.replace('-', "_") || self.target == self.package {
            return format!("{}::{}", self.package, self.name);
        }
        format!("{}/{}::{}", self.package, self.target, self.name)
    }

    /// Whether the test may use real time, sockets, processes or disks.
    fn touches_the_world(&self) -> bool {
        !PURE.contains(&self.package.as_str())
    }
}

/// Number of rounds, and environment, of a run.
pub(crate) struct TestPlan {
    /// Number of runs of every test that touches the world; the others run once.
    pub(crate) rounds: usize,
    /// Wraps the command of a test, to put it under pressure.
    pub(crate) wrap: Box<dyn Fn(Command) -> Command + Sync>,
}

impl TestPlan {
    /// Returns the plan that runs every test once, unchanged.
    pub(crate) fn once() -> Self {
        Self { rounds: 1, wrap: Box::new(|command| command) }
    }
}

/// Builds every test, then runs by `plan` the tests whose title contains `filter`, or all of them.
pub(crate) fn run(plan: &TestPlan, filter: Option<&str>) -> Result<TestReport, String> {
    let tests: Vec<Test> = binaries::tests()?
        .into_iter()
        .filter(|test| filter.is_none_or(|wanted| test.title().contains(wanted)))
        .collect();
    let mut runs = Vec::new();
    for round in 0..plan.rounds {
        let due = |test: &&Test| round == 0 || test.touches_the_world();
        runs.extend(tests.iter().filter(due).cloned().map(|test| (round, test)));
    }
    Ok(run::all(runs, plan))
}

/// Runs the examples in documentation, which libtest binaries do not contain.
pub(crate) fn documentation() -> Result<(), String> {
    process::run(&mut process::command("cargo", &["test", "--quiet", "--doc"]))
}
