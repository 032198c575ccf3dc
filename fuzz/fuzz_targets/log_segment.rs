//! Fuzz target of the log's segments: a segment with corrupted records is refused or read up to the damage.
//!
//! It is never read beyond the written records and never short of the durable ones. No payload panics its
//! reader.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<Vec<u8>>, Vec<(u16, u8)>, u8)| {
    let (payloads, damage, durable) = input;
    let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    consensus::fuzzing::segment(&payloads, &damage, usize::from(durable).min(payloads.len()));
});
