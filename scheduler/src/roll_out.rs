//! Roll-out of an approval, as far as the cluster remembers it: its progress, its failed starts, and the
//! approval to which it may return.

use protocol::{Digest, Millis};
use serde::{Deserialize, Serialize};

/// Roll-out of the approval in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollOut {
    /// Progress so far.
    pub phase: RollOutPhase,
    /// Failed starts in a row under the approval in force.
    pub failed_starts: u32,
    /// Number of replicas that were available under it when the last start failed; a further one ends the
    /// row.
    pub available: u32,
}

/// Progress of a roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RollOutPhase {
    /// Every wanted replica was available under the approval in force, or nothing ran before it.
    #[default]
    Complete,
    /// Replicas of an earlier approval are being replaced.
    Progressing,
    /// The service runs under the approval before, until the circle decides again.
    Returned {
        /// Certificate in force, from which it returned.
        from: Digest,
        /// End of that approval, which ends the return too; none if it has none.
        valid_until: Option<Millis>,
        /// Cause, as text for operators.
        cause: String,
    },
}

/// Approval to which a service may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReturnTarget {
    /// Its certificate, which the one in force names.
    pub certificate: Digest,
    /// Whether the service had returned from it when it was replaced. Only a person returns to it.
    pub failed: bool,
}
