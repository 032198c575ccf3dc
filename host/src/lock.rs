//! Lock of a directory: at most one process at a time works in it.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Name of the lock file in its directory.
const LOCK_FILE: &str = "lock";

/// An exclusive lock on a directory. The kernel releases it when this value is dropped or its process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: Flock<File>,
}

impl DirectoryLock {
    /// Takes the lock of an existing directory; none if another process holds it.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn take(directory: &Path) -> io::Result<Option<Self>> {
        let path = directory.join(LOCK_FILE);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let directory = tempfile::tempdir().expect("directory");
        let first = DirectoryLock::take(directory.path()).expect("open");
        assert!(first.is_some());
        assert!(DirectoryLock::take(directory.path()).expect("open").is_none());
        drop(first);
        assert!(DirectoryLock::take(directory.path()).expect("open").is_some());
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_a_held_lock() {
        let directory = tempfile::tempdir().expect("directory");
        let error = DirectoryLock::take(&directory.path().join("none")).expect_err("no directory");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
