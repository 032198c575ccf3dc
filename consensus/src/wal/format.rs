//! File format of the log: the first bytes of every file name its kind and version; a stamp names its owner.
//!
//! Seven bytes name the kind and one the version. A file of another version is rejected with an error code of
//! its own, never read by guesswork. The version byte is located where builds before this rule had a digit,
//! so their files are recognized as well. The file's checksum, which is valid only with the right byte,
//! distinguishes a damaged version byte from another version.

use crate::command::u64_at;
use crate::config::GroupId;
use crate::error::LogError;
use protocol::ReplicaId;
use std::path::Path;

/// Size of kind and version, in bytes.
pub(super) const HEAD_BYTES: usize = 8;
/// Size of an owner's stamp, in bytes.
pub(super) const STAMP_BYTES: usize = 48;
/// Offset of the version byte.
const VERSION_AT: usize = 7;

/// A kind of file and the one version of it that this build reads and writes.
pub(super) struct Format {
    pub(super) kind: [u8; 7],
    pub(super) version: u8,
}

/// Reasons why a file is not readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The kind is another one, or the checksum is invalid.
    Damaged,
    /// The version is another one.
    Version(u8),
}

/// Owner of a log, recorded in every segment, in every snapshot and in the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Group of the replica.
    pub group: GroupId,
    pub id: ReplicaId,
    /// All voters of the group.
    pub voters: Vec<ReplicaId>,
}

/// Owner as recorded in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    /// The first bytes of a digest of the voters' ids.
    pub(super) voters: [u8; 8],
}

impl Format {
    /// Returns the first bytes of a file of this kind.
    pub(super) fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..VERSION_AT].copy_from_slice(&self.kind);
        head[VERSION_AT] = self.version;
        head
    }

    /// Checks a file by its first bytes; `holds` returns whether the checksum is valid with the bytes passed
    /// to it.
    pub(super) fn check(
        &self,
        bytes: &[u8],
        holds: impl Fn(&[u8; HEAD_BYTES]) -> bool,
    ) -> Result<(), Unreadable> {
        let found = bytes.get(..HEAD_BYTES).ok_or(Unreadable::Damaged)?;
        let whole = holds(&self.head());
        match found[VERSION_AT] {
            _ if found[..VERSION_AT] != self.kind => Err(Unreadable::Damaged),
            version if version == self.version && whole => Ok(()),
            version if version == self.version || whole => Err(Unreadable::Damaged),
            version => Err(Unreadable::Version(version)),
        }
    }

    /// Returns the error for an unreadable file; `reason` applies if it is damaged.
    pub(super) fn error(&self, path: &Path, unreadable: Unreadable, reason: &str) -> LogError {
        let path = path.to_path_buf();
        match unreadable {
            Unreadable::Damaged => LogError::Corrupt { path, offset: 0, reason: reason.to_owned() },
            Unreadable::Version(found) => {
                let (found, read) = (char::from(found), char::from(self.version));
                LogError::Version { path, found: found.escape_default().to_string(), read: read.to_string() }
            }
        }
    }
}

impl Stamp {
    pub(super) fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..32].copy_from_slice(&self.group.0);
        bytes[32..40].copy_from_slice(&self.replica.0.to_le_bytes());
        bytes[40..].copy_from_slice(&self.voters);
        bytes
    }

    /// Reads the stamp at the offset `at`.
    pub(super) fn decode(bytes: &[u8], at: usize) -> Option<Self> {
        let bytes = bytes.get(at..at.checked_add(STAMP_BYTES)?)?;
        let group = GroupId(bytes[..32].try_into().ok()?);
        Some(Self { group, replica: ReplicaId(u64_at(bytes, 32)?), voters: bytes[40..].try_into().ok()? })
    }
}

impl Owner {
    pub(super) fn stamp(&self) -> Stamp {
        let mut hasher = blake3::Hasher::new();
        for voter in &self.voters {
            hasher.update(&voter.0.to_le_bytes());
        }
        let mut voters = [0; 8];
        voters.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Stamp { group: self.group, replica: self.id, voters }
    }

    /// Rejects a file of another replica, of another group, or of a group with other voters.
    pub(super) fn check(&self, found: &Stamp, path: &Path) -> Result<(), LogError> {
        if *found == self.stamp() {
            return Ok(());
        }
        let others =
            if (found.group, found.replica) == (self.group, self.id) { " with other voters" } else { "" };
        let voters: Vec<String> = self.voters.iter().map(ToString::to_string).collect();
        Err(LogError::Foreign {
            path: path.to_path_buf(),
            found: format!("replica {} of group {}{others}", found.replica, found.group),
            wanted: format!("replica {} of group {} with voters {}", self.id, self.group, voters.join(", ")),
        })
    }
}
