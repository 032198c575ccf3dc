//! Output of a worker: two rotating files of bounded size in its sandbox's directory.

use super::record::names;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes read from a file per call.
const CHUNK_BYTES: u64 = 64 * 1024;

/// Position of a reader in a worker's output. The default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputPosition {
    /// Bytes read of each of the two files.
    pub offsets: [u64; 2],
}

/// Returns the output since a position, and advances the position; at most 64 KiB of each file.
pub(crate) fn since(directory: &Path, position: &mut OutputPosition) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, offset) in names::LOGS.iter().zip(&mut position.offsets) {
        // A file that was removed with its sandbox holds no more output.
        if let Ok(bytes) = read_on(&directory.join(name), offset) {
            all.extend(bytes);
        }
    }
    all
}

fn read_on(path: &Path, offset: &mut u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() < *offset {
        // The two files take turns: this one was truncated and starts again.
        *offset = 0;
    }
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    *offset += bytes.len() as u64;
    Ok(bytes)
}

/// Returns the position after all output so far.
pub(crate) fn end(directory: &Path) -> OutputPosition {
    let length = |name| fs::metadata(directory.join(name)).map_or(0, |metadata| metadata.len());
    OutputPosition { offsets: names::LOGS.map(length) }
}

/// Returns the last bytes of the two files, older first.
pub(crate) fn tail(directory: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut paths = names::LOGS.map(|name| directory.join(name));
    paths.sort_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    let mut all = Vec::new();
    for path in paths {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(bytes_max);
        file.seek(SeekFrom::Start(start))?;
        file.take(bytes_max).read_to_end(&mut all)?;
    }
    let excess = all.len().saturating_sub(usize::try_from(bytes_max).unwrap_or(usize::MAX));
    all.drain(..excess);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_that_take_turns_are_followed() {
        let directory = tempfile::tempdir().expect("directory");
        let [first, second] = names::LOGS.map(|name| directory.path().join(name));
        fs::write(&first, "before\n").expect("write");
        fs::write(&second, "").expect("write");
        let mut position = end(directory.path());
        assert_eq!(since(directory.path(), &mut position), b"", "what was there is known already");
        let append = |path: &Path, text: &str| {
            let mut file = fs::OpenOptions::new().append(true).open(path).expect("open");
            file.write_all(text.as_bytes()).expect("write");
        };
        append(&first, "a\n");
        append(&second, "b\n");
        assert_eq!(since(directory.path(), &mut position), b"a\nb\n");
        fs::write(&first, "c\n").expect("emptied and written to again");
        assert_eq!(since(directory.path(), &mut position), b"c\n");
        fs::remove_file(&first).expect("remove");
        assert_eq!(since(directory.path(), &mut position), b"", "a file that went is no error");
    }

    #[test]
    fn the_tail_ends_with_what_was_printed_last() {
        let directory = tempfile::tempdir().expect("directory");
        let [first, second] = names::LOGS.map(|name| directory.path().join(name));
        fs::write(&second, "0123456789").expect("write");
        fs::write(&first, "abc").expect("write");
        let earlier = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        File::options().write(true).open(&second).expect("open").set_modified(earlier).expect("set");
        assert_eq!(tail(directory.path(), 5).expect("read"), b"89abc");
        assert_eq!(tail(directory.path(), 100).expect("read"), b"0123456789abc");
    }
}
