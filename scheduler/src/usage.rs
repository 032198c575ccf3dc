//! Metered usage of the replicated state: a meter for each held slot, entries of closed intervals, and
//! totals.
//!
//! A meter opens with the order of a slot and closes when the slot is free or ordered elsewhere; that of
//! stored data of a job opens with its registration, and closes when control forgets the data. Its interval
//! also ends at midnight UTC, at the end of the envelope's period, and with a change of prices, so that each
//! entry has one day, one period and one price. The state keeps the totals on which decisions depend, and the
//! latest entries, from which each replica copies them into a journal of its own. Commands make no entry
//! twice: the same log gives the same entries, and a refused command gives none.
//!
//! Caveat: at most one boundary of each kind is looked at per command. An interval over several days without
//! any command counts to the day in which it began.

mod counting;
mod limits_held;
mod metering;
mod rebill;
mod rows;

pub(crate) use counting::raised;
pub(crate) use limits_held::Spending;
pub use metering::price_versions;
pub(crate) use metering::{MeterEnds, is_day_over, settle};
pub use rebill::{Rebill, RebillFault, RebillSum};

use crate::clock::ClusterTime;
use crate::limits::{USAGE_RECENT_MAX, USAGE_TOTALS_MAX};
use protocol::job::Submitter;
use protocol::usage::{
    PriceVersion, StoredUsage, UsageAmounts, UsageCounts, UsageEntry, UsageRate, UsageTotal, bill,
    bill_stored,
};
use protocol::{
    Digest, Fence, JobId, Millis, ModelRoot, NodeId, OwnerName, ProjectName, ServiceName, SlotIndex,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Length of a day in milliseconds.
pub(crate) const DAY_MS: u64 = 86_400_000;
/// Period of a service's spend limit in milliseconds: a clock hour.
pub(crate) const HOUR_MS: u64 = 3_600_000;

/// Slot under one order, or data that it left, by which a meter is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MeterName {
    pub(crate) envelope: ServiceName,
    pub(crate) slot: SlotIndex,
    pub(crate) fence: Fence,
    /// Root of stored data; none of the slot itself.
    pub(crate) stored: Option<ModelRoot>,
}

/// Meter of a held slot, or of stored data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meter {
    pub(crate) certificate: Digest,
    pub(crate) node: NodeId,
    /// Owner of the node; none of stored data, which is on many.
    pub(crate) owner: Option<OwnerName>,
    /// Project of the job; none for a service.
    pub(crate) project: Option<ProjectName>,
    /// Party that submitted; none for a service.
    pub(crate) submitter: Option<Submitter>,
    pub(crate) job: Option<JobId>,
    pub(crate) attempt: u32,
    pub(crate) rate: UsageRate,
    pub(crate) stored: Option<StoredUsage>,
    /// Begin of the open interval.
    pub(crate) since: ClusterTime,
    /// Prices of the open interval.
    pub(crate) price: PriceVersion,
    /// Highest counts that the node stated since the order.
    pub(crate) counted: UsageCounts,
    /// Counts that entries have.
    pub(crate) entered: UsageCounts,
    /// Time of the last statement that counted; that of the order before the first.
    pub(crate) counted_at: ClusterTime,
}

impl Meter {
    /// Returns the amounts from a time within the open interval to a later one. Counts that no entry has are
    /// of the open interval.
    fn amounts(&self, from: ClusterTime, until: ClusterTime) -> UsageAmounts {
        let (ms, prices) = (self.since.max(from).ms_until(until), &self.price.prices);
        let of_time = match &self.stored {
            None => bill(&self.rate, ms, prices),
            Some(stored) => bill_stored(stored, ms, prices),
        };
        of_time.with_counts(self.uncounted(), prices)
    }

    /// Returns the counts that no entry has.
    pub(crate) fn uncounted(&self) -> UsageCounts {
        self.counted.since(self.entered)
    }
}

/// Use of an envelope in its present period and in the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeriodUse {
    /// Length of a period in milliseconds.
    pub(crate) length_ms: u64,
    pub(crate) start: ClusterTime,
    /// Amounts of the entries whose interval began in this period.
    pub(crate) used: UsageAmounts,
    pub(crate) earlier_start: ClusterTime,
    pub(crate) earlier_used: UsageAmounts,
}

/// Row of the totals: begin of a day, envelope, project, owner, submitter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TotalName {
    pub(crate) day: Millis,
    pub(crate) envelope: ServiceName,
    pub(crate) project: Option<ProjectName>,
    pub(crate) owner: Option<OwnerName>,
    pub(crate) submitter: Option<Submitter>,
}

/// Total of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DayTotal {
    pub(crate) entries: u64,
    pub(crate) amounts: UsageAmounts,
}

/// Usage in the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageBook {
    /// Number of entries ever made.
    pub(crate) recorded: u64,
    /// Head of the chain over all entries.
    pub(crate) head: Digest,
    /// Sum of all entries that charge.
    pub(crate) charged: UsageAmounts,
    /// Sum of all credits.
    pub(crate) credited: UsageAmounts,
    #[serde(with = "rows")]
    pub(crate) meters: BTreeMap<MeterName, Meter>,
    /// Present period of each envelope that has a limit.
    pub(crate) periods: BTreeMap<ServiceName, PeriodUse>,
    #[serde(with = "rows")]
    pub(crate) totals: BTreeMap<TotalName, DayTotal>,
    /// Sum of the entries of each job that is not forgotten.
    pub(crate) jobs: BTreeMap<JobId, UsageAmounts>,
    /// Latest entries, oldest first.
    pub(crate) recent: VecDeque<UsageEntry>,
}

impl Default for UsageBook {
    fn default() -> Self {
        Self {
            recorded: 0,
            head: Digest([0; 32]),
            charged: UsageAmounts::default(),
            credited: UsageAmounts::default(),
            meters: BTreeMap::new(),
            periods: BTreeMap::new(),
            totals: BTreeMap::new(),
            jobs: BTreeMap::new(),
            recent: VecDeque::new(),
        }
    }
}

/// Returns the begin of the period of this length that holds a time. Periods are counted from 1970.
pub(crate) fn period_start(time: ClusterTime, length_ms: u64) -> ClusterTime {
    let into = time.0.0.checked_rem(length_ms).unwrap_or(0);
    ClusterTime(Millis(time.0.0 - into))
}

impl UsageBook {
    /// Returns the number of entries ever made.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Returns the head of the chain over all entries: zeros before the first.
    #[must_use]
    pub fn head(&self) -> Digest {
        self.head
    }

    /// Returns the sum of all entries that charge, and that of all credits.
    #[must_use]
    pub fn sums(&self) -> (UsageAmounts, UsageAmounts) {
        (self.charged, self.credited)
    }

    /// Returns the number of slots and stored items that are metered.
    #[must_use]
    pub fn open_meters(&self) -> usize {
        self.meters.len()
    }

    /// Returns the latest entries, oldest first.
    pub fn recent(&self) -> impl ExactSizeIterator<Item = &UsageEntry> {
        self.recent.iter()
    }

    /// Returns the totals by day, envelope, project, owner and submitter, with what is open at this time.
    #[must_use]
    pub fn totals(&self, now: ClusterTime) -> Vec<UsageTotal> {
        let mut open: BTreeMap<TotalName, UsageAmounts> = BTreeMap::new();
        for (name, meter) in &self.meters {
            let day = period_start(meter.since, DAY_MS).0;
            let row = TotalName {
                day,
                envelope: name.envelope.clone(),
                project: meter.project.clone(),
                owner: meter.owner.clone(),
                submitter: meter.submitter.clone(),
            };
            open.entry(row).or_default().add(&meter.amounts(meter.since, now));
        }
        let row = |name: &TotalName, total: DayTotal, open: UsageAmounts| UsageTotal {
            day: name.day,
            envelope: name.envelope.clone(),
            project: name.project.clone(),
            owner: name.owner.clone(),
            submitter: name.submitter.clone(),
            entries: total.entries,
            amounts: total.amounts,
            open,
        };
        let mut rows: BTreeMap<&TotalName, UsageTotal> = BTreeMap::new();
        for (name, total) in &self.totals {
            rows.insert(name, row(name, *total, open.get(name).copied().unwrap_or_default()));
        }
        for (name, amounts) in &open {
            rows.entry(name).or_insert_with(|| row(name, DayTotal::default(), *amounts));
        }
        rows.into_values().collect()
    }

    /// Returns what each job has used at a time: by entries, and by open intervals.
    #[must_use]
    pub fn of_jobs(&self, now: ClusterTime) -> BTreeMap<JobId, UsageAmounts> {
        let mut used = self.jobs.clone();
        for meter in self.meters.values() {
            if let Some(job) = meter.job {
                used.entry(job).or_default().add(&meter.amounts(meter.since, now));
            }
        }
        used
    }

    /// Returns what one job has used at a time.
    pub(crate) fn of_job(&self, id: JobId, now: ClusterTime) -> UsageAmounts {
        let mut used = self.jobs.get(&id).copied().unwrap_or_default();
        for meter in self.meters.values().filter(|meter| meter.job == Some(id)) {
            used.add(&meter.amounts(meter.since, now));
        }
        used
    }

    /// Returns what an envelope has used in its period at a time: by entries, and by open intervals.
    pub(crate) fn used(&self, envelope: &ServiceName, length_ms: u64, now: ClusterTime) -> UsageAmounts {
        let start = period_start(now, length_ms);
        let known = self.periods.get(envelope).filter(|period| period.start >= start);
        let mut used = known.map(|period| period.used).unwrap_or_default();
        for (_, meter) in self.meters_of(envelope) {
            used.add(&meter.amounts(start, now));
        }
        used
    }

    fn meters_of<'a>(
        &'a self,
        envelope: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a MeterName, &'a Meter)> {
        let (slot, fence) = (SlotIndex(0), Fence::default());
        let first = MeterName { envelope: envelope.clone(), slot, fence, stored: None };
        self.meters.range(first..).take_while(move |(name, _)| name.envelope == *envelope)
    }

    /// Opens a meter.
    pub(crate) fn open(&mut self, name: MeterName, meter: Meter) {
        let before = self.meters.insert(name, meter);
        debug_assert_eq!(before, None, "an order opens one meter");
    }

    /// Closes a meter: the slot was held until this time.
    pub(crate) fn close(&mut self, name: &MeterName, until: ClusterTime) {
        let Some(meter) = self.meters.get(name) else { return };
        let price = meter.price;
        self.split(name, until.max(meter.since), price);
        self.meters.remove(name);
    }

    /// Ends the open interval of a meter, and begins the next at this price. An interval without length
    /// leaves no entry.
    pub(crate) fn split(&mut self, name: &MeterName, at: ClusterTime, price: PriceVersion) {
        let Some(meter) = self.meters.get_mut(name) else { return };
        let from = meter.since;
        if at < from || (at == from && meter.uncounted() == UsageCounts::default()) {
            meter.price = price;
            return;
        }
        let amounts = meter.amounts(from, at);
        let entry = entry_of(name, meter, (from, at), amounts);
        (meter.since, meter.price, meter.entered) = (at, price, meter.counted);
        self.record(entry, from);
    }

    /// Splits open intervals at the boundaries that lie before `now`, and begins new periods. `lengths` has
    /// the period of each envelope with a limit, in milliseconds; `ends` the ends of meters that close now.
    pub(crate) fn advance(
        &mut self,
        now: ClusterTime,
        lengths: &BTreeMap<ServiceName, u64>,
        ends: &BTreeMap<MeterName, ClusterTime>,
    ) {
        let day = period_start(now, DAY_MS);
        for (envelope, length_ms) in lengths {
            let start = period_start(now, *length_ms);
            if day < start {
                self.split_at(Some(envelope), day, ends);
            }
            self.split_at(Some(envelope), start, ends);
            let known = self.periods.entry(envelope.clone()).or_default();
            if known.length_ms == *length_ms && known.start < start {
                (known.earlier_start, known.earlier_used) = (known.start, known.used);
                known.used = UsageAmounts::default();
            }
            // Another length is of another approval; what was used counts on.
            (known.length_ms, known.start) = (*length_ms, start);
        }
        self.split_at(None, day, ends);
        self.periods.retain(|envelope, _| lengths.contains_key(envelope));
    }

    /// Splits the intervals of an envelope, or of all, that have begun before a boundary and do not end
    /// before it; their prices stay.
    fn split_at(
        &mut self,
        envelope: Option<&ServiceName>,
        at: ClusterTime,
        ends: &BTreeMap<MeterName, ClusterTime>,
    ) {
        let crosses = |(name, meter): (&MeterName, &Meter)| {
            let goes_on = ends.get(name).is_none_or(|end| *end > at);
            (meter.since < at && goes_on).then(|| (name.clone(), meter.price))
        };
        let crossing: Vec<(MeterName, PriceVersion)> = match envelope {
            Some(envelope) => self.meters_of(envelope).filter_map(crosses).collect(),
            None => self.meters.iter().filter_map(crosses).collect(),
        };
        for (name, price) in crossing {
            self.split(&name, at, price);
        }
    }

    /// Numbers an entry, and counts it to the day and the period of a time.
    fn record(&mut self, mut entry: UsageEntry, counts_at: ClusterTime) {
        self.recorded += 1;
        entry.sequence = self.recorded;
        self.head = entry.head_after(&self.head);
        match entry.credit_of {
            None => self.charged.add(&entry.amounts),
            Some(_) => self.credited.add(&entry.amounts),
        }
        self.count_in_period(&entry, counts_at);
        self.count_in_total(&entry, counts_at);
        match (entry.job, entry.credit_of) {
            (Some(job), None) => self.jobs.entry(job).or_default().add(&entry.amounts),
            // A job that is forgotten gets no credit back.
            (Some(job), Some(_)) => {
                self.jobs.entry(job).and_modify(|sum| sum.take(&entry.amounts));
            }
            (None, _) => {}
        }
        self.recent.push_back(entry);
        while self.recent.len() > USAGE_RECENT_MAX {
            self.recent.pop_front();
        }
    }

    fn count_in_period(&mut self, entry: &UsageEntry, counts_at: ClusterTime) {
        let Some(period) = self.periods.get_mut(&entry.envelope) else { return };
        let sum = if counts_at >= period.start {
            &mut period.used
        } else if counts_at >= period.earlier_start {
            &mut period.earlier_used
        } else {
            return;
        };
        match entry.credit_of {
            None => sum.add(&entry.amounts),
            Some(_) => sum.take(&entry.amounts),
        }
    }

    fn count_in_total(&mut self, entry: &UsageEntry, counts_at: ClusterTime) {
        let day = period_start(counts_at, DAY_MS).0;
        let mut name = TotalName {
            day,
            envelope: entry.envelope.clone(),
            project: entry.project.clone(),
            owner: entry.owner.clone(),
            submitter: entry.submitter.clone(),
        };
        while self.totals.len() >= USAGE_TOTALS_MAX && !self.totals.contains_key(&name) {
            let oldest = self.totals.keys().next().map(|first| first.day);
            match oldest.filter(|oldest| *oldest < day) {
                // The entries of a closed day remain in the journals.
                Some(oldest) => self.totals.retain(|row, _| row.day > oldest),
                None => {
                    (name.project, name.owner, name.submitter) = (None, None, None);
                    break;
                }
            }
        }
        let row = self.totals.entry(name).or_default();
        row.entries += 1;
        match entry.credit_of {
            None => row.amounts.add(&entry.amounts),
            Some(_) => row.amounts.take(&entry.amounts),
        }
    }

    /// Takes back what was billed for a time that never was: the cluster's time is set back to `to`. Open
    /// intervals begin there at the latest. Entries that only the journals still have keep their amounts.
    pub(crate) fn set_back(&mut self, to: ClusterTime, versions: &[PriceVersion]) {
        let mut ends: BTreeMap<u64, ClusterTime> = BTreeMap::new();
        for entry in self.recent.iter().filter(|entry| entry.credit_of.is_none()) {
            ends.insert(entry.sequence, ClusterTime(entry.until));
        }
        for credit in &self.recent {
            if let Some(end) = credit.credit_of.and_then(|of| ends.get_mut(&of)) {
                *end = (*end).min(ClusterTime(credit.from));
            }
        }
        let later = |entry: &&UsageEntry| ends.get(&entry.sequence).is_some_and(|end| *end > to);
        let wrong: Vec<UsageEntry> = self.recent.iter().filter(later).cloned().collect();
        for entry in wrong {
            self.take_back(&entry, (to, ends[&entry.sequence]), versions);
        }
        for meter in self.meters.values_mut() {
            (meter.since, meter.counted_at) = (meter.since.min(to), meter.counted_at.min(to));
        }
        for period in self.periods.values_mut().filter(|period| period.start > to) {
            let start = period_start(to, period.length_ms);
            let is_known = period.earlier_start == start;
            let used = if is_known { period.earlier_used } else { UsageAmounts::default() };
            *period = PeriodUse { length_ms: period.length_ms, start, used, ..PeriodUse::default() };
        }
    }

    /// Records the credit of the part of an entry between two times.
    fn take_back(
        &mut self,
        entry: &UsageEntry,
        (to, end): (ClusterTime, ClusterTime),
        versions: &[PriceVersion],
    ) {
        let counts_at = ClusterTime(entry.from);
        let from = counts_at.max(to);
        debug_assert!(from <= end, "a credit does not end before it begins");
        let Some(known) = versions.iter().find(|known| known.version == entry.price_version) else { return };
        let part = UsageEntry {
            from: from.0,
            until: end.0,
            // Counts stay: a clock takes back time alone.
            amounts: UsageAmounts::default(),
            credit_of: Some(entry.sequence),
            ..entry.clone()
        };
        let amounts = part.billed(&known.prices);
        self.record(UsageEntry { amounts, ..part }, counts_at);
    }
}

/// Returns the entry of a meter's interval; its number follows.
fn entry_of(
    name: &MeterName,
    meter: &Meter,
    (from, until): (ClusterTime, ClusterTime),
    amounts: UsageAmounts,
) -> UsageEntry {
    UsageEntry {
        sequence: 0,
        envelope: name.envelope.clone(),
        slot: name.slot,
        fence: name.fence,
        certificate: meter.certificate,
        node: meter.node,
        owner: meter.owner.clone(),
        project: meter.project.clone(),
        submitter: meter.submitter.clone(),
        job: meter.job,
        attempt: meter.attempt,
        from: from.0,
        until: until.0,
        rate: meter.rate,
        stored: meter.stored,
        price_version: meter.price.version,
        amounts,
        credit_of: None,
    }
}
