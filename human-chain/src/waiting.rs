//! Waiting time of a change of members: from its last approval until it takes effect, any member may veto it.
//!
//! The times are those that the approving members signed, so every party computes the same end alone. A
//! party that admits the change for the first time compares it with a clock; a replay does not.
//!
//! Control withholds a veto if it is hostile, and the holders of a whole quorum of stolen keys can antedate
//! their ballots. Honest control counts the time by its own clock and takes each veto, see `scheduler`.

use crate::form::VETO_SECONDS_MAX;
use crate::{ChainError, CircleState};
use protocol::Millis;
use protocol::governance::{Certificate, Change, Choice, Proposal};
use protocol::limits::CLOCK_GRACE_MS;

/// Time in milliseconds after a waiting time in which the change can still be admitted: a day, so that an
/// outage of control at its end does not undo the vote.
const ADMISSION_MARGIN_MS: u64 = 24 * 3600 * 1000;

/// Returns the waiting time of a change in milliseconds; 0 if it takes effect with its last approval.
#[must_use]
pub fn waiting_ms(state: &CircleState, change: &Change) -> u64 {
    let veto_seconds = state.policy().veto_seconds;
    debug_assert!(veto_seconds <= VETO_SECONDS_MAX, "a longer time is refused where it enters");
    match change {
        Change::SetMembers { .. } => u64::from(veto_seconds) * 1000,
        _ => 0,
    }
}

/// Returns whether one rejection by a member in force ends this proposal.
#[must_use]
pub fn is_vetoable(state: &CircleState, change: &Change) -> bool {
    waiting_ms(state, change) > 0
}

/// Returns the time from which a certificate may be in force: that of its last approval, and its waiting
/// time.
#[must_use]
pub fn takes_effect_at(state: &CircleState, certificate: &Certificate) -> Millis {
    let signed = certificate.ballots.iter().map(|signed| signed.ballot.issued_at);
    let decided_at = signed.max().unwrap_or(certificate.proposal.created_at);
    let end = decided_at.plus(waiting_ms(state, &certificate.proposal.change));
    debug_assert!(end >= decided_at, "no change takes effect before its last approval");
    end
}

/// Checks that the waiting time of a certificate is over at `now`, but for the error of clocks. A party that
/// admits a certificate calls this with the present time, beside [`verify`](crate::verify).
///
/// # Errors
/// Returns an error while the waiting time runs.
pub fn check_waited(state: &CircleState, certificate: &Certificate, now: Millis) -> Result<(), ChainError> {
    let until = takes_effect_at(state, certificate);
    if waiting_ms(state, &certificate.proposal.change) > 0 && now.plus(CLOCK_GRACE_MS) < until {
        return Err(ChainError::ChangeWaits { until, now });
    }
    Ok(())
}

/// Checks that a ballot of this choice on a proposal is not too late at `now`, but for the error of clocks. A
/// member's machine asks it again once the signature is there: a person at a device may take minutes.
///
/// # Errors
/// Returns [`ChainError::Expired`] once the vote has ended.
pub fn check_in_time(
    state: &CircleState,
    proposal: &Proposal,
    choice: Choice,
    now: Millis,
) -> Result<(), ChainError> {
    let expired_at = ballots_until(state, proposal, choice);
    if now > expired_at.plus(CLOCK_GRACE_MS) {
        return Err(ChainError::Expired { expired_at, now });
    }
    Ok(())
}

/// Returns the last time at which a ballot of this choice on a proposal may be signed, but for the error of
/// clocks. A veto may be signed until the change takes effect.
pub(crate) fn ballots_until(state: &CircleState, proposal: &Proposal, choice: Choice) -> Millis {
    let until = match choice {
        Choice::Approve => proposal.expires_at,
        Choice::Reject => admitted_until(state, proposal),
    };
    debug_assert!(until >= proposal.expires_at, "a ballot can be signed as long as its proposal is open");
    until
}

/// Returns the last time at which a certificate of this proposal may be admitted, but for the error of
/// clocks.
pub(crate) fn admitted_until(state: &CircleState, proposal: &Proposal) -> Millis {
    let end = match waiting_ms(state, &proposal.change) {
        0 => proposal.expires_at,
        waits => proposal.expires_at.plus(waits + ADMISSION_MARGIN_MS),
    };
    debug_assert!(end >= proposal.expires_at, "a waiting time shortens no deadline");
    end
}
