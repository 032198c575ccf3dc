//! Authority as a value: whoever holds an [`Approved`] need ask nobody else.
//!
//! May surprise: it cannot be cloned, read from bytes or built outside this crate. A function that takes
//! one by value has spent it.

use protocol::governance::SubjectVersion;
use protocol::{CircleId, Digest, Epoch, ProposalId};

/// A `T` that a quorum of the circle approved, as verification found it.
///
/// ```compile_fail,E0451
/// // There is no way to write one down.
/// let forged = human_chain::Approved { value: 1 };
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Approved<T> {
    value: T,
    certificate: Digest,
    proposal: ProposalId,
    basis: Basis,
}

/// The state that an approval was judged against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) circle: CircleId,
    pub(crate) epoch: Epoch,
    pub(crate) subjects: Vec<SubjectVersion>,
}

impl<T> Approved<T> {
    /// For the two verifications of this crate and nobody else: of a certificate, and of an order
    /// against a certificate verified before.
    pub(crate) fn after_verification(
        value: T,
        certificate: Digest,
        proposal: ProposalId,
        basis: Basis,
    ) -> Self {
        Self { value, certificate, proposal, basis }
    }

    /// What was approved.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.value
    }

    /// What was approved, its authority spent.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Digest of the certificate that approves it.
    #[must_use]
    pub fn certificate_digest(&self) -> Digest {
        self.certificate
    }

    /// The proposal that was voted on.
    #[must_use]
    pub fn proposal(&self) -> ProposalId {
        self.proposal
    }

    pub(crate) fn basis(&self) -> &Basis {
        &self.basis
    }
}
