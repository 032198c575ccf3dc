//! Destinations of verified bytes: a weights map that other processes may be reading, or plain memory.
//!
//! Decryption writes straight into the destination. Until a segment is verified, its memory holds unverified
//! bytes, so processes that share the memory must wait until the segment is reported.

use memmap2::{Advice, MmapMut};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Mutex;

/// Memory that receives a model's bytes, addressed by their offset in the weights map.
pub trait Destination: Send + Sync + 'static {
    /// Locks the `length` bytes at `offset`, passes them to `write`, and returns its result.
    ///
    /// # Errors
    /// Fails if the range is outside the destination, or if part of it is already locked.
    fn with_buffer(
        &self,
        offset: u64,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool>;
}

/// A mapped weights file: a memfd that workers map for reading, or a file on disk.
#[derive(Debug)]
pub struct MapDestination(RangeLocked<MmapMut>);

impl MapDestination {
    /// Maps the first `length` bytes of `file` for writing, shared. Call this before sealing a memfd against
    /// new writers: an existing map stays writable.
    ///
    /// # Errors
    /// Fails as `mmap` does, or if the file is shorter than `length`.
    pub fn map(file: &File, length: u64) -> io::Result<Self> {
        if file.metadata()?.len() < length {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is shorter than its map"));
        }
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: only this process writes the file, and no other process writes a weights file. The file is
        // never shrunk: a memfd is sealed against it. Readers in other processes are required to wait for
        // their progress byte.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map_mut(file)? };
        // Huge pages halve the cost of first touch where the kernel allows them; elsewhere this does nothing.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(RangeLocked::new(map)))
    }
}

impl Destination for MapDestination {
    fn with_buffer(
        &self,
        offset: u64,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool> {
        // One call for all pages of the range costs less than one fault per page. If the kernel does not know
        // the advice, or the range is rejected below, the pages fault in as usual.
        if let Ok(start) = usize::try_from(offset) {
            let _ = self.0.memory.advise_range(Advice::PopulateWrite, start, length);
        }
        self.0.with_buffer(offset, length, write)
    }
}

/// Plain memory that stands for the bytes `offset..offset + length` of the weights map.
#[derive(Debug)]
pub struct MemoryDestination {
    offset: u64,
    memory: RangeLocked<Vec<u8>>,
}

impl MemoryDestination {
    /// Allocates zeroed memory for `length` bytes at `offset` of the weights map.
    #[must_use]
    pub fn new(offset: u64, length: usize) -> Self {
        Self { offset, memory: RangeLocked::new(vec![0; length]) }
    }

    /// Consumes the destination and returns its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.memory.memory
    }
}

impl Destination for MemoryDestination {
    fn with_buffer(
        &self,
        offset: u64,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool> {
        let end = self.offset + self.memory.length as u64;
        if offset >= self.offset && offset + length as u64 <= end {
            return self.memory.with_buffer(offset - self.offset, length, write);
        }
        // The segment reaches over an edge of the wanted range: keep the part inside.
        let mut whole = vec![0; length];
        if !write(&mut whole) {
            return Ok(false);
        }
        let (from, to) = (offset.max(self.offset), (offset + length as u64).min(end));
        if from >= to {
            return Err(out_of_range());
        }
        let part = &whole[(from - offset) as usize..(to - offset) as usize];
        self.memory.with_buffer(from - self.offset, part.len(), &mut |bytes| {
            bytes.copy_from_slice(part);
            true
        })
    }
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the range is outside the destination")
}

/// Memory in which several threads write disjoint ranges concurrently.
#[derive(Debug)]
struct RangeLocked<M> {
    /// Never accessed while ranges are locked; it keeps the memory alive.
    memory: M,
    start: *mut u8,
    length: usize,
    /// Locked ranges: start and end.
    locked: Mutex<BTreeMap<usize, usize>>,
}

// SAFETY: the memory is reached through `start` only under `with_buffer`, which gives each byte to one caller
// at a time. It is reached through `memory` only when the value is owned again. `M` itself may cross threads.
unsafe impl<M: Send> Send for RangeLocked<M> {}
// SAFETY: as above; `with_buffer` is the only access through a shared reference.
unsafe impl<M: Send + Sync> Sync for RangeLocked<M> {}

impl<M: std::ops::DerefMut<Target = [u8]>> RangeLocked<M> {
    fn new(mut memory: M) -> Self {
        let (start, length) = (memory.as_mut_ptr(), memory.len());
        Self { memory, start, length, locked: Mutex::default() }
    }

    fn with_buffer(
        &self,
        offset: u64,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool> {
        let start = usize::try_from(offset).map_err(|_| out_of_range())?;
        let end = start.checked_add(length).filter(|end| *end <= self.length).ok_or_else(out_of_range)?;
        let _lock = RangeLock::new(&self.locked, start, end)?;
        // SAFETY: `start..end` is inside the memory, which lives as long as `self`. The memory does not move:
        // it is a map, or the heap part of a `Vec` that is never resized. The lock keeps every other caller
        // of `with_buffer` out of the range until `_lock` is dropped, even if `write` unwinds.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) };
        Ok(write(bytes))
    }
}

/// A range locked by one caller.
struct RangeLock<'a> {
    locked: &'a Mutex<BTreeMap<usize, usize>>,
    start: usize,
}

impl<'a> RangeLock<'a> {
    fn new(locked: &'a Mutex<BTreeMap<usize, usize>>, start: usize, end: usize) -> io::Result<Self> {
        let mut ranges = locked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = ranges.range(..end).next_back();
        if before.is_some_and(|(_, other_end)| *other_end > start) || ranges.contains_key(&start) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the range is being written"));
        }
        ranges.insert(start, end);
        Ok(Self { locked, start })
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        let mut ranges = self.locked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ranges.remove(&self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_locked_twice() {
        let memory = RangeLocked::new(vec![0_u8; 100]);
        let inner = |offset, length| memory.with_buffer(offset, length, &mut |_| true).is_ok();
        let mut seen = Vec::new();
        let outer = memory.with_buffer(10, 20, &mut |bytes| {
            bytes.fill(1);
            seen = vec![inner(0, 10), inner(30, 70), inner(0, 11), inner(29, 1), inner(10, 20), inner(15, 2)];
            true
        });
        assert!(matches!(outer, Ok(true)));
        assert_eq!(seen, [true, true, false, false, false, false]);
        assert!(inner(0, 100) && !inner(0, 101) && !inner(u64::MAX, 1));
    }

    #[test]
    fn memory_keeps_the_part_of_a_segment_within_its_bounds() {
        let memory = MemoryDestination::new(100, 10);
        let mut count = |bytes: &mut [u8]| {
            (0_u8..).zip(bytes).for_each(|(n, byte)| *byte = n);
            true
        };
        assert!(matches!(memory.with_buffer(95, 8, &mut count), Ok(true)));
        assert!(matches!(memory.with_buffer(103, 2, &mut count), Ok(true)));
        assert!(matches!(memory.with_buffer(107, 9, &mut count), Ok(true)));
        assert!(memory.with_buffer(0, 5, &mut count).is_err());
        assert_eq!(memory.into_bytes(), [5, 6, 7, 0, 1, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn a_map_writes_through_to_its_file_and_refuses_a_short_one() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(8192).expect("room");
        assert!(MapDestination::map(&file, 8193).is_err());
        let map = MapDestination::map(&file, 8192).expect("mapped");
        map.with_buffer(4096, 3, &mut |bytes| {
            bytes.copy_from_slice(b"abc");
            true
        })
        .expect("written");
        let mut read = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 4096).expect("read");
        assert_eq!(&read, b"abc");
    }
}
