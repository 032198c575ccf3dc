//! Fuzz target of the manifest parser: any text gives a manifest or an error that names one of its lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::manifest::Manifest;

fuzz_target!(|text: &str| {
    if let Err(error) = Manifest::from_toml(text) {
        assert!(error.line >= 1 && error.line <= text.lines().count() + 1, "{error}");
    }
});
