//! Tests of answers with several choices, by the worker's router and a simulated engine, which repeats the
//! last line of its prompt.

use super::*;
use crate::batcher::{Batcher, BatcherLimits};
use crate::engine::simulated::SimulatedEngine;
use crate::worker::answer::router;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// Sends a request to a worker with this engine; returns the status and the body.
async fn send(engine: SimulatedEngine, endpoint: Endpoint, request: &Value) -> (StatusCode, String) {
    let service = Arc::new(WorkerService::new(None));
    service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
    let request = http::Request::post(endpoint.path()).body(Body::from(request.to_string())).expect("valid");
    let response = router(service).oneshot(request).await.expect("infallible");
    let status = response.status();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

async fn answer(endpoint: Endpoint, request: Value) -> Value {
    let (status, body) = send(SimulatedEngine::decoder(200, 4000), endpoint, &request).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Returns the events of a stream, which must end in order.
async fn events(endpoint: Endpoint, mut request: Value) -> Vec<Value> {
    request["stream"] = json!(true);
    request["stream_options"] = json!({ "include_usage": true });
    let (status, body) = send(SimulatedEngine::decoder(200, 4000), endpoint, &request).await;
    assert_eq!(status, 200, "{body}");
    let body = body.strip_suffix("data: [DONE]\n\n").expect("its end");
    let events = body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event"));
    events.map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

#[tokio::test]
async fn each_prompt_has_its_choices_in_order() {
    let request = json!({ "model": "m", "prompt": ["abc", [100, 101]], "n": 2, "temperature": 0 });
    for (echo, first, second) in [(false, "abc", "de"), (true, "abcabc", "dede")] {
        let mut request = request.clone();
        request["echo"] = json!(echo);
        let whole = answer(Endpoint::Completions, request.clone()).await;
        let choices = whole["choices"].as_array().expect("an array");
        let shown: Vec<_> = choices.iter().map(|c| (c["index"].as_u64(), c["text"].as_str())).collect();
        let expected = [first, first, second, second];
        let expected = expected.iter().enumerate().map(|(index, text)| (Some(index as u64), Some(*text)));
        assert_eq!(shown, expected.collect::<Vec<_>>());
        // Prompts count once, end tokens count.
        let usage = json!({ "prompt_tokens": 5, "completion_tokens": 14, "total_tokens": 19 });
        assert_eq!(whole["usage"], usage);

        let mut texts = vec![String::new(); 4];
        let events = events(Endpoint::Completions, request).await;
        let (last, rest) = events.split_last().expect("events");
        assert_eq!((&last["usage"], &last["choices"]), (&usage, &json!([])));
        for choice in rest.iter().map(|event| &event["choices"][0]) {
            let index = choice["index"].as_u64().expect("an index") as usize;
            texts[index].push_str(choice["text"].as_str().expect("a text"));
        }
        assert_eq!(texts, [first, first, second, second]);
    }
}

#[tokio::test]
async fn each_choice_of_a_chat_begins_with_its_role_and_has_one_end() {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let request = json!({ "model": "m", "messages": messages, "n": 3, "temperature": 0 });
    let events = events(Endpoint::Chat, request).await;
    for index in 0..3 {
        let of_choice = events.iter().map(|event| &event["choices"][0]).filter(|c| c["index"] == index);
        let of_choice: Vec<&Value> = of_choice.collect();
        let is_role = |choice: &&Value| choice["delta"]["role"] == "assistant";
        assert!(is_role(&of_choice[0]) && of_choice.iter().filter(|c| is_role(c)).count() == 1);
        let text: String = of_choice.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, "user: hi");
        let ends: Vec<&Value> =
            of_choice.iter().map(|c| &c["finish_reason"]).filter(|r| !r.is_null()).collect();
        assert_eq!(ends, ["stop"]);
    }
}

#[tokio::test]
async fn an_ignored_end_token_does_not_end_an_answer() {
    let request = json!({ "model": "m", "prompt": "ab", "max_tokens": 5, "temperature": 0 });
    for (ignores, reason, tokens) in [(false, "stop", 3), (true, "length", 5)] {
        let mut request = request.clone();
        request["ignore_eos"] = json!(ignores);
        let answer = answer(Endpoint::Completions, request).await;
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!(reason)));
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
    }
}

#[tokio::test]
async fn rules_change_what_is_drawn() {
    let request = json!({ "model": "m", "prompt": "abc", "max_tokens": 3, "temperature": 0 });
    for (rules, text) in [
        (json!({}), "abc"),
        (json!({ "logit_bias": { "120": 50 } }), "xxx"),
        // The engine gives the next letter 20 and all others 0: `x` and then `y` are drawn once each.
        (json!({ "logit_bias": { "120": 21, "121": 20.5 }, "presence_penalty": 2 }), "xyc"),
    ] {
        let mut request = request.clone();
        for (name, value) in rules.as_object().expect("an object") {
            request[name] = value.clone();
        }
        assert_eq!(answer(Endpoint::Completions, request).await["choices"][0]["text"], text, "{rules}");
    }
    let unknown = json!({ "model": "m", "prompt": "abc", "logit_bias": { "257": 1 } });
    let (status, body) = send(SimulatedEngine::decoder(200, 4000), Endpoint::Completions, &unknown).await;
    assert_eq!(status, 400);
    assert!(body.contains(r#""param":"logit_bias""#), "{body}");
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_tokens_that_are_sent() {
    let request =
        json!({ "model": "m", "prompt": "h\u{e9}", "max_tokens": 3, "temperature": 0, "logprobs": 1 });
    let whole = answer(Endpoint::Completions, request.clone()).await;
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["h", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    // The engine gives the next byte 20 and the 256 others 0.
    let expected = -(1.0 + 256.0 * (-20.0_f64).exp()).ln();
    for token in logprobs["token_logprobs"].as_array().expect("an array") {
        assert!((token.as_f64().expect("a number") - expected).abs() < 1e-9, "{token} {expected}");
    }
    let mut sent = Vec::new();
    for event in events(Endpoint::Completions, request).await {
        let tokens = event["choices"][0]["logprobs"]["tokens"].as_array().cloned();
        sent.extend(tokens.unwrap_or_default());
    }
    assert_eq!(json!(sent), logprobs["tokens"]);

    let messages = json!([{ "role": "user", "content": "hi" }]);
    let request = json!({ "model": "m", "messages": messages, "max_tokens": 1, "temperature": 0,
        "logprobs": true, "top_logprobs": 2 });
    let chat = answer(Endpoint::Chat, request).await;
    let content = chat["choices"][0]["logprobs"]["content"].as_array().expect("an array");
    assert_eq!((content.len(), &content[0]["token"], &content[0]["bytes"]), (1, &json!("u"), &json!([117])));
    let top = content[0]["top_logprobs"].as_array().expect("an array");
    assert_eq!((top.len(), &top[0]["token"], &top[1]["bytes"]), (2, &json!("u"), &json!([0])));
}

#[tokio::test]
async fn a_prompt_is_tokenized_as_it_would_be_for_an_answer() {
    let request = json!({ "model": "m", "prompt": "a<|end|>", "return_token_strs": true });
    let texts = ["a", "<|end|>"];
    let expected = json!({ "count": 2, "max_model_len": 200, "tokens": [97, 256], "token_strs": texts });
    assert_eq!(answer(Endpoint::Tokenize, request).await, expected);
    let request = json!({ "model": "m", "messages": [{ "role": "user", "content": "<|end|>" }] });
    let found = answer(Endpoint::Tokenize, request).await;
    let text = "user: <|end|>\nassistant: ";
    assert_eq!((&found["count"], &found["token_strs"]), (&json!(text.len()), &Value::Null));
    assert_eq!(found["tokens"], json!(text.as_bytes()));
}

#[tokio::test]
async fn an_echo_of_too_many_bytes_is_refused() {
    let request = json!({ "model": "m", "prompt": "x".repeat(70_000), "n": 128, "echo": true });
    let engine = SimulatedEngine::decoder(1 << 20, 1 << 24);
    let (status, body) = send(engine, Endpoint::Completions, &request).await;
    assert_eq!(status, 400);
    assert!(body.contains(r#""param":"echo""#), "{body}");
}

#[tokio::test]
async fn vectors_are_shortened_only_where_the_model_allows_it() {
    for (dimensions, status) in [(4, 200), (2, 400), (5, 400)] {
        let request = json!({ "model": "m", "input": "abc", "dimensions": dimensions });
        let (found, body) = send(SimulatedEngine::encoder(16, 4), Endpoint::Embeddings, &request).await;
        assert_eq!(found, status, "{body}");
        assert_eq!(body.contains(r#""code":"unsupported_parameter""#), status == 400, "{body}");
    }
}

async fn reranked(fields: Value) -> (StatusCode, Value) {
    let mut request = json!({ "model": "m", "query": "abc", "documents": ["xyz", "abx", "cab", "xbx"] });
    request.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let (status, body) = send(SimulatedEngine::reranker(16), Endpoint::Rerank, &request).await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn documents_are_ranked_by_their_scores() {
    let (status, answer) = reranked(json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let found: Vec<(u64, &str, f64)> = answer["results"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|result| {
            let text = result["document"]["text"].as_str().expect("a text");
            let score = result["relevance_score"].as_f64().expect("a number");
            (result["index"].as_u64().expect("a number"), text, (score * 3.0).round())
        })
        .collect();
    assert_eq!(found, [(2, "cab", 3.0), (1, "abx", 2.0), (3, "xbx", 1.0), (0, "xyz", 0.0)]);
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 28, "total_tokens": 28 }), "four pairs of seven");
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("rerank-")) && answer["model"] == "m");

    let (_, answer) = reranked(json!({ "top_n": 1, "return_documents": false })).await;
    assert_eq!(answer["results"], json!([{ "index": 2, "relevance_score": 1.0 }]));
}

#[tokio::test]
async fn what_cannot_be_ranked_is_refused_with_its_field() {
    let long = json!({ "documents": ["x".repeat(13)] });
    for (fields, code, param) in [
        (long, "context_length_exceeded", "documents"),
        (json!({ "query": "x".repeat(16), "documents": [""] }), "context_length_exceeded", "documents"),
        (json!({ "documents": [7] }), "invalid_value", "documents[0]"),
        (json!({ "input": "x" }), "unknown_parameter", "input"),
    ] {
        let (status, answer) = reranked(fields).await;
        let error = &answer["error"];
        assert_eq!((status.as_u16(), &error["code"], &error["param"]), (400, &json!(code), &json!(param)));
    }
    assert_eq!(reranked(json!({ "documents": ["x".repeat(12)] })).await.0, 200, "the control");
    let request = json!({ "model": "m", "query": "a", "documents": ["a"] });
    let embedding = json!({ "model": "m", "input": "a" });
    for (engine, endpoint, request) in [
        (SimulatedEngine::encoder(16, 4), Endpoint::Rerank, &request),
        (SimulatedEngine::decoder(16, 64), Endpoint::Rerank, &request),
        (SimulatedEngine::reranker(16), Endpoint::Embeddings, &embedding),
    ] {
        let (status, body) = send(engine, endpoint, request).await;
        assert_eq!(status, 400);
        assert!(body.contains(r#""code":"operation_unsupported""#) && body.contains(r#""param":"model""#));
    }
    let broken = json!({ "model": "m", "query": "a", "documents": ["a", "!"] });
    let (status, body) = send(SimulatedEngine::reranker(16).broken(), Endpoint::Rerank, &broken).await;
    assert_eq!(status, 500);
    assert!(body.contains("not a number"), "{body}");
}

/// Reranks this many empty documents for a query that fills the context.
async fn repeated(context: usize, documents: usize) -> (StatusCode, String) {
    let documents = vec![""; documents];
    let request = json!({ "model": "m", "query": "q".repeat(context - 1), "documents": documents });
    send(SimulatedEngine::reranker(context), Endpoint::Rerank, &request).await
}

/// A short request may not become long work: its query counts with each document.
#[tokio::test]
async fn a_query_that_repeats_for_too_many_documents_is_refused() {
    let fits = protocol::limits::RERANK_TOKENS_MAX / 8192;
    let (status, body) = repeated(8192, fits).await;
    assert_eq!(status, 200, "the control: {body}");
    let (status, body) = repeated(8192, fits + 1).await;
    assert_eq!(status, 400);
    assert!(body.contains("more than 1048576 tokens") && body.contains(r#""param":"documents""#), "{body}");
}

#[tokio::test]
async fn stop_conditions_are_those_of_the_request() {
    // The engine repeats `ab|c`, 256 is the end token.
    let request = json!({ "model": "m", "prompt": "ab|c", "max_tokens": 8, "temperature": 0 });
    for (conditions, text, reason, tokens) in [
        (json!({}), "ab|c", "stop", 5),
        (json!({ "stop_token_ids": [124] }), "ab", "stop", 3),
        (json!({ "stop_token_ids": [124], "include_stop_str_in_output": true }), "ab|", "stop", 3),
        (json!({ "stop": "|" }), "ab", "stop", 3),
        (json!({ "stop": "|", "include_stop_str_in_output": true }), "ab|", "stop", 3),
        (json!({ "stop": "|", "min_tokens": 3 }), "ab|c", "stop", 5),
        (json!({ "max_tokens": 4, "min_tokens": 4 }), "ab|c", "length", 4),
    ] {
        let mut request = request.clone();
        for (name, value) in conditions.as_object().expect("an object") {
            request[name] = value.clone();
        }
        let whole = answer(Endpoint::Completions, request.clone()).await;
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(text), &json!(reason)),
            "{conditions}"
        );
        assert_eq!(whole["usage"]["completion_tokens"], tokens, "{conditions}");
        let streamed = events(Endpoint::Completions, request).await;
        let pieces = streamed.iter().filter_map(|event| event["choices"][0]["text"].as_str());
        assert_eq!(pieces.collect::<String>(), text, "{conditions}");
    }
    // Neither the end token nor the stop token is drawn before the least length.
    for barred in [json!([]), json!([97])] {
        let mut request = request.clone();
        (request["min_tokens"], request["stop_token_ids"]) = (json!(8), barred.clone());
        let whole = answer(Endpoint::Completions, request).await;
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &whole["usage"]["completion_tokens"]),
            (&json!("length"), &json!(8))
        );
        let text = choice["text"].as_str().expect("a text");
        assert_eq!(text.starts_with('a'), barred == json!([]), "{text}");
    }
    let (mut unknown, mut all) = (request.clone(), request);
    unknown["stop_token_ids"] = json!([257]);
    let (status, body) = send(SimulatedEngine::decoder(200, 4000), Endpoint::Completions, &unknown).await;
    assert_eq!(status, 400);
    assert!(body.contains(r#""param":"stop_token_ids""#), "{body}");
    all["stop_token_ids"] = json!([256]);
    assert_eq!(answer(Endpoint::Completions, all).await["choices"][0]["text"], "ab|c", "the control");
}

#[tokio::test]
async fn the_best_of_several_candidates_are_sent() {
    let request = json!({
        "model": "m", "prompt": ["abc", "de"], "max_tokens": 4, "temperature": 2, "top_k": 2, "seed": 3,
        "logit_bias": { "120": 19 }, "logprobs": 0,
    });
    let with = |n: usize, best_of: usize| {
        let mut request = request.clone();
        (request["n"], request["best_of"]) = (json!(n), json!(best_of));
        answer(Endpoint::Completions, request)
    };
    let all = with(6, 6).await;
    let best = with(2, 6).await;
    assert_eq!(best["choices"].as_array().map(Vec::len), Some(4));
    assert_eq!(best["usage"], all["usage"], "all candidates are generated");
    for prompt in 0..2 {
        // The sum of an answer that has no end token is that of its tokens; others lack their end token's.
        let mean = |choice: &Value| {
            let logprobs = choice["logprobs"]["token_logprobs"].as_array().expect("numbers");
            let sum: f64 = logprobs.iter().filter_map(Value::as_f64).map(|one| f64::from(one as f32)).sum();
            let is_ended = choice["finish_reason"] == "stop";
            // The engine is as sure of the end as of each letter: `e^20` of 256 others.
            let end = if is_ended { f64::from(-(1.0 + 256.0 * (-20.0_f64).exp()).ln() as f32) } else { 0.0 };
            (sum + end) / (logprobs.len() + usize::from(is_ended)) as f64
        };
        let mut ranked: Vec<&Value> =
            all["choices"].as_array().expect("choices")[6 * prompt..][..6].iter().collect();
        ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        assert!(mean(ranked[0]) > mean(ranked[5]), "the candidates differ");
        for (index, expected) in ranked[..2].iter().enumerate() {
            let found = &best["choices"][2 * prompt + index];
            // Sums of equal numbers in another order differ in the last bits.
            assert!((mean(found) - mean(expected)).abs() < 1e-6, "{found} {expected}");
            assert!(ranked.iter().any(|candidate| candidate["text"] == found["text"]), "{found}");
            assert_eq!(found["index"], 2 * prompt + index);
        }
    }
    // Candidates are ranked, and a client that asked for no such report gets none.
    let mut silent = request;
    (silent["best_of"], silent["logprobs"]) = (json!(6), Value::Null);
    let silent = answer(Endpoint::Completions, silent).await;
    assert_eq!(silent["choices"][0]["logprobs"], Value::Null);
    assert_eq!(silent["choices"][0]["text"], best["choices"][0]["text"]);
}

#[tokio::test]
async fn choice_one_of_a_seed_is_not_choice_zero_of_the_next() {
    let texts = async |seed: u64, n: usize| -> Vec<String> {
        let request = json!({
            "model": "m", "prompt": "x", "max_tokens": 12, "temperature": 2, "ignore_eos": true,
            "seed": seed, "n": n, "logit_bias": { "120": -100 },
        });
        let whole = answer(Endpoint::Completions, request).await;
        let choices = whole["choices"].as_array().expect("choices");
        choices.iter().map(|choice| choice["text"].as_str().expect("a text").to_owned()).collect()
    };
    let (seven, eight) = (texts(7, 3).await, texts(8, 3).await);
    assert_eq!(texts(7, 1).await[..], seven[..1], "the first is that of a request for one");
    let all: std::collections::BTreeSet<&String> = seven.iter().chain(&eight).collect();
    assert_eq!(all.len(), 6, "{all:?}");
}

#[tokio::test]
async fn tokens_are_turned_back_into_the_text_of_a_prompt() {
    let text = "h\u{e9}<|end|>";
    let tokens = answer(Endpoint::Tokenize, json!({ "model": "m", "prompt": text })).await;
    let asked = json!({ "model": "m", "tokens": tokens["tokens"] });
    assert_eq!(answer(Endpoint::Detokenize, asked).await, json!({ "prompt": text }));
    let none = json!({ "model": "m", "tokens": [] });
    assert_eq!(answer(Endpoint::Detokenize, none).await, json!({ "prompt": "" }));
    for (tokens, code) in [(vec![257], "invalid_value"), (vec![97; 201], "context_length_exceeded")] {
        let request = json!({ "model": "m", "tokens": tokens });
        let (status, body) = send(SimulatedEngine::decoder(200, 4000), Endpoint::Detokenize, &request).await;
        assert!(status == 400 && body.contains(code) && body.contains("tokens"), "{body}");
    }
}

/// A template like Qwen3's: it closes the reasoning where the request turns it off.
const REASONING: &str = "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}\n{% endfor %}\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n</think>{% endif %}";

/// Asks an engine with this template for a repetition; returns the whole message, and the stream's deltas.
async fn reasoned(template: &str, content: &str, more: Value) -> (Value, Vec<Value>) {
    let mut request = json!({
        "model": "m", "messages": [{ "role": "user", "content": content }], "temperature": 0,
    });
    for (name, value) in more.as_object().expect("an object") {
        request[name] = value.clone();
    }
    let engine = || SimulatedEngine::with_template(200, 4000, template);
    let (status, body) = send(engine(), Endpoint::Chat, &request).await;
    assert_eq!(status, 200, "{body}");
    let whole: Value = serde_json::from_str(&body).expect("JSON");
    request["stream"] = json!(true);
    let (status, body) = send(engine(), Endpoint::Chat, &request).await;
    assert_eq!(status, 200, "{body}");
    let events = body.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).expect("JSON"));
    let deltas = events.map(|event| event["choices"][0]["delta"].clone()).collect();
    (whole["choices"][0]["message"].clone(), deltas)
}

#[tokio::test]
async fn reasoning_has_a_field_of_its_own_whole_and_streamed() {
    let off = json!({ "chat_template_kwargs": { "enable_thinking": false } });
    for (template, content, more, reasoning, text) in [
        (REASONING, "<think>plan</think>yes", json!({}), Some("plan"), Some("yes")),
        (REASONING, "no tags", json!({}), None, Some("no tags")),
        (REASONING, "<think>plan</think>yes", json!({ "max_tokens": 9 }), Some("pl"), None),
        (REASONING, "<think>plan</think>yes", json!({ "stop": "lan" }), Some("p"), None),
        (REASONING, "x", off, None, Some("</think>")),
        // A model whose template does not name the tag has no reasoning.
        (
            "{{ messages[0].content }}\n",
            "<think>plan</think>yes",
            json!({}),
            None,
            Some("<think>plan</think>yes"),
        ),
    ] {
        let (message, deltas) = reasoned(template, content, more.clone()).await;
        let found = (message["reasoning_content"].as_str(), message["content"].as_str());
        assert_eq!(found, (reasoning, text), "{content} {more}");
        assert_eq!(message.get("reasoning_content").is_some(), reasoning.is_some());
        let joined = |name: &str| deltas.iter().filter_map(|delta| delta[name].as_str()).collect::<String>();
        let expected = (reasoning.unwrap_or_default(), text.unwrap_or_default());
        assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), expected, "{content}");
        assert!(deltas.iter().all(|delta| !delta["reasoning_content"].as_str().is_some_and(str::is_empty)));
    }
    let (_, deltas) = reasoned(REASONING, "<think>ab</think>c", json!({})).await;
    let shown: Vec<String> = deltas.iter().map(ToString::to_string).collect();
    let expected = [
        r#"{"role":"assistant","content":""}"#,
        r#"{"reasoning_content":"a"}"#,
        r#"{"reasoning_content":"b"}"#,
        r#"{"content":"c"}"#,
        "{}",
    ];
    assert_eq!(shown, expected);
}
