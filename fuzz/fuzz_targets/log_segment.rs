//! A segment of the log whose records were spoiled is refused or read up to the damage, never beyond what was
//! written and never short of what was durable; and no payload panics its reader.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<Vec<u8>>, Vec<(u16, u8)>, u8)| {
    let (payloads, damage, durable) = input;
    let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    consensus::fuzzing::segment(&payloads, &damage, usize::from(durable).min(payloads.len()));
});
