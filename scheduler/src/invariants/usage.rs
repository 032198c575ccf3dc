//! Rules about metered usage, and about what projects hold.

use super::Invariant::{ListBounded, MeterPerSlot, RecordedInPast, ShareFollowsJobs, UsageSums};
use super::{InvariantResult, ensure};
use crate::cluster::Cluster;
use crate::fair_share::held_by_project;
use crate::limits::{JOBS_FINISHED_MAX, JOBS_UNFINISHED_MAX, USAGE_RECENT_MAX, USAGE_TOTALS_MAX};
use crate::usage::MeterName;
use std::collections::BTreeSet;

pub(super) fn check(cluster: &Cluster) -> InvariantResult {
    let usage = &cluster.usage;
    let services = cluster.holdings().map(|(name, slot, holding)| MeterName {
        envelope: name.clone(),
        slot,
        fence: holding.order.fence,
        stored: None,
    });
    let jobs = cluster.jobs.held().map(|(name, _)| name.meter());
    let data = cluster.jobs.all_data().map(|(_, kept)| kept.meter());
    let held: BTreeSet<MeterName> = services.chain(jobs).chain(data).collect();
    let metered = held.iter().eq(usage.meters.keys());
    ensure(metered, MeterPerSlot, || {
        format!("{} meters, {} held slots and stored items", usage.meters.len(), held.len())
    })?;
    for (name, meter) in &usage.meters {
        let subject = || format!("meter of {}/{}", name.envelope, name.slot);
        ensure(meter.since <= cluster.now, RecordedInPast, subject)?;
    }
    let lists = usage.recent.len() <= USAGE_RECENT_MAX
        && usage.totals.len() <= USAGE_TOTALS_MAX
        && usage.jobs.len() <= JOBS_FINISHED_MAX + JOBS_UNFINISHED_MAX;
    ensure(lists, ListBounded, || "usage".to_string())?;
    let follows = cluster.shares.follows(&held_by_project(cluster, &cluster.jobs), cluster.now);
    ensure(follows, ShareFollowsJobs, || "shares of projects".to_string())?;
    let first = (usage.recorded + 1).checked_sub(usage.recent.len() as u64);
    let is_full = usage.recent.len() as u64 == usage.recorded.min(USAGE_RECENT_MAX as u64);
    let numbered = first
        .filter(|_| is_full)
        .is_some_and(|first| usage.recent.iter().map(|entry| entry.sequence).eq(first..=usage.recorded));
    ensure(numbered, UsageSums, || "the latest entries are numbered without gaps".to_string())?;
    let entries: u64 = usage.totals.values().map(|total| total.entries).sum();
    ensure(entries <= usage.recorded, UsageSums, || "the totals count each entry once".to_string())
}
