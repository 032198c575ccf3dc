//! Limits of envelopes: an order that would pass one waits.
//!
//! An order counts with all that it may still use: a gang its declared run time, a replica the rest of the
//! hour. Two periods are looked at, the present and the next, since no later one holds more of what runs now.
//! Work that was admitted therefore stays within its limits, unless prices rise while it runs.

use super::{HOUR_MS, UsageBook, period_start};
use crate::clock::ClusterTime;
use crate::cluster::{Cluster, HoldingPhase, Service};
use crate::jobs::{Job, JobBook, JobHolding, JobHoldingPhase, JobState};
use crate::limits::DRAIN_MS;
use human_chain::show_time;
use protocol::ServiceName;
use protocol::manifest::{JobManifest, OnExpiry, ServiceManifest};
use protocol::usage::{Prices, UsageAmounts, UsageRate, bill};

/// Use as a plan knows it: the book, and the slots that the plan has ordered so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spending<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) jobs: &'a JobBook,
    pub(crate) now: ClusterTime,
}

/// Used and bespoken amounts of a period.
#[derive(Debug, Clone, Copy, Default)]
struct PeriodForecast {
    used: UsageAmounts,
    bespoken: UsageAmounts,
}

impl PeriodForecast {
    fn sum(&self) -> UsageAmounts {
        let mut sum = self.used;
        sum.add(&self.bespoken);
        sum
    }
}

/// Slot that uses its rate until a time.
type Commitment = (UsageRate, ClusterTime);

impl Spending<'_> {
    fn book(&self) -> &UsageBook {
        &self.cluster.usage
    }

    fn prices(&self) -> Prices {
        self.cluster.circle_state().map(|state| state.prices().prices).unwrap_or_default()
    }

    /// Returns the forecast of the present period and of the next.
    fn forecast(
        &self,
        envelope: &ServiceName,
        length_ms: u64,
        commitments: impl Iterator<Item = Commitment>,
    ) -> [PeriodForecast; 2] {
        let end = period_start(self.now, length_ms).plus(length_ms);
        let present = PeriodForecast {
            used: self.book().used(envelope, length_ms, self.now),
            bespoken: UsageAmounts::default(),
        };
        let mut periods = [present, PeriodForecast::default()];
        let prices = self.prices();
        for (rate, until) in commitments {
            let (now_ms, next_ms) = (self.now.ms_until(until.min(end)), end.ms_until(until).min(length_ms));
            periods[0].bespoken.add(&bill(&rate, now_ms, &prices));
            periods[1].bespoken.add(&bill(&rate, next_ms, &prices));
        }
        debug_assert!(self.now < end, "a period holds the present");
        periods
    }

    /// Checks that one more attempt of a job stays within its limits.
    pub(crate) fn check_gang(&self, envelope: &ServiceName, manifest: &JobManifest) -> Result<(), String> {
        let Some(budget) = &manifest.budget else { return Ok(()) };
        let length_ms = budget.period_seconds.saturating_mul(1000);
        let gang = (UsageRate::of(&manifest.resources, manifest.ranks), self.now.plus(run_ms(manifest)));
        let held = self.jobs.held().filter(|(slot, _)| slot.job == *envelope);
        let commitments = held.filter_map(|(_, held)| self.commitment(held)).chain([gang]);
        let periods = self.forecast(envelope, length_ms, commitments);
        let end = show_time(period_start(self.now, length_ms).plus(length_ms).0);
        for (forecast, which) in periods.iter().zip(["the period that ends at", "the period that begins at"])
        {
            let (used, sum) = (forecast.used, forecast.sum());
            let limit = budget.gpu_seconds.map(|seconds| seconds.saturating_mul(1_000_000));
            if limit.is_some_and(|limit| sum.gpu_microseconds > limit) {
                return Err(format!(
                    "with it, its envelope could use {} of {} GPU-seconds in {which} {end}; {} are used",
                    sum.gpu_microseconds.div_ceil(1_000_000),
                    limit.unwrap_or(0) / 1_000_000,
                    used.gpu_microseconds / 1_000_000,
                ));
            }
            if let Some(limit) = budget.spend_micro_units.filter(|limit| sum.spend_micro_units > *limit) {
                return Err(format!(
                    "with it, its envelope could spend {} of {limit} millionths in {which} {end}; {} are \
                     spent",
                    sum.spend_micro_units, used.spend_micro_units,
                ));
            }
        }
        Ok(())
    }

    /// Returns what a held slot of a job may still use.
    fn commitment(&self, held: &JobHolding) -> Option<Commitment> {
        let manifest = self.cluster.job_manifest(&held.certificate)?;
        let job = self.jobs.jobs().get(&held.id);
        let rate = UsageRate::of(&manifest.resources, held.ranks.count);
        let runs_since = job.filter(|job| job.state == JobState::Running).map(|job: &Job| job.since);
        let until = match held.phase {
            JobHoldingPhase::Active => runs_since.unwrap_or(self.now).plus(run_ms(manifest)),
            _ => self.now.plus(manifest.grace_seconds.saturating_mul(1000)),
        };
        Some((rate, until.max(self.now)))
    }

    /// Checks that one more replica of a service stays within its spend limit.
    pub(crate) fn check_replica(&self, service: &Service) -> Result<(), String> {
        let manifest = &service.manifest;
        let Some(limit) = manifest.spend_micro_units_per_hour else { return Ok(()) };
        let forever = ClusterTime(protocol::Millis(u64::MAX));
        let held = service.held().map(|(_, holding)| {
            let of = self.cluster.manifest_of(&holding.order.certificate).unwrap_or(manifest);
            let until = match holding.phase {
                HoldingPhase::Running => forever,
                // The next order replaces a silent holder.
                HoldingPhase::Silent => self.now,
                _ => self.now.plus(DRAIN_MS),
            };
            (UsageRate::of(&of.resources, 1), until)
        });
        let one = (UsageRate::of(&manifest.resources, 1), forever);
        let periods = self.forecast(&manifest.name, HOUR_MS, held.chain([one]));
        let worst = periods.iter().max_by_key(|forecast| forecast.sum().spend_micro_units);
        let sum = worst.map(PeriodForecast::sum).unwrap_or_default().spend_micro_units;
        if sum <= limit {
            return Ok(());
        }
        let spent = periods[0].used.spend_micro_units;
        Err(format!(
            "with one more replica it could spend {sum} of {limit} millionths in an hour; {spent} of this \
             hour are spent"
        ))
    }

    /// Returns whether the replicas of a service drain, since the limit of this hour is spent.
    pub(crate) fn drains(&self, manifest: &ServiceManifest) -> bool {
        let spent = || self.book().used(&manifest.name, HOUR_MS, self.now).spend_micro_units;
        let limit = manifest.spend_micro_units_per_hour.filter(|_| manifest.on_expiry == OnExpiry::Drain);
        limit.is_some_and(|limit| spent() >= limit)
    }
}

/// Returns the longest time for which an attempt may hold its slots.
fn run_ms(manifest: &JobManifest) -> u64 {
    manifest.run_seconds_max.saturating_add(manifest.grace_seconds).saturating_mul(1000)
}
