//! Segment file: a header with the owner and the position of the hash chain, then records, then free space.

use super::Owner;
use super::files::{Directory, File, zero};
use super::format::{Format, Stamp, Unreadable};
use super::record::Position;
use super::spares::Spare;
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use crate::ids::{RecordNumber, SegmentNumber};
use crate::planted::{Defect, planted};
use std::path::PathBuf;

/// Bytes of a segment's header: kind and version 8, number 8, owner 48, sequence 8, chain 32, CRC-32C 4,
/// zeros. Records follow it.
pub(super) const HEADER_BYTES: u64 = 128;
pub(super) const FORMAT: Format = Format { kind: *b"QLOGSEG", version: b'3' };
const CRC_AT: usize = 104;

/// The segment that is being written.
pub(super) struct LogSegment {
    pub(super) number: SegmentNumber,
    path: PathBuf,
    file: Box<dyn File>,
    end: u64,
    capacity: u64,
}

/// Decoded header of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: SegmentNumber,
    pub(super) owner: Stamp,
    pub(super) position: Position,
}

/// Returns the file name of a segment.
pub(super) fn name(number: SegmentNumber) -> String {
    format!("segment-{:016x}.log", number.0)
}

/// Returns the number of the segment in a file of this name.
pub(super) fn number(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    u64::from_str_radix(digits, 16).ok().map(SegmentNumber)
}

impl LogSegment {
    /// Turns a spare file into the segment `number`, whose first record follows `position`.
    pub(super) fn begin(
        directory: &dyn Directory,
        spare: Spare,
        number: SegmentNumber,
        owner: &Owner,
        position: Position,
    ) -> Result<Self, LogError> {
        let Spare { name: from, file, bytes: capacity } = spare;
        let name = name(number);
        let header = Header { number, owner: owner.stamp(), position };
        file.write_at(&header.encode(), 0).map_err(|e| LogError::io("write", &directory.file(&from), e))?;
        file.sync_data().map_err(|e| LogError::io("sync", &directory.file(&from), e))?;
        directory.rename(&from, &name)?;
        if !planted(Defect::NameForgotten) {
            directory.sync()?;
        }
        Ok(Self { number, path: directory.file(&name), file, end: HEADER_BYTES, capacity })
    }

    /// Reopens the last segment, to continue at `end`. A torn record after it is overwritten with zeros, so
    /// that it can never be mistaken for a later record. The last records that are not known to be durable
    /// are written again. After a failed sync the kernel may show bytes that the disk never got, and would
    /// not write them again.
    pub(super) fn resume(
        directory: &dyn Directory,
        number: SegmentNumber,
        end: u64,
        torn: bool,
        unsure: &[u8],
    ) -> Result<Self, LogError> {
        let path = directory.file(&name(number));
        let gone = || LogError::io("open", &path, std::io::ErrorKind::NotFound.into());
        let file = directory.open(&name(number))?.ok_or_else(gone)?;
        let capacity = file.length().map_err(|e| LogError::io("inspect", &path, e))?;
        let again = file.write_at(unsure, end - unsure.len() as u64);
        again.map_err(|e| LogError::io("write", &path, e))?;
        if torn && !planted(Defect::TornLeft) {
            zero(&*file, end, capacity).map_err(|e| LogError::io("write", &path, e))?;
        }
        if torn || !unsure.is_empty() {
            file.sync().map_err(|e| LogError::io("sync", &path, e))?;
        }
        Ok(Self { number, path, file, end, capacity })
    }

    /// Returns the free bytes.
    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity - self.end
    }

    pub(super) fn has_space(&self, bytes: u64) -> bool {
        bytes <= self.free_bytes()
    }

    /// Writes at the end; not durable before [`LogSegment::sync`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        assert!(self.has_space(bytes.len() as u64), "a record beyond its segment");
        let written = self.file.write_at(bytes, self.end);
        written.map_err(|e| LogError::io("write", &self.path, e))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|e| LogError::io("sync", &self.path, e))
    }
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&FORMAT.head());
        bytes[8..16].copy_from_slice(&self.number.0.to_le_bytes());
        bytes[16..64].copy_from_slice(&self.owner.encode());
        bytes[64..72].copy_from_slice(&self.position.record.0.to_le_bytes());
        bytes[72..104].copy_from_slice(&self.position.chain);
        let checksum = crc32c::crc32c(&bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes the header at the beginning of a segment's bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let head = bytes.get(..HEADER_BYTES as usize).unwrap_or(bytes);
        FORMAT.check(head, |begin| {
            let Some(checksum) = u32_at(head, CRC_AT) else { return false };
            let mut head = head.to_vec();
            head[..8].copy_from_slice(begin);
            head[CRC_AT..CRC_AT + 4].fill(0);
            head.len() as u64 == HEADER_BYTES && crc32c::crc32c(&head) == checksum
        })?;
        Self::fields(head).ok_or(Unreadable::Damaged)
    }

    fn fields(head: &[u8]) -> Option<Self> {
        let (record, chain) = (RecordNumber(u64_at(head, 64)?), head.get(72..104)?.try_into().ok()?);
        let (number, position) = (SegmentNumber(u64_at(head, 8)?), Position { record, chain });
        Some(Self { number, owner: Stamp::decode(head, 16)?, position })
    }
}
