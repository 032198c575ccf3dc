//! Snapshot of the replicated state: the effect of the log up to an index, as bytes. Files belong to the
//! store.

use crate::ids::{LogIndex, Term};
use crate::sessions::Sessions;
use bytes::Bytes;
use protocol::ReplicaId;

/// State after the entry at `index`, which replaces all entries up to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Index of the last entry it contains.
    pub index: LogIndex,
    /// Term of that entry.
    pub term: Term,
    /// The group's voters at that entry.
    pub voters: Vec<ReplicaId>,
    /// The session table followed by the state machine's own bytes.
    pub data: Bytes,
}

/// Joins the session table and the machine's bytes.
pub(crate) fn pack(sessions: &Sessions, machine: &[u8]) -> Bytes {
    let mut data = Vec::with_capacity(machine.len() + 64);
    sessions.encode(&mut data);
    data.extend_from_slice(machine);
    Bytes::from(data)
}

/// Splits the output of [`pack`]; `None` if it is malformed.
pub(crate) fn unpack(data: &Bytes) -> Option<(Sessions, Bytes)> {
    let (sessions, length) = Sessions::decode(data)?;
    Some((sessions, data.slice(length..)))
}
