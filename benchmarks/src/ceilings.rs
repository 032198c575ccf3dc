//! Performance ceilings of the machine, measured in the same run as the comparison.

use anyhow::Context;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Returns the milliseconds of each of `count` writes of `bytes` bytes, each synced on its own. They
/// overwrite allocated space.
pub(crate) fn fdatasync_ms(directory: &Path, bytes: usize, count: usize) -> anyhow::Result<Vec<f64>> {
    let path = directory.join("fdatasync");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let block = vec![7u8; bytes];
    file.write_all_at(&vec![0; bytes * count], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(count);
    for index in 0..count {
        let begin = Instant::now();
        file.write_all_at(&block, (index * bytes) as u64)?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

/// Drops a file's pages from the page cache, so that the next read comes from the disk, or from a cache of a
/// virtual disk outside this machine.
pub(crate) fn forget_pages(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // Only clean pages can be dropped.
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

/// Returns the gigabytes copied per second by this many concurrent threads; read and written bytes count
/// once. Each thread copies 64 MiB of its own: more than any cache here.
pub(crate) fn copy_gigabytes(threads: usize) -> f64 {
    const BYTES: usize = 64 << 20;
    const REPEAT: usize = 4;
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> =
        (0..threads).map(|_| (vec![1; BYTES], vec![2; BYTES])).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (source, target) in &mut buffers {
            scope.spawn(move || (0..REPEAT).for_each(|_| target.copy_from_slice(source)));
        }
    });
    (threads * BYTES * REPEAT) as f64 / begin.elapsed().as_secs_f64() / 1e9
}

/// Returns the gigabytes read per second by this many concurrent threads, each from 256 MiB of its own: more
/// than any cache here, in large pages where the kernel gives them.
pub(crate) fn read_gigabytes(threads: usize) -> anyhow::Result<f64> {
    const BYTES: usize = 256 << 20;
    const REPEAT: usize = 3;
    /// Bytes of sums that run beside one another.
    const LANES: usize = 512;
    let mut buffers = Vec::new();
    for _ in 0..threads {
        let mut buffer = memmap2::MmapMut::map_anon(BYTES)?;
        // A kernel without large pages refuses, and reads from small ones.
        let _ = buffer.advise(memmap2::Advice::HugePage);
        buffer.fill(1);
        buffers.push(buffer);
    }
    let sum = |buffer: &[u8]| {
        let mut lanes = [0_u64; LANES / 8];
        for bytes in buffer.as_chunks::<LANES>().0 {
            let words = bytes.as_chunks::<8>().0;
            lanes.iter_mut().zip(words).for_each(|(lane, word)| *lane ^= u64::from_ne_bytes(*word));
        }
        std::hint::black_box(lanes);
    };
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for buffer in &buffers {
            scope.spawn(move || (0..REPEAT).for_each(|_| sum(std::hint::black_box(buffer))));
        }
    });
    Ok((threads * BYTES * REPEAT) as f64 / begin.elapsed().as_secs_f64() / 1e9)
}
