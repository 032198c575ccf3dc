//! Results of a benchmark: rows with ratio and bar, the ceilings of the machine, a table and a file.

use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// The outcome of one benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct BenchmarkReport {
    pub(crate) name: String,
    /// Measured commit; `+` at the end when the tree has changes.
    pub(crate) commit: String,
    /// Cores, processor, memory, kernel.
    pub(crate) machine: String,
    /// Ceilings of the machine, measured in the same run; the name ends with the unit.
    pub(crate) ceilings: BTreeMap<String, f64>,
    pub(crate) rows: Vec<ComparisonRow>,
    /// Facts that a reader needs to weigh the rows.
    pub(crate) notes: Vec<String>,
}

/// One comparison.
#[derive(Debug, Serialize)]
pub(crate) struct ComparisonRow {
    pub(crate) metric: String,
    pub(crate) unit: String,
    /// Median over the rounds.
    pub(crate) ours: f64,
    /// Minimum and maximum over the rounds.
    pub(crate) spread: [f64; 2],
    pub(crate) peer: String,
    /// Median over the rounds.
    pub(crate) theirs: f64,
    pub(crate) their_spread: [f64; 2],
    /// Median of the ratios ours / theirs of each round.
    pub(crate) ratio: f64,
    /// The bar in words, if there is one.
    pub(crate) bar: Option<String>,
    /// Whether the bar holds; true for a row without one.
    pub(crate) holds: bool,
}

/// A bar: a required bound of a ratio.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl ComparisonRow {
    /// Makes a row from the rounds, ours and theirs in the same order.
    pub(crate) fn new(
        metric: &str,
        unit: &str,
        peer: &str,
        ours: &[f64],
        theirs: &[f64],
        bar: Option<Bar>,
    ) -> Self {
        assert_eq!(ours.len(), theirs.len(), "rounds alternate");
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&ratios);
        let (text, holds) = match bar {
            None => (None, true),
            Some(Bar::AtLeast(limit)) => (Some(format!("ratio >= {limit:.2}")), ratio >= limit),
            Some(Bar::AtMost(limit)) => (Some(format!("ratio <= {limit:.2}")), ratio <= limit),
        };
        Self {
            metric: metric.into(),
            unit: unit.into(),
            ours: median(ours),
            spread: spread(ours),
            peer: peer.into(),
            theirs: median(theirs),
            their_spread: spread(theirs),
            ratio,
            bar: text,
            holds,
        }
    }
}

impl BenchmarkReport {
    /// Makes an empty report about this commit on this machine.
    pub(crate) fn new(name: &str) -> Self {
        let (ceilings, rows, notes) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { name: name.into(), commit: commit(), machine: machine(), ceilings, rows, notes }
    }

    /// Renders the report as a table for a terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{} at {} on {}\n\n", self.name, self.commit, self.machine);
        for (name, value) in &self.ceilings {
            let _ = writeln!(text, "ceiling  {name:32} {value:>12.3}");
        }
        let _ = writeln!(
            text,
            "\n{:26} {:>9}  {:>30}  {:>30}  {:>7}  bar",
            "metric", "unit", "ours median [min..max]", "peer median [min..max]", "ratio"
        );
        let mut peer = "";
        for row in &self.rows {
            if row.peer != peer {
                peer = &row.peer;
                let _ = writeln!(text, "beside {peer}");
            }
            let bar = row.bar.as_deref().unwrap_or("");
            let verdict = match (&row.bar, row.holds) {
                (None, _) => "",
                (_, true) => "holds",
                (_, false) => "FALLS SHORT",
            };
            let ours = with_spread(row.ours, row.spread);
            let theirs = with_spread(row.theirs, row.their_spread);
            let ComparisonRow { metric, unit, ratio, .. } = row;
            let _ = writeln!(
                text,
                "{metric:26} {unit:>9}  {ours:>30}  {theirs:>30}  {ratio:>7.3}  {bar} {verdict}"
            );
        }
        text.push('\n');
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// Writes `target/bench/NAME.json`.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        let path = directory()?.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Returns the bars that do not hold.
    pub(crate) fn shortfalls(&self) -> Vec<String> {
        let short = self.rows.iter().filter(|row| !row.holds);
        short
            .map(|row| {
                format!("{}: {:.3}, bar {}", row.metric, row.ratio, row.bar.as_deref().unwrap_or("none"))
            })
            .collect()
    }
}

/// Returns the directory of the benchmarks' files, `target/bench` of the workspace.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path.canonicalize()?)
}

/// Returns the directory of all-MiniLM-L6-v2 that `cargo xtask minilm` made, in the target directory.
pub(crate) fn minilm_directory() -> anyhow::Result<PathBuf> {
    let built = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let model = built.map_or_else(|| directory().map(|path| path.join("..")), Ok)?.join("models/minilm");
    anyhow::ensure!(model.is_dir(), "no model in {}: `cargo xtask minilm` fetches it", model.display());
    Ok(model)
}

/// Returns the median; for an even number of values, the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Returns the value below which a `share` of the values is, interpolated between neighbours.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "statistics of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

fn spread(values: &[f64]) -> [f64; 2] {
    [quantile(values, 0.0), quantile(values, 1.0)]
}

fn with_spread(value: f64, [least, most]: [f64; 2]) -> String {
    let digits = if value >= 100.0 { 0 } else { 3 };
    format!("{value:.digits$} [{least:.digits$}..{most:.digits$}]")
}

fn commit() -> String {
    let head = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let changed = output("git", &["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
    if changed { head + "+" } else { head }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_string);
        line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_string()))
            .unwrap_or_default()
    };
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
    let gibibytes =
        kilobytes.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores, {processor}, {gibibytes} GiB, Linux {}", kernel.trim())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn a_bar_is_judged_by_the_median_of_the_ratios() {
        let row = ComparisonRow::new(
            "m",
            "1/s",
            "p",
            &[10.0, 30.0, 20.0],
            &[10.0, 10.0, 10.0],
            Some(Bar::AtLeast(2.0)),
        );
        assert_eq!((row.ratio, row.holds, row.spread), (2.0, true, [10.0, 30.0]));
        let row = ComparisonRow::new("m", "ms", "p", &[3.0], &[2.0], Some(Bar::AtMost(1.0)));
        assert!(!row.holds);
        let mut report = BenchmarkReport::new("test");
        report.rows.push(row);
        assert_eq!(report.shortfalls(), ["m: 1.500, bar ratio <= 1.00"]);
        assert!(report.table().contains("FALLS SHORT"));
    }
}
