//! Fuzz target of checkpoint configurations: any bytes give a shape or an error that names its reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::checkpoint::servable;

fuzz_target!(|bytes: &[u8]| {
    match servable(bytes) {
        Ok(served) => assert!(served.context_tokens_max > 0, "a position is served"),
        Err(error) => assert!(!error.to_string().is_empty(), "{}", error.code()),
    }
});
