//! Proof of approval as a type: an [`Approved`] value is the authority, and its holder needs no further
//! check.
//!
//! A value cannot be cloned, deserialized or constructed outside this crate. A function that takes one by
//! value consumes the authority.

use crate::passkey::PasskeyUse;
use protocol::governance::SubjectVersion;
use protocol::{CircleId, Digest, Epoch, Millis, ProposalId};

/// Value that a quorum of the circle approved, constructed only by verification.
///
/// ```compile_fail,E0451
/// // The fields are private, so no other crate can construct a value.
/// let forged = human_chain::Approved { value: 1 };
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Approved<T> {
    value: T,
    certificate: Digest,
    proposal: ProposalId,
    basis: Basis,
}

/// State that an approval was verified against, and the time of the approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) circle: CircleId,
    pub(crate) epoch: Epoch,
    pub(crate) subjects: Vec<SubjectVersion>,
    /// Time of the last signature that the approval rests on.
    pub(crate) decided_at: Millis,
    /// Uses of passkeys among the ballots, whose counters the circle keeps.
    pub(crate) passkey_uses: Vec<PasskeyUse>,
}

impl<T> Approved<T> {
    /// Constructs the proof. Only the verifications of this crate may call it: that of a certificate, and
    /// those of orders, of services and of jobs, against a certificate verified before.
    pub(crate) fn after_verification(
        value: T,
        certificate: Digest,
        proposal: ProposalId,
        basis: Basis,
    ) -> Self {
        debug_assert_eq!(basis.subjects.len(), 1, "a certificate approves a change of one subject");
        Self { value, certificate, proposal, basis }
    }

    /// Returns the approved value by reference.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Returns the approved value and consumes the authority.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Returns the digest of the certificate that approves the value.
    #[must_use]
    pub fn certificate_digest(&self) -> Digest {
        self.certificate
    }

    /// Returns the id of the approved proposal.
    #[must_use]
    pub fn proposal(&self) -> ProposalId {
        self.proposal
    }

    pub(crate) fn basis(&self) -> &Basis {
        &self.basis
    }
}
