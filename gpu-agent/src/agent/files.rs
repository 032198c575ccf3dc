//! Files that are there after a power cut, whole, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Suffix of a file that is being written; one that is found at a start is what a crash left.
pub(super) const TEMPORARY_SUFFIX: &str = "new";

/// Makes a directory that only its owner may enter, and its parents.
pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file: when this returns, the new content is durable; if it fails or the machine dies, the old
/// content is still there, or the new.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(TEMPORARY_SUFFIX);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory_of(path)
}

/// Makes renames and removals in a file's directory durable.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file of at most `limit` bytes; none if there is no such file.
pub(super) fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {limit} bytes")));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_is_never_read() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        assert_eq!(read(&path, 10).expect("no file is no error"), None);
        write_atomically(&path, b"old").expect("write");
        // A crash in the middle of the next write leaves the temporary file torn.
        fs::write(path.with_extension(TEMPORARY_SUFFIX), b"ne").expect("tear");
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"old"[..]));
        write_atomically(&path, b"newer").expect("write over the torn file");
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"newer"[..]));
    }

    #[test]
    fn a_file_beyond_its_limit_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        write_atomically(&path, b"0123456789").expect("write");
        assert!(read(&path, 10).is_ok());
        assert_eq!(read(&path, 9).expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        write_atomically(&path, b"old").expect("write");
        fs::create_dir(path.with_extension(TEMPORARY_SUFFIX)).expect("stand in the way");
        assert!(write_atomically(&path, b"new").is_err());
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"old"[..]));
    }
}
