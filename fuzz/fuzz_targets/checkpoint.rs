//! Fuzz target of checkpoint configurations: any bytes give a shape or an error that names its reason. The
//! list of modules follows the first byte 0, and the configuration of its pooling the second.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::checkpoint::{CheckpointFiles, servable};

fuzz_target!(|bytes: &[u8]| {
    let names = ["config.json", "modules.json", "1_Pooling/config.json"];
    let parts = bytes.splitn(names.len(), |byte| *byte == 0);
    let files: CheckpointFiles =
        names.into_iter().zip(parts).map(|(name, part)| (name.to_owned(), part.to_vec())).collect();
    match servable(&files) {
        Ok(served) => assert!(served.context_tokens_max > 0, "a position is served"),
        Err(error) => assert!(!error.to_string().is_empty(), "{}", error.code()),
    }
});
