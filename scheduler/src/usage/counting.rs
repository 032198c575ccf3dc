//! Counts of slots, as their nodes state them under their signatures: judged by the leader before it plans to
//! count them, and again by every replica.
//!
//! A node states counts since its order. They only rise: a statement that comes again, or late, adds nothing,
//! and one under another fence, of another node, or beyond what a slot can do, does not count.
//!
//! Caveat: a node can state counts that it did not make, up to those bounds. It is believed about its own
//! slots alone, and its circle has its signature.

use super::{Meter, MeterName};
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::command::Refusal;
use crate::draft::{Draft, Effect, effect, slot_text, stale};
use crate::limits::{COUNT_CORES_MAX, COUNT_SLACK_MS, COUNT_TOKENS_PER_MS_MAX};
use protocol::slot_usage::SignedSlotUsage;
use protocol::usage::UsageCounts;

/// Returns the name of the meter that a statement is about.
fn name_of(signed: &SignedSlotUsage) -> MeterName {
    let usage = &signed.usage;
    MeterName { envelope: usage.envelope.clone(), slot: usage.slot, fence: usage.fence, stored: None }
}

/// Returns whether a slot can have made these counts in a time.
fn is_possible(counts: UsageCounts, elapsed_ms: u64) -> bool {
    let ms = elapsed_ms.saturating_add(COUNT_SLACK_MS);
    let tokens = ms.saturating_mul(COUNT_TOKENS_PER_MS_MAX);
    let cpu = ms.saturating_mul(1000).saturating_mul(COUNT_CORES_MAX);
    counts.prompt_tokens <= tokens && counts.generated_tokens <= tokens && counts.cpu_used_microseconds <= cpu
}

/// Returns the meter that a statement raises.
///
/// # Errors
/// The first check that fails: meter and node, a higher count, possible counts, circle and signature. The
/// signature is verified last, because it costs most.
pub(crate) fn raised<'a>(
    cluster: &'a Cluster,
    signed: &SignedSlotUsage,
    now: ClusterTime,
) -> Result<&'a Meter, Refusal> {
    let (usage, circle) =
        (&signed.usage, cluster.circle_id().ok_or_else(|| stale("there is no circle yet"))?);
    let label = slot_text(&usage.envelope, usage.slot);
    let meter = cluster.usage.meters.get(&name_of(signed)).filter(|meter| meter.node == usage.node);
    let meter = meter.ok_or_else(|| stale(format!("{label} is not held by this node under this fence")))?;
    if usage.counts.max(meter.counted) == meter.counted {
        return Err(stale(format!("{label} counts no more than before")));
    }
    if !is_possible(usage.counts.since(meter.counted), meter.counted_at.ms_until(now)) {
        return Err(stale(format!("{label} counts more than a slot can do")));
    }
    debug_assert!(meter.stored.is_none(), "stored data counts nothing");
    if signed.holds(circle) {
        Ok(meter)
    } else {
        Err(stale(format!("{label}: its node did not sign its counts")))
    }
}

impl Draft<'_> {
    /// Counts what the node of a slot stated.
    pub(crate) fn count_usage(&mut self, signed: &SignedSlotUsage) -> Result<Effect, Refusal> {
        raised(self.cluster, signed, self.now)?;
        let (name, counts) = (name_of(signed), signed.usage.counts);
        let label = slot_text(&name.envelope, name.slot);
        self.meters.counts.insert(name, counts);
        Ok(Effect { is_quiet: true, ..effect("count", label, String::new()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attack is a node that states 2^64 - 1 tokens for a second of work, and empties a budget.
    #[test]
    fn counts_beyond_what_a_slot_can_do_do_not_count() {
        let of = |cpu, prompt, generated| UsageCounts {
            cpu_used_microseconds: cpu,
            prompt_tokens: prompt,
            generated_tokens: generated,
        };
        let tokens = (1_000 + COUNT_SLACK_MS) * COUNT_TOKENS_PER_MS_MAX;
        let cpu = (1_000 + COUNT_SLACK_MS) * 1000 * COUNT_CORES_MAX;
        assert!(is_possible(of(cpu, tokens, tokens), 1_000));
        for counts in [of(cpu + 1, 0, 0), of(0, tokens + 1, 0), of(0, 0, tokens + 1), of(0, u64::MAX, 0)] {
            assert!(!is_possible(counts, 1_000), "{counts:?}");
        }
        assert!(is_possible(of(u64::MAX, u64::MAX, u64::MAX), u64::MAX), "bounds do not wrap");
    }
}
