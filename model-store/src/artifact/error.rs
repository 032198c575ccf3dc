//! Errors of building, packing, unpacking and caching artifacts.

use protocol::ArtifactRoot;
use protocol::error_code::{self as code, ErrorCode};
use std::io;
use std::path::{Path, PathBuf};

/// Error of an artifact. Nothing was stored, and no tree was changed.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The image has no known layout, or contradicts itself.
    #[error("image `{}`: {reason}", path.display())]
    Image {
        /// The image's archive.
        path: PathBuf,
        /// The contradiction, with the member or the layer.
        reason: String,
    },
    /// A path leads out of the root, or cannot be stored.
    #[error("path `{}` is refused: {reason}", path.escape_debug())]
    Path {
        /// The path inside the root.
        path: String,
        /// Reason for the refusal.
        reason: &'static str,
    },
    /// A link leads out of the root, or a hard link names no file.
    #[error("link `{}` to `{}` is refused: {reason}", path.escape_debug(), target.escape_debug())]
    Link {
        /// The link's path inside the root.
        path: String,
        /// The link's target.
        target: String,
        /// Reason for the refusal.
        reason: &'static str,
    },
    /// An entry is a device, a pipe or a socket.
    #[error("`{}` is {kind}; an artifact holds files, directories and links", path.escape_debug())]
    Device {
        /// The path inside the root.
        path: String,
        /// Kind of the entry.
        kind: &'static str,
    },
    /// A limit is exceeded.
    #[error("the artifact is too large: {reason}")]
    TooLarge {
        /// Limit that is exceeded.
        reason: String,
    },
    /// There is no entry point, or the tree lacks it.
    #[error("{reason}")]
    EntryPoint {
        /// Missing part, and the place where it was expected.
        reason: String,
    },
    /// A packed file does not match its root, or its index contradicts itself.
    #[error("the packed artifact is refused: {reason}")]
    Invalid {
        /// The contradiction.
        reason: String,
    },
    /// The trees in use leave too little space.
    #[error("a tree of {needed} bytes does not fit: trees in use take {in_use} of {limit} bytes")]
    CacheFull {
        /// Size of the new tree in bytes.
        needed: u64,
        /// Size of the trees in use in bytes.
        in_use: u64,
        /// Size of the cache in bytes.
        limit: u64,
    },
    /// Another process uses the tree.
    #[error("artifact {root} is in use by another process")]
    InUse {
        /// Root of the tree.
        root: ArtifactRoot,
    },
    /// A file cannot be read or written.
    #[error("`{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl ArtifactError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Image { .. } => code::ARTIFACT_IMAGE_INVALID,
            Self::Path { .. } => code::ARTIFACT_PATH_REFUSED,
            Self::Link { .. } => code::ARTIFACT_LINK_REFUSED,
            Self::Device { .. } => code::ARTIFACT_DEVICE_REFUSED,
            Self::TooLarge { .. } => code::ARTIFACT_TOO_LARGE,
            Self::EntryPoint { .. } => code::ARTIFACT_ENTRY_POINT_MISSING,
            Self::Invalid { .. } => code::ARTIFACT_INVALID,
            Self::CacheFull { .. } => code::ARTIFACT_CACHE_FULL,
            Self::InUse { .. } => code::ARTIFACT_IN_USE,
            Self::Unreadable { .. } => code::ARTIFACT_UNREADABLE,
        }
    }
}

/// Returns a function that names a path in an error of the system.
pub(super) fn unreadable(path: &Path) -> impl Fn(io::Error) -> ArtifactError + '_ {
    move |source| ArtifactError::Unreadable { path: path.to_path_buf(), source }
}

/// Marks an error of a reader that returned more than it may.
#[derive(Debug, thiserror::Error)]
#[error("the layers have more bytes than an image may unpack to")]
pub(super) struct Excess;

/// Failure while an input is read: a refusal of its content, or an error of its bytes, which the caller
/// names.
#[derive(Debug)]
pub(super) enum InputFailure {
    Refused(ArtifactError),
    Unread(io::Error),
}

impl From<ArtifactError> for InputFailure {
    fn from(error: ArtifactError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for InputFailure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().is_some_and(|inner| inner.is::<Excess>()) {
            true => Self::Refused(ArtifactError::TooLarge { reason: Excess.to_string() }),
            false => Self::Unread(error),
        }
    }
}
