//! Tests of an agent's trust in its sources: the leader, its admission, the circle's chain, orders, its own
//! disk.

use crate::control::PATIENCE;
use crate::node::{Bench, node_id};
use gpu_agent::agent::{AgentError, hand_order};
use protocol::agent::{SlotReport, SlotState};
use protocol::agent_state::HandOrder;
use protocol::{Fence, Signature, SlotIndex, error_code};
use std::fs;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_the_leader_and_asks_to_be_admitted_until_it_is() {
    let bench = Bench::new(3).await;
    bench.control.say(|script| {
        script.leader = 2;
        script.admitted = false;
    });
    let agent = bench.start();
    bench.control.until("asks to be admitted", |s| (!s.enrolled.is_empty()).then_some(())).await;
    assert_eq!(bench.control.script().enrolled[0].admission.id, node_id());
    assert!(bench.control.script().last.is_none());
    bench.control.say(|script| script.admitted = true);
    let request = bench.control.until("is heard", |s| s.last.clone()).await;
    assert_eq!(request.resources.cpu_millicores.min(4000), request.resources.cpu_millicores);
    assert!(request.resources.gpus.iter().all(|gpu| gpu.simulated) && request.resources.gpus.len() == 2);
    // Once it knows the leader it asks no other replica; the old leader's answer names a new one.
    asks_none_of(&bench, &[0, 1], 2, 2).await;
    asks_none_of(&bench, &[0], 2, 1).await;
    agent.stop().await;
}

/// Waits until the agent has asked the `next` leader five times, after the previous one, and none of
/// `others`. An agent without an answer within its limit also asks others, as required. On a busy machine
/// this may therefore take more than one attempt.
async fn asks_none_of(bench: &Bench, others: &[usize], before: usize, next: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        leads(bench, before).await;
        let asked = bench.control.script().asked.clone();
        leads(bench, next).await;
        let now = bench.control.script().asked.clone();
        if others.iter().all(|other| now[*other] == asked[*other]) {
            return;
        }
        assert!(Instant::now() < deadline, "it asks {others:?} though {next} leads: {asked:?}, {now:?}");
    }
}

/// Makes a replica the leader, and waits until it was asked five more times.
async fn leads(bench: &Bench, leader: usize) {
    let asked = bench.control.script().asked[leader];
    bench.control.say(|script| script.leader = leader);
    bench.control.until("asks the leader", |s| (s.asked[leader] >= asked + 5).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_orders_are_refused_by_code_and_never_run() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    let good = bench.order(&bundle, 0, 2);
    bench.want(&bundle, vec![good.clone()], &[]);
    bench.control.until_slot("ready", |slot| slot.state == SlotState::Ready).await;

    let (mut altered, mut unsigned) = (good.clone(), good.clone());
    altered.order.slot = SlotIndex(1);
    unsigned.order.fence = Fence::new(1, 3);
    unsigned.signature = Signature([0; 64]);
    let mut forged = bundle.clone();
    forged.certificate.proposal.reason = "not what was voted on".into();
    let fresh = bench.order(&bundle, 1, 1);
    for (what, bundle, order, expected) in [
        ("altered", &bundle, &altered, Some(error_code::ORDER_SIGNATURE_INVALID)),
        ("replayed", &bundle, &good, Some(error_code::ORDER_REPLAYED)),
        ("unsigned", &bundle, &unsigned, Some(error_code::ORDER_SIGNATURE_INVALID)),
        ("under an altered certificate", &forged, &fresh, Some(error_code::BALLOT_MISMATCH)),
        ("good", &bundle, &fresh, None),
    ] {
        let handed = HandOrder { bundle: bundle.clone(), order: order.clone() };
        let verdict = hand_order(&bench.agent_directory(), &handed).await.unwrap();
        assert_eq!(verdict.code, expected, "{what}: {}", verdict.message);
        assert_eq!(verdict.accepted, expected.is_none(), "{what}");
    }
    assert_eq!(bench.sandboxes(), ["chat.0.1.2"], "what is handed is judged, never executed");

    // The same through control: each is refused, and the worker beside it under a good order continues.
    for wrong in [unsigned, altered] {
        let (slot, fence) = (wrong.order.slot, wrong.order.fence);
        bench.want(&bundle, vec![good.clone(), wrong], &[]);
        let is_refused =
            |told: &SlotReport| told.state == SlotState::Refused && (told.slot, told.fence) == (slot, fence);
        let refused = bench.control.until_slot("refused", is_refused).await;
        assert!(refused.detail.starts_with("order-signature-invalid: "), "{}", refused.detail);
        let is_ready = |told: &SlotReport| told.state == SlotState::Ready && told.fence == Fence::new(1, 2);
        bench.control.until_slot("as before", is_ready).await;
        assert_eq!(bench.sandboxes(), ["chat.0.1.2"]);
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_does_not_verify_changes_nothing_and_is_told() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    bench.control.until("keeps the first", |s| (s.last.as_ref()?.governance_length == 1).then_some(())).await;
    let mut forged = bench
        .control
        .script()
        .world
        .certify(protocol::governance::Change::Retire { service: "chat".parse().unwrap(), grace_seconds: 0 });
    forged.certificate.ballots.pop();
    bench.control.say(|script| script.forged = vec![forged]);
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    bench.control.until_slot("serves all the same", |slot| slot.state == SlotState::Ready).await;
    assert_eq!(bench.control.script().last.as_ref().unwrap().governance_length, 1);
    let kept = fs::read_dir(bench.agent_directory().join("chain")).unwrap().flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().parse::<u64>().is_ok()).count();
    assert_eq!(kept, 1);

    // An order under a forged deployment is refused with the deployment's error.
    let mut forged = bench.control.script().world.certify(protocol::governance::Change::Deploy(Box::new(
        protocol::manifest::Manifest::Service(crate::circle::service("evil", bench.model.root, 1)),
    )));
    forged.certificate.ballots.pop();
    let order = bench.order(&forged, 0, 1);
    bench.control.say(|script| script.forged = vec![forged.clone()]);
    bench.want(&forged, vec![order], &[]);
    let refused = bench.control.until_slot("refused", |slot| slot.state == SlotState::Refused).await;
    assert!(refused.detail.starts_with("quorum-not-reached: "), "{}", refused.detail);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_order_is_refused_after_a_restart_from_disk() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 5)], &[]);
    bench.control.until_slot("ready", |slot| slot.state == SlotState::Ready).await;
    bench.want(&bundle, vec![], &[]);
    bench.control.until("released", |script| (!script.released.is_empty()).then_some(())).await;
    agent.kill().await;
    // Control is hostile now and names the old order again.
    bench.want(&bundle, vec![bench.order(&bundle, 0, 5)], &[]);
    let agent = bench.start();
    let refused = bench.control.until_slot("refused", |slot| slot.state == SlotState::Refused).await;
    assert!(refused.detail.starts_with("order-replayed: "), "{}", refused.detail);
    assert!(bench.sandboxes().is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_never_believed() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let mut third = bench.deploy("chat");
    for length in 1..=2 {
        // Each decision arrives alone, and has a file of its own.
        bench
            .control
            .until("the decision arrives", |s| (s.last.as_ref()?.governance_length == length).then_some(()))
            .await;
        third = bench.deploy("chat");
    }
    bench.want(&third, vec![bench.order(&third, 0, 1)], &[]);
    bench.control.until_slot("ready", |slot| slot.state == SlotState::Ready).await;
    agent.stop().await;

    // A bundle with one flipped bit: the chain ends before it, and is fetched again.
    let path = bench.agent_directory().join("chain/0000000002");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    // These are the leftovers of a crash in the middle of a write.
    fs::write(bench.agent_directory().join("chain/0000000009.new"), b"torn").unwrap();
    fs::write(bench.agent_directory().join("orders.new"), b"torn").unwrap();
    bench.control.say(|script| script.last = None);
    let agent = bench.start();
    bench
        .control
        .until("asks from before the damage", |s| (s.last.as_ref()?.governance_length >= 1).then_some(()))
        .await;
    bench.control.until("has it again", |s| (s.last.as_ref()?.governance_length == 3).then_some(())).await;
    assert_ne!(fs::read(&path).unwrap(), bytes);
    agent.stop().await;

    // The order book: without it the node could be made to accept an old order, so the agent does not start.
    let path = bench.agent_directory().join("orders");
    let whole = fs::read(&path).unwrap();
    for damage in [whole.len() / 2, 0, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[damage] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = bench.start().task.await.unwrap().unwrap_err();
        assert!(matches!(error, AgentError::Orders { .. }), "{error}");
        assert_eq!(error.code(), error_code::AGENT_STATE_UNUSABLE);
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(bench.start().task.await.unwrap(), Err(AgentError::Orders { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_starts_that_could_not_be_written_down() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    bench.control.until("is heard", |s| s.last.clone()).await;
    // This makes every write fail, like a full disk.
    let obstacle = bench.agent_directory().join("orders.new");
    fs::create_dir(&obstacle).unwrap();
    let bundle = bench.deploy("chat");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let failed = bench.control.until_slot("says so", |slot| slot.state == SlotState::Failed).await;
    assert!(failed.detail.starts_with("agent-state-unusable: "), "{}", failed.detail);
    assert!(bench.sandboxes().is_empty() && !bench.agent_directory().join("orders").exists());
    fs::remove_dir(&obstacle).unwrap();
    bench.control.until_slot("serves", |slot| slot.state == SlotState::Ready).await;
    // The same for the chain: a bundle that is not persisted does not count.
    let obstacle = bench.agent_directory().join("chain/0000000002.new");
    fs::create_dir(&obstacle).unwrap();
    bench.control.say(|script| {
        let service = "chat".parse().unwrap();
        script.world.decide(protocol::governance::Change::Retire { service, grace_seconds: 0 });
        script.last = None;
    });
    let request = bench.control.until("goes on", |s| s.last.clone()).await;
    assert_eq!(request.governance_length, 1);
    fs::remove_dir(&obstacle).unwrap();
    bench.control.until("learns", |s| (s.last.as_ref()?.governance_length == 2).then_some(())).await;
    bench.control.until("and ends what is retired", |s| (!s.released.is_empty()).then_some(())).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_out_of_reach_is_tried_again() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("chat");
    let hidden = bench.directory.path().join("hidden");
    // Two of three stores are gone, and one is too few for 2+1.
    for n in [0, 1] {
        fs::create_dir_all(&hidden).unwrap();
        fs::rename(bench.directory.path().join(format!("store-{n}")), hidden.join(n.to_string())).unwrap();
    }
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let waiting = bench.control.until_slot("says why", |slot| slot.detail.contains("shard-too-few")).await;
    assert_eq!(waiting.state, SlotState::Loading);
    for n in [0, 1] {
        let store = bench.directory.path().join(format!("store-{n}"));
        let _ = fs::remove_dir_all(&store);
        fs::rename(hidden.join(n.to_string()), store).unwrap();
    }
    bench.control.until_slot("serves", |slot| slot.state == SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_never_share_a_directory_and_another_circle_is_refused() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    bench.control.until("is heard", |s| s.last.clone()).await;
    let second = bench.start().task.await.unwrap().unwrap_err();
    assert!(matches!(second, AgentError::InUse { .. }), "{second}");
    assert_eq!(second.code(), error_code::DIRECTORY_IN_USE);
    agent.stop().await;
    let foreign = bench.start_with(|config| config.circle = protocol::CircleId(protocol::Digest::of(b"x")));
    let error = foreign.task.await.unwrap().unwrap_err();
    assert_eq!(error.code(), error_code::CIRCLE_MISMATCH);
}
