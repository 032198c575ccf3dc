//! Integration tests of the gateway and its workers from a client's side: OpenAI's formats, keys, quotas,
//! limits, tickets, and dying workers. Real connections in one process; the engines are simulated.

mod admission;
mod cluster;
#[path = "../engine/models.rs"]
#[allow(dead_code, unreachable_pub)]
mod models;
mod processes;

use bytes::Bytes;
use cluster::{Cluster, KEY, PATIENCE, SCARCE_KEY, chat, echo, endless, events, eventually, whole};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use overlay::Identity;
use protocol::limits::LEASE_MS;
use protocol::order::{SignedTicket, Ticket};
use protocol::{Fence, NodeId};
use serde_json::{Value, json};
use serving::engine::simulated::SimulatedEngine;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::time::Instant;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";

fn error_of(answer: &(StatusCode, Value)) -> (u16, &str, &str) {
    let error = &answer.1["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
    (answer.0.as_u16(), error["code"].as_str().unwrap_or(""), error["param"].as_str().unwrap_or(""))
}

#[tokio::test(start_paused = true)]
async fn answers_have_openais_shapes() {
    let cluster = Cluster::start().await;
    let _chat = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let _embed = cluster.worker("embed", 0, SimulatedEngine::encoder(64, 4)).await;

    let (status, answer) = cluster.json(CHAT, &chat("hello", "")).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], "user: hello");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 12, "eleven bytes and the end");

    let body = r#"{"model": "echo", "prompt": "x\nabcdef", "max_tokens": 3}"#;
    let (_, answer) = cluster.json(COMPLETIONS, body).await;
    assert_eq!(
        answer["choices"][0],
        json!({"index": 0, "text": "abc", "logprobs": null, "finish_reason": "length"})
    );
    let body = r#"{"model": "chat", "prompt": "abcdef", "stop": ["de"]}"#;
    let (_, answer) = cluster.json(COMPLETIONS, body).await;
    assert_eq!(answer["choices"][0]["text"], "abc", "a service's name is a model's name too");

    let (_, floats) = cluster.json(EMBEDDINGS, r#"{"model": "counter", "input": ["ab", [97, 98]]}"#).await;
    assert_eq!(floats["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
    assert_eq!(floats["data"][0]["embedding"], floats["data"][1]["embedding"], "text and its tokens agree");
    assert_eq!(floats["data"][1]["index"], 1);
    let body = r#"{"model": "counter", "input": "ab", "encoding_format": "base64"}"#;
    let (_, base64) = cluster.json(EMBEDDINGS, body).await;
    assert_eq!(base64["data"][0]["embedding"].as_str().expect("text").len(), 24, "16 bytes in base64");

    let models = cluster.request(Method::GET, "/v1/models", Some(KEY), "").await;
    let models: Value = serde_json::from_slice(&whole(models).await.1).expect("JSON");
    assert_eq!(models["data"].as_array().expect("a list").len(), 3);
    let model = cluster.request(Method::GET, "/v1/models/echo", Some(KEY), "").await;
    assert_eq!(whole(model).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn each_task_has_its_path() {
    let cluster = Cluster::start().await;
    let _judge = cluster.worker("judge", 0, SimulatedEngine::reranker(64)).await;
    let body = |model: &str| json!({ "model": model, "query": "ab", "documents": ["x", "b"] }).to_string();
    for name in ["sharer", "judge"] {
        let (status, answer) = cluster.json(RERANK, &body(name)).await;
        assert_eq!(status, 200, "{answer}");
        let first = json!({ "index": 1, "document": { "text": "b" }, "relevance_score": 1.0 });
        assert_eq!(answer["results"][0], first);
        assert_eq!(answer["usage"]["prompt_tokens"], 8);
    }
    let metrics = cluster.metrics().await;
    assert_eq!(metrics["quorate_prompt_tokens_total{model_name=\"sharer\"}"], 16.0);

    let prompt = r#"{"model": "judge", "prompt": "x"}"#;
    let input = r#"{"model": "judge", "input": "x"}"#;
    for (path, body, advice) in [
        (RERANK, body("echo"), "/v1/chat/completions"),
        (RERANK, body("embed"), "/v1/embeddings"),
        (COMPLETIONS, prompt.to_owned(), "/v1/rerank"),
        (EMBEDDINGS, input.to_owned(), "/v1/rerank"),
    ] {
        let answer = cluster.json(path, &body).await;
        assert_eq!(error_of(&answer), (400, "operation_unsupported", "model"));
        let message = answer.1["error"]["message"].as_str().expect("text");
        assert!(message.ends_with(&format!("use {advice}")), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_events_that_add_up() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let more = r#", "stream": true, "stream_options": {"include_usage": true}"#;
    let response = cluster.post(CHAT, chat("hi", more)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert!(response.headers().contains_key("x-request-id"));
    assert!(!response.headers().contains_key("quorate-prompt-tokens"), "internal headers stay inside");
    let mut events = events(response).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[0]["usage"], Value::Null);
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "user: hi");
    let usage = events.last().expect("events");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 9);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");

    let metrics = cluster.metrics().await;
    assert_eq!(metrics["quorate_generation_tokens_total{model_name=\"echo\"}"], 9.0);
    assert_eq!(metrics["quorate_time_to_first_token_seconds_count{model_name=\"echo\"}"], 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_cached_prompt_is_shared_by_requests_of_one_key_alone() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let body = json!({ "model": "echo", "prompt": "x".repeat(100), "max_tokens": 2 }).to_string();
    // The third request is the control: the prompt is in the cache, for its own key.
    // A successor of the first key, of the same holder, finds what that key has computed.
    const SUCCESSOR: &str = "qk-test-key-2";
    let mut table = cluster.table(Fence::new(1, 1));
    let successor = protocol::gateway::ApiKey {
        hash: protocol::Digest::of(SUCCESSOR.as_bytes()),
        ..table.api_keys[0].clone()
    };
    table.api_keys.push(successor);
    cluster.push(table).await;
    let requests = [(KEY, 0), (SCARCE_KEY, 0), (KEY, 96), (SCARCE_KEY, 192), (SUCCESSOR, 288)];
    for (key, shared) in requests {
        let response = cluster.request(Method::POST, COMPLETIONS, Some(key), body.clone()).await;
        assert_eq!(whole(response).await.0, 200);
        assert_eq!(worker.snapshot().shared_tokens_total, shared);
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_makes_answers_repeatable() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let body = chat("hi", r#", "seed": 3, "temperature": 1.5, "top_p": 0.9"#);
    let first = cluster.json(CHAT, &body).await.1;
    let second = cluster.json(CHAT, &body).await.1;
    assert_eq!(first["choices"], second["choices"]);
    assert_ne!(first["id"], second["id"]);
}

#[tokio::test(start_paused = true)]
async fn keys_are_required_and_never_repeated() {
    let cluster = Cluster::start().await;
    for key in [None, Some(""), Some("qk-wrong"), Some("qk-test-kez")] {
        let response = cluster.request(Method::POST, CHAT, key, chat("hi", "")).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, body) = whole(response).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(error_of(&(status, body.clone())), (401, "invalid_api_key", ""));
        assert!(!body.to_string().contains("qk-"), "{body}");
        let models = cluster.request(Method::GET, "/v1/models", key, "").await;
        assert_eq!(models.status(), 401);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_calls_the_services_that_it_names_and_no_other() {
    let cluster = Cluster::start().await;
    let _chat = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let _embed = cluster.worker("embed", 0, SimulatedEngine::encoder(64, 4)).await;
    let mut table = cluster.table(Fence::new(1, 1));
    table.api_keys[0].services = Some(BTreeSet::from(["embed".parse().expect("a name")]));
    assert_eq!(table.api_keys[1].services, None, "the other key calls every service");
    assert_eq!(cluster.push(table).await.version, 2);
    let embedding = r#"{"model": "counter", "input": "ab"}"#;
    let requests = [(CHAT, chat("hi", "")), (EMBEDDINGS, embedding.to_owned())];
    for (key, expected) in [(KEY, [403_u16, 200]), (SCARCE_KEY, [200, 200])] {
        for ((path, body), status) in requests.iter().zip(expected) {
            let response = cluster.request(Method::POST, path, Some(key), body.clone()).await;
            let (found, body) = whole(response).await;
            let answer: (StatusCode, Value) = (found, serde_json::from_slice(&body).expect("JSON"));
            assert_eq!(answer.0, status, "{key} {path}: {}", answer.1);
            if status == 403 {
                assert_eq!(error_of(&answer), (403, "api_key_not_for_service", ""));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_lists_the_models_that_it_may_call_and_no_other() {
    let cluster = Cluster::start().await;
    let mut table = cluster.table(Fence::new(1, 1));
    table.api_keys[0].services = Some(BTreeSet::from(["embed".parse().expect("a name")]));
    assert_eq!(cluster.push(table).await.version, 2);
    // The second key is the positive control: it calls every service.
    for (key, listed, found) in [
        (KEY, vec!["counter"], [404_u16, 404, 200]),
        (SCARCE_KEY, vec!["counter", "echo", "sharer"], [200, 200, 200]),
    ] {
        let response = cluster.request(Method::GET, "/v1/models", Some(key), "").await;
        let body: Value = serde_json::from_slice(&whole(response).await.1).expect("JSON");
        let names = body["data"].as_array().expect("a list").iter().map(|model| model["id"].clone());
        assert_eq!(names.collect::<Vec<_>>(), listed, "{key}");
        for (name, status) in ["echo", "chat", "embed"].into_iter().zip(found) {
            let path = format!("/v1/models/{name}");
            let response = cluster.request(Method::GET, &path, Some(key), "").await;
            assert_eq!(response.status(), status, "{key} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_without_a_table_refuses_no_key_but_waits() {
    let cluster = Cluster::patient(PATIENCE).await;
    let ask = cluster.request(Method::GET, "/v1/models", Some(KEY), "");
    let push = cluster.push(cluster.table(Fence::new(1, 1)));
    let (answer, _) = tokio::join!(ask, push);
    assert_eq!(answer.status(), 200, "the key is known as soon as anything is");
    let hasty = Cluster::bare().await;
    let response = hasty.request(Method::GET, "/v1/models", Some(KEY), "").await;
    let (status, body) = whole(response).await;
    assert_eq!(error_of(&(status, serde_json::from_slice(&body).expect("JSON"))), (503, "no_worker", ""));
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_enforced_with_a_retry_time() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    for _ in 0..2 {
        let response = cluster.request(Method::POST, CHAT, Some(SCARCE_KEY), chat("hi", "")).await;
        assert_eq!(response.status(), 200);
    }
    let response = cluster.request(Method::POST, CHAT, Some(SCARCE_KEY), chat("hi", "")).await;
    let seconds: u64 = response.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=30).contains(&seconds), "{seconds}");
    let (status, body) = whole(response).await;
    let answer = (status, serde_json::from_slice(&body).expect("JSON"));
    assert_eq!(error_of(&answer), (429, "rate_limit_exceeded", ""));
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200, "other keys go on");
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_distinguished() {
    let cluster = Cluster::start().await;
    let _chat = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let _embed = cluster.worker("embed", 0, SimulatedEngine::encoder(64, 4)).await;
    let long = "x".repeat(300);
    for (path, body, expected) in [
        (CHAT, chat("hi", r#", "typical_p": 4"#), (400, "unknown_parameter", "typical_p")),
        (CHAT, chat("hi", r#", "n": 200"#), (400, "invalid_value", "n")),
        (CHAT, chat("hi", r#", "logprobs": 2"#), (400, "invalid_value", "logprobs")),
        (CHAT, chat("hi", r#", "tools": [{}]"#), (400, "missing_parameter", "tools[0].function")),
        (CHAT, "{".to_owned(), (400, "request_invalid", "")),
        (CHAT, chat("hi", "").replace("echo", "nobody"), (404, "model_not_found", "model")),
        (CHAT, chat("hi", "").replace("echo", "counter"), (400, "operation_unsupported", "model")),
        (
            EMBEDDINGS,
            r#"{"model": "echo", "input": "a"}"#.to_owned(),
            (400, "operation_unsupported", "model"),
        ),
        (
            EMBEDDINGS,
            r#"{"model": "counter", "input": "a", "dimensions": 2}"#.to_owned(),
            (400, "unsupported_parameter", "dimensions"),
        ),
        (
            EMBEDDINGS,
            format!(r#"{{"model": "counter", "input": "{long}"}}"#),
            (400, "context_length_exceeded", "input"),
        ),
        (EMBEDDINGS, r#"{"model": "counter", "input": [9999]}"#.to_owned(), (400, "invalid_value", "input")),
        (CHAT, chat(&long, ""), (400, "context_length_exceeded", "messages")),
        (CHAT, chat(&"x".repeat(4_000_000), ""), (400, "context_length_exceeded", "messages")),
        (
            COMPLETIONS,
            r#"{"model": "echo", "prompt": "a", "max_tokens": 1000}"#.to_owned(),
            (400, "context_length_exceeded", "prompt"),
        ),
        ("/v1/images/generations", "{}".to_owned(), (404, "path_not_found", "")),
    ] {
        let answer = cluster.json(path, &body).await;
        assert_eq!(error_of(&answer), expected, "{path} {body}");
    }
    let (status, _) = whole(cluster.post(CHAT, Bytes::from_static(b"{\"model\": \"\xff\"}")).await).await;
    assert_eq!(status, 400, "invalid UTF-8");
    let response = cluster.request(Method::GET, CHAT, Some(KEY), "").await;
    assert_eq!(response.status(), 405);
    let response = cluster.request(Method::GET, "/v1/models/%00%ff", Some(KEY), "").await;
    let (status, body) = whole(response).await;
    let answer = (status, serde_json::from_slice(&body).expect("JSON"));
    assert_eq!(error_of(&answer), (404, "model_not_found", "model"));
}

#[tokio::test(start_paused = true)]
async fn tickets_and_short_prompts_pass_a_prompt_that_is_being_tokenized() {
    let cluster = Cluster::start().await;
    let (release, wait) = mpsc::channel::<()>();
    let (wait, begun) = (Mutex::new(wait), Arc::new(AtomicU32::new(0)));
    let count = begun.clone();
    let engine = SimulatedEngine::with_tokenizer(1 << 20, 1 << 22, move |text| {
        if text.len() > 100_000 {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = wait.lock().expect("whole").recv();
        }
    });
    let worker = cluster.worker("chat", 0, engine).await;
    let long = format!(r#"{{"model": "echo", "prompt": "{}", "max_tokens": 1}}"#, "x".repeat(200_000));
    let long = || cluster.json(COMPLETIONS, &long);
    let others = async {
        eventually("one is being tokenized", async || begun.load(Ordering::Relaxed) == 1).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(2 * LEASE_MS) {
            assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        assert!(!worker.is_left(), "its tickets are polled");
        assert_eq!(begun.load(Ordering::Relaxed), 1, "one long prompt at a time");
        drop(release);
    };
    let (answers, ()) = tokio::join!(futures::future::join_all((0..4).map(|_| long())), others);
    for (status, answer) in answers {
        assert_eq!(status, 200, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_100_mb_is_refused_without_being_read() {
    let cluster = Cluster::start().await;
    let answer = cluster.json(CHAT, &" ".repeat(100_000_000)).await;
    assert_eq!(error_of(&answer), (413, "request_too_large", ""));
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_clients_get_a_retry_time() {
    let cluster = Cluster::start().await;
    let response = cluster.post(CHAT, chat("hi", "")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body) = whole(response).await;
    assert_eq!(error_of(&(status, serde_json::from_slice(&body).expect("JSON"))), (503, "no_worker", ""));
}

#[tokio::test(start_paused = true)]
async fn requests_go_to_the_least_busy_worker() {
    let cluster = Cluster::start().await;
    let slow = Duration::from_secs(60);
    let one = cluster.worker("chat", 0, echo(slow)).await;
    let two = cluster.worker("chat", 1, echo(slow)).await;
    let running = || one.snapshot().requests_running + two.snapshot().requests_running;
    let requests: Vec<_> = (0..4).map(|_| cluster.post(CHAT, chat("hi", ""))).collect();
    tokio::select! {
        _ = futures::future::join_all(requests) => panic!("no answer comes within a minute"),
        () = eventually("both have two", async || {
            let waiting = one.snapshot().requests_waiting + two.snapshot().requests_waiting;
            running() + waiting == 4
        }) => {}
    }
    let load =
        |worker: &cluster::Worker| worker.snapshot().requests_running + worker.snapshot().requests_waiting;
    assert_eq!((load(&one), load(&two)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_request_survives_its_workers_death() {
    let cluster = Cluster::start().await;
    let doomed = cluster.worker("chat", 0, echo(Duration::from_secs(60))).await;
    for more in ["", r#", "stream": true"#] {
        let doomed_again;
        let victim = if more.is_empty() {
            &doomed
        } else {
            doomed_again = cluster.worker("chat", 0, echo(Duration::from_secs(60))).await;
            &doomed_again
        };
        let request = cluster.post(CHAT, chat("hi", more));
        let kill = async {
            eventually("it runs", async || victim.snapshot().requests_running == 1).await;
            let heir = cluster.worker("chat", 1, echo(Duration::ZERO)).await;
            victim.kill();
            heir
        };
        let (response, heir) = tokio::join!(request, kill);
        let (status, body) = whole(response).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        heir.kill();
        eventually("all are gone", async || cluster.connected().await == 0).await;
    }
    assert_eq!(cluster.metrics().await["quorate_request_retries_total{model_name=\"echo\"}"], 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_lost_in_midstream_is_reported() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("chat", 0, endless()).await;
    let response = cluster.post(CHAT, chat("on and on", r#", "stream": true"#)).await;
    let mut body = response.into_body();
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        let data = frame.expect("the stream ends in order").into_data().expect("data");
        text.push_str(std::str::from_utf8(&data).expect("text"));
        worker.kill();
    }
    let last = text.trim_end().rsplit("data: ").next().expect("an event");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["error"]["code"], "worker_lost", "{text}");
    assert!(!text.contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_disconnects_stops_the_engine() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("chat", 0, endless()).await;
    let text = "on and on";
    let stream = cluster.post(CHAT, chat(text, r#", "stream": true"#)).await;
    assert_eq!(worker.snapshot().requests_running, 1);
    drop(stream);
    eventually("the stream's work stops", async || worker.snapshot().requests_cancelled_total == 1).await;
    tokio::select! {
        _ = cluster.post(CHAT, chat(text, "")) => panic!("the answer has no end"),
        () = eventually("it runs", async || worker.snapshot().requests_running == 1) => {}
    }
    eventually("the whole answer's work stops", async || worker.snapshot().requests_cancelled_total == 2)
        .await;
    assert_eq!(worker.snapshot().requests_finished_total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_worker_waits_for_one() {
    let cluster = Cluster::patient(PATIENCE).await;
    let table = cluster.table(Fence::new(1, 1));
    cluster.push(table).await;
    let held = "quorate_requests_held_total{model_name=\"echo\"}";
    let body = chat("hi", "");
    let ask = cluster.json(CHAT, &body);
    let begin = async {
        eventually("the request is held", async || cluster.metrics().await.get(held) == Some(&1.0)).await;
        cluster.worker("chat", 0, echo(Duration::ZERO)).await
    };
    let ((status, answer), _worker) = tokio::join!(ask, begin);
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_loading_worker_gets_requests_once_it_is_ready() {
    let cluster = Cluster::patient(PATIENCE).await;
    cluster.push(cluster.table(Fence::new(1, 1))).await;
    let identity = Identity::generate().expect("randomness");
    let ticket = cluster.signed(cluster.ticket(&identity, "chat", 0));
    let worker = cluster.connect_loading(identity, echo(Duration::ZERO), ticket).await;
    eventually("it is connected", async || cluster.connected().await == 1).await;
    let body = chat("hi", "");
    let ask = cluster.json(CHAT, &body);
    let load = async {
        let held = "quorate_requests_held_total{model_name=\"echo\"}";
        eventually("the request is held", async || cluster.metrics().await.get(held) == Some(&1.0)).await;
        worker.load();
    };
    let ((status, answer), ()) = tokio::join!(ask, load);
    assert_eq!(status, 200, "{answer}");
    let retries = "quorate_request_retries_total{model_name=\"echo\"}";
    assert_eq!(cluster.metrics().await.get(retries), None, "nothing was tried in vain");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_only_worker_dies_waits_for_the_next() {
    let cluster = Cluster::patient(PATIENCE).await;
    let table = cluster.table(Fence::new(1, 1));
    cluster.push(table).await;
    let first = cluster.worker("chat", 0, echo(Duration::from_secs(600))).await;
    let body = chat("hi", "");
    let ask = cluster.json(CHAT, &body);
    let replace = async {
        eventually("it runs", async || first.snapshot().requests_running == 1).await;
        first.kill();
        eventually("its death is noticed", async || cluster.connected().await == 0).await;
        cluster.worker("chat", 1, echo(Duration::ZERO)).await
    };
    let ((status, answer), _second) = tokio::join!(ask, replace);
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_held_request_fails_when_its_service_is_retired() {
    let cluster = Cluster::patient(PATIENCE).await;
    let table = cluster.table(Fence::new(1, 1));
    cluster.push(table).await;
    let held = "quorate_requests_held_total{model_name=\"echo\"}";
    let ask = cluster.post(CHAT, chat("hi", ""));
    tokio::pin!(ask);
    tokio::select! {
        _ = &mut ask => panic!("nobody serves it"),
        () = eventually("it is held", async || cluster.metrics().await.get(held) == Some(&1.0)) => {}
    }
    let mut without = cluster.table(Fence::new(1, 1));
    without.services.retain(|service| service.service.as_str() != "chat");
    let asked = Instant::now();
    cluster.push(without).await;
    let (status, body) = whole(ask.await).await;
    let answer = (status, serde_json::from_slice(&body).expect("JSON"));
    assert_eq!(error_of(&answer), (404, "model_not_found", "model"));
    assert!(asked.elapsed() < PATIENCE, "told at once, not when patience ends");
}

#[tokio::test(start_paused = true)]
async fn a_draining_worker_is_left_for_another() {
    let cluster = Cluster::start().await;
    let one = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let two = cluster.worker("chat", 1, echo(Duration::ZERO)).await;
    one.service.drain();
    for _ in 0..6 {
        assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200);
    }
    // An answer may arrive just before it is counted.
    eventually("all ran on the other", async || two.snapshot().requests_finished_total == 6).await;
    two.service.drain();
    let answer = cluster.json(CHAT, &chat("hi", "")).await;
    assert!(matches!(error_of(&answer), (503, "no_worker" | "worker_overloaded", "")), "{answer:?}");
}

/// Connects a worker with a ticket that `alter` changed, and returns the reason of its rejection.
async fn refusal(alter: impl Fn(&Cluster, &mut Ticket), forge: bool) -> String {
    let cluster = Cluster::start().await;
    let worker = cluster
        .outsider(echo(Duration::ZERO), |worker| {
            let mut ticket = cluster.ticket(worker, "chat", 0);
            alter(&cluster, &mut ticket);
            let SignedTicket { ticket, mut signature } = cluster.signed(ticket);
            signature.0[0] ^= u8::from(forge);
            SignedTicket { ticket, signature }
        })
        .await;
    eventually("the worker is turned away", async || worker.is_left()).await;
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 503);
    let metrics = cluster.metrics().await;
    let refused =
        metrics.keys().find_map(|name| name.strip_prefix("quorate_tickets_refused_total{reason=\""));
    refused.expect("a refusal is counted").trim_end_matches("\"}").to_owned()
}

#[tokio::test(start_paused = true)]
async fn lapsed_forged_and_foreign_tickets_are_refused() {
    let outsider = || Identity::generate().expect("randomness").public_key();
    assert_eq!(refusal(|_, _| {}, true).await, "signature");
    let minutes = |count: u64| count * 60_000;
    let expired = |_: &Cluster, ticket: &mut Ticket| ticket.expires_at.0 -= minutes(6);
    assert_eq!(refusal(expired, false).await, "expired");
    assert_eq!(refusal(|_, ticket| ticket.expires_at.0 += minutes(6), false).await, "ahead");
    assert_eq!(refusal(|_, ticket| ticket.worker = outsider(), false).await, "foreign_worker");
    assert_eq!(refusal(|_, ticket| ticket.gateway = outsider(), false).await, "foreign_gateway");
    assert_eq!(refusal(|_, ticket| ticket.node = NodeId(outsider()), false).await, "signature");
    assert_eq!(refusal(|_, ticket| ticket.fence = Fence::new(1, 0), false).await, "fence");
}

#[tokio::test(start_paused = true)]
async fn an_unrenewed_ticket_lapses_and_gains_nothing_by_replay() {
    let cluster = Cluster::start().await;
    let ticket = |worker: &Identity| cluster.signed(cluster.ticket(worker, "chat", 0));
    let shown_after = Instant::now();
    let worker = cluster.outsider(echo(Duration::ZERO), ticket).await;
    eventually("it is ready", async || cluster.ready().await == 1).await;
    let renewed = cluster.signed(cluster.ticket(&worker.identity, "chat", 0));
    worker.tickets.put(renewed.clone());
    eventually("the gateway hangs up", async || worker.is_left()).await;
    assert!(shown_after.elapsed() >= Duration::from_millis(LEASE_MS), "{:?}", shown_after.elapsed());
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 503);
    let again = cluster.connect(worker.identity.clone(), echo(Duration::ZERO), renewed).await;
    eventually("it is turned away", async || again.is_left()).await;
    let name = "quorate_tickets_refused_total{reason=\"expired\"}";
    assert_eq!(cluster.metrics().await.get(name).copied(), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_nodes_wall_clock_may_be_minutes_off() {
    for skew_ms in [-240_000_i64, 240_000] {
        let cluster = Cluster::start().await;
        let skewed = |worker: &Identity| {
            let mut ticket = cluster.ticket(worker, "chat", 0);
            ticket.expires_at.0 = ticket.expires_at.0.saturating_add_signed(skew_ms);
            cluster.signed(ticket)
        };
        let worker = cluster.outsider(echo(Duration::ZERO), skewed).await;
        eventually("it is ready", async || cluster.ready().await == 1).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(LEASE_MS + 1_000) {
            worker.tickets.put(skewed(&worker.identity));
            assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200, "skew {skew_ms} ms");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        assert!(!worker.is_left(), "it outlived its first lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_slot_gets_no_further_requests() {
    let cluster = Cluster::start().await;
    let old = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200);
    let table = cluster.table(Fence::new(1, 2));
    assert_eq!(cluster.push(table).await.version, 2);
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 503);
    eventually("the old worker is left", async || old.is_left()).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_or_unusable_table_changes_nothing() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let mut older = cluster.table(Fence::new(1, 7));
    older.version = 1;
    assert_eq!(cluster.push(older.clone()).await.version, 1);
    older.version = 9;
    older.services.push(older.services[0].clone());
    assert_eq!(cluster.push(older).await.version, 1, "a service stands twice");
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_about_to_end_gets_nothing_new() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("chat", 0, echo(Duration::ZERO)).await;
    let mut table = cluster.table(Fence::new(1, 1));
    table.services[0].routes[0].draining = true;
    cluster.push(table).await;
    assert_eq!(cluster.json(CHAT, &chat("hi", "")).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_worker_may_be_faster_than_the_table() {
    let cluster = Cluster::bare().await;
    let ticket = |worker: &Identity| cluster.signed(cluster.ticket(worker, "chat", 1));
    let worker = cluster.outsider(echo(Duration::ZERO), ticket).await;
    let table = cluster.table(Fence::new(1, 1));
    cluster.push(table).await;
    eventually("it is served", async || cluster.json(CHAT, &chat("hi", "")).await.0 == 200).await;
    assert!(!worker.is_left());
}
