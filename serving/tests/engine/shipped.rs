//! Tests of the tiny model in the repository: it loads, and it answers as its card states.

use crate::decoding::alone;
use crate::models::{block_on, open};
use kernels::sampling::Sampling;
use serving::batcher::{Batcher, BatcherLimits, Caller, Event, GenerateRequest, Prompt, StopConditions};
use serving::engine::Engine;
use serving::engine::chat::ChatMessage;
use serving::engine::logits::LogitRules;
use std::path::{Path, PathBuf};

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

fn shipped() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
}

/// Returns the perplexity of a model over these texts: e to the mean of the negative log-probability of each
/// token after those before it.
fn perplexity(directory: &Path, texts: &[&str]) -> f64 {
    let mut engine = open(directory, 2);
    let (mut sum, mut count) = (0.0, 0);
    for text in texts {
        let tokens = engine.frontend().encode(text, true).expect("tokens");
        let cuts: Vec<usize> = (1..tokens.len()).collect();
        for (logits, next) in alone(&mut engine, &tokens, &cuts).iter().zip(&tokens[1..]) {
            let most = logits.iter().fold(f64::MIN, |most, logit| most.max(f64::from(*logit)));
            let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
            sum += total.ln() + most - f64::from(logits[*next as usize]);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

#[test]
fn its_perplexity_with_8_bits_is_within_a_hundredth() {
    let texts = [
        "what is a quorum? a quorum is enough members to decide.",
        "how much is six times seven? six times seven is forty-two.",
        "what does quorate why do? quorate why says why something waits, moved or was refused.",
        "What is seven plus five? seven plus five is twelve.",
    ];
    let quantized = tempfile::tempdir().expect("a directory");
    model_store::quantize(&shipped(), quantized.path(), |_, _| ()).expect("quantised");
    let (original, found) = (perplexity(&shipped(), &texts), perplexity(quantized.path(), &texts));
    assert!((found / original - 1.0).abs() < 0.01, "{found} beside {original}");
    assert_ne!(found, original, "the weights are others");
}

#[test]
fn it_answers_small_sums_and_questions_about_commands() {
    let directory = shipped();
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
