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

    /// Adds an event and drops the oldest beyond [`AUDIT_EVENTS_MAX`].
    pub(crate) fn record(&mut self, at: ClusterTime, actor: &str, action: &str, subject: &str, detail: &str) {
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
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;

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
