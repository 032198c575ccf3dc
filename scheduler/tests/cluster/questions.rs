//! Question tests: the texts that name a subject, and the times by which a replica answers.

use crate::common::*;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, ProposalId, SlotIndex};
use scheduler::limits::*;
use scheduler::*;

#[test]
fn a_text_names_a_service_a_slot_or_a_proposal() {
    let id = ProposalId(Digest::of(b"proposal"));
    for (text, expected) in [
        ("chat".to_string(), Question::Service(service_name("chat"))),
        ("beef".to_string(), Question::Service(service_name("beef"))),
        ("chat/0".to_string(), Question::Slot(service_name("chat"), SlotIndex(0))),
        ("chat/17".to_string(), Question::Slot(service_name("chat"), SlotIndex(17))),
        (id.to_string(), Question::Proposal(id)),
        ("proposal/7f3a".to_string(), Question::ProposalPrefix("7f3a".into())),
        ("proposal/3".to_string(), Question::Slot(service_name("proposal"), SlotIndex(3))),
    ] {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }
}

#[test]
fn a_text_that_names_nothing_is_refused_with_that_text() {
    for text in ["", "/", "chat/", "/0", "chat/x", "chat/-1", "chat/0/1", "proposal/XYZW", "a b"] {
        let error = text.parse::<Question>().unwrap_err();
        assert_eq!(error, format!("`{text}` is not a service, service/slot or proposal id"));
    }
}

#[test]
fn a_subject_that_does_not_exist_has_no_answer() {
    let world = running();
    for (text, exists) in [
        ("embed", true),
        ("embed/0", true),
        ("embed/2", true),
        ("embed/3", false),
        ("other", false),
        ("other/0", false),
        ("proposal/0000", false),
        ("beef", false),
    ] {
        let question = text.parse().unwrap();
        assert_eq!(why(world.view(), &question).is_some(), exists, "{text}");
    }
}

/// A command that another replica stamped moves the cluster's time, and requests are judged by it.
#[test]
fn a_request_is_judged_by_the_later_of_both_times() {
    let mut world = running();
    let admission = node("node-9", 1000, 1024).admission;
    world.must(Action::Enrol(Box::new(admission.clone())));
    let asked_at = world.now;
    let unrecorded =
        |world: &World, ms| enrol_answer(&world.cluster, &admission, &all_at(asked_at.plus(ms))).is_some();
    assert!(unrecorded(&world, PENDING_REFRESH_MS - 1), "a repeated request changes nothing");
    assert!(!unrecorded(&world, PENDING_REFRESH_MS), "after a minute it is recorded again");
    world.wait(PENDING_REFRESH_MS);
    world.must(Action::Tick);
    assert!(!unrecorded(&world, 0), "a clock that is behind the cluster's does not count");
}

#[test]
fn a_tick_is_due_by_the_later_of_both_times() {
    let mut world = running();
    let proposal = world.proposal(deploy(manifest("chat", 1, 1, 100, 64)));
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    let end = proposal.expires_at.plus(CLOCK_GRACE_MS);
    assert!(!tick_is_due(&world.cluster, &all_at(end)));
    assert!(tick_is_due(&world.cluster, &all_at(end.plus(1))));
    world.set_now(end.plus(1));
    world.must(Action::Lead { replica: protocol::ReplicaId(2) });
    assert!(tick_is_due(&world.cluster, &ClockReadings::default()), "the cluster's time has passed the end");
    world.must(Action::Tick);
    assert!(!tick_is_due(&world.cluster, &all_at(end.plus(1))));
}

#[test]
fn the_name_of_a_limit_is_one_of_a_fixed_set() {
    for (label, expected) in [
        ("cpu: no such control group controller", "cpu"),
        ("gpu-share: by accounting only", "gpu-share"),
        ("memory", "memory"),
        ("pids:", "pids"),
        ("CPU: denied", "other"),
        ("", "other"),
        ("invented by a node: denied", "other"),
    ] {
        assert_eq!(limit_of(label), expected, "{label}");
    }
}
