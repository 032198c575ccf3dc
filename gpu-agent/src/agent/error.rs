//! Why an agent cannot start or go on.

use crate::sandbox::SandboxError;
use human_chain::ChainError;
use protocol::error_code::{self, ErrorCode};
use std::io;
use std::path::{Path, PathBuf};

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The genesis is not the pinned circle's, or does not hold.
    #[error("genesis")]
    Genesis(#[source] ChainError),
    /// A file or directory of the agent.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The order book cannot be read or believed.
    #[error("order book {}: {reason}", path.display())]
    Orders {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another agent works in the directory.
    #[error("another agent works in {}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A control replica's address cannot be understood.
    #[error("address `{address}` of a control replica: {reason}")]
    Address {
        /// As genesis has it.
        address: String,
        /// Why not.
        reason: String,
    },
    /// Sandboxes cannot be made or found.
    #[error("sandboxes")]
    Sandbox(#[from] SandboxError),
    /// A store of this node cannot be offered.
    #[error("storage")]
    Storage(#[from] model_store::StoreError),
    /// A listener cannot be used.
    #[error("listener")]
    Listener(#[source] overlay::Error),
    /// A setting contradicts another.
    #[error("configuration: {0}")]
    Configuration(String),
}

impl AgentError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Genesis(error) => error.code(),
            Self::File { .. } | Self::Orders { .. } => error_code::AGENT_STATE_UNUSABLE,
            Self::InUse { .. } => error_code::DIRECTORY_IN_USE,
            Self::Address { .. } | Self::Configuration(_) => error_code::REQUEST_INVALID,
            Self::Sandbox(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Listener(error) => error.code(),
        }
    }

    /// Attaches what was being done to an error of the system.
    pub(super) fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }
}

/// An error and all of its causes, in one line.
pub(super) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
