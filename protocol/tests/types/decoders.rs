//! Decoder against an oracle: the first decoder, which built a tree of values and wrote the value again.

use crate::respelling::{DEVIATIONS, respell};
use crate::{governed, stored, usage, workloads};
use ciborium::value::Value as Cbor;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;
use protocol::canonical::{from_bytes, from_own_bytes, to_bytes};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

const LIMIT: usize = 1 << 20;

/// Reads a value through a tree, and compares its own encoding.
fn oracle<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut rest = bytes;
    let tree: Cbor = ciborium::de::from_reader_with_recursion_limit(&mut rest, 64).ok()?;
    let value: T = tree.deserialized().ok()?;
    (rest.is_empty() && to_bytes(&value) == bytes).then_some(value)
}

/// Both decoders read the same value from these bytes, or none.
fn agree<T>(bytes: &[u8]) -> TestCaseResult
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let expected = oracle::<T>(bytes);
    prop_assert_eq!(&from_bytes::<T>(bytes, LIMIT).ok(), &expected, "{}", hex::encode(bytes));
    prop_assert_eq!(&from_own_bytes::<T>(bytes, LIMIT).ok(), &expected, "{}", hex::encode(bytes));
    Ok(())
}

/// Alters bytes in one place: a bit, a byte more, a byte less, a part exchanged with the next.
fn alter(bytes: &[u8], kind: u8, pick: Index, byte: u8) -> Vec<u8> {
    let mut altered = bytes.to_vec();
    let at = pick.index(bytes.len());
    match kind % 6 {
        0 => altered[at] ^= 1 << (byte % 8),
        1 => altered[at] = byte,
        2 => altered.insert(at, byte),
        3 => drop(altered.remove(at)),
        4 => altered[at..].rotate_left(1),
        _ => altered.truncate(at),
    }
    altered
}

fn agree_on_all<T>(value: &T, edits: &[(u8, Index, u8)]) -> TestCaseResult
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = to_bytes(value);
    agree::<T>(&bytes)?;
    let tree: Cbor = ciborium::from_reader(bytes.as_slice()).unwrap();
    for (kind, pick, byte) in edits {
        agree::<T>(&alter(&bytes, *kind, *pick, *byte))?;
        for deviation in DEVIATIONS {
            if let Some(other) = respell(&tree, deviation, pick.index(1 << 16)) {
                agree::<T>(&other)?;
            }
        }
    }
    Ok(())
}

fn edits() -> impl Strategy<Value = Vec<(u8, Index, u8)>> {
    proptest::collection::vec(any::<(u8, Index, u8)>(), 8)
}

macro_rules! agreements {
    ($($name:ident: $strategy:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(32))]

            $(#[test]
            fn $name(value in $strategy, edits in edits()) {
                agree_on_all(&value, &edits)?;
            })*
        }
    };
}

agreements! {
    artifact_indexes: stored::artifact_index();
    ballots: governed::signed_ballot();
    bundles: governed::bundle();
    desired_states: stored::desired();
    gang_hellos: usage::hello();
    registrations_of_job_data: stored::register_job_data();
    genesis_documents: governed::signed_genesis();
    halts: governed::signed_halt();
    comments: governed::signed_comment();
    manifests: workloads::manifest();
    model_manifests: stored::model_manifest();
    order_books: stored::order_book();
    job_books: stored::job_book();
    orders: workloads::signed_order();
    proposals: governed::proposal();
    sandbox_exits: stored::sandbox_exit();
    sandbox_specifications: stored::sandbox_spec();
    sync_requests: stored::sync_request();
    sync_responses: stored::sync_response();
    tickets: workloads::signed_ticket();
    usage_entries: usage::entry();
    messages_to_workers: stored::to_worker();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Short bytes reach every kind of item.
    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
        agree::<u64>(&bytes)?;
        agree::<i64>(&bytes)?;
        agree::<bool>(&bytes)?;
        agree::<String>(&bytes)?;
        agree::<Option<u8>>(&bytes)?;
        agree::<Vec<Option<i32>>>(&bytes)?;
        agree::<(u8, String)>(&bytes)?;
        agree::<BTreeSet<u16>>(&bytes)?;
        agree::<BTreeMap<String, Vec<bool>>>(&bytes)?;
        agree::<BTreeMap<u32, BTreeMap<u32, String>>>(&bytes)?;
    }

    /// Numbers around every width, with either sign.
    #[test]
    fn numbers_of_every_width(number: i64, shift in 0_u32..64) {
        let number = number >> shift;
        let bytes = to_bytes(&number);
        agree::<i64>(&bytes)?;
        agree::<u64>(&bytes)?;
        agree::<i8>(&bytes)?;
        agree::<u32>(&bytes)?;
        prop_assert_eq!(from_bytes::<i64>(&bytes, 16), Ok(number));
    }

    /// Maps are sorted by the bytes of their keys, not by the keys.
    #[test]
    fn maps_in_another_order_than_their_bytes(
        map in proptest::collection::btree_map("[a-c]{0,30}", any::<u16>(), 0..40),
        numbers in proptest::collection::btree_map(any::<i32>(), "[a-c]{0,2}", 0..40),
    ) {
        let (texts, numbered) = (to_bytes(&map), to_bytes(&numbers));
        agree::<BTreeMap<String, u16>>(&texts)?;
        agree::<BTreeMap<i32, String>>(&numbered)?;
        prop_assert_eq!(from_bytes::<BTreeMap<String, u16>>(&texts, LIMIT), Ok(map));
        prop_assert_eq!(from_bytes::<BTreeMap<i32, String>>(&numbered, LIMIT), Ok(numbers));
    }
}
