//! Progress of a build from cargo's messages: the crates, the cost of each, and the speed.

use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds that a crate adds to a build on two cores, measured once: `crate seconds`, one a line. Crates that
/// compile alone at the end count fully, others half, since two compile in parallel.
const COSTS: &str = include_str!("costs.txt");
/// Seconds of a crate that is not in the table: none of them took longer than twice this.
const COST_OF_OTHERS: f64 = 0.4;
/// Share of the work that must be complete before this machine's own speed is used.
const BELIEVED_AFTER: f64 = 0.05;

/// A crate that cargo has completed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CompletedCrate {
    package: String,
    /// Whether it was built by an earlier run.
    fresh: bool,
}

impl CompletedCrate {
    /// Reads one of cargo's messages. A crate is complete with its library or program, not with its build
    /// script.
    pub(super) fn read(message: &str) -> Option<Self> {
        let done = message.contains("\"reason\":\"compiler-artifact\"");
        if !done || message.contains("\"kind\":[\"custom-build\"]") {
            return None;
        }
        // `registry+https://…#name@1.0.0`, or `path+file:///…/name#1.0.0`.
        let id = message.split_once("\"package_id\":\"")?.1.split('"').next()?;
        let (place, version) = id.rsplit_once('#')?;
        let package =
            version.split_once('@').map_or_else(|| place.rsplit('/').next(), |(name, _)| Some(name))?;
        Some(Self { package: package.to_string(), fresh: message.contains("\"fresh\":true") })
    }
}

/// Progress of a build.
pub(super) struct BuildProgress {
    /// Cost of each crate that is not complete yet, in seconds.
    waiting: BTreeMap<String, f64>,
    crates: usize,
    built: usize,
    /// Seconds of the reference build that were completed here, and the time that they took.
    done: f64,
    taken: Duration,
    latest: String,
}

impl BuildProgress {
    /// Returns the progress of a build that has not started.
    pub(super) fn new(packages: &[String]) -> Self {
        let waiting: BTreeMap<_, _> = packages.iter().map(|name| (name.clone(), cost(name))).collect();
        let crates = waiting.len();
        let latest = String::new();
        Self { waiting, crates, built: 0, done: 0.0, taken: Duration::ZERO, latest }
    }

    /// Counts a crate that completed `elapsed` after the start of the build.
    pub(super) fn record(&mut self, completed: &CompletedCrate, elapsed: Duration) {
        let Some(cost) = self.waiting.remove(&completed.package) else { return };
        if completed.fresh {
            self.crates -= 1;
            return;
        }
        self.built += 1;
        self.done += cost;
        self.taken = elapsed;
        self.latest.clone_from(&completed.package);
    }

    /// Returns the completed share of the work, between 0 and 1.
    pub(super) fn share(&self) -> f64 {
        let left: f64 = self.waiting.values().sum();
        if self.done == 0.0 { 0.0 } else { self.done / (self.done + left) }
    }

    /// Describes the progress in one line.
    pub(super) fn text(&self, elapsed: Duration) -> String {
        if self.waiting.is_empty() {
            return format!("{}/{} crates   tests and programs are linked", self.built, self.crates);
        }
        let (built, crates, left) = (self.built, self.crates, readable(self.left(elapsed)));
        format!("{built}/{crates} crates   about {left} left   {}", self.latest)
    }

    /// Estimates the time left: the remaining work at this machine's speed, less the time since the last
    /// crate.
    fn left(&self, elapsed: Duration) -> Duration {
        let left: f64 = self.waiting.values().sum();
        let measured = self.taken.as_secs_f64() / self.done.max(f64::MIN_POSITIVE);
        let speed = if self.share() < BELIEVED_AFTER { 1.0 } else { measured };
        let since = elapsed.saturating_sub(self.taken).as_secs_f64();
        // The crates that compile now may have used up to all of the time since, but a crate counts only when
        // it is complete.
        let smallest_left = left * speed / 10.0;
        Duration::from_secs_f64((left * speed - since).max(smallest_left))
    }
}

fn cost(package: &str) -> f64 {
    let line = COSTS.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix(' '));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(COST_OF_OTHERS)
}

fn readable(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=89 => format!("{} s", seconds.max(1)),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(package: &str, fresh: bool) -> CompletedCrate {
        CompletedCrate { package: package.into(), fresh }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_table_names_each_crate_once_with_its_seconds() {
        let names: Vec<_> = COSTS.lines().map(|line| line.split(' ').next()).collect();
        assert!(
            COSTS.lines().all(|line| cost(line.split(' ').next().expect("a name")) > COST_OF_OTHERS),
            "{COSTS}"
        );
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn crates_are_read_from_cargos_messages() {
        let registry = concat!(
            r#"{"reason":"compiler-artifact","package_id":"registry+https://x/y#serde@1.0.2","#,
            r#""target":{"kind":["lib"]},"fresh":false}"#,
        );
        assert_eq!(CompletedCrate::read(registry), Some(completed("serde", false)));
        let own = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/overlay#0.1.0","#,
            r#""target":{"kind":["lib"]},"fresh":true}"#,
        );
        assert_eq!(CompletedCrate::read(own), Some(completed("overlay", true)));
        assert_eq!(CompletedCrate::read(&own.replace("\"lib\"", "\"custom-build\"")), None);
        assert_eq!(CompletedCrate::read(r#"{"reason":"build-script-executed","package_id":"x#y@1"}"#), None);
    }

    #[test]
    fn the_estimate_weighs_crates_and_counts_down_while_one_compiles() {
        let names = ["control".to_string(), "a".to_string(), "b".to_string()];
        let mut progress = BuildProgress::new(&names);
        let whole = cost("control") + 2.0 * COST_OF_OTHERS;
        assert_eq!(progress.left(Duration::ZERO), Duration::from_secs_f64(whole));
        progress.record(&completed("a", true), seconds(1));
        progress.record(&completed("control", false), seconds(200));
        assert_eq!((progress.built, progress.crates), (1, 2));
        assert!(progress.share() > 0.9, "the costly crate was most of the work");
        let speed = 200.0 / cost("control");
        let left = progress.left(seconds(200)).as_secs_f64();
        assert!((left - COST_OF_OTHERS * speed).abs() < 0.01, "{left}");
        assert!(progress.left(seconds(201)) < progress.left(seconds(200)));
        assert!(progress.left(seconds(900)) > Duration::ZERO);
        assert!(progress.text(seconds(200)).starts_with("1/2 crates   about "));
        progress.record(&completed("b", false), seconds(201));
        assert_eq!(progress.text(seconds(201)), "2/2 crates   tests and programs are linked");
    }
}
