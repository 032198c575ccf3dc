//! Framing of raft messages on a byte stream: u32 little-endian length, then the message as protobuf.
//!
//! Frames are read only from an authenticated peer, and only after their length has been checked.

use bytes::{Buf, Bytes, BytesMut};
use protobuf::Message as _;
use raft::eraftpb::Message;

/// Reasons why a stream of frames cannot be read any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageFrameError {
    #[error("a frame of {actual} bytes exceeds the limit of {limit}")]
    TooLong { actual: usize, limit: usize },
    #[error("a frame is not a raft message")]
    Invalid,
}

/// Appends one message as a frame.
pub(crate) fn encode_message(message: &Message, buffer: &mut BytesMut) {
    let length = message.compute_size();
    buffer.reserve(4 + length as usize);
    buffer.extend_from_slice(&length.to_le_bytes());
    let mut bytes = Vec::with_capacity(length as usize);
    message.write_to_vec(&mut bytes).expect("writing to memory cannot fail");
    assert_eq!(bytes.len(), length as usize, "protobuf computed another size than it wrote");
    buffer.extend_from_slice(&bytes);
}

/// Splits a byte stream into messages.
#[derive(Debug)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    limit: usize,
}

impl FrameReader {
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Adds a chunk of the stream, and returns every message that is complete now.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Message>, MessageFrameError> {
        self.buffer.extend_from_slice(chunk);
        let mut messages = Vec::new();
        while let Some(head) = self.buffer.first_chunk::<4>() {
            let actual = u32::from_le_bytes(*head) as usize;
            if actual > self.limit {
                return Err(MessageFrameError::TooLong { actual, limit: self.limit });
            }
            if self.buffer.len() < 4 + actual {
                break;
            }
            self.buffer.advance(4);
            let frame = self.buffer.split_to(actual).freeze();
            messages.push(decode(&frame)?);
        }
        Ok(messages)
    }
}

fn decode(frame: &Bytes) -> Result<Message, MessageFrameError> {
    let mut message = Message::default();
    // Decoding from `Bytes` lets entries share the frame's memory instead of copying it.
    let mut input = protobuf::CodedInputStream::from_carllerche_bytes(frame);
    message.merge_from(&mut input).map_err(|_| MessageFrameError::Invalid)?;
    input.eof().map_err(|_| MessageFrameError::Invalid)?.then_some(message).ok_or(MessageFrameError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    fn message(index: u64, data: &[u8]) -> Message {
        let mut message = Message { from: 1, to: 2, index, ..Message::default() };
        message.mut_entries().push(Entry { data: Bytes::copy_from_slice(data), ..Entry::default() });
        message
    }

    proptest! {
        #[test]
        fn messages_survive_any_chunking_of_the_stream(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            cut in 1usize..30,
        ) {
            let sent: Vec<Message> = bodies.iter().map(|body| message(7, body)).collect();
            let mut stream = BytesMut::new();
            sent.iter().for_each(|message| encode_message(message, &mut stream));
            let mut reader = FrameReader::new(1000);
            let mut found = Vec::new();
            for chunk in stream.chunks(cut) {
                found.extend(reader.push(chunk).expect("whole frames"));
            }
            prop_assert_eq!(found, sent);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = FrameReader::new(64).push(&bytes);
        }
    }

    #[test]
    fn a_frame_length_beyond_the_limit_is_rejected_before_its_bytes() {
        let mut reader = FrameReader::new(10);
        let found = reader.push(&11u32.to_le_bytes());
        assert_eq!(found, Err(MessageFrameError::TooLong { actual: 11, limit: 10 }));
    }
}
