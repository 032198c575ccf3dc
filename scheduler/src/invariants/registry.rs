//! Rules about models, keys, pending nodes and proposals.

use super::Invariant::{
    KeyNamesObject, ListBounded, NameUnique, ProposalClosed, ProposalOpen, RecordedInPast, WrapOfModel,
};
use super::{InvariantResult, ensure};
use crate::apply::all_comments;
use crate::clock::ClusterTime;
use crate::cluster::{ClosedProposal, Cluster, DraftProposal, OpenProposal};
use crate::limits::{
    BURNED_PER_MEMBER_MAX, BURNED_PROPOSALS_MAX, CLOSED_PROPOSALS_MAX, DRAFTS_MAX, DRAFTS_PER_TOKEN_MAX,
    MODELS_MAX, PENDING_NODES_MAX, PROPOSALS_PER_MEMBER_MAX, WRAPS_MAX,
};
use human_chain::is_vetoable;
use protocol::api::ProposalState;
use protocol::comment::{COMMENTS_OF_MEMBER_MAX, COMMENTS_PER_PROPOSAL_MAX, SignedComment};
use protocol::governance::SignedBallot;
use protocol::limits::PROPOSALS_OPEN_MAX;
use protocol::{MemberId, ProposalId};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check(cluster: &Cluster) -> InvariantResult {
    check_bounds(cluster)?;
    check_models(cluster)?;
    check_access(cluster)?;
    check_pending(cluster)?;
    for (id, open) in &cluster.open {
        check_open(cluster, id, open)?;
    }
    for (id, draft) in &cluster.drafts {
        check_draft(cluster, id, draft)?;
    }
    for closed in &cluster.closed {
        check_closed(cluster, closed)?;
    }
    Ok(())
}

fn check_bounds(cluster: &Cluster) -> InvariantResult {
    for (list, length, max) in [
        ("models", cluster.models.len(), MODELS_MAX),
        ("wraps", cluster.wraps.values().map(BTreeMap::len).sum(), WRAPS_MAX),
        ("pending nodes", cluster.pending.len(), PENDING_NODES_MAX),
        ("open proposals", cluster.open.len(), PROPOSALS_OPEN_MAX),
        ("closed proposals", cluster.closed.len(), CLOSED_PROPOSALS_MAX),
        ("drafts", cluster.drafts.len(), DRAFTS_MAX),
        ("burned proposals", cluster.burned.len(), BURNED_PROPOSALS_MAX),
        (
            "drafts of a token",
            most(cluster.drafts.values().map(|one| one.actor.to_string())),
            DRAFTS_PER_TOKEN_MAX,
        ),
        (
            "open proposals of a member",
            most(cluster.open.values().map(|one| &one.proposer)),
            PROPOSALS_PER_MEMBER_MAX,
        ),
        ("comments on a proposal", longest_thread(cluster), COMMENTS_PER_PROPOSAL_MAX),
        (
            "comments of a member",
            most(all_comments(cluster).map(|kept| &kept.comment.member)),
            COMMENTS_OF_MEMBER_MAX,
        ),
        (
            "burned proposals of a member",
            most(cluster.burned.values().map(|one| &one.proposer)),
            BURNED_PER_MEMBER_MAX,
        ),
    ] {
        ensure(length <= max, ListBounded, || format!("{length} {list}; at most {max}"))?;
    }
    Ok(())
}

/// Returns the number of comments on the proposal or draft with the most.
fn longest_thread(cluster: &Cluster) -> usize {
    let open = cluster.open.values().map(|open| open.comments.len());
    open.chain(cluster.drafts.values().map(|draft| draft.comments.len())).max().unwrap_or(0)
}

/// Returns how often the most frequent of these parties occurs.
fn most<T: Ord>(parties: impl Iterator<Item = T>) -> usize {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    parties.for_each(|party| *counts.entry(party).or_default() += 1);
    counts.into_values().max().unwrap_or(0)
}

fn check_models(cluster: &Cluster) -> InvariantResult {
    let named = |name: &str| format!("model {name}");
    for (root, record) in &cluster.models {
        ensure(record.root == *root, KeyNamesObject, || named(record.name.as_str()))?;
    }
    let names: BTreeSet<_> = cluster.models.values().map(|record| &record.name).collect();
    ensure(names.len() == cluster.models.len(), NameUnique, || "models".to_string())?;
    for (root, wraps) in &cluster.wraps {
        ensure(cluster.models.contains_key(root), WrapOfModel, || named(&root.short()))?;
        let filed = wraps
            .iter()
            .all(|(recipient, signed)| signed.wrap.root == *root && signed.wrap.recipient == *recipient);
        ensure(filed, KeyNamesObject, || format!("a wrap of {}", named(&root.short())))?;
    }
    Ok(())
}

fn check_access(cluster: &Cluster) -> InvariantResult {
    let outcome = cluster.access.check_invariants();
    ensure(outcome.is_ok(), KeyNamesObject, || outcome.clone().err().unwrap_or_default())
}

fn check_pending(cluster: &Cluster) -> InvariantResult {
    for (id, pending) in &cluster.pending {
        let subject = || format!("pending node {}", pending.admission.name);
        let filed = pending.id == *id && pending.admission.id == *id && cluster.node(id).is_none();
        ensure(filed, KeyNamesObject, subject)?;
        ensure(ClusterTime(pending.last_seen) <= cluster.now, RecordedInPast, subject)?;
    }
    Ok(())
}

fn check_open(cluster: &Cluster, id: &ProposalId, open: &OpenProposal) -> InvariantResult {
    let subject = || format!("proposal {}", id.short());
    ensure(open.proposal.id() == *id, KeyNamesObject, subject)?;
    ensure(open.submitted_at <= cluster.now, RecordedInPast, subject)?;
    ensure(open.decided_at.is_none_or(|at| at <= cluster.now), RecordedInPast, subject)?;
    let present = cluster.circle_state().is_some_and(|state| {
        let filed = |(member, signed): (&MemberId, &SignedBallot)| {
            signed.ballot.member == *member && signed.ballot.proposal == *id
        };
        let counts = |member: &MemberId| state.active_member(member).is_ok();
        let waits = open.decided_at.is_none() || is_vetoable(state, &open.proposal.change);
        let all_filed = open.ballots.iter().chain(&open.joining).all(filed) && are_about(&open.comments, id);
        state.epoch() == open.proposal.epoch && waits && all_filed && open.ballots.keys().all(counts)
    });
    ensure(present && !is_decided(cluster, id), ProposalOpen, subject)
}

fn check_draft(cluster: &Cluster, id: &ProposalId, draft: &DraftProposal) -> InvariantResult {
    let subject = || format!("draft {}", id.short());
    ensure(draft.proposal.id() == *id, KeyNamesObject, subject)?;
    ensure(draft.submitted_at <= cluster.now, RecordedInPast, subject)?;
    let present = cluster.circle_state().is_some_and(|state| state.epoch() == draft.proposal.epoch);
    let opened = cluster.open.contains_key(id) || is_decided(cluster, id);
    ensure(present && !opened && are_about(&draft.comments, id), ProposalOpen, subject)
}

fn are_about(comments: &[SignedComment], id: &ProposalId) -> bool {
    comments.iter().all(|kept| kept.comment.proposal == *id)
}

fn is_decided(cluster: &Cluster, id: &ProposalId) -> bool {
    cluster.closed.iter().any(|closed| closed.proposal.id() == *id) || cluster.burned.contains_key(id)
}

fn check_closed(cluster: &Cluster, closed: &ClosedProposal) -> InvariantResult {
    let subject = || format!("proposal {}", closed.proposal.id().short());
    ensure(closed.closed_at <= cluster.now, RecordedInPast, subject)?;
    let certified = match closed.certificate {
        Some(certificate) => {
            closed.state == ProposalState::Approved
                && cluster.bundle(&certificate).is_some_and(|b| b.certificate.proposal == closed.proposal)
        }
        None => !matches!(closed.state, ProposalState::Open | ProposalState::Draft | ProposalState::Approved),
    };
    ensure(certified, ProposalClosed, subject)
}
