//! Tests of the gateway's parse: it validates a request and forwards the bytes that the client sent.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_valid_body_is_forwarded_byte_for_byte() {
    let simulation = Simulation::new(1 << 20);
    let worker = simulation.worker().await;
    for body in [
        r#"{"model": "echo", "prompt": "x"}"#,
        "{ \"prompt\":\t\"\\u00e9\",\n\"model\" : \"echo\", \"seed\":null }",
        r#"{"user":"answer 1 0","stop":["a","b"],"prompt":[1,2,3],"model":"chat"}"#,
    ] {
        let answer = simulation.send("app", Body::from(body)).await;
        assert_eq!((answer.status.as_u16(), worker.received()), (200, Bytes::from(body)), "{body}");
    }
    assert_eq!(worker.others_on_arrival().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_parse_reaches_no_worker() {
    let simulation = Simulation::new(1 << 20);
    let worker = simulation.worker().await;
    for (body, code) in [
        ("", "request_invalid"),
        (r#"{"model": "echo", "prompt": "x"} {"#, "request_invalid"),
        (r#"{"model": "echo", "model": "echo", "prompt": "x"}"#, "request_invalid"),
        (r#"{"prompt": "x"}"#, "missing_parameter"),
        (r#"{"model": "echo"}"#, "missing_parameter"),
        (r#"{"model": "echo", "prompt": "x", "temperature": 3}"#, "invalid_value"),
        (r#"{"model": "echo", "prompt": "x", "colour": "red"}"#, "unknown_parameter"),
        (r#"{"model": "other", "prompt": "x"}"#, "model_not_found"),
    ] {
        let answer = simulation.send("app", Body::from(body)).await;
        assert_eq!(answer.code(), code, "{body}");
        assert!((400..500).contains(&answer.status.as_u16()), "{body}: {}", answer.status);
    }
    assert_eq!(worker.others_on_arrival(), [0_u32; 0]);
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_with_the_smallest_context_of_their_workers() {
    let simulation = Simulation::new(1 << 20);
    let contexts = async || {
        let mut found = Vec::new();
        for path in ["/v1/models", "/v1/models/echo", "/v1/models/chat"] {
            let request = Request::get(path).header("authorization", "Bearer app").body(Body::empty());
            let response =
                simulation.router.clone().oneshot(request.expect("valid")).await.expect("infallible");
            let body = response.into_body().collect().await.expect("whole").to_bytes();
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let model = if body["data"].is_array() { body["data"][0].clone() } else { body };
            found.push(model["max_model_len"].as_u64());
        }
        found
    };
    assert_eq!(contexts().await, [None; 3], "no worker has the model");
    let _workers = (simulation.worker().await, simulation.worker().await);
    assert_eq!(contexts().await, [Some(4096); 3]);
}

#[tokio::test(start_paused = true)]
async fn every_public_route_is_documented_and_the_document_needs_no_key() {
    let simulation = Simulation::new(usize::MAX >> 1);
    let mut routes = crate::openai::routes_of(&simulation.router);
    assert!(routes.remove(crate::openai::OPENAPI_PATH));
    assert_eq!(routes, crate::openai::openapi_paths());
    let request = Request::get(crate::openai::OPENAPI_PATH).body(Body::empty()).expect("valid");
    let response = simulation.router.clone().oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(body, crate::openai::openapi(true));
}

/// Returns the headers on limits, and `retry-after`.
fn limits(answer: &Answer) -> Vec<String> {
    let is_limit = |name: &str| name.starts_with("x-ratelimit-") || name == "retry-after";
    let shown = answer.headers.iter().filter(|(name, _)| is_limit(name.as_str()));
    let mut shown: Vec<String> =
        shown.map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
    shown.sort();
    shown
}

#[tokio::test(start_paused = true)]
async fn answers_state_what_is_left_of_a_quota_and_nothing_that_is_not_enforced() {
    let simulation = Simulation::new(1 << 20);
    let _worker = simulation.worker().await;
    let left = |remaining: u32, reset: &str| {
        vec![
            "x-ratelimit-limit-requests: 2".to_owned(),
            format!("x-ratelimit-remaining-requests: {remaining}"),
            format!("x-ratelimit-reset-requests: {reset}"),
        ]
    };
    let streamed = simulation.ask("scarce", Act::Stream(0, 0), r#", "stream": true"#).await;
    assert_eq!((streamed.status.as_u16(), limits(&streamed)), (200, left(1, "30s")));
    // A request that is refused for a field counts, too.
    let refused = simulation.send("scarce", Body::from(r#"{"model": "echo"}"#)).await;
    assert_eq!((refused.status.as_u16(), limits(&refused)), (400, left(0, "1m0s")));
    let excess = simulation.ask("scarce", Act::Answer(0), "").await;
    assert_eq!(excess.code(), "rate_limit_exceeded");
    assert_eq!(limits(&excess), [vec!["retry-after: 30".to_owned()], left(0, "1m0s")].concat());
    for (key, status) in [("app", 200), ("unknown", 401)] {
        let answer = simulation.ask(key, Act::Answer(0), "").await;
        assert_eq!((answer.status.as_u16(), limits(&answer)), (status, Vec::new()), "{key}");
    }
}
