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
pub(crate) fn name<T: TryFrom<String, Error = String> + Debug + 'static>() -> BoxedStrategy<T> {
    prop_oneof![9 => "[a-z0-9][a-z0-9._-]{0,8}", 1 => "[a-z0-9][a-z0-9._-]{62}"]
        .prop_map(|text| T::try_from(text).unwrap())
        .boxed()
}

/// Returns any text of a few characters, of any script.
pub(crate) fn text() -> BoxedStrategy<String> {
    prop_oneof![3 => ".{0,12}", 1 => "[\\x00-\\x1f\"\\\\]{0,6}"].boxed()
}

/// Returns a number: small, at the edge of an encoding's width, or any.
pub(crate) fn number() -> BoxedStrategy<u64> {
    let edges = [0, 23, 24, 255, 256, 65_535, 65_536, u64::from(u32::MAX), 1 << 32, u64::MAX];
    prop_oneof![0..100_u64, prop::sample::select(edges.to_vec()), any::<u64>()].boxed()
}

/// Returns a number of 32 bits: small, at the edge of an encoding's width, or any.
pub(crate) fn number32() -> BoxedStrategy<u32> {
    let edges = [0, 23, 24, 255, 256, 65_535, 65_536, u32::MAX];
    prop_oneof![0..100_u32, prop::sample::select(edges.to_vec()), any::<u32>()].boxed()
}

pub(crate) fn boot_time() -> BoxedStrategy<BootTime> {
    number().prop_map(BootTime).boxed()
}

pub(crate) fn millis() -> BoxedStrategy<Millis> {
    number().prop_map(Millis).boxed()
}

pub(crate) fn fence() -> BoxedStrategy<Fence> {
    (number(), number()).prop_map(|(version, count)| Fence { version, count }).boxed()
}

pub(crate) fn epoch() -> BoxedStrategy<Epoch> {
    number().prop_map(Epoch).boxed()
}

pub(crate) fn slot() -> BoxedStrategy<SlotIndex> {
    number32().prop_map(SlotIndex).boxed()
}

pub(crate) fn digest() -> BoxedStrategy<Digest> {
    any::<[u8; 32]>().prop_map(Digest).boxed()
}

pub(crate) fn circle() -> BoxedStrategy<CircleId> {
    digest().prop_map(CircleId).boxed()
}

pub(crate) fn proposal_id() -> BoxedStrategy<ProposalId> {
    digest().prop_map(ProposalId).boxed()
}

pub(crate) fn root() -> BoxedStrategy<ModelRoot> {
    digest().prop_map(ModelRoot).boxed()
}

pub(crate) fn key() -> BoxedStrategy<PublicKey> {
    any::<[u8; 32]>().prop_map(PublicKey).boxed()
}

pub(crate) fn node_id() -> BoxedStrategy<NodeId> {
    key().prop_map(NodeId).boxed()
}

pub(crate) fn signature() -> BoxedStrategy<Signature> {
    (any::<[u8; 32]>(), any::<[u8; 32]>())
        .prop_map(|(first, second)| Signature([first, second].concat().try_into().unwrap()))
        .boxed()
}

/// Returns a byte string of any length: the crates that use one check its length.
pub(crate) fn bytes() -> BoxedStrategy<ByteString> {
    vec(any::<u8>(), 0..40).prop_map(ByteString).boxed()
}

pub(crate) fn encryption() -> BoxedStrategy<EncryptionKey> {
    (key(), bytes()).prop_map(|(x25519, ml_kem)| EncryptionKey { x25519, ml_kem }).boxed()
}

pub(crate) fn member_keys() -> BoxedStrategy<MemberKeys> {
    let of = |(ed25519, ml_dsa, encryption)| MemberKeys { ed25519, ml_dsa, encryption };
    (key(), bytes(), encryption()).prop_map(of).boxed()
}

pub(crate) fn hybrid_signature() -> BoxedStrategy<HybridSignature> {
    (signature(), bytes()).prop_map(|(ed25519, ml_dsa)| HybridSignature { ed25519, ml_dsa }).boxed()
}

pub(crate) fn texts() -> BoxedStrategy<Vec<String>> {
    vec(text(), 0..3).boxed()
}

pub(crate) fn labels() -> BoxedStrategy<BTreeMap<String, String>> {
    btree_map(text(), text(), 0..3).boxed()
}

/// Returns a set of values of an enumeration.
pub(crate) fn set_of<T: Ord + Clone + Debug + 'static>(all: &[T]) -> BoxedStrategy<BTreeSet<T>> {
    btree_set(prop::sample::select(all.to_vec()), 0..=all.len()).boxed()
}

/// Returns one value of an enumeration.
pub(crate) fn one_of<T: Clone + Debug + 'static>(all: &[T]) -> BoxedStrategy<T> {
    prop::sample::select(all.to_vec()).boxed()
}
