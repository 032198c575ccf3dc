//! File system interface of the log: one directory, its files, and their durability.
//!
//! Two implementations: [`RealDirectory`], and [`SimulatedFiles`] in memory, which tears, loses, fills up and
//! fails on command. All of the log's own code is above this interface, so a simulation runs all of it.
//!
//! Nothing is durable before it is synced: bytes by [`File::sync`] or [`File::sync_data`], the names of files
//! by [`Directory::sync`].

mod real;
mod simulated;

pub(crate) use real::RealDirectory;
pub(crate) use simulated::SimulatedFiles;

use crate::error::LogError;
use std::io;
use std::path::{Path, PathBuf};

/// A directory that holds files and no other directory.
pub(crate) trait Directory: Send + Sync + std::fmt::Debug {
    /// Returns its path, for messages.
    fn path(&self) -> &Path;

    /// Locks the directory for this process, until the returned guard is dropped.
    fn lock(&self) -> Result<Box<dyn Send + Sync>, LogError>;

    /// Returns the names of its files, sorted.
    fn list(&self) -> Result<Vec<String>, LogError>;

    /// Creates an empty file, replacing one of the same name.
    fn create(&self, name: &str) -> Result<Box<dyn File>, LogError>;

    /// Opens a file for reading and writing; `None` if there is none.
    fn open(&self, name: &str) -> Result<Option<Box<dyn File>>, LogError>;

    /// Renames a file, replacing one that has the new name.
    fn rename(&self, from: &str, to: &str) -> Result<(), LogError>;

    /// Removes a file, if there is one.
    fn remove(&self, name: &str) -> Result<(), LogError>;

    /// Makes created, renamed and removed names durable.
    fn sync(&self) -> Result<(), LogError>;

    /// Returns the path of a file, for messages.
    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// An open file. Errors are those of the operating system: the caller adds the context.
pub(crate) trait File: Send + Sync {
    /// Returns its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Returns its whole content.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes`, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    fn sync(&self) -> io::Result<()>;

    /// Makes bytes durable that overwrote others.
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads a whole file; `None` if there is none.
pub(super) fn read(directory: &dyn Directory, name: &str) -> Result<Option<Vec<u8>>, LogError> {
    let Some(file) = directory.open(name)? else { return Ok(None) };
    file.read().map(Some).map_err(|e| LogError::io("read", &directory.file(name), e))
}

/// Writes zeros from `from` to `to`, which allocates space that later writes only overwrite.
pub(super) fn zero(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut at = from;
    while at < to {
        let length = (to - at).min(ZEROS.len() as u64);
        file.write_at(&ZEROS[..length as usize], at)?;
        at += length;
    }
    Ok(())
}
