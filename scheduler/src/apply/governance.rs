//! Governance commands: founding the circle, proposals, ballots, and the effects of an approved change.

use super::execute::settle;
use crate::cluster::{Circle, Cluster, HoldingPhase, OpenProposal, Service, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use human_chain::{
    ChainError, CircleState, assemble, check_ballot, check_proposal, class_of, satisfied, show_time,
};
use protocol::api::ProposalState;
use protocol::error_code::{
    BALLOT_DUPLICATE, CIRCLE_ALREADY_FOUNDED, CIRCLE_NOT_FOUNDED, LIMIT_REACHED, PROPOSAL_EXPIRED,
    PROPOSAL_NOT_FOUND, PROPOSAL_STALE,
};
use protocol::governance::{
    BUNDLE_VERSION, Bundle, Certificate, Change, LogEvidence, Proposal, SignedBallot, SignedGenesis,
};
use protocol::keys::EncryptionKey;
use protocol::limits::PROPOSALS_OPEN_MAX;
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
    cluster.circle =
        Some(Circle { genesis: signed.clone(), chain: Vec::new(), state, positions: BTreeMap::new() });
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
    if cluster.closed.iter().any(|closed| closed.proposal.id() == id) {
        return Err(not_open(cluster, id));
    }
    if cluster.open.len() >= PROPOSALS_OPEN_MAX {
        let message = format!("{PROPOSALS_OPEN_MAX} proposals wait for votes; decide some of them first");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    check_submitted(circle(cluster)?, proposal, cluster.now.0)?;
    let subject = format!("proposal/{}", id.short());
    cluster.audit.record(cluster.now, &actor.to_string(), "propose", &subject, &summary(&proposal.change));
    let open = OpenProposal {
        proposal: proposal.clone(),
        ballots: BTreeMap::new(),
        actor: actor.clone(),
        submitted_at: cluster.now,
    };
    cluster.open.insert(id, open);
    debug_assert!(cluster.open.len() <= PROPOSALS_OPEN_MAX, "checked before the proposal was opened");
    Ok(Reply::Submitted { proposal: id })
}

/// Checks a submitted proposal. Decisions about other subjects since it was made do not matter.
fn check_submitted(state: &CircleState, proposal: &Proposal, now: Millis) -> Result<(), Refusal> {
    if proposal.circle == state.id() && proposal.expires_at <= now {
        return Err(ChainError::Expired { expired_at: proposal.expires_at, now }.into());
    }
    Ok(check_proposal(state, proposal)?)
}

pub(super) fn cast(cluster: &mut Cluster, index: u64, signed: &SignedBallot) -> Result<Reply, Refusal> {
    let id = signed.ballot.proposal;
    let member = &signed.ballot.member;
    let Some(open) = cluster.open.get(&id) else { return Err(not_open(cluster, id)) };
    if open.ballots.contains_key(member) {
        let message = format!("member `{member}` has voted on this proposal already");
        return Err(Refusal::new(BALLOT_DUPLICATE, message));
    }
    check_ballot(circle(cluster)?, &open.proposal, signed, cluster.now.0)?;
    let mut open = open.clone();
    open.ballots.insert(member.clone(), signed.clone());
    let state = judge(circle(cluster)?, &open);
    let certificate = match state {
        ProposalState::Approved => Some(admit(cluster, index, &open)?),
        _ => None,
    };
    let (actor, subject) = (Actor::Member(member.clone()).to_string(), format!("proposal/{}", id.short()));
    let action =
        if signed.ballot.choice == protocol::governance::Choice::Approve { "approve" } else { "reject" };
    cluster.audit.record(cluster.now, &actor, action, &subject, &summary(&open.proposal.change));
    cluster.open.insert(id, open);
    if state != ProposalState::Open {
        cluster.close_proposal(id, state, certificate);
        let word = if state == ProposalState::Approved { "in-force" } else { "rejected" };
        let detail = certificate.map(|digest| format!("certificate {}", digest.short())).unwrap_or_default();
        cluster.audit.record(cluster.now, "circle", word, &subject, &detail);
        close_stale(cluster);
    }
    Ok(Reply::Counted { proposal: id, state, certificate })
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
        None => Refusal::new(PROPOSAL_NOT_FOUND, format!("no open proposal {id}")),
    }
}

/// Returns the state of a proposal. Its ballots were verified on arrival, and nothing that they depend on
/// changes while it is open. A new epoch closes every proposal of an earlier one.
fn judge(state: &CircleState, open: &OpenProposal) -> ProposalState {
    debug_assert_eq!(open.proposal.epoch, state.epoch(), "a new epoch closes every earlier proposal");
    let rule = state.quorum(class_of(&open.proposal.change));
    let (approved, possible) = votes(state, open);
    if satisfied(rule, &approved) {
        ProposalState::Approved
    } else if satisfied(rule, &possible) {
        ProposalState::Open
    } else {
        ProposalState::Rejected
    }
}

/// Returns the members that have approved, and those that have approved or still may.
fn votes(state: &CircleState, open: &OpenProposal) -> (BTreeSet<MemberId>, BTreeSet<MemberId>) {
    let is_member = |id: &MemberId| state.member(id).is_some();
    debug_assert!(open.ballots.keys().all(is_member), "no member leaves while a proposal is open");
    let choice = |id: &MemberId| open.ballots.get(id).map(|signed| signed.ballot.choice);
    let approves = Some(protocol::governance::Choice::Approve);
    let ids = || state.members().map(|member| &member.id);
    let approved: BTreeSet<MemberId> = ids().filter(|id| choice(id) == approves).cloned().collect();
    let possible: BTreeSet<MemberId> =
        ids().filter(|id| choice(id) == approves || choice(id).is_none()).cloned().collect();
    debug_assert!(approved.is_subset(&possible), "a vote that was cast is possible");
    (approved, possible)
}

/// Assembles the certificate, verifies it as any other verifier would, and puts the change into force.
fn admit(cluster: &mut Cluster, index: u64, open: &OpenProposal) -> Result<Digest, Refusal> {
    let state = circle(cluster)?;
    debug_assert_eq!(judge(state, open), ProposalState::Approved, "only an approved change comes into force");
    // Each ballot was verified on arrival; this verifies them all again, as every later verifier will.
    let certificate = assemble(&open.proposal, open.ballots.values());
    let digest = certificate.digest();
    let approved = human_chain::verify(state, &certificate, cluster.now.0)?;
    let keys_before = super::registry::recipient_keys(cluster);
    let circle = cluster.circle.as_mut().ok_or_else(not_founded)?;
    circle.state.advance(approved)?;
    debug_assert_eq!(circle.positions.len(), circle.chain.len(), "the index covers the chain");
    circle.positions.insert(digest, circle.chain.len());
    circle.chain.push(bundle(certificate, index));
    cluster.generation += 1;
    put_in_force(cluster, &open.proposal.change, digest);
    revoke_from_departed(cluster, &keys_before);
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
        Change::RemoveNode { .. } | Change::SetMembers { .. } => {}
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
        Change::SetMembers { members, .. } => format!("set {} members and the policy", members.len()),
    }
}
