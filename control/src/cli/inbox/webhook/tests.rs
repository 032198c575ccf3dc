//! Tests of webhooks: signatures, secrets, and what receivers verify.

use super::*;
use crate::cli::inbox::stage::WaitingStage;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use protocol::{Digest, ErrorCode, ProposalId};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Secret of the standard's own example.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn announcement() -> Announcement {
    Announcement {
        id: ProposalId(Digest::of(b"one")),
        stage: WaitingStage::Vote,
        words: ["badge", "pelican", "gecko", "iris", "barn", "velvet"],
        change: "Start \"it\" \u{202e}.".into(),
        expires_at: Millis(1_795_404_316_810),
        link: "https://one.example.org/console/proposals/x".into(),
        open_questions: 0,
    }
}

fn secret_file(folder: &tempfile::TempDir, text: &str, mode: u32) -> PathBuf {
    let path = folder.path().join("secret");
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
    path
}

#[test]
fn a_signature_is_that_of_the_standards_example() {
    let secret = STANDARD.decode(SECRET.trim_start_matches(SECRET_PREFIX)).expect("base64");
    let key = Key::new(HMAC_SHA256, &secret);
    let body = br#"{"test": 2432232314}"#;
    let headers = signature_headers(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", Millis(1_614_265_330_999), body);
    let values = headers.map(|(_, value)| value);
    let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(values, ["msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", expected]);
}

#[test]
fn a_secret_and_an_address_are_checked_before_anything_is_sent() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let code = |url: &str, text: &str, mode| -> Option<ErrorCode> {
        let outcome = Webhook::new(url, &secret_file(&folder, text, mode)).err();
        outcome.map(|error| error.downcast_ref::<Refusal>().expect("a code").code)
    };
    let hook = "https://chat.example.org/hook";
    for url in [hook, "http://localhost:9/hook", "http://127.0.0.1:9/", "http://[::1]:9/"] {
        assert_eq!(code(url, &format!("{SECRET}\n"), 0o600), None, "{url}");
    }
    for (url, expected) in [
        ("http://chat.example.org/hook", error_code::PLAIN_HTTP_REFUSED),
        ("http://localhost.evil.example/hook", error_code::PLAIN_HTTP_REFUSED),
        ("ftp://localhost/hook", error_code::INVALID_VALUE),
        ("chat.example.org", error_code::INVALID_VALUE),
    ] {
        assert_eq!(code(url, SECRET, 0o600), Some(expected), "{url}");
    }
    let unusable = Some(error_code::KEY_FILE_UNUSABLE);
    for (text, mode) in [
        (SECRET, 0o640),
        ("", 0o600),
        (SECRET.trim_start_matches(SECRET_PREFIX), 0o600),
        ("whsec_MfKQ9r8GKYqrTwjU", 0o600),
        ("whsec_not base64 at all", 0o600),
        (&format!("whsec_{}", "A".repeat(1000)), 0o600),
    ] {
        assert_eq!(code(hook, text, mode), unusable, "{text}");
    }
    assert!(Webhook::new(hook, &folder.path().join("none")).is_err());
}

/// A post as a receiver has it.
type Received = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// Serves a receiver that answers with this status.
async fn receiver(status: StatusCode) -> (String, Received) {
    let received: Received = Arc::default();
    let kept = received.clone();
    let take = move |headers: HeaderMap, body: Bytes| async move {
        kept.lock().expect("no panic").push((headers, body));
        (status, [("location", "/elsewhere")])
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook?token=hidden", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(take))).await });
    (url, received)
}

async fn send(url: &str) -> Result<(), AttemptError> {
    let folder = tempfile::tempdir().expect("temporary directory");
    let webhook = Webhook::new(url, &secret_file(&folder, SECRET, 0o600)).expect("sound");
    webhook.send(&announcement()).await
}

/// Asks the sample of the documentation whether a post is genuine.
fn sample_accepts(headers: &[(&str, String)], body: &[u8], now: u64) -> bool {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/notices.md"));
    let page = page.expect("the page");
    let sample = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    let asks = "import json, sys\nask = json.loads(sys.argv[1])\n\
                body = bytes.fromhex(ask['body'])\n\
                sys.exit(0 if verify(ask['secret'], ask['headers'], body, ask['now']) else 3)\n";
    let program = format!("{}\n{asks}", sample.expect("a sample"));
    let headers: std::collections::BTreeMap<_, _> = headers.iter().cloned().collect();
    let question = serde_json::json!({
        "secret": SECRET, "headers": headers, "body": hex::encode(body), "now": now,
    });
    let mut python = Command::new("python3");
    let output = python.arg("-c").arg(program).arg(question.to_string()).output().expect("python3");
    match output.status.code() {
        Some(0) => true,
        Some(3) => false,
        _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Attack: a post is altered on its way, repeated later, or made by another sender.
#[tokio::test]
async fn a_receiver_accepts_what_was_posted_and_nothing_else() {
    let (url, received) = receiver(StatusCode::OK).await;
    assert_eq!(send(&url).await, Ok(()));
    let (headers, body) = received.lock().expect("no panic").remove(0);
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let value = |name: &str| headers[name].to_str().expect("text").to_string();
    let honest = names.map(|name| (name, value(name)));
    assert_eq!(honest[0].1, announcement().notice().to_string(), "a repeated post is recognized");
    let now: u64 = honest[1].1.parse().expect("seconds");
    // Positive control: as it was posted, it is genuine.
    assert!(sample_accepts(&honest, &body, now));
    let read: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(read["type"], "proposal.waiting");
    assert_eq!(read["data"]["id"], announcement().id.to_string());
    assert_eq!(read["data"]["stage"], "vote");
    assert_eq!(read["data"]["expires_at"], 1_795_404_316_810_u64);
    let mut altered = body.to_vec();
    let at = altered.windows(5).position(|part| part == b"Start").expect("the sentence");
    altered[at] = b's';
    let with = |at: usize, text: &str| {
        let mut headers = honest.clone();
        headers[at].1 = text.to_string();
        headers
    };
    let other_id = with(0, &Digest::of(b"two").to_string());
    let none = with(2, "v1,");
    let other_key = Key::new(HMAC_SHA256, &[7; 24]);
    let by_other = signature_headers(&other_key, &honest[0].1, Millis(now * 1000), &body);
    for (case, headers, body, at) in [
        ("an altered body", &honest, altered.as_slice(), now),
        ("no body", &honest, b"".as_slice(), now),
        ("another id", &other_id, &body, now),
        ("another time", &with(1, &(now + 1).to_string()), &body, now),
        ("an hour later", &honest, &body, now + 3600),
        ("no signature", &none, &body, now),
        ("another sender", &by_other, &body, now),
    ] {
        assert!(!sample_accepts(headers, body, at), "{case}");
    }
}

#[tokio::test]
async fn an_answer_decides_whether_another_attempt_is_made() {
    for (status, expected) in [
        (StatusCode::NO_CONTENT, None),
        (StatusCode::SERVICE_UNAVAILABLE, Some(AttemptError::Retry("the webhook answers 503".into()))),
        (StatusCode::UNAUTHORIZED, Some(AttemptError::Retry("the webhook answers 401".into()))),
        (StatusCode::TEMPORARY_REDIRECT, Some(AttemptError::Retry("the webhook answers 307".into()))),
        (StatusCode::GONE, Some(AttemptError::Refused("the webhook answers 410, gone".into()))),
    ] {
        let (url, received) = receiver(status).await;
        assert_eq!(send(&url).await.err(), expected, "{status}");
        assert_eq!(received.lock().expect("no panic").len(), 1, "{status}: no redirect is followed");
    }
    let AttemptError::Retry(reason) = send("http://127.0.0.1:1/hook?token=hidden").await.expect_err("closed")
    else {
        panic!("it may succeed later")
    };
    assert!(!reason.contains("hidden"), "{reason}");
}
