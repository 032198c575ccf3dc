//! Votes on a proposal, and changes of members that wait for a veto.
//!
//! A change of members that its quorum has approved stays open until its waiting time is over. The cluster's
//! time decides, since the signers could have antedated their ballots. One rejection by a member in force
//! ends it until then, also by a member who approved before: its key may have been stolen.

use super::governance::{admit, close_decided};
use crate::clock::ClusterTime;
use crate::cluster::{Cluster, OpenProposal};
use crate::command::Refusal;
use human_chain::{
    Approvals, CircleState, Electorate, is_approved, is_vetoable, joining_members, show_time, waiting_ms,
};
use protocol::api::ProposalState;
use protocol::error_code::{BALLOT_DUPLICATE, CHANGE_WAITS};
use protocol::governance::{Choice, SignedBallot};
use protocol::{MemberId, Millis, ProposalId};
use std::collections::BTreeMap;

/// Returns the time at which a change takes effect; none unless its waiting time runs.
pub(crate) fn takes_effect_at(state: &CircleState, open: &OpenProposal) -> Option<Millis> {
    let decided_at = open.decided_at?;
    debug_assert!(is_vetoable(state, &open.proposal.change), "only what can be vetoed waits");
    let ballots = open.ballots.values().chain(open.joining.values()).map(|signed| &signed.ballot);
    let approvals = ballots.filter(|ballot| ballot.choice == Choice::Approve);
    let last = approvals.map(|ballot| ballot.issued_at).fold(decided_at.0, Millis::max);
    let end = last.plus(waiting_ms(state, &open.proposal.change));
    debug_assert!(end >= decided_at.0, "no change takes effect before it is decided");
    Some(end)
}

/// Checks that this ballot can still be cast, before its signature is verified.
pub(super) fn check_cast(
    state: &CircleState,
    open: &OpenProposal,
    signed: &SignedBallot,
) -> Result<(), Refusal> {
    let (member, choice) = (&signed.ballot.member, signed.ballot.choice);
    if let Some(until) = takes_effect_at(state, open).filter(|_| choice == Choice::Approve) {
        let message = format!(
            "the quorum has approved this change; it takes effect at {} unless a member vetoes it",
            show_time(until)
        );
        return Err(Refusal::new(CHANGE_WAITS, message));
    }
    let has_new_keys = joining_members(state, &open.proposal.change).iter().any(|new| new.id == *member);
    let may_join = has_new_keys && !open.joining.contains_key(member);
    let earlier = open.ballots.get(member).filter(|_| !may_join && !is_veto(state, open, choice));
    if earlier.is_some_and(|earlier| !has_last_word(signed, earlier)) {
        return Err(voted(member));
    }
    Ok(())
}

fn voted(member: &MemberId) -> Refusal {
    Refusal::new(BALLOT_DUPLICATE, format!("member `{member}` has voted on this proposal already"))
}

/// Returns whether a ballot replaces an earlier one: the member's keys have the last word over its passkeys.
fn has_last_word(signed: &SignedBallot, earlier: &SignedBallot) -> bool {
    signed.is_hybrid() && !earlier.is_hybrid()
}

fn is_veto(state: &CircleState, open: &OpenProposal, choice: Choice) -> bool {
    choice == Choice::Reject && is_vetoable(state, &open.proposal.change)
}

/// Adds a verified ballot. A veto takes the place of its member's approval.
pub(super) fn insert(
    state: &CircleState,
    open: &mut OpenProposal,
    electorate: Electorate,
    signed: &SignedBallot,
) -> Result<(), Refusal> {
    let member = &signed.ballot.member;
    let is_veto = is_veto(state, open, signed.ballot.choice);
    let (ballots, replaces) = match electorate {
        Electorate::InForce => (&mut open.ballots, is_veto),
        Electorate::Proposed => (&mut open.joining, false),
    };
    if ballots.get(member).is_some_and(|earlier| !replaces && !has_last_word(signed, earlier)) {
        return Err(voted(member));
    }
    let replaced = ballots.insert(member.clone(), signed.clone());
    let is_lawful = replaced.is_none_or(|earlier| replaces || has_last_word(signed, &earlier));
    debug_assert!(is_lawful, "only a veto or a ballot by key replaces another");
    Ok(())
}

/// Returns the state of a proposal. Its ballots were verified on arrival, and nothing that they depend on
/// changes while it is open. A new epoch closes every proposal of an earlier one, and a suspension removes
/// ballots.
pub(super) fn judge(state: &CircleState, open: &OpenProposal) -> ProposalState {
    let change = &open.proposal.change;
    debug_assert_eq!(open.proposal.epoch, state.epoch(), "a new epoch closes every earlier proposal");
    let vetoable = is_vetoable(state, change);
    let vetoes = open.ballots.values().filter(|signed| signed.ballot.choice == Choice::Reject);
    if vetoable && vetoes.count() > 0 {
        return ProposalState::Rejected;
    }
    let (approved, possible) = votes(state, open);
    match (is_approved(state, change, &approved), vetoable) {
        (true, true) => ProposalState::Waiting,
        (true, false) => ProposalState::Approved,
        (false, _) if is_approved(state, change, &possible) => ProposalState::Open,
        (false, _) => ProposalState::Rejected,
    }
}

/// Returns the members that have approved, and those that have approved or still may.
fn votes(state: &CircleState, open: &OpenProposal) -> (Approvals, Approvals) {
    let is_active = |id: &MemberId| state.active_member(id).is_ok();
    debug_assert!(open.ballots.keys().all(is_active), "no ballot of a suspended member is kept");
    let may = |ballots: &BTreeMap<MemberId, SignedBallot>, id: &MemberId| {
        ballots.get(id).is_none_or(|signed| signed.ballot.choice == Choice::Approve)
    };
    let approve = |ballots: &BTreeMap<MemberId, SignedBallot>| {
        let approvals = ballots.iter().filter(|(_, signed)| signed.ballot.choice == Choice::Approve);
        approvals.map(|(id, _)| id.clone()).collect()
    };
    let members = state.members().map(|member| &member.id);
    let in_force = members.filter(|id| is_active(id) && may(&open.ballots, id)).cloned().collect();
    let joining = joining_members(state, &open.proposal.change).into_iter().map(|member| &member.id);
    let proposed = joining.filter(|id| may(&open.joining, id)).cloned().collect();
    let approvals = open.ballots.values().filter(|signed| signed.ballot.choice == Choice::Approve);
    let by_key = approvals.into_iter().any(SignedBallot::is_hybrid);
    let approved = Approvals { in_force: approve(&open.ballots), proposed: approve(&open.joining), by_key };
    // A member that approved by passkey may still approve by its keys.
    let possible = Approvals { in_force, proposed, by_key: true };
    debug_assert!(approved.in_force.is_subset(&possible.in_force), "a vote that was cast is possible");
    (approved, possible)
}

/// Returns the proposal whose waiting time is over, of several the one that was to take effect first.
fn first_due(cluster: &Cluster, now: ClusterTime) -> Option<ProposalId> {
    let state = cluster.circle_state()?;
    let end = |(id, open): (&ProposalId, &OpenProposal)| Some((takes_effect_at(state, open)?, *id));
    let (_, id) = cluster.open.iter().filter_map(end).min().filter(|(end, _)| ClusterTime(*end) <= now)?;
    let decided_at = cluster.open.get(&id).and_then(|open| open.decided_at);
    debug_assert!(decided_at.is_some_and(|decided_at| decided_at <= now), "what is due was decided before");
    Some(id)
}

/// Returns whether the waiting time of any change is over.
pub(super) fn is_any_due(cluster: &Cluster, now: ClusterTime) -> bool {
    first_due(cluster, now).is_some()
}

/// Puts the changes into force whose waiting time is over. One that no longer applies, such as after an
/// admission under a key that it gives to a member, is closed instead.
pub(super) fn admit_due(cluster: &mut Cluster, index: u64) {
    // Each change raises the epoch, so those after the first are stale and closed with it.
    while let Some(id) = first_due(cluster, cluster.now) {
        let Some(open) = cluster.open.get(&id).cloned() else { return };
        match admit(cluster, index, &open) {
            Ok(certificate) => close_decided(cluster, id, ProposalState::Approved, Some(certificate)),
            Err(refusal) => {
                cluster.close_proposal(id, ProposalState::Stale, None);
                let subject = format!("proposal/{}", id.short());
                cluster.audit.record(cluster.now, "circle", "stale", &subject, refusal.code.as_str());
            }
        }
        debug_assert!(!cluster.open.contains_key(&id), "what was due is closed");
    }
}

/// Removes the open ballots that do not stand after the latest decision, and judges every open proposal
/// again: the votes of a suspended member, cast or not, are missing in each. The members of void ballots may
/// vote again, unless they are suspended.
pub(super) fn remove_void_ballots(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let ballots = cluster.open.iter().flat_map(|(id, open)| open.ballots.iter().map(|(by, b)| (*id, by, b)));
    let void = ballots.filter(|(_, _, signed)| !state.ballot_stands(signed));
    let void: Vec<(ProposalId, MemberId)> = void.map(|(id, member, _)| (id, member.clone())).collect();
    for (id, member) in &void {
        if let Some(open) = cluster.open.get_mut(id) {
            open.ballots.remove(member);
        }
        let (subject, detail) = (format!("proposal/{}", id.short()), format!("ballot of member/{member}"));
        cluster.audit.record(cluster.now, "circle", "void", &subject, &detail);
    }
    let stands = |signed| cluster.circle_state().is_some_and(|state| state.ballot_stands(signed));
    debug_assert!(
        cluster.open.values().flat_map(|open| open.ballots.values()).all(stands),
        "the rest stands"
    );
    for id in cluster.open.keys().copied().collect::<Vec<_>>() {
        judge_again(cluster, id);
    }
}

/// Judges a proposal again after a decision: it may wait no longer, or its quorum may be out of reach.
fn judge_again(cluster: &mut Cluster, id: ProposalId) {
    let Some(state) = cluster.circle_state() else { return };
    let Some(judged) = cluster.open.get(&id).map(|open| judge(state, open)) else { return };
    debug_assert_ne!(judged, ProposalState::Approved, "no proposal is approved by fewer ballots");
    if let Some(open) = cluster.open.get_mut(&id).filter(|_| judged != ProposalState::Waiting) {
        open.decided_at = None;
    }
    if judged == ProposalState::Rejected {
        close_decided(cluster, id, judged, None);
    }
}
