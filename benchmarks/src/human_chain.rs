//! Benchmarks of the human chain: certificates verified on one core, sessions over a long history, and
//! decisions and halts on their way to a thousand agents.

mod circle;
mod fleet;
mod session;
mod tuf;
mod verification;

use crate::Options;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::Result;

/// Parts of the benchmark, in the order in which they run; `--only` chooses one.
pub(crate) const SECTIONS: [&str; 3] = ["verification", "session", "fleet"];

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let mut report = BenchmarkReport::new("human-chain");
    let is_asked = |section: &str| options.only.as_deref().is_none_or(|only| only == section);
    if is_asked(SECTIONS[0]) {
        verification::run(options, &mut report)?;
    }
    if is_asked(SECTIONS[1]) {
        session::run(options, &mut report)?;
    }
    if is_asked(SECTIONS[2]) {
        fleet::run(options, &mut report)?;
    }
    Ok(report)
}

/// Runs a process of the benchmark.
pub(crate) fn part(description: &str) -> Result<()> {
    fleet::agents::run(description)
}

/// Adds a row whose peer is a bar in this unit.
fn add_bar(report: &mut BenchmarkReport, metric: &str, unit: &str, bar: f64, ours: &[f64]) {
    let peer = format!("the bar, {bar} {unit}");
    let limit = Some(Bar::AtMost(1.0));
    report.rows.push(ComparisonRow::new(metric, unit, &peer, ours, &vec![bar; ours.len()], limit));
}
