//! Fuzz target of the safetensors reader: bytes are a safetensors file whose tensors cover it, or are
//! refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::safetensors_header(bytes);
});
