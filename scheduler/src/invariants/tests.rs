//! Planted violations: each invariant is broken by hand in a sample cluster, and found by its name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/cluster/common/mod.rs"]
mod common;

use super::Invariant::{self, *};
use crate::clock::ClusterTime;
use crate::cluster::{
    BurnedProposal, Circle, Cluster, DraftProposal, Holding, HoldingPhase, OpenProposal, Service,
    ServicePhase as Phase, Slot,
};
use crate::command::Actor;
use crate::former::FormerHolder;
use crate::jobs::{JobHolding, JobHoldingPhase, JobSlot};
use crate::roll_out::{ReturnTarget, RollOutPhase};
use crate::usage::{DayTotal, TotalName};
use common::samples::running;
use common::{comment_of, member, node_id, root, service_name};
use protocol::api::ProposalState;
use protocol::job::SlotRanks;
use protocol::model::Recipient;
use protocol::usage::UsageRate;
use protocol::{CircleId, Digest, Fence, JobId, Millis, ProposalId, SlotIndex};
use std::collections::BTreeSet;

type Plant = fn(&mut Cluster);
type Table = Vec<(Invariant, &'static str, Plant)>;

fn service<'a>(cluster: &'a mut Cluster, name: &str) -> &'a mut Service {
    cluster.services.get_mut(&service_name(name)).unwrap()
}

/// Returns the first held slot of a service, with its holding.
fn held<'a>(cluster: &'a mut Cluster, name: &str) -> (&'a mut Fence, &'a mut Holding) {
    let slots = service(cluster, name).slots.values_mut();
    slots.filter_map(|slot| Some((&mut slot.fence, slot.holding.as_mut()?))).next().unwrap()
}

/// Copies the first held slot of a service to another index.
fn copy_slot(cluster: &mut Cluster, name: &str, to: u32) {
    let (fence, holding) = held(cluster, name);
    let (fence, mut holding) = (*fence, holding.clone());
    holding.order.slot = SlotIndex(to);
    let copy = Slot { fence, holding: Some(holding), since: cluster.now, ..Slot::default() };
    service(cluster, name).slots.insert(SlotIndex(to), copy);
}

/// Makes the first slot wait for a former holder under this fence, as many times.
fn wait_for_former(cluster: &mut Cluster, count: usize, fence: Fence) {
    let former = FormerHolder { node: node_id("n1"), fence, until: later(cluster) };
    let slot = service(cluster, "chat").slots.values_mut().next().unwrap();
    slot.former_holders = vec![former; count];
}

fn circle(cluster: &mut Cluster) -> &mut Circle {
    cluster.circle.as_mut().unwrap()
}

fn later(cluster: &Cluster) -> ClusterTime {
    cluster.now.plus(1)
}

fn wrong_slots() -> Table {
    vec![
        (OrderNamesSlot, "another fence", |c| held(c, "chat").1.order.fence = Fence::new(1, 77)),
        (OrderNamesSlot, "the slot has a newer fence", |c| *held(c, "chat").0 = Fence::new(1, 77)),
        (OrderNamesSlot, "another slot", |c| held(c, "chat").1.order.slot = SlotIndex(3)),
        (OrderNamesSlot, "another service", |c| held(c, "chat").1.order.service = service_name("large")),
        (OrderNamesSlot, "another circle", |c| held(c, "chat").1.order.circle = CircleId(Digest::of(b"x"))),
        (OrderNamesSlot, "a slot that was never ordered", |c| {
            service(c, "chat").slots.insert(SlotIndex(3), Slot::default());
        }),
        (OrderNamesSlot, "a former holder under an order to come", |c| {
            wait_for_former(c, 1, Fence::new(99, 1));
        }),
        (ListBounded, "too many former holders", |c| wait_for_former(c, 99, Fence::default())),
        (OrderIsApproved, "no such certificate", |c| {
            held(c, "chat").1.order.certificate = Digest::of(b"x");
        }),
        (OrderIsApproved, "a certificate of another service", |c| {
            held(c, "chat").1.order.certificate = service(c, "large").certificate;
        }),
        (OrderInsideEnvelope, "above the envelope", |c| copy_slot(c, "chat", 99)),
        (OrderOnAdmittedNode, "an unknown node", |c| held(c, "chat").1.order.node = node_id("n77")),
        (OrderOnAdmittedNode, "an admitted node lapses", |c| {
            held(c, "large").1.phase = HoldingPhase::Lapsing;
        }),
        (ExclusiveHeldOnce, "exclusive work may be ordered beside a silent node", |c| {
            let certificate = held(c, "large").1.order.certificate;
            let manifest = &mut service(c, "large").manifest;
            (manifest.exclusive, manifest.autonomy_seconds) = (true, 3);
            let manifest = manifest.clone();
            c.manifests.insert(certificate, manifest);
            held(c, "large").1.phase = HoldingPhase::Silent;
        }),
        (GpuAllocatedOnce, "two orders hold one GPU", |c| copy_slot(c, "large", 1)),
        (RecordedInPast, "an end in a generation to come", |c| {
            held(c, "large").1.phase = HoldingPhase::Ending { generation: u64::MAX };
        }),
        (RecordedInPast, "an order issued after its slot changed", |c| {
            held(c, "large").1.order.issued_at = Millis(u64::MAX);
        }),
    ]
}

fn wrong_services() -> Table {
    vec![
        (DesiredInsideEnvelope, "too many", |c| service(c, "chat").desired = 99),
        (DesiredInsideEnvelope, "too few", |c| service(c, "chat").desired = 0),
        (ServicePhase, "a retired service runs again", |c| service(c, "old").phase = Phase::Active),
        (ServicePhase, "a service that holds slots is retired", |c| {
            service(c, "chat").phase = Phase::Retired;
        }),
        (ServicePhase, "a retiring service holds no slot", |c| {
            service(c, "old").phase = Phase::Retiring { until: ClusterTime::default() };
        }),
        (ServicePhase, "another manifest than the approved one", |c| {
            service(c, "chat").manifest.batch_sequences_max = 77;
        }),
        (ReturnIsNamed, "fences of a version to come", |c| service(c, "chat").version += 1),
        (ReturnIsNamed, "an approval to return to that no certificate names", |c| {
            let certificate = service(c, "large").certificate;
            service(c, "chat").before = Some(ReturnTarget { certificate, failed: false });
        }),
        (ReturnIsNamed, "a return from another certificate than the one in force", |c| {
            let phase =
                RollOutPhase::Returned { from: Digest::of(b"x"), valid_until: None, cause: String::new() };
            service(c, "chat").roll_out.phase = phase;
        }),
        (ServicePhase, "under another name", |c| {
            let other = service(c, "old").clone();
            c.services.insert(service_name("other"), other);
        }),
        (ManifestsInUse, "a manifest that nothing uses", |c| {
            let manifest = service(c, "chat").manifest.clone();
            c.manifests.insert(Digest::of(b"x"), manifest);
        }),
    ]
}

fn wrong_records() -> Table {
    vec![
        (JobKept, "a key of no job", |c| {
            c.jobs.keys.insert(Digest::of(b"x"), JobId(Digest::of(b"x")));
        }),
        (GangWhole, "a slot of a job that no certificate approves", |c| {
            let holding = JobHolding {
                id: JobId(Digest::of(b"x")),
                attempt: 1,
                certificate: Digest::of(b"x"),
                node: node_id("n1"),
                ranks: SlotRanks { first: 0, count: 1 },
                gpus: vec![],
                issued_at: Millis(1),
                phase: JobHoldingPhase::Ending { generation: 1 },
            };
            let slot = JobSlot { fence: Fence::new(1, 1), holding: Some(holding) };
            c.jobs.slots.entry(service_name("train")).or_default().insert(SlotIndex(0), slot);
        }),
        (ChainIndex, "a certificate outside the chain", |c| {
            circle(c).positions.insert(Digest::of(b"x"), 0);
        }),
        (ChainIndex, "another time of the latest decision", |c| {
            circle(c).latest_created_at = Millis(u64::MAX);
        }),
        (AuditNumbered, "an event is missing", |c| c.audit.miscount()),
        (OutcomeIndex, "one outcome too many", |c| c.outcomes.miscount()),
        (MeterPerSlot, "a held slot without a meter", |c| drop(c.usage.meters.pop_first())),
        (RecordedInPast, "a meter of the future", |c| {
            let later = later(c);
            c.usage.meters.values_mut().for_each(|meter| meter.since = later);
        }),
        (ShareFollowsJobs, "a row of no project", |c| {
            let ghost = ("ghost".parse().unwrap(), UsageRate::default());
            c.shares.follow(&[ghost].into());
        }),
        (UsageSums, "an entry that was never made", |c| c.usage.recorded += 1),
        (UsageSums, "a total of more entries", |c| {
            let envelope = service_name("chat");
            let name = TotalName { day: Millis(0), envelope, project: None, owner: None, submitter: None };
            c.usage.totals.insert(name, DayTotal { entries: 1000, ..DayTotal::default() });
        }),
        (RecordedInPast, "the clock was set back", |c| c.now = ClusterTime::default()),
        (RecordedInPast, "a leader of the future", |c| {
            c.leadership.as_mut().unwrap().since = ClusterTime(Millis(u64::MAX));
        }),
        (RecordedInPast, "a request of the future", |c| {
            c.pending.values_mut().next().unwrap().last_seen = Millis(u64::MAX);
        }),
        (RecordedInPast, "a proposal of the future", |c| {
            let at = later(c);
            c.open.values_mut().next().unwrap().submitted_at = at;
        }),
        (RecordedInPast, "a quorum of the future", |c| {
            let at = later(c);
            c.open.values_mut().next().unwrap().decided_at = Some(at);
        }),
        (RecordedInPast, "a decision of the future", |c| {
            let at = later(c);
            c.closed[0].closed_at = at;
        }),
    ]
}

fn wrong_objects() -> Table {
    vec![
        (KeyNamesObject, "a model under another root", |c| {
            c.models.get_mut(&root("spare")).unwrap().root = root("other");
        }),
        (KeyNamesObject, "a wrap under another recipient", |c| {
            let wraps = c.wraps.get_mut(&root("minilm")).unwrap();
            wraps.values_mut().next().unwrap().wrap.recipient = Recipient::Member(member("carol"));
        }),
        (KeyNamesObject, "a pending node under another key", |c| {
            c.pending.values_mut().next().unwrap().id = node_id("n77");
        }),
        (KeyNamesObject, "a proposal under another id", |c| {
            c.open.values_mut().next().unwrap().proposal.nonce = Digest::of(b"x");
        }),
        (NameUnique, "two models of one name", |c| {
            let name = c.models[&root("minilm")].name.clone();
            c.models.get_mut(&root("spare")).unwrap().name = name;
        }),
        (WrapOfModel, "wraps of a forgotten model", |c| drop(c.models.remove(&root("spare")))),
    ]
}

fn wrong_lists() -> Table {
    vec![
        (ListBounded, "too many pending nodes", |c| {
            let one = c.pending.values().next().unwrap().clone();
            let ids = (0..=crate::limits::PENDING_NODES_MAX).map(|at| node_id(&at.to_string()));
            c.pending.extend(ids.map(|id| (id, one.clone())));
        }),
        (ListBounded, "too long a thread", |c| {
            let open = c.open.values_mut().next().unwrap();
            let one = comment_of("alice", &open.proposal, None);
            open.comments = vec![one; protocol::comment::COMMENTS_PER_PROPOSAL_MAX + 1];
        }),
        (ListBounded, "too many comments of a member", |c| {
            let open = c.open.values_mut().next().unwrap();
            let proposal = open.proposal.clone();
            let most = protocol::comment::COMMENTS_OF_MEMBER_MAX;
            open.comments = vec![comment_of("alice", &proposal, None); most];
            let (actor, submitted_at) = (Actor::Token("operator".parse().unwrap()), open.submitted_at);
            let comments = vec![comment_of("alice", &proposal, None)];
            let id = ProposalId(Digest::of(b"another"));
            c.drafts.insert(id, DraftProposal { proposal, actor, submitted_at, comments });
        }),
        (ListBounded, "too many closed proposals", |c| {
            let one = c.closed[0].clone();
            c.closed.extend(std::iter::repeat_n(one, crate::limits::CLOSED_PROPOSALS_MAX));
        }),
        (ListBounded, "too many burned proposals of a member", |c| {
            let ids = (0..=crate::limits::BURNED_PER_MEMBER_MAX)
                .map(|at| ProposalId(Digest::of(&at.to_le_bytes())));
            let burned = BurnedProposal { proposer: member("alice"), expires_at: Millis(u64::MAX) };
            c.burned.extend(ids.map(|id| (id, burned.clone())));
        }),
    ]
}

fn wrong_proposals() -> Table {
    vec![
        (ProposalOpen, "a comment on another proposal", |c| {
            let open = c.open.values_mut().next().unwrap();
            let mut one = comment_of("alice", &open.proposal, None);
            one.comment.proposal = ProposalId(Digest::of(b"another"));
            open.comments.push(one);
        }),
        (ProposalOpen, "a decided proposal is open", |c| {
            let mut closed = c.closed[0].clone();
            closed.proposal = c.open.values().next().unwrap().proposal.clone();
            c.closed.push_back(closed);
        }),
        (ProposalOpen, "a rejected proposal is open", |c| {
            let open = c.open.values().next().unwrap().proposal.clone();
            let (proposer, expires_at) = (member("alice"), open.expires_at);
            c.burned.insert(open.id(), BurnedProposal { proposer, expires_at });
        }),
        (ProposalOpen, "a draft is open", |c| {
            let OpenProposal { proposal, submitted_at, .. } = c.open.values().next().unwrap().clone();
            let actor = Actor::Token("operator".parse().unwrap());
            c.drafts.insert(proposal.id(), DraftProposal { proposal, actor, submitted_at, comments: vec![] });
        }),
        (ProposalOpen, "a ballot under another member", |c| {
            let ballots = &mut c.open.values_mut().next().unwrap().ballots;
            let ballot = ballots.values().next().unwrap().clone();
            ballots.insert(member("carol"), ballot);
        }),
        (ProposalOpen, "a change without a veto waits", |c| {
            let now = c.now;
            c.open.values_mut().next().unwrap().decided_at = Some(now);
        }),
        (ProposalOpen, "a joining member's ballot under another name", |c| {
            let open = c.open.values_mut().next().unwrap();
            let ballot = open.ballots.values().next().unwrap().clone();
            open.joining.insert(member("carol"), ballot);
        }),
        (ProposalClosed, "closed and open", |c| c.closed[0].state = ProposalState::Open),
        (ProposalClosed, "approved without a certificate", |c| c.closed[0].certificate = None),
        (ProposalClosed, "rejected with a certificate", |c| c.closed[0].state = ProposalState::Rejected),
        (ProposalClosed, "approved by another's certificate", |c| {
            c.closed[0].certificate = c.closed[1].certificate;
        }),
    ]
}

/// Every table of a state's rules.
fn wrong_states() -> [Table; 6] {
    [wrong_slots(), wrong_services(), wrong_records(), wrong_objects(), wrong_lists(), wrong_proposals()]
}

fn wrong_changes() -> Table {
    vec![
        (CountsRise, "the time falls", |c| c.now = ClusterTime::default()),
        (CountsRise, "the generation falls", |c| c.generation -= 1),
        (CountsRise, "a correction of the time is forgotten", |c| c.corrections = 0),
        (CountsRise, "a correction behind what is signed", |c| {
            c.corrections += 1;
            c.now = ClusterTime::default();
        }),
        (CountsRise, "audit events are forgotten", |c| c.audit = Default::default()),
        (CountsRise, "outcomes are forgotten", |c| c.outcomes = Default::default()),
        (FenceRises, "a fence falls", |c| *held(c, "chat").0 = Fence::new(1, 0)),
        (FenceRises, "a slot is forgotten", |c| service(c, "chat").slots.clear()),
        (FenceRises, "a service is forgotten", |c| drop(c.services.remove(&service_name("old")))),
        (FenceRises, "a fence names another node", |c| held(c, "chat").1.order.node = node_id("gpu")),
        (ChainGrows, "a decision is taken back", |c| drop(circle(c).chain.pop())),
        (ChainGrows, "the circle is forgotten", |c| c.circle = None),
    ]
}

/// Breaks each rule of a table, and compares the violation that `check` finds.
fn expect_violations(sound: &Cluster, table: Table, check: impl Fn(&Cluster) -> super::InvariantResult) {
    for (invariant, name, plant) in table {
        let mut broken = sound.clone();
        plant(&mut broken);
        let violation = check(&broken).expect_err(name);
        assert_eq!(violation.invariant, invariant, "{name}: {violation}");
    }
}

#[test]
fn each_broken_rule_of_a_state_is_found() {
    let sound = running().cluster;
    assert_eq!(sound.check_invariants(), Ok(()));
    assert_eq!(Cluster::new().check_invariants(), Ok(()));
    for table in wrong_states() {
        expect_violations(&sound, table, Cluster::check_invariants);
    }
}

#[test]
fn each_broken_rule_of_a_change_is_found() {
    let mut before = running().cluster;
    before.corrections = 1;
    assert_eq!(before.check_succession(&before), Ok(()));
    assert_eq!(Cluster::new().check_succession(&before), Ok(()), "everything follows from nothing");
    expect_violations(&before, wrong_changes(), |after| before.check_succession(after));
}

/// A node that lost a slot may still hold an order under its fence, so no other node gets that fence.
#[test]
fn a_free_slot_is_not_held_again_under_the_same_fence() {
    let after = running().cluster;
    let mut before = after.clone();
    let slot = service(&mut before, "chat").slots.values_mut().find(|slot| slot.holding.is_some());
    slot.unwrap().holding = None;
    let violation = before.check_succession(&after).expect_err("held under an old fence");
    assert_eq!(violation.invariant, FenceRises);
    assert_eq!(after.check_succession(&before), Ok(()), "a slot may become free");
}

#[test]
fn every_invariant_has_a_planted_violation() {
    let tables = wrong_states().into_iter().chain([wrong_changes()]);
    let planted: BTreeSet<Invariant> = tables.flatten().map(|(invariant, ..)| invariant).collect();
    assert_eq!(planted.len(), ChainGrows as usize + 1, "{planted:?}");
}

/// A certificate is stale once it is applied, so no position of the chain has a copy of an earlier one.
#[test]
fn a_snapshot_with_a_certificate_twice_is_refused() {
    let sound = running().cluster;
    assert_eq!(Cluster::from_snapshot(&sound.to_snapshot()).as_ref(), Ok(&sound));
    for at in [1, sound.governance_chain().len()] {
        let mut doubled = sound.clone();
        let copy = sound.governance_chain()[0].clone();
        circle(&mut doubled).chain.insert(at, copy);
        assert!(Cluster::from_snapshot(&doubled.to_snapshot()).is_err(), "a copy at {at}");
    }
}
