//! Fuzz target of the unpacker: bytes are a packed artifact whose tree stays in its directory, or are
//! refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::packed_artifact(bytes);
});
