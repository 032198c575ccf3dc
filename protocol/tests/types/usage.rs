//! Laws of metered usage, and strategies for its types and for the messages between nodes of a gang.

use crate::values::*;
use crate::workloads::signed_job_order;
use proptest::option;
use proptest::prelude::*;
use protocol::error_code::GANG_LINK_REFUSED;
use protocol::gang::{GANG_LINK_VERSION, GangAnswer, GangHello, GangMeeting};
use protocol::job::Submitter;
use protocol::manifest::Resources;
use protocol::slot_usage::{SignedSlotUsage, SlotUsage};
use protocol::usage::{
    PRICE_MICRO_UNITS_MAX, PriceVersion, Prices, StoredUsage, UsageAmounts, UsageCounts, UsageEntry,
    UsageExportHeader, UsageRate, UsageTotal, bill,
};
use protocol::{Digest, JobId, Millis, ModelRoot, Refusal};

const HOUR_MS: u64 = 3_600_000;

pub(crate) fn prices_to(most: u64) -> BoxedStrategy<Prices> {
    let price = || 0..=most;
    (price(), price(), price(), price(), price(), price())
        .prop_map(|(gpu, cpu, memory, storage, prompt, generated)| Prices {
            gpu_hour_micro_units: gpu,
            cpu_hour_micro_units: cpu,
            memory_gib_hour_micro_units: memory,
            storage_gib_hour_micro_units: storage,
            million_prompt_tokens_micro_units: prompt,
            million_generated_tokens_micro_units: generated,
        })
        .boxed()
}

fn rate_to(most: u64) -> BoxedStrategy<UsageRate> {
    (0..=most, 0..=most, 0..=most)
        .prop_map(|(gpu_millis, cpu_millicores, memory_mib)| UsageRate {
            gpu_millis,
            cpu_millicores,
            memory_mib,
        })
        .boxed()
}

fn amounts_to(most: u64) -> BoxedStrategy<UsageAmounts> {
    let amount = || 0..=most;
    let reserved = (amount(), amount(), amount(), amount());
    (reserved, amount(), amount(), amount(), amount())
        .prop_map(|((gpu, cpu, memory, storage), cpu_used, prompt, generated, spend)| UsageAmounts {
            gpu_microseconds: gpu,
            cpu_microseconds: cpu,
            memory_mib_seconds: memory,
            storage_mib_seconds: storage,
            cpu_used_microseconds: cpu_used,
            prompt_tokens: prompt,
            generated_tokens: generated,
            spend_micro_units: spend,
        })
        .boxed()
}

fn submitter() -> BoxedStrategy<Submitter> {
    let member = name().prop_map(Submitter::Member);
    prop_oneof![name().prop_map(Submitter::Token), member, name().prop_map(Submitter::Signer)].boxed()
}

pub(crate) fn entry() -> BoxedStrategy<UsageEntry> {
    let order = (name(), slot(), fence(), digest(), node_id());
    let account = (option::of(name()), option::of(name()), option::of(submitter()));
    let run = (account, option::of(digest().prop_map(JobId)), number32());
    let stored = (digest(), number()).prop_map(|(root, mib)| StoredUsage { root: ModelRoot(root), mib });
    let held = (rate_to(u64::MAX), option::of(stored));
    let charge = (number(), amounts_to(u64::MAX), option::of(number()));
    (number(), order, run, (millis(), millis()), held, charge)
        .prop_map(|(sequence, order, run, (from, until), (rate, stored), charge)| {
            let (envelope, slot, fence, certificate, node) = order;
            let ((owner, project, submitter), job, attempt) = run;
            let (price_version, amounts, credit_of) = charge;
            UsageEntry {
                sequence,
                envelope,
                slot,
                fence,
                certificate,
                node,
                owner,
                project,
                submitter,
                job,
                attempt,
                from,
                until,
                rate,
                stored,
                price_version,
                amounts,
                credit_of,
            }
        })
        .boxed()
}

pub(crate) fn slot_usage() -> BoxedStrategy<SignedSlotUsage> {
    let order = (circle(), node_id(), name(), slot(), fence());
    (number32(), order, (number(), number(), number()), signature())
        .prop_map(|(version, (circle, node, envelope, slot, fence), (cpu, prompt, generated), signature)| {
            let counts = UsageCounts {
                cpu_used_microseconds: cpu,
                prompt_tokens: prompt,
                generated_tokens: generated,
            };
            let usage = SlotUsage { version, circle, node, envelope, slot, fence, counts };
            SignedSlotUsage { usage, signature }
        })
        .boxed()
}

pub(crate) fn total() -> BoxedStrategy<UsageTotal> {
    let amounts = || amounts_to(u64::MAX);
    let account = (option::of(name()), option::of(name()), option::of(submitter()));
    (millis(), name(), account, number(), amounts(), amounts())
        .prop_map(|(day, envelope, (project, owner, submitter), entries, amounts, open)| UsageTotal {
            day,
            envelope,
            project,
            owner,
            submitter,
            entries,
            amounts,
            open,
        })
        .boxed()
}

pub(crate) fn export_header() -> BoxedStrategy<UsageExportHeader> {
    let version = (number(), prices_to(u64::MAX));
    let prices = proptest::collection::vec(
        version.prop_map(|(version, prices)| PriceVersion { version, prices }),
        0..3,
    );
    let sums = (amounts_to(u64::MAX), amounts_to(u64::MAX));
    (text(), circle(), number(), digest(), sums, prices)
        .prop_map(|(format, circle, recorded, head, (charged, credited), prices)| UsageExportHeader {
            format,
            circle,
            recorded,
            head,
            charged,
            credited,
            prices,
        })
        .boxed()
}

pub(crate) fn hello() -> BoxedStrategy<GangHello> {
    let meeting = (signed_job_order(), signed_job_order()).prop_map(|(own, peer)| GangMeeting { own, peer });
    (circle(), digest().prop_map(JobId), number32(), option::of(meeting))
        .prop_map(|(circle, job, attempt, meeting)| GangHello {
            version: GANG_LINK_VERSION,
            circle,
            job,
            attempt,
            meeting,
        })
        .boxed()
}

pub(crate) fn answer() -> BoxedStrategy<GangAnswer> {
    let refusal = text().prop_map(|text| Refusal::new(GANG_LINK_REFUSED, format!("because {text}")));
    option::of(refusal).prop_map(|refusal| GangAnswer { refusal }).boxed()
}

proptest! {
    /// A spend is the exact one, rounded down once: checked by multiplication, where the bill divides.
    #[test]
    fn a_spend_is_rounded_down_once(
        rate in rate_to(1 << 24), prices in prices_to(1 << 30), milliseconds in 0..100 * HOUR_MS,
    ) {
        let spend = u128::from(bill(&rate, milliseconds, &prices).spend_micro_units);
        let hours = |part: u64, price: u64, unit: u128| {
            // In parts of 1,024,000 ms-hours, so that thousandths and 1,024ths are whole.
            u128::from(part) * u128::from(price) * u128::from(milliseconds) * (1_024_000 / unit)
        };
        let exact = hours(rate.gpu_millis, prices.gpu_hour_micro_units, 1000)
            + hours(rate.cpu_millicores, prices.cpu_hour_micro_units, 1000)
            + hours(rate.memory_mib, prices.memory_gib_hour_micro_units, 1024);
        let whole = 1_024_000 * u128::from(HOUR_MS);
        prop_assert!(spend * whole <= exact && exact < (spend + 1) * whole, "{}", spend);
    }

    /// A cut of an interval loses less than a millionth, and gains nothing.
    #[test]
    fn a_cut_interval_costs_no_more(
        rate in rate_to(1 << 24), prices in prices_to(1 << 30), first in 0..HOUR_MS, second in 0..HOUR_MS,
    ) {
        let whole = bill(&rate, first + second, &prices);
        let mut parts = bill(&rate, first, &prices);
        parts.add(&bill(&rate, second, &prices));
        prop_assert!((0..=1).contains(&(whole.spend_micro_units - parts.spend_micro_units)));
        prop_assert!((0..=1).contains(&(whole.memory_mib_seconds - parts.memory_mib_seconds)));
        prop_assert_eq!(whole.gpu_microseconds, parts.gpu_microseconds);
        prop_assert_eq!(whole.cpu_microseconds, parts.cpu_microseconds);
    }

    /// No input overflows or panics, and each amount is the largest of its type at most.
    #[test]
    fn a_bill_of_any_input_is_monotonic_in_time(
        rate in rate_to(u64::MAX), prices in prices_to(PRICE_MICRO_UNITS_MAX), a: u64, b: u64,
    ) {
        let (less, more) = (bill(&rate, a.min(b), &prices), bill(&rate, a.max(b), &prices));
        prop_assert!(less.spend_micro_units <= more.spend_micro_units);
        prop_assert!(less.gpu_microseconds <= more.gpu_microseconds);
        prop_assert!(less.memory_mib_seconds <= more.memory_mib_seconds);
        prop_assert_eq!(bill(&rate, a, &Prices::default()).spend_micro_units, 0);
    }

    /// Counts add themselves and their price to an entry, and change nothing else of it.
    #[test]
    fn counts_add_their_own_price_and_no_time(
        rate in rate_to(1 << 40), prices in prices_to(PRICE_MICRO_UNITS_MAX), ms in 0..1_u64 << 32,
        cpu: u64, prompt in 0..1_u64 << 40, generated in 0..1_u64 << 40,
    ) {
        let counts =
            UsageCounts { cpu_used_microseconds: cpu, prompt_tokens: prompt, generated_tokens: generated };
        let of_time = bill(&rate, ms, &prices);
        let with = of_time.with_counts(counts, &prices);
        prop_assert_eq!(with.counts(), counts);
        prop_assert!(with.spend_micro_units >= of_time.spend_micro_units);
        let cost = u128::from(prompt) * u128::from(prices.million_prompt_tokens_micro_units)
            + u128::from(generated) * u128::from(prices.million_generated_tokens_micro_units);
        let expected = u128::from(of_time.spend_micro_units) + cost / 1_000_000;
        prop_assert_eq!(u128::from(with.spend_micro_units), expected.min(u128::from(u64::MAX)));
        let time = |amounts: UsageAmounts| {
            (amounts.gpu_microseconds, amounts.cpu_microseconds, amounts.memory_mib_seconds)
        };
        prop_assert_eq!(time(with), time(of_time));
    }

    /// Reports arrive twice and out of order: the sum of what each adds is the highest count.
    #[test]
    fn counts_of_any_order_of_statements_add_up_to_the_highest(
        reports in proptest::collection::vec((0..1_u64 << 50, 0..1_u64 << 50), 1..30),
    ) {
        let of = |(prompt, generated): (u64, u64)| UsageCounts {
            cpu_used_microseconds: 0, prompt_tokens: prompt, generated_tokens: generated,
        };
        let (mut highest, mut added) = (UsageCounts::default(), 0);
        for counts in reports.iter().chain(&reports).map(|report| of(*report)) {
            added += highest.max(counts).since(highest).generated_tokens;
            highest = highest.max(counts);
        }
        let most = reports.iter().map(|report| report.1).max().unwrap_or(0);
        prop_assert_eq!((added, highest.generated_tokens), (most, most));
    }

    #[test]
    fn a_credit_takes_back_its_charge(a in amounts_to(1 << 62), b in amounts_to(1 << 62)) {
        let (mut sum, mut turned) = (a, b);
        sum.add(&b);
        turned.add(&a);
        prop_assert_eq!(sum, turned, "in any order");
        sum.take(&b);
        prop_assert_eq!(sum, a);
        sum.take(&a);
        sum.take(&b);
        prop_assert_eq!(sum, UsageAmounts::default(), "never below nothing");
    }

    #[test]
    fn ranks_reserve_as_much_apart_as_together(
        cpu_millicores in 0..1_u64 << 32, memory_bytes: u64, gpu_count in 0..65_u32, share in 0..100_u32,
        first in 0..512_u32, second in 0..512_u32,
    ) {
        let resources = Resources {
            cpu_millicores, memory_bytes, gpu_count, gpu_share_percent: share, gpu_memory_bytes: 0,
        };
        let apart = UsageRate::of(&resources, first).plus(UsageRate::of(&resources, second));
        prop_assert_eq!(apart, UsageRate::of(&resources, first + second));
    }

    /// Attack: an entry is altered, dropped or moved in its chain. The control is the chain as it was.
    #[test]
    fn a_chain_has_its_entries_in_their_order(a in entry(), b in entry(), before in digest()) {
        let next = |head: Digest, entry: &&UsageEntry| entry.head_after(&head);
        let head = |entries: &[&UsageEntry]| entries.iter().fold(before, next);
        prop_assert_eq!(head(&[&a, &b]), head(&[&a.clone(), &b.clone()]));
        prop_assert_eq!(head(&[&a, &b]) == head(&[&b, &a]), a == b);
        prop_assert!(head(&[&a]) != head(&[&a, &b]) && head(&[&b]) != head(&[&a, &b]));
        let altered: [fn(&mut UsageEntry); 5] = [
            |entry| entry.amounts.spend_micro_units ^= 1,
            |entry| entry.until = Millis(entry.until.0 ^ 1),
            |entry| entry.price_version ^= 1,
            |entry| entry.certificate = Digest::of(b"another"),
            |entry| entry.credit_of = entry.credit_of.map_or(Some(0), |_| None),
        ];
        for alter in altered {
            let mut other = a.clone();
            alter(&mut other);
            prop_assert_ne!(head(&[&a, &b]), head(&[&other, &b]));
        }
    }

    /// Two submitters, or a submitter and none, are never shown as one.
    #[test]
    fn a_submitter_has_a_text_of_its_own(a in total(), b in total()) {
        prop_assert_eq!(a.submitter == b.submitter, a.submitter_text() == b.submitter_text());
        let kinds = ["token/", "member/", "signer/"];
        let text = a.submitter_text();
        prop_assert_eq!(a.submitter.is_some(), kinds.iter().any(|kind| text.starts_with(kind)), "{}", text);
    }
}
