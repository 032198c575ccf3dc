//! Tests of suspects: requests that kill their worker, and the requests beside them.

use super::*;
use crate::gateway::pool::Departure;

/// Sends all requests concurrently; returns the answers in order.
async fn all(simulation: &Arc<Simulation>, acts: &[(Act, &str)]) -> Vec<Answer> {
    let asked = acts.iter().map(|(act, more)| simulation.ask("app", *act, more));
    futures::future::join_all(asked).await
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status.as_u16()).collect()
}

async fn workers(simulation: &Arc<Simulation>, count: usize) -> Vec<Arc<Worker>> {
    let mut workers = Vec::new();
    for _ in 0..count {
        workers.push(simulation.worker().await);
    }
    workers
}

fn deaths(workers: &[Arc<Worker>]) -> Vec<u32> {
    workers.iter().filter_map(|worker| worker.death()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_kills_its_worker_ends_two_and_no_more() {
    let simulation = Simulation::new(1 << 24);
    let workers = workers(&simulation, 5).await;
    let answer = simulation.ask("app", Act::Kill(50), "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "worker_lost"));
    assert_eq!(answer.headers["x-should-retry"], "false", "no client repeats it by itself");
    assert!(!answer.headers.contains_key("retry-after"));
    assert_eq!(deaths(&workers), [0, 0]);
    assert_eq!(simulation.ask("app", Act::Answer(1), "").await.status, 200, "the service goes on");
}

#[tokio::test(start_paused = true)]
async fn innocent_requests_beside_it_are_all_answered() {
    for more in ["", r#", "stream": true"#] {
        let simulation = Simulation::new(1 << 24);
        let workers = workers(&simulation, 3).await;
        let innocent = if more.is_empty() { Act::Answer(2_000) } else { Act::Stream(2_000, 500) };
        let mut requests = vec![(innocent, more); 9];
        requests.push((Act::Kill(100), ""));
        let answers = all(&simulation, &requests).await;
        let dead = deaths(&workers);
        assert_eq!(dead.len(), 2, "{more}");
        assert!(dead.contains(&3), "the attack is real: three innocent requests lost their worker: {dead:?}");
        assert!(dead.contains(&0), "it was tried again with no other beside it: {dead:?}");
        assert_eq!(statuses(&answers), [vec![200; 9], vec![503]].concat(), "{more}");
        assert_eq!(answers[9].code(), "worker_lost");
    }
}

#[tokio::test(start_paused = true)]
async fn several_such_requests_at_once_spare_the_innocent_as_well() {
    let simulation = Simulation::new(1 << 24);
    let workers = workers(&simulation, 8).await;
    let mut requests = vec![(Act::Answer(1_000), ""); 16];
    requests.extend([(Act::Kill(100), ""), (Act::Kill(200), "")]);
    let answers = all(&simulation, &requests).await;
    assert_eq!(statuses(&answers), [vec![200; 16], vec![503; 2]].concat());
    assert!(deaths(&workers).len() <= 4, "two for each: {:?}", deaths(&workers));
}

#[tokio::test(start_paused = true)]
async fn others_go_elsewhere_while_a_suspect_runs() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker().await;
    let suspect = tokio::spawn({
        let simulation = simulation.clone();
        async move { simulation.ask("app", Act::Answer(5_000), "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let workers = workers(&simulation, 2).await;
    first.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let others = all(&simulation, &[(Act::Answer(10), ""); 6]).await;
    assert_eq!(statuses(&others), [200; 6]);
    assert_eq!(suspect.await.expect("no panic").status, 200);
    let mut others_on_arrival: Vec<Vec<u32>> =
        workers.iter().map(|worker| worker.others_on_arrival()).collect();
    others_on_arrival.sort_by_key(Vec::len);
    assert_eq!(others_on_arrival[0], [0], "the suspect's worker had it alone");
    assert_eq!(others_on_arrival[1], [0, 1, 2, 3, 4, 5], "the other one had all the others");
}

#[tokio::test(start_paused = true)]
async fn on_the_only_worker_a_suspect_runs_alone_and_others_wait() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker().await;
    let suspect = tokio::spawn({
        let simulation = simulation.clone();
        async move { simulation.ask("app", Act::Answer(3_000), "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.kill();
    let second = simulation.worker().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let asked = Instant::now();
    let other = simulation.ask("app", Act::Answer(10), "").await;
    assert_eq!((other.status.as_u16(), suspect.await.expect("no panic").status.as_u16()), (200, 200));
    assert!(asked.elapsed() >= Duration::from_millis(2_900), "it waited: {:?}", asked.elapsed());
    assert_eq!(second.others_on_arrival(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_keeps_its_worker_from_others_for_ten_seconds_at_most() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker().await;
    let suspect = tokio::spawn({
        let simulation = simulation.clone();
        async move { simulation.ask("app", Act::Answer(60_000), "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.kill();
    let second = simulation.worker().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(simulation.ask("app", Act::Answer(10), "").await.status, 200);
    assert_eq!(second.others_on_arrival(), [0, 1]);
    assert_eq!(suspect.await.expect("no panic").status, 200);
}

#[tokio::test(start_paused = true)]
async fn after_an_ordinary_death_forty_streams_go_on_elsewhere() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker().await;
    let streams = tokio::spawn({
        let simulation = simulation.clone();
        async move { all(&simulation, &[(Act::Stream(500, 120_000), r#", "stream": true"#); 40]).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(first.in_flight(), 40);
    let second = simulation.worker().await;
    let busy = tokio::spawn({
        let simulation = simulation.clone();
        async move { simulation.ask("app", Act::Stream(10, 300_000), r#", "stream": true"#).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(second.in_flight(), 1, "the other worker is never idle");
    first.kill();
    let answers = streams.await.expect("no panic");
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.code().is_empty()));
    // Comments fill the wait for a worker and the pause within each stream.
    let texts = answers.iter().map(|answer| String::from_utf8_lossy(&answer.body));
    let pieces: Vec<String> = texts.map(|text| text.replace(": keep-alive\n\n", "")).collect();
    assert!(pieces.iter().all(|pieces| pieces == "data: piece\n\ndata: piece\n\n"), "{pieces:?}");
    assert_eq!(busy.await.expect("no panic").status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_departure_makes_no_suspects() {
    for (departure, expected) in
        [(Departure::SlotEnded, [vec![0], vec![0, 1]]), (Departure::Lapsed, [vec![0], vec![0, 1]])]
    {
        let simulation = Simulation::new(1 << 24);
        let first = simulation.worker().await;
        let asked = tokio::spawn({
            let simulation = simulation.clone();
            async move { simulation.ask("app", Act::Answer(9_000), "").await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let workers = workers(&simulation, 2).await;
        let link = simulation.gateway.pool.links().remove(0);
        assert_eq!(link.channel.peer(), first.key());
        simulation.gateway.pool.remove(&link, departure);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let on = workers.iter().position(|worker| worker.in_flight() == 1).expect("it runs again");
        let beside = all(&simulation, &[(Act::Answer(1_000), ""); 2]).await;
        assert_eq!(statuses(&beside), [200; 2]);
        let mut others_on_arrival: Vec<Vec<u32>> =
            workers.iter().map(|worker| worker.others_on_arrival()).collect();
        let is_alone = others_on_arrival[on] == [0];
        assert_eq!(is_alone, departure == Departure::Lapsed, "{departure:?}: {others_on_arrival:?}");
        others_on_arrival.sort();
        assert_eq!(others_on_arrival, expected, "{departure:?}");
        assert_eq!(asked.await.expect("no panic").status, 200);
    }
}
