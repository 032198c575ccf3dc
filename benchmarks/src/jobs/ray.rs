//! Ray as the second peer: a head node on loopback, from its wheel, driven by `peers/ray_jobs.py`.

use super::load::AT_ONCE;
use crate::process::{ChildGuard, run_to_end};
use crate::report;
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// Wheel that pip installs, pinned, with what its job API needs.
const WHEEL: &str = "ray[default]==2.52.1";
/// Program that drives Ray.
const DRIVER: &str = include_str!("../../peers/ray_jobs.py");

/// Beginning of the driver's own lines.
const ANSWER: &str = "answer ";

/// A running Ray.
pub(super) struct Ray {
    /// Version, as Ray says it.
    pub(super) version: String,
    asked: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _driver: ChildGuard,
}

impl Ray {
    /// Installs the wheel if it is missing, and starts the node.
    pub(super) fn start() -> Result<Self> {
        let python = install()?;
        let driver = report::directory()?.join("ray_jobs.py");
        std::fs::write(&driver, DRIVER)?;
        let mut command = Command::new(python);
        command.arg(driver).arg(AT_ONCE.to_string()).env("RAY_USAGE_STATS_ENABLED", "0");
        let mut driver = ChildGuard::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (asked, answers) = driver.pipes().context("the driver has pipes")?;
        let mut answers = BufReader::new(answers).lines();
        let version = answer(&mut answers).context("start Ray")?;
        Ok(Self { version, asked, answers, _driver: driver })
    }

    /// Returns the seconds from the submission of a job to its first line.
    pub(super) fn first_line(&mut self) -> Result<f64> {
        self.ask("first")
    }

    /// Returns the seconds for this many remote tasks, each of which runs the program.
    pub(super) fn tasks(&mut self, count: usize) -> Result<f64> {
        self.ask(&format!("tasks {count}"))
    }

    fn ask(&mut self, question: &str) -> Result<f64> {
        writeln!(self.asked, "{question}")?;
        let answer = answer(&mut self.answers).with_context(|| question.to_string())?;
        answer.parse().with_context(|| format!("`{answer}` is no time"))
    }
}

/// Returns the next answer of the driver. Ray itself writes notes between them.
fn answer(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    for line in lines {
        if let Some(answer) = line?.strip_prefix(ANSWER) {
            return Ok(answer.trim().to_string());
        }
    }
    bail!("Ray has ended")
}

/// Returns the interpreter of an environment that has the wheel.
fn install() -> Result<PathBuf> {
    let venv = report::directory()?.join("ray-venv");
    let python = venv.join("bin/python3");
    let has_it = || Command::new(&python).args(["-c", "import ray"]).status().is_ok_and(|s| s.success());
    if !has_it() {
        eprintln!("installing {WHEEL} into {}", venv.display());
        run_to_end(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", WHEEL];
        run_to_end(Command::new(&python).args(words))?;
    }
    Ok(python)
}
