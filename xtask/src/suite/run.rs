//! Runs tests in parallel, one process each, and measures their durations.

use super::report::{TestReport, TestRun};
use super::{Test, TestPlan, cores};
use crate::process::{command, target};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Time limit after which a test counts as hung: no test here takes a tenth of it on a busy machine.
const HANG_LIMIT: Duration = Duration::from_secs(600);
/// Interval between two polls of a running test; the longest test takes a thousand times as long.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Number of bytes of a failed test's output to print; the whole output stays in a file.
const TAIL_BYTES: i64 = 6000;
/// Number of runs between two progress lines.
const RUNS_PER_PROGRESS_LINE: usize = 100;

/// Runs the tests, each in its round, as many in parallel as planned, and reports the runs.
pub(super) fn all(runs: &[(usize, &Test)], plan: &TestPlan, report: TestReport) -> TestReport {
    let total = report.runs() + runs.len();
    let (next, report) = (AtomicUsize::new(0), Mutex::new(report));
    let work = || {
        while let Some((round, test)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = one(*round, test, plan);
            let mut report = report.lock().expect("no holder of the report panics");
            if let Err(reason) = &outcome.verdict {
                println!("FAILED  {}  (round {}): {reason}", test.title(), round + 1);
            }
            report.add(outcome);
            let done = report.runs();
            if done.is_multiple_of(RUNS_PER_PROGRESS_LINE) {
                println!("{done} of {total} test runs, {} failed", report.failed());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores() * plan.per_core {
            scope.spawn(work);
        }
    });
    report.into_inner().expect("no holder of the report panics")
}

fn one(round: usize, test: &Test, plan: &TestPlan) -> TestRun {
    let began = Instant::now();
    let mark = output_file(round, test, "touches");
    let verdict = log_file(round, test).and_then(|(path, log)| {
        let program = test.program.display().to_string();
        let mut plain = command(&program, &["--exact", &test.name, "--nocapture"]);
        plain.current_dir(&test.directory);
        let mut wrapped = (plan.wrap)(plain, &mark);
        let verdict = verdict(&mut wrapped, &log);
        if verdict.is_ok() {
            // The log of a passed test is not needed.
            let _ = std::fs::remove_file(&path);
        }
        verdict.map_err(|reason| format!("{reason}; whole output: {}\n{}", path.display(), tail(&path)))
    });
    // The mark is there if the test touched the world, and goes, so that a later run finds none.
    let touches_the_world = std::fs::remove_file(&mark).is_ok();
    TestRun { title: test.title(), round, verdict, took: began.elapsed(), touches_the_world }
}

/// Runs the command with its output in `log`; an error describes its end.
fn verdict(command: &mut Command, log: &File) -> Result<(), String> {
    let copy = || log.try_clone().map_err(|error| format!("its log: {error}"));
    let child =
        command.stdin(std::process::Stdio::null()).stdout(copy()?).stderr(copy()?).process_group(0).spawn();
    let mut child = child.map_err(|error| format!("it does not start: {error}"))?;
    match wait(&mut child)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{status}")),
        None => Err(format!("it hung for {} s and was killed", HANG_LIMIT.as_secs())),
    }
}

/// Waits for the exit status. Kills the whole process group of a hung test and returns `None`.
fn wait(child: &mut Child) -> Result<Option<ExitStatus>, String> {
    let began = Instant::now();
    loop {
        let status = child.try_wait().map_err(|error| format!("waiting for it: {error}"))?;
        if status.is_some() {
            return Ok(status);
        }
        if began.elapsed() > HANG_LIMIT {
            let group = format!("-{}", child.id());
            let killed = command("kill", &["-KILL", "--", &group]).status();
            killed.map_err(|error| format!("it hung and cannot be killed: {error}"))?;
            return child.wait().map(|_| None).map_err(|error| format!("waiting for it: {error}"));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn log_file(round: usize, test: &Test) -> Result<(PathBuf, File), String> {
    let directory = output_directory();
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("create {}: {error}", directory.display()))?;
    let path = output_file(round, test, "txt");
    let file = File::create(&path).map_err(|error| format!("create {}: {error}", path.display()))?;
    Ok((path, file))
}

fn output_directory() -> PathBuf {
    target().join("test-output")
}

fn output_file(round: usize, test: &Test, suffix: &str) -> PathBuf {
    let name = test.title().replace("::", "-").replace('/', "-");
    output_directory().join(format!("{name}.{}.{suffix}", round + 1))
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("its output cannot be read: {error}"))
}
