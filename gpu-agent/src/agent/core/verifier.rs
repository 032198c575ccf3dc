//! Verification of orders: the checks of `human_chain`, and those that only the node itself can make.

use super::{GrantedResources, NodeFacts, OrderBook, Refusal, SlotKey};
use human_chain::{Approved, CircleState, HaltBook, SlotGrant, check_order, verify, verify_superseded};
use protocol::error_code;
use protocol::governance::{BUNDLE_VERSION, Bundle, Certificate, SubjectVersion};
use protocol::manifest::Runtime;
use protocol::order::SignedOrder;
use protocol::{Digest, Millis, ModelRoot};
use std::collections::BTreeSet;

/// Verifier of orders, with the state of the node that it checks against.
#[derive(Debug, Clone, Copy)]
pub struct OrderVerifier<'a> {
    /// Current state of the circle.
    pub circle: &'a CircleState,
    /// Digests of the certificates that led to this state.
    pub admitted: &'a BTreeSet<Digest>,
    /// Facts about the node.
    pub facts: &'a NodeFacts,
    /// Orders accepted before.
    pub book: &'a OrderBook,
    /// Halts that the node has taken.
    pub halts: &'a HaltBook,
    /// Trusted time of the node.
    pub now: Millis,
}

impl OrderVerifier<'_> {
    /// Verifies an order with the certificate supplied with it, and that it fits beside every order that is
    /// held.
    ///
    /// # Errors
    /// The first check that fails: the certificate supplied with the order; those of [`Self::grant_named`];
    /// the first resource of which too little is left.
    pub fn verify(&self, bundle: &Bundle, signed: &SignedOrder) -> Result<Approved<SlotGrant>, Refusal> {
        self.check_bundle(bundle, signed)?;
        let grant = self.grant(signed)?;
        let key = SlotKey::of(&signed.order);
        let others = self.book.all_granted().filter(|(other, _)| **other != key);
        let held = GrantedResources::of(others.map(|(_, grant)| grant), &self.facts.weights);
        debug_assert_eq!(grant.get().node, self.facts.id, "a grant is for this node");
        held.check_room(grant.get(), self.facts)?;
        Ok(grant)
    }

    /// Verifies an order that the node does not hold yet, and whose certificate control names. The
    /// certificate is in this node's chain, or approves nothing here. An order that is already held counts as
    /// replayed. Other orders are not considered. Nothing is replayed: the cost grows with the logarithm of
    /// the history.
    ///
    /// # Errors
    /// The first check that fails: the named certificate; the order itself, see [`human_chain::check_order`];
    /// halts; then runtime, egress, isolation and GPUs.
    pub fn grant_named(
        &self,
        certificate: Digest,
        signed: &SignedOrder,
    ) -> Result<Approved<SlotGrant>, Refusal> {
        if certificate != signed.order.certificate {
            let message = "the certificate of the assignment is not the one that the order names";
            return Err(Refusal::new(error_code::ORDER_MISMATCH, message));
        }
        let grant = self.grant(signed)?;
        debug_assert_eq!(grant.get().certificate, certificate, "the certificate in force is the named one");
        Ok(grant)
    }

    fn grant(&self, signed: &SignedOrder) -> Result<Approved<SlotGrant>, Refusal> {
        let last = self.book.last_fence(&SlotKey::of(&signed.order));
        let grant = check_order(self.circle, signed, self.facts.id, last, self.now)?;
        debug_assert!(last.is_none_or(|last| grant.get().fence > last), "a grant is above the last fence");
        if let Some(halted) = self.halt_on(&signed.order.service) {
            return Err(halted);
        }
        self.check_node(grant.get())?;
        Ok(grant)
    }

    /// Checks that the certificate supplied with an order is valid, or is the one already in the chain.
    fn check_bundle(&self, bundle: &Bundle, signed: &SignedOrder) -> Result<(), Refusal> {
        let order = &signed.order;
        if bundle.version != BUNDLE_VERSION {
            let message =
                format!("the bundle has form {}; this release reads {BUNDLE_VERSION}", bundle.version);
            return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message));
        }
        let digest = bundle.certificate.digest();
        if !self.admitted.contains(&digest) {
            // The chain does not have this certificate. An altered one must be reported as altered, not
            // merely as different.
            if self.is_about_present(&bundle.certificate) {
                drop(verify(self.circle, &bundle.certificate, self.now)?);
            } else {
                verify_superseded(self.circle, &bundle.certificate)?;
            }
        }
        if digest != order.certificate {
            let message = "the certificate beside the order is not the one that the order names";
            return Err(Refusal::new(error_code::ORDER_MISMATCH, message));
        }
        Ok(())
    }

    /// Returns whether a certificate is about the current versions of its subjects, or about later ones.
    fn is_about_present(&self, certificate: &Certificate) -> bool {
        let is_past = |subject: &SubjectVersion| {
            let current = self.circle.subject(&subject.subject);
            subject.version < current.version
        };
        !certificate.proposal.subjects.iter().any(is_past)
    }

    /// Checks the requirements of the envelope that only the node can evaluate.
    fn check_node(&self, grant: &SlotGrant) -> Result<(), Refusal> {
        let service = &grant.service;
        if service.runtime != Runtime::Candle {
            let message = "the `process` runtime is read and checked, but not run in this release";
            return Err(Refusal::new(error_code::KIND_NOT_BUILT, message));
        }
        if !service.egress.is_empty() {
            let message = format!("service `{}` asks for egress, which is not built yet", service.name);
            return Err(Refusal::new(error_code::EGRESS_NOT_BUILT, message));
        }
        let (asked, given) = (service.placement.isolation, self.facts.isolation);
        if given < asked {
            let message = format!("the manifest asks for isolation {asked}, this node gives {given}");
            return Err(Refusal::new(error_code::NODE_UNFIT, message));
        }
        let has = |index: &u32| self.facts.resources.gpus.iter().any(|gpu| gpu.index == *index);
        if let Some(missing) = grant.gpus.iter().find(|index| !has(index)) {
            return Err(Refusal::new(error_code::NODE_UNFIT, format!("this node has no GPU {missing}")));
        }
        Ok(())
    }
}

/// Checks that control names the model that the circle approved. The load verifies every byte against the
/// approved root in any case; this check reports the disagreement early.
///
/// # Errors
/// If the two roots differ.
pub(super) fn check_model(grant: &SlotGrant, offered: ModelRoot) -> Result<(), Refusal> {
    let approved = grant.service.model.root;
    if offered == approved {
        return Ok(());
    }
    let message =
        format!("control offers model {}, the circle approved {}", offered.short(), approved.short());
    Err(Refusal::new(error_code::ORDER_MISMATCH, message))
}

/// Returns whether an incomplete chain could explain a refusal.
pub(super) fn may_be_early(refusal: &Refusal) -> bool {
    let early = [
        // The certificate may have been admitted before it expired.
        error_code::PROPOSAL_EXPIRED,
        error_code::ORDER_NOT_APPROVED,
        error_code::PROPOSAL_STALE,
        error_code::CIRCLE_MISMATCH,
        error_code::NODE_NOT_ADMITTED,
        error_code::NOT_A_MEMBER,
    ];
    early.contains(&refusal.code)
}
