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
use protocol::usage::{Prices, StoredUsage, UsageAmounts, UsageRate, bill, bill_stored};

/// End of what has none.
const FOREVER: ClusterTime = ClusterTime(protocol::Millis(u64::MAX));

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

/// Use of a slot or of stored data, until a time.
type Commitment = (Reserved, ClusterTime);

/// Resources that are used as time passes.
#[derive(Debug, Clone, Copy)]
enum Reserved {
    Slot(UsageRate),
    Stored(StoredUsage),
}

impl Reserved {
    fn bill(&self, milliseconds: u64, prices: &Prices) -> UsageAmounts {
        match self {
            Self::Slot(rate) => bill(rate, milliseconds, prices),
            Self::Stored(stored) => bill_stored(stored, milliseconds, prices),
        }
    }
}

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
        for (reserved, until) in commitments {
            let (now_ms, next_ms) = (self.now.ms_until(until.min(end)), end.ms_until(until).min(length_ms));
            periods[0].bespoken.add(&reserved.bill(now_ms, &prices));
            periods[1].bespoken.add(&reserved.bill(next_ms, &prices));
        }
        debug_assert!(self.now < end, "a period holds the present");
        periods
    }

    /// Checks that one more attempt of a job stays within its limits.
    pub(crate) fn check_gang(&self, envelope: &ServiceName, manifest: &JobManifest) -> Result<(), String> {
        let Some(budget) = &manifest.budget else { return Ok(()) };
        let length_ms = budget.period_seconds.saturating_mul(1000);
        let rate = UsageRate::of(&manifest.resources, manifest.ranks);
        let gang = (Reserved::Slot(rate), self.now.plus(run_ms(manifest)));
        let held = self.jobs.held().filter(|(slot, _)| slot.job == *envelope);
        let held = held.filter_map(|(_, held)| self.commitment(held));
        let commitments = held.chain(self.stored(envelope)).chain([gang]);
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
        Some((Reserved::Slot(rate), until.max(self.now)))
    }

    /// Returns what the data of a job's envelope uses: no end of it is known.
    fn stored<'a>(&'a self, envelope: &'a ServiceName) -> impl Iterator<Item = Commitment> + use<'a> {
        let data = self.jobs.all_data().map(|(_, kept)| &kept.signed.data);
        let stored = data.filter(move |data| data.job == *envelope).map(|data| &data.stored);
        stored.map(|record| (Reserved::Stored(StoredUsage::of(record.root, record.bytes)), FOREVER))
    }

    /// Checks that one more replica of a service stays within its spend limit.
    pub(crate) fn check_replica(&self, service: &Service) -> Result<(), String> {
        let manifest = &service.manifest;
        let Some(limit) = manifest.spend_micro_units_per_hour else { return Ok(()) };
        let held = service.held().map(|(_, holding)| {
            let of = self.cluster.manifest_of(&holding.order.certificate).unwrap_or(manifest);
            let until = match holding.phase {
                HoldingPhase::Running => FOREVER,
                // The next order replaces a silent holder.
                HoldingPhase::Silent => self.now,
                _ => self.now.plus(DRAIN_MS),
            };
            (Reserved::Slot(UsageRate::of(&of.resources, 1)), until)
        });
        let one = (Reserved::Slot(UsageRate::of(&manifest.resources, 1)), FOREVER);
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
