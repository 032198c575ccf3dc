//! Error types, classified by what a caller can do about each.

use protocol::ErrorCode;
use protocol::error_code as codes;
use std::path::PathBuf;

/// Errors that prevent a replica from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A configuration value is invalid.
    #[error("replica configuration: {0}")]
    Config(String),
    /// The log could not be opened.
    #[error("open the replica's log")]
    Log(#[from] LogError),
    /// The newest snapshot does not belong to this state machine.
    #[error("restore the state machine from its snapshot: {0}")]
    Restore(String),
    /// The raft library rejected its settings.
    #[error("start raft: {0}")]
    Raft(String),
    /// A thread could not be started.
    #[error("start a thread of the replica")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// Returns the stable error code, which `docs/errors/` explains.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(_) => codes::REPLICA_CONFIG_INVALID,
            Self::Log(error) => error.code(),
            Self::Restore(_) | Self::Raft(_) | Self::Thread(_) => codes::REPLICA_START_FAILED,
        }
    }
}

/// Errors of the log on disk. All but a full disk stop the replica. The data remains on disk, and is verified
/// again at the next start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system reported an error.
    #[error("{action} `{}`", path.display())]
    Io {
        /// Failed action, as a verb.
        action: &'static str,
        /// File or directory on which it failed.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The disk is full; nothing acknowledged is lost.
    #[error(
        "the disk that holds `{}` is full; nothing acknowledged is lost, free some space",
        path.display()
    )]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Durable bytes are damaged.
    #[error(
        "`{}` is damaged at byte {offset}: {reason}; keep it as it is, the other replicas hold the log",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Byte offset at which the damage begins.
        offset: u64,
        /// Description of the mismatch.
        reason: String,
    },
    /// A file of the log belongs to another replica or group.
    #[error("`{}` belongs to {found}, not to {wanted}", path.display())]
    Foreign {
        /// File of another owner.
        path: PathBuf,
        /// Owner named in the file.
        found: String,
        /// Owner that tried to open it.
        wanted: String,
    },
    /// A file of the log has a version that this build does not read.
    #[error("`{}` is of version `{found}`; this build reads only version `{read}`", path.display())]
    Version {
        /// File of another version.
        path: PathBuf,
        /// Version named in the file.
        found: String,
        /// The one version that this build reads.
        read: String,
    },
    /// The directory holds no log of this replica, and the replica may not create a new one.
    #[error("`{}` holds no log of this replica, and it may create one only once", path.display())]
    Unknown {
        /// Directory without a log.
        path: PathBuf,
    },
    /// Another process has the directory open.
    #[error("`{}` is in use by another process", path.display())]
    InUse {
        /// Directory in use.
        path: PathBuf,
    },
}

impl LogError {
    /// Returns the stable error code, which `docs/errors/` explains.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } => codes::LOG_IO_FAILED,
            Self::DiskFull { .. } => codes::LOG_DISK_FULL,
            Self::Corrupt { .. } => codes::LOG_DAMAGED,
            Self::Foreign { .. } => codes::LOG_FOREIGN,
            Self::Version { .. } => codes::LOG_VERSION_UNSUPPORTED,
            Self::Unknown { .. } => codes::LOG_UNKNOWN,
            Self::InUse { .. } => codes::DIRECTORY_IN_USE,
        }
    }

    /// Returns whether freeing space resolves the error, so that the same operation may be retried.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// Turns a full disk into a permanent error, for use where bytes may already have been written.
    pub(crate) fn into_fatal(self) -> Self {
        match self {
            Self::DiskFull { path } => {
                Self::Io { action: "write", path, source: std::io::ErrorKind::StorageFull.into() }
            }
            other => other,
        }
    }

    /// Classifies an operating-system error. A full disk is distinguished, because freeing space resolves it.
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(source.kind(), StorageFull | QuotaExceeded) {
            return Self::DiskFull { path: path.to_path_buf() };
        }
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// Reasons why a command has no response. All but [`ProposeError::OutcomeUnknown`] mean that it was not
/// applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found in time; not proposed.
    #[error("no leader was found in time")]
    NoLeader,
    /// Too many proposals are pending; not proposed. Retry later.
    #[error("too many proposals are waiting")]
    Busy,
    /// The command is larger than the limit; not proposed.
    #[error("a command of {actual} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Size of the command in bytes.
        actual: usize,
        /// Largest allowed size in bytes.
        limit: usize,
    },
    /// The command may or may not be applied. A retry is safe only within a session.
    #[error("the command's outcome is unknown")]
    OutcomeUnknown,
    /// The session expired or was never opened; not applied.
    #[error("the session is unknown, or was evicted after long disuse")]
    SessionExpired,
    /// The session has already moved past this sequence number; not applied now.
    #[error("the session has already moved past this sequence number")]
    SequencePassed,
    /// The replica's disk is full or nearly full; not proposed.
    #[error("the replica's disk is full")]
    DiskFull,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Returns the stable error code, which `docs/errors/` explains.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoLeader => codes::NO_LEADER,
            Self::Busy => codes::LOG_BUSY,
            Self::TooLarge { .. } => codes::COMMAND_TOO_LARGE,
            Self::OutcomeUnknown => codes::OUTCOME_UNKNOWN,
            Self::SessionExpired => codes::SESSION_EXPIRED,
            Self::SequencePassed => codes::SEQUENCE_PASSED,
            Self::DiskFull => codes::LOG_DISK_FULL,
            Self::Stopped(_) => codes::REPLICA_STOPPED,
        }
    }
}

/// Reasons why a linearizable read failed. A retry is always safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinearizableReadError {
    /// No leader was found, or it could not prove its leadership, in time.
    #[error("no leader confirmed the read in time")]
    NoLeader,
    /// Too many reads are pending. Retry later.
    #[error("too many reads are waiting")]
    Busy,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

impl LinearizableReadError {
    /// Returns the stable error code, which `docs/errors/` explains.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoLeader => codes::NO_LEADER,
            Self::Busy => codes::LOG_BUSY,
            Self::Stopped(_) => codes::REPLICA_STOPPED,
        }
    }
}
