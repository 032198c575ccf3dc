//! Batcher tests: results as callers see them, alone and beside other requests.

use crate::models::{block_on, files, llama_config, open, options, write};
use kernels::sampling::Sampling;
use safetensors::Dtype;
use serving::batcher::{
    BatchError, Batcher, BatcherLimits, Caller, EmbedInput, Embeddings, Event, FinishReason, GenerateRequest,
    Generation, Prompt, StopConditions, Tenant,
};
use serving::engine::chat::ChatMessage;
use serving::engine::logits::LogitRules;
use serving::engine::simulated::SimulatedEngine;
use serving::engine::{BLOCK_TOKENS, Engine, EngineOptions, LoadedEngine};
use std::time::{Duration, Instant};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };

fn start(engine: SimulatedEngine) -> Batcher {
    Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread")
}

fn request(prompt: &str, tokens_max: Option<usize>, stops: &[&str]) -> GenerateRequest {
    let strings = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let stops = StopConditions { strings, ..StopConditions::default() };
    let prompt = Prompt::Text(prompt.to_owned());
    GenerateRequest {
        prompt,
        sampling: GREEDY,
        rules: LogitRules::default(),
        tokens_max,
        stops,
        logprobs: None,
        grammar: None,
        functions: [].into(),
        caller: Caller::default(),
    }
}

/// Returns all text, the finish reason, and the number of generated tokens.
fn collect(mut generation: Generation) -> (String, FinishReason, usize) {
    let mut text = String::new();
    loop {
        match generation.events.blocking_recv().expect("an end") {
            Event::Text(more) => text.push_str(&more),
            Event::Token(_) => unreachable!("no log-probabilities were requested"),
            Event::Drawn(_) => unreachable!("no tokens were requested"),
            Event::Reasoning(_) => unreachable!("the template names no reasoning"),
            Event::Calls(..) => unreachable!("there is no function to call"),
            Event::Finished(finish) => return (text, finish.reason, finish.generated_tokens),
            Event::Failed(error) => unreachable!("{error}"),
        }
    }
}

/// Waits until a condition holds, not for a change of it.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn refusal(batcher: &Batcher, request: GenerateRequest) -> BatchError {
    generate(batcher, request).expect_err("refused")
}

fn generate(batcher: &Batcher, request: GenerateRequest) -> Result<Generation, BatchError> {
    block_on(batcher.generate(request))
}

fn embed(batcher: &Batcher, inputs: Vec<EmbedInput>) -> Result<Embeddings, BatchError> {
    block_on(async { batcher.embed(inputs).await?.computed().await })
}

#[test]
fn text_is_complete_and_ends_with_a_reason() {
    let batcher = start(SimulatedEngine::decoder(200, 1000));
    let cases = [
        (request("first\nécho", None, &[]), "écho", FinishReason::Stop, 6),
        (request("écho", Some(1), &[]), "\u{fffd}", FinishReason::Length, 1),
        (request("écho", Some(2), &[]), "é", FinishReason::Length, 2),
        (request("one two three", None, &["two"]), "one ", FinishReason::Stop, 7),
        (request("one two three", None, &["twofold", "e t"]), "on", FinishReason::Stop, 5),
        (request("one tw", None, &["two"]), "one tw", FinishReason::Stop, 7),
        (request("one tw", Some(6), &["two"]), "one tw", FinishReason::Length, 6),
    ];
    for (request, text, reason, tokens) in cases {
        let description = format!("{request:?}");
        let generation = generate(&batcher, request).expect("queued");
        assert_eq!(collect(generation), (text.to_owned(), reason, tokens), "{description}");
    }
    // An answer arrives just before it is counted.
    eventually("all are counted", || batcher.snapshot().requests_finished_total == 7);
    eventually("the cache is empty", || batcher.snapshot().cache_tokens_used == 0);
}

#[test]
fn chats_go_through_the_template() {
    let batcher = start(SimulatedEngine::decoder(200, 1000));
    let message = ChatMessage::new("user", "hi");
    let prompt = Prompt::Chat(vec![message].into());
    let request = GenerateRequest { prompt, ..request("", None, &[]) };
    assert_eq!(collect(generate(&batcher, request).expect("queued")).0, "user: hi");
}

#[test]
fn wrong_requests_are_refused_with_a_code() {
    let batcher = start(SimulatedEngine::decoder(10, 1000));
    let cases = [
        (request("12345678901", None, &[]), "context-length-exceeded"),
        (request("1234567890", None, &[]), "context-length-exceeded"),
        (request("12345", Some(6), &[]), "context-length-exceeded"),
        (request("", None, &[]), "invalid-value"),
        (request("a", None, &["1", "2", "3", "4", "5"]), "invalid-value"),
        (GenerateRequest { prompt: Prompt::Tokens(vec![257]), ..request("", None, &[]) }, "invalid-value"),
    ];
    for (request, code) in cases {
        assert_eq!(refusal(&batcher, request).code().as_str(), code);
    }
    let embedding = embed(&batcher, vec![EmbedInput::Text("a".to_owned())]);
    assert_eq!(embedding.expect_err("a decoder").code().as_str(), "operation-unsupported");
    assert_eq!(collect(generate(&batcher, request("1", Some(1), &[])).expect("queued")).2, 1);
}

#[test]
fn dropping_the_receiver_stops_the_generation() {
    let engine = SimulatedEngine::decoder(1 << 30, 1 << 31).without_end();
    let batcher = start(engine.with_step_time(Duration::from_millis(1)));
    let generation = generate(&batcher, request("on and on", None, &[])).expect("queued");
    eventually("it runs", || batcher.snapshot().requests_running == 1);
    drop(generation);
    eventually("it stopped", || batcher.is_idle());
    let after = batcher.snapshot();
    assert_eq!((after.requests_cancelled_total, after.requests_finished_total), (1, 0));
    eventually("its room is free", || batcher.snapshot().cache_tokens_used == 0);
}

#[test]
fn too_many_waiting_are_refused_and_draining_takes_nothing_new() {
    let engine = SimulatedEngine::decoder(1000, 100).with_step_time(Duration::from_millis(5));
    let limits = BatcherLimits { waiting_max: 2, sequences_max: 1, ..BatcherLimits::default() };
    let batcher = Batcher::start(Box::new(engine), limits).expect("a thread");
    // One of these runs at a time, and each takes 45 ms at least.
    let mut accepted = Vec::new();
    let refused = loop {
        match generate(&batcher, request("abcdefgh", Some(80), &[])) {
            Ok(generation) => accepted.push(generation),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code().as_str(), "worker-overloaded");
    assert!(accepted.len() >= 2, "two may wait");
    batcher.drain();
    assert_eq!(refusal(&batcher, request("a", None, &[])).code().as_str(), "worker-draining");
    for generation in accepted {
        assert_eq!(collect(generation).0, "abcdefgh");
    }
    eventually("it is idle", || batcher.is_idle());
}

#[test]
fn a_request_larger_than_the_whole_cache_fails_alone() {
    let batcher = start(SimulatedEngine::decoder(1000, 100));
    let error = refusal(&batcher, request("abc", Some(500), &[]));
    assert_eq!(error.code().as_str(), "context-length-exceeded");
    assert!(error.to_string().contains("503 tokens exceed the 96 that the KV cache"), "{error}");
    assert_eq!(collect(generate(&batcher, request("abc", Some(50), &[])).expect("queued")).0, "abc");
}

#[test]
fn a_result_with_nan_fails_alone() {
    let batcher = start(SimulatedEngine::decoder(200, 1000).broken());
    let mut damaged = generate(&batcher, request("wow!", None, &[])).expect("queued");
    let sound = generate(&batcher, request("sound", None, &[])).expect("queued");
    let Some(Event::Failed(error)) = damaged.events.blocking_recv() else {
        unreachable!("no text comes of it")
    };
    assert_eq!(error.code().as_str(), "engine-failed");
    assert_eq!(collect(sound).0, "sound");
    eventually("both are counted", || batcher.is_idle());
    let counted = batcher.snapshot();
    assert_eq!((counted.requests_failed_total, counted.requests_finished_total), (1, 1));

    let batcher = start(SimulatedEngine::encoder(100, 4).broken());
    let text = |text: &str| vec![EmbedInput::Text("fine".to_owned()), EmbedInput::Text(text.to_owned())];
    assert_eq!(embed(&batcher, text("wow!")).expect_err("null").code().as_str(), "engine-failed");
    assert_eq!(embed(&batcher, text("sound")).expect("numbers").vectors.len(), 2);
}

#[test]
fn embeddings_come_in_order_however_many_steps_they_take() {
    let batcher = start(SimulatedEngine::encoder(10_000, 8));
    let texts: Vec<String> = (0..40).map(|index| "ab".repeat(1 + index * 40)).collect();
    let inputs = |texts: &[String]| texts.iter().map(|text| EmbedInput::Text(text.clone())).collect();
    let all = embed(&batcher, inputs(&texts)).expect("computed");
    assert_eq!(all.prompt_tokens, texts.iter().map(String::len).sum::<usize>());
    for (text, vector) in texts.iter().zip(&all.vectors) {
        let one = embed(&batcher, inputs(std::slice::from_ref(text))).expect("computed");
        assert_eq!(one.vectors[0], *vector);
    }
    let none = embed(&batcher, Vec::new()).expect_err("nothing to embed");
    assert_eq!(none.code().as_str(), "invalid-value");
}

#[test]
fn a_real_decoder_answers_the_same_alone_in_a_batch_and_for_a_seed() {
    let directory = write(&llama_config(), Dtype::F32);
    let limits = BatcherLimits { step_tokens_max: 16, ..BatcherLimits::default() };
    let batcher = Batcher::start(Box::new(open(directory.path(), 2)), limits).expect("a thread");
    let ask = |index: usize, seed: u64| {
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed };
        let prompt = "quorate ".repeat(1 + index % 5) + &index.to_string();
        generate(&batcher, GenerateRequest { sampling, ..request(&prompt, Some(30), &[]) }).expect("queued")
    };
    let alone: Vec<_> = (0..10).map(|index| collect(ask(index, 7))).collect();
    let together: Vec<_> = (0..10).map(|index| ask(index, 7)).collect();
    let together: Vec<_> = together.into_iter().map(collect).collect();
    assert_eq!(alone, together);
    assert_ne!(alone, (0..10).map(|index| collect(ask(index, 8))).collect::<Vec<_>>());
}

#[test]
fn an_answer_without_a_limit_needs_no_more_cache_than_it_fills() {
    let batcher = start(SimulatedEngine::decoder(32_768, 2720));
    // Each could become 32,764 tokens long; the cache holds 2,720 for all of them.
    let open: Vec<_> =
        (0..40).map(|_| generate(&batcher, request("abcd", None, &[])).expect("queued")).collect();
    for generation in open {
        assert_eq!(collect(generation), ("abcd".to_owned(), FinishReason::Stop, 5));
    }
    assert_eq!(batcher.snapshot().preemptions_total, 0);
    // An answer that has no end is as long as the cache allows.
    let batcher = start(SimulatedEngine::decoder(32_768, 100).without_end());
    let (text, reason, tokens) = collect(generate(&batcher, request("ab", None, &[])).expect("queued"));
    assert_eq!((text.len(), reason, tokens), (94, FinishReason::Length, 94));
}

/// Opens a decoder of random weights with a cache of this many blocks.
fn decoder(blocks: usize) -> Batcher {
    let directory = write(&llama_config(), Dtype::F32);
    let cache_bytes_max = blocks * 2 * 2 * BLOCK_TOKENS * (12 + 32) * 4;
    let options = EngineOptions { cache_bytes_max, ..options(2) };
    let engine = LoadedEngine::open(&files(directory.path()), &options).expect("a model that loads");
    assert_eq!(engine.blocks(), blocks);
    Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread")
}

#[test]
fn preemption_and_cached_prefixes_change_no_byte() {
    let ask = |batcher: &Batcher, index: usize, tenant: Option<&str>| {
        let sampling = Sampling { temperature: 1.0, top_p: 0.95, seed: index as u64 };
        let caller = Caller { tenant: tenant.map(Tenant::new), ..Caller::default() };
        let prompt = "a text that all of these requests begin with ".to_owned() + &index.to_string();
        generate(batcher, GenerateRequest { sampling, caller, ..request(&prompt, Some(120), &[]) })
            .expect("queued")
    };
    let batcher = decoder(64);
    let expected: Vec<_> = (0..6).map(|index| collect(ask(&batcher, index, None))).collect();
    let counted = batcher.snapshot();
    assert_eq!((counted.preemptions_total, counted.shared_tokens_total), (0, 0), "the plain case");
    // Seven blocks hold one such answer and a part of a second.
    for tenant in [None, Some("ann")] {
        let batcher = decoder(7);
        let open: Vec<_> = (0..6).map(|index| ask(&batcher, index, tenant)).collect();
        let found: Vec<_> = open.into_iter().map(collect).collect();
        assert_eq!(found, expected, "{tenant:?}");
        let counted = batcher.snapshot();
        assert!(counted.preemptions_total > 0, "{counted:?}");
        assert_eq!(counted.shared_tokens_total > 0, tenant.is_some(), "{counted:?}");
    }
}
