//! Governance commands: founding the circle, counting ballots, and the effects of an approved change.

use super::execute::settle;
use super::known::{circle, not_founded};
use super::registry::TouchedKeys;
use super::{comments, jobs, proposals, registry, waiting};
use crate::cluster::{Circle, Cluster, HoldingPhase, OpenProposal, Service, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use crate::roll_out::{ReturnTarget, RollOut, RollOutPhase};
use crate::usage::{self, MeterEnds};
use human_chain::{CircleState, assemble, check_ballot, check_waited};
use protocol::api::ProposalState;
use protocol::display::counted;
use protocol::error_code::CIRCLE_ALREADY_FOUNDED;
use protocol::governance::{
    BUNDLE_VERSION, Bundle, Certificate, Change, Choice, LogEvidence, Proposal, SignedBallot, SignedGenesis,
};
use protocol::manifest::{Manifest, ServiceManifest};
use protocol::{Digest, Millis, ProposalId};
use std::collections::BTreeMap;

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
    let detail = counted(signed.genesis.members.len() as u64, "member");
    cluster.audit.record(cluster.now, "founders", "found", &format!("circle/{}", circle.short()), &detail);
    Ok(Reply::Founded { circle })
}

/// Counts a ballot on a proposal that is open, or that the ballot opens.
pub(super) fn count(
    cluster: &mut Cluster,
    index: u64,
    mut open: OpenProposal,
    signed: &SignedBallot,
) -> Result<Reply, Refusal> {
    let (id, member) = (signed.ballot.proposal, &signed.ballot.member);
    let known = circle(cluster)?;
    waiting::check_cast(known, &open, signed)?;
    let electorate = check_ballot(known, &open.proposal, signed, cluster.now.0)?;
    let opens = !cluster.open.contains_key(&id);
    if opens {
        proposals::check_opening(signed, electorate)?;
    }
    waiting::insert(known, &mut open, electorate, signed)?;
    let state = waiting::judge(known, &open);
    let certificate = match state {
        ProposalState::Approved => Some(admit(cluster, index, &open)?),
        _ => None,
    };
    // A ballot against a change that waits already does not prolong its waiting time.
    let decided_at = open.decided_at.unwrap_or(cluster.now);
    open.decided_at = (state == ProposalState::Waiting).then_some(decided_at);
    let (actor, subject) = (Actor::Member(member.clone()).to_string(), format!("proposal/{}", id.short()));
    let change = summary(&open.proposal.change);
    if opens {
        cluster.audit.record(cluster.now, &actor, "propose", &subject, &change);
    }
    let action = if signed.ballot.choice == Choice::Approve { "approve" } else { "reject" };
    cluster.audit.record(cluster.now, &actor, action, &subject, &change);
    cluster.open.insert(id, open);
    if state == ProposalState::Waiting {
        cluster.audit.record(cluster.now, "circle", "waiting", &subject, "any member may veto it");
    } else if state != ProposalState::Open {
        close_decided(cluster, id, state, certificate);
    }
    Ok(Reply::Counted { proposal: id, state, certificate })
}

/// Closes a proposal that was approved or rejected, and those that no longer apply since, or whose proposer
/// was suspended. Removes the open ballots that the decision made void.
pub(super) fn close_decided(
    cluster: &mut Cluster,
    id: ProposalId,
    state: ProposalState,
    certificate: Option<Digest>,
) {
    if state == ProposalState::Rejected {
        proposals::burn(cluster, id);
    }
    cluster.close_proposal(id, state, certificate);
    let word = if state == ProposalState::Approved { "in-force" } else { "rejected" };
    let detail = certificate.map(|digest| format!("certificate {}", digest.short())).unwrap_or_default();
    cluster.audit.record(cluster.now, "circle", word, &format!("proposal/{}", id.short()), &detail);
    close_stale(cluster);
    proposals::close_of_suspended(cluster);
    waiting::remove_void_ballots(cluster);
    comments::drop_void(cluster);
}

/// Assembles the certificate, verifies it as any other verifier would, and puts the change into force.
pub(super) fn admit(cluster: &mut Cluster, index: u64, open: &OpenProposal) -> Result<Digest, Refusal> {
    let state = circle(cluster)?;
    // Each ballot was verified on arrival; this verifies them all again, as every later verifier will.
    let certificate = assemble(&open.proposal, open.ballots.values().chain(open.joining.values()));
    let digest = certificate.digest();
    let approved = human_chain::verify(state, &certificate, cluster.now.0)?;
    check_waited(state, &certificate, cluster.now.0)?;
    let touched = registry::touched_keys(state, &open.proposal.change);
    let circle = cluster.circle.as_mut().ok_or_else(not_founded)?;
    circle.state.advance(approved)?;
    debug_assert_eq!(circle.positions.len(), circle.chain.len(), "the index covers the chain");
    circle.positions.insert(digest, circle.chain.len());
    circle.latest_created_at = circle.latest_created_at.max(certificate.proposal.created_at);
    circle.chain.push(bundle(certificate, index));
    cluster.generation += 1;
    put_in_force(cluster, &open.proposal.change, digest);
    revoke_from_departed(cluster, &touched);
    super::access::prune(cluster);
    usage::settle(cluster, &MeterEnds::default());
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
            debug_assert!(!matches!(manifest.as_ref(), Manifest::Edge(_)), "nothing runs this kind");
            match manifest.as_ref() {
                Manifest::Service(manifest) => deploy(cluster, manifest, certificate),
                Manifest::Job(manifest) => jobs::withdraw_waiting(cluster, &manifest.name),
                Manifest::Edge(_) => {}
            }
        }
        Change::Retire { service, grace_seconds } => {
            let until = cluster.now.plus(u64::from(*grace_seconds) * 1000);
            let active = |known: &&mut Service| known.phase == ServicePhase::Active;
            if let Some(known) = cluster.services.get_mut(service).filter(active) {
                known.phase = ServicePhase::Retiring { until };
            }
            jobs::withdraw_all(cluster, service);
        }
        Change::AdmitNode(admission) => {
            cluster.pending.remove(&admission.id);
        }
        // A new epoch refuses every proposal of an earlier one.
        Change::SetMembers { .. } => cluster.burned.clear(),
        Change::RemoveNode { .. }
        | Change::SetAccess(_)
        | Change::SetPrices(_)
        | Change::SetProjects(_)
        | Change::ForgetModel { .. }
        | Change::Lift { .. }
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
    let earlier = approved.and_then(|service| service.before.clone());
    let known = cluster.services.remove(&manifest.name);
    let failed = known.as_ref().is_some_and(Service::has_returned);
    let before = earlier.as_ref().map(|before| ReturnTarget { certificate: before.certificate, failed });
    // A service that had returned did not run under the manifest that is now the one before.
    cluster.manifests.extend(earlier.map(|before| (before.certificate, before.manifest)));
    let replaces = known.as_ref().is_some_and(|service| service.held().next().is_some());
    let phase = if replaces { RollOutPhase::Progressing } else { RollOutPhase::Complete };
    let service = Service {
        manifest: manifest.clone(),
        certificate,
        version,
        desired,
        phase: ServicePhase::Active,
        slots: known.map(|service| service.slots).unwrap_or_default(),
        avoid: BTreeMap::new(),
        before,
        roll_out: RollOut { phase, ..RollOut::default() },
    };
    cluster.services.insert(manifest.name.clone(), service);
}

/// Revokes slots and wraps of identities that are no longer admitted. Such a node gets no lease and no key:
/// its slots are free when its last lease ends, and its wraps are dropped. Wraps to a replaced encryption key
/// are dropped too.
fn revoke_from_departed(cluster: &mut Cluster, touched: &TouchedKeys) {
    registry::drop_useless_wraps(cluster, touched);
    let Some(circle) = &cluster.circle else { return };
    let generation = cluster.generation;
    for slot in cluster.services.values_mut().flat_map(|service| service.slots.values_mut()) {
        let Some(holding) = &mut slot.holding else { continue };
        let is_admitted = circle.state.node_by_id(holding.order.node).is_some();
        let phase = match (is_admitted, &holding.phase) {
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
    jobs::revoke_from_departed(cluster);
}

/// Closes every open proposal that no longer applies, since a signature does not carry over to a state that
/// its signer did not see.
fn close_stale(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let stale = cluster.open.iter().filter(|(_, open)| !stands(state, &open.proposal)).map(|(id, _)| *id);
    let stale: Vec<ProposalId> = stale.collect();
    for id in stale {
        cluster.close_proposal(id, ProposalState::Stale, None);
        cluster.audit.record(cluster.now, "circle", "stale", &format!("proposal/{}", id.short()), "");
    }
    proposals::drop_stale_drafts(cluster);
}

/// Returns whether a proposal still applies: nothing that it names has changed.
pub(super) fn stands(state: &CircleState, proposal: &Proposal) -> bool {
    proposal.epoch == state.epoch()
        && proposal.subjects.iter().all(|seen| state.subject(&seen.subject) == *seen)
}

/// Returns a short description of a change, for the audit log.
pub(crate) fn summary(change: &Change) -> String {
    match change {
        Change::Deploy(manifest) => format!("deploy {}", manifest.name()),
        Change::Retire { service, .. } => format!("retire {service}"),
        Change::AdmitNode(node) => format!("admit node {}", node.name),
        Change::RemoveNode { node } => format!("remove node {node}"),
        Change::ForgetModel { model, .. } => format!("forget model {}", model.name),
        Change::Lift { halts } => format!("lift {}", counted(halts.len() as u64, "halt")),
        Change::SetMembers { members, .. } => {
            format!("set {} and the policy", counted(members.len() as u64, "member"))
        }
        Change::SetPasskeys { member, passkeys } => {
            format!("set {} of {member}", counted(passkeys.len() as u64, "passkey"))
        }
        Change::SuspendMember { member, .. } => format!("suspend member {member}"),
        Change::SetAccess(_) => "set the bounds of access".to_string(),
        Change::SetPrices(_) => "set the prices".to_string(),
        Change::SetProjects(tree) => {
            format!("set {}", counted(tree.projects.len() as u64, "project"))
        }
    }
}
