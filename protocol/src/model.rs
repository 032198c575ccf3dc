//! What a stored model is: files laid end to end, cut into segments along tensor borders, each segment
//! encrypted and erasure-coded into shards. The manifest names every piece; its digest names the model.

use crate::digest::Digest;
use crate::ids::{MemberId, ModelName, ModelRoot, NodeId};
use crate::keys::{ByteString, PublicKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Digest domain of a model manifest.
pub const MODEL_DOMAIN: &str = "quorate/model/v1";

/// `data` shards suffice to rebuild; `parity` may be lost or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErasureCode {
    /// k: 1 to 32.
    pub data: u8,
    /// m: 0 to 32.
    pub parity: u8,
}

impl ErasureCode {
    /// k + m: how many shards a segment has, and how many stores a model needs.
    #[must_use]
    pub fn shards(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
}

/// A file of the model, as a range of the weights map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Relative path, `/`-separated, no `..`.
    pub path: String,
    /// Where it begins in the weights map, in bytes; a multiple of 4,096.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// A piece that is verified as a whole before any byte of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Where it begins in the weights map, in bytes.
    pub offset: u64,
    /// Plaintext length in bytes; at most [`crate::limits::SEGMENT_BYTES_MAX`].
    pub length: u32,
    /// BLAKE3 of the plaintext.
    pub digest: Digest,
    /// BLAKE3 of each shard, data shards first.
    pub shards: Vec<Digest>,
}

/// Everything about a stored model but where it lies and who may read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// The form of this manifest: 1.
    pub version: u32,
    /// What people call it.
    pub name: ModelName,
    /// How segments are coded.
    pub erasure: ErasureCode,
    /// How many segments share one stored object per shard index.
    pub segments_per_object: u32,
    /// Commits to the key: BLAKE3 derive-key digest of it, so a wrong key is known before any byte is read.
    pub key_commitment: Digest,
    /// Files, by offset.
    pub files: Vec<ModelFile>,
    /// Segments, by offset; they cover every byte of every file exactly once.
    pub segments: Vec<Segment>,
}

impl ModelManifest {
    /// The model's root.
    #[must_use]
    pub fn root(&self) -> ModelRoot {
        ModelRoot(Digest::of_domain(MODEL_DOMAIN, &crate::canonical::to_bytes(self)))
    }

    /// Bytes of the weights map: the end of the last file.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.offset + file.length).max().unwrap_or(0)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }
}

/// Where shard `index` of every segment lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreReference {
    /// `file:///dir`, `s3://bucket/prefix`, or `node://NODE_NAME/STORE_NAME` for a node's shard service.
    pub url: String,
    /// What fails together: a node, a rack, a provider.
    pub failure_domain: String,
}

/// What control keeps of a model. It is an index entry, not an authority: bytes prove themselves
/// against the root that a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// What people call it.
    pub name: ModelName,
    /// What it is.
    pub root: ModelRoot,
    /// Bytes of all files.
    pub bytes: u64,
    /// How many segments.
    pub segments: u64,
    /// How it is coded.
    pub erasure: ErasureCode,
    /// One store per shard, in shard order.
    pub stores: Vec<StoreReference>,
    /// `bert`, `llama`, ...: the architecture, read from its `config.json` at import.
    pub architecture: String,
}

/// Whom a key is wrapped to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Recipient {
    /// A node, which reads the model with it.
    Node(NodeId),
    /// A member, whose client wraps it to nodes admitted later.
    Member(MemberId),
}

/// A model key that only its recipient can open (X25519 and ML-KEM-768, both needed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyWrap {
    /// Which model.
    pub root: ModelRoot,
    /// For whom.
    pub recipient: Recipient,
    /// The sender's one-time X25519 key.
    pub ephemeral: PublicKey,
    /// The ML-KEM-768 ciphertext, 1,088 bytes.
    pub encapsulated: ByteString,
    /// AES-256-GCM of the key: 32 bytes and a 16-byte tag.
    pub sealed: ByteString,
}
