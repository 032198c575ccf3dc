//! Governance commands: founding the circle, proposals, ballots, and the effects of an approved change.

use super::execute::settle;
use super::{is_over, waiting};
use crate::cluster::{Circle, Cluster, HoldingPhase, OpenProposal, Service, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use crate::limits::{PROPOSALS_PER_ACTOR_MAX, REJECTED_PROPOSALS_MAX};
use human_chain::{ChainError, CircleState, assemble, check_ballot, check_proposal, check_waited, show_time};
use protocol::api::ProposalState;
use protocol::error_code::{
    CIRCLE_ALREADY_FOUNDED, CIRCLE_NOT_FOUNDED, GOVERNANCE_INVALID, LIMIT_REACHED, PROPOSAL_EXPIRED,
    PROPOSAL_NOT_FOUND, PROPOSAL_STALE,
};
use protocol::governance::{
    BUNDLE_VERSION, Bundle, Certificate, Change, Choice, LogEvidence, Proposal, SignedBallot, SignedGenesis,
};
use protocol::keys::EncryptionKey;
use protocol::limits::{CLOCK_GRACE_MS, PROPOSALS_OPEN_MAX};
use protocol::manifest::{Manifest, ServiceManifest};
use protocol::model::Recipient;
use protocol::{Digest, MemberId, Millis, NodeId, ProposalId};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn found(cluster: &mut Cluster, signed: &SignedGenesis) -> Result<Reply, Refusal> {
    if cluster.circle.is_some() {
        return Err(Refusal::new(CIRCLE_ALREADY_FOUNDED, "this cluster has a circle already"));
    }
    debug_assert!(cluster.services.is_empty(), "nothing is approved before the circle is founded");
    let state = CircleState::found(signed, None)?;
    let circle = state.id();
    cluster.circle = Some(Circle {
        genesis: signed.clone(),
        chain: Vec::new(),
        state,
        positions: BTreeMap::new(),
        latest_created_at: Millis::default(),
    });
    cluster.generation += 1;
    let detail = format!("{} members", signed.genesis.members.len());
    cluster.audit.record(cluster.now, "founders", "found", &format!("circle/{}", circle.short()), &detail);
    Ok(Reply::Founded { circle })
}

pub(super) fn submit(cluster: &mut Cluster, actor: &Actor, proposal: &Proposal) -> Result<Reply, Refusal> {
    let id = proposal.id();
    if cluster.open.contains_key(&id) {
        return Ok(Reply::Submitted { proposal: id });
    }
    // Ballots name a proposal by its id, so a decided proposal that returns would inherit its earlier votes.
    if cluster.closed.iter().any(|closed| closed.proposal.id() == id) || cluster.rejected.contains_key(&id) {
        return Err(not_open(cluster, id));
    }
    if cluster.open.len() >= PROPOSALS_OPEN_MAX {
        let message = format!("{PROPOSALS_OPEN_MAX} proposals wait for votes; decide some of them first");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    if cluster.open.values().filter(|open| open.actor == *actor).count() >= PROPOSALS_PER_ACTOR_MAX {
        let message = format!(
            "{PROPOSALS_PER_ACTOR_MAX} proposals of {actor} wait for votes; decide some of them first"
        );
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    check_submitted(circle(cluster)?, proposal, cluster.now.0)?;
    if let Change::ForgetModel { model, .. } = &proposal.change {
        super::registry::check_forgetting(cluster, model)?;
    }
    let subject = format!("proposal/{}", id.short());
    cluster.audit.record(cluster.now, &actor.to_string(), "propose", &subject, &summary(&proposal.change));
    let open = OpenProposal {
        proposal: proposal.clone(),
        ballots: BTreeMap::new(),
        joining: BTreeMap::new(),
        decided_at: None,
        actor: actor.clone(),
        submitted_at: cluster.now,
    };
    cluster.open.insert(id, open);
    debug_assert!(cluster.open.len() <= PROPOSALS_OPEN_MAX, "checked before the proposal was opened");
    Ok(Reply::Submitted { proposal: id })
}

/// Checks a submitted proposal. Decisions about other subjects since it was made do not matter.
fn check_submitted(state: &CircleState, proposal: &Proposal, now: Millis) -> Result<(), Refusal> {
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
    Ok(check_proposal(state, proposal)?)
}

pub(super) fn cast(cluster: &mut Cluster, index: u64, signed: &SignedBallot) -> Result<Reply, Refusal> {
    let id = signed.ballot.proposal;
    let member = &signed.ballot.member;
    let Some(open) = cluster.open.get(&id) else { return Err(not_open(cluster, id)) };
    let known = circle(cluster)?;
    waiting::check_cast(known, open, signed)?;
    let electorate = check_ballot(known, &open.proposal, signed, cluster.now.0)?;
    let mut open = open.clone();
    waiting::insert(known, &mut open, electorate, signed)?;
    let state = waiting::judge(known, &open);
    let certificate = match state {
        ProposalState::Approved => Some(admit(cluster, index, &open)?),
        _ => None,
    };
    open.decided_at = (state == ProposalState::Waiting).then_some(cluster.now);
    let (actor, subject) = (Actor::Member(member.clone()).to_string(), format!("proposal/{}", id.short()));
    let action = if signed.ballot.choice == Choice::Approve { "approve" } else { "reject" };
    cluster.audit.record(cluster.now, &actor, action, &subject, &summary(&open.proposal.change));
    cluster.open.insert(id, open);
    if state == ProposalState::Waiting {
        cluster.audit.record(cluster.now, "circle", "waiting", &subject, "any member may veto it");
    } else if state != ProposalState::Open {
        close_decided(cluster, id, state, certificate);
        drop_void_ballots(cluster);
    }
    Ok(Reply::Counted { proposal: id, state, certificate })
}

/// Closes a proposal that was approved or rejected, and those that no longer apply since.
pub(super) fn close_decided(
    cluster: &mut Cluster,
    id: ProposalId,
    state: ProposalState,
    certificate: Option<Digest>,
) {
    let expires_at = cluster.open.get(&id).map(|open| open.proposal.expires_at);
    cluster.close_proposal(id, state, certificate);
    if let Some(expires_at) = expires_at.filter(|_| state == ProposalState::Rejected) {
        remember_rejected(cluster, id, expires_at);
    }
    let word = if state == ProposalState::Approved { "in-force" } else { "rejected" };
    let detail = certificate.map(|digest| format!("certificate {}", digest.short())).unwrap_or_default();
    cluster.audit.record(cluster.now, "circle", word, &format!("proposal/{}", id.short()), &detail);
    close_stale(cluster);
}

/// Remembers a rejected proposal until it can no longer be brought, and forgets those that have expired.
fn remember_rejected(cluster: &mut Cluster, id: ProposalId, expires_at: Millis) {
    let now = cluster.now;
    cluster.rejected.retain(|_, end| !is_over(*end, now));
    if cluster.rejected.len() >= REJECTED_PROPOSALS_MAX {
        let first = cluster.rejected.iter().min_by_key(|(id, end)| (**end, **id)).map(|(id, _)| *id);
        if let Some(first) = first {
            cluster.rejected.remove(&first);
        }
    }
    cluster.rejected.insert(id, expires_at);
    debug_assert!(cluster.rejected.len() <= REJECTED_PROPOSALS_MAX, "a full list forgets before it takes");
}

fn not_open(cluster: &Cluster, id: ProposalId) -> Refusal {
    debug_assert!(!cluster.open.contains_key(&id), "an open proposal is refused for another cause");
    let closed = cluster.closed.iter().rev().find(|closed| closed.proposal.id() == id);
    match closed.map(|closed| (closed.state, show_time(closed.closed_at.0))) {
        Some((ProposalState::Expired, at)) => {
            Refusal::new(PROPOSAL_EXPIRED, format!("the proposal expired at {at}; propose it again"))
        }
        Some((ProposalState::Stale, at)) => {
            let message = format!("its subject was changed at {at}; propose it again");
            Refusal::new(PROPOSAL_STALE, message)
        }
        Some((_, at)) => Refusal::new(PROPOSAL_NOT_FOUND, format!("the proposal was decided at {at}")),
        None if cluster.rejected.contains_key(&id) => {
            Refusal::new(PROPOSAL_NOT_FOUND, "the proposal was rejected; make a new one")
        }
        None => Refusal::new(PROPOSAL_NOT_FOUND, format!("no open proposal {id}")),
    }
}

/// Assembles the certificate, verifies it as any other verifier would, and puts the change into force.
pub(super) fn admit(cluster: &mut Cluster, index: u64, open: &OpenProposal) -> Result<Digest, Refusal> {
    let state = circle(cluster)?;
    // Each ballot was verified on arrival; this verifies them all again, as every later verifier will.
    let certificate = assemble(&open.proposal, open.ballots.values().chain(open.joining.values()));
    let digest = certificate.digest();
    let approved = human_chain::verify(state, &certificate, cluster.now.0)?;
    check_waited(state, &certificate, cluster.now.0)?;
    let keys_before = super::registry::recipient_keys(cluster);
    let circle = cluster.circle.as_mut().ok_or_else(not_founded)?;
    circle.state.advance(approved)?;
    debug_assert_eq!(circle.positions.len(), circle.chain.len(), "the index covers the chain");
    circle.positions.insert(digest, circle.chain.len());
    circle.latest_created_at = circle.latest_created_at.max(certificate.proposal.created_at);
    circle.chain.push(bundle(certificate, index));
    cluster.generation += 1;
    put_in_force(cluster, &open.proposal.change, digest);
    revoke_from_departed(cluster, &keys_before);
    if let Change::SuspendMember { member, .. } = &open.proposal.change {
        waiting::void_ballots(cluster, member, open.proposal.id());
    }
    settle(cluster);
    Ok(digest)
}

fn bundle(certificate: Certificate, index: u64) -> Bundle {
    debug_assert!(index > 0, "a log begins at index 1");
    let log_evidence = Some(LogEvidence { sequence: index });
    Bundle { version: BUNDLE_VERSION, certificate, log_evidence }
}

fn put_in_force(cluster: &mut Cluster, change: &Change, certificate: Digest) {
    match change {
        Change::Deploy(manifest) => {
            let is_service = matches!(manifest.as_ref(), Manifest::Service(_));
            debug_assert!(is_service, "a kind that nothing runs is refused when it is proposed");
            if let Manifest::Service(manifest) = manifest.as_ref() {
                deploy(cluster, manifest, certificate);
            }
        }
        Change::Retire { service, grace_seconds } => {
            let until = cluster.now.plus(u64::from(*grace_seconds) * 1000);
            if let Some(service) = cluster.services.get_mut(service) {
                debug_assert_eq!(service.phase, ServicePhase::Active, "only what is in force is retired");
                service.phase = ServicePhase::Retiring { until };
            }
        }
        Change::AdmitNode(admission) => {
            cluster.pending.remove(&admission.id);
        }
        Change::RemoveNode { .. }
        | Change::ForgetModel { .. }
        | Change::Lift { .. }
        | Change::SetMembers { .. }
        | Change::SuspendMember { .. }
        | Change::SetPasskeys { .. } => {}
    }
}

fn deploy(cluster: &mut Cluster, manifest: &ServiceManifest, certificate: Digest) {
    let before = cluster.manifests.insert(certificate, manifest.clone());
    debug_assert_eq!(before, None, "a certificate comes into force once");
    let desired = cluster.desired_under(manifest);
    let range = manifest.replicas;
    debug_assert!((range.min..=range.max).contains(&desired), "replicas are wanted inside the envelope");
    let approved = cluster.circle_state().and_then(|state| state.service(&manifest.name));
    let version = approved.map_or(0, |service| service.version);
    debug_assert!(version > 0, "the circle's own state takes a change before the cluster does");
    let known = cluster.services.remove(&manifest.name);
    let service = Service {
        manifest: manifest.clone(),
        certificate,
        version,
        desired,
        phase: ServicePhase::Active,
        slots: known.map(|service| service.slots).unwrap_or_default(),
        avoid: BTreeMap::new(),
    };
    cluster.services.insert(manifest.name.clone(), service);
}

/// Revokes slots and wraps of identities that are no longer admitted. Such a node gets no lease and no key:
/// its slots are free when its last lease ends, and its wraps are dropped. Wraps to a replaced encryption key
/// are dropped too.
fn revoke_from_departed(cluster: &mut Cluster, before: &BTreeMap<Recipient, EncryptionKey>) {
    super::registry::drop_useless_wraps(cluster, before);
    let after: BTreeSet<NodeId> = cluster.nodes().map(|node| node.id).collect();
    let generation = cluster.generation;
    for slot in cluster.services.values_mut().flat_map(|service| service.slots.values_mut()) {
        let Some(holding) = &mut slot.holding else { continue };
        let phase = match (after.contains(&holding.order.node), &holding.phase) {
            (false, HoldingPhase::Lapsing) => continue,
            (false, _) => HoldingPhase::Lapsing,
            // The node was admitted again before the lapse: it may still run the slot, and is ordered to end
            // it.
            (true, HoldingPhase::Lapsing) => HoldingPhase::Ending { generation },
            (true, _) => continue,
        };
        holding.phase = phase;
        slot.since = cluster.now;
    }
}

/// Closes every open proposal that no longer applies, since a signature does not carry over to a state that
/// its signer did not see.
fn close_stale(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let stands = |proposal: &Proposal| {
        proposal.epoch == state.epoch()
            && proposal.subjects.iter().all(|seen| state.subject(&seen.subject) == *seen)
    };
    let stale: Vec<ProposalId> =
        cluster.open.iter().filter(|(_, open)| !stands(&open.proposal)).map(|(id, _)| *id).collect();
    for id in stale {
        cluster.close_proposal(id, ProposalState::Stale, None);
        cluster.audit.record(cluster.now, "circle", "stale", &format!("proposal/{}", id.short()), "");
    }
}

/// Drops the open ballots whose passkey was dropped, or fell behind its counter, by what was just decided.
/// Their members may vote again.
fn drop_void_ballots(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let ballots = cluster.open.iter().flat_map(|(id, open)| open.ballots.iter().map(|(by, b)| (*id, by, b)));
    let void: Vec<(ProposalId, MemberId)> = ballots
        .filter(|(_, _, signed)| !state.ballot_stands(signed))
        .map(|(id, member, _)| (id, member.clone()))
        .collect();
    for (id, member) in void {
        if let Some(open) = cluster.open.get_mut(&id) {
            open.ballots.remove(&member);
        }
        let (actor, subject) = (Actor::Member(member).to_string(), format!("proposal/{}", id.short()));
        cluster.audit.record(cluster.now, &actor, "ballot-void", &subject, "");
    }
    let stands = |signed| cluster.circle_state().is_some_and(|state| state.ballot_stands(signed));
    debug_assert!(
        cluster.open.values().flat_map(|open| open.ballots.values()).all(stands),
        "the rest stands"
    );
}

fn circle(cluster: &Cluster) -> Result<&CircleState, Refusal> {
    cluster.circle_state().ok_or_else(not_founded)
}

fn not_founded() -> Refusal {
    Refusal::new(CIRCLE_NOT_FOUNDED, "the circle is not founded yet")
}

/// Returns a short description of a change, for the audit log.
pub(crate) fn summary(change: &Change) -> String {
    match change {
        Change::Deploy(manifest) => format!("deploy {}", manifest.name()),
        Change::Retire { service, .. } => format!("retire {service}"),
        Change::AdmitNode(node) => format!("admit node {}", node.name),
        Change::RemoveNode { node } => format!("remove node {node}"),
        Change::ForgetModel { model, .. } => format!("forget model {}", model.name),
        Change::Lift { halts } => format!("lift {} halts", halts.len()),
        Change::SetMembers { members, .. } => format!("set {} members and the policy", members.len()),
        Change::SetPasskeys { member, passkeys } => format!("set {} passkeys of {member}", passkeys.len()),
        Change::SuspendMember { member, .. } => format!("suspend member {member}"),
    }
}
