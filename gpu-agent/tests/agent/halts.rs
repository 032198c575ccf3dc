//! Tests of halts on real sandboxes: a worker that spins, and a control that is dead.

use crate::node::Bench;
use gpu_agent::agent::hand_halt;
use protocol::agent::{SlotReport, SlotState};
use protocol::error_code;
use protocol::halt::{HaltScope, HaltSignature};
use std::time::Instant;

/// The operator hands the halt to the agent. The lease outlasts the test, so nothing else ends the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_ends_a_spinning_sandbox_while_control_is_dead() {
    let bench = Bench::new(1).await;
    let agent = bench.start();
    let bundle = bench.deploy("spins");
    bench.want(&bundle, vec![bench.order(&bundle, 0, 1)], &[]);
    let is_ready = |report: &SlotReport| report.state == SlotState::Ready;
    bench.control.until_slot("ready", is_ready).await;
    bench.control.say(|script| script.silent = true);
    let scope = || HaltScope::Service("spins".parse().unwrap());
    let (halt, mut forged) = {
        let world = &bench.control.script().world;
        (world.halt(0, scope(), 1), world.halt(0, scope(), 2))
    };
    let HaltSignature::Hybrid(signature) = &mut forged.signature else { panic!("signed by keys") };
    signature.ed25519.0[0] ^= 1;
    let verdict = hand_halt(&bench.agent_directory(), &forged).await.unwrap();
    assert_eq!(verdict.code, Some(error_code::SIGNATURE_INVALID));
    assert_eq!(bench.sandboxes(), ["spins.0.1.1"], "a forged halt ends nothing");
    let began = Instant::now();
    let verdict = hand_halt(&bench.agent_directory(), &halt).await.unwrap();
    assert!(verdict.accepted, "{}", verdict.message);
    bench.control.until("the sandbox is gone", |_| bench.sandboxes().is_empty().then_some(())).await;
    println!("a spinning sandbox was gone {} ms after its halt was handed over", began.elapsed().as_millis());
    agent.kill().await;
    // No replica has the halt, and the new agent has it from its disk.
    bench.control.say(|script| (script.silent, script.last) = (false, None));
    bench.want(&bundle, vec![bench.order(&bundle, 0, 2)], &[]);
    let agent = bench.start();
    let is_halted =
        |report: &SlotReport| report.state == SlotState::Refused && report.detail.starts_with("halted: ");
    bench.control.until_slot("refused", is_halted).await;
    assert!(bench.sandboxes().is_empty());
    agent.stop().await;
}
