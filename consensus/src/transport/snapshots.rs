//! Chunked transfer of a snapshot to a follower: cut by the sender, reassembled by the receiver.
//!
//! Layout of a chunk: u32 length and bytes of the raft message without its data, u64 total, u64 offset, 32
//! bytes BLAKE3 of the whole data. The chunk's own bytes follow. Integers are little-endian.

use crate::command::{u32_at, u64_at};
use bytes::{BufMut, Bytes, BytesMut};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

/// Bytes of data in a chunk: far below any body limit, large enough for line rate on one connection.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024;
/// Longest raft message without its data, in bytes: a handful of numbers and seven voters.
const HEAD_BYTES_MAX: usize = 1024;

/// Reasons to reject a chunk; the sender starts over when raft requests it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("the chunk is malformed")]
    Malformed,
    #[error("the snapshot is larger than this replica accepts")]
    TooLarge,
    #[error("the chunk does not continue what came before")]
    OutOfOrder,
    #[error("the snapshot does not have the digest it announced")]
    Digest,
}

/// Cuts the snapshot in `message` into request bodies, in order; there is always at least one.
pub(super) fn cut(mut message: Message) -> impl Iterator<Item = Bytes> {
    let data = std::mem::take(&mut message.mut_snapshot().data);
    let head = message.write_to_bytes().expect("writing to memory cannot fail");
    let digest = blake3::hash(&data);
    let chunks = data.len().div_ceil(CHUNK_BYTES).max(1);
    (0..chunks).map(move |ordinal| {
        let offset = ordinal * CHUNK_BYTES;
        let part = &data[offset..data.len().min(offset + CHUNK_BYTES)];
        let mut body = BytesMut::with_capacity(4 + head.len() + 48 + part.len());
        body.put_u32_le(head.len() as u32);
        body.put_slice(&head);
        body.put_u64_le(data.len() as u64);
        body.put_u64_le(offset as u64);
        body.put_slice(digest.as_bytes());
        body.put_slice(part);
        body.freeze()
    })
}

/// Partially received snapshot of one peer.
#[derive(Debug)]
pub(crate) struct Assembly {
    bytes_max: u64,
    digest: [u8; 32],
    total: u64,
    data: BytesMut,
}

impl Assembly {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, digest: [0; 32], total: 0, data: BytesMut::new() }
    }

    /// Adds a chunk; returns the whole message with the last one.
    pub(crate) fn push(&mut self, body: &[u8]) -> Result<Option<Message>, ChunkError> {
        let (head, rest) = split_head(body).ok_or(ChunkError::Malformed)?;
        let (total, offset) =
            (u64_at(rest, 0).ok_or(ChunkError::Malformed)?, u64_at(rest, 8).ok_or(ChunkError::Malformed)?);
        let digest: [u8; 32] =
            rest.get(16..48).and_then(|part| part.try_into().ok()).ok_or(ChunkError::Malformed)?;
        let part = &rest[48..];
        if total > self.bytes_max {
            return Err(ChunkError::TooLarge);
        }
        if offset == 0 {
            *self = Self { bytes_max: self.bytes_max, digest, total, data: BytesMut::new() };
        }
        let continues = (digest, total, offset) == (self.digest, self.total, self.data.len() as u64);
        if !continues || offset + part.len() as u64 > total || part.len() > CHUNK_BYTES {
            return Err(ChunkError::OutOfOrder);
        }
        self.data.extend_from_slice(part);
        if (self.data.len() as u64) < total {
            return Ok(None);
        }
        let data = std::mem::take(&mut self.data).freeze();
        if blake3::hash(&data).as_bytes() != &digest {
            return Err(ChunkError::Digest);
        }
        let mut message = Message::parse_from_bytes(head).map_err(|_| ChunkError::Malformed)?;
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return Err(ChunkError::Malformed);
        }
        message.mut_snapshot().data = data;
        Ok(Some(message))
    }
}

fn split_head(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32_at(body, 0)? as usize;
    if length > HEAD_BYTES_MAX {
        return None;
    }
    Some((body.get(4..4 + length)?, body.get(4 + length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(size: usize) -> Message {
        let mut message = Message { from: 1, to: 2, term: 9, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.mut_snapshot().data = (0..size).map(|at| (at % 251) as u8).collect();
        message.mut_snapshot().mut_metadata().index = 7;
        message
    }

    fn assemble(assembly: &mut Assembly, chunks: &[Bytes]) -> Result<Option<Message>, ChunkError> {
        let mut last = Ok(None);
        for chunk in chunks {
            last = assembly.push(chunk);
            last.clone()?;
        }
        last
    }

    #[test]
    fn snapshots_of_any_size_arrive_whole() {
        for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let chunks: Vec<Bytes> = cut(message(size)).collect();
            let mut assembly = Assembly::new(1 << 30);
            assert_eq!(assemble(&mut assembly, &chunks), Ok(Some(message(size))), "{size}");
        }
    }

    #[test]
    fn a_broken_sequence_of_chunks_is_rejected_and_a_new_one_accepted() {
        let chunks: Vec<Bytes> = cut(message(3 * CHUNK_BYTES)).collect();
        let mut assembly = Assembly::new(1 << 30);
        let skipping = [chunks[0].clone(), chunks[2].clone()];
        assert_eq!(assemble(&mut assembly, &skipping), Err(ChunkError::OutOfOrder));
        let repeating = [chunks[0].clone(), chunks[1].clone(), chunks[1].clone()];
        assert_eq!(assemble(&mut assembly, &repeating), Err(ChunkError::OutOfOrder));
        assert_eq!(assemble(&mut assembly, &chunks), Ok(Some(message(3 * CHUNK_BYTES))));
    }

    #[test]
    fn size_and_content_are_checked() {
        let chunks: Vec<Bytes> = cut(message(100)).collect();
        assert_eq!(assemble(&mut Assembly::new(99), &chunks), Err(ChunkError::TooLarge));
        let mut altered = chunks[0].to_vec();
        *altered.last_mut().expect("not empty") ^= 1;
        assert_eq!(Assembly::new(1000).push(&altered), Err(ChunkError::Digest));
    }

    proptest! {
        #[test]
        fn arbitrary_chunks_never_panic(body: Vec<u8>) {
            let _ = Assembly::new(1000).push(&body);
        }
    }
}
