//! Fuzz target of the shard service's requests: names, ranges and listings stay within their bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model_store::fuzzing::shard_request(bytes);
});
