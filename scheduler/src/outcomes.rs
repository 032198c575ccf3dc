//! Recorded replies to commands that carried an idempotency key.
//!
//! The same command under the same key is executed once and gets the same reply, even if another replica
//! leads at the retry. Refusals are recorded as well: a delayed copy of a refused command must not be
//! executed later.
//!
//! Records expire by the log's time. When there are too many, the token with the most records loses its
//! oldest, so a program that writes without end evicts only its own.

use crate::clock::ClusterTime;
use crate::command::{Command, IdempotencyKey, Refusal, Reply};
use crate::limits::{IDEMPOTENCY_BYTES_MAX, IDEMPOTENCY_MS, IDEMPOTENCY_RECORDS_MAX};
use protocol::canonical::to_bytes;
use protocol::error_code::IDEMPOTENCY_KEY_REUSED;
use protocol::{Digest, TokenName};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Domain separator of a request's digest.
const REQUEST_DOMAIN: &str = "quorate/idempotent-request/v1";
/// Size of a record besides its reply, in bytes: digests, numbers, and the overhead of the maps.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// The records, by token and key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "OutcomesRecord", into = "OutcomesRecord")]
pub(crate) struct Outcomes {
    recorded: u64,
    count: usize,
    bytes: usize,
    tokens: BTreeMap<TokenName, TokenOutcomes>,
}

/// The records of one token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct TokenOutcomes {
    by_key: BTreeMap<Digest, Outcome>,
    by_number: BTreeMap<u64, Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    number: u64,
    at: ClusterTime,
    request: Digest,
    reply: Reply,
    bytes: usize,
}

/// Serialized form of [`Outcomes`]: one row each, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutcomesRecord {
    recorded: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    number: u64,
    token: TokenName,
    key: Digest,
    at: ClusterTime,
    request: Digest,
    reply: Reply,
}

/// Returns the digest of a command's request, which distinguishes it from another under the same key.
pub(crate) fn request_of(command: &Command) -> Digest {
    Digest::of_domain(REQUEST_DOMAIN, &to_bytes(&(&command.actor, &command.action)))
}

impl Outcomes {
    /// Returns the recorded reply; none if the key is new or its record has expired.
    ///
    /// # Errors
    /// The key was used for another request.
    pub(crate) fn find(
        &self,
        key: &IdempotencyKey,
        request: &Digest,
        now: ClusterTime,
    ) -> Result<Option<Reply>, Refusal> {
        let found = self.tokens.get(&key.token).and_then(|token| token.by_key.get(&key.key));
        match found.filter(|outcome| !outcome.is_over(now)) {
            None => Ok(None),
            Some(outcome) if outcome.request == *request => Ok(Some(outcome.reply.clone())),
            Some(_) => Err(Refusal::new(
                IDEMPOTENCY_KEY_REUSED,
                "the idempotency key was used for another request; make a new key for each",
            )),
        }
    }

    /// Records a reply, and evicts expired and surplus records.
    pub(crate) fn record(&mut self, key: &IdempotencyKey, request: Digest, now: ClusterTime, reply: &Reply) {
        self.recorded += 1;
        self.insert(Row {
            number: self.recorded,
            token: key.token.clone(),
            key: key.key,
            at: now,
            request,
            reply: reply.clone(),
        });
        self.evict(now);
    }

    /// Moves the times of records that are later than `to` back to it.
    pub(crate) fn set_back(&mut self, to: ClusterTime) {
        let outcomes = self.tokens.values_mut().flat_map(|token| token.by_key.values_mut());
        outcomes.for_each(|outcome| outcome.at = outcome.at.min(to));
    }

    /// Returns the number of replies ever recorded.
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Returns the time of the latest kept record; zero if there is none.
    pub(crate) fn last_at(&self) -> ClusterTime {
        let outcomes = self.tokens.values().flat_map(|token| token.by_key.values());
        outcomes.map(|outcome| outcome.at).max().unwrap_or_default()
    }

    /// Returns whether the records are within their bounds, and agree with the totals and the indexes.
    pub(crate) fn is_consistent(&self) -> bool {
        let outcomes = || self.tokens.values().flat_map(|token| token.by_key.values());
        let indexed = self.tokens.values().all(|token| {
            !token.by_key.is_empty()
                && token.by_number.len() == token.by_key.len()
                && token.by_key.iter().all(|(key, outcome)| token.by_number.get(&outcome.number) == Some(key))
        });
        indexed
            && outcomes().count() == self.count
            && outcomes().map(|outcome| outcome.bytes).sum::<usize>() == self.bytes
            && outcomes().all(|outcome| outcome.number <= self.recorded)
            && self.count <= IDEMPOTENCY_RECORDS_MAX
            && self.bytes <= IDEMPOTENCY_BYTES_MAX
    }

    fn insert(&mut self, row: Row) {
        let Row { number, token, key, at, request, reply } = row;
        debug_assert!(number <= self.recorded, "a record's number is counted");
        let bytes = to_bytes(&reply).len() + RECORD_OVERHEAD_BYTES;
        let outcomes = self.tokens.entry(token).or_default();
        if let Some(before) = outcomes.by_key.insert(key, Outcome { number, at, request, reply, bytes }) {
            outcomes.by_number.remove(&before.number);
            (self.count, self.bytes) = (self.count - 1, self.bytes - before.bytes);
        }
        outcomes.by_number.insert(number, key);
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
    }

    fn evict(&mut self, now: ClusterTime) {
        let tokens: Vec<TokenName> = self.tokens.keys().cloned().collect();
        for token in tokens {
            while self.oldest(&token).is_some_and(|outcome| outcome.is_over(now)) {
                self.remove_oldest(&token);
            }
        }
        while self.count > IDEMPOTENCY_RECORDS_MAX || self.bytes > IDEMPOTENCY_BYTES_MAX {
            let most = self.tokens.iter().min_by_key(|(name, token)| (Reverse(token.by_key.len()), *name));
            let Some(token) = most.map(|(name, _)| name.clone()) else { break };
            self.remove_oldest(&token);
        }
        debug_assert!(self.count <= IDEMPOTENCY_RECORDS_MAX, "surplus records are evicted");
        debug_assert!(self.bytes <= IDEMPOTENCY_BYTES_MAX, "surplus bytes are evicted");
    }

    fn oldest(&self, token: &TokenName) -> Option<&Outcome> {
        let outcomes = self.tokens.get(token)?;
        outcomes.by_key.get(outcomes.by_number.first_key_value()?.1)
    }

    fn remove_oldest(&mut self, token: &TokenName) {
        let Some(outcomes) = self.tokens.get_mut(token) else { return };
        debug_assert!(!outcomes.by_number.is_empty(), "a token without records is not kept");
        debug_assert_eq!(outcomes.by_number.len(), outcomes.by_key.len(), "each record has one number");
        let oldest = outcomes.by_number.pop_first().and_then(|(_, key)| outcomes.by_key.remove(&key));
        if let Some(gone) = oldest {
            (self.count, self.bytes) = (self.count - 1, self.bytes - gone.bytes);
        }
        if outcomes.by_key.is_empty() {
            self.tokens.remove(token);
        }
    }
}

impl Outcome {
    fn is_over(&self, now: ClusterTime) -> bool {
        self.at.plus(IDEMPOTENCY_MS) <= now
    }
}

impl From<Outcomes> for OutcomesRecord {
    fn from(outcomes: Outcomes) -> Self {
        let mut rows: Vec<Row> = Vec::with_capacity(outcomes.count);
        for (token, outcomes) in outcomes.tokens {
            let row = |(key, outcome): (Digest, Outcome)| {
                let Outcome { number, at, request, reply, .. } = outcome;
                Row { number, token: token.clone(), key, at, request, reply }
            };
            rows.extend(outcomes.by_key.into_iter().map(row));
        }
        rows.sort_by_key(|row| row.number);
        Self { recorded: outcomes.recorded, rows }
    }
}

impl TryFrom<OutcomesRecord> for Outcomes {
    type Error = &'static str;

    fn try_from(record: OutcomesRecord) -> Result<Self, Self::Error> {
        let rising = record.rows.windows(2).all(|pair| pair[0].number < pair[1].number);
        let counted = record.rows.last().is_none_or(|last| last.number <= record.recorded);
        if !rising || !counted || record.rows.len() > IDEMPOTENCY_RECORDS_MAX {
            return Err("outcomes are out of order, or too many");
        }
        let mut outcomes = Self { recorded: record.recorded, ..Self::default() };
        let rows = record.rows.len();
        record.rows.into_iter().for_each(|row| outcomes.insert(row));
        match outcomes.count == rows && outcomes.bytes <= IDEMPOTENCY_BYTES_MAX {
            true => Ok(outcomes),
            false => Err("an outcome is there twice, or they are too large"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;
    use protocol::canonical::from_own_bytes;
    use protocol::error_code::NAME_TAKEN;

    fn key(token: &str, number: usize) -> IdempotencyKey {
        IdempotencyKey { token: token.parse().expect("a name"), key: Digest::of(&number.to_le_bytes()) }
    }

    fn time(number: u64) -> ClusterTime {
        ClusterTime(Millis(number))
    }

    fn request(number: usize) -> Digest {
        Digest::of_domain(REQUEST_DOMAIN, &number.to_le_bytes())
    }

    fn record(outcomes: &mut Outcomes, token: &str, number: usize, now: u64) {
        outcomes.record(&key(token, number), request(number), time(now), &Reply::Done);
    }

    fn knows(outcomes: &Outcomes, token: &str, number: usize, now: u64) -> bool {
        let found = outcomes.find(&key(token, number), &request(number), time(now));
        found.expect("the same request") == Some(Reply::Done)
    }

    impl Outcomes {
        /// Counts a record that is not there.
        pub(crate) fn miscount(&mut self) {
            self.count += 1;
        }
    }

    #[test]
    fn totals_and_indexes_that_disagree_are_noticed() {
        let mut outcomes = Outcomes::default();
        (0..3).for_each(|number| record(&mut outcomes, "a", number, 7));
        assert!(outcomes.is_consistent());
        assert_eq!((outcomes.recorded(), outcomes.last_at()), (3, time(7)));
        let damaged = |damage: fn(&mut Outcomes)| {
            let mut outcomes = outcomes.clone();
            damage(&mut outcomes);
            !outcomes.is_consistent()
        };
        assert!(damaged(Outcomes::miscount));
        assert!(damaged(|outcomes| outcomes.bytes -= 1));
        assert!(damaged(|outcomes| outcomes.recorded = 2));
        assert!(damaged(|outcomes| of_a(outcomes).by_number.clear()));
        assert!(damaged(|outcomes| of_a(outcomes).by_key.clear()));
        assert!(damaged(|outcomes| of_a(outcomes).by_number.extend([(1, Digest::of(b"x"))])));
        assert!(damaged(|outcomes| {
            outcomes.tokens.insert("empty".parse().expect("a name"), TokenOutcomes::default());
        }));
    }

    fn of_a(outcomes: &mut Outcomes) -> &mut TokenOutcomes {
        outcomes.tokens.get_mut(&key("a", 0).token).expect("recorded before")
    }

    #[test]
    fn a_record_ends_after_its_time_and_not_before() {
        let mut outcomes = Outcomes::default();
        record(&mut outcomes, "a", 1, 1_000);
        assert!(knows(&outcomes, "a", 1, 1_000 + IDEMPOTENCY_MS - 1));
        assert!(!knows(&outcomes, "a", 1, 1_000 + IDEMPOTENCY_MS));
        assert!(!knows(&outcomes, "b", 1, 1_000), "keys of another token are others");
        record(&mut outcomes, "a", 2, 1_000 + IDEMPOTENCY_MS);
        assert_eq!(
            (outcomes.count, outcomes.bytes),
            (1, outcomes.tokens[&key("a", 2).token].by_key[&key("a", 2).key].bytes)
        );
    }

    #[test]
    fn a_key_is_for_one_request() {
        let mut outcomes = Outcomes::default();
        record(&mut outcomes, "a", 1, 0);
        let other = outcomes.find(&key("a", 1), &request(2), time(0)).expect_err("another request");
        assert_eq!(other.code, IDEMPOTENCY_KEY_REUSED);
    }

    #[test]
    fn a_token_that_writes_without_end_forgets_its_own_records() {
        let mut outcomes = Outcomes::default();
        record(&mut outcomes, "calm", 0, 0);
        for number in 0..IDEMPOTENCY_RECORDS_MAX + 10 {
            record(&mut outcomes, "busy", number, 0);
        }
        assert_eq!(outcomes.count, IDEMPOTENCY_RECORDS_MAX);
        assert!(knows(&outcomes, "calm", 0, 0));
        assert!(!knows(&outcomes, "busy", 10, 0) && knows(&outcomes, "busy", 11, 0));
        let bytes = to_bytes(&outcomes);
        assert_eq!(
            from_own_bytes::<Outcomes>(&bytes, 64 << 20).as_ref(),
            Ok(&outcomes),
            "as a snapshot keeps it"
        );
    }

    #[test]
    fn large_replies_count_by_their_bytes() {
        let mut outcomes = Outcomes::default();
        let large = Reply::Refused { code: NAME_TAKEN, message: "x".repeat(1 << 20) };
        for number in 0..20 {
            outcomes.record(&key("a", number), request(number), time(0), &large);
        }
        assert!(outcomes.bytes <= IDEMPOTENCY_BYTES_MAX && outcomes.count >= 6, "{}", outcomes.count);
        let newest = outcomes.find(&key("a", 19), &request(19), time(0));
        assert_eq!(newest, Ok(Some(large)), "the oldest went");
    }

    #[test]
    fn damaged_records_are_refused() {
        let mut outcomes = Outcomes::default();
        (0..3).for_each(|number| record(&mut outcomes, "a", number, 0));
        let damaged = |damage: fn(&mut OutcomesRecord)| {
            let mut written = OutcomesRecord::from(outcomes.clone());
            damage(&mut written);
            Outcomes::try_from(written).is_err()
        };
        assert!(!damaged(|_| {}));
        assert!(damaged(|written| written.rows.swap(0, 1)));
        assert!(damaged(|written| written.rows[2].key = written.rows[0].key));
        assert!(damaged(|written| written.recorded = 2));
        assert!(damaged(|written| {
            let rows = (1..=IDEMPOTENCY_RECORDS_MAX as u64 + 1)
                .map(|number| Row { number, ..written.rows[0].clone() });
            (written.rows, written.recorded) = (rows.collect(), u64::MAX);
        }));
    }
}
