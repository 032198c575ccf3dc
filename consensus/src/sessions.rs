//! Client sessions: deduplication of retried commands, as part of the replicated state.
//!
//! Every replica changes the session table in the same way at the same index, and snapshots contain it. A
//! session's id is the index of the log entry that opened it. Ids are therefore never reused, and an expired
//! session is rejected instead of being mistaken for a new one.

use crate::command::{u32_at, u64_at};
use crate::ids::LogIndex;
use crate::invariant::require;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Limit on open sessions; beyond it the least recently used one is evicted. Not configurable: replicas with
/// different limits would hold different states.
const SESSIONS_MAX: usize = 4096;
/// Limit on the bytes of remembered responses; a constant for the same reason.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Id of a session, from [`crate::Handle::open_session`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Result of looking up a command in the session table, before it is applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SessionLookup {
    /// Not applied before: apply it, then [`Sessions::record`] the response.
    New,
    /// Applied before, with this response.
    Repeated(Bytes),
    /// Older than the last applied command of the session; its response is gone.
    Passed,
    /// Expired, or never opened.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientSession {
    sequence: u64,
    response: Bytes,
    used_at: LogIndex,
}

/// Every open session, bounded in number and in bytes of remembered responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sessions {
    count_max: usize,
    bytes_max: usize,
    bytes: usize,
    open: BTreeMap<SessionId, ClientSession>,
    /// Session ids by the index of their last use: the first one is evicted first.
    by_use: BTreeMap<LogIndex, SessionId>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(SESSIONS_MAX, RESPONSE_BYTES_MAX)
    }
}

impl Sessions {
    fn new(count_max: usize, bytes_max: usize) -> Self {
        let (open, by_use) = (BTreeMap::new(), BTreeMap::new());
        Self { count_max, bytes_max, bytes: 0, open, by_use }
    }

    /// Opens the session of the entry at `index`, and returns its id.
    pub(crate) fn open(&mut self, index: LogIndex) -> SessionId {
        let id = SessionId(index.0);
        let session = ClientSession { sequence: 0, response: Bytes::new(), used_at: index };
        let previous = self.open.insert(id, session);
        assert!(previous.is_none(), "log index {index} opened a session twice");
        self.by_use.insert(index, id);
        self.evict_surplus();
        id
    }

    /// Looks up a command. Sequence numbers begin at 1 and may have gaps.
    pub(crate) fn admit(&self, session: SessionId, sequence: u64) -> SessionLookup {
        match self.open.get(&session) {
            None => SessionLookup::Unknown,
            Some(found) if sequence > found.sequence => SessionLookup::New,
            Some(found) if sequence == found.sequence && sequence > 0 => {
                SessionLookup::Repeated(found.response.clone())
            }
            Some(_) => SessionLookup::Passed,
        }
    }

    /// Records the response of a command that was admitted as new and applied at `index`.
    pub(crate) fn record(&mut self, session: SessionId, sequence: u64, index: LogIndex, response: Bytes) {
        let found = self.open.get_mut(&session).expect("the command was admitted to this session");
        assert!(sequence > found.sequence, "a session's sequence numbers rise");
        assert!(index > found.used_at, "entry {index} is applied after entry {}", found.used_at);
        self.by_use.remove(&found.used_at);
        self.bytes = self.bytes - found.response.len() + response.len();
        *found = ClientSession { sequence, response, used_at: index };
        self.by_use.insert(index, session);
        self.evict_surplus();
    }

    fn evict_surplus(&mut self) {
        while self.open.len() > self.count_max || self.bytes > self.bytes_max {
            let Some((_, session)) = self.by_use.pop_first() else { break };
            let gone = self.open.remove(&session).expect("both maps name the same sessions");
            self.bytes -= gone.response.len();
        }
        assert_eq!(self.open.len(), self.by_use.len(), "both maps name the same sessions");
    }

    /// Checks that the table is within its limits, and that both maps name the same sessions.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let (count, limit) = (self.open.len(), self.count_max);
        require(count <= limit, || format!("{count} sessions exceed the limit of {limit}"))?;
        let (counted, limit) = (self.bytes, self.bytes_max);
        require(counted <= limit, || format!("{counted} bytes of responses exceed the limit of {limit}"))?;
        let actual: usize = self.open.values().map(|session| session.response.len()).sum();
        require(counted == actual, || format!("{actual} bytes of responses, counted as {counted}"))?;
        require(count == self.by_use.len(), || format!("{} uses of {count} sessions", self.by_use.len()))?;
        for (id, session) in &self.open {
            let (id, used_at) = (id.0, session.used_at);
            require(used_at.0 >= id, || format!("session {id} was used at {used_at}, before it was opened"))?;
            let listed = self.by_use.get(&used_at).is_some_and(|used| used.0 == id);
            require(listed, || format!("session {id} is missing among the uses at {used_at}"))?;
        }
        Ok(())
    }

    /// Appends the table as stored in a snapshot: count, then id, sequence, last use, response length and
    /// response bytes of each session.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&(self.open.len() as u32).to_le_bytes());
        for (id, session) in &self.open {
            for value in [id.0, session.sequence, session.used_at.0] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&(session.response.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&session.response);
        }
    }

    /// Decodes the table from a snapshot, and returns it with its length in bytes. `None` if it is
    /// inconsistent.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        Self::decode_within(bytes, SESSIONS_MAX, RESPONSE_BYTES_MAX)
    }

    fn decode_within(bytes: &[u8], count_max: usize, bytes_max: usize) -> Option<(Self, usize)> {
        let mut sessions = Self::new(count_max, bytes_max);
        let count = u32_at(bytes, 0)? as usize;
        if count > count_max {
            return None;
        }
        let mut at = 4;
        for _ in 0..count {
            let (id, sequence) = (SessionId(u64_at(bytes, at)?), u64_at(bytes, at + 8)?);
            let (used_at, length) = (LogIndex(u64_at(bytes, at + 16)?), u32_at(bytes, at + 24)? as usize);
            let response = Bytes::copy_from_slice(bytes.get(at + 28..at + 28 + length)?);
            at += 28 + length;
            sessions.bytes += length;
            let fresh = sessions.open.insert(id, ClientSession { sequence, response, used_at }).is_none();
            if !fresh || used_at.0 < id.0 || sessions.by_use.insert(used_at, id).is_some() {
                return None;
            }
        }
        if sessions.bytes > bytes_max {
            return None;
        }
        debug_assert_eq!(sessions.check_invariants(), Ok(()), "a decoded table violates an invariant");
        Some((sessions, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn a_command_is_new_then_repeated_then_passed() {
        let mut sessions = Sessions::new(8, 1000);
        sessions.open(LogIndex(5));
        assert_eq!(sessions.admit(SessionId(5), 1), SessionLookup::New);
        sessions.record(SessionId(5), 1, LogIndex(6), response("one"));
        assert_eq!(sessions.admit(SessionId(5), 1), SessionLookup::Repeated(response("one")));
        sessions.record(SessionId(5), 4, LogIndex(7), response("four"));
        assert_eq!(sessions.admit(SessionId(5), 4), SessionLookup::Repeated(response("four")));
        assert_eq!(sessions.admit(SessionId(5), 3), SessionLookup::Passed);
        assert_eq!(sessions.admit(SessionId(5), 0), SessionLookup::Passed);
        assert_eq!(sessions.admit(SessionId(6), 1), SessionLookup::Unknown);
    }

    #[test]
    fn the_least_recently_used_session_is_evicted_first() {
        let mut sessions = Sessions::new(2, 1000);
        sessions.open(LogIndex(1));
        sessions.open(LogIndex(2));
        sessions.record(SessionId(1), 1, LogIndex(3), response("kept"));
        sessions.open(LogIndex(4));
        assert_eq!(sessions.admit(SessionId(2), 1), SessionLookup::Unknown);
        assert_eq!(sessions.admit(SessionId(1), 1), SessionLookup::Repeated(response("kept")));
    }

    #[test]
    fn bytes_of_responses_are_bounded() {
        let mut sessions = Sessions::new(8, 10);
        sessions.open(LogIndex(1));
        sessions.open(LogIndex(2));
        sessions.record(SessionId(1), 1, LogIndex(3), response("123456"));
        sessions.record(SessionId(2), 1, LogIndex(4), response("654321"));
        assert_eq!(sessions.admit(SessionId(1), 2), SessionLookup::Unknown);
        assert_eq!(sessions.bytes, 6);
    }

    #[test]
    fn damaged_tables_are_rejected() {
        let mut sessions = Sessions::new(8, 1000);
        sessions.open(LogIndex(1));
        sessions.record(SessionId(1), 1, LogIndex(2), response("abc"));
        let mut bytes = Vec::new();
        sessions.encode(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(Sessions::decode_within(&bytes[..length], 8, 1000), None, "cut at {length}");
        }
        assert_eq!(Sessions::decode_within(&bytes, 0, 1000), None, "too many sessions");
        assert_eq!(Sessions::decode_within(&bytes, 8, 2), None, "too many bytes");
    }

    #[test]
    fn each_planted_violation_is_found() {
        type Plant = fn(&mut Sessions);
        let planted: [(Plant, &str); 7] = [
            (|_| (), "sound"),
            (|table| table.count_max = 1, "2 sessions exceed the limit of 1"),
            (|table| table.bytes_max = 2, "3 bytes of responses exceed the limit of 2"),
            (|table| table.bytes = 4, "3 bytes of responses, counted as 4"),
            (|table| table.by_use.retain(|index, _| *index != LogIndex(2)), "1 uses of 2 sessions"),
            (
                |table| table.open.values_mut().for_each(|session| session.used_at = LogIndex(1)),
                "session 1 is missing among the uses at 1",
            ),
            (
                |table| table.open.values_mut().for_each(|session| session.used_at = LogIndex(0)),
                "session 1 was used at 0, before it was opened",
            ),
        ];
        for (plant, expected) in planted {
            let mut sessions = Sessions::new(8, 1000);
            sessions.open(LogIndex(1));
            sessions.open(LogIndex(2));
            sessions.record(SessionId(1), 1, LogIndex(3), response("abc"));
            plant(&mut sessions);
            assert_eq!(sessions.check_invariants().err().unwrap_or("sound".to_owned()), expected);
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_of_the_table_behaves_like_the_table(
            steps in proptest::collection::vec((0u64..6, 1u64..5, 0usize..9), 0..60),
        ) {
            let mut sessions = Sessions::new(4, 24);
            for (ordinal, (session, sequence, size)) in steps.into_iter().enumerate() {
                let index = LogIndex(0).plus(ordinal + 1);
                let session = SessionId(session);
                if session == SessionId(0) {
                    sessions.open(index);
                } else if sessions.admit(session, sequence) == SessionLookup::New {
                    sessions.record(session, sequence, index, Bytes::from(vec![7; size]));
                }
                prop_assert_eq!(sessions.check_invariants(), Ok(()));
                let mut bytes = Vec::new();
                sessions.encode(&mut bytes);
                let length = bytes.len();
                prop_assert_eq!(Sessions::decode_within(&bytes, 4, 24), Some((sessions.clone(), length)));
            }
        }
    }
}
