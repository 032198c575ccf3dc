//! Whether an order counts: the checks of `human_chain`, and those that only the node itself can make.

use super::{NodeFacts, OrderBook, SlotKey};
use human_chain::{Approved, ChainError, CircleState, SlotGrant, check_order, verify, verify_replay};
use protocol::error_code::{self, ErrorCode};
use protocol::governance::{BUNDLE_VERSION, Bundle, Certificate, SignedGenesis};
use protocol::manifest::Runtime;
use protocol::order::SignedOrder;
use protocol::{Millis, ModelRoot};

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Everything a node knows of what its circle decided, in order.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// How the circle began.
    pub genesis: &'a SignedGenesis,
    /// What it decided since; all verified.
    pub bundles: &'a [Bundle],
}

impl History<'_> {
    /// The circle as it was when `certificate`, or another about the same subjects, was admitted; none when
    /// that is not known to have happened.
    fn state_for(&self, certificate: &Certificate) -> Option<CircleState> {
        let subjects = &certificate.proposal.subjects;
        let fits = |state: &CircleState| {
            let current = subjects.iter().all(|seen| state.subject(&seen.subject) == *seen);
            current && state.epoch() == certificate.proposal.epoch
        };
        let mut state = CircleState::found(self.genesis, None).ok()?;
        let mut bundles = self.bundles.iter();
        while !fits(&state) {
            let approved = verify_replay(&state, &bundles.next()?.certificate).ok()?;
            state.advance(approved).ok()?;
        }
        // Nothing was decided since: whoever brings it now is as late as the clock says.
        bundles.next().map(|_| state)
    }
}

/// A node about to judge orders.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// What the circle has agreed on.
    pub circle: &'a CircleState,
    /// How it came to that.
    pub history: History<'a>,
    /// What the node is.
    pub facts: &'a NodeFacts,
    /// What it accepted before.
    pub book: &'a OrderBook,
    /// Its wall clock.
    pub now: Millis,
}

impl Judge<'_> {
    /// Judges an order that the node does not hold yet, with the authority that came beside it. An order
    /// that it holds counts as replayed here.
    ///
    /// # Errors
    /// The first check that fails: the certificate beside it; the order itself, as
    /// [`human_chain::check_order`] says; then runtime, egress, isolation and GPUs.
    pub fn judge(&self, bundle: &Bundle, signed: &SignedOrder) -> Result<Approved<SlotGrant>, Refusal> {
        self.check_bundle(bundle, signed)?;
        let last = self.book.last_fence(&SlotKey::of(&signed.order));
        let grant = check_order(self.circle, signed, self.facts.id, last, self.now)?;
        self.check_node(grant.get())?;
        Ok(grant)
    }

    /// The certificate beside an order proves itself, or is the one that the chain has already.
    fn check_bundle(&self, bundle: &Bundle, signed: &SignedOrder) -> Result<(), Refusal> {
        let order = &signed.order;
        if bundle.version != BUNDLE_VERSION {
            let message =
                format!("the bundle has form {}; this release reads {BUNDLE_VERSION}", bundle.version);
            return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message));
        }
        let digest = bundle.certificate.digest();
        let in_force = self.circle.service(&order.service).map(|service| service.certificate);
        if in_force != Some(digest) {
            // Not the one in force, so nobody has verified these bytes yet: an altered one must be called
            // altered, not merely another.
            match self.history.state_for(&bundle.certificate) {
                Some(then) => drop(verify_replay(&then, &bundle.certificate)?),
                None => drop(verify(self.circle, &bundle.certificate, self.now)?),
            }
        }
        if digest != order.certificate {
            let message = "the certificate beside the order is not the one that the order names";
            return Err(Refusal::new(error_code::ORDER_MISMATCH, message));
        }
        Ok(())
    }

    /// What the envelope asks for and only the node can know.
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
            let message = format!("the manifest asks for isolation {asked:?}, this node gives {given:?}");
            return Err(Refusal::new(error_code::NODE_UNFIT, message));
        }
        if let Some(missing) = grant.gpus.iter().find(|index| !self.facts.gpus.contains(index)) {
            return Err(Refusal::new(error_code::NODE_UNFIT, format!("this node has no GPU {missing}")));
        }
        Ok(())
    }
}

/// The model that control says to load must be the one that the circle approved. What is loaded is checked
/// against the approved root in any case; this names the disagreement early.
///
/// # Errors
/// When they differ.
pub(super) fn check_model(grant: &SlotGrant, said: ModelRoot) -> Result<(), Refusal> {
    let approved = grant.service.model.root;
    if said == approved {
        return Ok(());
    }
    let message = format!("control offers model {}, the circle approved {}", said.short(), approved.short());
    Err(Refusal::new(error_code::ORDER_MISMATCH, message))
}

/// Whether a refusal may be due to a chain that is not complete yet.
pub(super) fn may_be_early(refusal: &Refusal) -> bool {
    let early = [
        // It may have been carried in time.
        error_code::PROPOSAL_EXPIRED,
        error_code::ORDER_NOT_APPROVED,
        error_code::PROPOSAL_STALE,
        error_code::CIRCLE_MISMATCH,
        error_code::NODE_NOT_ADMITTED,
        error_code::NOT_A_MEMBER,
    ];
    early.contains(&refusal.code)
}
