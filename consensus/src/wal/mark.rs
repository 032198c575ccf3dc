//! The mark: how far the log is durable, said in a second place. Without it the last record that was ever
//! acknowledged has nobody behind it to say so, and damage to it would look like a torn tail.
//!
//! A file of two slots, a page apart, written in turn: after each sync of the log, and before anyone is told
//! of it, the slot that holds the older mark is overwritten. A slot is kind and version 8, owner 48, sequence
//! number 8, chain 32, CRC-32C 4, zeros.
//!
//! What may surprise: the mark itself is synced only when a log is opened and closed. A process that is
//! killed loses nothing that it wrote, so after `kill -9` the mark is exact. After a power cut it may be
//! older, by what the kernel had not yet written back; `record::judge` is for that case. It is never ahead
//! of the log, because it is written only after the log is durable: a healthy log is never refused.

use super::format::{Format, Stamp, Unreadable};
use super::record::Position;
use super::{Owner, sync_directory};
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) const FORMAT: Format = Format { kind: *b"QLOGMRK", version: b'2' };
const NAME: &str = "durable.mark";
/// A page apart, so that no torn write and no bad sector takes both.
const SLOT_STEP: u64 = 4096;
const SLOT_BYTES: usize = 128;
const CRC_AT: usize = 96;

/// The open mark file.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    owner: Stamp,
    /// The slot to overwrite next: 0 or 1.
    next: u64,
}

impl Mark {
    /// Makes the mark of a log that begins at `position`; durable under its name before anything follows.
    pub(super) fn create(directory: &Path, owner: &Owner, position: &Position) -> Result<Self, LogError> {
        let path = directory.join(NAME);
        let partial = directory.join("durable.partial");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&partial);
        let file = file.map_err(|e| LogError::io("create", &partial, e))?;
        let owner = owner.stamp();
        let slot = encode(&owner, position);
        let written = file.write_all_at(&slot, 0).and_then(|()| file.write_all_at(&slot, SLOT_STEP));
        written.and_then(|()| file.sync_all()).map_err(|e| LogError::io("write", &partial, e))?;
        fs::rename(&partial, &path).map_err(|e| LogError::io("rename", &partial, e))?;
        sync_directory(directory)?;
        Ok(Self { path, file, owner, next: 0 })
    }

    /// Opens the mark and reads the newer of its slots; `None` where there is no such file.
    pub(super) fn open(directory: &Path, owner: &Owner) -> Result<Option<(Self, Position)>, LogError> {
        let path = directory.join(NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LogError::io("open", &path, error)),
        };
        let bytes = fs::read(&path).map_err(|e| LogError::io("read", &path, e))?;
        let slots = [0, SLOT_STEP].map(|at| decode(bytes.get(at as usize..).unwrap_or_default()));
        let (next, slot) = match slots {
            [Ok(first), Ok(second)] if first.1.sequence >= second.1.sequence => (1, first),
            [_, Ok(second)] => (0, second),
            [Ok(first), Err(_)] => (1, first),
            [Err(first), Err(second)] => {
                let version = [first, second].into_iter().find(|reason| *reason != Unreadable::Damaged);
                let reason = version.unwrap_or(Unreadable::Damaged);
                return Err(FORMAT.refuse(&path, reason, "neither of its two slots is readable"));
            }
        };
        owner.check(&slot.0, &path)?;
        Ok(Some((Self { path, file, owner: slot.0, next }, slot.1)))
    }

    /// Says that the log is durable up to `position`. Reaches the operating system, not yet the disk.
    pub(super) fn set(&mut self, position: &Position) -> Result<(), LogError> {
        let written = self.file.write_all_at(&encode(&self.owner, position), self.next * SLOT_STEP);
        written.map_err(|e| LogError::io("write", &self.path, e))?;
        self.next = 1 - self.next;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|e| LogError::io("sync", &self.path, e))
    }
}

fn encode(owner: &Stamp, position: &Position) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&FORMAT.head());
    bytes[8..56].copy_from_slice(&owner.encode());
    bytes[56..64].copy_from_slice(&position.sequence.to_le_bytes());
    bytes[64..96].copy_from_slice(&position.chain);
    let checksum = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Stamp, Position), Unreadable> {
    FORMAT.check(bytes, |begin| {
        let rest =
            bytes.get(begin.len()..CRC_AT).map(|rest| crc32c::crc32c_append(crc32c::crc32c(begin), rest));
        rest.is_some() && rest == u32_at(bytes, CRC_AT)
    })?;
    fields(bytes).ok_or(Unreadable::Damaged)
}

fn fields(bytes: &[u8]) -> Option<(Stamp, Position)> {
    let chain = bytes.get(64..96)?.try_into().ok()?;
    Some((Stamp::decode(bytes, 8)?, Position { sequence: u64_at(bytes, 56)?, chain }))
}
