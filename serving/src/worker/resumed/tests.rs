//! Tests of answers that continue: a worker that has the tokens of a stream sends exactly the rest of it, cut
//! after any frame.

use super::*;
use crate::batcher::BatcherLimits;
use crate::engine::simulated::SimulatedEngine;
use crate::openai::Endpoint;
use crate::resumable::{StreamFrame, StreamReader, write_tokens};
use crate::worker::answer::router;
use axum::body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt;

const ORIGIN: StreamOrigin = StreamOrigin { number: 77, at: Millis(1_234_567) };

/// Returns a worker of gateways, or one on local files that answers to `m`.
fn worker(model: Option<&str>) -> Arc<WorkerService> {
    let service = Arc::new(WorkerService::new(model.map(str::to_owned)));
    let engine = SimulatedEngine::decoder(400, 4000);
    service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
    service
}

/// Sends a request with this header, and a body that begins with these tokens.
async fn send(
    service: &Arc<WorkerService>,
    endpoint: Endpoint,
    header: Option<&str>,
    drawn: &[u32],
    request: &Value,
) -> (StatusCode, bool, Bytes) {
    let body = [write_tokens(drawn).to_vec(), request.to_string().into_bytes()].concat();
    let mut sent = http::Request::post(endpoint.path());
    if let Some(header) = header {
        sent = sent.header(RESUMABLE, header);
    }
    let sent = sent.body(Body::from(body)).expect("valid");
    let response = router(service.clone()).oneshot(sent).await.expect("infallible");
    let (status, is_framed) = (response.status(), response.headers().contains_key(RESUMABLE));
    (status, is_framed, response.into_body().collect().await.expect("whole").to_bytes())
}

fn header(tokens: usize) -> String {
    format!("{} {} {tokens}", ORIGIN.number, ORIGIN.at.0)
}

/// Returns the frames of an answer after these tokens.
async fn frames(
    service: &Arc<WorkerService>,
    endpoint: Endpoint,
    drawn: &[u32],
    request: &Value,
) -> Vec<StreamFrame> {
    let header = header(drawn.len());
    let (status, is_framed, body) = send(service, endpoint, Some(&header), drawn, request).await;
    assert!(status == 200 && is_framed, "{status} {body:?}");
    let mut reader = StreamReader::default();
    reader.push(&body);
    let frames = std::iter::from_fn(|| reader.next_frame().expect("a frame")).collect::<Vec<_>>();
    assert!(frames.last().is_some_and(|last| last.is_last));
    frames
}

fn chat(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }] })
}

#[tokio::test]
async fn the_rest_of_a_stream_is_sent_at_every_cut() {
    let usage = json!({ "stream_options": { "include_usage": true } });
    let warm = json!({ "temperature": 2, "max_tokens": 40 });
    for (endpoint, input, more) in [
        (Endpoint::Chat, chat("n\u{e9}\u{1f600} abc"), usage.clone()),
        (Endpoint::Chat, chat("a longer line with words"), json!({ "seed": 5, "temperature": 2 })),
        (Endpoint::Chat, chat("logs"), json!({ "logprobs": true, "top_logprobs": 2 })),
        (Endpoint::Completions, json!({ "prompt": "one STAR STOP end" }), json!({ "stop": ["STOP"] })),
        (Endpoint::Completions, json!({ "prompt": "p\u{1f600}q", "logprobs": 1 }), usage),
        (Endpoint::Completions, json!({ "prompt": "abcdef", "ignore_eos": true }), warm),
        (
            Endpoint::Completions,
            json!({ "prompt": "aabbccdd", "presence_penalty": 2, "repetition_penalty": 1.5 }),
            json!({ "temperature": 2 }),
        ),
    ] {
        let mut request = json!({ "model": "m", "stream": true });
        for (name, value) in [input, more].iter().flat_map(|value| value.as_object().expect("an object")) {
            request[name] = value.clone();
        }
        let whole = frames(&worker(None), endpoint, &[], &request).await;
        let tokens: usize = whole.iter().map(|frame| frame.tokens.len()).sum();
        assert!(whole.len() > 2 && tokens > 2, "{request}");
        for cut in 0..whole.len() {
            let drawn = whole[..cut].iter().flat_map(|frame| frame.tokens.clone()).collect::<Vec<_>>();
            // Another worker, so that nothing but the request and the tokens is known.
            let rest = frames(&worker(None), endpoint, &drawn, &request).await;
            assert_eq!(rest, whole[cut..], "{request} cut at {cut}");
        }
    }
}

/// The reasoning of a worker that was lost is known from the tokens alone.
#[tokio::test]
async fn reasoning_continues_at_every_cut() {
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}{# </think> #}";
    let reasoning = || {
        let service = Arc::new(WorkerService::new(None));
        let engine = SimulatedEngine::with_template(400, 4000, template);
        service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
        service
    };
    let mut request = chat("<think>n\u{e9} </i></think>\u{1f600} yes");
    (request["model"], request["stream"]) = (json!("m"), json!(true));
    for logprobs in [false, true] {
        (request["logprobs"], request["temperature"]) = (json!(logprobs), json!(0));
        let whole = frames(&reasoning(), Endpoint::Chat, &[], &request).await;
        let text = whole.iter().flat_map(|frame| frame.data.to_vec()).collect::<Vec<u8>>();
        assert!(String::from_utf8_lossy(&text).contains(r#""reasoning_content":"n""#));
        for cut in 0..whole.len() {
            let drawn = whole[..cut].iter().flat_map(|frame| frame.tokens.clone()).collect::<Vec<_>>();
            let rest = frames(&reasoning(), Endpoint::Chat, &drawn, &request).await;
            assert_eq!(rest, whole[cut..], "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn an_answer_in_frames_is_the_ordinary_stream() {
    let mut request = chat("hello");
    request["model"] = json!("m");
    request["stream"] = json!(true);
    request["temperature"] = json!(0);
    let whole = frames(&worker(None), Endpoint::Chat, &[], &request).await;
    let framed = whole.iter().flat_map(|frame| frame.data.to_vec()).collect::<Vec<u8>>();
    let framed = String::from_utf8(framed).expect("UTF-8");
    assert!(framed.contains(r#""id":"chatcmpl-000000000000004d""#) && framed.contains(r#""created":1234,"#));
    let (status, is_framed, plain) = send(&worker(None), Endpoint::Chat, None, &[], &request).await;
    assert!(status == 200 && !is_framed);
    // Apart from id and time.
    let texts = |body: &str| -> Vec<Value> {
        let events = body.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: {"));
        let events = events.map(|event| format!("{{{event}"));
        events.map(|event| serde_json::from_str::<Value>(&event).expect("JSON")["choices"].clone()).collect()
    };
    assert_eq!(texts(&framed), texts(std::str::from_utf8(&plain).expect("UTF-8")));
}

/// Attack: tokens that no worker of this model drew, and headers that no gateway writes.
#[tokio::test]
async fn what_no_gateway_sends_is_refused() {
    let service = worker(None);
    let request = json!({ "model": "m", "prompt": "abc", "stream": true, "max_tokens": 4 });
    let with = |name: &str, value: Value| {
        let mut request = request.clone();
        request[name] = value;
        request
    };
    for (header, drawn, request) in [
        (header(1), vec![u32::MAX], request.clone()),
        (header(1), vec![257], request.clone()),
        (header(5), vec![97; 5], request.clone()),
        (header(2), vec![256, 97], request.clone()),
        (header(1 << 20), vec![97], request.clone()),
        ("1 2".to_owned(), vec![], request.clone()),
        (header(0), vec![], with("n", json!(2))),
        (header(0), vec![], with("echo", json!(true))),
        (header(0), vec![], with("prompt", json!(["a", "b"]))),
        (header(0), vec![], with("stream", json!(false))),
    ] {
        let (status, is_framed, body) =
            send(&service, Endpoint::Completions, Some(&header), &drawn, &request).await;
        assert!(status == 400 && !is_framed, "{header} {request}: {status} {body:?}");
    }
    let control = frames(&service, Endpoint::Completions, &[97, 98], &request).await;
    assert!(!control.is_empty());
}

/// Attack: a client of a worker on local files asks for frames.
#[tokio::test]
async fn a_worker_on_local_files_answers_no_client_in_frames() {
    let request = json!({ "model": "m", "prompt": "abc", "stream": true });
    let header = header(0);
    let (status, is_framed, body) =
        send(&worker(Some("m")), Endpoint::Completions, Some(&header), &[], &request).await;
    assert!(status == 200 && !is_framed && body.starts_with(b"data: "), "{status} {body:?}");
}

/// The place in a grammar and in a call is known from the tokens alone.
#[tokio::test]
async fn grammars_and_calls_continue_at_every_cut() {
    let template = "{% if tools %}{{ tools | tojson }}\n{% endif %}{# <tool_call> #}\
        {% for m in messages %}{{ m.content }}\n{% endfor %}";
    let calling = || {
        let service = Arc::new(WorkerService::new(None));
        let engine = SimulatedEngine::with_template(1000, 8000, template);
        service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
        service
    };
    let schema = json!({ "type": "object", "properties": { "k": { "enum": ["a", "\u{e9}"] } },
        "required": ["k"], "additionalProperties": false });
    let tools = json!([{ "function": { "name": "f", "parameters": schema, "strict": true } }]);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": schema } });
    let call = "I <tool_call>\n{\"name\": \"f\", \"arguments\": {\"k\": \"\u{e9}\"}}\n</tool_call>";
    for (text, fields) in [
        ("{\"k\": \"\u{e9}\"}", json!({ "response_format": format.clone(), "logprobs": true })),
        (
            "no",
            json!({ "structured_outputs": { "regex": "[ab]{3}(\u{e9}|x)" }, "temperature": 2, "seed": 3 }),
        ),
        (call, json!({ "tools": tools.clone(), "temperature": 0 })),
        (call, json!({ "tools": tools.clone(), "temperature": 0, "logprobs": true })),
    ] {
        let mut request = chat(text);
        (request["model"], request["stream"]) = (json!("m"), json!(true));
        for (name, value) in fields.as_object().expect("an object") {
            request[name] = value.clone();
        }
        let whole = frames(&calling(), Endpoint::Chat, &[], &request).await;
        assert!(whole.len() > 4, "{request}");
        for cut in 0..whole.len() {
            let drawn = whole[..cut].iter().flat_map(|frame| frame.tokens.clone()).collect::<Vec<_>>();
            let rest = frames(&calling(), Endpoint::Chat, &drawn, &request).await;
            assert_eq!(rest, whole[cut..], "{request} cut at {cut}");
        }
        // Attack: tokens that this grammar never allowed.
        if request["tools"].is_null() {
            let drawn = [122, 122];
            let (status, _, body) =
                send(&calling(), Endpoint::Chat, Some(&header(drawn.len())), &drawn, &request).await;
            assert!(status == 400, "{status} {body:?}");
        }
    }
}
