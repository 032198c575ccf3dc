//! Fuzz target of messages over a unix socket: bytes are a frame of the expected message or refused, and so
//! is a preface.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::descriptors::blocking;
use protocol::worker::{FromWorker, InitRequest, ToWorker};
use std::io::Write;
use std::os::unix::net::UnixStream;

fuzz_target!(|bytes: &[u8]| {
    // Less than the capacity of a socket, so that writing never blocks on reading.
    let bytes = &bytes[..bytes.len().min(64 * 1024)];
    let filled = || {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.write_all(bytes).expect("room in the socket");
        theirs
    };
    if let Ok(Some((_, descriptors))) = blocking::receive::<ToWorker>(&filled()) {
        assert!(descriptors.is_empty(), "descriptors out of nothing");
    }
    let _ = blocking::receive::<FromWorker>(&filled());
    let stream = filled();
    while let Ok(Some(_)) = blocking::receive::<InitRequest>(&stream) {}
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    if let Ok(preface) = runtime.block_on(overlay::read_preface(&mut &bytes[..])) {
        assert!(preface.len() <= overlay::PREFACE_BYTES_MAX && bytes[4..].starts_with(&preface));
    }
});
