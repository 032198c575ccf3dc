//! Fuzz target of model manifests: bytes are a manifest that can be indexed, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::manifest(bytes);
});
