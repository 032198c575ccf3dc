//! Why something failed, one enum per boundary; each variant is a thing a caller can do something about.

use protocol::error_code::{self as code, ErrorCode};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a store cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is not one of `file:///dir`, `s3://bucket/prefix`, `node://NODE/STORE`, or lacks settings.
    #[error("store address `{url}`: {reason}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not answer, or not with success.
    #[error("store `{url}`: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The store has no room left; nothing of the object was kept.
    #[error("store `{url}` is full")]
    Full {
        /// The address.
        url: String,
    },
    /// The store refuses the object's name, its size, or us.
    #[error("store `{url}` refuses: {reason}")]
    Refused {
        /// The address.
        url: String,
        /// Its reason.
        reason: String,
    },
    /// The store sends more than there can be; the first byte or name too many ended the transfer.
    #[error("store `{url}` sends more than {expected}")]
    Surplus {
        /// The address.
        url: String,
        /// What there can be, and of which object.
        expected: String,
    },
    /// The store sends fewer bytes than the object has.
    #[error("store `{url}` sends {received} of {expected} bytes of `{object}`")]
    Short {
        /// The address.
        url: String,
        /// The object.
        object: String,
        /// Bytes that were asked for.
        expected: u64,
        /// Bytes that came.
        received: u64,
    },
    /// The object is not there.
    #[error("store `{url}` has no object `{object}`")]
    Missing {
        /// The address.
        url: String,
        /// The object.
        object: String,
    },
}

impl StoreError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Address { .. } => code::STORE_ADDRESS_INVALID,
            Self::Unreachable { .. } => code::STORE_UNREACHABLE,
            Self::Full { .. } => code::STORE_FULL,
            Self::Refused { .. } => code::STORE_REFUSED,
            Self::Surplus { .. } | Self::Short { .. } => code::STORE_LENGTH_WRONG,
            Self::Missing { .. } => code::SHARD_MISSING,
        }
    }
}

/// Why the stores at hand cannot hold a model safely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The erasure code itself is out of range.
    #[error("erasure code {data}+{parity} is out of range: 1 to 32 data and 0 to 32 parity shards")]
    Code {
        /// k.
        data: u8,
        /// m.
        parity: u8,
    },
    /// Fewer stores than shards.
    #[error("too few stores: {needed} are needed for {data}+{parity}, {given} are given")]
    Stores {
        /// k.
        data: u8,
        /// m.
        parity: u8,
        /// k + m.
        needed: usize,
        /// Stores given.
        given: usize,
    },
    /// The rule itself would let one domain take too much with it.
    #[error(
        "the rule allows {allowed} shards per failure domain, but {data}+{parity} survives the loss of {parity} only"
    )]
    Rule {
        /// k.
        data: u8,
        /// m.
        parity: u8,
        /// Shards per domain that the rule allows.
        allowed: u8,
    },
    /// Too few failure domains for the rule.
    #[error(
        "too few failure domains: {placed} of {needed} shards can be placed with at most {allowed} per domain"
    )]
    Domains {
        /// Shards that found a place.
        placed: usize,
        /// k + m.
        needed: usize,
        /// Shards per domain that the rule allows.
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
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Duplicate { .. } => code::STORE_ADDRESS_INVALID,
            _ => code::STORE_TOO_FEW,
        }
    }
}

/// Why a model was not imported. What was written before is removed as far as the stores allow; what is
/// left is named by no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source, or a file of it, cannot be read.
    #[error("read `{}`", path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that its kind of model needs is not there.
    #[error("the model has no `{path}`")]
    FileMissing {
        /// The file's path inside the model.
        path: String,
    },
    /// A file is in a format that can carry code, or that cannot be checked.
    #[error("`{path}` is refused: {format}")]
    FormatRefused {
        /// The file's path inside the model.
        path: String,
        /// Its format, in words.
        format: &'static str,
    },
    /// A weights file is of a version, byte order or type of tensor that is not known here.
    #[error("weights `{path}` cannot be read: {reason}")]
    FormatUnknown {
        /// The file's path inside the model.
        path: String,
        /// What is not known.
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
    /// A path leaves the directory or cannot be stored.
    #[error("path `{path}` is refused: {reason}")]
    PathRefused {
        /// The path.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// More files or segments than a manifest may name.
    #[error("the model is too large: {reason}")]
    TooLarge {
        /// Which limit it breaks.
        reason: String,
    },
    /// Too long without a write: a sweep might take what was written for dead.
    #[error("the import stood still for {} minutes; what it wrote may be swept away", silence.as_secs() / 60)]
    Stalled {
        /// How long.
        silence: Duration,
    },
    /// A file is not what it was when the import began.
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
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => code::MODEL_UNREADABLE,
            Self::FileMissing { path } if path == "tokenizer.json" => code::MODEL_TOKENIZER_MISSING,
            Self::FileMissing { .. } => code::MODEL_FILE_MISSING,
            Self::FormatRefused { .. } => code::MODEL_FORMAT_REFUSED,
            Self::FormatUnknown { .. } => code::MODEL_FORMAT_UNKNOWN,
            Self::Damaged { .. } => code::MODEL_WEIGHTS_DAMAGED,
            Self::PathRefused { .. } => code::MODEL_PATH_REFUSED,
            Self::TooLarge { .. } => code::MODEL_TOO_LARGE,
            Self::Stalled { .. } => code::MODEL_IMPORT_STALLED,
            Self::Changed { .. } => code::MODEL_SOURCE_CHANGED,
            Self::Placement(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Why a sweep removed nothing.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// What is asked for would reach imports that may still run.
    #[error("only what is older than an hour may be swept, not what is {} minutes old", older_than.as_secs() / 60)]
    Young {
        /// What was asked for.
        older_than: Duration,
    },
    /// Nobody says which models are registered.
    #[error("read the register of models")]
    Register(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A registered model cannot say which objects are its own.
    #[error("model {root} is registered, but its manifest cannot be read, so its objects are not known")]
    Manifest {
        /// The model.
        root: protocol::ModelRoot,
        /// Why not.
        source: ReadError,
    },
}

impl SweepError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        code::SWEEP_REFUSED
    }
}

/// Why bytes of a model cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No store has the manifest that the root names.
    #[error("no store has the manifest of model {root}: {reason}")]
    Manifest {
        /// The root.
        root: protocol::ModelRoot,
        /// What each store said.
        reason: String,
    },
    /// The manifest contradicts itself.
    #[error("manifest")]
    ManifestInvalid(#[from] protocol::model::ModelManifestError),
    /// The key is not the model's.
    #[error("the key is not this model's")]
    KeyWrong,
    /// A different number of stores than the manifest has shards.
    #[error("{given} stores are given for {needed} shards")]
    StoreCount {
        /// Stores given.
        given: usize,
        /// Shards of the manifest.
        needed: usize,
    },
    /// Too few good shards of a segment are left.
    #[error("segment {segment}: {good} of {needed} good shards found; {faults}")]
    ShardsTooFew {
        /// Which segment.
        segment: u32,
        /// Good shards found.
        good: usize,
        /// k.
        needed: usize,
        /// What is wrong with the others, for people.
        faults: String,
    },
    /// All shards are the ones that the manifest names, and yet they do not open: the manifest lies.
    #[error("segment {segment} does not open although its shards are right")]
    SegmentInvalid {
        /// Which segment.
        segment: u32,
    },
    /// There is no such file or range.
    #[error("no bytes {start}..{end} in `{path}`")]
    Range {
        /// The file.
        path: String,
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// The destination cannot take the bytes.
    #[error("write to the destination")]
    Destination(#[source] io::Error),
    /// The pool of threads is shutting down.
    #[error("the thread pool has stopped")]
    Stopped,
}

impl ReadError {
    /// The stable code.
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

/// Why a key cannot be made, kept, wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system gives no randomness.
    #[error("no randomness")]
    Random,
    /// A public key is not a usable one.
    #[error("the recipient's {half} key is not usable")]
    Recipient {
        /// `x25519` or `ml-kem-768`.
        half: &'static str,
    },
    /// The wrap is not for this secret, or was altered.
    #[error("the wrapped key does not open with this secret")]
    Closed,
    /// The file of a secret cannot be read or written.
    #[error("secret file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others than the owner may read the file.
    #[error("secret file {} has mode {mode:o}, expected 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not a secret of ours.
    #[error("secret file {} does not hold one encryption secret", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl KeyError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        code::MODEL_KEY_WRONG
    }
}
