//! Tests of time limits: the lifetime of a worker's ticket, and the wait of a request for a worker.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_worker_whose_ticket_is_not_renewed_is_left_when_its_lease_ends() {
    let simulation = Simulation::new(1 << 24);
    let worker = simulation.worker().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(simulation.gateway.pool.links().len(), 1, "twenty leases later");
    worker.lapse();
    let lapsing = Instant::now();
    while !simulation.gateway.pool.links().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let lasted_ms = lapsing.elapsed().as_millis() as u64;
    assert!((LEASE_MS - 501..=LEASE_MS + 1).contains(&lasted_ms), "{lasted_ms} ms");
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_ten_seconds_for_a_worker() {
    let simulation = Simulation::new(1 << 24);
    let asked = Instant::now();
    let answer = simulation.ask("app", Act::Answer(0), "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "no_worker"));
    assert_eq!(asked.elapsed().as_secs(), HOLD_TIMEOUT.as_secs());
    let asked = Instant::now();
    let late = async {
        tokio::time::sleep(Duration::from_millis(9_900)).await;
        simulation.worker().await
    };
    let (answer, _worker) = tokio::join!(simulation.ask("app", Act::Answer(0), ""), late);
    assert_eq!(answer.status, 200);
    assert!(asked.elapsed() < HOLD_TIMEOUT, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_quota_refills_evenly() {
    let simulation = Simulation::new(1 << 24);
    let _worker = simulation.worker().await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(simulation.ask("scarce", Act::Answer(0), "").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(simulation.ask("scarce", Act::Answer(0), "").await.status, 200);
    let answer = simulation.ask("scarce", Act::Answer(0), "").await;
    assert_eq!(
        (answer.code().as_str(), &answer.headers["retry-after"]),
        ("rate_limit_exceeded", &"30".parse().expect("a value"))
    );
}

/// Returns a load that is 128 MiB long.
fn endless(worker: Arc<Worker>) -> Body {
    let pieces = (0..128).map(move |_| {
        worker.sent.fetch_add(1 << 20, Ordering::Relaxed);
        Ok::<_, Infallible>(Bytes::from(vec![b' '; 1 << 20]))
    });
    Body::from_stream(futures::stream::iter(pieces))
}

#[tokio::test(start_paused = true)]
async fn a_poll_with_an_oversized_answer_is_abandoned() {
    let simulation = Simulation::new(1 << 24);
    let worker = simulation.connect(Some(endless)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let sent = worker.sent.load(Ordering::Relaxed);
    assert!(sent > 0, "it is asked");
    // At most the bytes that flow control admits before the gateway has read any.
    assert!(sent <= 4 << 20, "{sent} bytes");
    assert_eq!(simulation.ask("app", Act::Answer(0), "").await.code(), "no_worker", "it is never ready");
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_a_worker_that_lost_its_slot_is_cut_for_silence_and_not_for_length() {
    for (silence_s, is_whole) in [(400, true), (700, false)] {
        let simulation = Simulation::new(1 << 24);
        let _worker = simulation.worker().await;
        let act = Act::Stream(0, silence_s * 1000).script();
        let request = format!(r#"{{"model": "echo", "prompt": "x", "stream": true, "user": "{act}"}}"#);
        let (status, _, body) = simulation.begin("app", Body::from(request)).await;
        assert_eq!(status, 200);
        let began = Instant::now();
        simulation.push(2, Fence::new(1, 2));
        let answer = body.collect().await.expect("it ends in order").to_bytes();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(!answer.contains("worker_lost"), is_whole, "{silence_s} s: {answer}");
        assert_eq!(answer.matches("data: piece").count(), 1 + usize::from(is_whole));
        assert!(began.elapsed() <= Duration::from_secs(silence_s.min(602) + 1), "{:?}", began.elapsed());
        let left = async {
            while !simulation.gateway.pool.links().is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), left).await.expect("the worker is left then");
    }
}
