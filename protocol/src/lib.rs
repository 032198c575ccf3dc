//! Types that cross a wire or are stored on disk: ids, digests, keys, manifests, proposals, certificates,
//! orders. Their canonical bytes, which are hashed and signed, are defined here too.
//!
//! This crate is pure: it uses no clock, thread, file, socket, environment or random source. It decides
//! nothing about a cluster; it defines the form of values and rejects malformed ones.
//!
//! Start reading at [`governance`] (documents that members sign) and [`manifest`] (workloads that they ask
//! for).

pub mod access;
pub mod agent;
pub mod agent_state;
pub mod api;
pub mod artifact;
pub mod canonical;
pub mod checkpoint;
pub mod comment;
pub mod digest;
pub mod display;
pub mod error_chain;
pub mod error_code;
pub mod foreign_text;
pub mod gang;
pub mod gateway;
pub mod governance;
pub mod halt;
pub mod ids;
pub mod job;
pub mod job_api;
pub mod job_data;
pub mod job_report;
pub mod json;
pub mod keys;
pub mod limits;
pub mod manifest;
pub mod model;
pub mod order;
pub mod passkey;
pub mod project;
pub mod refusal;
pub mod sandbox;
pub mod slot_usage;
pub mod usage;
pub mod usage_text;
pub mod worker;

mod fixed_bytes;

pub use digest::Digest;
pub use error_chain::error_chain;
pub use error_code::ErrorCode;
pub use ids::{
    ArtifactRoot, BootId, BootTime, CheckpointName, CircleId, CommentId, Epoch, Fence, GrantId, HaltId,
    JobId, MemberId, Millis, ModelName, ModelRoot, NodeId, NodeName, OwnerName, ParameterName, ProjectName,
    ProposalId, ReplicaId, ServiceName, SlotIndex, StoreName, TokenName,
};
pub use keys::{EncryptionKey, HybridSignature, MemberKeys, PublicKey, Signature};
pub use passkey::{Passkey, PasskeyAssertion, PasskeyKey, PasskeyPolicy, PasskeyRegistration};
pub use refusal::Refusal;
