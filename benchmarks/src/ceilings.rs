//! What the machine itself can do, measured in the same run as what is compared.

use anyhow::Context;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Milliseconds of `count` writes of `bytes` each, made durable one by one, into space written before.
pub(crate) fn fdatasync_ms(directory: &Path, bytes: usize, count: usize) -> anyhow::Result<Vec<f64>> {
    let path = directory.join("fdatasync");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let block = vec![7u8; bytes];
    file.write_all_at(&vec![0; bytes * count], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(count);
    for place in 0..count {
        let begin = Instant::now();
        file.write_all_at(&block, (place * bytes) as u64)?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

/// Lets go of what the page cache holds of a file, so that the next read comes from the disk (or from whatever a
/// virtual disk caches beyond this machine).
pub(crate) fn forget_pages(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // Only pages that are on disk can be let go.
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

/// Gigabytes copied per second, read and written counted once, by this many threads at once, each through 64 MiB
/// of its own: more than any cache here.
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
