//! Fuzz target of the snapshot reader: no snapshot file with a right digest makes it panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| consensus::fuzzing::snapshot_file(content));
