//! The edge between the log and a file system: one directory, its files, and when they are durable.
//!
//! Two implementations: [`RealDirectory`], and [`SimulatedFiles`] in memory, which tears, loses, fills up and
//! fails on command. All of the log's own code runs above this line, so a simulation runs all of it.
//!
//! Nothing is durable before it is synced: bytes by [`File::sync`] or [`File::sync_data`], and that a file has
//! its name, or no longer has it, by [`Directory::sync`].

mod real;
mod simulated;

pub(crate) use real::RealDirectory;
pub(crate) use simulated::SimulatedFiles;

use crate::error::LogError;
use std::io;
use std::path::{Path, PathBuf};

/// A directory that holds files and no other directory.
pub(crate) trait Directory: Send + Sync + std::fmt::Debug {
    /// Where it is, for messages.
    fn path(&self) -> &Path;

    /// Takes the directory for this process, until what is returned is dropped.
    fn lock(&self) -> Result<Box<dyn Send + Sync>, LogError>;

    /// The names of its files, sorted.
    fn list(&self) -> Result<Vec<String>, LogError>;

    /// Makes an empty file, in the place of one that has the name.
    fn create(&self, name: &str) -> Result<Box<dyn File>, LogError>;

    /// Opens a file to read and write it; `None` where there is none.
    fn open(&self, name: &str) -> Result<Option<Box<dyn File>>, LogError>;

    /// Gives a file another name, in the place of one that has it.
    fn rename(&self, from: &str, to: &str) -> Result<(), LogError>;

    /// Sees to it that there is no such file.
    fn remove(&self, name: &str) -> Result<(), LogError>;

    /// Makes what was created, renamed and removed durable.
    fn sync(&self) -> Result<(), LogError>;

    /// Where a file is, for messages.
    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// An open file. Errors are the operating system's: its holder knows what it was for.
pub(crate) trait File: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// All of it.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes`, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    fn sync(&self) -> io::Result<()>;

    /// Makes bytes durable that were written over others.
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads a whole file; `None` where there is none.
pub(super) fn read(directory: &dyn Directory, name: &str) -> Result<Option<Vec<u8>>, LogError> {
    let Some(file) = directory.open(name)? else { return Ok(None) };
    file.read().map(Some).map_err(|e| LogError::io("read", &directory.file(name), e))
}

/// Writes zeros from `from` to `to`: allocated space that later writes only overwrite.
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
