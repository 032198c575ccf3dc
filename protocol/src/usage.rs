//! Metered usage: prices that the circle votes, entries of what slots held, and the arithmetic of both.
//!
//! A slot is billed for what its order reserves, for as long as the order is in force by the cluster's time,
//! and for the tokens that its node counted. Stored data of a job is billed for as long as control keeps it.
//! All amounts are integers. An entry rounds its time down once, and its tokens once, so a sum of entries is
//! exact in any order.

use crate::canonical;
use crate::digest::Digest;
use crate::ids::{
    CircleId, Fence, JobId, Millis, ModelRoot, NodeId, OwnerName, ProjectName, ServiceName, SlotIndex,
};
use crate::job::Submitter;
use crate::manifest::Resources;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Digest domain of the chain over entries.
pub const USAGE_DOMAIN: &str = "quorate/usage/v1";
/// Format of exported usage that this release writes and reads.
pub const USAGE_FORMAT: &str = "quorate-usage/1";
/// Maximum price in millionths of the circle's unit: a thousand million units. Products of prices, shares and
/// times then fit into 128 bits.
pub const PRICE_MICRO_UNITS_MAX: u64 = 1_000_000_000_000_000;

/// Tokens to which a price of tokens applies.
const TOKENS_PER_PRICE: u128 = 1_000_000;
/// Bytes of a mebibyte, the unit in which memory and storage are metered.
const MIB: u64 = 1024 * 1024;
/// Divisor from thousandths times milliseconds, times 1,024, to hours.
const HOUR_DIVISOR: u128 = 3_600_000_000 * 1024;

/// Prices of the circle, in millionths of its unit. Before the first vote all of them are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Price of a whole GPU for an hour; a share costs its percentage.
    pub gpu_hour_micro_units: u64,
    /// Price of a core for an hour.
    pub cpu_hour_micro_units: u64,
    /// Price of a gibibyte of memory for an hour.
    pub memory_gib_hour_micro_units: u64,
    /// Price of a gibibyte of stored data for an hour.
    pub storage_gib_hour_micro_units: u64,
    /// Price of a million tokens of prompts.
    pub million_prompt_tokens_micro_units: u64,
    /// Price of a million generated tokens.
    pub million_generated_tokens_micro_units: u64,
}

impl Prices {
    /// Returns each price with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("hour of a GPU", self.gpu_hour_micro_units),
            ("hour of a core", self.cpu_hour_micro_units),
            ("hour of a GiB of memory", self.memory_gib_hour_micro_units),
            ("hour of a GiB of storage", self.storage_gib_hour_micro_units),
            ("million tokens of prompts", self.million_prompt_tokens_micro_units),
            ("million generated tokens", self.million_generated_tokens_micro_units),
        ]
    }
}

/// Prices under the number of their vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceVersion {
    /// Number of the vote, from 1; 0 = before the first vote.
    pub version: u64,
    /// Prices of this vote.
    pub prices: Prices,
}

/// Resources that a slot reserves, in the units of metering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRate {
    /// GPUs in thousandths.
    pub gpu_millis: u64,
    /// CPU in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory in mebibytes, rounded up.
    pub memory_mib: u64,
}

impl UsageRate {
    /// Returns the rate of a number of replicas or ranks with these resources.
    #[must_use]
    pub fn of(resources: &Resources, count: u32) -> Self {
        let count = u64::from(count);
        let gpus = u64::from(resources.gpu_count).saturating_mul(1000);
        let gpus = gpus.saturating_add(u64::from(resources.gpu_share_percent).saturating_mul(10));
        Self {
            gpu_millis: gpus.saturating_mul(count),
            cpu_millicores: resources.cpu_millicores.saturating_mul(count),
            memory_mib: resources.memory_bytes.div_ceil(MIB).saturating_mul(count),
        }
    }

    /// Returns the rate of two slots together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            gpu_millis: self.gpu_millis.saturating_add(other.gpu_millis),
            cpu_millicores: self.cpu_millicores.saturating_add(other.cpu_millicores),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
        }
    }
}

/// Data of a job that control keeps, as it is metered in place of the resources of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoredUsage {
    /// Root of the stored item.
    pub root: ModelRoot,
    /// Size in mebibytes, rounded up.
    pub mib: u64,
}

impl StoredUsage {
    /// Returns the stored item of this size in bytes.
    #[must_use]
    pub fn of(root: ModelRoot, bytes: u64) -> Self {
        let mib = bytes.div_ceil(MIB);
        debug_assert!(bytes <= mib.saturating_mul(MIB), "a size is rounded up");
        Self { root, mib }
    }
}

/// Counts that a node made of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageCounts {
    /// CPU time in microseconds. It is shown and not billed.
    pub cpu_used_microseconds: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
}

impl UsageCounts {
    /// Returns the greater of each count.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_used_microseconds: self.cpu_used_microseconds.max(other.cpu_used_microseconds),
            prompt_tokens: self.prompt_tokens.max(other.prompt_tokens),
            generated_tokens: self.generated_tokens.max(other.generated_tokens),
        }
    }

    /// Returns these counts less those of before; a difference below 0 is 0.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_used_microseconds: self.cpu_used_microseconds.saturating_sub(before.cpu_used_microseconds),
            prompt_tokens: self.prompt_tokens.saturating_sub(before.prompt_tokens),
            generated_tokens: self.generated_tokens.saturating_sub(before.generated_tokens),
        }
    }
}

/// Amounts of usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageAmounts {
    /// Reserved GPU time: millionths of a GPU-second.
    pub gpu_microseconds: u64,
    /// Reserved CPU time: millionths of a core-second.
    pub cpu_microseconds: u64,
    /// Reserved memory: mebibyte-seconds, rounded down.
    pub memory_mib_seconds: u64,
    /// Stored data: mebibyte-seconds, rounded down.
    pub storage_mib_seconds: u64,
    /// CPU time that nodes reported as used, in microseconds. It is shown and not billed.
    pub cpu_used_microseconds: u64,
    /// Tokens of prompts that nodes counted.
    pub prompt_tokens: u64,
    /// Generated tokens that nodes counted.
    pub generated_tokens: u64,
    /// Spend in millionths of the circle's unit: that of the time and that of tokens, each rounded down.
    pub spend_micro_units: u64,
}

impl UsageAmounts {
    /// Adds other amounts; a sum beyond 64 bits stays at the maximum.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add);
    }

    /// Takes other amounts away; a difference below 0 is 0.
    pub fn take(&mut self, other: &Self) {
        self.combine(other, u64::saturating_sub);
    }

    fn combine(&mut self, other: &Self, of: fn(u64, u64) -> u64) {
        self.gpu_microseconds = of(self.gpu_microseconds, other.gpu_microseconds);
        self.cpu_microseconds = of(self.cpu_microseconds, other.cpu_microseconds);
        self.memory_mib_seconds = of(self.memory_mib_seconds, other.memory_mib_seconds);
        self.storage_mib_seconds = of(self.storage_mib_seconds, other.storage_mib_seconds);
        self.cpu_used_microseconds = of(self.cpu_used_microseconds, other.cpu_used_microseconds);
        self.prompt_tokens = of(self.prompt_tokens, other.prompt_tokens);
        self.generated_tokens = of(self.generated_tokens, other.generated_tokens);
        self.spend_micro_units = of(self.spend_micro_units, other.spend_micro_units);
    }

    /// Returns the counts among the amounts.
    #[must_use]
    pub fn counts(&self) -> UsageCounts {
        UsageCounts {
            cpu_used_microseconds: self.cpu_used_microseconds,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
        }
    }

    /// Returns amounts of a time with counts that fall into it, at these prices. It allocates nothing.
    #[must_use]
    pub fn with_counts(self, counts: UsageCounts, prices: &Prices) -> Self {
        let cost = |tokens: u64, price: u64| u128::from(tokens).saturating_mul(u128::from(price));
        let prompts = cost(counts.prompt_tokens, prices.million_prompt_tokens_micro_units);
        let generated = cost(counts.generated_tokens, prices.million_generated_tokens_micro_units);
        let of_tokens = narrow(prompts.saturating_add(generated) / TOKENS_PER_PRICE);
        debug_assert_eq!(self.counts(), UsageCounts::default(), "counts are billed once");
        Self {
            cpu_used_microseconds: counts.cpu_used_microseconds,
            prompt_tokens: counts.prompt_tokens,
            generated_tokens: counts.generated_tokens,
            spend_micro_units: self.spend_micro_units.saturating_add(of_tokens),
            ..self
        }
    }
}

/// Returns what a rate uses in a time, at these prices. It allocates nothing.
#[must_use]
pub fn bill(rate: &UsageRate, milliseconds: u64, prices: &Prices) -> UsageAmounts {
    let gpu = times(rate.gpu_millis, milliseconds);
    let cpu = times(rate.cpu_millicores, milliseconds);
    let memory = times(rate.memory_mib, milliseconds);
    let at = |amount: u128, price: u64| amount.saturating_mul(u128::from(price));
    let cores = at(gpu, prices.gpu_hour_micro_units).saturating_add(at(cpu, prices.cpu_hour_micro_units));
    let cost = cores
        .saturating_mul(1024)
        .saturating_add(at(memory, prices.memory_gib_hour_micro_units).saturating_mul(1000));
    UsageAmounts {
        gpu_microseconds: narrow(gpu),
        cpu_microseconds: narrow(cpu),
        memory_mib_seconds: narrow(memory / 1000),
        spend_micro_units: narrow(cost / HOUR_DIVISOR),
        ..UsageAmounts::default()
    }
}

/// Returns what stored data uses in a time, at these prices. It allocates nothing.
#[must_use]
pub fn bill_stored(stored: &StoredUsage, milliseconds: u64, prices: &Prices) -> UsageAmounts {
    let storage = times(stored.mib, milliseconds);
    let cost = storage.saturating_mul(u128::from(prices.storage_gib_hour_micro_units)).saturating_mul(1000);
    UsageAmounts {
        storage_mib_seconds: narrow(storage / 1000),
        spend_micro_units: narrow(cost / HOUR_DIVISOR),
        ..UsageAmounts::default()
    }
}

fn times(part: u64, milliseconds: u64) -> u128 {
    u128::from(part).saturating_mul(u128::from(milliseconds))
}

fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Entry of usage: what one slot held under one order, or what it left in the stores, for one closed interval
/// at one price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageEntry {
    /// Number of the entry, from 1, without gaps.
    pub sequence: u64,
    /// Name of the service or job whose envelope it counts to.
    pub envelope: ServiceName,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of its order.
    pub fence: Fence,
    /// Digest of the certificate under which it was ordered.
    pub certificate: Digest,
    /// Node that held it, or that left the data.
    pub node: NodeId,
    /// Owner of that node; none if its admission names none, and of stored data, which is on many nodes.
    pub owner: Option<OwnerName>,
    /// Project of the job; none for a service, and for a job without one.
    pub project: Option<ProjectName>,
    /// Party that submitted the job; none for a service, which the circle runs.
    pub submitter: Option<Submitter>,
    /// Job of the slot; none for a service.
    pub job: Option<JobId>,
    /// Number of the job's attempt; 0 for a service.
    pub attempt: u32,
    /// Begin of the interval, by the cluster's time.
    pub from: Millis,
    /// End of the interval.
    pub until: Millis,
    /// Resources that the slot reserved; none of stored data.
    pub rate: UsageRate,
    /// Stored data that is billed; none for a slot that was held.
    pub stored: Option<StoredUsage>,
    /// Number of the vote whose prices were in force.
    pub price_version: u64,
    /// Amounts of the interval.
    pub amounts: UsageAmounts,
    /// Number of the entry from which these amounts are taken back: the cluster's time was set back, so this
    /// part of its interval never was. None for a charge.
    pub credit_of: Option<u64>,
}

impl UsageEntry {
    /// Returns the length of the interval in milliseconds.
    #[must_use]
    pub fn milliseconds(&self) -> u64 {
        self.until.0.saturating_sub(self.from.0)
    }

    /// Returns the amounts of the interval at these prices, with the counts that the entry names. It
    /// allocates nothing.
    #[must_use]
    pub fn billed(&self, prices: &Prices) -> UsageAmounts {
        let of_time = match &self.stored {
            None => bill(&self.rate, self.milliseconds(), prices),
            Some(stored) => bill_stored(stored, self.milliseconds(), prices),
        };
        of_time.with_counts(self.amounts.counts(), prices)
    }

    /// Returns the head of the chain of entries after this one.
    #[must_use]
    pub fn head_after(&self, before: &Digest) -> Digest {
        Digest::of_domain(USAGE_DOMAIN, &canonical::to_bytes(&(before, self)))
    }
}

/// Running total of an envelope, a submitter and an owner in one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageTotal {
    /// Begin of the day, UTC. An interval counts to the day in which it began.
    pub day: Millis,
    /// Name of the service or job.
    pub envelope: ServiceName,
    /// Project of the job; none for a service, for a job without one, and for what found no row of its own.
    pub project: Option<ProjectName>,
    /// Owner of the nodes; none where no admission names one, and for what found no row of its own.
    pub owner: Option<OwnerName>,
    /// Party that submitted; none for a service, and for what found no row of its own.
    pub submitter: Option<Submitter>,
    /// Number of entries, credits among them.
    pub entries: u64,
    /// Amounts of all of these entries, less the credits.
    pub amounts: UsageAmounts,
    /// Amounts of the intervals that are open: what their entries would have if they ended now.
    pub open: UsageAmounts,
}

impl UsageTotal {
    /// Returns the submitter as `token/NAME`, `member/NAME` or `signer/NAME`; `-` if there is none.
    #[must_use]
    pub fn submitter_text(&self) -> String {
        match &self.submitter {
            None => "-".into(),
            Some(Submitter::Token(name)) => format!("token/{name}"),
            Some(Submitter::Member(id)) => format!("member/{id}"),
            Some(Submitter::Signer(name)) => format!("signer/{name}"),
        }
    }
}

/// Page of the totals, with what is common to all pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsagePage {
    /// Circle whose usage it is; none before it is founded.
    pub circle: Option<CircleId>,
    /// Cluster's time of the answer.
    pub at: Millis,
    /// Number of entries ever made.
    pub recorded: u64,
    /// Head of the chain over all entries; zeros before the first.
    pub head: Digest,
    /// Sum of all entries that charge.
    pub charged: UsageAmounts,
    /// Sum of all credits.
    pub credited: UsageAmounts,
    /// Prices of each vote, by version; those before the first vote are 0.
    pub prices: Vec<PriceVersion>,
    /// Totals, by day, name, project, owner and submitter.
    pub items: Vec<UsageTotal>,
    /// Opaque `page_token` of the next page; none on the last page.
    pub next_page_token: Option<String>,
}

/// First line of exported usage; each further line is a [`UsageEntry`], by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageExportHeader {
    /// Format: [`USAGE_FORMAT`].
    pub format: String,
    /// Circle whose usage it is.
    pub circle: CircleId,
    /// Number of entries.
    pub recorded: u64,
    /// Head of the chain over them.
    pub head: Digest,
    /// Sum of the entries that charge.
    pub charged: UsageAmounts,
    /// Sum of the credits.
    pub credited: UsageAmounts,
    /// Prices of each vote, by version.
    pub prices: Vec<PriceVersion>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn rate(gpu_millis: u64, cpu_millicores: u64, memory_mib: u64) -> UsageRate {
        UsageRate { gpu_millis, cpu_millicores, memory_mib }
    }

    #[test]
    fn an_hour_costs_its_price_to_the_millionth() {
        let prices = Prices {
            gpu_hour_micro_units: 2_500_001,
            cpu_hour_micro_units: 40_003,
            memory_gib_hour_micro_units: 5_007,
            ..Prices::default()
        };
        for (held, expected) in [
            (rate(1000, 0, 0), 2_500_001),
            (rate(0, 1000, 0), 40_003),
            (rate(0, 0, 1024), 5_007),
            (rate(8000, 4000, 2048), 8 * 2_500_001 + 4 * 40_003 + 2 * 5_007),
            (rate(300, 0, 0), 750_000),
            (rate(0, 0, 0), 0),
        ] {
            assert_eq!(bill(&held, HOUR_MS, &prices).spend_micro_units, expected, "{held:?}");
        }
    }

    #[test]
    fn amounts_are_exact_products_of_share_and_time() {
        let amounts = bill(&rate(1500, 250, 512), 1_999, &Prices::default());
        assert_eq!(amounts.gpu_microseconds, 1500 * 1_999);
        assert_eq!(amounts.cpu_microseconds, 250 * 1_999);
        assert_eq!(amounts.memory_mib_seconds, 512 * 1_999 / 1000);
        assert_eq!(amounts.spend_micro_units, 0, "no price was voted");
    }

    #[test]
    fn storage_and_tokens_cost_their_prices_to_the_millionth() {
        let prices = Prices {
            storage_gib_hour_micro_units: 3_001,
            million_prompt_tokens_micro_units: 500_000,
            million_generated_tokens_micro_units: 1_500_003,
            ..Prices::default()
        };
        let stored = StoredUsage::of(ModelRoot(Digest([1; 32])), 2048 * MIB - 1);
        let amounts = bill_stored(&stored, HOUR_MS, &prices);
        assert_eq!((amounts.storage_mib_seconds, amounts.spend_micro_units), (2048 * 3600, 6_002));
        let counts = UsageCounts { cpu_used_microseconds: 9, prompt_tokens: 3, generated_tokens: 1_000_000 };
        let with = amounts.with_counts(counts, &prices);
        assert_eq!(with.spend_micro_units, 6_002 + 1_500_004, "one and a half millionths are rounded down");
        assert_eq!((with.counts(), with.storage_mib_seconds), (counts, 2048 * 3600));
    }

    /// Returns an entry of a held slot, or of stored data, for an hour.
    fn entry(stored: Option<StoredUsage>) -> UsageEntry {
        UsageEntry {
            sequence: 1,
            envelope: "train".parse().expect("a name"),
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            certificate: Digest([1; 32]),
            node: NodeId(crate::keys::PublicKey([2; 32])),
            owner: None,
            project: None,
            submitter: None,
            job: None,
            attempt: 1,
            from: Millis(5),
            until: Millis(5 + HOUR_MS),
            rate: rate(0, 1000, 0),
            stored,
            price_version: 1,
            amounts: UsageAmounts { generated_tokens: 2_000_000, ..UsageAmounts::default() },
            credit_of: None,
        }
    }

    /// An entry that could be billed twice, as a slot and as what it stored, would cost more than it says.
    #[test]
    fn an_entry_is_billed_for_its_slot_or_for_what_is_stored_and_for_its_tokens() {
        let prices = Prices {
            cpu_hour_micro_units: 70,
            storage_gib_hour_micro_units: 300,
            million_generated_tokens_micro_units: 5,
            ..Prices::default()
        };
        let held = entry(None).billed(&prices);
        assert_eq!((held.spend_micro_units, held.storage_mib_seconds), (70 + 10, 0));
        let stored = StoredUsage::of(ModelRoot(Digest([1; 32])), 1024 * MIB);
        let kept = entry(Some(stored)).billed(&prices);
        assert_eq!((kept.spend_micro_units, kept.cpu_microseconds), (300 + 10, 0));
        assert_eq!((held.generated_tokens, kept.generated_tokens), (2_000_000, 2_000_000));
    }

    #[test]
    fn each_price_has_a_name_of_its_own() {
        let named = Prices::default().named();
        let names: std::collections::BTreeSet<&str> = named.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), named.len());
        let prices = Prices { million_generated_tokens_micro_units: 9, ..Prices::default() };
        assert_eq!(prices.named().map(|(_, price)| price), [0, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn a_stored_size_is_rounded_up_to_mebibytes() {
        let mib = |bytes| StoredUsage::of(ModelRoot(Digest([1; 32])), bytes).mib;
        assert_eq!([mib(0), mib(1), mib(MIB), mib(MIB + 1)], [0, 1, 1, 2]);
    }

    #[test]
    fn counts_only_rise_and_each_is_counted_once() {
        let counts = |cpu, prompt, generated| UsageCounts {
            cpu_used_microseconds: cpu,
            prompt_tokens: prompt,
            generated_tokens: generated,
        };
        let (first, later) = (counts(5, 7, 1), counts(6, 3, 9));
        let highest = first.max(later);
        assert_eq!(highest, counts(6, 7, 9));
        assert_eq!(highest.since(first), counts(1, 0, 8));
        assert_eq!(first.since(highest), counts(0, 0, 0));
    }

    #[test]
    fn the_largest_values_saturate_and_do_not_wrap() {
        let most = PRICE_MICRO_UNITS_MAX;
        let prices = Prices {
            gpu_hour_micro_units: most,
            cpu_hour_micro_units: most,
            memory_gib_hour_micro_units: most,
            storage_gib_hour_micro_units: most,
            million_prompt_tokens_micro_units: most,
            million_generated_tokens_micro_units: most,
        };
        let amounts = bill(&rate(u64::MAX, u64::MAX, u64::MAX), u64::MAX, &prices);
        assert_eq!((amounts.gpu_microseconds, amounts.spend_micro_units), (u64::MAX, u64::MAX));
        let stored = StoredUsage { root: ModelRoot(Digest([1; 32])), mib: u64::MAX };
        let of_storage = bill_stored(&stored, u64::MAX, &prices);
        assert_eq!((of_storage.storage_mib_seconds, of_storage.spend_micro_units), (u64::MAX, u64::MAX));
        let all = UsageCounts {
            cpu_used_microseconds: u64::MAX,
            prompt_tokens: u64::MAX,
            generated_tokens: u64::MAX,
        };
        assert_eq!(UsageAmounts::default().with_counts(all, &prices).spend_micro_units, u64::MAX);
        let mut sum = amounts;
        sum.add(&amounts);
        assert_eq!(sum.gpu_microseconds, u64::MAX);
    }

    #[test]
    fn a_rate_is_of_each_rank_and_memory_is_rounded_up() {
        let resources = Resources {
            cpu_millicores: 500,
            memory_bytes: MIB + 1,
            gpu_count: 2,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        };
        assert_eq!(UsageRate::of(&resources, 3), rate(6000, 1500, 6));
        let share = Resources { gpu_count: 0, gpu_share_percent: 25, ..resources };
        assert_eq!(UsageRate::of(&share, 1), rate(250, 500, 2));
    }
}
