//! Tests of memory limits: endless bodies, unread answers, and the other keys beside them.

use super::*;

const MIB: usize = 1 << 20;

/// Returns a body that starts with this many bytes of JSON and then stalls.
fn unfinished(bytes: usize) -> Body {
    let mut begun = br#"{"model": "echo", "prompt": ""#.to_vec();
    begun.resize(bytes, b'x');
    let pieces = begun.chunks(64 * 1024).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    let sent = futures::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    Body::from_stream(sent.chain(futures::stream::pending()))
}

/// Returns a body of this many bytes that requests an immediate answer.
fn finished(bytes: usize) -> Body {
    let prompt = "x".repeat(bytes.saturating_sub(64));
    Body::from(format!(r#"{{"model": "echo", "prompt": "{prompt}", "user": "answer 0 0"}}"#))
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_with_a_hundred_unfinished_bodies_does_not_stop_another() {
    let simulation = Simulation::new(16 * MIB);
    let _worker = simulation.worker().await;
    let memory = simulation.gateway.memory.clone();
    let hogs: Vec<_> = (0..100)
        .map(|_| {
            let simulation = simulation.clone();
            tokio::spawn(async move { simulation.send("app", unfinished(MIB)).await })
        })
        .collect();
    settle().await;
    assert!(memory.used() > 14 * MIB, "the attack is real: {} bytes", memory.used());
    let refused = hogs.iter().filter(|hog| hog.is_finished()).count();
    assert!((80..100).contains(&refused), "what is beyond the budget is refused at once: {refused}");
    for bytes in [1_000, MIB, 4 * MIB] {
        let answer = simulation.send("other", finished(bytes)).await;
        assert_eq!(answer.status, 200, "{bytes} bytes: {}", answer.code());
        assert!(memory.used() <= 16 * MIB);
    }
    assert_eq!(simulation.send("app", finished(7 * MIB)).await.code(), "gateway_memory_full");
    let silent = Instant::now();
    let mut codes = std::collections::BTreeMap::new();
    for hog in hogs {
        let answer = hog.await.expect("no panic");
        *codes.entry((answer.status.as_u16(), answer.code())).or_insert(0) += 1;
    }
    let (full, silenced) = ((429, "gateway_memory_full".to_owned()), (408, "request_invalid".to_owned()));
    assert_eq!(codes.keys().collect::<Vec<_>>(), [&silenced, &full]);
    assert!(codes[&full] >= refused + 4, "those that were evicted are told so: {codes:?}");
    assert!(silent.elapsed() < Duration::from_secs(16), "silence is cut: {:?}", silent.elapsed());
    settle().await;
    assert_eq!(memory.used(), 0, "all of it is given back");
    assert_eq!(simulation.send("app", finished(4 * MIB)).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_with_progress_is_read_in_full() {
    let simulation = Simulation::new(16 * MIB);
    let _worker = simulation.worker().await;
    let whole = br#"{"model": "echo", "prompt": "slow"}"#;
    let pieces = futures::stream::iter(whole.chunks(5)).then(|piece| async move {
        tokio::time::sleep(Duration::from_secs(14)).await;
        Ok::<_, Infallible>(Bytes::copy_from_slice(piece))
    });
    assert_eq!(simulation.send("app", Body::from_stream(pieces)).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_without_a_good_key_is_never_read() {
    let simulation = Simulation::new(16 * MIB);
    let polls = Arc::new(AtomicU32::new(0));
    for (key, expected) in [("", 0), ("wrong", 0), ("app", 1)] {
        polls.store(0, Ordering::Relaxed);
        let counted = polls.clone();
        let body = futures::stream::poll_fn(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::task::Poll::Ready(None::<Result<Bytes, Infallible>>)
        });
        let answer = simulation.send(key, Body::from_stream(body)).await;
        assert_eq!(answer.status.as_u16(), if expected == 0 { 401 } else { 400 });
        assert_eq!(polls.load(Ordering::Relaxed), expected, "key `{key}`");
    }
}

#[tokio::test(start_paused = true)]
async fn unread_answers_are_evicted_for_another_key() {
    let simulation = Simulation::new(16 * MIB);
    let _worker = simulation.worker().await;
    let memory = simulation.gateway.memory.clone();
    let large =
        || Body::from(format!(r#"{{"model": "echo", "prompt": "x", "user": "large {} 0"}}"#, 4 * MIB));
    let mut unread = Vec::new();
    for _ in 0..3 {
        let (status, _, body) = simulation.begin("app", large()).await;
        assert_eq!(status, 200);
        unread.push(body);
    }
    assert!(memory.used() >= 12 * MIB, "the answers are held");
    assert_eq!(simulation.send("app", large()).await.code(), "gateway_memory_full");
    // An unread answer is evicted; its bytes are released when its connection notices.
    let other = tokio::spawn({
        let simulation = simulation.clone();
        async move { simulation.send("other", large()).await }
    });
    settle().await;
    let mut broken = 0;
    for body in unread {
        broken += usize::from(body.collect().await.is_err());
    }
    assert_eq!(broken, 1, "one was enough");
    let answer = other.await.expect("no panic");
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 4 * MIB));
    assert_eq!(memory.used(), 0);
}
