//! What can go wrong with a sandbox, for its launcher.

use protocol::error_code::{self, ErrorCode};
use std::io;

/// Why a sandbox could not be started, reached or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The name is not fit to be a directory, a cgroup and a host name.
    #[error("sandbox name `{name}` must be 1 to 63 of a-z 0-9 - . _ and begin with a letter or digit")]
    Name {
        /// As given.
        name: String,
    },
    /// A sandbox of this name lives.
    #[error("sandbox `{name}` already runs")]
    Exists {
        /// Its name.
        name: String,
    },
    /// User namespaces are switched off, say: no worker is started without isolation.
    #[error("this machine gives its user no namespaces, so no worker can be isolated")]
    NoIsolation,
    /// All ids of the configured range are taken.
    #[error("all {count} pairs of user ids are in use")]
    IdsExhausted {
        /// How many there are.
        count: u32,
    },
    /// The sandbox could not be built. Nothing of it is left.
    #[error("start sandbox `{name}`: {step}: {detail}")]
    Start {
        /// Its name.
        name: String,
        /// What was being done.
        step: String,
        /// What the system answered.
        detail: String,
    },
    /// The sandbox's init does not answer, or answers nonsense.
    #[error("talk to the init of sandbox `{name}`: {detail}")]
    Init {
        /// Its name.
        name: String,
        /// What was wrong.
        detail: String,
    },
    /// A file or directory of the sandbox.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl SandboxError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoIsolation => error_code::ISOLATION_UNAVAILABLE,
            _ => error_code::SANDBOX_FAILED,
        }
    }
}

/// Attaches what was being done to an error of the system.
pub(crate) trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::Io { action: action(), source: source.into() })
    }
}
