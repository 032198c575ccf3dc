//! Fuzz target of the records that an agent reads from its own disk, from the init of a sandbox and from
//! control: each is canonical or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::agent::{ClockReading, Desired, EnrolResponse, NotLeader, SyncResponse};
use protocol::agent_state::{AdminRequest, HandOrder, JobBookRecord, OrderBookRecord, Verdict};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::halt::{HaltBookRecord, HaltsAnswer, HaltsRequest, SignedHalt};
use protocol::sandbox::{SandboxExit, SandboxGo, SandboxRecord, SandboxReport, SandboxSpec};
use sandbox::parse_start_ticks;

const LIMIT: usize = 1 << 20;

macro_rules! check {
    ($bytes:expr, $($kind:ty),*) => {
        $(if let Ok(value) = from_bytes::<$kind>($bytes, LIMIT) {
            assert_eq!(to_bytes(&value), $bytes);
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    check!(bytes, SandboxRecord, SandboxExit, SandboxReport, SandboxSpec, SandboxGo);
    check!(
        bytes,
        SyncResponse,
        EnrolResponse,
        NotLeader,
        Desired,
        OrderBookRecord,
        JobBookRecord,
        HandOrder,
        Verdict
    );
    check!(bytes, AdminRequest, HaltBookRecord, HaltsAnswer, HaltsRequest, SignedHalt);
    check!(bytes, ClockReading);
    if let Ok(stat) = std::str::from_utf8(bytes) {
        let _ = parse_start_ticks(stat);
    }
});
