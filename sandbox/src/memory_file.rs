//! Files in memory that are passed to a worker. Its weights and progress map are filled by the agent while
//! the worker reads; other content, such as its manifest, is sealed and immutable.
//!
//! The seal `F_SEAL_FUTURE_WRITE` makes the first kind safe. The agent's own mapping, made before the seal,
//! stays writable. Neither the worker nor the agent can open or map the file for writing again. If the agent
//! dies before the file is full, the file therefore cannot be completed: the worker ends, and is restarted
//! with a new file.

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// A file in shared memory that only this process can write, for as long as it keeps this value.
#[derive(Debug)]
pub struct MemoryFile {
    file: OwnedFd,
    map: NonNull<u8>,
    length: usize,
    /// Ranges borrowed within this process: start and end.
    lent: Mutex<BTreeMap<usize, usize>>,
}

// SAFETY: the mapping belongs to the process, not to a thread; `write` and `read` copy bytes through raw
// pointers, and `with_buffer` hands each byte to one caller at a time.
unsafe impl Send for MemoryFile {}
// SAFETY: as above. Two threads that write the same range concurrently mix their bytes, like two writers of a
// file; `write` documents it.
unsafe impl Sync for MemoryFile {}

impl MemoryFile {
    /// Creates a file of `length` zero bytes, maps it for writing, and seals it against all other writers.
    /// Requests huge pages: first touch is about twice as fast where the kernel grants them.
    ///
    /// # Errors
    /// Errors of the system; `InvalidInput` for an empty file.
    pub fn create(name: &str, length: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let file = anonymous(name)?;
        nix::unistd::ftruncate(&file, i64::try_from(length).map_err(io::Error::other)?)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing; it is unmapped in
        // `drop` and not before.
        let map = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        let made = Self { file, map: map.cast(), length, lent: Mutex::default() };
        // SAFETY: advice on the mapping that was just made changes no byte of it. A refusal costs speed.
        let _ = unsafe { madvise(map, length, MmapAdvise::MADV_HUGEPAGE) };
        let seals = SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE)
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&made.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(made)
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns a new descriptor that can only read and map the file.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        reopen(&self.file)
    }

    /// Lends the `length` bytes at `offset` to `write` exclusively within this process, and returns its
    /// result. Workers that map the file see bytes change: they wait for their progress byte.
    ///
    /// # Errors
    /// `InvalidInput` if the range is out of bounds, `ResourceBusy` if some of it is already borrowed.
    pub fn with_buffer(
        &self,
        offset: usize,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let _claim = LentRange::new(&self.lent, offset, end)?;
        self.populate(offset, end);
        // SAFETY: the range is within the mapping, which lives as long as `self`. Until it is dropped, also
        // when `write` unwinds, the claim keeps every other `with_buffer`, `write` and `read` of this
        // process out of it. Other processes map the file read-only and ignore bytes that are not published
        // yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.map.as_ptr().add(offset), length) };
        Ok(write(bytes))
    }

    /// Populates the pages of a range in one call, which costs less than a fault for each. A load spends most
    /// of its time on the first touch of shared memory. Where the kernel lacks this (before 5.14), pages
    /// fault as usual.
    fn populate(&self, start: usize, end: usize) {
        let start = start - start % page_bytes();
        let Some(length) = NonZeroUsize::new(end - start) else { return };
        // SAFETY: the range begins within the mapping, on a page of it, and ends within it (or, for an empty
        // range, is left out); populating changes no byte.
        unsafe {
            let address = self.map.add(start).cast();
            let _ = madvise(address, length.get(), MmapAdvise::MADV_POPULATE_WRITE);
        }
    }

    /// Copies `bytes` to `offset`. Readers see them immediately; concurrent writers must not overlap.
    ///
    /// # Panics
    /// If the range is not within the file, because the caller computed it from the same length. If some of
    /// it is borrowed.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len()).expect("a range does not wrap");
        assert!(end <= self.length, "range {offset}..{end} is outside {} bytes", self.length);
        let _claim = LentRange::new(&self.lent, offset, end).expect("nobody writes what is lent");
        // SAFETY: the range was checked against the mapping, which lives as long as `self`; `bytes` is
        // ordinary memory of the caller and cannot overlap a mapping to which no reference exists.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_ptr().add(offset), bytes.len());
        }
    }

    /// Stores one byte after all earlier writes: a reader that sees it, sees those too.
    ///
    /// # Panics
    /// If the offset is not within the file.
    pub fn publish(&self, offset: usize, value: u8) {
        assert!(offset < self.length, "offset {offset} is outside {} bytes", self.length);
        // SAFETY: the byte is within the mapping, which lives as long as `self`, and a byte is always
        // aligned; it is only ever accessed atomically or copied by `write` and `read`.
        let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(self.map.as_ptr().add(offset)) };
        byte.store(value, std::sync::atomic::Ordering::Release);
    }

    /// Copies bytes out, to check what was written.
    ///
    /// # Panics
    /// If the range is not within the file, or some of it is borrowed.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let end = offset.checked_add(bytes.len()).expect("a range does not wrap");
        assert!(end <= self.length, "range {offset}..{end} is outside {} bytes", self.length);
        let _claim = LentRange::new(&self.lent, offset, end).expect("nobody reads what is lent");
        // SAFETY: as in `write`, the other way.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len());
        }
    }
}

fn page_bytes() -> usize {
    // Linux has supported this since 2.0; the fallback is the smallest page size.
    let answer = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    answer.ok().flatten().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `create` with this length and no reference into it exists.
        let _ = unsafe { munmap(self.map.cast::<c_void>(), self.length) };
    }
}

/// A borrowed range.
struct LentRange<'a> {
    lent: &'a Mutex<BTreeMap<usize, usize>>,
    start: usize,
}

impl<'a> LentRange<'a> {
    fn new(lent: &'a Mutex<BTreeMap<usize, usize>>, start: usize, end: usize) -> io::Result<Self> {
        debug_assert!(start <= end, "range {start}..{end}");
        let mut ranges = lent.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ranges.range(..end).next_back();
        if before.is_some_and(|(_, other_end)| *other_end > start) || ranges.contains_key(&start) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        ranges.insert(start, end);
        Ok(Self { lent, start })
    }
}

impl Drop for LentRange<'_> {
    fn drop(&mut self) {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.start);
    }
}

/// Returns a readable descriptor, positioned at the start, of an immutable copy of the bytes.
///
/// # Errors
/// Errors of the system.
pub fn sealed_bytes(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(anonymous(name)?);
    file.write_all(bytes)?;
    let file = OwnedFd::from(file);
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))?;
    reopen(&file)
}

/// Returns whether a file is sealed against every change.
pub(crate) fn is_sealed(file: &OwnedFd) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS)
        .is_ok_and(|bits| SealFlag::from_bits_retain(bits).contains(all_seals()))
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

/// Creates an empty file in memory, not executable where the kernel supports that (6.3 and later).
fn anonymous(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let no_exec = MFdFlags::from_bits_retain(flags.bits() | libc::MFD_NOEXEC_SEAL);
    let file = memfd_create(name.as_c_str(), no_exec).or_else(|_| memfd_create(name.as_c_str(), flags))?;
    // Only its owner may reopen it through /proc, and then only for reading.
    nix::sys::stat::fchmod(&file, Mode::S_IRUSR)?;
    Ok(file)
}

fn reopen(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_reader_sees_what_is_written_after_it_was_opened() {
        let file = MemoryFile::create("weights", 10_000).expect("create");
        let reader = File::from(file.reader().expect("reader"));
        file.write(9_997, b"end");
        file.publish(0, 1);
        let mut found = [0; 3];
        reader.read_exact_at(&mut found, 9_997).expect("read");
        assert_eq!(&found, b"end");
        reader.read_exact_at(&mut found[..1], 0).expect("read");
        assert_eq!(found[0], 1);
        assert_eq!(reader.metadata().expect("metadata").len(), 10_000);
    }

    #[test]
    fn nothing_but_the_first_mapping_can_write() {
        let file = MemoryFile::create("weights", 4096).expect("create");
        let reader = file.reader().expect("reader");
        assert_eq!(nix::unistd::write(&reader, b"x"), Err(Errno::EBADF), "opened for reading");
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        // Root may open any file for writing; the seal still protects it.
        if let Ok(writer) = std::fs::OpenOptions::new().write(true).open(path) {
            assert_eq!(nix::unistd::write(&writer, b"x"), Err(Errno::EPERM));
            assert!(writer.set_len(1).is_err() && writer.set_len(9000).is_err());
        }
        let size = NonZeroUsize::new(4096).expect("not zero");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping replaces nothing; it is expected to fail.
        let mapped = unsafe { mmap(None, size, writable, MapFlags::MAP_SHARED, &file.file, 0) };
        assert_eq!(mapped.map(|_| ()), Err(Errno::EPERM));
        file.write(0, b"still mine");
    }

    #[test]
    fn a_byte_is_lent_to_one_at_a_time() {
        let file = MemoryFile::create("weights", 100).expect("create");
        let inner = |offset, length| file.with_buffer(offset, length, &mut |_| true).is_ok();
        let mut seen = Vec::new();
        let outer = file.with_buffer(10, 20, &mut |bytes| {
            bytes.fill(7);
            seen = vec![inner(0, 10), inner(30, 70), inner(0, 11), inner(29, 1), inner(10, 20), inner(15, 2)];
            true
        });
        assert!(matches!(outer, Ok(true)));
        assert_eq!(seen, [true, true, false, false, false, false]);
        assert!(inner(0, 100) && !inner(0, 101) && !inner(usize::MAX, 1));
        let mut found = [0; 3];
        file.read(28, &mut found);
        assert_eq!(found, [7, 7, 0]);
    }

    #[test]
    fn a_lent_ranges_pages_are_there_before_they_are_written() {
        let file = MemoryFile::create("weights", 64 * page_bytes()).expect("create");
        let resident = |file: &MemoryFile| {
            let mut pages = vec![0_u8; 64];
            // SAFETY: the vector has a byte for each page of the mapping.
            let asked = unsafe { libc::mincore(file.map.as_ptr().cast(), file.length, pages.as_mut_ptr()) };
            assert_eq!(asked, 0);
            pages.iter().map(|page| page & 1).collect::<Vec<_>>()
        };
        assert!(resident(&file).iter().all(|page| *page == 0), "nothing is there before it is needed");
        let mut seen = Vec::new();
        let (offset, length) = (3 * page_bytes() + 5, 2 * page_bytes());
        file.with_buffer(offset, length, &mut |bytes| {
            assert!(bytes.iter().all(|byte| *byte == 0));
            seen = resident(&file);
            true
        })
        .expect("lent");
        let there: Vec<usize> = (0..64).filter(|page| seen[*page] == 1).collect();
        assert_eq!(there, [3, 4, 5]);
    }

    #[test]
    fn without_the_seal_a_second_writer_would_succeed() {
        let file = anonymous("control").expect("create");
        nix::unistd::write(&file, b"x").expect("the positive control of the test above");
    }

    #[test]
    fn sealed_bytes_are_read_from_their_beginning_and_never_change() {
        let file = sealed_bytes("manifest", b"all that a worker knows").expect("create");
        assert!(is_sealed(&file));
        let mut text = String::new();
        io::Read::read_to_string(&mut File::from(file), &mut text).expect("read");
        assert_eq!(text, "all that a worker knows");
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn an_empty_file_is_refused() {
        assert_eq!(MemoryFile::create("x", 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
