//! Log recovery at a start: verifies every byte, truncates a torn tail, and refuses damaged files.

use super::files::{self, Directory};
use super::mark::Mark;
use super::record::{self, Gap, Position};
use super::segment::{HEADER_BYTES, Header, LogSegment};
use super::{Owner, first_position, segment, snapshots, spares};
#[cfg(feature = "fuzzing")]
use crate::config::GroupId;
use crate::error::LogError;
use crate::ids::{LogIndex, RecordNumber, SegmentNumber};
use crate::snapshot::Snapshot;
use crate::store::{Fit, LogEntry, Recovered};
#[cfg(feature = "fuzzing")]
use protocol::ReplicaId;
use std::path::Path;

/// Recovered content of a directory.
pub(super) struct RecoveredDirectory {
    pub(super) recovered: Recovered,
    pub(super) segment: LogSegment,
    pub(super) older: Vec<(SegmentNumber, LogIndex)>,
    pub(super) position: Position,
    pub(super) mark: Mark,
    /// Whether the log must record, before anything else, that the snapshot replaces it.
    pub(super) fit: Fit,
    pub(super) seen: RecoveryFindings,
}

/// Findings of a recovery, for logging and as proof that a simulation covered a case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RecoveryFindings {
    pub(crate) segments: u64,
    /// Whether a torn record was truncated.
    pub(crate) torn: bool,
    /// Batches that replaced earlier entries.
    pub(crate) replaced: u64,
    /// Replacing batches that begin before the first remaining entry.
    pub(crate) replaced_from_front: u64,
    /// Whether a snapshot had replaced the log without a mark.
    pub(crate) detached: bool,
    /// Whether the newest snapshot was damaged, and the one before it was used.
    pub(crate) fell_back: bool,
}

/// Reads and verifies everything in `directory`. Without a log in it, creates a new one with a segment of
/// `segment_bytes`. That requires `create`, or an earlier permitted start that ended before anything was
/// durable.
pub(super) fn recover(
    directory: &dyn Directory,
    owner: &Owner,
    create: bool,
    segment_bytes: u64,
) -> Result<RecoveredDirectory, LogError> {
    let names = directory.list()?;
    let mut segments: Vec<_> = names.iter().filter_map(|name| segment::number(name)).collect();
    segments.sort_unstable();
    let marked = Mark::open(directory, owner)?;
    let loaded = snapshots::load(directory, owner)?;
    // Only after their owner has been checked.
    snapshots::remove_partial(directory)?;
    let (Some(first), Some(last)) = (segments.first(), segments.last().copied()) else {
        return match marked.map(|(_, durable)| durable.record) {
            Some(RecordNumber(1..)) => {
                Err(damaged(directory.path(), 0, "its records are durable, and no segment is left"))
            }
            _ if loaded.damaged.is_some() => Err(loaded.damaged.expect("just seen").error),
            begun if (create || begun.is_some()) && loaded.snapshot.is_none() => {
                begin(directory, owner, segment_bytes)
            }
            _ => Err(LogError::Unknown { path: directory.path().to_path_buf() }),
        };
    };
    let path = |number| directory.file(&segment::name(number));
    let (mark, durable) = marked.ok_or_else(|| damaged(&path(*first), 0, "the mark beside it is missing"))?;
    let mut reader = SegmentReader::new(owner, durable);
    let mut end = HEADER_BYTES;
    for (ordinal, number) in segments.iter().enumerate() {
        let expected = first.0 + ordinal as u64;
        if number.0 != expected {
            return Err(damaged(&path(*number), 0, format!("segment {expected:016x} before it is missing")));
        }
        let bytes = files::read(directory, &segment::name(*number))?.unwrap_or_default();
        end = reader.parse(&bytes, *number, &path(*number), *number == last)?;
    }
    reader.older.pop();
    let fit = match loaded.damaged {
        None => reader.fit_snapshot(loaded.snapshot, &path(last))?,
        Some(damaged) => reader.fall_back(directory, damaged, loaded.snapshot, &path(last))?,
    };
    let position = reader.position.expect("a segment was read");
    let segment = LogSegment::resume(directory, last, end, reader.torn, &reader.unsure)?;
    let SegmentReader { recovered, older, seen, .. } = reader;
    Ok(RecoveredDirectory { recovered, segment, older, position, mark, fit, seen })
}

/// Creates the first segment of a new log.
fn begin(
    directory: &dyn Directory,
    owner: &Owner,
    segment_bytes: u64,
) -> Result<RecoveredDirectory, LogError> {
    let spare = spares::make(directory, 0, segment_bytes)?;
    let position = first_position();
    let mark = Mark::create(directory, owner, &position)?;
    let segment = LogSegment::begin(directory, spare, SegmentNumber(0), owner, position.clone())?;
    let (recovered, older) = (Recovered::default(), Vec::new());
    Ok(RecoveredDirectory {
        recovered,
        segment,
        older,
        position,
        mark,
        fit: Fit::Continued,
        seen: RecoveryFindings::default(),
    })
}

struct SegmentReader<'a> {
    owner: &'a Owner,
    /// End of the durable log, according to the mark.
    durable: Position,
    recovered: Recovered,
    position: Option<Position>,
    older: Vec<(SegmentNumber, LogIndex)>,
    /// Whether something follows the last record.
    torn: bool,
    /// Bytes of the last records, which the mark does not cover.
    unsure: Vec<u8>,
    seen: RecoveryFindings,
}

impl<'a> SegmentReader<'a> {
    fn new(owner: &'a Owner, durable: Position) -> Self {
        let (recovered, older, unsure) = (Recovered::default(), Vec::new(), Vec::new());
        Self {
            owner,
            durable,
            recovered,
            position: None,
            older,
            torn: false,
            unsure,
            seen: RecoveryFindings::default(),
        }
    }

    /// Reads one segment, and returns the offset at which its records end.
    fn parse(
        &mut self,
        bytes: &[u8],
        number: SegmentNumber,
        path: &Path,
        last: bool,
    ) -> Result<u64, LogError> {
        let header = Header::decode(bytes)
            .map_err(|reason| segment::FORMAT.error(path, reason, "its head is not readable"))?;
        self.check_header(&header, number, path)?;
        let mut position = header.position;
        self.check_mark(&position, HEADER_BYTES, path)?;
        let mut at = HEADER_BYTES as usize;
        let mut sure = at;
        while let Some(found) = bytes.get(at..).and_then(record::read) {
            let record = position.record.next();
            let chain = record::next_chain(&position.chain, record, found.payload);
            if found.number != record || found.chain != chain {
                return Err(damaged(path, at, format!("record {record} does not continue the chain")));
            }
            self.take(found.payload).map_err(|reason| damaged(path, at, reason))?;
            position = Position { record, chain };
            self.check_mark(&position, at, path)?;
            at += record::length(found.payload.len()) as usize;
            sure = if record <= self.durable.record { at } else { sure };
        }
        if last {
            self.unsure = bytes[sure..at].to_vec();
            self.torn = self.is_torn(bytes, at, position.record.next(), path)?;
            self.seen.torn = self.torn;
        }
        self.seen.segments += 1;
        self.position = Some(position);
        let highest = self.recovered.entries.last().map_or(LogIndex(0), |entry| entry.index);
        let mark = self.recovered.snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
        self.older.push((number, highest.max(mark)));
        Ok(at as u64)
    }

    fn check_header(&self, header: &Header, number: SegmentNumber, path: &Path) -> Result<(), LogError> {
        self.owner.check(&header.owner, path)?;
        if header.number != number {
            return Err(damaged(path, 0, format!("its head is that of segment {:016x}", header.number.0)));
        }
        // Every segment but the last was full and durable before the next began: its end must match the next
        // header.
        match &self.position {
            Some(before) if *before != header.position => {
                let at = format!("the log before it ends at record {}", before.record);
                Err(damaged(path, 0, format!("it continues record {}, but {at}", header.position.record)))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the mark agrees with the log; otherwise this is not the log that was marked.
    fn check_mark(&self, position: &Position, at: impl TryInto<u64>, path: &Path) -> Result<(), LogError> {
        if position.record != self.durable.record || *position == self.durable {
            return Ok(());
        }
        Err(damaged(path, at, format!("record {} is not the one that was durable", position.record)))
    }

    /// Returns whether the bytes after the last good record of the log are a torn write, which was never
    /// acknowledged. Anything that was once durable is refused instead, however little of it is left.
    fn is_torn(
        &self,
        bytes: &[u8],
        end: usize,
        missing: RecordNumber,
        path: &Path,
    ) -> Result<bool, LogError> {
        let lost = || damaged(path, end, format!("record {missing} was durable and does not read back"));
        if self.durable.record >= missing {
            return Err(lost());
        }
        let mut later = (end..bytes.len()).step_by(8).filter_map(|at| record::read(&bytes[at..]));
        if later.any(|found| found.number > missing && found.durable >= missing) {
            return Err(lost());
        }
        match record::classify_gap(bytes, end) {
            Gap::Empty => Ok(false),
            Gap::Torn => Ok(true),
            Gap::Damaged => {
                Err(damaged(path, end, format!("record {missing} was written whole and does not read back")))
            }
        }
    }

    fn take(&mut self, payload: &[u8]) -> Result<(), String> {
        let content = record::decode(payload).ok_or("its payload is not readable")?;
        self.recovered.incarnation = content.incarnation.unwrap_or(self.recovered.incarnation);
        let first = |entries: &[LogEntry]| entries.first().map(|entry| entry.index);
        if let (Some(begin), Some(next)) = (first(&self.recovered.entries), first(&content.batch.entries)) {
            self.seen.replaced += u64::from(next < begin.plus(self.recovered.entries.len()));
            self.seen.replaced_from_front += u64::from(next < begin);
        }
        self.recovered.replay(content.batch)
    }

    /// Uses the snapshot before the damaged one, or none, if the log continues it up to the damaged one's
    /// index. Otherwise some acknowledged entries are in the damaged snapshot alone, and the start is
    /// refused.
    fn fall_back(
        &mut self,
        directory: &dyn Directory,
        damaged: snapshots::Damaged,
        older: Option<Snapshot>,
        path: &Path,
    ) -> Result<Fit, LogError> {
        let begin = older.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
        let fit = self.fit_snapshot(older, path);
        let reached = begin.plus(self.recovered.entries.len());
        if !matches!(fit, Ok(Fit::Continued)) || reached < damaged.index {
            return Err(damaged.error);
        }
        let (code, error) = (damaged.error.code(), &damaged.error);
        tracing::warn!(
            %code,
            %error,
            begin = begin.0,
            reached = reached.0,
            "the newest snapshot is damaged; using the one before it"
        );
        snapshots::quarantine(directory, &damaged)?;
        self.seen.fell_back = true;
        Ok(Fit::Continued)
    }

    /// Replaces the log's last mark by the newest snapshot, and reconciles the entries with it.
    fn fit_snapshot(&mut self, newest: Option<Snapshot>, path: &Path) -> Result<Fit, LogError> {
        let marked = self.recovered.snapshot.as_ref().map_or(LogIndex(0), |mark| mark.index);
        let index = newest.as_ref().map_or(LogIndex(0), |found| found.index);
        if index < marked {
            return Err(damaged(path, 0, format!("the snapshot at entry {marked} is missing")));
        }
        // A log that ends with the mark of an earlier snapshot does not reach the newest one either.
        let ends_at_mark = self.recovered.entries.is_empty() && (LogIndex(1)..index).contains(&marked);
        self.recovered.snapshot = newest;
        let settled = self.recovered.settle().map_err(|reason| damaged(path, 0, reason))?;
        let fit = if ends_at_mark { Fit::Detached } else { settled };
        self.seen.detached = fit == Fit::Detached;
        Ok(fit)
    }
}

fn damaged(path: &Path, offset: impl TryInto<u64>, reason: impl Into<String>) -> LogError {
    let offset = offset.try_into().unwrap_or(u64::MAX);
    LogError::Corrupt { path: path.to_path_buf(), offset, reason: reason.into() }
}

/// Damages a well-formed segment, and checks that reading it back either fails or returns a prefix of its
/// records.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(payloads: &[&[u8]], damage: &[(u16, u8)], durable: usize) {
    let owner = Owner { group: GroupId([7; 32]), id: ReplicaId(1), voters: vec![ReplicaId(1)] };
    let mut position = first_position();
    let header = Header { number: SegmentNumber(0), owner: owner.stamp(), position: position.clone() };
    let mut bytes = header.encode().to_vec();
    let mut marked = position.clone();
    for (ordinal, payload) in payloads.iter().enumerate() {
        record::write(&mut bytes, &mut position, RecordNumber(0), payload);
        if ordinal < durable {
            marked = position.clone();
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    for (at, mask) in damage {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= mask;
    }
    let durable = marked.record;
    let mut reader = SegmentReader::new(&owner, marked);
    if reader.parse(&bytes, SegmentNumber(0), Path::new("fuzz"), true).is_ok() {
        let reached = reader.position.as_ref().map_or(RecordNumber(0), |position| position.record);
        let written = RecordNumber(payloads.len() as u64);
        assert!((durable..=written).contains(&reached), "a durable record was truncated");
        let _ = reader.fit_snapshot(None, Path::new("fuzz"));
    }
}
