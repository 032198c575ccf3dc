//! Amounts that projects held on average, by a half-life: replicated state.
//!
//! Each project has a mean per resource, as fixed-point numbers. A half-life has [`STEPS`] steps. Within a
//! step, amounts times time are added up, exactly; at its end, their average moves the mean by one step's
//! weight. The result thus depends on what was held and when, and not on the commands that applied in
//! between. A mean of an amount that stays approaches it, and one that ends halves with each half-life.
//!
//! Caveat: a vote on another half-life begins a new step, and drops what the present one added up.

use super::{Amounts, MEAN_BITS, RESOURCES, add, amounts_of};
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::jobs::JobBook;
use protocol::ProjectName;
use protocol::project::ROOT_PROJECT;
use protocol::usage::UsageRate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Steps of a half-life: the mean moves by a quarter of a percent in each.
const STEPS: u64 = 256;
/// 2^(-1/256), in units of 2^-32: the weight that a mean keeps in a step.
const KEPT: u64 = 4_283_353_945;
/// Most steps that are computed one by one: 48 half-lives, after which no bit of an earlier mean is left.
const STEPS_MAX: u64 = 48 * STEPS;

/// Row of a project: its own jobs, without those of the projects that belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareRow {
    /// Amounts held since the last command.
    held: Amounts,
    /// Amounts times milliseconds of the present step.
    added: Amounts,
    /// Amounts held on average, in units of 2^-[`MEAN_BITS`].
    mean: Amounts,
}

/// Amounts that projects held on average, in the replicated state. Empty before projects are voted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareBook {
    /// Length of a step in milliseconds; 0 before projects are voted.
    step_ms: u64,
    /// Begin of the present step.
    step_start: ClusterTime,
    /// Time until which amounts are added up.
    at: ClusterTime,
    rows: BTreeMap<ProjectName, ShareRow>,
}

/// Returns the name under which the jobs of a project are counted.
pub(crate) fn row_name(project: Option<&ProjectName>) -> ProjectName {
    project.cloned().unwrap_or_else(|| ROOT_PROJECT.parse().expect("the root's name is a name"))
}

/// Returns what the jobs of each project in force hold, in any phase of their slots. Jobs of a project that
/// was dropped count to the root.
pub(crate) fn held_by_project(cluster: &Cluster, jobs: &JobBook) -> BTreeMap<ProjectName, UsageRate> {
    let Some(state) = cluster.circle_state().filter(|state| state.has_projects()) else {
        return BTreeMap::new();
    };
    let tree = state.projects();
    let names = tree.projects.iter().map(|project| Some(&project.name)).chain([None]);
    let mut held: BTreeMap<ProjectName, UsageRate> =
        names.map(|name| (row_name(name), UsageRate::default())).collect();
    for (_, holding) in jobs.held() {
        let Some(manifest) = cluster.job_manifest(&holding.certificate) else { continue };
        let known = manifest.project.as_ref().filter(|project| tree.project(project).is_some());
        let sum = held.entry(row_name(known)).or_default();
        *sum = sum.plus(UsageRate::of(&manifest.resources, holding.ranks.count));
    }
    debug_assert_eq!(held.len(), tree.projects.len() + 1, "each project and the root");
    held
}

/// Brings the means up to the cluster's time, and counts what jobs hold from now on.
pub(crate) fn settle(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state().filter(|state| state.has_projects()) else { return };
    let step_ms = state.projects().half_life_seconds.saturating_mul(1000) / STEPS;
    let (now, held) = (cluster.now, held_by_project(cluster, &cluster.jobs));
    cluster.shares.advance(now);
    cluster.shares.set_step(step_ms, now);
    cluster.shares.follow(&held);
    debug_assert!(cluster.shares.at <= now, "nothing is counted ahead");
}

impl ShareBook {
    /// Returns the book as it is at a later time, if projects keep what they hold.
    pub(crate) fn advanced(&self, now: ClusterTime) -> Self {
        let mut later = self.clone();
        later.advance(now);
        later
    }

    /// Returns what the jobs of a project itself held on average, in units of 2^-[`MEAN_BITS`].
    pub(crate) fn mean(&self, project: Option<&ProjectName>) -> Amounts {
        self.rows.get(&row_name(project)).map_or([0; RESOURCES], |row| row.mean)
    }

    /// Returns whether the rows are those of these projects, with what they hold, and are of no later time.
    pub(crate) fn follows(&self, held: &BTreeMap<ProjectName, UsageRate>, now: ClusterTime) -> bool {
        let rows = self.rows.iter().map(|(name, row)| (name, row.held));
        rows.eq(held.iter().map(|(name, rate)| (name, amounts_of(rate))))
            && self.at <= now
            && self.step_start <= self.at
    }

    pub(crate) fn advance(&mut self, now: ClusterTime) {
        if self.step_ms == 0 || now <= self.at {
            return;
        }
        let mut left = STEPS_MAX;
        while self.step_start.plus(self.step_ms) <= now && left > 0 {
            let end = self.step_start.plus(self.step_ms);
            let until_end = self.at.ms_until(end);
            self.rows.values_mut().for_each(|row| row.end_step(until_end, self.step_ms));
            (self.step_start, self.at) = (end, end);
            left -= 1;
        }
        let skipped = self.step_start.ms_until(now) / self.step_ms;
        self.step_start = self.step_start.plus(skipped.saturating_mul(self.step_ms));
        let added = self.step_start.max(self.at).ms_until(now);
        self.rows.values_mut().for_each(|row| row.add(added));
        self.at = now;
        debug_assert!(self.step_start <= now && now < self.step_start.plus(self.step_ms), "within a step");
    }

    pub(crate) fn set_step(&mut self, step_ms: u64, now: ClusterTime) {
        debug_assert!(step_ms > 0, "a voted half-life has steps");
        if self.step_ms != step_ms {
            (self.step_ms, self.step_start, self.at) = (step_ms, now, now);
            self.rows.values_mut().for_each(|row| row.added = [0; RESOURCES]);
        }
    }

    pub(crate) fn follow(&mut self, held: &BTreeMap<ProjectName, UsageRate>) {
        self.rows.retain(|name, _| held.contains_key(name));
        for (name, rate) in held {
            self.rows.entry(name.clone()).or_default().held = amounts_of(rate);
        }
        debug_assert!(self.rows.len() == held.len(), "a row for each project");
    }

    /// Moves the book to an earlier time. The amounts of the time in between stay: they were held.
    pub(crate) fn set_back(&mut self, to: ClusterTime) {
        self.at = self.at.min(to);
        self.step_start = self.step_start.min(to);
        debug_assert!(self.step_start <= self.at && self.at <= to, "nothing is counted ahead");
    }
}

impl ShareRow {
    fn add(&mut self, milliseconds: u64) {
        add(&mut self.added, &self.held.map(|held| held.saturating_mul(milliseconds)));
    }

    /// Adds what is held until the end of a step, and moves the mean by the average of the step.
    fn end_step(&mut self, until_end_ms: u64, step_ms: u64) {
        debug_assert!(until_end_ms <= step_ms, "the rest of a step");
        self.add(until_end_ms);
        let one = 1_u128 << 32;
        for (mean, added) in self.mean.iter_mut().zip(&mut self.added) {
            let average = (u128::from(*added) << MEAN_BITS) / u128::from(step_ms.max(1));
            let sum = u128::from(*mean) * u128::from(KEPT) + average * (one - u128::from(KEPT));
            *mean = u64::try_from(sum >> 32).unwrap_or(u64::MAX);
            *added = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::Millis;

    const STEP_MS: u64 = 1_000;
    const HALF_LIFE_MS: u64 = STEPS * STEP_MS;

    fn at(ms: u64) -> ClusterTime {
        ClusterTime(Millis(ms))
    }

    fn rate(gpu_millis: u64) -> UsageRate {
        UsageRate { gpu_millis, cpu_millicores: 0, memory_mib: 0 }
    }

    fn name() -> ProjectName {
        "vision".parse().expect("a name")
    }

    fn book(gpu_millis: u64) -> ShareBook {
        let mut book = ShareBook::default();
        book.set_step(STEP_MS, at(0));
        book.follow(&[(name(), rate(gpu_millis))].into());
        book
    }

    fn mean(book: &ShareBook) -> u64 {
        book.mean(Some(&name()))[2] >> MEAN_BITS
    }

    #[test]
    fn a_mean_halves_with_each_half_life_and_approaches_what_is_held() {
        let mut book = book(64_000);
        for (half_lives, expected) in [(1, 32_000), (2, 48_000), (3, 56_000), (40, 64_000)] {
            let known = mean(&book.advanced(at(half_lives * HALF_LIFE_MS)));
            assert!(known.abs_diff(expected) <= 2, "{known} after {half_lives}");
        }
        book.advance(at(40 * HALF_LIFE_MS));
        book.follow(&[(name(), rate(0))].into());
        for (half_lives, expected) in [(41, 32_000), (42, 16_000), (50, 62), (140, 0)] {
            let known = mean(&book.advanced(at(half_lives * HALF_LIFE_MS)));
            assert!(known.abs_diff(expected) <= 2, "{known} after {half_lives}");
        }
        let long = book.advanced(at(1_000_000 * HALF_LIFE_MS));
        assert_eq!(long.mean(Some(&name())), [0; 3], "nothing is left");
        assert!(long.step_start <= long.at && long.at == at(1_000_000 * HALF_LIFE_MS));
    }

    #[test]
    fn a_dropped_project_leaves_no_row_and_another_half_life_keeps_the_means() {
        let mut book = book(64_000).advanced(at(HALF_LIFE_MS + 7));
        let before = book.mean(Some(&name()));
        book.set_step(2 * STEP_MS, at(HALF_LIFE_MS + 7));
        assert_eq!(book.mean(Some(&name())), before);
        book.follow(&BTreeMap::new());
        assert_eq!(book.mean(Some(&name())), [0; 3]);
        assert!(book.follows(&BTreeMap::new(), at(HALF_LIFE_MS + 7)));
        assert!(!book.follows(&BTreeMap::new(), at(HALF_LIFE_MS + 6)), "it is of a later time");
        assert!(!book.follows(&[(name(), rate(0))].into(), at(2 * HALF_LIFE_MS)), "a row is missing");
    }

    #[test]
    fn a_time_that_is_set_back_counts_on_from_there() {
        let mut book = book(64_000);
        book.advance(at(5 * STEP_MS + 500));
        book.set_back(at(2 * STEP_MS));
        assert!(book.follows(&[(name(), rate(64_000))].into(), at(2 * STEP_MS)));
        let before = mean(&book);
        book.advance(at(3 * STEP_MS));
        assert!(mean(&book) > before, "it goes on");
    }

    #[test]
    fn the_largest_amounts_saturate() {
        let most = UsageRate { gpu_millis: u64::MAX, cpu_millicores: u64::MAX, memory_mib: u64::MAX };
        let mut book = ShareBook::default();
        book.set_step(STEP_MS, at(0));
        book.follow(&[(name(), most)].into());
        book.advance(at(100 * HALF_LIFE_MS));
        assert!(book.mean(Some(&name())).iter().all(|mean| *mean > 0));
    }

    proptest! {
        /// Commands in between change nothing: the mean is a function of what was held, and when.
        #[test]
        fn the_mean_does_not_depend_on_the_commands_in_between(
            changes in prop::collection::vec((1..40_000_u64, 0..100_000_u64), 1..8),
            looks in prop::collection::vec(0..200_000_u64, 0..20),
        ) {
            let (mut plain, mut looked, mut now) = (book(1), book(1), 0);
            for (length, amount) in changes {
                let end = now + length;
                let within = looks.iter().copied().filter(|at| (now..end).contains(at));
                let mut between: Vec<u64> = within.collect();
                between.sort_unstable();
                between.into_iter().for_each(|time| looked.advance(at(time)));
                now = end;
                for book in [&mut plain, &mut looked] {
                    book.advance(at(now));
                    book.follow(&[(name(), rate(amount))].into());
                }
                prop_assert_eq!(&plain, &looked);
            }
        }
    }
}
