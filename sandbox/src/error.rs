//! Errors of sandboxes, for their launcher.

use protocol::error_code::{self, ErrorCode};
use std::io;

/// Reason why a sandbox could not be started, reached or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The name is not valid for a directory, a cgroup and a host name.
    #[error("sandbox name `{name}` must be 1 to 63 of a-z 0-9 - . _ and begin with a letter or digit")]
    Name {
        /// Name as given.
        name: String,
    },
    /// A sandbox of this name is alive.
    #[error("sandbox `{name}` already runs")]
    Exists { name: String },
    /// Isolation is unavailable, for example because user namespaces are disabled. No worker is started
    /// without it.
    #[error("this machine gives its user no namespaces, so no worker can be isolated")]
    NoIsolation,
    /// All ids of the configured range are in use.
    #[error("all {count} pairs of user ids are in use")]
    IdsExhausted {
        /// Number of id pairs in the range.
        count: u32,
    },
    /// The profile of a process sandbox contradicts itself or passes a limit. Nothing has been started.
    #[error("the process profile cannot be used: {detail}")]
    Profile {
        /// Field and reason.
        detail: String,
    },
    /// The machine gives the agent no TUN device.
    #[error("this machine gives the agent no TUN device, so no gang can run here: open {path}")]
    NoGangDevice {
        /// Path of the device.
        path: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The sandbox could not be built. Nothing of it is left.
    #[error("start sandbox `{name}`: {step}: {detail}")]
    Start {
        name: String,
        /// Step that failed.
        step: String,
        /// Error of the system.
        detail: String,
    },
    /// The sandbox's init does not answer, or its answer is malformed.
    #[error("talk to the init of sandbox `{name}`: {detail}")]
    Init {
        name: String,
        /// Description of the failure.
        detail: String,
    },
    /// An operation on one of the sandbox's files or directories failed.
    #[error("{action}")]
    Io {
        /// Operation that failed.
        action: String,
        /// Error of the system.
        source: io::Error,
    },
}

impl SandboxError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoIsolation => error_code::ISOLATION_UNAVAILABLE,
            Self::Profile { .. } => error_code::PROCESS_PROFILE_INVALID,
            Self::NoGangDevice { .. } => error_code::GANG_NETWORK_UNAVAILABLE,
            _ => error_code::SANDBOX_FAILED,
        }
    }
}

/// Attaches the failed operation to an error of the system.
pub(crate) trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::Io { action: action(), source: source.into() })
    }
}
