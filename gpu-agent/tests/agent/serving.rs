//! Tests of a slot's life: from an order to a worker that serves, and back.

use crate::node::{Bench, node_id, only, ticket};
use model_store::ModelKey;
use protocol::agent::{Assignment, SlotState};
use protocol::limits::LEASE_MS;
use protocol::{Fence, SlotIndex};
use std::time::Duration;

fn in_state(state: SlotState, slot: u32, fence: u64) -> impl Fn(&protocol::agent::SlotReport) -> bool {
    move |report| {
        report.state == state && report.slot == SlotIndex(slot) && report.fence == Fence::new(1, fence)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_becomes_a_worker_with_verified_weights_and_a_way_to_the_gateway() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let (mut connection, first) = bench.worker().await;
    let ready = bench.control.until_slot("ready", in_state(SlotState::Ready, 0, 1)).await;
    assert_eq!((ready.segments_verified, ready.segments_total), (3, 3));
    assert_eq!(ready.restarts, 0);

    let shown = &first.ticket;
    assert!(first.signature_holds());
    assert_eq!((shown.node, shown.slot, shown.fence), (node_id(), SlotIndex(0), Fence::new(1, 1)));
    let renewed = ticket(&mut connection).await;
    assert!(renewed.signature_holds() && renewed.ticket.expires_at >= shown.expires_at);
    assert_eq!(renewed.ticket.worker, shown.worker);

    let line = format!("weights {}", bench.weights);
    bench
        .control
        .until("the worker saw the right bytes", |script| script.lines.contains(&line).then_some(()))
        .await;
    bench.control.until_slot("numbers arrive", |slot| slot.metrics.is_some()).await;

    // Two slots share one copy; then both end, one of them by draining.
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1), bench.order(&bundle, 1, 4)], &[]);
    bench.control.until_slot("the second is ready", in_state(SlotState::Ready, 1, 4)).await;
    assert_eq!(bench.sandboxes(), ["chat.0.1.1", "chat.1.1.4"]);
    bench.want(&bundle, vec![bench.order(&bundle, 1, 4)], &[1]);
    let freed = |fence| {
        move |script: &crate::control::ControlScript| {
            script.released.iter().any(|r| r.2 == fence).then_some(())
        }
    };
    bench.control.until("the first is released", freed(1)).await;
    bench.control.until("the second is released", freed(4)).await;
    bench.control.until_slot("and stays so", in_state(SlotState::Released, 1, 4)).await;
    assert!(bench.sandboxes().is_empty());
    agent.stop().await;
}

/// Tokens are what a service is billed for: the last ones come with the end of the slot, and each statement
/// is of the order under which the worker ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tokens_of_a_slot_come_under_the_signature_of_its_node() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let _worker = bench.worker().await;
    let first = |script: &crate::control::ControlScript| script.usage.first().cloned();
    let first = bench.control.until("the first counts", first).await;
    bench.want(&bundle, vec![], &[]);
    let released = |script: &crate::control::ControlScript| {
        let is_free = script.released.iter().any(|released| released.2 == 1);
        is_free.then(|| script.usage.clone())
    };
    let stated = bench.control.until("the slot is free", released).await;
    let circle = bench.control.script().world.state.id();
    for signed in &stated {
        let (usage, counts) = (&signed.usage, signed.usage.counts);
        assert!(signed.holds(circle), "{signed:?}");
        assert_eq!((usage.node, usage.slot, usage.fence), (node_id(), SlotIndex(0), Fence::new(1, 1)));
        assert_eq!(counts.prompt_tokens * 3, counts.generated_tokens * 2, "as the worker wrote");
    }
    let last = stated.iter().map(|signed| signed.usage.counts.generated_tokens).max();
    assert!(last >= Some(first.usage.counts.generated_tokens), "counts only rise");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_is_started_again_ever_more_slowly() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("dies");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let failed = bench.control.until_slot("failed", in_state(SlotState::Failed, 0, 1)).await;
    assert!(failed.detail.starts_with("worker-failed: "), "{}", failed.detail);
    assert!(failed.detail.contains("status 7") && failed.detail.contains("last words"), "{}", failed.detail);
    bench.control.until_slot("started again", |slot| slot.restarts >= 3).await;
    bench.want(&bundle, vec![], &[]);
    bench.control.until("released", |script| (!script.released.is_empty()).then_some(())).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_control_stops_vouching_for_ends_and_comes_back_with_control() {
    let bench = Bench::new(1).await;
    // The production lease, since it must expire. On a busy machine it may also expire early; that is one
    // more lapse, and the result is the same.
    bench.control.say(|script| script.lease_ms = LEASE_MS);
    let agent = bench.start();
    let bundle = bench.deploy_with("chat", |manifest| {
        (manifest.exclusive, manifest.autonomy_seconds) = (true, LEASE_MS / 1000);
    });
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let (_connection, before) = bench.worker().await;
    bench.control.until_slot("ready", in_state(SlotState::Ready, 0, 1)).await;
    bench.control.say(|script| script.silent = true);
    bench.control.until("the sandbox ended by itself", |_| bench.sandboxes().is_empty().then_some(())).await;
    bench.control.say(|script| {
        script.silent = false;
        script.last = None;
    });
    let (_connection, after) = bench.worker().await;
    assert_ne!(before.ticket.worker, after.ticket.worker, "another worker");
    let ready = bench.control.until_slot("ready again", in_state(SlotState::Ready, 0, 1)).await;
    assert_eq!(ready.restarts, 0, "a lapse is no failure of the worker");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_finds_its_worker_again() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let (_kept, before) = bench.worker().await;
    bench.control.until_slot("ready", in_state(SlotState::Ready, 0, 1)).await;
    let boot = bench.control.script().last.as_ref().unwrap().boot;
    agent.kill().await;
    let agent = bench.start();
    bench.control.until("the new agent speaks", |s| (s.last.as_ref()?.boot != boot).then_some(())).await;
    let (mut connection, after) = bench.worker().await;
    bench.control.until_slot("still ready", in_state(SlotState::Ready, 0, 1)).await;
    assert_eq!(after.ticket.worker, before.ticket.worker, "the same worker");
    // It holds the new agent's leases: its tickets, each made under a fresh lease, keep coming.
    let mut lease = after.ticket.lease_until_boottime_ms;
    for _ in 0..3 {
        let before = lease;
        while lease == before {
            let shown = ticket(&mut connection).await;
            assert!(shown.signature_holds());
            lease = shown.ticket.lease_until_boottime_ms;
        }
        assert!(lease > before);
    }
    assert_eq!(bench.control.until_slot("ready", in_state(SlotState::Ready, 0, 1)).await.restarts, 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_killed_at_any_moment_converge() {
    let bench = Bench::new(1).await;
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1), bench.order(&bundle, 1, 1)], &[]);
    for moment_ms in [1, 20, 45, 70, 110, 160, 240, 400] {
        let agent = bench.start();
        tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        agent.kill().await;
    }
    let boot = bench.control.script().last.as_ref().map(|request| request.boot);
    let agent = bench.start();
    bench.control.until("a new agent", |s| (Some(s.last.as_ref()?.boot) != boot).then_some(())).await;
    bench.control.until_slot("first ready", in_state(SlotState::Ready, 0, 1)).await;
    bench.control.until_slot("second ready", in_state(SlotState::Ready, 1, 1)).await;
    assert_eq!(bench.sandboxes(), ["chat.0.1.1", "chat.1.1.1"]);
    agent.stop().await;
    assert!(bench.sandboxes().is_empty(), "an orderly end leaves nothing");
}

/// A wrap that opens to another key than the manifest commits to, by a member: the node complains to control,
/// and serves once control sends the wrap of another member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrap_of_a_wrong_key_is_complained_about_and_its_replacement_is_used() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    let orders = || vec![bench.order(&bundle, 0, 1)];
    let sound = bench.assignment(&bundle, orders(), &[]);
    let wrong = bench.wrap_of(&ModelKey::generate().unwrap());
    let digest = wrong.digest();
    let assignment = Assignment { wrap: Some(wrong), ..sound.clone() };
    bench.control.say(|script| script.desired = only(assignment));
    let complaint = bench
        .control
        .until("the node complains", |script| script.last.as_ref()?.complaints.first().cloned())
        .await;
    assert_eq!(complaint.complaint.wrap, digest);
    human_chain::check_complaint(&bench.control.script().world.state, &complaint)
        .expect("signed by the node");
    bench.control.say(|script| script.desired = only(sound));
    bench.control.until_slot("ready", in_state(SlotState::Ready, 0, 1)).await;
    let quiet = |script: &crate::control::ControlScript| {
        script.last.as_ref().is_some_and(|last| last.complaints.is_empty()).then_some(())
    };
    bench.control.until("the complaint is over", quiet).await;
    agent.stop().await;
}
