//! Snapshot files: written aside, synced, renamed. The two newest are kept.
//!
//! Layout: magic 8, index 8, term 8, voter count 4, voters 8 each, data length 8, data, BLAKE3 of all of it 32.

use super::sync_directory;
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use crate::snapshot::Snapshot;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"QLOGSNP1";
const KEPT: usize = 2;

/// Makes a snapshot durable; on a full disk in the place of the older ones, which nobody needs to start.
pub(super) fn save(directory: &Path, snapshot: &Snapshot) -> Result<(), LogError> {
    match save_beside(directory, snapshot) {
        Err(error) if error.may_pass() && keep_newest(directory, 1)? > 0 => save_beside(directory, snapshot),
        outcome => outcome,
    }
}

fn save_beside(directory: &Path, snapshot: &Snapshot) -> Result<(), LogError> {
    let path = directory.join(format!("snapshot-{:016x}.snap", snapshot.index));
    let partial = path.with_extension("partial");
    write(&partial, snapshot).map_err(|error| {
        // The partial file is worth nothing; the error that matters is the first one.
        let _ = fs::remove_file(&partial);
        LogError::io("write", &partial, error)
    })?;
    fs::rename(&partial, &path).map_err(|e| LogError::io("rename", &partial, e))?;
    sync_directory(directory)
}

fn write(path: &Path, snapshot: &Snapshot) -> std::io::Result<()> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&snapshot.index.to_le_bytes());
    head.extend_from_slice(&snapshot.term.to_le_bytes());
    head.extend_from_slice(&(snapshot.voters.len() as u32).to_le_bytes());
    for voter in &snapshot.voters {
        head.extend_from_slice(&voter.to_le_bytes());
    }
    head.extend_from_slice(&(snapshot.data.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(&snapshot.data);
    let mut file = File::create(path)?;
    file.write_all(&head)?;
    file.write_all(&snapshot.data)?;
    file.write_all(hasher.finalize().as_bytes())?;
    file.sync_all()
}

/// The newest snapshot. A damaged one is an error: it is only ever visible under its name when whole.
pub(super) fn newest(directory: &Path) -> Result<Option<Snapshot>, LogError> {
    let Some(path) = list(directory, "snap")?.pop() else { return Ok(None) };
    let bytes = Bytes::from(fs::read(&path).map_err(|e| LogError::io("read", &path, e))?);
    match decode(&bytes) {
        Some(snapshot) => Ok(Some(snapshot)),
        None => {
            Err(LogError::Corrupt { path, offset: 0, reason: "the digest does not fit the content".into() })
        }
    }
}

/// Removes what a crash left half written. Only at a start: later a partial file may be in the making.
pub(super) fn remove_partial(directory: &Path) -> Result<(), LogError> {
    for path in list(directory, "partial")? {
        fs::remove_file(&path).map_err(|e| LogError::io("remove", &path, e))?;
    }
    Ok(())
}

/// Removes all but the newest snapshots.
pub(super) fn remove_older(directory: &Path) -> Result<(), LogError> {
    keep_newest(directory, KEPT).map(|_| ())
}

/// Removes all but so many, and says how many that were.
fn keep_newest(directory: &Path, kept: usize) -> Result<usize, LogError> {
    let found = list(directory, "snap")?;
    let removed = found.len().saturating_sub(kept);
    for path in &found[..removed] {
        match fs::remove_file(path) {
            // A snapshot from the leader may be saved beside our own, and clear away the same files.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io("remove", path, error));
            }
            _ => {}
        }
    }
    Ok(removed)
}

/// Files of a kind, oldest first: their names sort by index.
fn list(directory: &Path, kind: &str) -> Result<Vec<PathBuf>, LogError> {
    let entries = fs::read_dir(directory).map_err(|e| LogError::io("list", directory, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| LogError::io("list", directory, e))?.path();
        if path.extension().is_some_and(|extension| extension == kind) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn decode(bytes: &Bytes) -> Option<Snapshot> {
    let content = bytes.len().checked_sub(32)?;
    if bytes[..content].get(..8)? != MAGIC || blake3::hash(&bytes[..content]).as_bytes() != &bytes[content..]
    {
        return None;
    }
    let voters_at = 28;
    let count = u32_at(bytes, 24)? as usize;
    let voters = (0..count).map(|place| u64_at(bytes, voters_at + 8 * place)).collect::<Option<_>>()?;
    let data_at = voters_at + 8 * count + 8;
    if u64_at(bytes, data_at - 8)? != (content.checked_sub(data_at)?) as u64 {
        return None;
    }
    Some(Snapshot {
        index: u64_at(bytes, 8)?,
        term: u64_at(bytes, 16)?,
        voters,
        data: bytes.slice(data_at..content),
    })
}
