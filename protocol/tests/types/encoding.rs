//! Laws of the encodings: one value has one canonical byte string and any number of JSON texts, and no other
//! bytes are read as it.

use crate::respelling::{DEVIATIONS, respell, spell};
use crate::{governed, stored, usage, workloads};
use ciborium::value::Value as Cbor;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;
use protocol::agent::Desired;
use protocol::canonical::{CanonicalError, from_bytes, to_bytes};
use protocol::governance::Certificate;
use protocol::limits::JSON_BYTES_PER_CANONICAL_BYTE;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

const LIMIT: usize = 1 << 20;

/// The value comes back from both of its forms, and both forms are the same value.
fn comes_back<T>(value: &T) -> TestCaseResult
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = to_bytes(value);
    let read = from_bytes::<T>(&bytes, bytes.len());
    prop_assert_eq!(read.as_ref(), Ok(value));
    let json = serde_json::to_vec(value).unwrap();
    let read: T = serde_json::from_slice(&json).unwrap();
    prop_assert_eq!(&read, value);
    prop_assert_eq!(to_bytes(&read), bytes.as_slice(), "JSON carries the whole value");
    prop_assert!(json.len() <= bytes.len() * JSON_BYTES_PER_CANONICAL_BYTE, "{} bytes", json.len());
    Ok(())
}

/// Other bytes with the same meaning are refused, and so is a part of the bytes.
fn has_one_spelling<T>(value: &T, pick: Index) -> TestCaseResult
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = to_bytes(value);
    let cbor: Cbor = ciborium::from_reader(bytes.as_slice()).unwrap();
    prop_assert_eq!(spell(&cbor), bytes.as_slice(), "a second encoder writes the same bytes");
    for deviation in DEVIATIONS {
        let Some(other) = respell(&cbor, deviation, pick.index(1 << 16)) else { continue };
        let read = from_bytes::<T>(&other, LIMIT);
        prop_assert!(read.is_err(), "{:?}: {} is read as {:?}", deviation, hex::encode(&other), read);
    }
    let cut = pick.index(bytes.len());
    let read = from_bytes::<T>(&bytes[..cut], LIMIT);
    prop_assert!(matches!(read, Err(CanonicalError::Invalid(_))), "the first {} bytes: {:?}", cut, read);
    let followed = [bytes.as_slice(), &[0]].concat();
    prop_assert!(matches!(from_bytes::<T>(&followed, LIMIT), Err(CanonicalError::Invalid(_))));
    let short = CanonicalError::TooLong { actual: bytes.len(), limit: bytes.len() - 1 };
    prop_assert_eq!(from_bytes::<T>(&bytes, bytes.len() - 1), Err(short));
    Ok(())
}

/// A flipped bit makes another value, of which the flipped bytes are the encoding, or no value.
fn shows_a_flipped_bit<T>(value: &T, pick: Index) -> TestCaseResult
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut bytes = to_bytes(value);
    let bit = pick.index(bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    if let Ok(other) = from_bytes::<T>(&bytes, LIMIT) {
        prop_assert_ne!(&other, value, "bit {}", bit);
        prop_assert_eq!(to_bytes(&other), bytes, "bit {}", bit);
    }
    Ok(())
}

macro_rules! laws {
    ($($name:ident: $strategy:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(48))]

            $(#[test]
            fn $name(value in $strategy, picks: [Index; 2]) {
                comes_back(&value)?;
                has_one_spelling(&value, picks[0])?;
                shows_a_flipped_bit(&value, picks[1])?;
            })*
        }
    };
}

laws! {
    artifact_indexes: stored::artifact_index();
    assignments_and_routes: stored::desired();
    ballots: governed::signed_ballot();
    bundles: governed::bundle();
    enrolments: stored::enrol_response();
    gang_answers: usage::answer();
    gang_hellos: usage::hello();
    genesis_documents: governed::signed_genesis();
    halt_answers: stored::halts_answer();
    halt_books: stored::halt_book();
    halt_requests: stored::halts_request();
    halts: governed::signed_halt();
    comments: governed::signed_comment();
    init_replies: stored::init_reply();
    init_requests: stored::init_request();
    key_wraps: stored::signed_wrap();
    loads: stored::worker_load();
    manifests: workloads::manifest();
    messages_of_workers: stored::from_worker();
    messages_to_workers: stored::to_worker();
    model_manifests: stored::model_manifest();
    model_records: stored::record();
    order_books: stored::order_book();
    job_books: stored::job_book();
    orders: workloads::signed_order();
    pending_nodes: stored::pending_node();
    proposals: governed::proposal();
    route_tables: workloads::route_table();
    sandbox_exits: stored::sandbox_exit();
    sandbox_records: stored::sandbox_record();
    sandbox_reports: stored::sandbox_report();
    sandbox_specifications: stored::sandbox_spec();
    complaints: stored::complaint();
    sync_requests: stored::sync_request();
    sync_responses: stored::sync_response();
    tickets: workloads::signed_ticket();
    usage_entries: usage::entry();
    usage_exports: usage::export_header();
    usage_totals: usage::total();
    verdicts: stored::verdict();
    worker_manifests: stored::worker_manifest();
}

proptest! {
    /// Digests name values: two values have one digest exactly if they are equal.
    #[test]
    fn ids_name_proposals(a in governed::proposal(), b in governed::proposal()) {
        prop_assert_eq!(a == b, a.id() == b.id());
        prop_assert_eq!(a.id(), a.clone().id());
    }

    #[test]
    fn ids_name_halts(a in governed::halt(), b in governed::halt()) {
        prop_assert_eq!(a == b, a.id() == b.id());
        prop_assert_eq!(a.id(), a.clone().id());
    }

    #[test]
    fn digests_name_certificates(a in governed::certificate(), b in governed::certificate()) {
        prop_assert_eq!(a == b, a.digest() == b.digest());
        let fewer = Certificate { ballots: Vec::new(), ..a.clone() };
        prop_assert_eq!(a == fewer, a.digest() == fewer.digest(), "ballots are part of it");
    }

    #[test]
    fn roots_name_models(a in stored::model_manifest(), b in stored::model_manifest()) {
        prop_assert_eq!(a == b, a.root() == b.root());
    }

    #[test]
    fn digests_name_desired_states(a in stored::desired(), b in stored::desired()) {
        prop_assert_eq!(a == b, a.digest() == b.digest());
        let unrouted = Desired { routes: None, ..a.clone() };
        prop_assert_eq!(a == unrouted, a.digest() == unrouted.digest(), "routes are part of it");
    }

    /// Random bytes that are accepted as a value are that value's encoding.
    #[test]
    fn accepted_bytes_are_an_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(value) = from_bytes::<protocol::worker::InitRequest>(&bytes, LIMIT) {
            prop_assert_eq!(to_bytes(&value), bytes.as_slice());
        }
        if let Ok(value) = from_bytes::<protocol::governance::Quorum>(&bytes, LIMIT) {
            prop_assert_eq!(to_bytes(&value), bytes);
        }
    }
}

/// Nested rules are read up to a depth that no legal rule reaches, and refused, not overflowed, beyond it.
#[test]
fn nesting_ends_in_an_error() {
    use protocol::governance::Quorum;
    let nested = |depth: usize| {
        let member = Quorum::Member("a".parse().unwrap());
        (0..depth).fold(member, |part, _| Quorum::Threshold { required: 1, of: vec![part] })
    };
    let read = |depth| from_bytes::<Quorum>(&to_bytes(&nested(depth)), LIMIT);
    let deepest = (0..64).take_while(|depth| read(*depth) == Ok(nested(*depth))).count() - 1;
    assert!(deepest > protocol::limits::QUORUM_DEPTH_MAX, "only {deepest} deep");
    for depth in [deepest + 1, 2 * deepest] {
        assert!(matches!(read(depth), Err(CanonicalError::Invalid(_))), "{depth} deep");
    }
}
