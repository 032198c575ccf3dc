//! Results of a test run: failures by test, the slowest tests, and a closing line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Number of slow tests that a report names.
const SLOWEST: usize = 10;

/// One run of one test.
pub(crate) struct TestRun {
    pub(crate) title: String,
    /// Counted from 0.
    pub(crate) round: usize,
    /// The error is the reason of the failure.
    pub(crate) verdict: Result<(), String>,
    pub(crate) took: Duration,
    /// Whether the run was observed to use time, sockets, threads, processes or disks.
    pub(crate) touches_the_world: bool,
}

/// All runs so far, by test.
#[derive(Default)]
pub(crate) struct TestReport {
    tests: BTreeMap<String, Runs>,
}

#[derive(Default)]
struct Runs {
    count: usize,
    failed: Vec<usize>,
    longest: Duration,
    all: Duration,
    touches_the_world: bool,
}

impl TestReport {
    /// Adds a run.
    pub(crate) fn add(&mut self, outcome: TestRun) {
        let runs = self.tests.entry(outcome.title).or_default();
        runs.count += 1;
        runs.longest = runs.longest.max(outcome.took);
        runs.all += outcome.took;
        runs.touches_the_world |= outcome.touches_the_world;
        if outcome.verdict.is_err() {
            runs.failed.push(outcome.round + 1);
        }
    }

    /// Returns the number of runs of all tests.
    pub(crate) fn runs(&self) -> usize {
        self.tests.values().map(|runs| runs.count).sum()
    }

    /// Returns the number of failed runs.
    pub(crate) fn failed(&self) -> usize {
        self.tests.values().map(|runs| runs.failed.len()).sum()
    }

    /// Whether a run of this test was observed to use time, sockets, threads, processes or disks.
    pub(crate) fn touches_the_world(&self, title: &str) -> bool {
        self.tests.get(title).is_some_and(|runs| runs.touches_the_world)
    }

    /// Returns the number of tests that touch the world, and that of all.
    pub(crate) fn touching(&self) -> (usize, usize) {
        (self.tests.values().filter(|runs| runs.touches_the_world).count(), self.tests.len())
    }

    /// Returns a line for each test with the seconds of all its runs, their number and its name, the test
    /// with the most seconds first.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<_> = self.tests.iter().collect();
        rows.sort_by_key(|(title, runs)| (std::cmp::Reverse(runs.all), *title));
        rows.iter().fold(String::new(), |mut text, (title, runs)| {
            let _ = writeln!(text, "{:8.1}  {:4}  {title}", runs.all.as_secs_f64(), runs.count);
            text
        })
    }

    /// Describes failures by test, the slowest tests, and the number of passed runs.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (title, runs) in self.tests.iter().filter(|(_, runs)| !runs.failed.is_empty()) {
            let rounds: Vec<String> = runs.failed.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                text,
                "failed {} of {}  {title}  (round {})",
                runs.failed.len(),
                runs.count,
                rounds.join(", ")
            );
        }
        let mut slow: Vec<_> = self.tests.iter().map(|(title, runs)| (runs.longest, title)).collect();
        slow.sort_by(|a, b| b.cmp(a));
        let _ = writeln!(text, "the slowest {} of {} tests:", slow.len().min(SLOWEST), slow.len());
        for (longest, title) in slow.iter().take(SLOWEST) {
            let _ = writeln!(text, "  {:6.1} s  {title}", longest.as_secs_f64());
        }
        let failed = self.failed();
        let _ = write!(text, "tests: {} passed, {failed} failed", self.runs() - failed);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(title: &str, round: usize, failed: bool, seconds: u64) -> TestRun {
        let verdict = if failed { Err("exit status: 101".to_string()) } else { Ok(()) };
        TestRun {
            title: title.into(),
            round,
            verdict,
            took: Duration::from_secs(seconds),
            touches_the_world: false,
        }
    }

    #[test]
    fn failures_are_reported_by_test_and_round_and_the_slowest_come_first() {
        let mut report = TestReport::default();
        report.add(outcome("a::quick", 0, false, 1));
        report.add(outcome("b::shaky", 0, false, 2));
        report.add(outcome("b::shaky", 1, true, 9));
        report.add(outcome("b::shaky", 2, true, 3));
        let expected = [
            "failed 2 of 3  b::shaky  (round 2, 3)",
            "the slowest 2 of 2 tests:",
            "     9.0 s  b::shaky",
            "     1.0 s  a::quick",
            "tests: 2 passed, 2 failed",
        ];
        assert_eq!(report.text(), expected.join("\n"));
    }

    #[test]
    fn the_table_has_the_seconds_of_all_runs_of_a_test() {
        let mut report = TestReport::default();
        report.add(outcome("a", 0, false, 5));
        report.add(outcome("b", 0, false, 3));
        report.add(outcome("b", 1, true, 4));
        assert_eq!(report.table(), "     7.0     2  b\n     5.0     1  a\n");
    }

    #[test]
    fn one_observed_run_is_enough_for_a_test_to_touch_the_world() {
        let mut report = TestReport::default();
        report.add(outcome("a", 0, false, 1));
        report.add(outcome("b", 0, false, 1));
        report.add(TestRun { touches_the_world: true, ..outcome("b", 1, false, 1) });
        report.add(outcome("b", 2, false, 1));
        assert!(report.touches_the_world("b"));
        assert!(!report.touches_the_world("a") && !report.touches_the_world("unknown"));
        assert_eq!(report.touching(), (1, 2));
    }

    #[test]
    fn no_more_than_ten_slow_tests_are_named() {
        let mut report = TestReport::default();
        (0..20).for_each(|at| report.add(outcome(&format!("t{at:02}"), 0, false, at)));
        let text = report.text();
        assert!(text.contains("the slowest 10 of 20 tests:\n    19.0 s  t19\n"), "{text}");
        assert!(!text.contains("t09") && text.ends_with("tests: 20 passed, 0 failed"), "{text}");
    }
}
