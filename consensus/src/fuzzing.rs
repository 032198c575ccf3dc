//! Entry points for fuzzers to the decoders of untrusted or damaged bytes.
//!
//! The fuzz targets are in another crate. No other build has these functions.

use crate::command::LogCommand;
use crate::transport::{Assembly, FrameReader};
use crate::{snapshot, wal};
use bytes::Bytes;

/// Writes the payloads as records, damages some bytes, and reads the segment back. The first `durable`
/// records must not be lost silently.
pub fn segment(payloads: &[&[u8]], damage: &[(u16, u8)], durable: usize) {
    wal::recovery::fuzz(payloads, damage, durable);
}

/// Reads a snapshot file with a valid digest, and unpacks its content.
pub fn snapshot_file(content: &[u8]) {
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(blake3::hash(content).as_bytes());
    if let Ok((_, found)) = wal::snapshots::decode(&Bytes::from(bytes))
        && let Some((sessions, _)) = snapshot::unpack(&found.data)
    {
        assert_eq!(sessions.check_invariants(), Ok(()));
    }
}

/// Reads a stream of raft messages in chunks, as a peer may send it.
pub fn messages(stream: &[u8], chunk: usize) {
    let mut reader = FrameReader::new(64 * 1024);
    for part in stream.chunks(chunk.max(1)) {
        if reader.push(part).is_err() {
            return;
        }
    }
}

/// Reads snapshot chunks as a peer may send them.
pub fn snapshot_chunks(bodies: &[&[u8]]) {
    let mut assembly = Assembly::new(64 * 1024);
    for body in bodies {
        let _ = assembly.push(body);
    }
}

/// Decodes a forwarded entry.
pub fn command(entry: &[u8]) {
    let entry = Bytes::copy_from_slice(entry);
    if let Some(command) = LogCommand::decode(&entry) {
        assert_eq!(command.encode(), entry, "a command has one encoding");
    }
}
