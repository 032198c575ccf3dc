//! Durability mark: a second record of how far the log is durable.
//!
//! Without it, nothing would vouch for the last acknowledged record, and damage to it would look like a torn
//! tail.
//!
//! The file has two slots, a page apart, written in turn. After each sync of the log, and before anything is
//! acknowledged, the slot with the older mark is overwritten. A slot is kind and version 8, owner 48,
//! sequence number 8, chain 32, CRC-32C 4, zeros.
//!
//! Caveat: the mark itself is synced only when a log is opened and closed. A process that is killed loses
//! nothing that it wrote, so after `kill -9` the mark is exact. After a power failure it may be older, by the
//! writes that the kernel had not yet written back; `record::classify_gap` covers that case. The mark is
//! never ahead of the log, because it is written only after the log is durable. A healthy log is therefore
//! never rejected.

use super::Owner;
use super::files::{Directory, File};
use super::format::{Format, Stamp, Unreadable};
use super::record::Position;
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use crate::ids::RecordNumber;
use std::path::PathBuf;

pub(super) const FORMAT: Format = Format { kind: *b"QLOGMRK", version: b'2' };
const NAME: &str = "durable.mark";
const PARTIAL: &str = "durable.partial";
/// Distance between the slots in bytes: a page, so that no torn write and no bad sector affects both.
const SLOT_STEP: u64 = 4096;
const SLOT_BYTES: usize = 128;
const CRC_AT: usize = 96;

/// The open mark file.
pub(super) struct Mark {
    path: PathBuf,
    file: Box<dyn File>,
    owner: Stamp,
    /// Slot to overwrite next: 0 or 1.
    next: u64,
}

impl Mark {
    /// Creates the mark of a log that begins at `position`; its name is durable before anything follows.
    pub(super) fn create(
        directory: &dyn Directory,
        owner: &Owner,
        position: &Position,
    ) -> Result<Self, LogError> {
        let file = directory.create(PARTIAL)?;
        let owner = owner.stamp();
        let slot = encode(&owner, position);
        let written = file.write_at(&slot, 0).and_then(|()| file.write_at(&slot, SLOT_STEP));
        let written = written.and_then(|()| file.sync());
        written.map_err(|e| LogError::io("write", &directory.file(PARTIAL), e))?;
        directory.rename(PARTIAL, NAME)?;
        directory.sync()?;
        Ok(Self { path: directory.file(NAME), file, owner, next: 0 })
    }

    /// Opens the mark and reads the newer of its slots; `None` if there is no such file.
    pub(super) fn open(
        directory: &dyn Directory,
        owner: &Owner,
    ) -> Result<Option<(Self, Position)>, LogError> {
        let path = directory.file(NAME);
        let Some(file) = directory.open(NAME)? else { return Ok(None) };
        let bytes = file.read().map_err(|e| LogError::io("read", &path, e))?;
        let slots = [0, SLOT_STEP].map(|at| decode(bytes.get(at as usize..).unwrap_or_default()));
        let (next, slot) = match slots {
            [Ok(first), Ok(second)] if first.1.record >= second.1.record => (1, first),
            [_, Ok(second)] => (0, second),
            [Ok(first), Err(_)] => (1, first),
            [Err(first), Err(second)] => {
                let version = [first, second].into_iter().find(|reason| *reason != Unreadable::Damaged);
                let reason = version.unwrap_or(Unreadable::Damaged);
                return Err(FORMAT.error(&path, reason, "neither of its two slots is readable"));
            }
        };
        owner.check(&slot.0, &path)?;
        Ok(Some((Self { path, file, owner: slot.0, next }, slot.1)))
    }

    /// Records that the log is durable up to `position`. The write reaches the operating system, not yet the
    /// disk.
    pub(super) fn set(&mut self, position: &Position) -> Result<(), LogError> {
        let written = self.file.write_at(&encode(&self.owner, position), self.next * SLOT_STEP);
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
    bytes[56..64].copy_from_slice(&position.record.0.to_le_bytes());
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
    Some((Stamp::decode(bytes, 8)?, Position { record: RecordNumber(u64_at(bytes, 56)?), chain }))
}
