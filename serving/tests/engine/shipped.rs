//! Tests of the tiny model in the repository: it loads, and it answers as its card states.

use crate::models::{block_on, open};
use kernels::sampling::Sampling;
use serving::batcher::{Batcher, BatcherLimits, Caller, Event, GenerateRequest, Prompt, StopConditions};
use serving::engine::chat::ChatMessage;
use serving::engine::logits::LogitRules;
use std::path::PathBuf;

fn ask(batcher: &Batcher, question: &str) -> String {
    let message = ChatMessage::new("user", question);
    let request = GenerateRequest {
        prompt: Prompt::Chat(vec![message].into()),
        sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0 },
        rules: LogitRules::default(),
        tokens_max: Some(60),
        stops: StopConditions::default(),
        caller: Caller::default(),
        logprobs: None,
        grammar: None,
        functions: [].into(),
    };
    let mut events = block_on(batcher.generate(request)).expect("queued").events;
    let mut answer = String::new();
    while let Some(Event::Text(text)) = events.blocking_recv() {
        answer.push_str(&text);
    }
    answer
}

#[test]
fn it_answers_small_sums_and_questions_about_commands() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let batcher = Batcher::start(Box::new(open(&directory, 2)), BatcherLimits::default()).expect("a thread");
    for (question, answer) in [
        ("What is seven plus five?", "seven plus five is twelve."),
        ("how much is six times seven?", "six times seven is forty-two."),
        ("what does quorate why do?", "quorate why says why something waits, moved or was refused."),
        ("what is a quorum?", "a quorum is enough members to decide."),
    ] {
        assert_eq!(ask(&batcher, question), answer);
    }
}
