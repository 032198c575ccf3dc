//! Audit log: a bounded ring of numbered events, each with its time, actor, action and subject.
//!
//! It is a convenience for operators; the governance chain is the proof of the circle's decisions.

use crate::clock::ClusterTime;
use crate::limits::{AUDIT_EVENTS_MAX, AUDIT_TEXT_BYTES_MAX};
use protocol::api::AuditEvent;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The last events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    recorded: u64,
    events: VecDeque<AuditEvent>,
}

impl Audit {
    /// Returns the number of events ever recorded, which is the last event's sequence number.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Returns at most `count` events with a number above `sequence`, oldest first.
    pub fn after(&self, sequence: u64, count: usize) -> impl Iterator<Item = &AuditEvent> {
        self.events.iter().filter(move |event| event.sequence > sequence).take(count)
    }

    /// Returns the last `count` events, oldest first.
    pub fn last(&self, count: usize) -> impl Iterator<Item = &AuditEvent> {
        self.events.iter().skip(self.events.len().saturating_sub(count))
    }

    /// Returns whether the kept events are bounded, and numbered without gaps up to [`Self::recorded`].
    pub(crate) fn is_numbered(&self) -> bool {
        let numbers = self.events.iter().rev().map(|event| event.sequence);
        let expected = (1..=self.recorded).rev();
        self.events.len() <= AUDIT_EVENTS_MAX
            && self.events.len() as u64 == self.recorded.min(AUDIT_EVENTS_MAX as u64)
            && numbers.eq(expected.take(self.events.len()))
    }

    /// Returns the time of the last event; zero if there is none.
    pub(crate) fn last_at(&self) -> ClusterTime {
        self.events.back().map(|event| ClusterTime(event.at)).unwrap_or_default()
    }

    /// Moves the times of events that are later than `to` back to it.
    pub(crate) fn set_back(&mut self, to: ClusterTime) {
        self.events.iter_mut().for_each(|event| event.at = event.at.min(to.0));
    }

    /// Adds an event and drops the oldest beyond [`AUDIT_EVENTS_MAX`].
    pub(crate) fn record(&mut self, at: ClusterTime, actor: &str, action: &str, subject: &str, detail: &str) {
        debug_assert!(at >= self.last_at(), "events are recorded in the order of time");
        debug_assert!(!actor.is_empty() && !action.is_empty(), "an event has an actor and an action");
        self.recorded += 1;
        self.events.push_back(AuditEvent {
            sequence: self.recorded,
            at: at.0,
            actor: actor.to_string(),
            action: action.to_string(),
            subject: shorten(subject),
            detail: shorten(detail),
        });
        while self.events.len() > AUDIT_EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

/// Truncates a text to [`AUDIT_TEXT_BYTES_MAX`] between characters.
fn shorten(text: &str) -> String {
    if text.len() <= AUDIT_TEXT_BYTES_MAX {
        return text.to_string();
    }
    let mut end = AUDIT_TEXT_BYTES_MAX - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    debug_assert!(end + 3 >= AUDIT_TEXT_BYTES_MAX - '…'.len_utf8(), "a character has at most four bytes");
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;

    impl Audit {
        /// Counts an event that is not there.
        pub(crate) fn miscount(&mut self) {
            self.recorded += 1;
        }
    }

    #[test]
    fn a_missing_or_renumbered_event_is_noticed() {
        let mut audit = Audit::default();
        assert!(audit.is_numbered() && audit.last_at() == ClusterTime::default());
        for number in 1..=3 {
            audit.record(ClusterTime(Millis(number)), "scheduler", "place", "chat/0", "");
        }
        assert!(audit.is_numbered() && audit.last_at() == ClusterTime(Millis(3)));
        let damaged = |damage: fn(&mut Audit)| {
            let mut audit = audit.clone();
            damage(&mut audit);
            !audit.is_numbered()
        };
        assert!(damaged(Audit::miscount));
        assert!(damaged(|audit| audit.events[1].sequence = 7));
        assert!(damaged(|audit| drop(audit.events.remove(1))));
        assert!(damaged(|audit| audit.events.clear()));
    }

    #[test]
    fn the_ring_keeps_the_last_events_and_their_numbers() {
        let mut audit = Audit::default();
        for number in 0..(AUDIT_EVENTS_MAX as u64 + 10) {
            audit.record(ClusterTime(Millis(number)), "scheduler", "place", "chat/0", "");
        }
        assert_eq!(audit.recorded(), AUDIT_EVENTS_MAX as u64 + 10);
        assert_eq!(audit.last(1).next().map(|e| e.sequence), Some(AUDIT_EVENTS_MAX as u64 + 10));
        assert_eq!(audit.after(0, 1).next().map(|e| e.sequence), Some(11), "the oldest ten are gone");
        assert_eq!(audit.after(AUDIT_EVENTS_MAX as u64 + 8, 10).count(), 2);
        assert_eq!(audit.last(3).count(), 3);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for (text, expected) in [("short".to_string(), 5), ("ä".repeat(400), 511), ("a".repeat(600), 512)] {
            let cut = shorten(&text);
            assert_eq!(cut.len(), expected, "{text}");
            assert!(cut.len() <= AUDIT_TEXT_BYTES_MAX);
        }
    }
}
