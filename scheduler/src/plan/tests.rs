//! Tests of a faulty planner. A correct one never reaches this code, so the wrong steps are made by hand.

use super::*;
use crate::clock::LeaderTime;
use crate::observed::Observed;
use protocol::error_code::PLAN_STALE;
use protocol::{Digest, Fence, Millis, NodeId, PublicKey};

const NOW: LeaderTime = LeaderTime(Millis(1_000_000));

fn node() -> NodeId {
    NodeId(PublicKey([7; 32]))
}

/// Returns a step that no state without a circle accepts.
fn wrong() -> Step {
    Step::Order(OrderPlan {
        service: "chat".parse().expect("a name"),
        slot: SlotIndex(0),
        fence: Fence::new(1, 1),
        node: node(),
        certificate: Digest::of(b"none"),
        gpus: vec![],
        replaces: None,
    })
}

/// Returns a step that every state accepts.
fn right() -> Step {
    Step::Lapse { node: node(), silent_since: LeaderTime::default() }
}

#[test]
fn a_step_that_would_be_refused_is_left_out_and_planning_continues() {
    let (cluster, observed) = (Cluster::new(), Observed::new(NOW));
    let mut planner = Planner::new(ClusterView { cluster: &cluster, observed: &observed, now: NOW });
    assert!(planner.take(right(), "node/a".into(), "first".into()));
    assert!(!planner.take(wrong(), "chat/0".into(), "a fault".into()));
    assert!(planner.take(right(), "node/a".into(), "last".into()));
    let Plan { steps, reasons, dropped, .. } = planner.plan;
    assert_eq!(steps, [right(), right()], "what is wrong is not proposed, what is right is");
    let texts: Vec<&str> = reasons.iter().map(|reason| reason.text.as_str()).collect();
    assert_eq!(texts, ["first", "last"], "each step keeps its own reason");
    let [Dropped { subject, refusal }] = dropped.as_slice() else { panic!("{dropped:?}") };
    assert_eq!((subject.as_str(), refusal.code), ("chat/0", PLAN_STALE));
    assert_eq!(refusal.message, "there is no circle yet");
}

#[test]
fn a_plan_of_faults_alone_proposes_nothing() {
    let (cluster, observed) = (Cluster::new(), Observed::new(NOW));
    let mut planner = Planner::new(ClusterView { cluster: &cluster, observed: &observed, now: NOW });
    planner.take(wrong(), "chat/0".into(), "a fault".into());
    assert!(planner.plan.is_empty());
    assert_eq!(planner.plan.command(NOW.into()), None, "nothing is written to the log again and again");
    assert!(planner.draft.services.is_empty(), "a refused step leaves no trace in the draft");
}

#[test]
fn a_full_plan_takes_no_more_and_drops_nothing() {
    let (cluster, observed) = (Cluster::new(), Observed::new(NOW));
    let mut planner = Planner::new(ClusterView { cluster: &cluster, observed: &observed, now: NOW });
    for _ in 0..PLAN_STEPS_MAX {
        assert!(planner.take(right(), "node/a".into(), String::new()));
    }
    assert!(!planner.take(right(), "node/a".into(), String::new()));
    assert!(!planner.take(wrong(), "chat/0".into(), String::new()));
    assert_eq!(planner.plan.steps.len(), PLAN_STEPS_MAX);
    assert!(planner.plan.dropped.is_empty(), "the next plan finds a step that did not fit");
}
