//! Framing of a stream that can continue on another worker, between a gateway and its worker alone.
//!
//! The gateway asks for it with the header [`RESUMABLE`] on a connection that its TLS key secures; the answer
//! repeats the header. The request's body begins with the tokens that were handed out, 4 bytes each. The
//! answer is a sequence of frames: the tokens drawn since the previous frame, and the bytes for the client
//! that they complete. The request and the first frames of a stream are all that a worker needs to send the
//! next one: prompt, seed, tokens. The text that a worker holds back follows from the tokens.
//!
//! No client takes part: a gateway writes the head of each request to a worker itself, and removes the
//! frames.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use protocol::Millis;

/// Header of a request for a stream of frames, and of its answer.
pub(crate) const RESUMABLE: HeaderName = HeaderName::from_static("quorate-resumable");
/// Maximum tokens of a stream that is kept: beyond the context of every model served.
pub(crate) const TOKENS_MAX: usize = 1 << 20;
/// Maximum bytes of tokens before a request's body.
pub(crate) const PREFIX_BYTES_MAX: usize = TOKENS_MAX * TOKEN_BYTES;
/// Maximum bytes of a frame. A frame has the text of one token, with the log-probabilities of all that it
/// completes: some kilobytes each.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;

/// Bytes of a token.
pub(crate) const TOKEN_BYTES: usize = size_of::<u32>();
/// Bytes of a frame's head: number of tokens, and number of bytes for the client, of which the highest bit
/// marks the last frame.
const HEAD_BYTES: usize = 8;
const LAST: u32 = 1 << 31;

/// The gateway's decisions about a stream, so that all its workers agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamOrigin {
    /// Number in the answer's id, and the seed where the client gave none.
    pub(crate) number: u64,
    /// Time of the request: in the answer, and in the prompt of a template that shows it.
    pub(crate) at: Millis,
}

impl StreamOrigin {
    /// Writes the value of [`RESUMABLE`] for a request that begins with this many tokens.
    pub(crate) fn header(self, tokens: usize) -> HeaderValue {
        let Self { number, at } = self;
        let text = format!("{number} {} {tokens}", at.0);
        HeaderValue::try_from(text).expect("digits and spaces are valid in a header")
    }

    /// Reads the text of [`Self::header`]: the origin, and the number of tokens.
    pub(crate) fn parse(value: &HeaderValue) -> Option<(Self, usize)> {
        let mut numbers = value.to_str().ok()?.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (number, at, tokens) = (next()?, next()?, next()?);
        let tokens = usize::try_from(tokens).ok().filter(|tokens| *tokens <= TOKENS_MAX)?;
        numbers.next().is_none().then_some((Self { number, at: Millis(at) }, tokens))
    }
}

/// Writes tokens as they precede a request's body.
pub(crate) fn write_tokens(tokens: &[u32]) -> Bytes {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Reads tokens; incomplete bytes at the end are none.
pub(crate) fn read_tokens(bytes: &[u8]) -> Vec<u32> {
    let (tokens, rest) = bytes.as_chunks::<TOKEN_BYTES>();
    debug_assert!(rest.is_empty(), "the caller cuts whole tokens");
    tokens.iter().map(|token| u32::from_le_bytes(*token)).collect()
}

/// Part of a stream: tokens, and the bytes for the client that they complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamFrame {
    /// Tokens drawn since the previous frame.
    pub(crate) tokens: Vec<u32>,
    /// Bytes for the client.
    pub(crate) data: Bytes,
    /// Whether the stream is complete with it.
    pub(crate) is_last: bool,
}

impl StreamFrame {
    /// Writes the frame.
    pub(crate) fn write(&self) -> Bytes {
        let length = |count: usize| u32::try_from(count).unwrap_or(LAST - 1).min(LAST - 1);
        let last = if self.is_last { LAST } else { 0 };
        let mut bytes =
            BytesMut::with_capacity(HEAD_BYTES + self.tokens.len() * TOKEN_BYTES + self.data.len());
        bytes.extend_from_slice(&length(self.tokens.len()).to_le_bytes());
        bytes.extend_from_slice(&(length(self.data.len()) | last).to_le_bytes());
        bytes.extend_from_slice(&write_tokens(&self.tokens));
        bytes.extend_from_slice(&self.data);
        bytes.freeze()
    }
}

/// A worker's answer is no sequence of frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamFrameError {
    /// A frame is larger than any that a worker sends.
    #[error("a frame of {0} bytes, at most {most}", most = FRAME_BYTES_MAX)]
    TooLarge(usize),
    /// A frame neither carries anything nor ends the stream.
    #[error("a frame without content")]
    Empty,
    /// Bytes follow the last frame.
    #[error("bytes after the last frame")]
    Beyond,
}

/// Reads frames from pieces of any size. It holds one frame and one piece at most.
#[derive(Debug, Default)]
pub(crate) struct StreamReader {
    buffer: BytesMut,
    has_ended: bool,
}

impl StreamReader {
    /// Adds a piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// Returns the next whole frame; `None` until more pieces are there.
    ///
    /// # Errors
    /// [`StreamFrameError`].
    pub(crate) fn next_frame(&mut self) -> Result<Option<StreamFrame>, StreamFrameError> {
        if self.has_ended && !self.buffer.is_empty() {
            return Err(StreamFrameError::Beyond);
        }
        let Some((head, _)) = self.buffer.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *head;
        let (tokens, data) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let (is_last, data) = (data & LAST != 0, (data & !LAST) as usize);
        let token_bytes = (tokens as usize).saturating_mul(TOKEN_BYTES);
        let bytes = token_bytes.saturating_add(data);
        if bytes > FRAME_BYTES_MAX {
            return Err(StreamFrameError::TooLarge(bytes));
        }
        if bytes == 0 && !is_last {
            return Err(StreamFrameError::Empty);
        }
        if self.buffer.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(HEAD_BYTES + bytes).freeze().split_off(HEAD_BYTES);
        let tokens = read_tokens(&frame.split_to(token_bytes));
        self.has_ended = is_last;
        Ok(Some(StreamFrame { tokens, data: frame, is_last }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(tokens: &[u32], data: &'static str, is_last: bool) -> StreamFrame {
        StreamFrame { tokens: tokens.to_vec(), data: Bytes::from_static(data.as_bytes()), is_last }
    }

    fn read(pieces: &[&[u8]]) -> Result<Vec<StreamFrame>, StreamFrameError> {
        let (mut reader, mut found) = (StreamReader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece);
            while let Some(frame) = reader.next_frame()? {
                found.push(frame);
            }
        }
        Ok(found)
    }

    #[test]
    fn frames_are_read_from_pieces_cut_anywhere() {
        let frames =
            [frame(&[1, u32::MAX], "data: a\n\n", false), frame(&[], "b", false), frame(&[7], "", true)];
        let bytes = frames.iter().flat_map(|frame| frame.write().to_vec()).collect::<Vec<u8>>();
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(read(&[first, second]).expect("frames"), frames, "cut at {cut}");
            let whole = read(&[first]).expect("frames").len();
            assert!(whole == 3 || cut < bytes.len(), "no frame is read before its last byte");
        }
    }

    /// Attack: a worker sends what would fill the gateway's memory, or nothing without end.
    #[test]
    fn frames_beyond_the_limits_are_refused() {
        let head = |tokens: u32, data: u32| [tokens.to_le_bytes(), data.to_le_bytes()].concat();
        let most = FRAME_BYTES_MAX as u32;
        assert_eq!(read(&[&head(0, most)]), Ok(Vec::new()), "the control: its bytes may come");
        assert_eq!(read(&[&head(0, most + 1)]), Err(StreamFrameError::TooLarge(FRAME_BYTES_MAX + 1)));
        assert_eq!(read(&[&head(most / 4, 1)]), Err(StreamFrameError::TooLarge(FRAME_BYTES_MAX + 1)));
        assert!(matches!(read(&[&head(u32::MAX, u32::MAX)]), Err(StreamFrameError::TooLarge(_))));
        assert_eq!(read(&[&head(0, 0)]), Err(StreamFrameError::Empty));
        assert_eq!(read(&[&head(0, LAST), b"x"]), Err(StreamFrameError::Beyond));
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let origin = StreamOrigin { number: u64::MAX, at: Millis(7) };
        assert_eq!(StreamOrigin::parse(&origin.header(12)), Some((origin, 12)));
        for wrong in ["", "1", "1 2", "1 2 3 4", "1 2 -3", "1 2 1048577", "a 2 3", "1  2 3"] {
            assert_eq!(StreamOrigin::parse(&HeaderValue::from_static(wrong)), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frames) = read(&[&bytes]) {
                let written = frames.iter().flat_map(|frame| frame.write().to_vec()).collect::<Vec<u8>>();
                prop_assert!(bytes.starts_with(&written));
            }
        }

        #[test]
        fn tokens_are_read_as_they_were_written(tokens in prop::collection::vec(any::<u32>(), 0..64)) {
            prop_assert_eq!(read_tokens(&write_tokens(&tokens)), tokens);
        }
    }
}
