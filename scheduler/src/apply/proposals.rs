//! Proposals as they come and go: drafts of access tokens, openings by members, and withdrawals.
//!
//! An access token alone makes drafts. A draft is a whole proposal that no member has signed; it has a place
//! among its token's drafts and none among the open proposals. The first member that approves a draft becomes
//! its proposer. A member can also bring a proposal with its own approval, beside any number of drafts.

use super::governance::{count, stands, summary};
use super::is_over;
use super::known::{circle, not_open};
use crate::clock::ClusterTime;
use crate::cluster::{BurnedProposal, Cluster, DraftProposal, OpenProposal};
use crate::command::{Actor, Refusal, Reply};
use crate::limits::{
    BURNED_PER_MEMBER_MAX, BURNED_PROPOSALS_MAX, DRAFT_LIFETIME_MS, DRAFTS_MAX, DRAFTS_PER_TOKEN_MAX,
    PROPOSALS_PER_MEMBER_MAX,
};
use human_chain::{ChainError, Electorate, check_proposal, check_withdrawal, propose, show_time};
use protocol::api::ProposalState;
use protocol::error_code::{GOVERNANCE_INVALID, LIMIT_REACHED, PROPOSAL_UNSIGNED, WITHDRAWAL_REFUSED};
use protocol::governance::{Change, Choice, Proposal, SignedBallot, SignedWithdrawal};
use protocol::limits::{CLOCK_GRACE_MS, PROPOSALS_OPEN_MAX};
use protocol::manifest::Manifest;
use protocol::{Digest, MemberId, ProposalId};
use std::collections::BTreeMap;

/// Digest domain of the nonce of a proposal that the cluster makes.
const NONCE_DOMAIN: &str = "quorate/drafted-proposal/v1";

/// Keeps a proposal as a draft. One that is known already is not kept twice.
pub(super) fn submit(cluster: &mut Cluster, actor: &Actor, proposal: &Proposal) -> Result<Reply, Refusal> {
    let id = proposal.id();
    if cluster.open.contains_key(&id) || cluster.drafts.contains_key(&id) {
        return Ok(Reply::Submitted { proposal: id });
    }
    check_new(cluster, id)?;
    if cluster.drafts.len() >= DRAFTS_MAX {
        let message = format!("{DRAFTS_MAX} drafts wait for a member; withdraw or approve some of them");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    if cluster.drafts.values().filter(|draft| draft.actor == *actor).count() >= DRAFTS_PER_TOKEN_MAX {
        let message = format!(
            "{DRAFTS_PER_TOKEN_MAX} drafts of {actor} wait for a member; withdraw some of them, or propose \
             as a member: --key"
        );
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    check_submitted(cluster, proposal)?;
    let (proposal, actor, submitted_at) = (proposal.clone(), actor.clone(), cluster.now);
    record_draft(cluster, &actor.to_string(), "draft", id, &summary(&proposal.change));
    cluster.drafts.insert(id, DraftProposal { proposal, actor, submitted_at, comments: Vec::new() });
    debug_assert!(cluster.drafts.len() <= DRAFTS_MAX, "checked before the draft was kept");
    Ok(Reply::Submitted { proposal: id })
}

/// Drafts the deployment of a manifest: the cluster names the state that it sees. `index` makes the nonce
/// unique.
pub(super) fn draft_deployment(
    cluster: &mut Cluster,
    index: u64,
    actor: &Actor,
    manifest: &Manifest,
    reason: &str,
) -> Result<Reply, Refusal> {
    let state = circle(cluster)?;
    let nonce = Digest::of_domain(NONCE_DOMAIN, &index.to_le_bytes());
    let (now, change) = (cluster.now.0, Change::Deploy(Box::new(manifest.clone())));
    let proposal = propose(state, change, reason.to_string(), now, now.plus(DRAFT_LIFETIME_MS), nonce)?;
    submit(cluster, actor, &proposal)
}

/// Opens a proposal by the approval of its proposer. If it is open already, the ballot is cast.
pub(super) fn open(
    cluster: &mut Cluster,
    index: u64,
    proposal: &Proposal,
    ballot: &SignedBallot,
) -> Result<Reply, Refusal> {
    let id = proposal.id();
    if cluster.open.contains_key(&id) {
        return cast(cluster, index, ballot);
    }
    check_new(cluster, id)?;
    check_submitted(cluster, proposal)?;
    check_places(cluster, &ballot.ballot.member)?;
    let opening = OpenProposal {
        proposal: proposal.clone(),
        ballots: BTreeMap::new(),
        joining: BTreeMap::new(),
        decided_at: None,
        proposer: ballot.ballot.member.clone(),
        submitted_at: cluster.now,
        comments: cluster.drafts.get(&id).map(|draft| draft.comments.clone()).unwrap_or_default(),
    };
    // A decision closes what it makes stale, and the draft is the same proposal.
    let draft = cluster.drafts.remove(&id);
    let counted = count(cluster, index, opening, ballot);
    if let (Err(_), Some(draft)) = (&counted, draft) {
        cluster.drafts.insert(id, draft);
    }
    debug_assert!(cluster.open.len() <= PROPOSALS_OPEN_MAX, "checked before the proposal was opened");
    counted
}

/// Casts a ballot on an open proposal, or opens a draft with it.
pub(super) fn cast(cluster: &mut Cluster, index: u64, signed: &SignedBallot) -> Result<Reply, Refusal> {
    let id = signed.ballot.proposal;
    if let Some(draft) = cluster.drafts.get(&id) {
        let proposal = draft.proposal.clone();
        return open(cluster, index, &proposal, signed);
    }
    match cluster.open.get(&id).cloned() {
        Some(open) => count(cluster, index, open, signed),
        None => Err(not_open(cluster, id)),
    }
}

/// Checks the ballot that opens a proposal: an approval by keys in force.
pub(super) fn check_opening(signed: &SignedBallot, electorate: Electorate) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(Refusal::new(PROPOSAL_UNSIGNED, message));
    if signed.ballot.choice != Choice::Approve {
        return refuse("no member has signed this draft, so there is nothing to reject; withdraw it instead");
    }
    match electorate {
        Electorate::InForce => Ok(()),
        Electorate::Proposed => refuse("a proposer signs with keys in force, not with those of the proposal"),
    }
}

/// Refuses a proposal that was decided or withdrawn. Ballots name a proposal by its id, so one that returns
/// would inherit its earlier votes.
fn check_new(cluster: &Cluster, id: ProposalId) -> Result<(), Refusal> {
    if cluster.closed.iter().any(|closed| closed.proposal.id() == id) || cluster.burned.contains_key(&id) {
        return Err(not_open(cluster, id));
    }
    Ok(())
}

/// Checks a submitted proposal. Decisions about other subjects since it was made do not matter.
fn check_submitted(cluster: &Cluster, proposal: &Proposal) -> Result<(), Refusal> {
    let (state, now) = (circle(cluster)?, cluster.now.0);
    if proposal.circle == state.id() && proposal.created_at > now.plus(CLOCK_GRACE_MS) {
        let message = format!(
            "proposal.created_at: {} is ahead of the cluster's time, {}; check the clock of the proposer's \
             machine, and `quorate status` for those of the control replicas",
            show_time(proposal.created_at),
            show_time(now)
        );
        return Err(Refusal::new(GOVERNANCE_INVALID, message));
    }
    if proposal.circle == state.id() && proposal.expires_at <= now {
        return Err(ChainError::Expired { expired_at: proposal.expires_at, now }.into());
    }
    check_proposal(state, proposal)?;
    match &proposal.change {
        Change::ForgetModel { model, .. } => super::registry::check_forgetting(cluster, model),
        _ => Ok(()),
    }
}

/// Checks that a member has a place for one more open proposal, and the list has one.
fn check_places(cluster: &Cluster, member: &MemberId) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(LIMIT_REACHED, message));
    if cluster.open.len() >= PROPOSALS_OPEN_MAX {
        return refuse(format!("{PROPOSALS_OPEN_MAX} proposals wait for votes; decide some of them first"));
    }
    let open = cluster.open.values().filter(|open| open.proposer == *member).count();
    if open >= PROPOSALS_PER_MEMBER_MAX {
        return refuse(format!(
            "{PROPOSALS_PER_MEMBER_MAX} proposals of member/{member} wait for votes; decide or withdraw some \
             of them first"
        ));
    }
    let is_kept = |burned: &&BurnedProposal| burned.proposer == *member && !is_gone(burned, cluster.now);
    let burned: Vec<&BurnedProposal> = cluster.burned.values().filter(is_kept).collect();
    if open + burned.len() >= BURNED_PER_MEMBER_MAX {
        let first = burned.iter().map(|burned| burned.expires_at).min().unwrap_or_default();
        return refuse(format!(
            "{} proposals of member/{member} were rejected or withdrawn and have not expired; the first \
             expires at {}",
            burned.len(),
            show_time(first)
        ));
    }
    Ok(())
}

fn is_gone(burned: &BurnedProposal, now: ClusterTime) -> bool {
    is_over(burned.expires_at, now)
}

/// Remembers an open proposal that is rejected, withdrawn or void until it can no longer be brought, and
/// forgets those that have expired.
pub(super) fn burn(cluster: &mut Cluster, id: ProposalId) {
    let now = cluster.now;
    cluster.burned.retain(|_, burned| !is_gone(burned, now));
    let Some(open) = cluster.open.get(&id) else { return };
    let (proposer, expires_at) = (open.proposer.clone(), open.proposal.expires_at);
    cluster.burned.insert(id, BurnedProposal { proposer, expires_at });
    debug_assert!(
        cluster.burned.len() <= BURNED_PROPOSALS_MAX,
        "each member's share is checked when it opens"
    );
}

/// Closes the open proposals of suspended members, with the ballots of others on them: the text that they
/// approved may be a thief's. A member that wants the change proposes it again.
pub(super) fn close_of_suspended(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let void = cluster.open.iter().filter(|(_, open)| state.is_suspended(&open.proposer));
    let void: Vec<(ProposalId, MemberId)> = void.map(|(id, open)| (*id, open.proposer.clone())).collect();
    for (id, proposer) in void {
        burn(cluster, id);
        cluster.close_proposal(id, ProposalState::Void, None);
        let (subject, detail) =
            (format!("proposal/{}", id.short()), format!("proposed by member/{proposer}"));
        cluster.audit.record(cluster.now, "circle", "void", &subject, &detail);
    }
}

/// Withdraws a proposal by its proposer's signature, or a draft by any member's or by its maker.
pub(super) fn withdraw(
    cluster: &mut Cluster,
    actor: &Actor,
    id: ProposalId,
    signed: Option<&SignedWithdrawal>,
) -> Result<Reply, Refusal> {
    let refuse = |message: String| Err(Refusal::new(WITHDRAWAL_REFUSED, message));
    let Some(signed) = signed else { return withdraw_own_draft(cluster, actor, id) };
    let withdrawal = &signed.withdrawal;
    if withdrawal.proposal != id {
        return refuse("the withdrawal is of another proposal than that of the request".into());
    }
    check_withdrawal(circle(cluster)?, signed)?;
    let by = Actor::Member(withdrawal.member.clone()).to_string();
    if withdrawal.draft {
        return match cluster.drafts.remove(&id) {
            Some(_) => {
                record_draft(cluster, &by, "withdraw", id, "");
                Ok(Reply::Done)
            }
            None if cluster.open.contains_key(&id) => {
                refuse("a member has signed it since: it is no draft any more".into())
            }
            None => Err(not_open(cluster, id)),
        };
    }
    match cluster.open.get(&id) {
        Some(open) if open.proposer == withdrawal.member => {
            burn(cluster, id);
            cluster.close_proposal(id, ProposalState::Withdrawn, None);
            let subject = format!("proposal/{}", id.short());
            cluster.audit.record(cluster.now, &by, "withdraw", &subject, "");
            Ok(Reply::Done)
        }
        Some(open) => refuse(format!("member/{} proposed it, and withdraws it alone", open.proposer)),
        None if cluster.drafts.contains_key(&id) => {
            refuse("it is a draft, which no member has signed".into())
        }
        None => Err(not_open(cluster, id)),
    }
}

fn withdraw_own_draft(cluster: &mut Cluster, actor: &Actor, id: ProposalId) -> Result<Reply, Refusal> {
    let refuse = |message: String| Err(Refusal::new(WITHDRAWAL_REFUSED, message));
    match cluster.drafts.get(&id) {
        Some(draft) if draft.actor == *actor => {
            cluster.drafts.remove(&id);
            record_draft(cluster, &actor.to_string(), "withdraw", id, "");
            Ok(Reply::Done)
        }
        Some(draft) => refuse(format!("the draft is of {}; a member withdraws it with --key", draft.actor)),
        None => match cluster.open.get(&id) {
            Some(open) => {
                refuse(format!("member/{} proposed it, and withdraws it with --key", open.proposer))
            }
            None => Err(not_open(cluster, id)),
        },
    }
}

/// Returns the drafts that no member took up in time.
pub(super) fn expired_drafts(cluster: &Cluster, now: ClusterTime) -> impl Iterator<Item = ProposalId> {
    let over = move |draft: &DraftProposal| is_over(draft.proposal.expires_at, now);
    cluster.drafts.iter().filter(move |(_, draft)| over(draft)).map(|(id, _)| *id)
}

pub(super) fn drop_expired_drafts(cluster: &mut Cluster) {
    let expired: Vec<ProposalId> = expired_drafts(cluster, cluster.now).collect();
    drop_drafts(cluster, "scheduler", "expire", &expired);
}

/// Drops the drafts that no longer apply.
pub(super) fn drop_stale_drafts(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let stale = cluster.drafts.iter().filter(|(_, draft)| !stands(state, &draft.proposal));
    let stale: Vec<ProposalId> = stale.map(|(id, _)| *id).collect();
    drop_drafts(cluster, "circle", "stale", &stale);
}

fn drop_drafts(cluster: &mut Cluster, actor: &str, action: &str, ids: &[ProposalId]) {
    for id in ids {
        cluster.drafts.remove(id);
        record_draft(cluster, actor, action, *id, "");
    }
}

fn record_draft(cluster: &mut Cluster, actor: &str, action: &str, id: ProposalId, detail: &str) {
    cluster.audit.record(cluster.now, actor, action, &format!("draft/{}", id.short()), detail);
}
