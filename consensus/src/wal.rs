//! The write-ahead log on a real disk: segments allocated ahead, records with length, checksum and a hash
//! chain, one `fdatasync` per group of batches.
//!
//! A directory holds `segment-<number>.log` files without a gap, at most a few `spare-<n>.log` files that
//! wait to become segments, `snapshot-<index>.snap` files and a lock. Space is allocated and written before
//! it is needed, so that a sync costs one data write and no file-system journal, and so that a full disk is
//! met while preparing and not in the middle of a record.
//!
//! What may surprise: a torn record at the very end is normal after a crash and is cut off; a bad record
//! that is known to have been durable is never cut off, the replica refuses to start instead. `record.rs`
//! says how the two are told apart.

mod record;
mod recovery;
mod segment;
mod snapshots;
mod spares;

use crate::error::{LogError, StartError};
use crate::snapshot::Snapshot;
use crate::store::{Batch, HardState, LogStore, Recovered};
use record::{Chain, Position};
use segment::Segment;
use spares::Spares;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whose log it is, written into every segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The replica.
    pub id: u64,
    /// Every voter of its group.
    pub voters: Vec<u64>,
}

/// An open log. Everything on disk is behind two locks, so that a snapshot is saved beside the writing.
pub struct WriteAheadLog {
    directory: PathBuf,
    owner: Owner,
    writer: Mutex<Writer>,
    spares: Spares,
    /// Held as long as the log is open; the operating system lets go when the process ends.
    _lock: File,
}

struct Writer {
    segment: Segment,
    /// Older segments: number and the highest entry index written up to their end.
    older: Vec<(u64, u64)>,
    position: Position,
    /// Sequence number of the last record known to be durable.
    durable: u64,
    hard_state: HardState,
    boots: u64,
    last_index: u64,
    buffer: Vec<u8>,
    failed: bool,
}

impl WriteAheadLog {
    /// Opens the log in `directory`, or begins one there when `create` allows it and there is none.
    ///
    /// # Errors
    /// When the log is damaged, foreign, unknown, in use, or the disk refuses.
    pub fn open(
        directory: &Path,
        owner: Owner,
        create: bool,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), StartError> {
        // What the circle decides is not for every account of the machine to read.
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(|e| LogError::io("create directory", directory, e))?;
        let lock = lock(directory)?;
        let found = recovery::recover(directory, &owner, create.then_some(segment_bytes))?;
        let spares = Spares::start(directory.to_path_buf(), segment_bytes).map_err(StartError::Thread)?;
        let mut recovered = found.recovered;
        recovered.boots += 1;
        let writer = Writer {
            segment: found.segment,
            older: found.older,
            position: found.position,
            durable: 0,
            hard_state: recovered.hard_state,
            boots: recovered.boots,
            last_index: last_index(&recovered),
            buffer: Vec::new(),
            failed: false,
        };
        let log = Self {
            directory: directory.to_path_buf(),
            owner,
            writer: Mutex::new(writer),
            spares,
            _lock: lock,
        };
        log.begin(recovered.boots)?;
        Ok((log, recovered))
    }

    /// Counts this start durably, so that nothing named by it is ever named twice.
    fn begin(&self, boots: u64) -> Result<(), LogError> {
        let mut writer = self.lock();
        let payload = record::encode(&Batch::default(), Some(boots));
        self.append(&mut writer, &payload, 0)?;
        self.flush(&mut writer, true)
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one record to the buffer, moving to a new segment first when it does not fit.
    fn append(&self, writer: &mut Writer, payload: &[u8], last_index: u64) -> Result<(), LogError> {
        let needed = record::length(payload.len());
        if !writer.segment.has_room(writer.buffer.len() as u64 + needed) {
            self.flush(writer, true)?;
            self.rotate(writer, needed)?;
        }
        let durable = writer.durable;
        record::write(&mut writer.buffer, &mut writer.position, durable, payload);
        writer.last_index = writer.last_index.max(last_index);
        Ok(())
    }

    /// Begins the next segment. Its first record repeats the hard state and the count of starts, because older
    /// segments may go.
    fn rotate(&self, writer: &mut Writer, needed: u64) -> Result<(), LogError> {
        let head = Batch { hard_state: Some(writer.hard_state), ..Batch::default() };
        let head = record::encode(&head, Some(writer.boots));
        let spare = self.spares.take(segment::HEADER_BYTES + record::length(head.len()) + needed)?;
        let number = writer.segment.number + 1;
        let next = Segment::begin(&self.directory, spare, number, &self.owner, writer.position.clone())?;
        writer.older.push((writer.segment.number, writer.last_index));
        writer.segment = next;
        let durable = writer.durable;
        record::write(&mut writer.buffer, &mut writer.position, durable, &head);
        Ok(())
    }

    /// Hands the buffer to the operating system, and waits for the disk when `sync`.
    fn flush(&self, writer: &mut Writer, sync: bool) -> Result<(), LogError> {
        if !writer.buffer.is_empty() {
            let buffer = std::mem::take(&mut writer.buffer);
            writer.segment.write(&buffer)?;
            writer.buffer = buffer;
            writer.buffer.clear();
        }
        if sync {
            writer.segment.sync()?;
            writer.durable = writer.position.sequence;
        }
        Ok(())
    }

    fn write_batches(&self, writer: &mut Writer, batches: &[Batch]) -> Result<(), LogError> {
        for batch in batches {
            if let Some(snapshot) = &batch.snapshot {
                // The snapshot must be on disk before the log says that it stands in the log's place.
                snapshots::save(&self.directory, snapshot)?;
                writer.last_index = snapshot.index;
            }
            let payload = record::encode(batch, None);
            self.append(writer, &payload, batch.entries.last().map_or(0, |entry| entry.index))?;
            // Only now: the head of a new segment must not name a commit whose entries come after it.
            writer.hard_state = batch.hard_state.unwrap_or(writer.hard_state);
        }
        self.flush(writer, batches.iter().any(|batch| batch.sync))
    }
}

impl LogStore for WriteAheadLog {
    fn write(&self, batches: &[Batch]) -> Result<(), LogError> {
        let mut writer = self.lock();
        assert!(!writer.failed, "writing to a log after an error: what is on disk is unknown");
        let outcome = self.write_batches(&mut writer, batches);
        writer.failed = outcome.is_err();
        outcome
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), LogError> {
        snapshots::save(&self.directory, snapshot)
    }

    fn truncate(&self, through: u64) -> Result<(), LogError> {
        let mut writer = self.lock();
        let gone = writer.older.iter().take_while(|(_, last)| *last <= through).count();
        let gone: Vec<_> = writer.older.drain(..gone).collect();
        drop(writer);
        for (number, _) in gone {
            self.spares.recycle(&segment::path(&self.directory, number))?;
        }
        snapshots::remove_older(&self.directory)
    }

    fn nearly_full(&self) -> bool {
        self.spares.disk_full()
    }
}

fn last_index(recovered: &Recovered) -> u64 {
    let snapshot = recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
    recovered.entries.last().map_or(snapshot, |entry| entry.index)
}

/// Takes the directory for this process.
fn lock(directory: &Path) -> Result<File, LogError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|e| LogError::io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::InUse { path: directory.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(LogError::io("lock", &path, source)),
    }
}

/// Makes the creation, renaming or removal of files in `directory` durable.
fn sync_directory(directory: &Path) -> Result<(), LogError> {
    let opened = File::open(directory).map_err(|e| LogError::io("open", directory, e))?;
    opened.sync_all().map_err(|e| LogError::io("sync", directory, e))
}

/// The chain before the first record ever.
fn first_position() -> Position {
    Position { sequence: 0, chain: Chain::default() }
}

#[cfg(test)]
#[path = "wal/tests.rs"]
mod tests;
