//! Log record: 64 bytes of header, a payload, zeros up to a multiple of 8. This module knows bytes, not
//! files.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic `QLR2` |
//! | 4 | payload length |
//! | 8 | sequence number, rising by one from the log's first record |
//! | 8 | durable: the last sequence number known to be on disk when this record was written |
//! | 32 | chain: BLAKE3 of the previous record's chain, this sequence number and this payload |
//! | 4 | CRC-32C of the head (this field as zero) and the payload |
//! | 4 | CRC-32C of the 56 bytes before these two |
//!
//! A record at the end of the log that cannot be read back is either torn or damaged. A torn record is a
//! write that never completed: it was not acknowledged, and may be truncated. A damaged record was once
//! complete: it may have been acknowledged, and must not be truncated.
//!
//! Three checks distinguish them: a later record whose `durable` covers it, the mark (`mark.rs`), and
//! [`classify_gap`], which relies on disks writing whole sectors. Integers are little-endian.

use crate::command::{u32_at, u64_at};
use crate::ids::{self, Incarnation, LogIndex, RecordNumber, Term};
use crate::snapshot::Snapshot;
use crate::store::{Batch, HardState, LogEntry};
use bytes::Bytes;

const MAGIC: [u8; 4] = *b"QLR2";
const HEAD_BYTES: usize = 64;
const CRC_AT: usize = 56;
const HEAD_CRC_AT: usize = 60;
/// Smallest unit that any disk writes as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

const HAS_HARD_STATE: u8 = 1;
const HAS_SNAPSHOT_MARK: u8 = 2;
const HAS_INCARNATION: u8 = 4;

/// Hash over a record and all records before it.
pub(super) type ChainHash = [u8; 32];

/// Position in the log after a record: its number and the chain through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) record: RecordNumber,
    pub(super) chain: ChainHash,
}

/// A complete record with a valid checksum, which may or may not continue the log.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) number: RecordNumber,
    pub(super) durable: RecordNumber,
    pub(super) chain: ChainHash,
    pub(super) payload: &'a [u8],
}

/// Decoded payload of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecordPayload {
    /// A snapshot in it is a mark: index and term only. The snapshot's bytes are in a file of their own.
    pub(super) batch: Batch,
    pub(super) incarnation: Option<Incarnation>,
}

/// Returns the bytes that a record with this payload occupies in a segment.
pub(super) fn length(payload: usize) -> u64 {
    (HEAD_BYTES + payload).next_multiple_of(8) as u64
}

/// Appends the next record to `buffer`, and moves `position` past it.
pub(super) fn write(buffer: &mut Vec<u8>, position: &mut Position, durable: RecordNumber, payload: &[u8]) {
    let record = position.record.next();
    assert!(durable < record, "a record cannot be durable before it is written");
    *position = Position { record, chain: next_chain(&position.chain, record, payload) };
    let begin = buffer.len();
    buffer.extend_from_slice(&MAGIC);
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&record.0.to_le_bytes());
    buffer.extend_from_slice(&durable.0.to_le_bytes());
    buffer.extend_from_slice(&position.chain);
    let head_checksum = crc32c::crc32c(&buffer[begin..]);
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&head_checksum.to_le_bytes());
    buffer.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&buffer[begin..]);
    buffer[begin + CRC_AT..begin + CRC_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    buffer.resize(begin + length(payload.len()) as usize, 0);
}

/// Reads the record at the beginning of `bytes`, if it is complete and its checksum is valid.
pub(super) fn read(bytes: &[u8]) -> Option<Record<'_>> {
    let head = read_head(bytes)?;
    let payload = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(u32_at(head, 4)? as usize)?)?;
    let mut zeroed = *head;
    zeroed[CRC_AT..CRC_AT + 4].fill(0);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&zeroed), payload);
    if checksum != u32_at(head, CRC_AT)? {
        return None;
    }
    let chain = head[24..56].try_into().ok()?;
    let (number, durable) = (RecordNumber(u64_at(head, 8)?), RecordNumber(u64_at(head, 16)?));
    Some(Record { number, durable, chain, payload })
}

/// Reads a record's header at the beginning of `bytes`, if it is intact: its length can then be trusted.
fn read_head(bytes: &[u8]) -> Option<&[u8; HEAD_BYTES]> {
    let head: &[u8; HEAD_BYTES] = bytes.get(..HEAD_BYTES)?.try_into().ok()?;
    let whole = head[..4] == MAGIC && crc32c::crc32c(&head[..CRC_AT]) == u32_at(head, HEAD_CRC_AT)?;
    whole.then_some(head)
}

/// Content of a segment at an offset where no record can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// Nothing was written there or after it.
    Empty,
    /// A write that may have been cut short: one of its sectors still holds the zeros from before.
    Torn,
    /// Every sector was written, so the record was once complete.
    Damaged,
}

/// Classifies the bytes of a segment at the offset `at`, a multiple of 8. Space is zeroed before use and
/// disks write whole sectors, so each sector of a torn record is either correct or still zero. Two cases
/// remain ambiguous: a whole sector was turned to zeros, or the record itself held a sector of zeros.
pub(super) fn classify_gap(segment: &[u8], at: usize) -> Gap {
    let rest = segment.get(at..).unwrap_or_default();
    if is_zero(rest) {
        return Gap::Empty;
    }
    if sector_missing(segment, at, HEAD_BYTES) {
        return Gap::Torn;
    }
    let Some(head) = read_head(rest) else { return Gap::Damaged };
    let length = HEAD_BYTES + u32_at(head, 4).unwrap_or(0) as usize;
    // The writer never exceeds its segment.
    let fits = length <= rest.len();
    if fits && sector_missing(segment, at, length) { Gap::Torn } else { Gap::Damaged }
}

/// Returns whether any sector is all zeros where it overlaps the `length` bytes from `at`.
fn sector_missing(segment: &[u8], at: usize, length: usize) -> bool {
    let end = segment.len().min(at + length);
    let mut from = at;
    while from < end {
        let to = end.min((from + 1).next_multiple_of(SECTOR_BYTES));
        if is_zero(&segment[from..to]) {
            return true;
        }
        from = to;
    }
    false
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Returns the chain through the record that follows `previous`.
pub(super) fn next_chain(previous: &ChainHash, record: RecordNumber, payload: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous).update(&record.0.to_le_bytes()).update(payload);
    *hasher.finalize().as_bytes()
}

/// Encodes a batch as a payload: flags, the fields that they announce, then the entries.
pub(super) fn encode(batch: &Batch, incarnation: Option<Incarnation>) -> Vec<u8> {
    let data: usize = batch.entries.iter().map(|entry| entry.data.len() + 20).sum();
    let mut bytes = Vec::with_capacity(64 + data);
    let flag = |present: bool, value: u8| if present { value } else { 0 };
    bytes.push(
        flag(batch.hard_state.is_some(), HAS_HARD_STATE)
            | flag(batch.snapshot.is_some(), HAS_SNAPSHOT_MARK)
            | flag(incarnation.is_some(), HAS_INCARNATION),
    );
    let mut put =
        |values: &[u64]| values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    if let Some(HardState { term, vote, commit }) = batch.hard_state {
        put(&[term.0, ids::raft_id(vote), commit.0]);
    }
    if let Some(snapshot) = &batch.snapshot {
        put(&[snapshot.index.0, snapshot.term.0]);
    }
    if let Some(incarnation) = incarnation {
        put(&[incarnation.0]);
    }
    for entry in &batch.entries {
        bytes.extend_from_slice(&entry.index.0.to_le_bytes());
        bytes.extend_from_slice(&entry.term.0.to_le_bytes());
        bytes.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entry.data);
    }
    bytes
}

/// Decodes the output of [`encode`]; `None` if the payload is malformed.
pub(super) fn decode(payload: &[u8]) -> Option<RecordPayload> {
    let flags = *payload.first()?;
    if flags & !(HAS_HARD_STATE | HAS_SNAPSHOT_MARK | HAS_INCARNATION) != 0 {
        return None;
    }
    let mut at = 1;
    let mut take = || {
        let value = u64_at(payload, at);
        at += 8;
        value
    };
    let mut batch = Batch { sync: true, ..Batch::default() };
    if flags & HAS_HARD_STATE != 0 {
        let (term, vote, commit) = (Term(take()?), ids::replica(take()?), LogIndex(take()?));
        batch.hard_state = Some(HardState { term, vote, commit });
    }
    if flags & HAS_SNAPSHOT_MARK != 0 {
        let (index, term) = (LogIndex(take()?), Term(take()?));
        batch.snapshot = Some(Snapshot { index, term, voters: Vec::new(), data: Bytes::new() });
    }
    let incarnation = if flags & HAS_INCARNATION != 0 { Some(Incarnation(take()?)) } else { None };
    while at < payload.len() {
        let (index, term) = (LogIndex(u64_at(payload, at)?), Term(u64_at(payload, at + 8)?));
        let length = u32_at(payload, at + 16)? as usize;
        let data = Bytes::copy_from_slice(payload.get(at + 20..at + 20 + length)?);
        at += 20 + length;
        batch.entries.push(LogEntry { index, term, data });
    }
    Some(RecordPayload { batch, incarnation })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch() -> impl Strategy<Value = (Batch, Option<Incarnation>)> {
        let hard_state = proptest::option::of(any::<(u64, u64, u64)>());
        let mark = proptest::option::of(any::<(u64, u64)>());
        let entries = proptest::collection::vec(any::<(u64, u64, Vec<u8>)>(), 0..5);
        (hard_state, mark, entries, any::<Option<u64>>()).prop_map(|(hard_state, mark, entries, starts)| {
            let hard_state = hard_state.map(|(term, vote, commit)| HardState {
                term: Term(term),
                vote: ids::replica(vote),
                commit: LogIndex(commit),
            });
            let snapshot = mark.map(|(index, term)| Snapshot {
                index: LogIndex(index),
                term: Term(term),
                voters: Vec::new(),
                data: Bytes::new(),
            });
            let entry = |(index, term, data): (u64, u64, Vec<u8>)| LogEntry {
                index: LogIndex(index),
                term: Term(term),
                data: data.into(),
            };
            let entries = entries.into_iter().map(entry).collect();
            (Batch { snapshot, hard_state, entries, sync: true }, starts.map(Incarnation))
        })
    }

    proptest! {
        #[test]
        fn every_batch_survives_encoding((batch, incarnation) in batch()) {
            let encoded = encode(&batch, incarnation);
            prop_assert_eq!(decode(&encoded), Some(RecordPayload { batch, incarnation }));
        }

        #[test]
        fn arbitrary_payloads_never_panic(payload: Vec<u8>) {
            let _ = decode(&payload);
            let _ = read(&payload);
        }

        #[test]
        fn a_record_with_a_flipped_bit_is_unreadable(payload: Vec<u8>, at: prop::sample::Index) {
            let mut position = super::super::first_position();
            let mut buffer = Vec::new();
            write(&mut buffer, &mut position, RecordNumber(0), &payload);
            prop_assert_eq!(buffer.len() as u64, length(payload.len()));
            prop_assert_eq!(read(&buffer).map(|found| found.chain), Some(position.chain));
            let bit = at.index((HEAD_BYTES + payload.len()) * 8);
            buffer[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read(&buffer).is_none());
        }

        #[test]
        fn missing_sectors_in_any_order_are_torn_and_a_flipped_bit_is_damage(
            offset in 0usize..200,
            payload in proptest::collection::vec(1u8.., 0..3000),
            came: u64,
            bit: prop::sample::Index,
        ) {
            let begin = 8 * offset;
            let mut position = super::super::first_position();
            let mut record = Vec::new();
            write(&mut record, &mut position, RecordNumber(0), &payload);
            let mut whole = vec![0; begin];
            whole.extend_from_slice(&record);
            whole.resize(8192, 0);
            let sector = |ordinal: usize| ordinal / SECTOR_BYTES;
            let (first, last) = (sector(begin), sector(begin + HEAD_BYTES + payload.len() - 1));
            let arrived = |number: usize| came >> (number - first) & 1 == 1;
            let mut torn = whole.clone();
            for number in (first..=last).filter(|number| !arrived(*number)) {
                let from = begin.max(number * SECTOR_BYTES);
                torn[from..(begin + record.len()).min((number + 1) * SECTOR_BYTES)].fill(0);
            }
            let expected = match (first..=last).filter(|number| arrived(*number)).count() {
                0 => Gap::Empty,
                count if count == last - first + 1 => return Ok(()),
                _ => Gap::Torn,
            };
            prop_assert_eq!(classify_gap(&torn, begin), expected);
            let bit = 8 * begin + bit.index(8 * (HEAD_BYTES + payload.len()));
            whole[bit / 8] ^= 1 << (bit % 8);
            // A flip that leaves only zeros in its sector cannot be distinguished from a sector that was
            // never written.
            let part = |number: usize| {
                let from = begin.max(number * SECTOR_BYTES);
                &whole[from..(begin + HEAD_BYTES + payload.len()).min((number + 1) * SECTOR_BYTES)]
            };
            prop_assume!((first..=last).all(|number| !is_zero(part(number))));
            prop_assert_eq!(classify_gap(&whole, begin), Gap::Damaged);
        }
    }

    #[test]
    fn bytes_that_are_no_record_are_classified() {
        let mut segment = vec![0; 4096];
        assert_eq!(classify_gap(&segment, 128), Gap::Empty);
        assert_eq!(classify_gap(&segment, 4096), Gap::Empty, "behind the end");
        segment[2000] = 1;
        assert_eq!(classify_gap(&segment, 128), Gap::Torn, "something came, its beginning did not");
        segment[130] = 1;
        assert_eq!(classify_gap(&segment, 128), Gap::Damaged, "a beginning that no record has");
        let mut long = Vec::new();
        write(&mut long, &mut super::super::first_position(), RecordNumber(0), &[7; 5000]);
        segment[128..].copy_from_slice(&long[..4096 - 128]);
        assert_eq!(classify_gap(&segment, 128), Gap::Damaged, "longer than its segment");
    }
}
