//! Atomic, durable file writes, and files that hold a secret: the one way to write such a file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Suffix of a file that is being written; one found at startup was left by a crash.
const TEMPORARY_SUFFIX: &str = ".new";

/// Creates a directory that only its owner may enter, and its parents.
///
/// # Errors
/// Errors of the system.
pub fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file with these permissions, and creates its parent directories. When this returns, the new
/// content is durable. If it fails or the machine crashes, either the old or the new content is in place.
///
/// # Errors
/// Errors of the system.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, bytes, mode)?;
    sync_directory(directory_of(path))?;
    crash::point();
    Ok(())
}

/// Replaces a file by a durable one, whose name is durable once the directory is synchronised.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    fs::create_dir_all(directory_of(path))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = Path::new(&temporary);
    // A file left by a crash may have other permissions, so it is replaced rather than overwritten.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    crash::point();
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(temporary)?;
    file.write_all(bytes)?;
    crash::point();
    file.sync_all()?;
    crash::point();
    fs::rename(temporary, path)?;
    crash::point();
    Ok(())
}

/// Writes a secret, readable by its owner alone.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(path, bytes, 0o600)
}

/// Writes a secret that follows from other files: after a crash the old content may be in place although this
/// returned, and never anything else. It waits for the disk once, and [`write_secret`] twice.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_derived_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, 0o600)
}

/// Creates a secret, readable by its owner alone, and never replaces a file, as [`create_new`] does.
///
/// # Errors
/// As [`create_new`].
pub fn create_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_new(path, bytes, 0o600)
}

/// Creates a file with these permissions in an existing directory, and never replaces one. When this returns,
/// the content is durable.
///
/// # Errors
/// `AlreadyExists` if the name is taken, errors of the system. An incomplete file is removed where possible.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(path);
    }
    written.and_then(|()| sync_directory(directory_of(path)))
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Errors of the system.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes everything durable that was written to the file system of a directory: one call for a tree of many
/// files.
///
/// # Errors
/// Errors of the system.
pub fn sync_file_system(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    // SAFETY: the call takes a descriptor, which is open until the end of this function, and no pointer.
    match unsafe { libc::syncfs(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the directory of a file. The parent of a bare name is empty, which means the current directory.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a file of at most `limit` bytes; none if there is no such file.
///
/// # Errors
/// Errors of the system; `InvalidData` for a longer file.
pub fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
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

/// Crash points between the steps of a write, where a test may simulate a crash. They are no-ops outside
/// tests.
#[cfg(not(any(test, feature = "crash-points")))]
mod crash {
    pub(super) fn point() {}
}

/// Crash points at which a test makes its thread unwind.
#[cfg(any(test, feature = "crash-points"))]
pub mod crash {
    use std::cell::Cell;

    thread_local!(static POINTS_LEFT: Cell<Option<u32>> = const { Cell::new(None) });

    /// Makes the thread unwind at the point after this many others; never if none.
    pub fn after(points: Option<u32>) {
        POINTS_LEFT.set(points);
    }

    /// Returns whether a crash is still pending.
    #[must_use]
    pub fn is_pending() -> bool {
        POINTS_LEFT.get().is_some()
    }

    pub(super) fn point() {
        match POINTS_LEFT.get() {
            Some(0) => {
                POINTS_LEFT.set(None);
                std::panic::resume_unwind(Box::new("the process dies here"));
            }
            Some(left) => POINTS_LEFT.set(Some(left - 1)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn temporary(path: &Path) -> std::path::PathBuf {
        path.with_extension(TEMPORARY_SUFFIX.trim_start_matches('.'))
    }

    #[test]
    fn what_a_crash_left_is_never_read() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        assert_eq!(read(&path, 10).expect("no file is no error"), None);
        write_secret(&path, b"old").expect("write");
        // A crash in the middle of the next write leaves a torn temporary file.
        fs::write(temporary(&path), b"ne").expect("tear");
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"old"[..]));
        write_secret(&path, b"newer").expect("write over the torn file");
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"newer"[..]));
        assert!(!temporary(&path).exists());
    }

    #[test]
    fn a_crash_at_any_point_leaves_the_old_content_or_the_new() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        for (points, expected) in
            [(0, &b"old"[..]), (1, b"old"), (2, b"old"), (3, b"new"), (4, b"new"), (5, b"new")]
        {
            for (write, steps) in
                [(write_secret as fn(&Path, &[u8]) -> io::Result<()>, 5), (write_derived_secret, 4)]
            {
                write_secret(&path, b"old").expect("write");
                crash::after(Some(points));
                let died = std::panic::catch_unwind(|| write(&path, b"new")).is_err();
                crash::after(None);
                assert_eq!(died, points < steps, "after {points} of {steps}");
                assert_eq!(read(&path, 10).expect("read").as_deref(), Some(expected), "after {points}");
            }
        }
    }

    #[test]
    fn the_directory_of_a_bare_name_is_the_current_one() {
        for (path, expected) in
            [("key", "."), ("./key", "."), ("a/key", "a"), ("/key", "/"), ("/a/b/key", "/a/b"), ("", ".")]
        {
            assert_eq!(directory_of(Path::new(path)), Path::new(expected), "`{path}`");
        }
    }

    #[test]
    fn a_file_has_the_mode_it_is_written_with_also_when_it_replaces_another() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a/b/file");
        for mode in [0o600, 0o640, 0o600, 0o400] {
            write_atomically(&path, b"bytes", mode).expect("write");
            assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_private_directory_is_closed_to_others_and_may_be_there_already() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a/b");
        for _ in 0..2 {
            private_directory(&path).expect("create");
            for made in [&path, &directory.path().join("a")] {
                assert_eq!(fs::metadata(made).expect("metadata").permissions().mode() & 0o777, 0o700);
            }
        }
        fs::write(path.join("file"), "").expect("write");
        assert!(private_directory(&path.join("file")).is_err(), "a file stands in the way");
    }

    #[test]
    fn a_directory_that_is_missing_cannot_be_made_durable() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(sync_directory(directory.path()).is_ok());
        let missing = directory.path().join("none");
        assert_eq!(sync_directory(&missing).expect_err("missing").kind(), io::ErrorKind::NotFound);
        let secret = create_secret(&missing.join("key"), b"secret").expect_err("no directory");
        assert_eq!(secret.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_beyond_its_limit_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        write_secret(&path, b"0123456789").expect("write");
        assert!(read(&path, 10).is_ok());
        assert_eq!(read(&path, 9).expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("orders");
        write_secret(&path, b"old").expect("write");
        fs::create_dir(temporary(&path)).expect("stand in the way");
        assert!(write_secret(&path, b"new").is_err());
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn a_created_secret_is_its_owners_alone_and_replaces_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("key");
        create_secret(&path, b"first").expect("create");
        let error = create_secret(&path, b"second").expect_err("the name is taken");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"first");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_created_file_has_its_mode_and_replaces_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("lab.json");
        create_new(&path, b"first", 0o644).expect("create");
        std::os::unix::fs::symlink(directory.path().join("none"), directory.path().join("link"))
            .expect("link");
        for taken in [&path, &directory.path().join("link")] {
            let error = create_new(taken, b"second", 0o644).expect_err("the name is taken");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{}", taken.display());
        }
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_secret_is_its_owners_alone_and_replaces_whole() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("new/key");
        fs::create_dir(directory.path().join("new")).expect("directory");
        fs::write(temporary(&path), b"left open by a crash").expect("write");
        write_secret(&path, b"first, and longer").expect("write");
        write_secret(&path, b"second").expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"second");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
