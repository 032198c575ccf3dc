//! Files that must survive a crash or keep a secret: written beside, synced, renamed; secrets 0600.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file so that after a crash it holds the old bytes or the new ones, never a mixture.
///
/// # Errors
/// The disk's own; the old file stands untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // The parent of a bare name is empty, which means here.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(partial, path)?;
    File::open(directory)?.sync_all()
}

/// Writes a secret: readable by its owner alone.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(path, bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_its_owners_alone_and_replaces_whole() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("new/key");
        write_secret(&path, b"first, and longer").expect("written");
        write_secret(&path, b"second").expect("replaced");
        assert_eq!(std::fs::read(&path).expect("read"), b"second");
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
