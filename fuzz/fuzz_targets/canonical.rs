//! Fuzz target of the canonical encoding: accepted bytes are the encoding of their own value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::agent::{SyncRequest, SyncResponse};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::gang::GangHello;
use protocol::governance::Bundle;
use protocol::model::ModelManifest;
use protocol::order::SignedTicket;
use protocol::worker::WorkerManifest;

const LIMIT: usize = 1 << 20;

macro_rules! check {
    ($bytes:expr, $($kind:ty),*) => {
        $(if let Ok(value) = from_bytes::<$kind>($bytes, LIMIT) {
            assert_eq!(to_bytes(&value), $bytes);
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    check!(bytes, Bundle, SyncRequest, SyncResponse, ModelManifest, SignedTicket, WorkerManifest, GangHello);
});
