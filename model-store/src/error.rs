//! Error types, one enum per boundary; each variant is a condition that a caller can act on.

use protocol::checkpoint::CheckpointError;
use protocol::error_code::{self as code, ErrorCode};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Error of opening or using a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is not one of `file:///dir`, `s3://bucket/prefix`, `node://NODE/STORE`, or lacks settings.
    #[error("store address `{url}`: {reason}")]
    Address {
        /// The address.
        url: String,
        /// Defect of the address.
        reason: String,
    },
    /// The store does not answer, or answers with an error.
    #[error("store `{url}`: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// Cause of the failure.
        reason: String,
    },
    /// The store is out of space; nothing of the object was kept.
    #[error("store `{url}` is full")]
    Full {
        /// The address.
        url: String,
    },
    /// The store rejects the object's name, its size, or this client.
    #[error("store `{url}` refuses: {reason}")]
    Refused {
        /// The address.
        url: String,
        /// Reason given by the store.
        reason: String,
    },
    /// The store has the object already, with other bytes. An object is taken once.
    #[error("store `{url}` has `{object}` with other bytes, and keeps them")]
    Exists {
        /// The address.
        url: String,
        object: String,
    },
    /// The store does not let the object go, or takes it from its import's writer alone.
    #[error("store `{url}` holds `{object}`: {reason}")]
    Held {
        /// The address.
        url: String,
        object: String,
        /// Reason given by the store.
        reason: String,
    },
    /// The store sends more than the request allows. The first excess byte or name ended the transfer.
    #[error("store `{url}` sends more than {expected}")]
    Surplus {
        /// The address.
        url: String,
        /// Largest allowed answer, with the object's name.
        expected: String,
    },
    /// The store sends fewer bytes than the object has.
    #[error("store `{url}` sends {received} of {expected} bytes of `{object}`")]
    Short {
        /// The address.
        url: String,
        object: String,
        /// Number of bytes requested.
        expected: u64,
        /// Number of bytes received.
        received: u64,
    },
    /// The store does not have the object.
    #[error("store `{url}` has no object `{object}`")]
    Missing {
        /// The address.
        url: String,
        object: String,
    },
}

impl StoreError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Address { .. } => code::STORE_ADDRESS_INVALID,
            Self::Unreachable { .. } => code::STORE_UNREACHABLE,
            Self::Full { .. } => code::STORE_FULL,
            Self::Refused { .. } => code::STORE_REFUSED,
            Self::Exists { .. } => code::STORE_OBJECT_EXISTS,
            Self::Held { .. } => code::STORE_OBJECT_HELD,
            Self::Surplus { .. } | Self::Short { .. } => code::STORE_LENGTH_WRONG,
            Self::Missing { .. } => code::SHARD_MISSING,
        }
    }
}

/// Error of a placement: the given stores cannot hold the model safely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The erasure code itself is out of range.
    #[error("erasure code {data}+{parity} is out of range: 1 to 32 data and 0 to 32 parity shards")]
    Code {
        /// Number of data shards (k).
        data: u8,
        /// Number of parity shards (m).
        parity: u8,
    },
    /// There are fewer stores than shards.
    #[error("too few stores: {needed} are needed for {data}+{parity}, {given} are given")]
    Stores {
        /// Number of data shards (k).
        data: u8,
        /// Number of parity shards (m).
        parity: u8,
        /// Number of stores needed (k + m).
        needed: usize,
        /// Number of stores given.
        given: usize,
    },
    /// The rule allows one domain to hold more shards than the model can lose.
    #[error(
        "the rule allows {allowed} shards per failure domain, \
         but {data}+{parity} survives the loss of {parity} only"
    )]
    Rule {
        /// Number of data shards (k).
        data: u8,
        /// Number of parity shards (m).
        parity: u8,
        /// Number of shards per domain that the rule allows.
        allowed: u8,
    },
    /// There are too few failure domains for the rule.
    #[error(
        "too few failure domains: {placed} of {needed} shards can be placed with at most {allowed} per domain"
    )]
    Domains {
        /// Number of shards that could be placed.
        placed: usize,
        /// Number of shards in all (k + m).
        needed: usize,
        /// Number of shards per domain that the rule allows.
        allowed: u8,
    },
    /// One store is named twice.
    #[error("store `{url}` is named twice")]
    Duplicate {
        /// The address.
        url: String,
    },
}

impl PlacementError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Duplicate { .. } => code::STORE_ADDRESS_INVALID,
            _ => code::STORE_TOO_FEW,
        }
    }
}

/// Error of an import. Objects written before the failure are removed as far as the stores allow; the rest is
/// named by no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source, or a file of it, cannot be read.
    #[error("read `{}`", path.display())]
    Unreadable {
        /// Path that was read.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file that this kind of model needs is missing.
    #[error("the model has no `{path}`")]
    FileMissing {
        /// The file's path inside the model.
        path: String,
    },
    /// A file has a format that can carry code or that cannot be checked.
    #[error("`{path}` is refused: {format}")]
    FormatRefused {
        /// The file's path inside the model.
        path: String,
        /// Description of the format.
        format: &'static str,
    },
    /// A weights file has an unknown version, byte order or tensor type.
    #[error("weights `{path}` cannot be read: {reason}")]
    FormatUnknown {
        /// The file's path inside the model.
        path: String,
        /// Description of the unknown property.
        reason: String,
    },
    /// A weights file is truncated or contradicts its header.
    #[error("weights `{path}` are damaged: {reason}")]
    Damaged {
        /// The file's path inside the model.
        path: String,
        /// The contradiction.
        reason: String,
    },
    /// No built-in engine serves the model, and the import does not say that a foreign one will.
    #[error("no built-in engine serves this model; with `--foreign` it is stored for a foreign engine")]
    Unserved(#[source] CheckpointError),
    /// A quantisation applies to nothing in the model, or has been applied.
    #[error("the model cannot be quantised: {reason}")]
    NotQuantizable {
        /// Reason for the refusal.
        reason: &'static str,
    },
    /// A file of a quantised model cannot be written.
    #[error("write `{}`", path.display())]
    Unwritable {
        /// Path that was written.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A directory does not give the content of a stored model.
    #[error("the stored model differs from the directory's in `{path}`: {reason}")]
    ContentDiffers {
        /// The file's path inside the model.
        path: String,
        /// The difference.
        reason: &'static str,
    },
    /// A path leaves the directory or cannot be stored.
    #[error("path `{path}` is refused: {reason}")]
    PathRefused {
        path: String,
        /// Reason for the refusal.
        reason: &'static str,
    },
    /// The model has more files or segments than a manifest may name.
    #[error("the model is too large: {reason}")]
    TooLarge {
        /// Limit that the model exceeds.
        reason: String,
    },
    /// The import wrote nothing for so long that garbage collection might remove its objects.
    #[error(
        "the import stalled for {} minutes; garbage collection may remove its objects",
        silence.as_secs() / 60
    )]
    Stalled {
        /// Time since the last write.
        silence: Duration,
    },
    /// A file changed after the import began.
    #[error("`{path}` changed during the import")]
    Changed {
        /// The file's path inside the model.
        path: String,
    },
    /// The stores cannot hold the model safely.
    #[error("placement")]
    Placement(#[from] PlacementError),
    /// A store failed.
    #[error("store")]
    Store(#[from] StoreError),
}

impl ImportError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => code::MODEL_UNREADABLE,
            Self::FileMissing { path } if path == "tokenizer.json" => code::MODEL_TOKENIZER_MISSING,
            Self::FileMissing { .. } => code::MODEL_FILE_MISSING,
            Self::FormatRefused { .. } => code::MODEL_FORMAT_REFUSED,
            Self::FormatUnknown { .. } => code::MODEL_FORMAT_UNKNOWN,
            Self::Damaged { .. } => code::MODEL_WEIGHTS_DAMAGED,
            Self::NotQuantizable { .. } => code::MODEL_NOT_QUANTIZABLE,
            Self::Unwritable { .. } => code::MODEL_UNWRITABLE,
            Self::ContentDiffers { .. } => code::MODEL_CONTENT_DIFFERS,
            Self::Unserved(error) => error.code(),
            Self::PathRefused { .. } => code::MODEL_PATH_REFUSED,
            Self::TooLarge { .. } => code::MODEL_TOO_LARGE,
            Self::Stalled { .. } => code::MODEL_IMPORT_STALLED,
            Self::Changed { .. } => code::MODEL_SOURCE_CHANGED,
            Self::Placement(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Error of a garbage collection (`model sweep`); nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The requested age would include imports that may still be running.
    #[error(
        "objects of {} minutes may belong to a running import; the minimum age is one hour",
        older_than.as_secs() / 60
    )]
    Young {
        /// Requested minimum age.
        older_than: Duration,
    },
    /// The register of models cannot be read.
    #[error("read the register of models")]
    Register(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The manifest of a model cannot be read, so its objects are unknown.
    #[error("the manifest of model {root} cannot be read, so its objects are not known")]
    Manifest {
        root: protocol::ModelRoot,
        /// Error of reading the manifest.
        source: ReadError,
    },
}

impl SweepError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        code::SWEEP_REFUSED
    }
}

/// Error of reading a model.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No store has the manifest that the root names.
    #[error("no store has the manifest of model {root}: {reason}")]
    Manifest {
        root: protocol::ModelRoot,
        /// Error of each store.
        reason: String,
    },
    /// The manifest contradicts itself.
    #[error("manifest")]
    ManifestInvalid(#[from] protocol::model::ModelManifestError),
    /// The key is not the model's.
    #[error("the key is not this model's")]
    KeyWrong,
    /// The number of stores differs from the number of shards in the manifest.
    #[error("{given} stores are given for {needed} shards")]
    StoreCount {
        /// Number of stores given.
        given: usize,
        /// Number of shards in the manifest.
        needed: usize,
    },
    /// Too few good shards of a segment remain.
    #[error("segment {segment}: {good} of {needed} good shards found; {faults}")]
    ShardsTooFew {
        /// Index of the segment.
        segment: u32,
        /// Number of good shards found.
        good: usize,
        /// Number of shards needed (k).
        needed: usize,
        /// Description of the other shards' faults.
        faults: String,
    },
    /// All shards match their digests, yet the segment does not decrypt: the manifest is wrong.
    #[error("segment {segment} does not open although its shards are right")]
    SegmentInvalid {
        /// Index of the segment.
        segment: u32,
    },
    /// The file or the range does not exist.
    #[error("no bytes {start}..{end} in `{path}`")]
    Range {
        /// Path of the file.
        path: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The destination cannot take the bytes.
    #[error("write to the destination")]
    Destination(#[source] io::Error),
    /// The thread pool is shutting down.
    #[error("the thread pool has stopped")]
    Stopped,
}

impl ReadError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Manifest { .. } | Self::ManifestInvalid(_) | Self::SegmentInvalid { .. } => {
                code::MODEL_MANIFEST_INVALID
            }
            Self::KeyWrong => code::MODEL_KEY_WRONG,
            Self::StoreCount { .. } => code::STORE_TOO_FEW,
            Self::ShardsTooFew { .. } => code::SHARD_TOO_FEW,
            Self::Range { .. } => code::MODEL_FILE_MISSING,
            Self::Destination(_) | Self::Stopped => code::MODEL_UNREADABLE,
        }
    }
}

/// Error of generating, storing, wrapping or unwrapping a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system provides no randomness.
    #[error("no randomness")]
    Random,
    /// A public key is unusable.
    #[error("the recipient's {half} key is not usable")]
    Recipient {
        /// `x25519` or `ml-kem-768`.
        half: &'static str,
    },
    /// The wrap is for another secret, or was altered.
    #[error("the wrapped key does not open with this secret")]
    Closed,
    /// The file of a secret cannot be read or written.
    #[error("secret file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Users other than the owner may read the file.
    #[error("secret file {} has mode {mode:o}, expected 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not an encryption secret in the expected format.
    #[error("secret file {} does not hold one encryption secret", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl KeyError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        code::MODEL_KEY_WRONG
    }
}
