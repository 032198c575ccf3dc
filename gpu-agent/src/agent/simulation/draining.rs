//! Simulations of agents that drain: what runs finishes first, up to a limit, and nothing new begins.

use super::*;

/// Starts an agent whose only worker has this many requests, and asks it to drain.
async fn draining(stage: &Stage, requests_running: u32) -> Agent {
    stage.launcher.decide(always(Behaviour { requests_running, ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.drain.cancel();
    agent
}

/// Waits for the agent's end, and returns the time that it took in milliseconds.
async fn time_until_end(stage: &Stage, agent: Agent) -> u64 {
    let began = stage.clock.boot();
    agent.ended().await.unwrap().unwrap();
    stage.clock.boot().since(began)
}

#[tokio::test(start_paused = true)]
async fn a_draining_agent_ends_once_its_streams_have_finished() {
    let stage = Stage::new();
    let agent = draining(&stage, 2).await;
    stage.until_slot(0, 1, SlotState::Draining).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"], "longer than its lease: it is busy");
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    let took = time_until_end(&stage, agent).await;
    assert!(took < 5_000, "{took}");
    assert!(stage.launcher.present().is_empty());
    assert!(stage.script().released.is_empty(), "its order stays held");
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!(stage.launcher.started(), 2, "the next agent goes on under the same order");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_limit() {
    let stage = Stage::new();
    let agent = draining(&stage, 2).await;
    let took = time_until_end(&stage, agent).await;
    assert!((30_000..36_000).contains(&took), "{took}");
    assert!(stage.launcher.present().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_request_ends_a_drain_at_once() {
    let stage = Stage::new();
    let agent = draining(&stage, 2).await;
    stage.until_slot(0, 1, SlotState::Draining).await;
    agent.shutdown.cancel();
    let took = time_until_end(&stage, agent).await;
    assert!(took < 5_000, "{took}");
    assert!(stage.launcher.present().is_empty());
}

/// Control may order more before it knows: the order is accepted by the next agent.
#[tokio::test(start_paused = true)]
async fn a_draining_agent_starts_nothing() {
    let stage = Stage::new();
    let agent = draining(&stage, 1).await;
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.want(&[(0, 1), (1, 1)], &[]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"]);
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    agent.ended().await.unwrap().unwrap();
    assert_eq!(stage.launcher.started(), 1);
    let agent = stage.start();
    stage.until_slot(1, 1, SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_control_no_longer_names_finishes_too() {
    let stage = Stage::new();
    let agent = draining(&stage, 1).await;
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.want(&[], &[]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"], "its stream goes on");
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    agent.ended().await.unwrap().unwrap();
    assert!(stage.launcher.present().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_agent_drains_at_once() {
    let stage = Stage::new();
    let agent = stage.start();
    stage.until("it has asked", || stage.script().last.is_some()).await;
    agent.drain.cancel();
    let took = time_until_end(&stage, agent).await;
    assert!(took < 1_000, "{took}");
}
