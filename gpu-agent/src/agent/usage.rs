//! Counts of this node's slots, CPU time and tokens, on their way to control: signed at a bounded rate while
//! a slot runs and once more when it has ended, and sent to the leader of each term until it answers.
//!
//! Caveat: tokens of workers that ended under the same order before this agent started are not known to it. A
//! statement that is lower than an earlier one adds nothing.

use super::core::SlotKey;
use protocol::Fence;
use protocol::slot_usage::{SLOT_USAGES_MAX, SignedSlotUsage};
use protocol::usage::UsageCounts;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Shortest time between two statements about a slot that runs.
const STATEMENT_GAP: Duration = Duration::from_secs(60);
/// Most slots that have ended and whose statements are kept; the first to end is forgotten first.
const ENDED_MAX: usize = 256;

/// Slot under one order.
pub(super) type OrderedSlot = (SlotKey, Fence);

/// Counts of a service's slot over all of its workers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SlotCounter {
    /// Counts of workers that have ended.
    ended: UsageCounts,
    /// Counts of the worker that runs.
    current: UsageCounts,
}

impl SlotCounter {
    /// Notes that another worker begins, which counts from 0.
    pub(super) fn begin_worker(&mut self) {
        (self.ended, self.current) = (self.total(), UsageCounts::default());
    }

    /// Notes what the worker has counted since its start.
    pub(super) fn observe(&mut self, counts: UsageCounts) {
        self.current = self.current.max(counts);
    }

    /// Returns the counts of all workers.
    pub(super) fn total(&self) -> UsageCounts {
        UsageCounts {
            cpu_used_microseconds: self
                .ended
                .cpu_used_microseconds
                .saturating_add(self.current.cpu_used_microseconds),
            prompt_tokens: self.ended.prompt_tokens.saturating_add(self.current.prompt_tokens),
            generated_tokens: self.ended.generated_tokens.saturating_add(self.current.generated_tokens),
        }
    }
}

/// Statements about the slots of this node.
#[derive(Debug, Default)]
pub(super) struct UsageStatements {
    /// Raft term of the leader that has the delivered statements.
    term: u64,
    slots: BTreeMap<OrderedSlot, SlotStatement>,
    /// Slots that have ended, in the order of their ends.
    ended: VecDeque<OrderedSlot>,
}

#[derive(Debug, Default)]
struct SlotStatement {
    counts: UsageCounts,
    is_final: bool,
    signed: Option<(SignedSlotUsage, Instant)>,
    is_delivered: bool,
}

impl SlotStatement {
    /// Returns whether its counts are to be signed now.
    fn is_due(&self, now: Instant) -> bool {
        let Some((signed, at)) = &self.signed else { return self.counts != UsageCounts::default() };
        signed.usage.counts != self.counts && (self.is_final || now.duration_since(*at) >= STATEMENT_GAP)
    }
}

impl UsageStatements {
    /// Notes the counts of a slot since its order. Counts of a slot that has ended change no more.
    pub(super) fn note(&mut self, slot: OrderedSlot, counts: UsageCounts, has_ended: bool) {
        let statement = self.slots.entry(slot.clone()).or_default();
        if statement.is_final {
            return;
        }
        (statement.counts, statement.is_final) = (statement.counts.max(counts), has_ended);
        if !has_ended {
            return;
        }
        self.ended.push_back(slot);
        while self.ended.len() > ENDED_MAX {
            if let Some(oldest) = self.ended.pop_front() {
                self.slots.remove(&oldest);
            }
        }
    }

    /// Returns the statements that the next request carries. `sign` signs what is new.
    pub(super) fn next_statements(
        &mut self,
        now: Instant,
        sign: impl Fn(&OrderedSlot, UsageCounts) -> SignedSlotUsage,
    ) -> Vec<SignedSlotUsage> {
        for (slot, statement) in &mut self.slots {
            if statement.is_due(now) {
                statement.signed = Some((sign(slot, statement.counts), now));
                statement.is_delivered = false;
            }
        }
        let open = self.slots.values().filter(|statement| !statement.is_delivered);
        open.filter_map(|statement| statement.signed.as_ref())
            .map(|(signed, _)| signed.clone())
            .take(SLOT_USAGES_MAX)
            .collect()
    }

    /// Takes the answer of the leader of a term to a request with these statements. One of another term has
    /// no others.
    pub(super) fn answered(&mut self, term: u64, sent: &[SignedSlotUsage]) {
        if self.term != term {
            self.term = term;
            self.slots.values_mut().for_each(|statement| statement.is_delivered = false);
        }
        for usage in sent.iter().map(|signed| &signed.usage) {
            let slot = (SlotKey { service: usage.envelope.clone(), slot: usage.slot }, usage.fence);
            let known = self.slots.get_mut(&slot);
            let same = known.filter(|known| known.signed.as_ref().is_some_and(|(of, _)| of.usage == *usage));
            if let Some(statement) = same {
                statement.is_delivered = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::slot_usage::SlotUsage;
    use protocol::{CircleId, Digest, NodeId, PublicKey, Signature, SlotIndex};

    fn slot(number: u64) -> OrderedSlot {
        let key = SlotKey { service: "chat".parse().expect("a name"), slot: SlotIndex(0) };
        (key, Fence::new(1, number))
    }

    fn tokens(generated: u64) -> UsageCounts {
        UsageCounts { cpu_used_microseconds: 1, prompt_tokens: 2, generated_tokens: generated }
    }

    fn sign((key, fence): &OrderedSlot, counts: UsageCounts) -> SignedSlotUsage {
        let usage = SlotUsage {
            version: 1,
            circle: CircleId(Digest([1; 32])),
            node: NodeId(PublicKey([2; 32])),
            envelope: key.service.clone(),
            slot: key.slot,
            fence: *fence,
            counts,
        };
        SignedSlotUsage { usage, signature: Signature([3; 64]) }
    }

    /// Returns what is sent, and lets the leader of a term answer.
    fn send(statements: &mut UsageStatements, now: Instant, term: u64) -> Vec<u64> {
        let sent = statements.next_statements(now, sign);
        statements.answered(term, &sent);
        sent.iter().map(|signed| signed.usage.counts.generated_tokens).collect()
    }

    #[test]
    fn a_running_slot_is_stated_at_a_bounded_rate_and_its_end_at_once() {
        let (mut statements, began) = (UsageStatements::default(), Instant::now());
        statements.note(slot(1), UsageCounts::default(), false);
        assert_eq!(send(&mut statements, began, 7), [0; 0], "it has counted nothing");
        statements.note(slot(1), tokens(5), false);
        assert_eq!(send(&mut statements, began, 7), [5]);
        statements.note(slot(1), tokens(6), false);
        assert_eq!(send(&mut statements, began + STATEMENT_GAP / 2, 7), [0; 0]);
        assert_eq!(send(&mut statements, began + STATEMENT_GAP, 7), [6]);
        statements.note(slot(1), tokens(9), true);
        assert_eq!(send(&mut statements, began + STATEMENT_GAP, 7), [9]);
        statements.note(slot(1), tokens(99), false);
        assert_eq!(
            send(&mut statements, began + STATEMENT_GAP * 9, 7),
            [0; 0],
            "an ended slot counts no more"
        );
    }

    #[test]
    fn a_statement_is_sent_until_it_is_answered_and_again_to_the_next_leader() {
        let (mut statements, now) = (UsageStatements::default(), Instant::now());
        statements.note(slot(1), tokens(5), true);
        assert_eq!(statements.next_statements(now, sign).len(), 1);
        assert_eq!(send(&mut statements, now, 7), [5], "no answer came");
        assert_eq!(send(&mut statements, now, 7), [0; 0]);
        assert_eq!(send(&mut statements, now, 8), [0; 0], "the answer names another leader");
        assert_eq!(send(&mut statements, now, 8), [5]);
        assert_eq!(send(&mut statements, now, 8), [0; 0]);
    }

    #[test]
    fn statements_of_ended_slots_are_bounded() {
        let (mut statements, now) = (UsageStatements::default(), Instant::now());
        for number in 0..ENDED_MAX as u64 + 3 {
            statements.note(slot(number), tokens(number + 1), true);
        }
        let sent = send(&mut statements, now, 7);
        assert_eq!((sent.len(), sent[0]), (SLOT_USAGES_MAX.min(ENDED_MAX), 4));
    }

    /// The attack is a node with more slots than a request has room for: each is stated in its turn.
    #[test]
    fn more_slots_than_a_request_has_room_for_are_stated_in_turn() {
        let (mut statements, now) = (UsageStatements::default(), Instant::now());
        let slots = SLOT_USAGES_MAX as u64 + 5;
        for number in 0..slots {
            statements.note(slot(number), tokens(number + 1), false);
        }
        let first = send(&mut statements, now, 7);
        let second = send(&mut statements, now, 7);
        assert_eq!((first.len(), second.len()), (SLOT_USAGES_MAX, 5));
        let mut all = [first, second].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=slots).collect::<Vec<_>>(), "each once");
        assert_eq!(send(&mut statements, now, 7), [0; 0]);
    }

    #[test]
    fn tokens_of_each_worker_of_a_slot_count_once() {
        let mut counter = SlotCounter::default();
        for (generated, total) in [(3, 3), (5, 5), (4, 5)] {
            counter.observe(tokens(generated));
            assert_eq!(counter.total().generated_tokens, total, "what was counted stays");
        }
        counter.begin_worker();
        counter.observe(tokens(2));
        assert_eq!((counter.total().generated_tokens, counter.total().prompt_tokens), (7, 4));
    }
}
