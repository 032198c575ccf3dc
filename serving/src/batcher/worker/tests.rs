//! Tests of the batcher's thread, one step at a time: planted violations of its invariants, and a simulation
//! of clients over random scripts.

use super::Worker;
use crate::batcher::counters::{Counters, add};
use crate::batcher::embedding::EmbeddingTask;
use crate::batcher::generation::{AnswerOptions, Event, QueuedGeneration};
use crate::batcher::scheduler::SequenceId;
use crate::batcher::{BatchError, BatcherCommand, BatcherLimits, Caller, StopConditions};
use crate::engine::simulated::SimulatedEngine;
use crate::engine::{BLOCK_TOKENS, Engine};
use kernels::sampling::Sampling;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
const LIMITS: BatcherLimits = BatcherLimits {
    sequences_max: 4,
    waiting_max: 64,
    step_tokens_max: 16,
    gap: Duration::from_millis(100),
    inputs_max: 64,
    stops_max: 4,
};

type Vectors = oneshot::Receiver<Result<Vec<Vec<f32>>, BatchError>>;

fn worker(engine: SimulatedEngine) -> Worker {
    // The handle is gone; the tests queue commands themselves.
    let (_, commands) = mpsc::channel();
    let counters = Counters::default();
    counters.cache_tokens_total.store((engine.blocks() * BLOCK_TOKENS) as u64, Ordering::Relaxed);
    // No time passes: the tests of the scheduler have their own.
    Worker::new(Box::new(engine), &LIMITS, || Duration::ZERO, Arc::new(counters), commands)
}

fn submit(worker: &mut Worker, prompt: &str, tokens_max: usize) -> UnboundedReceiver<Event> {
    let (sender, events) = unbounded_channel();
    let prompt = prompt.bytes().map(u32::from).collect();
    let (options, stops, caller) = (AnswerOptions::default(), StopConditions::default(), Caller::default());
    let sampling = GREEDY;
    let queued =
        QueuedGeneration { prompt, options, logits: None, tokens_max, sampling, stops, caller, sender };
    add(&worker.counters.waiting, 1);
    worker.queue(BatcherCommand::Generate(Box::new(queued)));
    events
}

fn submit_texts(worker: &mut Worker, texts: usize, tokens: usize) -> Vectors {
    let (reply, vectors) = oneshot::channel();
    add(&worker.counters.waiting, 1);
    worker.queue(BatcherCommand::Embed(EmbeddingTask::new(vec![vec![7; tokens]; texts], reply)));
    vectors
}

/// Runs one step and checks all invariants.
fn step(worker: &mut Worker) {
    worker.step();
    assert_eq!(worker.check_invariants(), Ok(()));
}

/// Runs until no request is left.
fn finish(worker: &mut Worker) {
    // Each step computes a token of the oldest request at least, and those that gave way are computed again.
    let steps_max = LIMITS.waiting_max * 70 * 2;
    for _ in 0..steps_max {
        if worker.is_idle() {
            return;
        }
        step(worker);
    }
    assert!(worker.is_idle(), "requests are left after {steps_max} steps");
}

fn text_of(events: &mut UnboundedReceiver<Event>) -> String {
    let mut text = String::new();
    while let Ok(Event::Text(more)) = events.try_recv() {
        text.push_str(&more);
    }
    text
}

/// Returns a worker with four running generations and one in the queue, and their receivers.
fn busy_decoder() -> (Worker, Vec<UnboundedReceiver<Event>>) {
    let mut worker = worker(SimulatedEngine::decoder(200, 320).without_end());
    let events = (0..5).map(|_| submit(&mut worker, "abcd", 40)).collect();
    step(&mut worker);
    assert_eq!(worker.scheduler.levels(), (4, 1));
    (worker, events)
}

#[test]
fn a_planted_violation_of_a_decoder_is_reported() {
    type Plant = fn(&mut Worker);
    let cases: [(Plant, &str); 5] = [
        (|worker| drop(worker.texts.pop_first()), "4 texts for 5 generations"),
        (|worker| assert!(worker.scheduler.remove(SequenceId(1)).is_some()), "5 texts for 4 generations"),
        (|worker| worker.counters.running.store(3, Ordering::Relaxed), "4 requests run, 3 are counted"),
        (|worker| worker.counters.waiting.store(0, Ordering::Relaxed), "1 requests wait, 0 are counted"),
        (
            |worker| worker.counters.cache_tokens_used.store(321, Ordering::Relaxed),
            "321 cache positions are used of 320",
        ),
    ];
    for (plant, expected) in cases {
        let (mut worker, _events) = busy_decoder();
        plant(&mut worker);
        let found = worker.check_invariants().expect_err(expected);
        assert!(found.contains(expected), "{found} lacks {expected}");
    }
}

#[test]
fn a_planted_violation_of_an_encoder_is_reported() {
    type Plant = fn(&mut Worker);
    let cases: [(Plant, &str); 3] = [
        (|worker| worker.embeddings.swap(0, 1), "begun before an older one"),
        (
            |worker| worker.embeddings[1].accept(std::iter::once(Vec::new())),
            "3 vectors and inputs, expected 2",
        ),
        (
            |worker| {
                let (mut batch, mut tokens) = (Vec::new(), 0);
                worker.embeddings[0].accept(vec![vec![0.0]; 1].into_iter());
                worker.embeddings[0].take(&mut batch, &mut tokens, 8192);
            },
            "a complete embedding request is still queued",
        ),
    ];
    for (plant, expected) in cases {
        let mut worker = worker(SimulatedEngine::encoder(10_000, 4));
        // The first request takes two steps: a step computes at most 8192 tokens.
        let _vectors = [submit_texts(&mut worker, 2, 8000), submit_texts(&mut worker, 2, 10)];
        step(&mut worker);
        plant(&mut worker);
        let found = worker.check_invariants().expect_err(expected);
        assert!(found.contains(expected), "{found} lacks {expected}");
    }
}

#[test]
fn a_small_request_is_answered_beside_a_large_one_that_waits() {
    let mut worker = worker(SimulatedEngine::decoder(200, 192).without_end());
    let mut running = submit(&mut worker, &"x".repeat(100), 80);
    (0..8).for_each(|_| step(&mut worker));
    let mut large = submit(&mut worker, &"y".repeat(100), 20);
    let mut small = submit(&mut worker, "z", 3);
    (0..3).for_each(|_| step(&mut worker));
    assert_eq!(text_of(&mut small), "zzz");
    assert_eq!(worker.scheduler.levels(), (1, 1));
    finish(&mut worker);
    assert_eq!(text_of(&mut running), "x".repeat(80));
    assert_eq!(text_of(&mut large), "y".repeat(20));
}

#[test]
fn an_abandoned_generation_gives_up_its_blocks_before_the_next_step() {
    let (mut worker, mut events) = busy_decoder();
    events.truncate(1);
    step(&mut worker);
    assert_eq!(worker.scheduler.levels(), (1, 0));
    assert_eq!(worker.scheduler.tokens_used(), BLOCK_TOKENS);
    assert_eq!(worker.counters.snapshot().requests_cancelled_total, 4);
}

/// One act of a client, or a step of the thread.
#[derive(Debug, Clone)]
enum Act {
    Submit { prompt: usize, tokens_max: usize },
    Abandon(usize),
    Step,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => (1usize..40, 1usize..30).prop_map(|(prompt, tokens_max)| Act::Submit { prompt, tokens_max }),
        1 => (0usize..8).prop_map(Act::Abandon),
        4 => Just(Act::Step),
    ];
    proptest::collection::vec(act, 1..80)
}

proptest! {
    #[test]
    fn generations_keep_the_invariants_and_all_are_answered(acts in acts()) {
        let mut worker = worker(SimulatedEngine::decoder(200, 100).without_end());
        let mut open = Vec::new();
        let (mut submitted, mut answered) = (0, 0);
        for act in acts {
            match act {
                Act::Submit { prompt, tokens_max } if open.len() < LIMITS.waiting_max => {
                    submitted += 1;
                    open.push((submit(&mut worker, &"a".repeat(prompt), tokens_max), tokens_max));
                }
                Act::Abandon(index) if index < open.len() => drop(open.remove(index)),
                Act::Submit { .. } | Act::Abandon(_) => {}
                Act::Step => step(&mut worker),
            }
        }
        finish(&mut worker);
        for (mut events, tokens_max) in open {
            prop_assert_eq!(text_of(&mut events).len(), tokens_max);
            answered += 1;
        }
        let counted = worker.counters.snapshot();
        prop_assert!(counted.requests_finished_total >= answered);
        prop_assert_eq!(counted.requests_finished_total + counted.requests_cancelled_total, submitted);
        prop_assert_eq!((counted.requests_running, counted.requests_waiting), (0, 0));
        prop_assert_eq!(worker.scheduler.tokens_used(), 0);
    }

    #[test]
    fn embeddings_keep_the_invariants_and_all_are_answered(
        requests in proptest::collection::vec((1usize..6, 1usize..4000, any::<bool>()), 1..12),
    ) {
        let mut worker = worker(SimulatedEngine::encoder(10_000, 4));
        let mut open = Vec::new();
        for (texts, tokens, is_abandoned) in requests {
            let vectors = submit_texts(&mut worker, texts, tokens);
            step(&mut worker);
            if !is_abandoned {
                open.push((vectors, texts));
            }
        }
        finish(&mut worker);
        for (mut vectors, texts) in open {
            prop_assert_eq!(vectors.try_recv().expect("answered").expect("computed").len(), texts);
        }
        prop_assert_eq!(worker.counters.snapshot().requests_waiting, 0);
    }
}
