//! No bytes in the log make the state machine panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scheduler::{Cluster, apply_bytes};

fuzz_target!(|bytes: &[u8]| {
    let mut cluster = Cluster::default();
    let _ = apply_bytes(&mut cluster, 1, bytes);
    assert!(Cluster::from_snapshot(&cluster.to_snapshot()).is_ok());
});
