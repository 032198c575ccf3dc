//! Fuzz target of a replica's endpoints for other replicas: bytes are a message, an entry or a chunk, or are
//! refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<Vec<u8>>, u16)| {
    let (kind, parts, chunk) = input;
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    match kind % 3 {
        0 => consensus::fuzzing::messages(&parts.concat(), usize::from(chunk)),
        1 => consensus::fuzzing::snapshot_chunks(&parts),
        _ => consensus::fuzzing::command(&parts.concat()),
    }
});
