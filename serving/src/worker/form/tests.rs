//! Tests of answers that must have a form, by the worker's router and a simulated engine. The engine gives
//! the last line of its prompt 20 and all else 0: where a grammar forbids the line, any token is as likely.

use crate::batcher::{Batcher, BatcherLimits};
use crate::engine::simulated::SimulatedEngine;
use crate::openai::Endpoint;
use crate::worker::WorkerService;
use crate::worker::answer::router;
use axum::body::Body;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt;

/// Template of a model that calls in tags; the message is the last line of its prompt.
const TAGGED: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}{# <tool_call> #}\
    {% for m in messages %}{{ m.content }}\n{% endfor %}";

fn service(engine: SimulatedEngine) -> Arc<WorkerService> {
    let service = Arc::new(WorkerService::new(None));
    service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
    service
}

/// Returns a worker whose model calls in tags.
fn calling() -> Arc<WorkerService> {
    service(SimulatedEngine::with_template(4000, 16_000, TAGGED))
}

async fn send(service: Arc<WorkerService>, endpoint: Endpoint, request: &Value) -> (StatusCode, String) {
    let request = http::Request::post(endpoint.path()).body(Body::from(request.to_string())).expect("valid");
    let response = router(service).oneshot(request).await.expect("infallible");
    let status = response.status();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

async fn answer(service: Arc<WorkerService>, endpoint: Endpoint, request: &Value) -> Value {
    let (status, body) = send(service, endpoint, request).await;
    assert_eq!(status, 200, "{request}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Returns the events of a stream.
async fn events(service: Arc<WorkerService>, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let (status, body) = send(service, Endpoint::Chat, &request).await;
    assert_eq!(status, 200, "{request}: {body}");
    let body = body.strip_suffix("data: [DONE]\n\n").expect("its end");
    let events = body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event"));
    events.map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

/// Adds fields to a request.
fn with(mut request: Value, fields: &Value) -> Value {
    let fields = fields.as_object().expect("an object").clone();
    request.as_object_mut().expect("an object").extend(fields);
    request
}

fn chat(content: &str, fields: Value) -> Value {
    with(json!({ "model": "m", "messages": [{ "role": "user", "content": content }] }), &fields)
}

fn completion(prompt: &str, fields: Value) -> Value {
    with(json!({ "model": "m", "prompt": prompt, "max_tokens": 1500 }), &fields)
}

fn format(schema: Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "form", "schema": schema } })
}

/// A schema whose instances are short.
fn small() -> Value {
    json!({
        "type": "object", "properties": { "kind": { "enum": ["a", "b"] }, "on": { "type": "boolean" } },
        "required": ["kind", "on"], "additionalProperties": false,
    })
}

fn tools() -> Value {
    let stop = json!({ "type": "object", "properties": { "now": { "const": true } }, "required": ["now"],
        "additionalProperties": false });
    let pick = json!({ "name": "pick", "description": "Picks <one>.", "parameters": small() });
    let stop = json!({ "name": "stop_all", "parameters": stop });
    json!([{ "type": "function", "function": pick }, { "type": "function", "function": stop }])
}

#[tokio::test]
async fn greedy_and_sampled_answers_follow_their_grammar_and_end_with_it() {
    for temperature in [0.0, 1.0, 2.0] {
        for seed in 0..4 {
            let options = json!({ "temperature": temperature, "seed": seed });
            let request =
                chat("no JSON at all", with(json!({ "response_format": format(small()) }), &options));
            let whole = answer(calling(), Endpoint::Chat, &request).await;
            let choice = &whole["choices"][0];
            let text = choice["message"]["content"].as_str().expect("a text");
            let found: Value = serde_json::from_str(text).expect("JSON");
            assert!(
                ["a", "b"].contains(&found["kind"].as_str().expect("a kind")) && found["on"].is_boolean()
            );
            assert_eq!(choice["finish_reason"], "stop");
            // Whitespace between two values is bounded, so that no answer of it is endless.
            assert!(text.len() < 64 * 9 + 30, "{}", text.len());
            let streamed: String = events(calling(), &request)
                .await
                .iter()
                .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
                .collect();
            assert_eq!(streamed, text);
            for (outputs, texts) in [
                (json!({ "choice": ["yes", "no"] }), vec!["yes", "no"]),
                (json!({ "regex": "[xy]z" }), vec!["xz", "yz"]),
                (json!({ "grammar": "start: \"p\" | \"q\" \"r\"\n" }), vec!["p", "qr"]),
                (json!({ "json": "{\"enum\": [1, \"two\"]}" }), vec!["1", "\"two\""]),
            ] {
                let fields = with(json!({ "structured_outputs": outputs }), &options);
                let whole = answer(calling(), Endpoint::Completions, &completion("other", fields)).await;
                let text = whole["choices"][0]["text"].as_str().expect("a text");
                assert!(texts.contains(&text), "{outputs} {text}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_the_model_would_give_anyway_is_not_changed() {
    let text = r#"{"kind": "b", "on": false}"#;
    let request =
        chat(text, json!({ "response_format": format(small()), "temperature": 0, "logprobs": true }));
    let whole = answer(calling(), Endpoint::Chat, &request).await;
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    // Log-probabilities are the model's own: the grammar does not raise them.
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("tokens");
    let expected = -(1.0 + 256.0 * (-20.0_f64).exp()).ln();
    assert_eq!(tokens.len(), text.len());
    assert!(
        tokens.iter().all(|token| (token["logprob"].as_f64().expect("a number") - expected).abs() < 1e-9)
    );
}

#[tokio::test]
async fn other_conditions_compose_with_a_grammar() {
    let texts = |request: Value| async move {
        let whole = answer(calling(), Endpoint::Completions, &request).await;
        let choices = whole["choices"].as_array().expect("choices").clone();
        choices
            .iter()
            .map(|choice| format!("{} {}", choice["text"].as_str().expect("a text"), choice["finish_reason"]))
            .collect::<Vec<_>>()
    };
    let choice = |texts: &[&str]| json!({ "structured_outputs": { "choice": texts }, "temperature": 0 });
    for (fields, expected) in [
        // A least length keeps an answer from ending where more may follow, and adds nothing to a whole one.
        (with(choice(&["a", "ab"]), &json!({ "min_tokens": 2 })), vec!["ab \"stop\""]),
        (with(choice(&["a"]), &json!({ "min_tokens": 9 })), vec!["a \"stop\""]),
        (with(choice(&["abc"]), &json!({ "max_tokens": 2 })), vec!["ab \"length\""]),
        (with(choice(&["abc"]), &json!({ "stop": "c" })), vec!["ab \"stop\""]),
        (with(choice(&["abc"]), &json!({ "stop_token_ids": [98] })), vec!["a \"stop\""]),
        (with(choice(&["b", "c"]), &json!({ "logit_bias": { "99": 5, "97": 100 } })), vec!["c \"stop\""]),
        (with(choice(&["b"]), &json!({ "n": 2, "best_of": 3 })), vec!["b \"stop\"", "b \"stop\""]),
        (with(choice(&["b"]), &json!({ "top_k": 1, "min_p": 0.5, "temperature": 1 })), vec!["b \"stop\""]),
    ] {
        assert_eq!(texts(completion("a", fields.clone())).await, expected, "{fields}");
    }
}

#[tokio::test]
async fn a_grammar_that_cannot_be_enforced_is_refused_before_a_token() {
    let long = "x".repeat(300_000);
    let mut exact = format(json!({ "not": { "const": 1 } }));
    exact["json_schema"]["strict"] = json!(true);
    let endless = json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] });
    for (fields, code, param) in [
        (json!({ "response_format": exact }), "grammar_unsupported", "response_format"),
        (
            json!({ "response_format": format(json!({ "not": {} })) }),
            "grammar_unsupported",
            "response_format",
        ),
        (json!({ "response_format": format(endless) }), "grammar_unsupported", "response_format"),
        (json!({ "structured_outputs": { "regex": "(" } }), "grammar_unsupported", "structured_outputs"),
        (json!({ "structured_outputs": { "regex": long } }), "grammar_too_large", "structured_outputs.regex"),
        (
            json!({ "tools": tools(), "tool_choice": "required", "ignore_eos": true }),
            "unsupported_parameter",
            "ignore_eos",
        ),
    ] {
        for stream in [false, true] {
            let request = chat("x", with(fields.clone(), &json!({ "stream": stream })));
            let (status, body) = send(calling(), Endpoint::Chat, &request).await;
            let body: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!(code)), "{body}");
            assert_eq!(body["error"]["param"], param, "{body}");
        }
    }
}

#[tokio::test]
async fn a_grammar_that_fails_in_an_answer_ends_it_by_name() {
    // No text is both.
    let grammar = "start: \"a\" BOTH\nBOTH: /b/ & /c/\n";
    let fields = json!({ "structured_outputs": { "grammar": grammar }, "temperature": 0 });
    let (status, body) = send(calling(), Endpoint::Completions, &completion("abc", fields.clone())).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status.as_u16(), &body["error"]["code"]), (500, &json!("grammar_failed")), "{body}");
    // Its neighbours continue.
    let service = calling();
    let other = completion("abc", json!({ "temperature": 0 }));
    let failing = completion("abc", fields);
    let failing = send(service.clone(), Endpoint::Completions, &failing);
    let (failed, whole) = tokio::join!(failing, answer(service.clone(), Endpoint::Completions, &other));
    assert_eq!((failed.0.as_u16(), &whole["choices"][0]["text"]), (500, &json!("abc")));
}

/// Returns the calls of a message as names and arguments.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        assert_eq!((call["type"].as_str(), call["id"].as_str().map(str::len)), (Some("function"), Some(9)));
        let text = call["function"]["arguments"].as_str().expect("a text");
        let arguments = serde_json::from_str(text).expect("arguments are JSON");
        (call["function"]["name"].as_str().expect("a name").to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

/// Joins the events of a stream into a message, as clients do; returns it and the reason of its end.
fn joined(events: &[Value]) -> (Value, Value) {
    let mut message = json!({ "content": "" });
    let mut calls: Vec<Value> = Vec::new();
    let mut reason = Value::Null;
    for choice in events.iter().map(|event| &event["choices"][0]) {
        let text = choice["delta"]["content"].as_str().unwrap_or_default();
        message["content"] = json!(format!("{}{text}", message["content"].as_str().expect("a text")));
        for part in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().expect("an index") as usize;
            if index == calls.len() {
                calls.push(part.clone());
                continue;
            }
            let known = &mut calls[index]["function"]["arguments"];
            let more = part["function"]["arguments"].as_str().expect("a text");
            *known = json!(format!("{}{more}", known.as_str().expect("a text")));
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    message["tool_calls"] = json!(calls);
    (message, reason)
}

#[tokio::test]
async fn calls_of_the_model_are_found_whole_and_streamed() {
    let one = r#"<tool_call>{"name": "pick", "arguments": {"kind": "a", "on": true}}</tool_call>"#;
    let two = r#"Both: <tool_call>{"name": "stop_all", "arguments": {}}</tool_call>"#.to_owned() + one;
    let picked = ("pick".to_owned(), json!({ "kind": "a", "on": true }));
    for (content, text, expected, reason) in [
        (one.to_owned(), Value::Null, vec![picked.clone()], "tool_calls"),
        (two, json!("Both:"), vec![("stop_all".to_owned(), json!({})), picked], "tool_calls"),
        ("no call".to_owned(), json!("no call"), vec![], "stop"),
        ("<tool_call>{}".to_owned(), json!("<tool_call>{}"), vec![], "stop"),
    ] {
        let request = chat(&content, json!({ "tools": tools(), "temperature": 0 }));
        let whole = answer(calling(), Endpoint::Chat, &request).await;
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"], text, "{whole}");
        assert_eq!((calls(&choice["message"]), &choice["finish_reason"]), (expected.clone(), &json!(reason)));
        let (message, streamed_reason) = joined(&events(calling(), &request).await);
        assert_eq!((calls(&message), streamed_reason), (expected, json!(reason)));
        assert_eq!(message["content"], text.as_str().unwrap_or_default());
    }
}

#[tokio::test]
async fn an_answer_that_must_call_has_valid_arguments() {
    let named = json!({ "type": "function", "function": { "name": "stop_all" } });
    for (choice, only) in [(json!("required"), None), (named, Some("stop_all"))] {
        for temperature in [0.0, 2.0] {
            for seed in 0..3 {
                let fields = json!({ "tools": tools(), "tool_choice": choice, "temperature": temperature,
                    "seed": seed, "parallel_tool_calls": false });
                let request = chat("I will not call", fields);
                let whole = answer(calling(), Endpoint::Chat, &request).await;
                let message = &whole["choices"][0]["message"];
                let found = calls(message);
                assert_eq!((found.len(), &whole["choices"][0]["finish_reason"]), (1, &json!("tool_calls")));
                let (name, arguments) = &found[0];
                assert!(only.is_none_or(|only| only == name) && message["content"].is_null(), "{whole}");
                match name.as_str() {
                    "pick" => assert!(arguments["kind"].is_string() && arguments["on"].is_boolean()),
                    _ => assert_eq!(*arguments, json!({ "now": true })),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_strict_function_is_called_rightly_or_not_at_all() {
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let fields = || json!({ "tools": strict, "temperature": 0 });
    let text = answer(calling(), Endpoint::Chat, &chat("I say <no>", fields())).await;
    assert_eq!(text["choices"][0]["message"]["content"], "I say <no>");
    // The model begins a call and then would write no argument that there is.
    let wrong = r#"So <tool_call>{"name": "pick", "arguments": {"kind": "z"}}</tool_call>"#;
    let whole = answer(calling(), Endpoint::Chat, &chat(wrong, fields())).await;
    let found = calls(&whole["choices"][0]["message"]);
    assert!(found[0].0 == "pick" && ["a", "b"].contains(&found[0].1["kind"].as_str().expect("a kind")));
}

#[tokio::test]
async fn a_form_of_the_answer_and_functions_are_alternatives() {
    let fields = || json!({ "tools": tools(), "response_format": format(small()), "temperature": 0 });
    let call = r#"<tool_call>{"name": "stop_all", "arguments": {"now": true}}</tool_call>"#;
    let whole = answer(calling(), Endpoint::Chat, &chat(call, fields())).await;
    assert_eq!(calls(&whole["choices"][0]["message"]), [("stop_all".to_owned(), json!({ "now": true }))]);
    let text = r#"{"kind": "a", "on": true}"#;
    let whole = answer(calling(), Endpoint::Chat, &chat(text, fields())).await;
    assert_eq!(whole["choices"][0]["message"]["content"], text);
}

#[tokio::test]
async fn functions_that_may_not_be_called_are_neither_shown_nor_found() {
    let call = r#"<tool_call>{"name": "stop_all", "arguments": {}}</tool_call>"#;
    let without = answer(calling(), Endpoint::Chat, &chat(call, json!({ "temperature": 0 }))).await;
    let fields = json!({ "tools": tools(), "tool_choice": "none", "temperature": 0 });
    let none = answer(calling(), Endpoint::Chat, &chat(call, fields)).await;
    assert_eq!(none["choices"], without["choices"]);
    assert_eq!(
        (&none["choices"][0]["message"]["content"], &none["usage"]),
        (&json!(call), &without["usage"])
    );
    // The control: they take part in the prompt where they may be called.
    let fields = json!({ "tools": tools(), "temperature": 0 });
    let auto = answer(calling(), Endpoint::Chat, &chat(call, fields)).await;
    assert!(auto["usage"]["prompt_tokens"].as_u64() > none["usage"]["prompt_tokens"].as_u64());
}

#[tokio::test]
async fn a_model_without_a_form_of_calls_refuses_functions_by_name() {
    let plain = service(SimulatedEngine::decoder(400, 4000));
    let (status, body) = send(plain, Endpoint::Chat, &chat("x", json!({ "tools": tools() }))).await;
    assert_eq!(status, 400);
    assert!(body.contains(r#""param":"tools""#) && body.contains("unsupported_parameter"), "{body}");
}
