//! Construction of a proposal, and its check against the circle's state.

use crate::change::check_change;
use crate::circle::CircleState;
use crate::subject::subject_of;
use crate::{ChainError, show_time};
use protocol::canonical::to_bytes;
use protocol::governance::{Change, Proposal, SubjectVersion};
use protocol::manifest::Manifest;
use protocol::{Digest, Millis, limits};

/// Maximum lifetime of a proposal in milliseconds: thirty days. A change that was not approved within a month
/// must be proposed again.
pub const PROPOSAL_LIFETIME_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

const _: () = assert!(
    limits::CLOCK_GRACE_MS < PROPOSAL_LIFETIME_MS_MAX / 100,
    "the error of clocks hardly changes the lifetime of a proposal"
);

/// Returns a proposal for this change, bound to the circle's current state. `nonce` makes two otherwise equal
/// proposals different; pass random bytes.
///
/// # Errors
/// Returns an error when the change is not admissible now, or a rule of form is broken.
pub fn propose(
    state: &CircleState,
    change: Change,
    reason: String,
    created_at: Millis,
    expires_at: Millis,
    nonce: Digest,
) -> Result<Proposal, ChainError> {
    let subjects = vec![state.subject(&subject_of(&change))];
    let passkeys_count = state.passkeys_count(&change);
    let proposal = Proposal {
        circle: state.id(),
        epoch: state.epoch(),
        history: state.head(),
        subjects,
        change,
        passkeys_count,
        reason,
        created_at,
        expires_at,
        nonce,
    };
    check_proposal(state, &proposal)?;
    debug_assert!(proposal.created_at < proposal.expires_at, "a proposal can be voted on for some time");
    Ok(proposal)
}

/// Checks every requirement of a proposal except its expiry against a clock and its votes. A proposal that
/// was made earlier in the same history passes, as long as its subject is unchanged.
///
/// # Errors
/// Returns the first check that fails, in this order: circle; history; epoch; form; subject and version;
/// change.
pub fn check_proposal(state: &CircleState, proposal: &Proposal) -> Result<(), ChainError> {
    check_bound(state, proposal)?;
    check_subjects(state, proposal)?;
    check_change(state, &proposal.change)
}

/// Checks that a proposal belongs to this circle, history, epoch and policy, and has the form of a proposal.
pub(crate) fn check_bound(state: &CircleState, proposal: &Proposal) -> Result<(), ChainError> {
    if proposal.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: proposal.circle });
    }
    state.check_extends(&proposal.history)?;
    if proposal.epoch != state.epoch() {
        return Err(ChainError::OtherEpoch { proposed: proposal.epoch, current: state.epoch() });
    }
    if proposal.passkeys_count != state.passkeys_count(&proposal.change) {
        let reason = "says otherwise than the circle's policy whether ballots by passkey count";
        return Err(ChainError::invalid("proposal.passkeys_count", reason));
    }
    check_form(proposal)
}

fn check_form(proposal: &Proposal) -> Result<(), ChainError> {
    let refuse = |reason: String| Err(ChainError::invalid("proposal", reason));
    if proposal.reason.len() > limits::REASON_BYTES_MAX {
        let (length, most) = (proposal.reason.len(), limits::REASON_BYTES_MAX);
        return refuse(format!("its reason is {length} bytes; accepted: at most {most}"));
    }
    let (begins, ends) = (proposal.created_at, proposal.expires_at);
    if ends <= begins {
        let (begins, ends) = (show_time(begins), show_time(ends));
        return refuse(format!("expires at {ends}, not after it begins at {begins}"));
    }
    if ends.0 - begins.0 > PROPOSAL_LIFETIME_MS_MAX {
        let (begins, ends) = (show_time(begins), show_time(ends));
        return refuse(format!("begins at {begins} and expires at {ends}; accepted: at most thirty days"));
    }
    if let Some(end) = validity_end(&proposal.change).filter(|end| *end <= begins) {
        let (begins, end) = (show_time(begins), show_time(end));
        return refuse(format!(
            "asks for a workload that is valid until {end}, over when it begins at {begins}"
        ));
    }
    debug_assert!(begins < ends, "the times were compared");
    let length = to_bytes(proposal).len();
    if length > limits::PROPOSAL_BYTES_MAX {
        return refuse(format!("{length} bytes; accepted: at most {}", limits::PROPOSAL_BYTES_MAX));
    }
    Ok(())
}

/// Returns the end of the proposed workload's validity, if it has one.
fn validity_end(change: &Change) -> Option<Millis> {
    match change {
        Change::Deploy(manifest) => match manifest.as_ref() {
            Manifest::Service(service) => service.valid_until,
            Manifest::Job(job) => job.valid_until,
            Manifest::Edge(_) => None,
        },
        _ => None,
    }
}

/// Checks that the proposal names exactly the subject of its change, in exactly its current version.
fn check_subjects(state: &CircleState, proposal: &Proposal) -> Result<(), ChainError> {
    let wanted = subject_of(&proposal.change);
    let [SubjectVersion { subject, version, value }] = proposal.subjects.as_slice() else {
        return Err(ChainError::invalid("proposal.subjects", "must name exactly what the change touches"));
    };
    if *subject != wanted {
        return Err(ChainError::invalid("proposal.subjects", "names something the change does not touch"));
    }
    let current = state.subject(&wanted);
    if *version != current.version || *value != current.value {
        return Err(ChainError::Stale { subject: wanted, proposed: *version, current: current.version });
    }
    Ok(())
}
