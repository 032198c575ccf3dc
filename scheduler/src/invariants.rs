//! Invariants of the replicated state, as executable rules.
//!
//! `apply` keeps them by checking each command's preconditions before it writes. Tests and fuzzing check them
//! after every command; nothing checks them in a release build.

mod indexes;
mod jobs;
mod registry;
mod slots;
mod succession;
#[cfg(test)]
mod tests;
mod usage;

use crate::cluster::Cluster;

/// A rule that every state, or every change of it, obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A held slot's order names that slot, its last fence and this circle.
    OrderNamesSlot,
    /// An order's certificate approves a manifest of its service, which is kept as long as the order.
    OrderIsApproved,
    /// An order's slot is below the maximum of the manifest that approves it.
    OrderInsideEnvelope,
    /// An order's node is admitted; a slot of a removed node lapses.
    OrderOnAdmittedNode,
    /// No GPU of a node is allocated beyond its whole.
    GpuAllocatedOnce,
    /// Exclusive work is held by one node: a slot of a silent node that may run on is of other work.
    ExclusiveHeldOnce,
    /// A service wants a number of replicas inside its envelope.
    DesiredInsideEnvelope,
    /// A service runs under the manifest that its certificate approves; a retired one holds no slot.
    ServicePhase,
    /// A service runs under the approval in force, or has returned to the one that its certificate names.
    ReturnIsNamed,
    /// Exactly the manifests in force, those to return to, and those of held slots, are kept.
    ManifestsInUse,
    /// The index of the chain names the position of every certificate.
    ChainIndex,
    /// An object is kept under its own name or digest.
    KeyNamesObject,
    /// Every list is within its limit.
    ListBounded,
    /// Names of models, and texts of API keys, are unique.
    NameUnique,
    /// Key wraps are of registered models.
    WrapOfModel,
    /// An open proposal or draft is of the present epoch and not decided yet; its ballots are its members'.
    ProposalOpen,
    /// A closed proposal is decided, and has a certificate exactly if it was approved.
    ProposalClosed,
    /// A job is kept under the id of its submission and by its key; its approval is in the chain.
    JobKept,
    /// An attempt holds every rank of its gang once, on admitted nodes and inside its envelope, or none.
    GangWhole,
    /// Each held slot has one meter, under its last fence, and no other slot has one.
    MeterPerSlot,
    /// Entries of usage are numbered without gaps, and totals count each once.
    UsageSums,
    /// Each project in force has a row of what its jobs hold, and no other has one.
    ShareFollowsJobs,
    /// Nothing was recorded after the cluster's time.
    RecordedInPast,
    /// The audit log is numbered without gaps up to its count.
    AuditNumbered,
    /// The recorded outcomes agree with their indexes and totals.
    OutcomeIndex,
    /// Generation and counts of records never fall, nor does the time unless a correction is counted. It is
    /// never earlier than what is signed.
    CountsRise,
    /// A slot's fence never falls, and under one fence it has one order.
    FenceRises,
    /// The circle's decisions are only appended to.
    ChainGrows,
}

/// A state that breaks a rule: a fault of the state machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant:?}: {detail}")]
pub struct Violation {
    /// Broken rule.
    pub invariant: Invariant,
    /// Object that breaks it.
    pub detail: String,
}

type InvariantResult = Result<(), Violation>;

impl Cluster {
    /// Checks every rule about a single state.
    ///
    /// # Errors
    /// The state breaks a rule; the first one found is returned.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        slots::check(self)?;
        indexes::check(self)?;
        jobs::check(self)?;
        registry::check(self)?;
        usage::check(self)
    }

    /// Checks every rule about a change: `next` follows from this state by any number of commands.
    ///
    /// # Errors
    /// The change breaks a rule; the first one found is returned.
    pub fn check_succession(&self, next: &Self) -> Result<(), Violation> {
        succession::check(self, next)
    }
}

/// Checks a condition; `detail` names the object that breaks it.
fn ensure(holds: bool, invariant: Invariant, detail: impl FnOnce() -> String) -> InvariantResult {
    if holds { Ok(()) } else { Err(Violation { invariant, detail: detail() }) }
}
