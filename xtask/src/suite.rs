//! Runner of the Rust tests, each in a process of its own: listed by their binaries, run two to a core,
//! timed, repeated on request, and reported by name.
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
use std::path::{Path, PathBuf};
use std::process::Command;

/// Number of tests at the same time, per core. Many of them wait, for a disk or for another process.
const TESTS_PER_CORE: usize = 2;

/// Beginnings of the titles of the slowest tests. They start first, so that none ends long after all others.
const SLOWEST: [&str; 4] =
    ["console::browser::", "scheduler/cluster::", "protocol/memory::", "console::passkeys::"];

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
}

/// Wraps the command of a test, to put it under pressure and to observe it. The wrapped command creates the
/// file once the test touches the world.
pub(crate) type Wrap = Box<dyn Fn(Command, &Path) -> Command + Sync>;

/// Number of rounds, pressure and environment of a run.
pub(crate) struct TestPlan {
    /// Number of runs of every test that touches the world: one whose first run was observed to use time,
    /// sockets, threads, processes or disks. The others run once.
    pub(crate) rounds: usize,
    /// Number of tests at the same time, per core.
    pub(crate) per_core: usize,
    pub(crate) wrap: Wrap,
}

impl TestPlan {
    /// Returns the plan that runs every test once, unchanged.
    pub(crate) fn once() -> Self {
        Self { rounds: 1, per_core: TESTS_PER_CORE, wrap: Box::new(|command, _| command) }
    }
}

/// Returns the number of cores; two if it is unknown.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// Builds every test, then runs by `plan` the tests whose title contains `filter`, or all of them. The file
/// `test-times.txt` below the target directory then has the seconds of each.
pub(crate) fn run(plan: &TestPlan, filter: Option<&str>) -> Result<TestReport, String> {
    let mut tests: Vec<Test> = binaries::tests()?
        .into_iter()
        .filter(|test| filter.is_none_or(|wanted| test.title().contains(wanted)))
        .collect();
    tests.sort_by_key(|test| !SLOWEST.iter().any(|slow| test.title().starts_with(slow)));
    let first: Vec<_> = tests.iter().map(|test| (0, test)).collect();
    let report = run::all(&first, plan, TestReport::default());
    let again: Vec<&Test> = tests.iter().filter(|test| report.touches_the_world(&test.title())).collect();
    let later: Vec<_> =
        (1..plan.rounds).flat_map(|round| again.iter().map(move |test| (round, *test))).collect();
    let report = run::all(&later, plan, report);
    let table = process::target().join("test-times.txt");
    std::fs::write(&table, report.table()).map_err(|error| format!("write {}: {error}", table.display()))?;
    Ok(report)
}

/// Runs the examples in documentation, which libtest binaries do not contain.
pub(crate) fn documentation() -> Result<(), String> {
    process::run(&mut process::command("cargo", &["test", "--quiet", "--doc"]))
}
