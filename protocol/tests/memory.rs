//! Memory that foreign bytes cost before they are refused: with the bytes themselves, at most four times
//! their number. An allocator that counts measures it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use ciborium::value::Value as Cbor;
use protocol::agent::{EnrolRequest, NodeResources, SlotReport, SlotState, SyncRequest, SyncResponse};
use protocol::agent_state::{ORDER_BOOK_BYTES_MAX, OrderBookRecord, SlotFence};
use protocol::canonical::{CanonicalError, MEMORY_BYTES_MIN, from_bytes, from_own_bytes, to_bytes};
use protocol::governance::{Bundle, Genesis, Quorum};
use protocol::json::JsonCost;
use protocol::limits::{API_BODY_BYTES_MAX, MODEL_MANIFEST_BYTES_MAX, SYNC_BYTES_MAX};
use protocol::manifest::Isolation;
use protocol::model::{ErasureCode, ModelFile, ModelManifest, ModelNonce, Segment, StoredKind};
use protocol::{CircleId, Digest, Fence, NodeId, PublicKey, ServiceName, SlotIndex};
use serde::{Serialize, de::DeserializeOwned};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// Allocator that counts the bytes that each thread has allocated, and their peak.
struct CountingAllocator;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|allocated| {
            allocated.set(allocated.get().wrapping_add(layout.size()));
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(allocated.get())));
        });
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get().wrapping_sub(layout.size())));
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Returns the most bytes that are allocated at once while `act` runs, and its result.
fn peak<R>(act: impl FnOnce() -> R) -> (usize, R) {
    let before = ALLOCATED.get();
    PEAK.set(before);
    let result = act();
    (PEAK.get() - before, result)
}

/// Returns the head of an item in its shortest form: the kind's three bits, and the argument.
fn head(kind: u8, argument: usize) -> Vec<u8> {
    match argument {
        0..24 => vec![kind | argument as u8],
        24..256 => vec![kind | 24, argument as u8],
        256..65_536 => [&[kind | 25][..], &(argument as u16).to_be_bytes()].concat(),
        _ => [&[kind | 26][..], &u32::try_from(argument).unwrap().to_be_bytes()].concat(),
    }
}

/// Returns an array of as many one-byte items as fit into `bytes`.
fn list(item: u8, bytes: usize) -> Vec<u8> {
    let mut list = head(0x80, bytes - 5);
    list.resize(list.len() + bytes - 5, item);
    list
}

/// Returns a text or byte string with content of this length.
fn string(kind: u8, content: u8, length: usize) -> Vec<u8> {
    let mut string = head(kind, length);
    string.resize(string.len() + length, content);
    string
}

/// Returns a map with sorted keys of four letters and values of one byte.
fn map(value: u8, bytes: usize) -> Vec<u8> {
    let count = (bytes - 5) / 6;
    let mut map = head(0xa0, count);
    for number in 0..count {
        map.push(0x64);
        map.extend([18, 12, 6, 0].map(|shift| 0x30 + (number >> shift & 63) as u8));
        map.push(value);
    }
    map
}

/// Returns an array of items that are each the same bytes.
fn lists(item: &[u8], bytes: usize) -> Vec<u8> {
    let count = (bytes - 5) / item.len();
    let mut lists = head(0x80, count);
    (0..count).for_each(|_| lists.extend(item));
    lists
}

/// Returns bytes of every hostile shape, about as many as given.
fn hostile(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("zeros", list(0x00, bytes)),
        ("nulls", list(0xf6, bytes)),
        ("empty texts", list(0x60, bytes)),
        ("empty byte strings", list(0x40, bytes)),
        ("empty lists", list(0x80, bytes)),
        ("empty maps", list(0xa0, bytes)),
        ("texts of one letter", lists(&[0x61, 0x61], bytes)),
        ("lists of one", lists(&[0x81, 0x00], bytes)),
        ("lists of lists", lists(&[0x82, 0x82, 0x60, 0x60, 0x80], bytes)),
        ("maps of one", lists(&[0xa1, 0x60, 0x60], bytes)),
        ("deep lists", vec![0x81; bytes]),
        ("deep maps", vec![0xa1; bytes]),
        ("a map", map(0x00, bytes)),
        ("a map of nulls", map(0xf6, bytes)),
        ("a map of lists", map(0x80, bytes)),
        ("a long text", string(0x60, b'a', bytes)),
        ("a text to escape", string(0x60, 0x01, bytes)),
        ("a long byte string", string(0x40, 0xff, bytes)),
        ("a long unknown key", [&[0xa1][..], &string(0x60, b'a', bytes), &[0x00]].concat()),
    ];
    for head in [0x5b, 0x7b, 0x9b, 0xbb] {
        for length in [u64::MAX, u64::MAX / 2, 1 << 40, bytes as u64 + 1] {
            let mut lie = vec![head];
            lie.extend(length.to_be_bytes());
            lie.resize(bytes, 0x00);
            all.push(("a declared length", lie));
        }
    }
    all
}

/// Checks that these bytes cost at most four times their number, and returns whether they are a value.
fn check<T: Serialize + DeserializeOwned>(name: &str, bytes: &[u8]) -> bool {
    let (peak, read) = peak(|| from_bytes::<T>(bytes, bytes.len()).is_ok());
    // Few bytes may cost a little more than three times their number beside themselves.
    let slack = if bytes.len() < SYNC_BYTES_MAX { MEMORY_BYTES_MIN } else { 0 };
    let allowed = (3 * bytes.len()).max(MEMORY_BYTES_MIN) + slack;
    let kind = std::any::type_name::<T>();
    assert!(peak <= allowed, "{name} as {kind}: {} bytes cost {peak} more", bytes.len());
    read
}

/// A value with many fields that take no byte each.
type Wide = Option<[[u64; 32]; 8]>;

#[test]
fn hostile_bytes_cost_at_most_four_times_their_size() {
    for (name, bytes) in hostile(SYNC_BYTES_MAX) {
        assert!(!check::<SyncRequest>(name, &bytes), "{name}");
        assert!(!check::<SyncResponse>(name, &bytes), "{name}");
        assert!(!check::<ServiceName>(name, &bytes), "{name}");
    }
    for (name, bytes) in hostile(SYNC_BYTES_MAX / 4) {
        assert!(!check::<EnrolRequest>(name, &bytes), "{name}");
        assert!(!check::<ModelManifest>(name, &bytes), "{name}");
        assert!(!check::<Quorum>(name, &bytes), "{name}");
    }
}

#[test]
fn no_type_makes_much_of_little() {
    for bytes in [1 << 10, 1 << 20] {
        for (name, bytes) in hostile(bytes) {
            check::<Vec<u64>>(name, &bytes);
            check::<Vec<String>>(name, &bytes);
            check::<Vec<Option<String>>>(name, &bytes);
            check::<Vec<Wide>>(name, &bytes);
            check::<Vec<Vec<Vec<String>>>>(name, &bytes);
            check::<Vec<BTreeMap<String, String>>>(name, &bytes);
            check::<BTreeSet<String>>(name, &bytes);
            check::<BTreeMap<String, u64>>(name, &bytes);
            check::<BTreeMap<String, Wide>>(name, &bytes);
            check::<BTreeMap<ServiceName, Vec<String>>>(name, &bytes);
            check::<std::collections::VecDeque<String>>(name, &bytes);
            check::<Digest>(name, &bytes);
            check::<protocol::ErrorCode>(name, &bytes);
        }
    }
}

/// The fields of real messages are as bounded as whole messages.
#[test]
fn hostile_fields_cost_no_more() {
    let lists = ["slots", "logs", "jobs", "rank_lines"];
    for field in lists.into_iter().chain(["not_enforced", "version", "resources", "isolation"]) {
        for (name, inside) in hostile(SYNC_BYTES_MAX / 8) {
            let bytes = with_field(&to_bytes(&request(1)), field, &inside);
            let read = check::<SyncRequest>(&format!("{field}: {name}"), &bytes);
            assert!(!read || matches!(field, "version" | "not_enforced"), "{field}: {name}");
        }
    }
}

/// The older decoder, which builds a tree of 32-byte values first, exceeds the bound: the measure works.
#[test]
fn a_tree_of_values_costs_more_than_four_times_its_bytes() {
    let bytes = list(0x00, 1 << 20);
    let (peak, read) = peak(|| ciborium::from_reader::<Cbor, _>(bytes.as_slice()).is_ok());
    assert!(read && peak > 16 * bytes.len(), "{peak} for {} bytes", bytes.len());
}

/// Replaces the value of a field of a message.
fn with_field(message: &[u8], field: &str, value: &[u8]) -> Vec<u8> {
    let Cbor::Map(entries) = ciborium::from_reader(message).unwrap() else { panic!("a message is a map") };
    let mut out = vec![0xa0 | u8::try_from(entries.len()).unwrap()];
    for (key, old) in entries {
        ciborium::into_writer(&key, &mut out).unwrap();
        match key.as_text() == Some(field) {
            true => out.extend(value),
            false => ciborium::into_writer(&old, &mut out).unwrap(),
        }
    }
    out
}

fn request(slots: u32) -> SyncRequest {
    let slot = |slot| SlotReport {
        service: "a".parse().unwrap(),
        slot: SlotIndex(slot),
        fence: Fence::new(1, 1),
        state: SlotState::Ready,
        detail: String::new(),
        segments_verified: 0,
        segments_total: 0,
        restarts: 0,
        metrics: None,
    };
    SyncRequest {
        boot: 1,
        version: "1".into(),
        resources: NodeResources::default(),
        isolation: Isolation::None,
        not_enforced: vec![],
        slots: (0..slots).map(slot).collect(),
        governance_length: 0,
        complaints: vec![],
        routes_version: None,
        wait_ms: 0,
        desired: Digest([0; 32]),
        logs: vec![],
        jobs: vec![],
        usage: vec![],
        rank_lines_term: 0,
        rank_lines: vec![],
    }
}

fn manifest(segments: u32) -> ModelManifest {
    let segment = |index: u32| Segment {
        offset: u64::from(index) << 20,
        length: 1 << 20,
        digest: Digest([1; 32]),
        shards: vec![Digest([2; 32])],
    };
    ModelManifest {
        version: 1,
        name: "m".parse().unwrap(),
        kind: StoredKind::Model,
        erasure: ErasureCode { data: 1, parity: 0 },
        segments_per_object: 60,
        nonce: ModelNonce([0; 16]),
        key_commitment: Digest([3; 32]),
        files: vec![ModelFile { path: "w".into(), offset: 0, length: u64::from(segments) << 20 }],
        segments: (0..segments).map(segment).collect(),
        order: (0..segments).collect(),
    }
}

/// Returns whether a value is read within the bound.
fn is_read<T: Serialize + DeserializeOwned + PartialEq>(value: &T, limit: usize) -> bool {
    let bytes = to_bytes(value);
    match from_bytes::<T>(&bytes, limit) {
        Ok(read) => read == *value,
        Err(error) => {
            assert_eq!(error, CanonicalError::Costly);
            false
        }
    }
}

/// The largest messages that the system sends have few bytes of memory for each byte.
#[test]
fn legal_messages_are_read_within_the_bound() {
    assert!(is_read(&request(1024), SYNC_BYTES_MAX));
    // A list that has just been doubled takes the most memory for its length.
    for segments in [14_000, 14_600, 58_260] {
        assert!(is_read(&manifest(segments), MODEL_MANIFEST_BYTES_MAX), "{segments} segments");
    }
}

/// Own bytes may have small items in any number: an order book of a node's lifetime.
#[test]
fn own_bytes_are_read_whatever_they_cost() {
    let fence =
        |slot| SlotFence { service: "a".parse().unwrap(), slot: SlotIndex(slot), fence: Fence::new(1, 1) };
    let record = OrderBookRecord {
        version: 1,
        circle: CircleId(Digest([0; 32])),
        node: NodeId(PublicKey([0; 32])),
        fences: (0..60_000).map(fence).collect(),
        held: vec![],
    };
    let bytes = to_bytes(&record);
    assert_eq!(from_own_bytes(&bytes, ORDER_BOOK_BYTES_MAX), Ok(record));
    let nulls = list(0xf6, 1 << 20);
    assert_eq!(from_bytes::<Vec<Wide>>(&nulls, nulls.len()), Err(CanonicalError::Costly));
    let nulls = list(0xf6, 1 << 12);
    assert!(from_own_bytes::<Vec<Wide>>(&nulls, nulls.len()).is_ok());
}

/// Returns JSON texts of every hostile shape, each of about this many bytes.
fn hostile_json(bytes: usize) -> Vec<(&'static str, String)> {
    let list = |item: &str| format!("[{}{item}]", format!("{item},").repeat(bytes / (item.len() + 1)));
    let entry = |number: usize| format!("\"{number:05x}\":\"a\"");
    let map: Vec<String> = (0..bytes / 12).map(entry).collect();
    vec![
        ("empty texts", list("\"\"")),
        ("texts of one letter", list("\"a\"")),
        ("numbers", list("0")),
        ("nulls", list("null")),
        ("empty lists", list("[]")),
        ("lists of one", list("[\"\"]")),
        ("empty maps", list("{}")),
        ("maps of one", list("{\"\":\"\"}")),
        ("a map", format!("{{{}}}", map.join(","))),
        ("deep lists", "[".repeat(bytes)),
        ("a long text", format!("\"{}\"", "a".repeat(bytes))),
        ("a text of escapes", format!("\"{}\"", "\\n".repeat(bytes / 2))),
        ("an unknown name", format!("{{\"{}\":0}}", "a".repeat(bytes))),
    ]
}

/// Checks that a JSON text costs at most four times its bytes, or is refused before it is read. Returns
/// whether it was refused.
fn check_json<T: DeserializeOwned>(name: &str, text: &str) -> bool {
    let mut cost = JsonCost::default();
    if cost.add(text.as_bytes()).and_then(|()| cost.check()).is_err() {
        return true;
    }
    let (peak, _) = peak(|| serde_json::from_str::<T>(text).is_ok());
    let kind = std::any::type_name::<T>();
    assert!(peak <= 3 * text.len() + MEMORY_BYTES_MIN, "{name} as {kind}: {} bytes cost {peak}", text.len());
    false
}

/// People's documents are JSON, and a reader of JSON has no budget: their values are counted first.
#[test]
fn json_costs_at_most_four_times_its_size_or_is_refused_before_it_is_read() {
    let mut refused = 0;
    for bytes in [1 << 10, 1 << 14, 1 << 16, API_BODY_BYTES_MAX] {
        for (name, text) in hostile_json(bytes) {
            let all = [
                check_json::<Vec<u64>>(name, &text),
                check_json::<Vec<String>>(name, &text),
                check_json::<Vec<Option<String>>>(name, &text),
                check_json::<Vec<Vec<String>>>(name, &text),
                check_json::<Vec<BTreeMap<String, String>>>(name, &text),
                check_json::<BTreeSet<String>>(name, &text),
                check_json::<BTreeMap<String, String>>(name, &text),
                check_json::<BTreeMap<ServiceName, Vec<String>>>(name, &text),
                check_json::<Quorum>(name, &text),
            ];
            refused += all.into_iter().filter(|refused| *refused).count();
        }
    }
    assert!(refused > 0, "the largest have too many values");
    // The positive control: without the count, a list of empty texts costs more than four times its bytes.
    let (_, text) = hostile_json(API_BODY_BYTES_MAX).swap_remove(0);
    let (peak, is_read) = peak(|| serde_json::from_str::<Vec<String>>(&text).is_ok());
    assert!(is_read && peak > 3 * text.len() + MEMORY_BYTES_MIN, "{peak} for {} bytes", text.len());
}

/// A refusal quotes what it refuses, but not all of it.
#[test]
fn the_text_of_a_refusal_is_short() {
    let unknown = [&[0xa1][..], &string(0x60, b'a', 1 << 16), &[0x00]].concat();
    for refused in [
        from_bytes::<Genesis>(&unknown, unknown.len()).map(drop),
        from_bytes::<Bundle>(&unknown, unknown.len()).map(drop),
        from_bytes::<ServiceName>(&string(0x60, 0x01, 1 << 16), 1 << 17).map(drop),
        from_bytes::<protocol::ErrorCode>(&string(0x60, b'a', 1 << 16), 1 << 17).map(drop),
    ] {
        let Err(CanonicalError::Invalid(reason)) = refused else { panic!("{refused:?}") };
        assert!(reason.len() < 600, "{} bytes", reason.len());
    }
}
