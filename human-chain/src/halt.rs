//! Halts: signing, verification, and which of them stand.
//!
//! A halt is verified once, when a party takes it. From then on it stands until the circle lifts it or voids
//! it by a suspension, or its member leaves. A change of the member's keys ends no halt: a halt names the
//! signing key of its member, and a suspension of that key alone voids it. A party that did not take it
//! before the change takes a copy that its member signed again with the new keys: the same halt, under the
//! same id. Verification is a function of the circle's state alone, so it needs no order and no time.

mod book;

pub use book::{DeferredHalts, HaltBook};

use crate::{
    ChainError, CircleState, MemberSigner, Statement, describe_halt, describe_scope, form, signature_holds,
};
use protocol::canonical::to_bytes;
use protocol::governance::{Change, NodeAdmission};
use protocol::halt::{
    HALT_BYTES_MAX, HALT_DOMAIN, HALT_REASON_BYTES_MAX, Halt, HaltScope, HaltSignature, LIFTED_MAX,
    SignedHalt,
};
use protocol::{HaltId, ServiceName};

/// Signs a halt with its member's keys. A halt of former keys is signed again by those in force, unchanged.
pub fn sign_halt<S: MemberSigner>(signer: &S, halt: Halt) -> S::Signed<SignedHalt> {
    let summary = format!("Stop {}: {}", describe_scope(&halt.scope), describe_halt(&halt));
    let statement = Statement::new(HALT_DOMAIN, to_bytes(&halt), summary);
    signer.sign_statement(&statement, |signature| {
        let signature = HaltSignature::Hybrid(signature);
        SignedHalt { halt, signature }
    })
}

/// Halt whose signature was verified. Only [`check_halt`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedHalt {
    id: HaltId,
    signed: SignedHalt,
}

impl VerifiedHalt {
    /// Returns the id of the halt.
    #[must_use]
    pub fn id(&self) -> HaltId {
        self.id
    }

    /// Returns the halt.
    #[must_use]
    pub fn halt(&self) -> &Halt {
        &self.signed.halt
    }
}

/// Verifies a halt that is not known yet.
///
/// # Errors
/// Returns the first check that fails, in this order: size; circle and form; lifted or not; the member and
/// its suspension; the signature, by both of its keys in force or by one of its passkeys. A halt of former
/// keys is taken if the keys in force signed it again, or the suspension that ended its keys names it: the
/// former keys vouch for nothing any more, since their thief could sign as many. A passkey halts whether or
/// not the policy counts votes by passkey, and signs no halt of former keys.
pub fn check_halt(state: &CircleState, signed: SignedHalt) -> Result<VerifiedHalt, ChainError> {
    let length = to_bytes(&signed).len();
    if length > HALT_BYTES_MAX {
        let reason = format!("{length} bytes; accepted: at most {HALT_BYTES_MAX}");
        return Err(ChainError::invalid("halt", reason));
    }
    let halt = &signed.halt;
    check_form(state, halt)?;
    let id = halt.id();
    if state.lifted(&id).is_some() {
        return Err(ChainError::HaltLifted(id));
    }
    let member = state.member(&halt.member).ok_or_else(|| ChainError::NotAMember(halt.member.clone()))?;
    let is_void = || !state.signer_counts(&id, halt);
    if state.is_suspended(&halt.member) && is_void() {
        return Err(ChainError::MemberSuspended(halt.member.clone()));
    }
    let is_in_force = halt.signer == member.keys.ed25519;
    let is_sound = match &signed.signature {
        _ if !is_in_force && state.is_vouched_for(&id, halt) => true,
        HaltSignature::Hybrid(signature) => {
            signature_holds(&member.keys, HALT_DOMAIN, &to_bytes(halt), signature)
        }
        HaltSignature::Passkey(_) if !is_in_force => false,
        HaltSignature::Passkey(assertion) => {
            state.check_passkey_halt(halt, assertion)?;
            true
        }
    };
    if !is_sound || is_void() {
        return Err(ChainError::SignatureInvalid(halt.member.clone()));
    }
    debug_assert!(halt_stands(state, &id, halt), "what is verified stands");
    Ok(VerifiedHalt { id, signed })
}

/// Checks that a halt belongs to this circle and has the form of one.
fn check_form(state: &CircleState, halt: &Halt) -> Result<(), ChainError> {
    if halt.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: halt.circle });
    }
    if halt.reason.len() > HALT_REASON_BYTES_MAX {
        let length = halt.reason.len();
        let reason = format!("its reason is {length} bytes; accepted: at most {HALT_REASON_BYTES_MAX}");
        return Err(ChainError::invalid("halt", reason));
    }
    match &halt.scope {
        HaltScope::Region(region) if region.is_empty() => {
            Err(ChainError::invalid("halt.scope", "a region has a name"))
        }
        HaltScope::Region(region) => form::check_label("halt.scope", region),
        HaltScope::Service(_) | HaltScope::Node(_) | HaltScope::Circle => Ok(()),
    }
}

/// Returns whether a halt that was verified stands now: its member belongs to the circle, has or had the key
/// that it names, and the circle has neither lifted it nor left it out of a suspension of that key. Every
/// party asks this function, and no other, which halts count.
#[must_use]
pub fn halt_stands(state: &CircleState, id: &HaltId, halt: &Halt) -> bool {
    debug_assert_eq!(*id, halt.id(), "a halt is known by its own id");
    halt.circle == state.id() && state.signer_counts(id, halt) && state.lifted(id).is_none()
}

/// Returns whether a halt stops the slots of this service on this node.
#[must_use]
pub fn covers(halt: &Halt, service: &ServiceName, node: &NodeAdmission) -> bool {
    match &halt.scope {
        HaltScope::Service(name) => name == service,
        HaltScope::Node(name) => *name == node.name,
        HaltScope::Region(region) => *region == node.region,
        HaltScope::Circle => true,
    }
}

/// Returns the change that lifts these halts: each once, sorted by id.
#[must_use]
pub fn lift(mut halts: Vec<Halt>) -> Change {
    halts.sort_by_key(Halt::id);
    halts.dedup();
    debug_assert!(halts.is_sorted_by(|a, b| a.id() < b.id()), "two halts of one id are equal");
    Change::Lift { halts }
}

/// Checks the halts of a change that lifts them. Their signatures are not needed: an id is the digest of what
/// the members read, and lifting what was never halted does no harm.
pub(crate) fn check_lift(state: &CircleState, halts: &[Halt]) -> Result<(), ChainError> {
    if halts.is_empty() || halts.len() > LIFTED_MAX {
        let reason = format!("{} halts; accepted: 1 to {LIFTED_MAX}", halts.len());
        return Err(ChainError::invalid("lift", reason));
    }
    halts.iter().try_for_each(|halt| check_form(state, halt))?;
    let ids: Vec<HaltId> = halts.iter().map(Halt::id).collect();
    if !ids.is_sorted_by(|a, b| a < b) {
        return Err(ChainError::invalid("lift", "its halts are not sorted by id, or one is named twice"));
    }
    debug_assert!(halts.iter().all(|halt| halt.circle == state.id()), "a circle lifts its own halts");
    match ids.into_iter().find(|id| state.lifted(id).is_some()) {
        Some(lifted) => Err(ChainError::HaltLifted(lifted)),
        None => Ok(()),
    }
}
