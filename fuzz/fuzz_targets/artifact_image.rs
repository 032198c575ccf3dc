//! Fuzz target of the reader of container images: bytes are a tar archive whose entries cover it in order, or
//! are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::image_archive(bytes);
});
