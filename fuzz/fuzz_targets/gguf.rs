//! Fuzz target of the GGUF reader: bytes are a GGUF file whose tensors cover it, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::gguf_header(bytes);
});
