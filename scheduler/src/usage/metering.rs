//! Meters of the cluster: they follow the slots that are held and the data that is kept, after each command
//! that may change these.

use super::{DAY_MS, HOUR_MS, Meter, MeterName, period_start};
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::fair_share;
use protocol::ServiceName;
use protocol::governance::Change;
use protocol::job::Submitter;
use protocol::usage::{PriceVersion, Prices, StoredUsage, UsageCounts, UsageRate};
use std::collections::BTreeMap;

/// Findings of a plan about meters: ends before the present, and counts that nodes stated.
#[derive(Debug, Clone, Default)]
pub(crate) struct MeterEnds {
    /// Time until which a slot is billed, if that is not the present.
    pub(crate) ends: BTreeMap<MeterName, ClusterTime>,
    /// Counts of a slot since its order.
    pub(crate) counts: BTreeMap<MeterName, UsageCounts>,
}

impl MeterEnds {
    /// Bills a slot until its node's autonomy ended, if that was before `now`.
    pub(crate) fn end(&mut self, name: MeterName, autonomy_until: ClusterTime, now: ClusterTime) {
        if autonomy_until < now {
            self.ends.insert(name, autonomy_until);
        }
    }
}

/// Returns the prices of each vote, by version: those of no vote first.
#[must_use]
pub fn price_versions(cluster: &Cluster) -> Vec<PriceVersion> {
    let voted =
        cluster.governance_chain().iter().filter_map(|bundle| match &bundle.certificate.proposal.change {
            Change::SetPrices(prices) => Some(*prices),
            _ => None,
        });
    let all = std::iter::once(Prices::default()).chain(voted);
    (0..).zip(all).map(|(version, prices)| PriceVersion { version, prices }).collect()
}

/// Returns whether a midnight has passed within an open interval.
pub(crate) fn is_day_over(cluster: &Cluster, now: ClusterTime) -> bool {
    let day = period_start(now, DAY_MS);
    cluster.usage.meters.values().any(|meter| meter.since < day)
}

/// Brings the meters in line with the slots that are held: those of freed slots close, those of ordered ones
/// open. Open intervals end at boundaries, and where prices have changed.
pub(crate) fn settle(cluster: &mut Cluster, ends: &MeterEnds) {
    let Some(price) = cluster.circle_state().map(|state| state.prices()) else { return };
    let (now, lengths, held) = (cluster.now, period_lengths(cluster), held(cluster, price));
    let usage = &mut cluster.usage;
    for (name, counts) in &ends.counts {
        if let Some(meter) = usage.meters.get_mut(name) {
            (meter.counted, meter.counted_at) = (meter.counted.max(*counts), now);
        }
    }
    usage.advance(now, &lengths, &ends.ends);
    let closed: Vec<MeterName> =
        usage.meters.keys().filter(|name| !held.contains_key(name)).cloned().collect();
    for name in closed {
        let until = ends.ends.get(&name).copied().unwrap_or(now).min(now);
        usage.close(&name, until);
    }
    for (name, meter) in held {
        match usage.meters.get(&name) {
            None => usage.open(name, meter),
            Some(known) if known.price != price => usage.split(&name, now, price),
            Some(_) => {}
        }
    }
    debug_assert!(usage.meters.values().all(|meter| meter.since <= now), "nothing is metered ahead");
    usage.jobs.retain(|id, _| cluster.jobs.jobs.contains_key(id));
    fair_share::settle(cluster);
}

/// Returns a fresh meter for each held slot, and for all data of jobs that is kept.
fn held(cluster: &Cluster, price: PriceVersion) -> BTreeMap<MeterName, Meter> {
    let mut held = BTreeMap::new();
    let fresh = |certificate, node| Meter {
        certificate,
        node,
        owner: cluster.node(&node).and_then(|admitted| admitted.owner.clone()),
        project: None,
        submitter: None,
        job: None,
        attempt: 0,
        rate: UsageRate::default(),
        stored: None,
        since: cluster.now,
        price,
        counted: UsageCounts::default(),
        entered: UsageCounts::default(),
        counted_at: cluster.now,
    };
    for (envelope, slot, holding) in cluster.holdings() {
        let order = &holding.order;
        let manifest = cluster.manifest_of(&order.certificate);
        let name = MeterName { envelope: envelope.clone(), slot, fence: order.fence, stored: None };
        let rate = manifest.map(|manifest| UsageRate::of(&manifest.resources, 1)).unwrap_or_default();
        held.insert(name, Meter { rate, ..fresh(order.certificate, order.node) });
    }
    for (slot, holding) in cluster.jobs.held() {
        let manifest = cluster.job_manifest(&holding.certificate);
        let rate = |resources| UsageRate::of(resources, holding.ranks.count);
        let meter = Meter {
            project: manifest.and_then(|manifest| manifest.project.clone()),
            submitter: submitter_of(cluster, holding.id),
            job: Some(holding.id),
            attempt: holding.attempt,
            rate: manifest.map(|manifest| rate(&manifest.resources)).unwrap_or_default(),
            ..fresh(holding.certificate, holding.node)
        };
        held.insert(slot.meter(), meter);
    }
    for (id, kept) in cluster.jobs.all_data() {
        let Some(job) = cluster.jobs.jobs.get(&id) else { continue };
        let (data, certificate) = (&kept.signed.data, job.submission().certificate);
        let manifest = cluster.job_manifest(&certificate);
        let meter = Meter {
            owner: None,
            project: manifest.and_then(|manifest| manifest.project.clone()),
            submitter: Some(job.submission().submitter.clone()),
            job: Some(id),
            attempt: data.attempt,
            stored: Some(StoredUsage::of(data.stored.root, data.stored.bytes)),
            ..fresh(certificate, data.node)
        };
        held.insert(kept.meter(), meter);
    }
    held
}

fn submitter_of(cluster: &Cluster, id: protocol::JobId) -> Option<Submitter> {
    cluster.jobs.jobs.get(&id).map(|job| job.submission().submitter.clone())
}

/// Returns the period of each envelope that has a limit, in milliseconds.
fn period_lengths(cluster: &Cluster) -> BTreeMap<ServiceName, u64> {
    let services =
        cluster.services.iter().filter(|(_, service)| service.manifest.spend_micro_units_per_hour.is_some());
    let mut lengths: BTreeMap<ServiceName, u64> = services.map(|(name, _)| (name.clone(), HOUR_MS)).collect();
    let jobs = cluster.circle_state().into_iter().flat_map(|state| state.jobs());
    lengths.extend(jobs.filter_map(|job| {
        let budget = job.manifest.budget.as_ref()?;
        Some((job.manifest.name.clone(), budget.period_seconds.saturating_mul(1000)))
    }));
    lengths
}
