//! The mark: how far the log is durable, said in a second place. Without it the last record that was ever
//! acknowledged has nobody behind it to say so, and damage to it would look like a torn tail.
//!
//! A file of two slots, a page apart, written in turn: after each sync of the log, and before anyone is told
//! of it, the slot that holds the older mark is overwritten. A slot is magic 8, sequence number 8, chain 32,
//! CRC-32C 4, zeros.
//!
//! What may surprise: the mark itself is synced only when a log is opened and closed. A process that is
//! killed loses nothing that it wrote, so after `kill -9` the mark is exact. After a power cut it may be
//! older, by what the kernel had not yet written back; `record::judge` is for that case. It is never ahead
//! of the log, because it is written only after the log is durable: a healthy log is never refused.

use super::record::Position;
use super::sync_directory;
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"QLOGMRK1";
const NAME: &str = "durable.mark";
/// A page apart, so that no torn write and no bad sector takes both.
const SLOT_STEP: u64 = 4096;
const SLOT_BYTES: usize = 64;
const CRC_AT: usize = 48;

/// The open mark file.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    /// The slot to overwrite next: 0 or 1.
    next: u64,
}

impl Mark {
    /// Makes the mark of a log that begins at `position`; durable under its name before anything follows.
    pub(super) fn create(directory: &Path, position: &Position) -> Result<Self, LogError> {
        let path = directory.join(NAME);
        let partial = directory.join("durable.partial");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&partial);
        let file = file.map_err(|e| LogError::io("create", &partial, e))?;
        let slot = encode(position);
        let written = file.write_all_at(&slot, 0).and_then(|()| file.write_all_at(&slot, SLOT_STEP));
        written.and_then(|()| file.sync_all()).map_err(|e| LogError::io("write", &partial, e))?;
        fs::rename(&partial, &path).map_err(|e| LogError::io("rename", &partial, e))?;
        sync_directory(directory)?;
        Ok(Self { path, file, next: 0 })
    }

    /// Opens the mark and reads the newer of its slots; `None` where there is no such file.
    pub(super) fn open(directory: &Path) -> Result<Option<(Self, Position)>, LogError> {
        let path = directory.join(NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LogError::io("open", &path, error)),
        };
        let bytes = fs::read(&path).map_err(|e| LogError::io("read", &path, e))?;
        let slots = [0, SLOT_STEP].map(|at| bytes.get(at as usize..).and_then(decode));
        let (next, position) = match slots {
            [Some(first), Some(second)] if first.sequence >= second.sequence => (1, first),
            [_, Some(second)] => (0, second),
            [Some(first), None] => (1, first),
            [None, None] => {
                let reason = "neither of its two slots is readable".to_owned();
                return Err(LogError::Corrupt { path, offset: 0, reason });
            }
        };
        Ok(Some((Self { path, file, next }, position)))
    }

    /// Says that the log is durable up to `position`. Reaches the operating system, not yet the disk.
    pub(super) fn set(&mut self, position: &Position) -> Result<(), LogError> {
        let written = self.file.write_all_at(&encode(position), self.next * SLOT_STEP);
        written.map_err(|e| LogError::io("write", &self.path, e))?;
        self.next = 1 - self.next;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|e| LogError::io("sync", &self.path, e))
    }
}

fn encode(position: &Position) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&position.sequence.to_le_bytes());
    bytes[16..48].copy_from_slice(&position.chain);
    let checksum = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Position> {
    let whole = bytes.get(..8)? == MAGIC && crc32c::crc32c(bytes.get(..CRC_AT)?) == u32_at(bytes, CRC_AT)?;
    let chain = bytes.get(16..48)?.try_into().ok()?;
    whole.then_some(Position { sequence: u64_at(bytes, 8)?, chain })
}
