//! Reading the log back at a start: every byte is checked, the torn tail is cut off, damage is refused.

use super::record::{self, Position};
use super::segment::{HEADER_BYTES, Header, Segment};
use super::{Owner, first_position, snapshots, spares};
use crate::error::LogError;
use crate::store::Recovered;
use std::fs;
use std::path::{Path, PathBuf};

/// What a directory held.
pub(super) struct Found {
    pub(super) recovered: Recovered,
    pub(super) segment: Segment,
    pub(super) older: Vec<(u64, u64)>,
    pub(super) position: Position,
}

/// Reads everything in `directory`; begins a new log with a segment of `create` bytes where there is none.
pub(super) fn recover(directory: &Path, owner: &Owner, create: Option<u64>) -> Result<Found, LogError> {
    let segments = list(directory)?;
    snapshots::remove_partial(directory)?;
    let snapshot = snapshots::newest(directory)?;
    let Some((first, _)) = segments.first() else {
        return match create {
            Some(segment_bytes) if snapshot.is_none() => begin(directory, owner, segment_bytes),
            _ => Err(LogError::Unknown { path: directory.to_path_buf() }),
        };
    };
    let (recovered, older) = (Recovered::default(), Vec::new());
    let mut reader = Reader { owner, recovered, position: None, older, torn: false };
    let mut end = HEADER_BYTES;
    for (place, (number, path)) in segments.iter().enumerate() {
        if *number != first + place as u64 {
            let reason = format!("segment {:016x} before it is missing", first + place as u64);
            return Err(damaged(path, 0, reason));
        }
        let last = place + 1 == segments.len();
        end = reader.segment(*number, path, last)?;
    }
    let (number, path) = segments.last().cloned().expect("there is a first segment");
    reader.older.pop();
    reader.fit_snapshot(snapshot, &path)?;
    let position = reader.position.expect("a segment was read");
    let segment = Segment::resume(path, number, end, reader.torn)?;
    Ok(Found { recovered: reader.recovered, segment, older: reader.older, position })
}

/// The first segment of a new log.
fn begin(directory: &Path, owner: &Owner, segment_bytes: u64) -> Result<Found, LogError> {
    let spare = spares::make(directory, 0, segment_bytes)?;
    let position = first_position();
    let segment = Segment::begin(directory, spare, 0, owner, position.clone())?;
    Ok(Found { recovered: Recovered::default(), segment, older: Vec::new(), position })
}

struct Reader<'a> {
    owner: &'a Owner,
    recovered: Recovered,
    position: Option<Position>,
    older: Vec<(u64, u64)>,
    /// Whether something follows the last record.
    torn: bool,
}

impl Reader<'_> {
    /// Reads one segment and returns where its records end.
    fn segment(&mut self, number: u64, path: &Path, last: bool) -> Result<u64, LogError> {
        let bytes = fs::read(path).map_err(|e| LogError::io("read", path, e))?;
        let header = Header::decode(&bytes).ok_or_else(|| damaged(path, 0, "its head is not readable"))?;
        self.check_header(&header, number, path)?;
        let mut position = header.position;
        let mut at = HEADER_BYTES as usize;
        while let Some(found) = bytes.get(at..).and_then(record::read) {
            let sequence = position.sequence + 1;
            let chain = record::next_chain(&position.chain, sequence, found.payload);
            if found.sequence != sequence || found.chain != chain {
                return Err(damaged(path, at, format!("record {sequence} does not continue the chain")));
            }
            self.take(found.payload).map_err(|reason| damaged(path, at, reason))?;
            position = Position { sequence, chain };
            at += record::length(found.payload.len()) as usize;
        }
        if last {
            refuse_damage(&bytes, at, position.sequence + 1, path)?;
            self.torn = bytes.get(at..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
        }
        self.position = Some(position);
        let highest = self.recovered.entries.last().map_or(0, |entry| entry.index);
        let mark = self.recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        self.older.push((number, highest.max(mark)));
        Ok(at as u64)
    }

    fn check_header(&self, header: &Header, number: u64, path: &Path) -> Result<(), LogError> {
        if (header.replica, header.group) != (self.owner.id, self.owner.group()) {
            let found = format!("replica {} of its group", header.replica);
            let wanted = format!("replica {} of the group {:?}", self.owner.id, self.owner.voters);
            return Err(LogError::Foreign { path: path.to_path_buf(), found, wanted });
        }
        if header.number != number {
            return Err(damaged(path, 0, format!("it says that it is segment {:016x}", header.number)));
        }
        // Every segment but the last was full and durable before the next began: its end must meet the head.
        match &self.position {
            Some(before) if *before != header.position => {
                let at = format!("the log before it ends at record {}", before.sequence);
                Err(damaged(path, 0, format!("it continues record {}, but {at}", header.position.sequence)))
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, payload: &[u8]) -> Result<(), String> {
        let content = record::decode(payload).ok_or("its payload is not readable")?;
        self.recovered.boots = content.boots.unwrap_or(self.recovered.boots);
        self.recovered.replay(content.batch)
    }

    /// Puts the newest snapshot in the place of the log's last mark, and fits the entries to it.
    fn fit_snapshot(
        &mut self,
        newest: Option<crate::snapshot::Snapshot>,
        path: &Path,
    ) -> Result<(), LogError> {
        let marked = self.recovered.snapshot.as_ref().map_or(0, |mark| mark.index);
        if newest.as_ref().map_or(0, |found| found.index) < marked {
            return Err(damaged(path, 0, format!("the snapshot at entry {marked} is missing")));
        }
        self.recovered.snapshot = newest;
        self.recovered.settle().map_err(|reason| damaged(path, 0, reason))
    }
}

/// Looks behind the last good record for one that says the next was durable.
fn refuse_damage(bytes: &[u8], end: usize, missing: u64, path: &Path) -> Result<(), LogError> {
    let rest = (end..bytes.len()).step_by(8).filter_map(|at| record::read(&bytes[at..]));
    for found in rest {
        if found.sequence > missing && found.durable >= missing {
            let reason = format!("record {missing} was durable and does not read back");
            return Err(damaged(path, end, reason));
        }
    }
    Ok(())
}

fn damaged(path: &Path, offset: impl TryInto<u64>, reason: impl Into<String>) -> LogError {
    let offset = offset.try_into().unwrap_or(u64::MAX);
    LogError::Corrupt { path: path.to_path_buf(), offset, reason: reason.into() }
}

/// Segments by number.
fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let entries = fs::read_dir(directory).map_err(|e| LogError::io("list", directory, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| LogError::io("list", directory, e))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".log"));
        if let Some(number) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}
