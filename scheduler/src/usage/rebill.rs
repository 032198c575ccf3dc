//! Billing of entries a second time: each amount is computed again from its interval, rate and price, and
//! compared, and the sums are those of the distinct entries, in any order of arrival.
//!
//! It streams: one bit is kept per entry, set aside before the first, and an entry allocates nothing.

use protocol::usage::{PriceVersion, UsageAmounts, UsageEntry};

/// Most entries of one run: a bit each, 128 MiB together.
const ENTRIES_MAX: u64 = 1 << 30;

/// Entry that does not bill as it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebillFault {
    /// More entries are claimed than one run takes.
    #[error("{0} entries; one run takes at most {ENTRIES_MAX}")]
    TooMany(u64),
    /// The number is outside of those claimed.
    #[error("entry {0} is not among those that the totals count")]
    NotCounted(u64),
    /// No prices of this version are given.
    #[error("entry {sequence} names prices {version}, which are unknown")]
    PriceUnknown {
        /// Number of the entry.
        sequence: u64,
        /// Version that it names.
        version: u64,
    },
    /// The interval ends before it begins.
    #[error("entry {0} ends before it begins")]
    IntervalReversed(u64),
    /// The amounts differ from those computed.
    #[error("entry {sequence} claims {} millionths and bills as {}; its other amounts count too",
        .claimed.spend_micro_units, .billed.spend_micro_units)]
    AmountsDiffer {
        /// Number of the entry.
        sequence: u64,
        /// Amounts that the entry names.
        claimed: Box<UsageAmounts>,
        /// Amounts as computed.
        billed: Box<UsageAmounts>,
    },
    /// Entries are missing.
    #[error("{missing} entries are missing, the first of them number {first}")]
    Missing {
        /// Number of missing entries.
        missing: u64,
        /// Number of the first.
        first: u64,
    },
}

/// Sums of entries that were billed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RebillSum {
    /// Number of distinct entries.
    pub entries: u64,
    /// Number of entries that came again, and count once.
    pub duplicates: u64,
    /// Sum of the entries that charge.
    pub charged: UsageAmounts,
    /// Sum of the credits.
    pub credited: UsageAmounts,
}

/// A run over the entries from 1 to a number.
#[derive(Debug, Clone)]
pub struct Rebill<'a> {
    /// Sorted by version.
    prices: &'a [PriceVersion],
    count: u64,
    /// One bit per entry, set once it was counted.
    seen: Vec<u64>,
    sum: RebillSum,
}

impl<'a> Rebill<'a> {
    /// Begins a run over this number of entries. `prices` are sorted by version.
    ///
    /// # Errors
    /// There are more entries than one run takes.
    pub fn new(count: u64, prices: &'a [PriceVersion]) -> Result<Self, RebillFault> {
        debug_assert!(prices.is_sorted_by_key(|known| known.version), "versions are found by bisection");
        if count > ENTRIES_MAX {
            return Err(RebillFault::TooMany(count));
        }
        let seen = vec![0; count.div_ceil(64) as usize];
        Ok(Self { prices, count, seen, sum: RebillSum::default() })
    }

    /// Bills one entry again; returns whether it was new. It allocates nothing.
    ///
    /// # Errors
    /// The entry does not bill as it says. It is not counted then.
    pub fn add(&mut self, entry: &UsageEntry) -> Result<bool, RebillFault> {
        let sequence = entry.sequence;
        if sequence == 0 || sequence > self.count {
            return Err(RebillFault::NotCounted(sequence));
        }
        if entry.until < entry.from {
            return Err(RebillFault::IntervalReversed(sequence));
        }
        let version = entry.price_version;
        let known = self.prices.binary_search_by_key(&version, |known| known.version);
        let at = known.map_err(|_| RebillFault::PriceUnknown { sequence, version })?;
        let billed = entry.billed(&self.prices[at].prices);
        if billed != entry.amounts {
            let (claimed, billed) = (Box::new(entry.amounts), Box::new(billed));
            return Err(RebillFault::AmountsDiffer { sequence, claimed, billed });
        }
        let (word, bit) = ((sequence - 1) / 64, (sequence - 1) % 64);
        let seen = &mut self.seen[word as usize];
        if *seen & (1 << bit) != 0 {
            self.sum.duplicates += 1;
            return Ok(false);
        }
        *seen |= 1 << bit;
        self.sum.entries += 1;
        match entry.credit_of {
            None => self.sum.charged.add(&billed),
            Some(_) => self.sum.credited.add(&billed),
        }
        Ok(true)
    }

    /// Ends the run.
    ///
    /// # Errors
    /// Some of the entries did not come.
    pub fn finish(self) -> Result<RebillSum, RebillFault> {
        let missing = self.count - self.sum.entries;
        if missing == 0 {
            return Ok(self.sum);
        }
        let first = (1..=self.count).find(|number| {
            let (word, bit) = ((number - 1) / 64, (number - 1) % 64);
            self.seen[word as usize] & (1 << bit) == 0
        });
        Err(RebillFault::Missing { missing, first: first.unwrap_or(self.count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::usage::{Prices, StoredUsage, UsageRate};
    use protocol::{Digest, Fence, Millis, ModelRoot, NodeId, PublicKey, SlotIndex};

    fn versions() -> [PriceVersion; 2] {
        let dear = Prices {
            gpu_hour_micro_units: 3_333_333,
            cpu_hour_micro_units: 77_777,
            memory_gib_hour_micro_units: 9,
            storage_gib_hour_micro_units: 1_234_567,
            million_prompt_tokens_micro_units: 700_001,
            million_generated_tokens_micro_units: 2_100_003,
        };
        [PriceVersion { version: 0, prices: Prices::default() }, PriceVersion { version: 1, prices: dear }]
    }

    fn entry(sequence: u64, length_ms: u64, gpu_millis: u64, version: u64) -> UsageEntry {
        // Each fifth entry is of stored data.
        let stored = sequence
            .is_multiple_of(5)
            .then(|| StoredUsage { root: ModelRoot(Digest::of(b"stored")), mib: gpu_millis });
        let rate = match stored {
            None => UsageRate { gpu_millis, cpu_millicores: 1500, memory_mib: 300 },
            Some(_) => UsageRate::default(),
        };
        let counts = UsageAmounts {
            prompt_tokens: gpu_millis,
            generated_tokens: length_ms,
            ..UsageAmounts::default()
        };
        let entry = UsageEntry {
            sequence,
            envelope: "train".parse().expect("a name"),
            slot: SlotIndex(0),
            fence: Fence::default(),
            certificate: Digest::of(b"certificate"),
            node: NodeId(PublicKey([1; 32])),
            owner: None,
            project: None,
            submitter: None,
            job: None,
            attempt: 0,
            from: Millis(1_000),
            until: Millis(1_000 + length_ms),
            rate,
            stored,
            price_version: version,
            amounts: counts,
            credit_of: sequence.is_multiple_of(7).then_some(1),
        };
        let amounts = entry.billed(&versions()[version as usize].prices);
        UsageEntry { amounts, ..entry }
    }

    fn entries() -> impl Strategy<Value = Vec<UsageEntry>> {
        let one = (0..10_000_000_u64, 0..16_000_u64, 0..2_u64);
        prop::collection::vec(one, 1..60).prop_map(|rows| {
            let numbered = (1..).zip(rows);
            numbered.map(|(number, (length, gpus, version))| entry(number, length, gpus, version)).collect()
        })
    }

    fn sum(count: u64, entries: &[UsageEntry]) -> Result<RebillSum, RebillFault> {
        let versions = versions();
        let mut run = Rebill::new(count, &versions)?;
        entries.iter().try_for_each(|entry| run.add(entry).map(drop))?;
        run.finish()
    }

    proptest! {
        #[test]
        fn sums_are_conserved_under_duplicates_and_any_order(
            (ordered, mixed) in entries().prop_flat_map(|ordered| {
                let twice: Vec<UsageEntry> = ordered.iter().chain(&ordered).cloned().collect();
                (Just(ordered), Just(twice).prop_shuffle())
            })
        ) {
            let count = ordered.len() as u64;
            let once = sum(count, &ordered).expect("sound entries");
            let again = sum(count, &mixed).expect("the same entries");
            prop_assert_eq!((once.charged, once.credited), (again.charged, again.credited));
            prop_assert_eq!((once.duplicates, again.duplicates, again.entries), (0, count, count));
        }
    }

    /// Attack: an export is altered. Each single alteration is named; the sound one passes.
    #[test]
    fn attack_altered_entries_are_named() {
        let sound: Vec<UsageEntry> = (1..=3).map(|number| entry(number, 3_600_000, 1000, 1)).collect();
        assert_eq!(sum(3, &sound).map(|sum| sum.entries), Ok(3));
        let altered = |change: fn(&mut UsageEntry)| {
            let mut entries = sound.clone();
            change(&mut entries[1]);
            sum(3, &entries).expect_err("an altered entry").to_string()
        };
        assert!(altered(|entry| entry.amounts.spend_micro_units += 1).starts_with("entry 2 claims"));
        assert!(altered(|entry| entry.amounts.gpu_microseconds = 0).starts_with("entry 2 claims"));
        assert!(altered(|entry| entry.until = Millis(5_000)).starts_with("entry 2 claims"));
        assert!(altered(|entry| entry.until = Millis(5)).contains("ends before it begins"));
        assert!(altered(|entry| entry.price_version = 9).contains("prices 9"));
        assert!(altered(|entry| entry.price_version = 0).starts_with("entry 2 claims"));
        assert!(altered(|entry| entry.sequence = 0).contains("entry 0 is not among"));
        assert!(altered(|entry| entry.sequence = 4).contains("entry 4 is not among"));
        let gap = sum(3, &[sound[0].clone(), sound[2].clone()]).expect_err("a gap");
        assert_eq!(gap, RebillFault::Missing { missing: 1, first: 2 });
        assert_eq!(Rebill::new(u64::MAX, &[]).err(), Some(RebillFault::TooMany(u64::MAX)));
    }
}
