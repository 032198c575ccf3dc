//! Simulations of halts on a whole agent: without a leader and a quorum, against hostile replicas, across
//! restarts. Each attack has a positive control.

use super::*;
use human_chain::{MemberSecret, lift};
use protocol::governance::Change;
use protocol::halt::HaltScope;
use std::fs;

/// Longest time from a halt at a replica to the end of what it covers, in milliseconds.
const HALT_MS_MAX: u64 = 1_000;

fn chat() -> HaltScope {
    HaltScope::Service("chat".parse().unwrap())
}

impl Stage {
    /// Signs a halt as alice, and hands it to these replicas.
    fn halt(&self, replicas: &[usize], scope: HaltScope, number: u64) -> SignedHalt {
        let signed = self.script().world.halt(0, scope, number);
        self.give(replicas, &signed);
        signed
    }

    fn give(&self, replicas: &[usize], signed: &SignedHalt) {
        self.say(|script| replicas.iter().for_each(|replica| script.halts[*replica].push(signed.clone())));
    }

    /// Waits until nothing runs, and returns how long it took in milliseconds.
    async fn until_idle(&self) -> u64 {
        let began = self.clock.boot();
        self.until("nothing runs", || self.launcher.living().is_empty()).await;
        self.clock.boot().since(began)
    }

    /// Waits until an order for a slot is refused because of a halt.
    async fn until_halted(&self, slot: u32) {
        let is_halted = |report: &SlotReport| {
            let refused = report.slot == SlotIndex(slot) && report.state == SlotState::Refused;
            refused && report.detail.starts_with("halted: halted by alice")
        };
        let seen = || self.script().last.iter().flat_map(|request| &request.slots).any(is_halted);
        self.until(&format!("slot {slot} is refused as halted"), seen).await;
    }

    /// Lets control know nothing of the agents that ran before.
    fn forget_reports(&self) {
        self.say(|script| script.last = None);
    }
}

/// A worker that computes without end and obeys nothing.
fn spinning() -> Behaviour {
    Behaviour { obeys_after: None, requests_running: 3, ..Behaviour::default() }
}

#[tokio::test(start_paused = true)]
async fn a_spinning_worker_ends_within_a_second_of_its_halt() {
    for halted in [true, false] {
        let stage = Stage::new();
        stage.launcher.decide(always(spinning()));
        stage.want(&[(0, 1), (1, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(1, 1, SlotState::Ready).await;
        if halted {
            stage.halt(&[0], chat(), 1);
        } else {
            // The positive control: what control alone stops has the grace period of an orderly end.
            stage.want(&[], &[]);
        }
        let took = stage.until_idle().await;
        assert_eq!(took <= HALT_MS_MAX, halted, "{took} ms");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_already_ending_is_killed_by_a_halt() {
    let stage = Stage::new();
    stage.launcher.decide(always(spinning()));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.want(&[], &[]);
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.halt(&[0], HaltScope::Circle, 1);
    let took = stage.until_idle().await;
    assert!(took <= HALT_MS_MAX, "{took} ms");
    agent.stop().await;
}

/// The leader is dead and so is the quorum: one replica is left, and it has the halt.
#[tokio::test(start_paused = true)]
async fn a_halt_arrives_without_a_leader_and_without_a_quorum() {
    for halted in [true, false] {
        let stage = Stage::with_replicas(3);
        stage.launcher.decide(always(spinning()));
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(0, 1, SlotState::Ready).await;
        stage.say(|script| (script.silent, script.dead) = (true, [0, 1].into()));
        if halted {
            stage.halt(&[2], chat(), 1);
        }
        tokio::time::sleep(Duration::from_millis(HALT_MS_MAX)).await;
        assert_eq!(stage.launcher.living().is_empty(), halted, "the positive control runs on its lease");
        agent.stop().await;
    }
}

/// The attack: the leader withholds a halt, and continues to order what it covers.
#[tokio::test(start_paused = true)]
async fn a_replica_that_withholds_a_halt_does_not_keep_it_from_a_node() {
    for delivers in [true, false] {
        let stage = Stage::with_replicas(3);
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(0, 1, SlotState::Ready).await;
        let signed = stage.script().world.halt(0, chat(), 1);
        let replicas: &[usize] = if delivers { &[1] } else { &[] };
        stage.give(replicas, &signed);
        tokio::time::sleep(Duration::from_millis(HALT_MS_MAX)).await;
        assert_eq!(
            stage.launcher.living().is_empty(),
            delivers,
            "the positive control: all of them withhold"
        );
        if delivers {
            // A hostile control orders the slot again and again, and another one.
            for fence in 2..6 {
                stage.want(&[(0, fence), (1, fence)], &[]);
                stage.until_halted(0).await;
                stage.until_halted(1).await;
            }
            assert_eq!((stage.launcher.started(), stage.launcher.living().len()), (1, 0));
        }
        agent.stop().await;
    }
}

/// The attack: a hostile replica makes halts up, in members' names and in others', as fast as it can.
#[tokio::test(start_paused = true)]
async fn a_replica_that_forges_halts_stops_nothing_and_keeps_out_none() {
    let stage = Stage::with_replicas(2);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    let thief = MemberSecret::generate(&[66; 64]);
    let forged: Vec<SignedHalt> = (0..600)
        .map(|number| {
            let name = ["alice", "mallory"][number as usize % 2];
            stage.script().world.halt_by(name, &thief, HaltScope::Circle, number)
        })
        .collect();
    stage.say(|script| script.halts[0] = forged);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"], "no forgery counts");
    // The positive control: alice's own halt, at the other replica, is not delayed by the junk.
    stage.halt(&[1], HaltScope::Circle, 1);
    let took = stage.until_idle().await;
    assert!(took <= HALT_MS_MAX, "{took} ms");
    agent.stop().await;
}

/// The attack: a replica sends a halt that the node has, again and again. If that were news, the node would
/// break off each request to control in order to report it.
#[tokio::test(start_paused = true)]
async fn a_replica_that_repeats_a_halt_breaks_off_no_request_to_control() {
    let mut answered = Vec::new();
    for times in [1, 1600] {
        let stage = Stage::with_replicas(2);
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(0, 1, SlotState::Ready).await;
        let elsewhere = stage.script().world.halt(0, HaltScope::Region("there".into()), 1);
        stage.say(|script| script.halts[1] = vec![elsewhere; times]);
        tokio::time::sleep(Duration::from_secs(15)).await;
        answered.push(agent.outputs.lock().unwrap().as_ref().unwrap().numbers.lock().unwrap().syncs);
        // The positive control: a new halt is obeyed at once.
        stage.halt(&[0], chat(), 2);
        let took = stage.until_idle().await;
        assert!(took <= HALT_MS_MAX, "{took} ms");
        agent.stop().await;
    }
    assert!(answered[0] > 20 && answered[1] + 2 >= answered[0], "{answered:?}");
}

/// The attack: control denies that the node is admitted, and leaves its request for admission unanswered.
#[tokio::test(start_paused = true)]
async fn a_request_for_admission_delays_no_halt() {
    let stage = Stage::with_replicas(3);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.say(|script| script.denies_admission = true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.launcher.living().len(), 1, "the positive control runs on its lease");
    stage.halt(&[2], chat(), 1);
    let took = stage.until_idle().await;
    assert!(took <= HALT_MS_MAX, "{took} ms");
    agent.stop().await;
}

/// The attack: a lifted halt is sent again.
#[tokio::test(start_paused = true)]
async fn a_lifted_halt_that_is_replayed_stops_nothing() {
    let stage = Stage::with_replicas(2);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    let signed = stage.halt(&[0], chat(), 1);
    stage.until_idle().await;
    stage.want(&[(0, 2)], &[]);
    stage.until_halted(0).await;
    stage.say(|script| drop(script.world.decide(lift(vec![signed.halt.clone()]))));
    stage.until_slot(0, 2, SlotState::Ready).await;
    stage.give(&[0, 1], &signed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.2"], "it stays lifted");
    agent.kill().await;
    // Nor does a new agent, which asks for all halts again, take it.
    stage.forget_reports();
    let agent = stage.start();
    stage.until_slot(0, 2, SlotState::Ready).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.2"]);
    // The positive control: another halt of the same service stops it.
    stage.halt(&[1], chat(), 2);
    stage.until_idle().await;
    agent.stop().await;
}

/// The attack: after a restart, no replica has the halt any more.
#[tokio::test(start_paused = true)]
async fn a_halt_outlives_the_agent_that_took_it() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.halt(&[0], chat(), 1);
    stage.until_idle().await;
    agent.kill().await;
    stage.say(|script| (script.halts[0], script.last) = (vec![], None));
    stage.want(&[(0, 2)], &[]);
    let agent = stage.start();
    stage.until_halted(0).await;
    agent.kill().await;
    let file = stage.agent_directory().join("halts");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let error = stage.start().ended().await.unwrap().expect_err("a truncated file is not trusted");
    assert_eq!(error.code(), protocol::error_code::AGENT_STATE_UNUSABLE);
    // The positive control: an agent without the file starts what is halted.
    fs::remove_file(&file).unwrap();
    stage.forget_reports();
    let agent = stage.start();
    stage.until_slot(0, 2, SlotState::Ready).await;
    agent.stop().await;
}

/// The agent dies after the halt is durable and before it acts. Its worker lives on for a lease.
#[tokio::test(start_paused = true)]
async fn a_halt_that_was_durable_before_a_crash_is_obeyed_after_it() {
    for durable in [true, false] {
        let stage = Stage::new();
        stage.launcher.decide(always(spinning()));
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(0, 1, SlotState::Ready).await;
        agent.kill().await;
        assert_eq!(stage.launcher.living().len(), 1, "it runs on its lease");
        if durable {
            let circle = stage.script().world.state.id();
            let halts = vec![stage.script().world.halt(0, chat(), 1)];
            let version = protocol::halt::HALT_BOOK_VERSION;
            let record = protocol::halt::HaltBookRecord { version, circle, halts };
            fs::write(stage.agent_directory().join("halts"), record.to_file()).unwrap();
        }
        // Control is dead: the successor acts alone.
        stage.say(|script| script.dead = [0].into());
        let agent = stage.start();
        tokio::time::sleep(Duration::from_millis(HALT_MS_MAX)).await;
        assert_eq!(stage.launcher.living().is_empty(), durable, "the positive control is adopted");
        agent.kill().await;
    }
}

/// The agent dies between any two steps of the write: the halt is on its disk, or a replica sends it again.
#[tokio::test(start_paused = true)]
async fn no_crash_while_a_halt_is_taken_loses_it() {
    let mut points = 0;
    loop {
        let stage = Stage::new();
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_slot(0, 1, SlotState::Ready).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        host::files::crash::after(Some(points));
        stage.halt(&[0], chat(), 1);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let died = !host::files::crash::is_pending();
        host::files::crash::after(None);
        if died {
            assert!(agent.ended().await.is_err(), "its process unwound at point {points}");
        } else {
            agent.kill().await;
        }
        stage.forget_reports();
        let agent = stage.start();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(stage.launcher.living().is_empty(), "died at point {points}");
        stage.want(&[(0, 2)], &[]);
        stage.until_halted(0).await;
        agent.stop().await;
        if !died {
            break;
        }
        points += 1;
    }
    assert!(points >= 5, "five points in the write of the halt, and there were {points}");
}

#[tokio::test(start_paused = true)]
async fn a_halt_by_a_member_whom_the_node_does_not_know_yet_is_obeyed_later() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    let secret = MemberSecret::generate(&[4; 64]);
    let early = stage.script().world.halt_by("dave", &secret, chat(), 1);
    stage.give(&[0], &early);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.launcher.living().len(), 1, "dave is no member");
    stage.say(|script| {
        let state = &script.world.state;
        let dave = human_chain::prove_keys(&secret, "dave".parse().unwrap());
        let members = state.members().cloned().chain([dave.member]).collect();
        let policy = state.policy().clone();
        let proofs = [("dave".parse().unwrap(), dave.proof)].into();
        script.world.decide(Change::SetMembers { members, policy, proofs });
    });
    stage.until_idle().await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_halt_stops_its_own_service_alone_and_a_lift_lets_it_run_again() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.halt(&[0], HaltScope::Service("other".parse().unwrap()), 1);
    stage.halt(&[0], HaltScope::Region("there".into()), 2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"]);
    let here = stage.halt(&[0], HaltScope::Region("here".into()), 3);
    stage.until_released(0, 1).await;
    stage.say(|script| drop(script.world.decide(lift(vec![here.halt]))));
    stage.want(&[(0, 2)], &[]);
    stage.until_slot(0, 2, SlotState::Ready).await;
    agent.stop().await;
}
