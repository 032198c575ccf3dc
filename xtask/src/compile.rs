//! Builds behind one progress bar: crates downloaded, then crates built, with an estimate of the time left.
//!
//! Build times of crates differ a hundredfold. The estimate therefore weighs each crate by its seconds in a
//! reference build (`compile/costs.txt`) and scales by the measured speed of this machine.

mod bar;
mod progress;

use crate::process::command;
use bar::BuildProgressBar;
use progress::{BuildProgress, CompletedCrate};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

/// Interval at which the estimate counts down while no crate completes.
const REDRAW: Duration = Duration::from_secs(1);
/// Lines of cargo's own output to show when the build fails.
const TAIL_LINES: usize = 60;

/// Packages to build. Cargo chooses the features of dependencies by the selected packages, and rebuilds a
/// crate for other features: consecutive steps should select the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection {
    /// `quorate` and `quorate-serve` alone.
    Binaries,
    /// The binaries and the demonstration that drives them.
    Demonstration,
    /// The binaries, the demonstration and every test.
    Everything,
    /// The binaries and the benchmarks, as a release is built: what users run is what is measured.
    Release,
    /// The same, with the kernels of a GPU.
    ReleaseForGpu,
}

/// Packages of the demonstration, and the trainer of one of its jobs.
const DEMONSTRATION: &[&str] = &[
    "--package",
    "control",
    "--package",
    "serving",
    "--package",
    "demo",
    "--bins",
    "--example",
    "train_tiny",
];
/// Packages of a release, the benchmarks that measure it, and the program that they train with.
const RELEASE: [&str; 10] = [
    "--release",
    "--bins",
    "--example",
    "train_tiny",
    "--package",
    "control",
    "--package",
    "serving",
    "--package",
    "benchmarks",
];
/// The same, with the kernels of a GPU.
const RELEASE_FOR_GPU: [&str; 12] = [
    "--release",
    "--bins",
    "--example",
    "train_tiny",
    "--package",
    "control",
    "--package",
    "serving",
    "--package",
    "benchmarks",
    "--features",
    "benchmarks/cuda",
];

impl Selection {
    /// Arguments of `cargo build`.
    pub(crate) fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Binaries => &["--package", "control", "--package", "serving", "--bins"],
            Self::Demonstration => DEMONSTRATION,
            Self::Everything => &["--bins", "--tests", "--examples"],
            Self::Release => &RELEASE,
            Self::ReleaseForGpu => &RELEASE_FOR_GPU,
        }
    }

    /// Arguments of `cargo tree`.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Binaries => &["--package", "control", "--package", "serving", "--edges", "normal,build"],
            Self::Demonstration => &[
                "--package",
                "control",
                "--package",
                "serving",
                "--package",
                "demo",
                "--edges",
                "normal,build",
            ],
            Self::Release | Self::ReleaseForGpu => &[
                "--package",
                "control",
                "--package",
                "serving",
                "--package",
                "benchmarks",
                "--edges",
                "normal,build",
            ],
            Self::Everything => &["--edges", "normal,build,dev"],
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Binaries => "quorate and quorate-serve",
            Self::Demonstration => "quorate, quorate-serve and the demonstration",
            Self::Everything => "the binaries and tests",
            Self::Release => "a release and the benchmarks",
            Self::ReleaseForGpu => "a release with the kernels of a GPU, and the benchmarks",
        }
    }
}

/// Selections that this process has built.
static BUILT: Mutex<Vec<Selection>> = Mutex::new(Vec::new());

/// Builds the selection and shows the progress. A selection is built once: for a second build, cargo would
/// find nothing to do, but wait for a lint that runs beside the tests.
pub(crate) fn build(selection: Selection) -> Result<(), String> {
    let mut built = BUILT.lock().map_err(|error| error.to_string())?;
    if !built.contains(&selection) {
        build_now(selection)?;
        built.push(selection);
    }
    Ok(())
}

fn build_now(selection: Selection) -> Result<(), String> {
    let began = Instant::now();
    let mut bar = BuildProgressBar::start();
    let mut progress = BuildProgress::new(&packages(selection, &mut bar)?);
    let mut build = command("cargo", &["build", "--message-format=json-render-diagnostics"]);
    build
        .args(selection.targets())
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = build.spawn().map_err(|error| format!("cannot run cargo: {error}"))?;
    let mut tail = Vec::new();
    for_each_line(&mut child, |event| match event {
        Some(Line::Message(message)) => {
            if let Some(completed) = CompletedCrate::read(&message) {
                progress.record(&completed, began.elapsed());
                bar.show(&progress.text(began.elapsed()), progress.share());
            }
        }
        Some(Line::Text(text)) => tail.push(text),
        None => bar.show(&progress.text(began.elapsed()), progress.share()),
    })?;
    let status = wait(&mut child)?;
    bar.clear();
    if !status.success() {
        let from = tail.len().saturating_sub(TAIL_LINES);
        return Err(format!("{}\nthe build failed: {status}", tail[from..].join("\n")));
    }
    println!("built {} in {:.0} s", selection.text(), began.elapsed().as_secs_f64());
    Ok(())
}

/// A line of cargo's output.
enum Line {
    /// A JSON message on standard output.
    Message(String),
    /// A human-readable line on standard error.
    Text(String),
}

/// Returns the names of the packages that the selection depends on; cargo downloads those that are missing.
fn packages(selection: Selection, bar: &mut BuildProgressBar) -> Result<Vec<String>, String> {
    let mut tree = command("cargo", &["tree", "--prefix", "none", "--format", "{p}"]);
    tree.args(selection.packages()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tree.spawn().map_err(|error| format!("cannot run cargo: {error}"))?;
    let (mut names, mut errors, mut downloaded) = (std::collections::BTreeSet::new(), Vec::new(), 0);
    for_each_line(&mut child, |event| match event {
        // `cargo tree` marks a package that was listed before.
        Some(Line::Message(line)) if !line.is_empty() => {
            names.insert(line.trim_end_matches(" (*)").to_string());
        }
        Some(Line::Text(line)) if line.trim_start().starts_with("Downloaded ") => {
            downloaded += 1;
            bar.show(&format!("downloading crates   {downloaded} so far"), 0.0);
        }
        Some(Line::Text(line)) => errors.push(line),
        _ => {}
    })?;
    let status = wait(&mut child)?;
    bar.clear();
    if !status.success() {
        return Err(format!("{}\ncargo cannot list the crates: {status}", errors.join("\n")));
    }
    Ok(names.into_iter().filter_map(|line| line.split(' ').next().map(str::to_string)).collect())
}

/// Passes on every line of both outputs, and `None` once a second while there is none.
fn for_each_line(child: &mut Child, mut take: impl FnMut(Option<Line>)) -> Result<(), String> {
    let (sender, lines) = channel();
    let out = child.stdout.take().ok_or("cargo gave no output")?;
    let err = child.stderr.take().ok_or("cargo gave no output")?;
    forward(out, Line::Message, sender.clone());
    forward(err, Line::Text, sender);
    while let Some(event) = next(&lines) {
        take(event);
    }
    Ok(())
}

fn forward(from: impl Read + Send + 'static, wrap: fn(String) -> Line, to: Sender<Line>) {
    spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // The receiver outlives both outputs.
            let _ = to.send(wrap(line));
        }
    });
}

/// Returns the next line, `Some(None)` when a second passed without one, `None` at the end.
fn next(lines: &Receiver<Line>) -> Option<Option<Line>> {
    match lines.recv_timeout(REDRAW) {
        Ok(line) => Some(Some(line)),
        Err(RecvTimeoutError::Timeout) => Some(None),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    child.wait().map_err(|error| format!("cannot wait for cargo: {error}"))
}
