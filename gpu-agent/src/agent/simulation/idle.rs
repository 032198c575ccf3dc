//! Simulations of what a node without work costs control, and of how soon it receives news all the same.

use super::*;
use protocol::limits::{SYNC_INTERVAL_IDLE_MS, SYNC_INTERVAL_MS};

/// Time for which a node is watched.
const WATCHED: Duration = Duration::from_secs(100);

impl Stage {
    /// Returns the number of syncs and of polls for halts that all replicas receive in [`WATCHED`].
    async fn asked(&self) -> (u32, u32) {
        self.script().asked.clear();
        tokio::time::sleep(WATCHED).await;
        let script = self.script();
        let count = |path: &str| script.asked.get(path).copied().unwrap_or(0);
        (count("/agent/v1/sync"), count("/agent/v1/halts"))
    }

    /// Has the circle decide something; returns the milliseconds until the node has it.
    async fn decide_and_wait(&self, replicas_max: u32) -> u64 {
        let length = self.script().world.bundles.len() as u64;
        let manifest = service("chat", ModelRoot(Digest::of(b"model")), replicas_max);
        let began = self.clock.boot();
        self.say(|script| drop(script.world.deploy(&manifest)));
        let knows = || self.script().last.as_ref().is_some_and(|last| last.governance_length > length);
        self.until("the node has the decision", knows).await;
        self.clock.boot().since(began)
    }
}

/// Returns whether a node synchronised at this interval while it was watched.
fn is_pace(syncs: u32, interval_ms: u64) -> bool {
    let expected = WATCHED.as_millis() / u128::from(interval_ms);
    (expected - 5..=expected + 1).contains(&u128::from(syncs))
}

#[tokio::test(start_paused = true)]
async fn a_node_without_work_asks_rarely_and_hears_news_at_once() {
    let stage = Stage::with_replicas(3);
    let agent = stage.start();
    stage.until("the agent syncs", || stage.script().last.is_some()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (syncs, polls) = stage.asked().await;
    assert!(is_pace(syncs, SYNC_INTERVAL_IDLE_MS), "{syncs} syncs");
    // Three replicas hold four requests each, and the first may have begun earlier.
    assert!((9..=15).contains(&polls), "{polls} polls for halts");
    for replicas_max in [301, 302] {
        let took = stage.decide_and_wait(replicas_max).await;
        assert!(took < SYNC_INTERVAL_IDLE_MS / 4, "{took} ms");
    }
    agent.stop().await;
}

/// The lease of exclusive work, and reports of slots, need the shorter interval.
#[tokio::test(start_paused = true)]
async fn a_node_with_work_keeps_the_short_interval_until_it_is_idle_again() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    let (syncs, _) = stage.asked().await;
    assert!(is_pace(syncs, SYNC_INTERVAL_MS), "{syncs} syncs");
    stage.want(&[], &[]);
    stage.until_released(0, 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (syncs, _) = stage.asked().await;
    assert!(is_pace(syncs, SYNC_INTERVAL_IDLE_MS), "{syncs} syncs");
    agent.stop().await;
}

/// A hostile replica that holds each poll forever keeps back its own halts alone.
#[tokio::test(start_paused = true)]
async fn a_replica_that_never_answers_a_poll_delays_no_halt_of_another() {
    let stage = Stage::with_replicas(2);
    let (silent, mut unanswered) = mpsc::channel::<ControlCall>(16);
    let mut stage = stage;
    stage.calls[0] = silent;
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(call) = unanswered.recv().await {
            held.push(call);
        }
    });
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    tokio::time::sleep(WATCHED).await;
    let began = stage.clock.boot();
    let halt = stage.script().world.halt(0, protocol::halt::HaltScope::Circle, 1);
    stage.say(|script| script.halts[1].push(halt));
    stage.until("nothing runs", || stage.launcher.living().is_empty()).await;
    let took = stage.clock.boot().since(began);
    assert!(took <= 1_000, "{took} ms");
    agent.stop().await;
    holding.abort();
}
