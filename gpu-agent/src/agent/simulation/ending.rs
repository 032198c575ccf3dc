//! Simulations of workers that end: leases, drains, replacement orders, and workers that do not obey.

use super::autonomy::exclusive;
use super::*;
use protocol::BootTime;
use protocol::sandbox::SandboxExit;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

#[tokio::test(start_paused = true)]
async fn an_exclusive_slot_whose_lease_is_not_renewed_ends_and_comes_back() {
    let stage = Stage::of(exclusive);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.say(|script| script.silent = true);
    let began = stage.clock.boot();
    stage.until("it ended by itself", || stage.launcher.living().is_empty()).await;
    let took = stage.clock.boot().since(began);
    // The end is seen at the next look.
    let latest = Duration::from_millis(LEASE_MS) + LOOK;
    assert!((LEASE_MS - 600..=latest.as_millis() as u64).contains(&took), "{took}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.launcher.started(), 1, "nothing starts without a lease");
    stage.say(|script| (script.silent, script.last) = (false, None));
    let ready = stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!((ready.restarts, stage.launcher.started()), (0, 2), "a lapse is no failure of the worker");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stays_dead_leaves_nothing_running() {
    let stage = Stage::new();
    stage.want(&[(0, 1), (1, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(1, 1, SlotState::Ready).await;
    agent.kill().await;
    assert_eq!(stage.launcher.living().len(), 2, "what runs goes on");
    tokio::time::sleep(Duration::from_millis(LEASE_MS)).await;
    assert!(stage.launcher.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drained_worker_ends_once_it_has_nothing_to_do() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { requests_running: 2, ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.want(&[(0, 1)], &[0]);
    stage.until_slot(0, 1, SlotState::Draining).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.1"], "it is busy");
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    stage.until_released(0, 1).await;
    assert!(stage.launcher.present().is_empty());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_wall_clock_set_back_while_a_worker_drains_keeps_it_no_longer() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.want(&[(0, 1)], &[0]);
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.clock.step_wall(-600_000);
    let began = stage.clock.boot();
    stage.until_released(0, 1).await;
    assert!(stage.clock.boot().since(began) < 5_000);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ignores_its_end_is_killed_when_its_grace_is_over() {
    let stage = Stage::of(exclusive);
    stage.launcher.decide(always(Behaviour { obeys_after: None, ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    let began = stage.clock.boot();
    stage.want(&[], &[]);
    stage.until_released(0, 1).await;
    let took = stage.clock.boot().since(began);
    assert!((3_000..4_500).contains(&took), "{took}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_higher_fence_waits_for_what_runs_and_even_for_what_is_starting() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { start: Duration::from_secs(2), ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stage.want(&[(0, 2)], &[]);
    let deadline = stage.clock.boot().plus(20_000);
    while stage.clock.boot() < deadline {
        assert!(stage.launcher.living().len() <= 1, "{:?}", stage.launcher.living());
        tokio::time::sleep(LOOK).await;
    }
    stage.until_slot(0, 2, SlotState::Ready).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.2"]);
    // A return to the lower fence is never accepted.
    stage.want(&[(0, 1)], &[]);
    let refused = stage.until_slot(0, 1, SlotState::Refused).await;
    assert!(refused.detail.starts_with("order-replayed: "), "{}", refused.detail);
    assert!(!stage.launcher.living().contains(&"chat.0.1.1".to_string()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_not_free_while_the_kernel_has_not_ended_its_sandbox() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    assert!(stage.launcher.set_unkillable("chat.0.1.1", true));
    stage.launcher.hang("chat.0.1.1");
    stage.want(&[], &[]);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(stage.script().released.is_empty());
    let report = stage.until_slot(0, 1, SlotState::Draining).await;
    assert!(report.detail.starts_with("sandbox-failed: "), "{}", report.detail);
    assert_eq!(stage.launcher.present(), ["chat.0.1.1"]);
    stage.launcher.set_unkillable("chat.0.1.1", false);
    stage.until_released(0, 1).await;
    assert!(stage.launcher.present().is_empty());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_out_of_reach_is_tried_until_it_is_there_and_found_again_when_it_hangs_up() {
    // The socket is bound but does not listen, so connections are refused.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let stage = Stage::with_gateway(Some(socket.local_addr().unwrap().to_string()));
    stage.model.complete();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(stage.launcher.tickets("chat.0.1.1").is_empty());
    assert_eq!(stage.until_slot(0, 1, SlotState::Ready).await.restarts, 0);
    let accepted = accept_all(socket.listen(8).unwrap());
    stage.until("it is found", || *accepted.borrow() > 0).await;
    stage.until("tickets are renewed", || stage.launcher.tickets("chat.0.1.1").len() > 5).await;
    stage.clock.step_wall(-600_000);
    stage.until("and go on so", || stage.launcher.tickets("chat.0.1.1").len() > 10).await;
    let tickets = stage.launcher.tickets("chat.0.1.1");
    assert!(tickets.iter().all(protocol::order::SignedTicket::signature_holds));
    let ends: Vec<BootTime> = tickets.iter().map(|signed| signed.ticket.lease_until_boottime_ms).collect();
    assert!(ends.is_sorted_by(|a, b| a < b), "whatever the wall clock says: {ends:?}");
    assert!(ends.windows(2).all(|pair| pair[1].since(pair[0]) < 1_000), "continuously: {ends:?}");
    let before = *accepted.borrow();
    assert!(stage.launcher.disconnect("chat.0.1.1"));
    stage.until("it is found again", || *accepted.borrow() > before).await;
    agent.stop().await;
}

/// Accepts and keeps every connection, and publishes their number. The kernel takes real time for them. Until
/// then paused time may pass and the agent may give up a dial and retry, so the connection that counts is not
/// known.
pub(super) fn accept_all(listener: TcpListener) -> watch::Receiver<usize> {
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            kept.push(connection);
            count.send_replace(kept.len());
        }
    });
    counted
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_while_it_drains_counts_as_stopped() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { requests_running: 1, ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.want(&[(0, 1)], &[0]);
    stage.until_slot(0, 1, SlotState::Draining).await;
    assert!(stage.launcher.end("chat.0.1.1", SandboxExit::Signaled { signal: 11 }));
    stage.until_released(0, 1).await;
    assert_eq!(stage.launcher.started(), 1);
    agent.stop().await;
}
