//! The batcher's thread: receives requests, drops abandoned ones, admits those that fit, computes one step,
//! sends.

mod invariants;
#[cfg(test)]
mod tests;

use super::counters::{Counters, add, leave};
use super::embedding::EmbeddingTask;
use super::generation::{Event, QueuedGeneration, RunningGeneration};
use super::{BatchError, BatcherCommand, BatcherLimits};
use crate::engine::{Engine, EngineError, SequenceChunk};
use protocol::error_code as code;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

/// Tokens of one embedding step. Large enough that every core has work (32 texts of 256 tokens), small enough
/// that an abandoned request of 2048 texts stops within a step.
const EMBED_STEP_TOKENS: usize = 8192;

pub(super) struct Worker {
    engine: Box<dyn Engine>,
    limits: BatcherLimits,
    counters: Arc<Counters>,
    commands: Receiver<BatcherCommand>,
    generations: VecDeque<QueuedGeneration>,
    embeddings: VecDeque<EmbeddingTask>,
    running: Vec<RunningGeneration>,
}

impl Worker {
    pub(super) fn new(
        engine: Box<dyn Engine>,
        limits: BatcherLimits,
        counters: Arc<Counters>,
        commands: Receiver<BatcherCommand>,
    ) -> Self {
        assert!(limits.sequences_max > 0, "a batcher that runs no generation answers none");
        Self {
            engine,
            limits,
            counters,
            commands,
            generations: VecDeque::new(),
            embeddings: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Runs until all handles are dropped and all work is finished.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.step();
        }
    }

    /// Drops abandoned requests, admits those that fit, and computes one step of each kind.
    ///
    /// # Panics
    /// If an invariant is violated that answers rely on: the process ends and its supervisor restarts it.
    fn step(&mut self) {
        self.drop_abandoned();
        self.admit();
        if !self.embeddings.is_empty() {
            self.step_embeddings();
        }
        if !self.running.is_empty() {
            self.step_generations();
        }
        let reserved = self.engine.capacity().tokens_reserved as u64;
        self.counters.cache_tokens_reserved.store(reserved, Ordering::Relaxed);
        assert_eq!(self.check_answers(), Ok(()), "an invariant of the batcher is violated");
    }

    /// Receives new commands; blocks when idle. Returns `false` when the thread must end.
    fn receive(&mut self) -> bool {
        if self.is_idle() {
            match self.commands.recv() {
                Ok(command) => self.queue(command),
                Err(_) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.queue(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// Reports whether no request runs or waits here.
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.generations.is_empty() && self.embeddings.is_empty()
    }

    fn queue(&mut self, command: BatcherCommand) {
        match command {
            BatcherCommand::Generate(job) => self.generations.push_back(job),
            BatcherCommand::Embed(job) => self.embeddings.push_back(job),
        }
    }

    fn drop_abandoned(&mut self) {
        let counters = &self.counters;
        let cancel = |abandoned: bool| {
            if abandoned {
                add(&counters.cancelled_total, 1);
                leave(&counters.waiting);
            }
            !abandoned
        };
        self.generations.retain(|job| cancel(job.is_abandoned()));
        self.embeddings.retain(|job| cancel(job.is_abandoned()));
        let engine = &mut self.engine;
        self.running.retain(|running| {
            let abandoned = running.is_abandoned();
            if abandoned {
                engine.close(running.sequence);
                add(&counters.cancelled_total, 1);
                leave(&counters.running);
            }
            !abandoned
        });
    }

    /// Starts waiting generations, in order of arrival, while cache is available.
    fn admit(&mut self) {
        while self.running.len() < self.limits.sequences_max {
            let Some(job) = self.generations.pop_front() else { return };
            if job.tokens_reserved() > self.engine.capacity().tokens_total {
                let total = self.engine.capacity().tokens_total;
                self.refuse(
                    job,
                    &EngineError::ContextExceeded { tokens: total + 1, context_tokens_max: total },
                );
                continue;
            }
            match self.engine.open(job.tokens_reserved()) {
                Ok(Some(sequence)) => {
                    let last = self.running.last();
                    assert!(last.is_none_or(|last| last.sequence < sequence), "numbered in order");
                    add(&self.counters.running, 1);
                    leave(&self.counters.waiting);
                    self.running.push(RunningGeneration::new(sequence, job));
                }
                Ok(None) => {
                    self.generations.push_front(job);
                    return;
                }
                Err(error) => self.refuse(job, &error),
            }
        }
    }

    fn refuse(&self, job: QueuedGeneration, error: &EngineError) {
        add(&self.counters.failed_total, 1);
        leave(&self.counters.waiting);
        let _ = job.sender.send(Event::Failed(BatchError::refused(error)));
    }

    /// Computes one token for every decoding generation, and chunks of prompts.
    fn step_generations(&mut self) {
        let chunks = choose_chunks(&self.running, self.limits.step_tokens_max.max(1));
        let chosen: Vec<(usize, usize, bool)> =
            chunks.iter().map(|(index, chunk)| (*index, chunk.tokens.len(), chunk.logits)).collect();
        let chunks: Vec<SequenceChunk<'_>> = chunks.into_iter().map(|(_, chunk)| chunk).collect();
        add(&self.counters.steps_total, 1);
        match self.engine.step(&chunks) {
            Ok(rows) => self.deliver(&chosen, &rows),
            Err(error) => self.fail_all(&BatchError::failed(&error)),
        }
    }

    fn deliver(&mut self, chosen: &[(usize, usize, bool)], rows: &[Vec<f32>]) {
        let wanted = chosen.iter().filter(|(_, _, logits)| *logits).count();
        assert_eq!(rows.len(), wanted, "one row for each chunk that requested logits");
        let frontend = Arc::clone(self.engine.frontend());
        let mut rows = rows.iter();
        let mut ended = Vec::new();
        for (index, count, logits) in chosen {
            let running = &mut self.running[*index];
            let prompt = running.advance(*count);
            add(&self.counters.prompt_tokens_total, prompt);
            if !*logits {
                continue;
            }
            let row = rows.next().expect("the rows were just counted");
            if row.iter().any(|logit| logit.is_nan()) {
                running.fail(not_a_number());
                ended.push((*index, &self.counters.failed_total));
                continue;
            }
            add(&self.counters.generation_tokens_total, 1);
            if running.accept(&frontend, row) {
                ended.push((*index, &self.counters.finished_total));
            }
        }
        ended.sort_unstable_by_key(|(index, _)| *index);
        assert!(ended.is_sorted_by(|a, b| a.0 < b.0), "a generation ends once");
        for (index, total) in ended.into_iter().rev() {
            // `remove`, not `swap_remove`: requests are served in order of arrival.
            let running = self.running.remove(index);
            self.engine.close(running.sequence);
            add(total, 1);
            leave(&self.counters.running);
        }
    }

    fn fail_all(&mut self, error: &BatchError) {
        tracing::warn!(code = %error.code(), "engine step failed: {error}");
        for running in self.running.drain(..) {
            self.engine.close(running.sequence);
            add(&self.counters.failed_total, 1);
            leave(&self.counters.running);
            running.fail(error.clone());
        }
    }

    /// Computes one portion of the oldest embedding requests.
    fn step_embeddings(&mut self) {
        let mut batch = Vec::new();
        let mut tokens = 0;
        let mut shares = Vec::new();
        for job in &mut self.embeddings {
            let share = job.take(&mut batch, &mut tokens, EMBED_STEP_TOKENS);
            shares.push(share);
            if !job.is_complete() {
                break;
            }
        }
        assert_eq!(shares.iter().sum::<usize>(), batch.len(), "each text is of one request's share");
        assert_eq!(batch.iter().map(Vec::len).sum::<usize>(), tokens, "its tokens are counted");
        self.counters.running.store(shares.len() as u64, Ordering::Relaxed);
        add(&self.counters.steps_total, 1);
        let outcome = self.engine.embed(&batch);
        self.counters.running.store(0, Ordering::Relaxed);
        match outcome {
            Ok(vectors) => {
                assert_eq!(vectors.len(), batch.len(), "one vector for each text");
                add(&self.counters.prompt_tokens_total, tokens);
                let mut vectors = vectors.into_iter();
                for (job, share) in self.embeddings.iter_mut().zip(&shares) {
                    job.accept(vectors.by_ref().take(*share));
                }
                self.finish_embeddings();
            }
            Err(error) => {
                let error = BatchError::failed(&error);
                tracing::warn!(code = %error.code(), "embedding failed: {error}");
                for job in self.embeddings.drain(..shares.len()) {
                    add(&self.counters.failed_total, 1);
                    leave(&self.counters.waiting);
                    job.finish(Err(error.clone()));
                }
            }
        }
    }

    fn finish_embeddings(&mut self) {
        while self.embeddings.front().is_some_and(EmbeddingTask::is_complete) {
            let job = self.embeddings.pop_front().expect("the front was just seen");
            let outcome = if job.is_number() { Ok(()) } else { Err(not_a_number()) };
            let total =
                if outcome.is_ok() { &self.counters.finished_total } else { &self.counters.failed_total };
            add(total, 1);
            leave(&self.counters.waiting);
            job.finish(outcome);
        }
    }
}

/// Chooses the tokens of one step: one for every decoding generation, then chunks of prompts with the rest of
/// the budget, oldest first. Each chunk comes with the index of its generation.
fn choose_chunks(running: &[RunningGeneration], budget: usize) -> Vec<(usize, SequenceChunk<'_>)> {
    assert!(budget > 0, "a step computes at least one token");
    let mut left = budget;
    let mut chosen = Vec::new();
    for decoding in [true, false] {
        for (index, running) in running.iter().enumerate() {
            if running.is_decoding() != decoding || left == 0 {
                continue;
            }
            let (tokens, logits) = running.next_chunk(left);
            left -= tokens.len();
            chosen.push((index, SequenceChunk { sequence: running.sequence, tokens, logits }));
        }
    }
    assert_eq!(chosen.is_empty(), running.is_empty(), "each step brings a generation further");
    chosen
}

/// Builds the failure of a request whose result has a NaN: an answer with it would be null or noise, yet look
/// valid.
fn not_a_number() -> BatchError {
    let message =
        "the model computed a value that is not a number: its weights or its input are out of range";
    BatchError::Failed { code: code::ENGINE_FAILED, message: message.to_owned() }
}
