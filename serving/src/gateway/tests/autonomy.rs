//! Tests of a gateway that receives nothing from its agent: its last table stays in force, and tickets show
//! which workers live.

use super::*;

/// Asks once a second for this time; returns the status of each answer that was no success.
async fn failures(simulation: &Simulation, seconds: u64) -> Vec<u16> {
    let mut failures = Vec::new();
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answer = simulation.ask("app", Act::Answer(200), "").await;
        failures.extend((answer.status != StatusCode::OK).then_some(answer.status.as_u16()));
    }
    failures
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_a_table_fail_no_request() {
    let simulation = Simulation::new(1 << 24);
    let _workers = [simulation.worker().await, simulation.worker().await];
    assert_eq!(failures(&simulation, 600).await, [0_u16; 0]);
    assert_eq!(simulation.gateway.pool.links().len(), 2);
}

/// The positive control of the test above: tickets that are not renewed.
#[tokio::test(start_paused = true)]
async fn a_table_alone_keeps_no_worker() {
    let simulation = Simulation::new(1 << 24);
    let worker = simulation.worker().await;
    worker.lapse();
    tokio::time::sleep(Duration::from_millis(LEASE_MS + 1)).await;
    assert_eq!(failures(&simulation, 1).await, [503]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_restarts_while_no_table_comes_is_admitted_again() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    first.kill();
    let _second = simulation.worker().await;
    assert_eq!(failures(&simulation, 60).await, [0_u16; 0]);
}

/// A node was partitioned from control, not from the gateway: its worker lives and renews its ticket when the
/// table gives the slot to a higher fence.
#[tokio::test(start_paused = true)]
async fn a_replaced_worker_finishes_its_requests_and_gets_no_new_ones() {
    let simulation = Simulation::new(1 << 24);
    let replaced = simulation.worker().await;
    let asked = simulation.clone();
    let running = tokio::spawn(async move { asked.ask("app", Act::Answer(5_000), "").await });
    while replaced.in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    simulation.push(2, Fence::new(1, 2));
    let answer = simulation.ask("app", Act::Answer(0), "").await;
    assert_eq!(answer.code(), "no_worker", "nothing is sent to a holder that was replaced");
    assert_eq!(replaced.others_on_arrival().len(), 1);
    assert_eq!(running.await.expect("it runs").status, StatusCode::OK, "what it had begun is finished");
}
