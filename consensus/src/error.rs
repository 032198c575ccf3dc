//! What can go wrong, sorted by what a caller can do about it.

use protocol::ErrorCode;
use protocol::error_code as codes;
use std::path::PathBuf;

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value in the configuration is wrong.
    #[error("replica configuration: {0}")]
    Config(String),
    /// The log could not be opened.
    #[error("open the replica's log")]
    Log(#[from] LogError),
    /// The newest snapshot is not one of this state machine.
    #[error("restore the state machine from its snapshot: {0}")]
    Restore(String),
    /// The raft library refused its settings.
    #[error("start raft: {0}")]
    Raft(String),
    /// A thread could not be started.
    #[error("start a thread of the replica")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// The stable code under which `docs/errors/` explains this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(_) => codes::REPLICA_CONFIG_INVALID,
            Self::Log(error) => error.code(),
            Self::Restore(_) | Self::Raft(_) | Self::Thread(_) => codes::REPLICA_START_FAILED,
        }
    }
}

/// What can go wrong with the log on disk. After any of these but a full disk the replica stops: what is on
/// disk is still there, and is read and verified again at the next start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused an operation.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
    /// The disk is full; nothing acknowledged is lost.
    #[error("the disk that holds `{}` is full; nothing acknowledged is lost, free some space", path.display())]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Bytes that were once durable are damaged.
    #[error("`{}` is damaged at byte {offset}: {reason}; keep it as it is, the other replicas hold the log", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// A file of the log belongs to another replica or group.
    #[error("`{}` belongs to {found}, not to {wanted}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// A file of the log is of a version that this build does not read.
    #[error("`{}` is of version `{found}`; this build reads version `{read}` alone", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The version that is read.
        read: String,
    },
    /// The directory is empty, and the replica was not told to begin a new log.
    #[error("`{}` holds no log of this replica, and it may begin one only once", path.display())]
    Unknown {
        /// The directory.
        path: PathBuf,
    },
    /// Another process has the directory open.
    #[error("`{}` is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl LogError {
    /// The stable code under which `docs/errors/` explains this error.
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

    /// Whether freeing space mends it, so that the same may be tried again.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// The same error where it must not be taken for one that passes: bytes may have been written.
    pub(crate) fn into_lasting(self) -> Self {
        match self {
            Self::DiskFull { path } => {
                Self::Io { action: "write", path, source: std::io::ErrorKind::StorageFull.into() }
            }
            other => other,
        }
    }

    /// Sorts an operating-system error: a full disk is told apart, because freeing space mends it.
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(source.kind(), StorageFull | QuotaExceeded) {
            return Self::DiskFull { path: path.to_path_buf() };
        }
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// Why a command has no answer. All but [`ProposeError::OutcomeUnknown`] mean that it was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found in time; not proposed.
    #[error("no leader was found in time")]
    NoLeader,
    /// Too much is waiting already; not proposed. Try again later.
    #[error("too many proposals are waiting")]
    Busy,
    /// The command is larger than the limit; not proposed.
    #[error("a command of {actual} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Bytes given.
        actual: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// It may or may not be applied. Asking again is safe with a session only.
    #[error("the command's outcome is unknown")]
    OutcomeUnknown,
    /// The session was forgotten or never opened; not applied.
    #[error("the session is not known, or was forgotten after long disuse")]
    SessionExpired,
    /// The session has already moved past this sequence number; not applied now.
    #[error("the session has already moved past this sequence number")]
    SequencePassed,
    /// The replica's disk is about to be full; not proposed.
    #[error("the replica's disk is full")]
    DiskFull,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// The stable code under which `docs/errors/` explains this error.
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

/// Why a linearizable read has no answer. Asking again is always safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader was found, or it could not prove its leadership, in time.
    #[error("no leader confirmed the read in time")]
    NoLeader,
    /// Too many reads wait already. Try again later.
    #[error("too many reads are waiting")]
    Busy,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

impl ReadError {
    /// The stable code under which `docs/errors/` explains this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoLeader => codes::NO_LEADER,
            Self::Busy => codes::LOG_BUSY,
            Self::Stopped(_) => codes::REPLICA_STOPPED,
        }
    }
}
