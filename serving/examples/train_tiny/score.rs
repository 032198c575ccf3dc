//! Evaluation of the shipped files, loaded and queried through the engine that will serve them.

use crate::lessons::{Lesson, Lessons};
use kernels::sampling::Sampling;
use serving::batcher::{Batcher, BatcherLimits, Caller, Event, GenerateRequest, Prompt, StopConditions};
use serving::engine::chat::ChatMessage;
use serving::engine::logits::LogitRules;
use serving::engine::{EngineOptions, LoadedEngine};
use serving::weights::ModelFiles;
use std::path::Path;

/// Number of correct answers among the questions asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub right: usize,
    pub asked: usize,
}

/// Quality of the model, by exact match of whole answers.
#[derive(Debug)]
pub(crate) struct Score {
    pub trained: Share,
    pub held_out_wordings: Share,
    pub held_out_sums: Share,
    /// Some wrong answers, for the card.
    pub mistakes: Vec<String>,
}

/// Asks all held-out questions, and a tenth of the trained ones.
pub(crate) fn score(directory: &Path, lessons: &Lessons) -> anyhow::Result<Score> {
    let files = ModelFiles::open_directory(directory)?;
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = LoadedEngine::open(&files, &options)?;
    let limits = BatcherLimits { waiting_max: usize::MAX, ..BatcherLimits::default() };
    let batcher = Batcher::start(Box::new(engine), limits)?;
    let mut mistakes = Vec::new();
    let trained: Vec<&Lesson> = lessons.sums.iter().chain(&lessons.facts).step_by(10).collect();
    let trained = ask(&batcher, &trained, &mut mistakes)?;
    let wordings = ask(&batcher, &lessons.held_out_wordings.iter().collect::<Vec<_>>(), &mut mistakes)?;
    mistakes.clear();
    let sums = ask(&batcher, &lessons.held_out_sums.iter().collect::<Vec<_>>(), &mut mistakes)?;
    mistakes.truncate(5);
    let score = Score { trained, held_out_wordings: wordings, held_out_sums: sums, mistakes };
    println!("{score:#?}");
    Ok(score)
}

fn ask(batcher: &Batcher, lessons: &[&Lesson], mistakes: &mut Vec<String>) -> anyhow::Result<Share> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut running = Vec::new();
    for lesson in lessons {
        let message = ChatMessage::new("user", lesson.question.as_str());
        let request = GenerateRequest {
            prompt: Prompt::Chat(vec![message].into()),
            sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0 },
            rules: LogitRules::default(),
            tokens_max: Some(64),
            stops: StopConditions::default(),
            caller: Caller::default(),
            logprobs: None,
            grammar: None,
            functions: [].into(),
        };
        running.push(runtime.block_on(batcher.generate(request))?);
    }
    let mut right = 0;
    for (lesson, mut generation) in lessons.iter().zip(running) {
        let mut answer = String::new();
        while let Some(event) = generation.events.blocking_recv() {
            match event {
                Event::Text(text) => answer.push_str(&text),
                Event::Token(_) | Event::Drawn(_) | Event::Reasoning(_) | Event::Calls(..) => {}
                Event::Finished(_) => break,
                Event::Failed(error) => return Err(error.into()),
            }
        }
        if answer == lesson.answer {
            right += 1;
        } else {
            mistakes.push(format!("{:?} was answered {answer:?}", lesson.question));
        }
    }
    Ok(Share { right, asked: lessons.len() })
}
