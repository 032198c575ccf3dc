//! Crash tests: agents that die at every step of their life, and the recovery by their successors.

use super::*;
use host::files::crash;

/// The life of an agent: an order, a worker, a replacement order under a higher fence, a drain.
async fn life(stage: &Stage) {
    stage.want(&[(0, 1), (1, 1)], &[]);
    wait(stage, &[(0, 1), (1, 1)]).await;
    stage.want(&[(0, 2), (1, 1)], &[]);
    wait(stage, &[(0, 2), (1, 1)]).await;
    stage.want(&[(0, 2), (1, 1)], &[1]);
    tokio::time::sleep(Duration::from_secs(4)).await;
}

/// Waits for a limited time until these slots are ready; an agent that died makes none ready.
async fn wait(stage: &Stage, slots: &[(u32, u64)]) {
    for _ in 0..600 {
        let ready = |(slot, fence): &(u32, u64)| {
            let script = stage.script();
            let mut slots = script.last.iter().flat_map(|request| &request.slots);
            let (slot, fence) = (SlotIndex(*slot), Fence::new(1, *fence));
            slots.any(|r| (r.slot, r.fence, r.state) == (slot, fence, SlotState::Ready))
        };
        if slots.iter().all(ready) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts a new agent after a crash, and checks the state that it must converge to.
async fn succeeds(stage: &Stage, when: &str) {
    stage.want(&[(0, 2), (2, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 2, SlotState::Ready).await;
    stage.until_slot(2, 1, SlotState::Ready).await;
    // A slot that is named no more drains first.
    stage.until(when, || stage.launcher.living() == ["chat.0.1.2", "chat.2.1.1"]).await;
    // The old fence never comes back, no matter when the agent died after it accepted the new one.
    stage.want(&[(0, 1)], &[]);
    let refused = stage.until_slot(0, 1, SlotState::Refused).await;
    assert!(refused.detail.starts_with("order-replayed: "), "{when}: {}", refused.detail);
    agent.stop().await;
    assert!(stage.launcher.present().is_empty(), "{when}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_between_any_two_steps_of_a_write_is_succeeded() {
    let mut points = 0;
    loop {
        let stage = Stage::new();
        crash::after(Some(points));
        let agent = stage.start();
        life(&stage).await;
        let died = !crash::is_pending();
        crash::after(None);
        if died {
            assert!(agent.ended().await.is_err(), "its process unwound at point {points}");
        } else {
            agent.kill().await;
        }
        succeeds(&stage, &format!("died at point {points}")).await;
        if !died {
            break;
        }
        points += 1;
    }
    assert!(points >= 25, "five points in each of at least five writes, and there were {points}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_at_any_moment_is_succeeded() {
    for moment_ms in (0..120).step_by(3).chain((500..4_000).step_by(250)) {
        let stage = Stage::new();
        let agent = stage.start();
        tokio::select! {
            () = life(&stage) => {}
            () = tokio::time::sleep(Duration::from_millis(moment_ms)) => {}
        }
        agent.kill().await;
        succeeds(&stage, &format!("died after {moment_ms} ms")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_keeps_what_runs_if_its_weights_were_complete() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.kill().await;
    stage.say(|script| script.last = None);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(stage.launcher.started(), 1, "the same worker, many leases later");
    agent.kill().await;

    // The other case: weights that can never be completed.
    let stage = Stage::with_gateway(None);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until("its worker runs", || stage.launcher.started() == 1).await;
    agent.kill().await;
    let agent = stage.start();
    stage.until("another worker runs", || stage.launcher.started() == 2).await;
    stage.model.complete();
    stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_in_the_middle_of_a_start_has_left_no_second_worker() {
    // The record is durable after one second; the start returns after two.
    for (moment_ms, left) in [(700, 0), (1_700, 1)] {
        let stage = Stage::new();
        stage.launcher.decide(always(Behaviour { start: Duration::from_secs(2), ..Behaviour::default() }));
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        agent.kill().await;
        assert_eq!(stage.launcher.living().len(), left, "after {moment_ms} ms");
        let agent = stage.start();
        let until = stage.clock.boot().plus(10_000);
        while stage.clock.boot() < until {
            assert!(stage.launcher.living().len() <= 1);
            tokio::time::sleep(LOOK).await;
        }
        stage.until_slot(0, 1, SlotState::Ready).await;
        agent.stop().await;
    }
}
