//! Write-ahead log: preallocated segments of records with length, checksum and hash chain.
//!
//! One `fdatasync` makes a group of batches durable. A directory holds:
//! - `segment-<number>.log` files, without a gap;
//! - at most a few `spare-<n>.log` files, reserved to become segments;
//! - `snapshot-<index>.snap` files;
//! - the mark of what was durable, and a lock.
//!
//! Space is allocated and written before it is needed. A sync then costs one data write and no file-system
//! journal. A full disk is detected during preparation, not in the middle of a record.
//!
//! Caveats: a torn record at the very end is normal after a crash, and is truncated. A bad record that is
//! known to have been durable is never truncated; the replica refuses to start instead. `record.rs` explains
//! how the two are distinguished. After a full disk, and only then, a write may be retried: everything that
//! needs space is done before a group's first byte is written.

pub(crate) mod files;
mod format;
mod mark;
mod record;
pub(crate) mod recovery;
mod segment;
pub(crate) mod snapshots;
pub(crate) mod spares;

use crate::error::{LogError, StartError};
use crate::ids::{Incarnation, LogIndex, RecordNumber, SegmentNumber};
use crate::planted::{Defect, planted};
use crate::snapshot::Snapshot;
use crate::store::{Batch, Fit, HardState, LogStore, Recovered};
use files::{Directory, RealDirectory};
pub use format::Owner;
use mark::Mark;
use record::{ChainHash, Position};
use segment::LogSegment;
use spares::{Making, Spare, Spares};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An open log. A snapshot is saved without the writer's lock, so that records are written at the same time.
pub struct WriteAheadLog {
    directory: Arc<dyn Directory>,
    owner: Owner,
    writer: Mutex<Writer>,
    spares: Spares,
    /// Lock on the directory, held while the log is open.
    _lock: Box<dyn Send + Sync>,
}

struct Writer {
    segment: LogSegment,
    /// Older segments: number, and the highest entry index written up to the segment's end.
    older: Vec<(SegmentNumber, LogIndex)>,
    position: Position,
    mark: Mark,
    /// Last record known to be durable.
    durable: RecordNumber,
    /// Space reserved for the group that is being written.
    reserved: VecDeque<Spare>,
    hard_state: HardState,
    incarnation: Incarnation,
    last_index: LogIndex,
    buffer: Vec<u8>,
    failed: bool,
}

impl WriteAheadLog {
    /// Opens the log in `directory`, or creates one there if `create` allows it and there is none.
    ///
    /// # Errors
    /// Fails if the log is damaged, foreign, unknown or in use, or if the disk fails.
    pub fn open(
        directory: &Path,
        owner: Owner,
        create: bool,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), StartError> {
        let directory = Arc::new(RealDirectory::open(directory)?);
        let opened = Self::open_in(directory, owner, create, segment_bytes, Making::Ahead);
        opened.map(|(log, recovered, _)| (log, recovered))
    }

    /// Opens the log in any directory, and also returns the findings of its recovery.
    pub(crate) fn open_in(
        directory: Arc<dyn Directory>,
        owner: Owner,
        create: bool,
        segment_bytes: u64,
        making: Making,
    ) -> Result<(Self, Recovered, recovery::RecoveryFindings), StartError> {
        let lock = directory.lock()?;
        let found = recovery::recover(&*directory, &owner, create, segment_bytes)?;
        let spares = Spares::start(directory.clone(), segment_bytes, making)?;
        let mut recovered = found.recovered;
        recovered.incarnation = recovered.incarnation.next();
        let writer = Writer {
            segment: found.segment,
            older: found.older,
            position: found.position,
            mark: found.mark,
            durable: RecordNumber(0),
            reserved: VecDeque::new(),
            hard_state: recovered.hard_state,
            incarnation: recovered.incarnation,
            last_index: last_index(&recovered),
            buffer: Vec::new(),
            failed: false,
        };
        let log = Self { directory, owner, writer: Mutex::new(writer), spares, _lock: lock };
        log.begin(recovered.incarnation, found.fit, recovered.snapshot.as_ref())?;
        let (seen, entries) = (found.seen, recovered.entries.len());
        tracing::info!(
            segments = seen.segments,
            entries,
            torn = seen.torn,
            replaced = seen.replaced,
            replaced_from_front = seen.replaced_from_front,
            detached = seen.detached,
            fell_back = seen.fell_back,
            "opened the log"
        );
        Ok((log, recovered, seen))
    }

    /// Records this start durably, so that no two starts have the same incarnation. A snapshot that replaced
    /// the log without a mark gets its mark here, before anything that continues the snapshot.
    fn begin(&self, incarnation: Incarnation, fit: Fit, snapshot: Option<&Snapshot>) -> Result<(), LogError> {
        let mut writer = self.lock();
        let snapshot = snapshot.filter(|_| fit == Fit::Detached && !planted(Defect::MarkForgotten)).cloned();
        let payload = record::encode(&Batch { snapshot, ..Batch::default() }, Some(incarnation));
        self.reserve(&mut writer, std::slice::from_ref(&payload))?;
        self.append(&mut writer, &payload, LogIndex(0))?;
        self.flush(&mut writer, true)?;
        writer.mark.sync()
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves every segment that these payloads will need, or none if the disk is full.
    fn reserve(&self, writer: &mut Writer, payloads: &[Vec<u8>]) -> Result<(), LogError> {
        let mut free = writer.segment.free_bytes();
        for payload in payloads {
            let needed = record::length(payload.len());
            if needed > free {
                let head = record::length(head_of_segment(writer).len());
                let spare = self.spares.take(segment::HEADER_BYTES + head + needed);
                let spare = spare.inspect_err(|_| self.spares.discard(writer.reserved.drain(..)))?;
                free = spare.bytes - segment::HEADER_BYTES - head;
                writer.reserved.push_back(spare);
            }
            free -= needed;
        }
        Ok(())
    }

    /// Adds one record to the buffer, after rotating to a new segment if it does not fit.
    fn append(&self, writer: &mut Writer, payload: &[u8], last_index: LogIndex) -> Result<(), LogError> {
        let needed = record::length(payload.len());
        if !writer.segment.has_space(writer.buffer.len() as u64 + needed) {
            self.flush(writer, true)?;
            self.rotate(writer)?;
        }
        let durable = writer.durable;
        record::write(&mut writer.buffer, &mut writer.position, durable, payload);
        writer.last_index = writer.last_index.max(last_index);
        Ok(())
    }

    /// Begins the next segment. Its first record repeats the state from older segments, because they may be
    /// removed.
    fn rotate(&self, writer: &mut Writer) -> Result<(), LogError> {
        let head = head_of_segment(writer);
        let spare = writer.reserved.pop_front().expect("space was reserved for the whole group");
        let number = writer.segment.number.next();
        let next = LogSegment::begin(&*self.directory, spare, number, &self.owner, writer.position.clone())?;
        writer.older.push((writer.segment.number, writer.last_index));
        writer.segment = next;
        let durable = writer.durable;
        record::write(&mut writer.buffer, &mut writer.position, durable, &head);
        Ok(())
    }

    /// Writes the buffer to the file, and waits for the disk if `sync` is set.
    fn flush(&self, writer: &mut Writer, sync: bool) -> Result<(), LogError> {
        if !writer.buffer.is_empty() {
            let buffer = std::mem::take(&mut writer.buffer);
            writer.segment.write(&buffer)?;
            writer.buffer = buffer;
            writer.buffer.clear();
        }
        if sync {
            if !planted(Defect::SyncForgotten) {
                writer.segment.sync()?;
            }
            if writer.durable < writer.position.record {
                writer.durable = writer.position.record;
                writer.mark.set(&writer.position)?;
            }
        }
        Ok(())
    }

    /// Does everything that may find the disk full. Completed steps are harmless if nothing follows.
    fn prepare(&self, writer: &mut Writer, batches: &[Batch]) -> Result<Vec<Vec<u8>>, LogError> {
        // A snapshot must be on disk before the log records that it replaces the log.
        for snapshot in batches.iter().filter_map(|batch| batch.snapshot.as_ref()) {
            snapshots::save(&*self.directory, &self.owner, snapshot)?;
        }
        let payloads: Vec<_> = batches.iter().map(|batch| record::encode(batch, None)).collect();
        self.reserve(writer, &payloads)?;
        Ok(payloads)
    }

    /// Returns the index up to which the log may be truncated after a durable snapshot of `through`. The log
    /// is kept back to the previous snapshot, so that either of the two is enough to start. On a full disk,
    /// space matters more.
    fn truncatable(&self, through: LogIndex) -> Result<LogIndex, LogError> {
        if self.spares.disk_full() {
            return Ok(through);
        }
        let first_segment = {
            let writer = self.lock();
            writer.older.first().map_or(writer.segment.number, |(number, _)| *number)
        };
        Ok(match snapshots::indices(&*self.directory)?[..] {
            [.., older, _] => through.min(older),
            // The first snapshot: the whole log is kept, until the second.
            [_] if first_segment == SegmentNumber(0) => LogIndex(0),
            _ => through,
        })
    }

    fn append_all(
        &self,
        writer: &mut Writer,
        batches: &[Batch],
        payloads: &[Vec<u8>],
    ) -> Result<(), LogError> {
        for (batch, payload) in batches.iter().zip(payloads) {
            writer.last_index = batch.snapshot.as_ref().map_or(writer.last_index, |found| found.index);
            self.append(writer, payload, batch.entries.last().map_or(LogIndex(0), |entry| entry.index))?;
            // Only now: the head of a new segment must not record a commit index whose entries come after it.
            writer.hard_state = batch.hard_state.unwrap_or(writer.hard_state);
        }
        self.flush(writer, batches.iter().any(|batch| batch.sync))
    }
}

impl LogStore for WriteAheadLog {
    fn write(&self, batches: &[Batch]) -> Result<(), LogError> {
        let mut writer = self.lock();
        assert!(!writer.failed, "writing to a log after an error: what is on disk is unknown");
        let prepared = self.prepare(&mut writer, batches);
        writer.failed = prepared.as_ref().is_err_and(|error| !error.is_disk_full());
        let payloads = prepared?;
        let outcome = self.append_all(&mut writer, batches, &payloads);
        writer.failed = outcome.is_err();
        // The space had been allocated, so a full disk is a permanent fault here.
        outcome.map_err(LogError::into_fatal)
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), LogError> {
        snapshots::save(&*self.directory, &self.owner, snapshot)
    }

    fn truncate(&self, through: LogIndex) -> Result<(), LogError> {
        snapshots::remove_older(&*self.directory)?;
        let through = self.truncatable(through)?;
        loop {
            let oldest = self.lock().older.first().copied();
            let Some((number, _)) = oldest.filter(|(_, last)| *last <= through) else { return Ok(()) };
            self.spares.recycle(&segment::name(number))?;
            // Only this function removes from the front; writing adds at the back.
            self.lock().older.remove(0);
        }
    }

    fn nearly_full(&self) -> bool {
        self.spares.disk_full()
    }
}

impl Drop for WriteAheadLog {
    /// Syncs the mark: after an orderly stop it is exact, even if the machine then fails.
    fn drop(&mut self) {
        // The error has no recipient, and an older mark is no error at the next start.
        let _ = self.lock().mark.sync();
    }
}

/// Encodes a segment's first record: hard state and incarnation. The payload always has the same length.
fn head_of_segment(writer: &Writer) -> Vec<u8> {
    let head = Batch { hard_state: Some(writer.hard_state), ..Batch::default() };
    record::encode(&head, Some(writer.incarnation))
}

fn last_index(recovered: &Recovered) -> LogIndex {
    let snapshot = recovered.snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
    recovered.entries.last().map_or(snapshot, |entry| entry.index)
}

/// Returns the position before the first record of a log.
fn first_position() -> Position {
    Position { record: RecordNumber(0), chain: ChainHash::default() }
}

#[cfg(test)]
mod tests;
