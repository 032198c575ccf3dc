//! Fuzz target of frames between an agent and the init of a sandbox: they never panic their readers, and are
//! found regardless of the boundaries of reads.
//!
//! Frames of a worker pass through the overlay's reader, which has its own target.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::worker::{FromWorker, InitReply, InitRequest};
use sandbox::FrameBuffer;

/// Maximum length of a frame that an init reads, in bytes.
const LIMIT: usize = 256;

/// Returns all complete frames, and whether the stream was refused, when it is read in pieces of this length.
fn frames(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut found) = (FrameBuffer::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.push(piece);
        loop {
            match buffer.next(LIMIT) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = frames(bytes, bytes.len().max(1));
    assert_eq!(whole, frames(bytes, 3));
    for frame in &whole.0 {
        if let Ok(request) = from_bytes::<InitRequest>(frame, LIMIT) {
            assert_eq!(to_bytes(&request), *frame);
        }
        let _ = from_bytes::<InitReply>(frame, LIMIT);
        let _ = from_bytes::<FromWorker>(frame, LIMIT);
    }
});
