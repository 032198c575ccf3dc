//! Snapshot files: written aside, synced, renamed. The two newest are kept.
//!
//! Layout: kind and version 8, owner 48, index 8, term 8, voter count 4, voters 8 each, data length 8, data,
//! BLAKE3 of all of it 32.

use super::format::{Format, HEAD_BYTES, STAMP_BYTES, Stamp, Unreadable};
use super::{Owner, sync_directory};
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use crate::snapshot::Snapshot;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) const FORMAT: Format = Format { kind: *b"QLOGSNP", version: b'2' };
const INDEX_AT: usize = HEAD_BYTES + STAMP_BYTES;
const VOTERS_AT: usize = INDEX_AT + 20;
const KEPT: usize = 2;

/// Makes a snapshot durable; on a full disk in the place of the older ones, which nobody needs to start.
pub(super) fn save(directory: &Path, owner: &Owner, snapshot: &Snapshot) -> Result<(), LogError> {
    match save_beside(directory, owner, snapshot) {
        Err(error) if error.may_pass() && keep_newest(directory, 1)? > 0 => {
            save_beside(directory, owner, snapshot)
        }
        outcome => outcome,
    }
}

fn save_beside(directory: &Path, owner: &Owner, snapshot: &Snapshot) -> Result<(), LogError> {
    let path = directory.join(format!("snapshot-{:016x}.snap", snapshot.index));
    let partial = path.with_extension("partial");
    write(&partial, owner, snapshot).map_err(|error| {
        // The partial file is worth nothing; the error that matters is the first one.
        let _ = fs::remove_file(&partial);
        LogError::io("write", &partial, error)
    })?;
    fs::rename(&partial, &path).map_err(|e| LogError::io("rename", &partial, e))?;
    sync_directory(directory)
}

fn write(path: &Path, owner: &Owner, snapshot: &Snapshot) -> std::io::Result<()> {
    let mut head = FORMAT.head().to_vec();
    head.extend_from_slice(&owner.stamp().encode());
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
pub(super) fn newest(directory: &Path, owner: &Owner) -> Result<Option<Snapshot>, LogError> {
    let Some(path) = list(directory, "snap")?.pop() else { return Ok(None) };
    let bytes = Bytes::from(fs::read(&path).map_err(|e| LogError::io("read", &path, e))?);
    let (stamp, snapshot) = decode(&bytes)
        .map_err(|reason| FORMAT.refuse(&path, reason, "the digest does not fit the content"))?;
    owner.check(&stamp, &path)?;
    Ok(Some(snapshot))
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

pub(crate) fn decode(bytes: &Bytes) -> Result<(Stamp, Snapshot), Unreadable> {
    let (content, digest) = bytes.split_last_chunk::<32>().ok_or(Unreadable::Damaged)?;
    FORMAT.check(content, |begin| {
        let rest = content.get(begin.len()..).unwrap_or_default();
        blake3::Hasher::new().update(begin).update(rest).finalize().as_bytes() == digest
    })?;
    fields(bytes, content.len()).ok_or(Unreadable::Damaged)
}

fn fields(bytes: &Bytes, content: usize) -> Option<(Stamp, Snapshot)> {
    let count = u32_at(bytes, VOTERS_AT - 4)? as usize;
    let voters = (0..count).map(|place| u64_at(bytes, VOTERS_AT + 8 * place)).collect::<Option<_>>()?;
    let data_at = VOTERS_AT + 8 * count + 8;
    if u64_at(bytes, data_at - 8)? != (content.checked_sub(data_at)?) as u64 {
        return None;
    }
    let (index, term) = (u64_at(bytes, INDEX_AT)?, u64_at(bytes, INDEX_AT + 8)?);
    let data = bytes.slice(data_at..content);
    Some((Stamp::decode(bytes, HEAD_BYTES)?, Snapshot { index, term, voters, data }))
}
