//! Errors that keep an agent from starting or continuing.

use human_chain::ChainError;
use protocol::error_code::{self, ErrorCode};
use sandbox::SandboxError;
use std::io;
use std::path::{Path, PathBuf};

/// Reason why an agent cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The genesis is not the pinned circle's, or is invalid.
    #[error("genesis")]
    Genesis(#[source] ChainError),
    /// An operation on one of the agent's files or directories failed.
    #[error("{action} {}", path.display())]
    File {
        /// Operation that failed.
        action: &'static str,
        /// File or directory that it was applied to.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The order book cannot be read or trusted.
    #[error("order book {}: {reason}", path.display())]
    Orders {
        /// Path of the order book.
        path: PathBuf,
        /// Defect that was found.
        reason: String,
    },
    /// The halts of the node cannot be read or trusted.
    #[error("halts {}: {reason}", path.display())]
    Halts {
        /// Path of the file.
        path: PathBuf,
        /// Defect that was found.
        reason: String,
    },
    /// The granted keys of a gateway's node cannot be read or trusted.
    #[error("granted keys {}: {reason}", path.display())]
    Access {
        /// Path of the file.
        path: PathBuf,
        /// Defect that was found.
        reason: String,
    },
    /// The recorded head of the history cannot be trusted.
    #[error("head of the history {}: its bytes are damaged", path.display())]
    Head {
        /// Path of the file.
        path: PathBuf,
    },
    /// Another agent uses the directory.
    #[error("another agent works in {}", path.display())]
    InUse {
        /// Path of the directory.
        path: PathBuf,
    },
    /// A control replica's address cannot be parsed.
    #[error("address `{address}` of a control replica: {reason}")]
    Address {
        /// Address as written in genesis.
        address: String,
        /// Error of the parser.
        reason: String,
    },
    /// Sandboxes cannot be created or found.
    #[error("sandboxes")]
    Sandbox(#[from] SandboxError),
    /// A store of this node cannot be offered.
    #[error("storage")]
    Storage(#[from] model_store::StoreError),
    /// The cache of unpacked artifacts cannot be used.
    #[error("artifacts")]
    Artifacts(#[from] model_store::ArtifactError),
    /// A listener cannot be used.
    #[error("listener")]
    Listener(#[source] overlay::Error),
    /// A setting contradicts another.
    #[error("configuration: {0}")]
    Configuration(String),
}

impl AgentError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Genesis(error) => error.code(),
            Self::File { .. }
            | Self::Orders { .. }
            | Self::Halts { .. }
            | Self::Access { .. }
            | Self::Head { .. } => error_code::AGENT_STATE_UNUSABLE,
            Self::InUse { .. } => error_code::DIRECTORY_IN_USE,
            Self::Address { .. } | Self::Configuration(_) => error_code::REQUEST_INVALID,
            Self::Sandbox(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Artifacts(error) => error.code(),
            Self::Listener(error) => error.code(),
        }
    }

    /// Attaches the failed operation to an error of the system.
    pub(super) fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_code_and_names_its_object() {
        let path = || PathBuf::from("/var/lib/quorate/agent");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let id = "chat.0.1".to_string();
        for (error, code, text) in [
            (
                AgentError::during("create", &path())(denied),
                error_code::AGENT_STATE_UNUSABLE,
                "create /var/lib/quorate/agent: permission denied",
            ),
            (
                AgentError::Orders { path: path(), reason: "its bytes are damaged".into() },
                error_code::AGENT_STATE_UNUSABLE,
                "order book /var/lib/quorate/agent: its bytes are damaged",
            ),
            (
                AgentError::Halts { path: path(), reason: "its bytes are damaged".into() },
                error_code::AGENT_STATE_UNUSABLE,
                "halts /var/lib/quorate/agent: its bytes are damaged",
            ),
            (
                AgentError::Access { path: path(), reason: "its bytes are damaged".into() },
                error_code::AGENT_STATE_UNUSABLE,
                "granted keys /var/lib/quorate/agent: its bytes are damaged",
            ),
            (
                AgentError::Head { path: path() },
                error_code::AGENT_STATE_UNUSABLE,
                "head of the history /var/lib/quorate/agent: its bytes are damaged",
            ),
            (
                AgentError::InUse { path: path() },
                error_code::DIRECTORY_IN_USE,
                "another agent works in /var/lib/quorate/agent",
            ),
            (
                AgentError::Address { address: "x".into(), reason: "has no port".into() },
                error_code::REQUEST_INVALID,
                "address `x` of a control replica: has no port",
            ),
            (
                AgentError::Configuration("two gateways".into()),
                error_code::REQUEST_INVALID,
                "configuration: two gateways",
            ),
            (
                AgentError::Sandbox(SandboxError::Exists { name: id }),
                SandboxError::Exists { name: String::new() }.code(),
                "sandboxes: sandbox `chat.0.1` already runs",
            ),
            (
                AgentError::Sandbox(SandboxError::NoIsolation),
                SandboxError::NoIsolation.code(),
                "sandboxes: this machine gives its user no namespaces, so no worker can be isolated",
            ),
        ] {
            assert_eq!((error.code(), protocol::error_chain(&error).as_str()), (code, text));
        }
    }
}
