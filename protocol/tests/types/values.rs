//! Strategies for the parts that most types share: names, numbers, digests, keys and signatures.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use protocol::keys::{ByteString, EncryptionKey, HybridSignature, MemberKeys};
use protocol::{
    BootTime, CircleId, Digest, Epoch, Fence, Millis, ModelRoot, NodeId, ProposalId, PublicKey, Signature,
    SlotIndex,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// Returns a name of any type: mostly short, sometimes of the maximum length.
pub(crate) fn name<T: TryFrom<String, Error = String> + Debug>() -> impl Strategy<Value = T> {
    prop_oneof![9 => "[a-z0-9][a-z0-9._-]{0,8}", 1 => "[a-z0-9][a-z0-9._-]{62}"]
        .prop_map(|text| T::try_from(text).unwrap())
}

/// Returns any text of a few characters, of any script.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => ".{0,12}", 1 => "[\\x00-\\x1f\"\\\\]{0,6}"]
}

/// Returns a number: small, at the edge of an encoding's width, or any.
pub(crate) fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 23, 24, 255, 256, 65_535, 65_536, u64::from(u32::MAX), 1 << 32, u64::MAX];
    prop_oneof![0..100_u64, prop::sample::select(edges.to_vec()), any::<u64>()]
}

/// Returns a number of 32 bits: small, at the edge of an encoding's width, or any.
pub(crate) fn number32() -> impl Strategy<Value = u32> {
    let edges = [0, 23, 24, 255, 256, 65_535, 65_536, u32::MAX];
    prop_oneof![0..100_u32, prop::sample::select(edges.to_vec()), any::<u32>()]
}

pub(crate) fn boot_time() -> impl Strategy<Value = BootTime> {
    number().prop_map(BootTime)
}

pub(crate) fn millis() -> impl Strategy<Value = Millis> {
    number().prop_map(Millis)
}

pub(crate) fn fence() -> impl Strategy<Value = Fence> {
    (number(), number()).prop_map(|(version, count)| Fence { version, count })
}

pub(crate) fn epoch() -> impl Strategy<Value = Epoch> {
    number().prop_map(Epoch)
}

pub(crate) fn slot() -> impl Strategy<Value = SlotIndex> {
    number32().prop_map(SlotIndex)
}

pub(crate) fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

pub(crate) fn circle() -> impl Strategy<Value = CircleId> {
    digest().prop_map(CircleId)
}

pub(crate) fn proposal_id() -> impl Strategy<Value = ProposalId> {
    digest().prop_map(ProposalId)
}

pub(crate) fn root() -> impl Strategy<Value = ModelRoot> {
    digest().prop_map(ModelRoot)
}

pub(crate) fn key() -> impl Strategy<Value = PublicKey> {
    any::<[u8; 32]>().prop_map(PublicKey)
}

pub(crate) fn node_id() -> impl Strategy<Value = NodeId> {
    key().prop_map(NodeId)
}

pub(crate) fn signature() -> impl Strategy<Value = Signature> {
    (any::<[u8; 32]>(), any::<[u8; 32]>())
        .prop_map(|(first, second)| Signature([first, second].concat().try_into().unwrap()))
}

/// Returns a byte string of any length: the crates that use one check its length.
pub(crate) fn bytes() -> impl Strategy<Value = ByteString> {
    vec(any::<u8>(), 0..40).prop_map(ByteString)
}

pub(crate) fn encryption() -> impl Strategy<Value = EncryptionKey> {
    (key(), bytes()).prop_map(|(x25519, ml_kem)| EncryptionKey { x25519, ml_kem })
}

pub(crate) fn member_keys() -> impl Strategy<Value = MemberKeys> {
    let of = |(ed25519, ml_dsa, encryption)| MemberKeys { ed25519, ml_dsa, encryption };
    (key(), bytes(), encryption()).prop_map(of)
}

pub(crate) fn hybrid_signature() -> impl Strategy<Value = HybridSignature> {
    (signature(), bytes()).prop_map(|(ed25519, ml_dsa)| HybridSignature { ed25519, ml_dsa })
}

pub(crate) fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(text(), 0..3)
}

pub(crate) fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(text(), text(), 0..3)
}

/// Returns a set of values of an enumeration.
pub(crate) fn set_of<T: Ord + Clone + Debug + 'static>(all: &[T]) -> impl Strategy<Value = BTreeSet<T>> {
    btree_set(prop::sample::select(all.to_vec()), 0..=all.len())
}

/// Returns one value of an enumeration.
pub(crate) fn one_of<T: Clone + Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> {
    prop::sample::select(all.to_vec())
}
