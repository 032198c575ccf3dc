//! No snapshot file with a right digest panics its reader.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| consensus::fuzzing::snapshot_file(content));
