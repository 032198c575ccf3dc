//! Manifest of a stored model. The files are laid end to end and cut into segments along tensor borders; each
//! segment is encrypted and erasure-coded into shards. The manifest names every segment and shard; its digest
//! names the model.

use crate::artifact::ARTIFACT_FILE;
use crate::digest::Digest;
use crate::fixed_bytes::fixed_bytes;
use crate::ids::{ArtifactRoot, CircleId, MemberId, ModelName, ModelRoot, NodeId};
use crate::keys::{ByteString, EncryptionKey, HybridSignature, PublicKey, Signature};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Digest domain of a model manifest.
pub const MODEL_DOMAIN: &str = "quorate/model/v1";
/// Signature domain of a wrap, by its maker.
pub const WRAP_DOMAIN: &str = "quorate/wrap/v1";
/// Digest domain of a wrap with its signature.
pub const SIGNED_WRAP_DOMAIN: &str = "quorate/signed-wrap/v1";
/// Signature domain of a complaint about a wrap, by its recipient.
pub const WRAP_COMPLAINT_DOMAIN: &str = "quorate/wrap-complaint/v1";
/// Signature domain of a member's request for its own wraps.
pub const WRAP_REQUEST_DOMAIN: &str = "quorate/wrap-request/v1";
/// Alignment of files in the weights map in bytes: a memory page, and more than any tensor's alignment.
pub const FILE_ALIGNMENT: u64 = 4096;
/// Maximum number of files of a model: the largest published checkpoints have a few hundred.
pub const FILES_MAX: usize = 4096;
/// Maximum length of a file's path within a model, in bytes.
pub const FILE_PATH_BYTES_MAX: usize = 512;
/// Maximum number of data shards, and of parity shards. More stores would not help, and digests would
/// outweigh the data.
pub const SHARDS_OF_A_KIND_MAX: u8 = 32;
/// Maximum number of segments in one object: an object of one data shard stays below 64 MiB.
pub const SEGMENTS_PER_OBJECT_MAX: u32 = 60;

const _: () = assert!(FILE_ALIGNMENT.is_power_of_two(), "a memory page");
const _: () = assert!(
    SEGMENTS_PER_OBJECT_MAX as usize * crate::limits::SEGMENT_BYTES_MAX < 64 * 1024 * 1024,
    "an object of one data shard stays below 64 MiB"
);
const _: () = assert!(
    FILES_MAX * (FILE_PATH_BYTES_MAX + 64) < crate::limits::MODEL_MANIFEST_BYTES_MAX / 16,
    "paths leave room for segments"
);

fixed_bytes!(
    /// Random bytes of one import. They name its stored objects and separate its encryption from that of
    /// every other import under the same key.
    ModelNonce,
    16
);

/// Erasure code: any `data` shards suffice to rebuild a segment; `parity` shards may be lost or corrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErasureCode {
    /// Number of data shards, k: 1 to 32.
    pub data: u8,
    /// Number of parity shards, m: 0 to 32.
    pub parity: u8,
}

impl ErasureCode {
    /// Returns k + m: the number of shards of a segment, and of stores that a model needs.
    #[must_use]
    pub fn shards(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
}

/// Kind of a stored item. Every kind is stored, wrapped, garbage-collected and forgotten in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoredKind {
    /// Model: weights, configuration and tokenizer of an engine.
    Model,
    /// Artifact: the packed root file system of a program ([`crate::artifact`]).
    Artifact {
        /// Root of the packed tree: equal for equal trees under every key and nonce.
        tree: ArtifactRoot,
    },
    /// Dataset: a packed tree of files without a program, which a member imported.
    Dataset {
        /// Root of the packed tree.
        tree: ArtifactRoot,
    },
    /// Checkpoint or outputs of a job: a packed tree of files, which the node that ran it imported.
    JobData {
        /// Root of the packed tree.
        tree: ArtifactRoot,
    },
}

impl StoredKind {
    /// Returns the kind's name, as listings show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Artifact { .. } => "artifact",
            Self::Dataset { .. } => "dataset",
            Self::JobData { .. } => "job-data",
        }
    }

    /// Returns the root of the packed tree; none for a model, whose files are stored one by one.
    #[must_use]
    pub fn tree(&self) -> Option<ArtifactRoot> {
        match self {
            Self::Model => None,
            Self::Artifact { tree } | Self::Dataset { tree } | Self::JobData { tree } => Some(*tree),
        }
    }
}

/// File of a model, as a range of the weights map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Relative path, separated by `/`, without `..`.
    pub path: String,
    /// First byte in the weights map; a multiple of 4,096.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Segment: the unit of verification. No byte of it is used before the whole segment is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// First byte in the weights map.
    pub offset: u64,
    /// Plaintext length in bytes; at most [`crate::limits::SEGMENT_BYTES_MAX`].
    pub length: u32,
    /// BLAKE3 digest of the plaintext.
    pub digest: Digest,
    /// BLAKE3 digest of each shard, data shards first.
    pub shards: Vec<Digest>,
}

/// Manifest of a stored model: everything except its stores and the recipients of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Format version of this manifest: 1.
    pub version: u32,
    /// Name that people gave the model.
    pub name: ModelName,
    /// Kind of the stored item.
    pub kind: StoredKind,
    /// Erasure code of all segments.
    pub erasure: ErasureCode,
    /// Number of segments that share one stored object per shard index.
    pub segments_per_object: u32,
    /// Nonce that names the stored objects and separates their encryption; never reused.
    pub nonce: ModelNonce,
    /// Commitment to the key: its BLAKE3 derive-key digest, so that a wrong key is detected before any byte
    /// is read.
    pub key_commitment: Digest,
    /// Files, sorted by offset.
    pub files: Vec<ModelFile>,
    /// Segments, sorted by offset; they cover every byte of every file exactly once.
    pub segments: Vec<Segment>,
    /// Index of every segment once, in the order in which an engine needs them: configuration, tokenizer,
    /// embeddings, layer 0, layer 1, ... Objects store their segments in the same order.
    pub order: Vec<u32>,
}

/// Reason why a decoded manifest does not describe a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelManifestError(String);

/// Returns an error with a formatted reason unless the condition holds.
macro_rules! require {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(ModelManifestError(format!($($reason)+)));
        }
    };
}

impl ModelManifest {
    /// Returns the model's root: the digest of the manifest's canonical bytes.
    #[must_use]
    pub fn root(&self) -> ModelRoot {
        let bytes = crate::canonical::to_bytes(self);
        debug_assert!(bytes.len() <= crate::limits::MODEL_MANIFEST_BYTES_MAX, "no reader takes more");
        ModelRoot(Digest::of_domain(MODEL_DOMAIN, &bytes))
    }

    /// Checks the invariants that the types cannot express: sizes within limits, safe paths, files disjoint
    /// and aligned, `order` a permutation. Every byte of every file must be in exactly one segment. A
    /// manifest that passes can be indexed without further checks.
    ///
    /// # Errors
    /// Returns the first contradiction, as text for people.
    pub fn check(&self) -> Result<(), ModelManifestError> {
        require!(self.version == 1, "manifest version {} is not known", self.version);
        let ErasureCode { data, parity } = self.erasure;
        require!((1..=SHARDS_OF_A_KIND_MAX).contains(&data), "{data} data shards, expected 1 to 32");
        require!(parity <= SHARDS_OF_A_KIND_MAX, "{parity} parity shards, expected 0 to 32");
        let per_object = self.segments_per_object;
        require!((1..=SEGMENTS_PER_OBJECT_MAX).contains(&per_object), "{per_object} segments per object");
        self.check_files()?;
        self.check_segments()?;
        self.check_order()?;
        let covered: u64 = self.segments.iter().map(|segment| u64::from(segment.length)).sum();
        debug_assert_eq!(covered, self.file_bytes(), "segments cover every byte of every file once");
        debug_assert!(self.file_bytes() <= self.map_bytes(), "files do not overlap");
        Ok(())
    }

    fn check_files(&self) -> Result<(), ModelManifestError> {
        let count = self.files.len();
        require!((1..=FILES_MAX).contains(&count), "{count} files, expected 1 to {FILES_MAX}");
        let mut end = 0_u64;
        let mut paths = std::collections::BTreeSet::new();
        for ModelFile { path, offset, length } in &self.files {
            require!(is_safe_path(path), "path `{}` is not allowed", path.escape_debug());
            require!(paths.insert(path), "file `{path}` appears twice");
            require!(offset.is_multiple_of(FILE_ALIGNMENT), "file `{path}` begins at {offset}, unaligned");
            require!(*offset >= end, "file `{path}` overlaps the one before");
            end = offset.checked_add(*length).filter(|end| *end <= i64::MAX as u64).unwrap_or(u64::MAX);
            require!(end != u64::MAX, "file `{path}` is too long");
        }
        if self.kind.tree().is_some() {
            let name = self.kind.name();
            require!(count == 1 && self.files[0].path == ARTIFACT_FILE, "kind {name} is one packed file");
        }
        debug_assert_eq!(end, self.map_bytes(), "the last file ends the map");
        Ok(())
    }

    fn check_segments(&self) -> Result<(), ModelManifestError> {
        debug_assert!(self.files.is_sorted_by(|a, b| a.offset + a.length <= b.offset), "files are in order");
        let mut segments = self.segments.iter().enumerate();
        for ModelFile { path, offset, length } in &self.files {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let Some((index, segment)) = segments.next() else {
                    return Err(ModelManifestError(format!("file `{path}` lacks segments from {at}")));
                };
                let length = u64::from(segment.length);
                require!(segment.offset == at, "segment {index} begins at {}, expected {at}", segment.offset);
                let limit = crate::limits::SEGMENT_BYTES_MAX as u64;
                require!((1..=limit).contains(&length), "segment {index} has {length} bytes");
                require!(at + length <= end, "segment {index} reaches over the end of `{path}`");
                let shards = segment.shards.len();
                require!(shards == self.erasure.shards(), "segment {index} names {shards} shards");
                at += length;
            }
            debug_assert_eq!(at, end, "the last segment of `{path}` ends with it");
        }
        require!(segments.next().is_none(), "there are segments after the last file");
        Ok(())
    }

    fn check_order(&self) -> Result<(), ModelManifestError> {
        let count = self.segments.len();
        require!(self.order.len() == count, "order names {} of {count} segments", self.order.len());
        let mut seen = vec![false; count];
        for index in &self.order {
            let entry = seen.get_mut(*index as usize);
            let fresh = entry.is_some_and(|seen| !std::mem::replace(seen, true));
            require!(fresh, "order names segment {index} twice, or there is none");
        }
        debug_assert!(seen.iter().all(|seen| *seen), "as many indices as segments, all different, miss none");
        Ok(())
    }

    /// Returns the file at `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&ModelFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Returns the size of the weights map in bytes: the end of the last file. The manifest must have passed
    /// [`check`](Self::check).
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        debug_assert!(
            self.files.iter().all(|file| file.offset.checked_add(file.length).is_some()),
            "the manifest of `{}` was not checked",
            self.name
        );
        self.files.iter().map(|file| file.offset + file.length).max().unwrap_or(0)
    }

    /// Returns the size of all files in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }
}

/// Checks that a path is relative and short, without `.`, `..`, empty parts, backslashes and control
/// characters.
#[must_use]
pub fn is_safe_path(path: &str) -> bool {
    let safe = |part: &str| !matches!(part, "" | "." | "..");
    let is_safe = path.len() <= FILE_PATH_BYTES_MAX
        && path.split('/').all(safe)
        && !path.chars().any(|c| c.is_control() || c == '\\');
    debug_assert!(!is_safe || !path.starts_with('/'), "an absolute path begins with an empty part");
    is_safe
}

/// Store that holds shard `index` of every segment, where `index` is the store's position in
/// [`ModelRecord::stores`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreReference {
    /// `file:///dir`, `s3://bucket/prefix`, or `node://NODE_NAME/STORE_NAME` for a node's shard service.
    pub url: String,
    /// Failure domain: a unit that fails as a whole, such as a node, a rack or a provider.
    pub failure_domain: String,
}

/// Index entry of a model in control. It is not an authority: every byte is verified against the root that a
/// certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Name that people gave the model.
    pub name: ModelName,
    /// Kind of the stored item.
    pub kind: StoredKind,
    /// Root of the model: its identity.
    pub root: ModelRoot,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// Erasure code of all segments.
    pub erasure: ErasureCode,
    /// Stores, one per shard, in shard order.
    pub stores: Vec<StoreReference>,
    /// Architecture, read at import: of a model, such as `bert` or `llama`, from its `config.json`; of an
    /// artifact, its processor, such as `amd64`.
    pub architecture: String,
}

/// Recipient of a wrapped key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Recipient {
    /// Node that reads the model with the key.
    Node(NodeId),
    /// Member whose client wraps the key to nodes admitted later.
    Member(MemberId),
}

/// Model key that only its recipient can open (X25519 and ML-KEM-768; both are needed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyWrap {
    /// Root of the model that the key belongs to.
    pub root: ModelRoot,
    /// Recipient that can open the wrap.
    pub recipient: Recipient,
    /// Ephemeral X25519 key of the sender, used once.
    pub ephemeral: PublicKey,
    /// ML-KEM-768 ciphertext, 1,088 bytes.
    pub encapsulated: ByteString,
    /// AES-256-GCM ciphertext of the key: 32 bytes and a 16-byte tag.
    pub sealed: ByteString,
}

/// Wrap with the signature of the member that made it, domain [`WRAP_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedWrap {
    /// Model key for one recipient.
    pub wrap: KeyWrap,
    /// Member that made the wrap.
    pub maker: MemberId,
    /// Signature by both of the maker's keys over [`KeyWrap::statement`].
    pub signature: HybridSignature,
}

/// Statement of a wrap's maker. It names the circle and the key that the wrap is made for: a wrap for a
/// replaced key, or of another circle, is not taken for a current one.
#[derive(Serialize)]
struct WrapStatement<'a> {
    circle: CircleId,
    maker: &'a MemberId,
    recipient_key: Digest,
    wrap: &'a KeyWrap,
}

impl KeyWrap {
    /// Returns the bytes that the maker of this wrap signs; `to` is the key that it is made for.
    #[must_use]
    pub fn statement(&self, circle: CircleId, maker: &MemberId, to: &EncryptionKey) -> Vec<u8> {
        let recipient_key = Digest::of_domain(WRAP_DOMAIN, &crate::canonical::to_bytes(to));
        crate::canonical::to_bytes(&WrapStatement { circle, maker, recipient_key, wrap: self })
    }
}

impl SignedWrap {
    /// Returns the digest of the canonical bytes, by which a complaint names the wrap.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(SIGNED_WRAP_DOMAIN, &crate::canonical::to_bytes(self))
    }
}

/// Statement of a recipient: this wrap does not give me the model's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WrapComplaint {
    /// Circle that the recipient belongs to.
    pub circle: CircleId,
    /// Root of the model that the wrap is for.
    pub root: ModelRoot,
    /// Recipient that complains.
    pub recipient: Recipient,
    /// Digest of the wrap with its signature ([`SignedWrap::digest`]).
    pub wrap: Digest,
}

/// Complaint with its recipient's signature, domain [`WRAP_COMPLAINT_DOMAIN`]. Control drops the wrap, so
/// that a member can make another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedComplaint {
    /// Complaint that the recipient signed.
    pub complaint: WrapComplaint,
    /// Signature by the recipient's key.
    pub signature: RecipientSignature,
}

/// Signature of a recipient: nodes and members sign with keys of different kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RecipientSignature {
    /// Signature by a node's identity key.
    Node(Signature),
    /// Signature by both of a member's keys.
    Member(HybridSignature),
}

/// Request of a member for the wraps that only its secret opens. It has no expiry: a copied request yields
/// ciphertext that is of no use to its holder, and nothing once the member has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WrapRequest {
    /// Circle that the member belongs to.
    pub circle: CircleId,
    /// Member that asks.
    pub member: MemberId,
}

/// Request with its member's signature, domain [`WRAP_REQUEST_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedWrapRequest {
    /// Request that the member signed.
    pub request: WrapRequest,
    /// Signature by both of the member's keys.
    pub signature: HybridSignature,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> ModelManifest {
        let segment = |offset, length| Segment {
            offset,
            length,
            digest: Digest::of(b"plain"),
            shards: vec![Digest::of(b"shard"); 3],
        };
        ModelManifest {
            version: 1,
            name: "tiny".parse().expect("a valid name"),
            kind: StoredKind::Model,
            erasure: ErasureCode { data: 2, parity: 1 },
            segments_per_object: 16,
            nonce: ModelNonce([7; 16]),
            key_commitment: Digest::of(b"key"),
            files: vec![
                ModelFile { path: "config.json".into(), offset: 0, length: 100 },
                ModelFile { path: "empty.txt".into(), offset: 4096, length: 0 },
                ModelFile { path: "weights/model.safetensors".into(), offset: 4096, length: 3000 },
            ],
            segments: vec![segment(0, 100), segment(4096, 1000), segment(5096, 2000)],
            order: vec![0, 2, 1],
        }
    }

    #[test]
    fn a_sound_manifest_passes_and_survives_its_canonical_form() {
        let manifest = sample();
        assert_eq!(manifest.check(), Ok(()));
        let bytes = crate::canonical::to_bytes(&manifest);
        let again: ModelManifest = crate::canonical::from_bytes(&bytes, 1 << 20).expect("canonical");
        assert_eq!(again.root(), manifest.root());
        assert_eq!((again.map_bytes(), again.file_bytes()), (7096, 3100));
        assert_eq!(again.file("empty.txt").map(|file| file.length), Some(0));
    }

    #[test]
    fn every_contradiction_is_refused() {
        type Edit = fn(&mut ModelManifest);
        let cases: &[(&str, Edit)] = &[
            ("version", |m| m.version = 2),
            ("kind artifact is one packed file", |m| {
                m.kind = StoredKind::Artifact { tree: ArtifactRoot(Digest::of(b"tree")) };
            }),
            ("kind job-data is one packed file", |m| {
                m.kind = StoredKind::JobData { tree: ArtifactRoot(Digest::of(b"tree")) };
            }),
            ("0 data shards", |m| m.erasure.data = 0),
            ("33 parity shards", |m| m.erasure.parity = 33),
            ("names 3 shards", |m| m.erasure.parity = 2),
            ("0 segments per object", |m| m.segments_per_object = 0),
            ("61 segments per object", |m| m.segments_per_object = 61),
            ("0 files", |m| m.files.clear()),
            ("is not allowed", |m| m.files[0].path = "../config.json".into()),
            ("is not allowed", |m| m.files[0].path = "/etc/passwd".into()),
            ("is not allowed", |m| m.files[0].path = "a\\b".into()),
            ("is not allowed", |m| m.files[0].path = "x".repeat(513)),
            ("appears twice", |m| m.files[0].path = "empty.txt".into()),
            ("unaligned", |m| m.files[2].offset = 4097),
            ("overlaps", |m| m.files[0].length = 5000),
            ("too long", |m| m.files[2].length = u64::MAX),
            ("lacks segments from 5096", |m| m.segments.truncate(2)),
            ("segment 1 begins at 4097", |m| m.segments[1].offset = 4097),
            ("segment 0 has 0 bytes", |m| m.segments[0].length = 0),
            ("reaches over the end", |m| m.segments[2].length = 2001),
            ("after the last file", |m| m.segments.push(m.segments[0].clone())),
            ("order names 2 of 3", |m| m.order.truncate(2)),
            ("names segment 0 twice", |m| m.order[1] = 0),
            ("names segment 3 twice, or there is none", |m| m.order[1] = 3),
        ];
        for (expected, edit) in cases {
            let mut manifest = sample();
            edit(&mut manifest);
            let error = manifest.check().expect_err(expected).to_string();
            assert!(error.contains(expected), "`{error}` should contain `{expected}`");
        }
    }

    proptest! {
        #[test]
        fn a_safe_path_stays_below_its_directory(path in "[a-z./\\\\\\n]{0,12}") {
            if is_safe_path(&path) {
                let plain = |part| matches!(part, std::path::Component::Normal(_));
                prop_assert!(std::path::Path::new(&path).components().all(plain));
                prop_assert!(!path.is_empty());
            }
        }
    }
}
