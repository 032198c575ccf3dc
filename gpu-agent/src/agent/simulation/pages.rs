//! Simulations of nodes that are far behind the circle's history.

use super::*;

/// Number of decisions that the node has missed.
const DECISIONS: usize = 200;

/// A node that was away for long gets the history in pages, and runs under the last decision once it has it.
/// Nothing is refused on the way: until its chain is complete, orders wait.
#[tokio::test(start_paused = true)]
async fn a_node_far_behind_arrives_page_by_page_and_runs_what_was_decided_last() {
    let mut stage = Stage::new();
    let root = ModelRoot(Digest::of(b"model"));
    for decision in 1..DECISIONS {
        let replicas_max = 300 + (decision % 2) as u32;
        let bundle = stage.script().world.deploy(&service("chat", root, replicas_max));
        stage.bundle = bundle;
    }
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!(stage.script().last.as_ref().unwrap().governance_length, DECISIONS as u64);
    assert!(!stage.script().reports.iter().any(|report| report.contains("Refused")), "orders wait");
    agent.stop().await;

    // A successor reads its pages from disk and asks for nothing that it has.
    stage.say(|script| script.last = None);
    let agent = stage.start();
    stage.until("the successor asks", || stage.script().last.is_some()).await;
    assert_eq!(stage.script().last.as_ref().unwrap().governance_length, DECISIONS as u64);
    agent.stop().await;
}

/// The guard is the page: control that never sends a page leaves the node where it was.
#[tokio::test(start_paused = true)]
async fn without_pages_the_node_never_arrives() {
    let stage = Stage::new();
    stage.say(|script| script.page = 0);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    // An empty page says that the chain is complete, so that the order is refused.
    let refused = stage.until_slot(0, 1, SlotState::Refused).await;
    assert!(refused.detail.starts_with("order-not-approved"), "{}", refused.detail);
    assert_eq!(stage.script().last.as_ref().unwrap().governance_length, 0);
    stage.say(|script| script.page = 1);
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}
