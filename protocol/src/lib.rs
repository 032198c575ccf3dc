//! What crosses a wire or a disk, and what it means: ids, digests, keys, manifests, proposals,
//! certificates, orders, and the canonical bytes that are hashed and signed.
//!
//! This crate is pure: it knows no clock, thread, file, socket, environment or random source. It
//! decides nothing about a cluster; it says what a thing *is* and refuses what it cannot be.
//!
//! Start reading at [`governance`] (what people sign) and [`manifest`] (what they ask for).

pub mod agent;
pub mod agent_state;
pub mod api;
pub mod canonical;
pub mod digest;
pub mod error_code;
pub mod gateway;
pub mod governance;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod manifest;
pub mod model;
pub mod order;
pub mod sandbox;
pub mod worker;

mod fixed_bytes;

pub use digest::Digest;
pub use error_code::ErrorCode;
pub use ids::{
    CircleId, Epoch, Fence, MemberId, Millis, ModelName, ModelRoot, NodeId, NodeName, ProposalId, ReplicaId,
    ServiceName, SlotIndex, StoreName, TokenName,
};
pub use keys::{EncryptionKey, HybridSignature, MemberKeys, PublicKey, Signature};
