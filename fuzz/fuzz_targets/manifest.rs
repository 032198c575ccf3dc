//! Any text ends in a manifest or in an error that names a line of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::manifest::Manifest;

fuzz_target!(|text: &str| {
    if let Err(error) = Manifest::from_toml(text) {
        assert!(error.line >= 1 && error.line <= text.lines().count() + 1, "{error}");
    }
});
