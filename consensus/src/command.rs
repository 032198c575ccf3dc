//! Content of a log entry: a plain command, a command of a session, or the opening of a session.
//!
//! The command itself is opaque; only the state machine interprets it. First byte: 0 a plain command, 1 a
//! command of a session, 2 opens a session. Integers are little-endian. The log is hashed as stored, so this
//! encoding needs no second, canonical form.

use crate::sessions::SessionId;
use bytes::{Bytes, BytesMut};

const PLAIN: u8 = 0;
const IN_SESSION: u8 = 1;
const OPEN_SESSION: u8 = 2;

/// Largest number of bytes that the encoding adds to a command.
pub(crate) const OVERHEAD_BYTES_MAX: usize = 17;

/// Content of one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogCommand {
    /// Applied without deduplication.
    Plain(Bytes),
    /// Applied once, however often it is retried.
    InSession {
        session: SessionId,
        /// Rises with each new command of the session.
        sequence: u64,
        command: Bytes,
    },
    /// Opens a session; its id is this entry's index.
    OpenSession,
}

impl LogCommand {
    /// Encodes the content of an entry.
    pub(crate) fn encode(&self) -> Bytes {
        let encoded = self.to_bytes();
        debug_assert_eq!(Self::decode(&encoded).as_ref(), Some(self), "a command does not survive encoding");
        encoded
    }

    fn to_bytes(&self) -> Bytes {
        match self {
            Self::Plain(command) => {
                let mut bytes = BytesMut::with_capacity(1 + command.len());
                bytes.extend_from_slice(&[PLAIN]);
                bytes.extend_from_slice(command);
                bytes.freeze()
            }
            Self::InSession { session, sequence, command } => {
                let mut bytes = BytesMut::with_capacity(OVERHEAD_BYTES_MAX + command.len());
                bytes.extend_from_slice(&[IN_SESSION]);
                bytes.extend_from_slice(&session.0.to_le_bytes());
                bytes.extend_from_slice(&sequence.to_le_bytes());
                bytes.extend_from_slice(command);
                bytes.freeze()
            }
            Self::OpenSession => Bytes::from_static(&[OPEN_SESSION]),
        }
    }

    /// Decodes an entry or a forwarded request; `None` if it is malformed.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        match (*bytes.first()?, bytes.len()) {
            (PLAIN, _) => Some(Self::Plain(bytes.slice(1..))),
            (IN_SESSION, OVERHEAD_BYTES_MAX..) => Some(Self::InSession {
                session: SessionId(u64_at(bytes, 1)?),
                sequence: u64_at(bytes, 9)?,
                command: bytes.slice(OVERHEAD_BYTES_MAX..),
            }),
            (OPEN_SESSION, 1) => Some(Self::OpenSession),
            _ => None,
        }
    }
}

/// Returns the little-endian integer at `offset`, or `None` if it is not complete.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let part = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(part.try_into().ok()?))
}

/// Returns the little-endian integer at `offset`, or `None` if it is not complete.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let part = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(part.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_commands_are_rejected() {
        for bad in [&b""[..], &[3], &[2, 0], &[1; 16], &[255; 40]] {
            assert_eq!(LogCommand::decode(&Bytes::copy_from_slice(bad)), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_command_survives_encoding(session: u64, sequence: u64, body: Vec<u8>) {
            let command = Bytes::from(body);
            for original in [
                LogCommand::Plain(command.clone()),
                LogCommand::InSession { session: SessionId(session), sequence, command },
                LogCommand::OpenSession,
            ] {
                prop_assert_eq!(LogCommand::decode(&original.encode()), Some(original));
            }
        }
    }
}
