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
        match Flock::lock(open(directory)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Takes the lock of an existing directory, and waits while another process holds it.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn wait(directory: &Path) -> io::Result<Self> {
        let file = open(directory)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map(|file| Self { _file: file })
            .map_err(|(_, error)| error.into())
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK_FILE))
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
    fn a_lock_that_is_waited_for_is_held_by_one_at_a_time() {
        let directory = tempfile::tempdir().expect("directory");
        let held = DirectoryLock::take(directory.path()).expect("open").expect("free");
        let path = directory.path().to_path_buf();
        let waits = std::thread::spawn(move || DirectoryLock::wait(&path).map(drop));
        assert!(DirectoryLock::take(directory.path()).expect("open").is_none(), "the first still holds it");
        drop(held);
        waits.join().expect("no panic").expect("it gets its turn");
        assert!(DirectoryLock::wait(&directory.path().join("none")).is_err());
    }

    /// `flock` of util-linux takes the same lock, in a process of its own.
    #[test]
    fn a_lock_is_released_by_the_end_of_its_process() {
        use std::io::Read;
        use std::process::{Command, Stdio};
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(LOCK_FILE);
        let mut command = Command::new("flock");
        command.arg("--no-fork").arg(&path).args(["sh", "-c", "echo taken; exec cat"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux is there");
        let mut line = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("it holds the lock");
        assert!(DirectoryLock::take(directory.path()).expect("open").is_none());
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(DirectoryLock::take(directory.path()).expect("open").is_some());
        assert!(path.exists(), "the file stays: removing it would admit two");
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_a_held_lock() {
        let directory = tempfile::tempdir().expect("directory");
        let error = DirectoryLock::take(&directory.path().join("none")).expect_err("no directory");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
