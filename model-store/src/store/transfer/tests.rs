//! Tests of transfers: endless answers are stopped at the end of the request, and retries end.

use super::*;
use crate::store::S3Settings;
use crate::testing::Endless;
use crate::{Context, open_store};
use futures::TryStreamExt;
use protocol::error_code as code;
use protocol::model::{ModelNonce, StoreReference};
use std::cell::Cell;

/// Generous bound on the bytes that kernels may hold of one connection on loopback.
const KERNEL_BYTES_MAX: u64 = 48 << 20;
/// Bytes that prove that an answer would not end.
const ENDLESS_BYTES: u64 = 256 << 20;

#[test]
fn a_write_is_retried_four_times_with_growing_delays() {
    let waits = |attempts| -> Vec<_> {
        (0..7).map(|failures| retry_delay(failures, attempts).map(|wait| wait.as_millis())).collect()
    };
    let usual = [None, Some(500), Some(1000), Some(2000), Some(4000), None, None];
    assert_eq!(waits(WRITE_ATTEMPTS_MAX), usual);
    assert_eq!(waits(2), [None, Some(500), None, None, None, None, None]);
}

fn s3(endpoint: &str) -> Store {
    let settings = S3Settings {
        endpoint: Some(endpoint.into()),
        region: Some("us-east-1".into()),
        access_key_id: Some("id".into()),
        secret_access_key: Some("secret".into()),
    };
    let reference = StoreReference { url: "s3://bucket/liar".into(), failure_domain: "d".into() };
    open_store(&reference, &Context::new().with_s3(settings)).expect("a store")
}

/// Shows that a client without a limit receives as much as it takes.
async fn taken_without_a_guard(endless: &Endless) {
    let answer = reqwest::get(format!("{}/bucket/object", endless.endpoint)).await.expect("an answer");
    let mut chunks = answer.bytes_stream();
    let mut taken = 0;
    while taken < ENDLESS_BYTES {
        taken += chunks.try_next().await.expect("bytes").expect("and no end").len() as u64;
    }
    drop(chunks);
    assert!(endless.sent_in_all().await >= ENDLESS_BYTES);
}

const RANGE: Range<u64> = 1_000..1_000_003;
const PARTIAL: &str = "HTTP/1.1 206 Partial Content\nETag: \"a\"\n\
    Last-Modified: Mon, 02 Nov 2026 10:00:00 GMT\n\
    Content-Range: bytes 1000-1000002/5000000\nContent-Length: 1099511627776\n\n";
const WHOLE: &str = "HTTP/1.1 200 OK\nETag: \"a\"\nLast-Modified: Mon, 02 Nov 2026 10:00:00 GMT\n\
    Content-Length: 1099511627776\n\n";
const ABSENT: &str = "HTTP/1.1 404 Not Found\nContent-Length: 1099511627776\n\n";

#[tokio::test]
async fn an_s3_answer_without_end_is_stopped_at_the_first_byte_too_many() {
    let path = crate::geometry::object_path(ModelNonce([1; 16]), 0, 0);
    for (head, whole) in [(PARTIAL, false), (WHOLE, false), (WHOLE, true), (ABSENT, false), (ABSENT, true)] {
        let endless = Endless::start(head).await;
        taken_without_a_guard(&endless).await;
        let (before, store, received) = (endless.sent(), s3(&endless.endpoint), Cell::new(0));
        let on_bytes = |bytes| received.set(received.get() + bytes);
        let read = match whole {
            true => store.get(&path, 1_000_000, on_bytes).await,
            false => store.get_range(&path, RANGE, on_bytes).await,
        };
        let error = read.expect_err("more than was asked for");
        drop(store);
        assert_eq!(error.code(), code::STORE_LENGTH_WRONG, "{head}: {error}");
        let text = error.to_string();
        assert!(text.contains("s3://bucket/liar") && text.contains(path.as_ref()), "{text}");
        assert!(received.get() <= RANGE.end - RANGE.start, "{head}: {} bytes were taken", received.get());
        let sent = endless.sent_in_all().await - before;
        assert!(sent < KERNEL_BYTES_MAX, "{head}: {sent} bytes were sent");
    }
}

#[tokio::test]
async fn a_listing_without_end_is_stopped() {
    let endless = Endless::start(WHOLE).await;
    taken_without_a_guard(&endless).await;
    let (before, store) = (endless.sent(), s3(&endless.endpoint));
    let listed: Result<Vec<_>, _> = store.list("").try_collect().await;
    let error = listed.expect_err("a page without end");
    drop(store);
    assert_eq!(error.code(), code::STORE_LENGTH_WRONG, "{error}");
    assert!(error.to_string().contains("a page of names"), "{error}");
    let sent = endless.sent_in_all().await - before;
    assert!(sent < KERNEL_BYTES_MAX, "{sent} bytes were sent");
}

#[tokio::test]
async fn an_object_that_ends_too_early_is_short_and_a_directory_is_missing() {
    let world = crate::testing::ModelFixture::new();
    let (local, path) = (&world.stores(1)[0], crate::geometry::object_path(ModelNonce([1; 16]), 0, 0));
    local.put(&path, PutPayload::from_static(b"0123456789"), &Progress::new()).await.expect("written");
    let far = Store::from_objects(
        world.reference(0),
        Arc::new(
            object_store::local::LocalFileSystem::new_with_prefix(world.store_directory(0)).expect("there"),
        ),
    );
    for store in [local, &far] {
        assert_eq!(store.get(&path, 10, |_| ()).await.expect("whole")[..], *b"0123456789");
        assert_eq!(store.get_range(&path, 3..5, |_| ()).await.expect("a range")[..], *b"34");
        let long = store.get(&path, 9, |_| ()).await.expect_err("too long");
        assert!(matches!(long, StoreError::Surplus { .. }) && long.to_string().contains("9 bytes"), "{long}");
        let short = store.get_range(&path, 8..12, |_| ()).await.expect_err("too short");
        assert!(matches!(short, StoreError::Short { expected: 4, received: 2, .. }), "{short:?}");
    }
    let file = world.store_directory(0).join(path.as_ref());
    std::fs::remove_file(&file).expect("remove");
    std::fs::create_dir(&file).expect("create");
    for store in [local, &far] {
        let missing = store.get(&path, 10, |_| ()).await.expect_err("no object");
        assert_eq!(missing.code(), code::SHARD_MISSING, "{missing}");
    }
}
