//! Snapshot files: written under a temporary name, synced, then renamed.
//!
//! The two newest are kept, and the log back to the older one. If the newest is damaged, a start uses the
//! older one and the log after it.
//!
//! Layout: kind and version 8, owner 48, index 8, term 8, voter count 4, voters 8 each, data length 8, data,
//! BLAKE3 of all of it 32.

use super::Owner;
use super::files::{self, Directory};
use super::format::{Format, HEAD_BYTES, STAMP_BYTES, Stamp, Unreadable};
use crate::command::{u32_at, u64_at};
use crate::error::LogError;
use crate::ids::{LogIndex, Term};
use crate::snapshot::Snapshot;
use bytes::Bytes;
use protocol::ReplicaId;

pub(super) const FORMAT: Format = Format { kind: *b"QLOGSNP", version: b'2' };
const INDEX_AT: usize = HEAD_BYTES + STAMP_BYTES;
const VOTERS_AT: usize = INDEX_AT + 20;
const KEPT: usize = 2;
const ENDING: &str = ".snap";
const DAMAGED_ENDING: &str = ".damaged";

/// Makes a snapshot durable. If the disk is full, the older ones are removed first; they are not needed for a
/// start.
pub(super) fn save(directory: &dyn Directory, owner: &Owner, snapshot: &Snapshot) -> Result<(), LogError> {
    match save_beside(directory, owner, snapshot) {
        Err(error) if error.is_disk_full() && keep_newest(directory, 1)? > 0 => {
            save_beside(directory, owner, snapshot)
        }
        outcome => outcome,
    }
}

fn save_beside(directory: &dyn Directory, owner: &Owner, snapshot: &Snapshot) -> Result<(), LogError> {
    let name = format!("snapshot-{:016x}", snapshot.index.0);
    let (partial, name) = (format!("{name}.partial"), format!("{name}{ENDING}"));
    write(directory, &partial, owner, snapshot).inspect_err(|_| {
        // The partial file is useless; the first error is the one to report.
        let _ = directory.remove(&partial);
    })?;
    directory.rename(&partial, &name)?;
    directory.sync()
}

fn write(directory: &dyn Directory, name: &str, owner: &Owner, snapshot: &Snapshot) -> Result<(), LogError> {
    let mut head = FORMAT.head().to_vec();
    head.extend_from_slice(&owner.stamp().encode());
    head.extend_from_slice(&snapshot.index.0.to_le_bytes());
    head.extend_from_slice(&snapshot.term.0.to_le_bytes());
    head.extend_from_slice(&(snapshot.voters.len() as u32).to_le_bytes());
    for voter in &snapshot.voters {
        head.extend_from_slice(&voter.0.to_le_bytes());
    }
    head.extend_from_slice(&(snapshot.data.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(&snapshot.data);
    let file = directory.create(name)?;
    let data_at = head.len() as u64;
    let digest_at = data_at + snapshot.data.len() as u64;
    let written = file.write_at(&head, 0).and_then(|()| file.write_at(&snapshot.data, data_at));
    let written = written.and_then(|()| file.write_at(hasher.finalize().as_bytes(), digest_at));
    written.and_then(|()| file.sync()).map_err(|e| LogError::io("write", &directory.file(name), e))
}

/// Result of loading: the newest readable snapshot.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) snapshot: Option<Snapshot>,
    /// Newest file, if it is damaged.
    pub(super) damaged: Option<Damaged>,
}

/// A damaged snapshot file that was once complete: a file gets its name only when it is complete.
pub(super) struct Damaged {
    pub(super) name: String,
    /// Index of the last entry in it, according to its name.
    pub(super) index: LogIndex,
    pub(super) error: LogError,
}

/// Reads the newest snapshot, or the one before it if the newest is damaged. The caller must check that the
/// log continues that one.
pub(super) fn load(directory: &dyn Directory, owner: &Owner) -> Result<Loaded, LogError> {
    let mut names = list(directory, ENDING)?;
    let Some(newest) = names.pop() else { return Ok(Loaded::default()) };
    let error = match read(directory, owner, &newest) {
        Ok(snapshot) => return Ok(Loaded { snapshot: Some(snapshot), damaged: None }),
        Err(error @ LogError::Corrupt { .. }) => error,
        Err(other) => return Err(other),
    };
    let Some(index) = index(&newest) else { return Err(error) };
    let damaged = Some(Damaged { name: newest, index, error });
    let snapshot = names.pop().map(|older| read(directory, owner, &older)).transpose()?;
    Ok(Loaded { snapshot, damaged })
}

fn read(directory: &dyn Directory, owner: &Owner, name: &str) -> Result<Snapshot, LogError> {
    let bytes = Bytes::from(files::read(directory, name)?.unwrap_or_default());
    let path = directory.file(name);
    let (stamp, snapshot) = decode(&bytes)
        .map_err(|reason| FORMAT.error(&path, reason, "the digest does not fit the content"))?;
    owner.check(&stamp, &path)?;
    Ok(snapshot)
}

/// Renames a damaged snapshot, and keeps it for inquiry until two others are intact.
pub(super) fn quarantine(directory: &dyn Directory, damaged: &Damaged) -> Result<(), LogError> {
    let aside = damaged.name.replace(ENDING, DAMAGED_ENDING);
    directory.rename(&damaged.name, &aside)?;
    directory.sync()
}

/// Returns the index of a snapshot, from the name of its file.
fn index(name: &str) -> Option<LogIndex> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(ENDING)?;
    u64::from_str_radix(digits, 16).ok().map(LogIndex)
}

/// Returns the indices of the kept snapshots, in ascending order.
pub(super) fn indices(directory: &dyn Directory) -> Result<Vec<LogIndex>, LogError> {
    Ok(list(directory, ENDING)?.iter().filter_map(|name| index(name)).collect())
}

/// Removes incomplete files that a crash left. Only at a start: later a partial file may be in progress.
pub(super) fn remove_partial(directory: &dyn Directory) -> Result<(), LogError> {
    list(directory, ".partial")?.iter().try_for_each(|name| directory.remove(name))
}

/// Removes all but the newest snapshots, and damaged ones once enough others are intact.
pub(super) fn remove_older(directory: &dyn Directory) -> Result<(), LogError> {
    keep_newest(directory, KEPT)?;
    if list(directory, ENDING)?.len() < KEPT {
        return Ok(());
    }
    list(directory, DAMAGED_ENDING)?.iter().try_for_each(|name| directory.remove(name))
}

/// Removes all but the `kept` newest snapshots, and returns the number of removed ones.
fn keep_newest(directory: &dyn Directory, kept: usize) -> Result<usize, LogError> {
    let found = list(directory, ENDING)?;
    let removed = found.len().saturating_sub(kept);
    found[..removed].iter().try_for_each(|name| directory.remove(name))?;
    Ok(removed)
}

/// Returns the files with this ending, oldest first: their names sort by index.
fn list(directory: &dyn Directory, ending: &str) -> Result<Vec<String>, LogError> {
    let mut names = directory.list()?;
    names.retain(|name| name.ends_with(ending));
    Ok(names)
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
    let voters = (0..count).map(|ordinal| u64_at(bytes, VOTERS_AT + 8 * ordinal).map(ReplicaId));
    let voters = voters.collect::<Option<_>>()?;
    let data_at = VOTERS_AT + 8 * count + 8;
    if u64_at(bytes, data_at - 8)? != (content.checked_sub(data_at)?) as u64 {
        return None;
    }
    let (index, term) = (LogIndex(u64_at(bytes, INDEX_AT)?), Term(u64_at(bytes, INDEX_AT + 8)?));
    let data = bytes.slice(data_at..content);
    Some((Stamp::decode(bytes, HEAD_BYTES)?, Snapshot { index, term, voters, data }))
}
