//! The batcher's thread: receives requests, drops abandoned ones, computes the step that the scheduler plans,
//! measures it, sends.

mod invariants;
#[cfg(test)]
mod tests;

use super::counters::{Counters, add, leave};
use super::embedding::EmbeddingTask;
use super::generation::{GeneratedText, QueuedGeneration, ResumedGeneration};
use super::masks::MaskThread;
use super::scheduler::{ScheduleLimits, Scheduler, SequenceId, SequenceRequest, StepPlan};
use super::{BatchError, BatcherCommand, BatcherLimits, Caller};
use crate::engine::{Drawn, Engine, EngineError, Operation, SequenceChunk, TokenPair};
use protocol::error_code as code;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Tokens of one embedding step. Large enough that every core has work (32 texts of 256 tokens), small enough
/// that an abandoned request of 2048 texts stops within a step.
const EMBED_STEP_TOKENS: usize = 8192;

/// A clock that never goes back; only differences count.
pub(super) type MonotonicClock = fn() -> Duration;

/// Returns the time since the first call.
pub(super) fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

pub(super) struct Worker {
    engine: Box<dyn Engine>,
    clock: MonotonicClock,
    counters: Arc<Counters>,
    commands: Receiver<BatcherCommand>,
    scheduler: Scheduler,
    masks: MaskThread,
    /// Texts of all generations that the scheduler has.
    texts: BTreeMap<SequenceId, GeneratedText>,
    requests_total: u64,
    embeddings: VecDeque<EmbeddingTask>,
}

impl Worker {
    pub(super) fn new(
        engine: Box<dyn Engine>,
        limits: &BatcherLimits,
        clock: MonotonicClock,
        counters: Arc<Counters>,
        commands: Receiver<BatcherCommand>,
    ) -> Self {
        let schedule = ScheduleLimits {
            sequences_max: limits.sequences_max,
            step_tokens_max: limits.step_tokens_max,
            gap: limits.gap,
        };
        Self {
            scheduler: Scheduler::new(schedule, engine.blocks()),
            engine,
            clock,
            counters,
            commands,
            masks: MaskThread::default(),
            texts: BTreeMap::new(),
            requests_total: 0,
            embeddings: VecDeque::new(),
        }
    }

    /// Runs until all handles are dropped and all work is finished.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.step();
        }
    }

    /// Drops abandoned requests, and computes one step of each kind.
    ///
    /// # Panics
    /// If an invariant is violated that answers rely on: the process ends and its supervisor restarts it.
    fn step(&mut self) {
        self.drop_abandoned();
        if !self.embeddings.is_empty() {
            self.step_embeddings();
        }
        if !self.scheduler.is_idle() {
            self.step_generations();
        }
        self.counters.cache_tokens_used.store(self.scheduler.tokens_used() as u64, Ordering::Relaxed);
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
        self.scheduler.is_idle() && self.embeddings.is_empty()
    }

    fn queue(&mut self, command: BatcherCommand) {
        match command {
            BatcherCommand::Generate(mut job) => {
                let text = GeneratedText::new(&mut job);
                self.queue_generation(ResumedGeneration { job: *job, drawn: Vec::new(), text });
            }
            BatcherCommand::Resume(resumed) => self.queue_generation(*resumed),
            BatcherCommand::Embed(job) => self.embeddings.push_back(job),
        }
    }

    fn queue_generation(&mut self, resumed: ResumedGeneration) {
        let ResumedGeneration { job, drawn, text } = resumed;
        self.requests_total += 1;
        let id = SequenceId(self.requests_total);
        let other = self.texts.insert(id, text);
        debug_assert!(other.is_none(), "each generation has an id of its own");
        let QueuedGeneration { prompt, options, sampling, logits: rules, caller, .. } = job;
        let Caller { tenant, priority } = caller;
        let logprobs = options.logprobs;
        let request = SequenceRequest { prompt, drawn, sampling, rules, logprobs, priority, tenant };
        self.scheduler.submit(id, request);
    }

    fn drop_abandoned(&mut self) {
        let counters = &self.counters;
        self.embeddings.retain(|job| {
            let abandoned = job.is_abandoned();
            if abandoned {
                add(&counters.cancelled_total, 1);
                leave(&counters.waiting);
            }
            !abandoned
        });
        let abandoned: Vec<SequenceId> =
            self.texts.iter().filter(|(_, text)| text.is_abandoned()).map(|(id, _)| *id).collect();
        for id in abandoned {
            add(&self.counters.cancelled_total, 1);
            self.remove(id);
        }
    }

    /// Removes a generation and its count in a level. Its end is counted before.
    fn remove(&mut self, id: SequenceId) -> GeneratedText {
        let is_begun = self.scheduler.remove(id).expect("the scheduler has each generation");
        leave(if is_begun { &self.counters.running } else { &self.counters.waiting });
        self.texts.remove(&id).expect("each generation has a text")
    }

    /// Computes the step that the scheduler plans.
    fn step_generations(&mut self) {
        let plan = self.scheduler.plan();
        self.count_plan(&plan);
        let chunks: Vec<SequenceChunk<'_>> =
            plan.chunks.iter().map(|chunk| self.scheduler.chunk(chunk)).collect();
        let drawn = chunks.iter().filter_map(|chunk| chunk.draw?.rules?.grammar());
        self.masks.prepare(drawn);
        let begun = (self.clock)();
        let outcome = self.engine.step(&chunks);
        let elapsed = (self.clock)().saturating_sub(begun);
        match outcome {
            Ok(drawn) => {
                self.scheduler.computed(&plan, elapsed);
                self.deliver(&plan, drawn);
            }
            Err(error) => self.fail_all(&BatchError::failed(&error)),
        }
    }

    fn count_plan(&self, plan: &StepPlan) {
        let counters = &self.counters;
        add(&counters.steps_total, 1);
        add(&counters.shared_tokens_total, plan.shared_tokens);
        add(&counters.preemptions_total, plan.preempted);
        // A request is counted in its next stage before it leaves the previous one.
        add(&counters.running, plan.begun);
        (0..plan.begun).for_each(|_| leave(&counters.waiting));
    }

    fn deliver(&mut self, plan: &StepPlan, drawn: Vec<Option<Drawn>>) {
        let drawing: Vec<SequenceId> =
            plan.chunks.iter().filter(|chunk| chunk.draws).map(|chunk| chunk.id).collect();
        assert_eq!(drawn.len(), drawing.len(), "one token for each chunk that draws one");
        let frontend = Arc::clone(self.engine.frontend());
        for (id, drawn) in drawing.into_iter().zip(drawn) {
            let text = self.texts.get_mut(&id).expect("each generation has a text");
            let Some(drawn) = drawn else {
                text.fail(self.scheduler.grammar_failure(id).map_or_else(not_a_number, outside_grammar));
                add(&self.counters.failed_total, 1);
                self.remove(id);
                continue;
            };
            if self.scheduler.accept(id, drawn.token) {
                add(&self.counters.prompt_tokens_total, text.prompt_tokens());
            }
            add(&self.counters.generation_tokens_total, 1);
            if text.accept(&frontend, drawn) {
                add(&self.counters.finished_total, 1);
                self.remove(id);
            }
        }
    }

    fn fail_all(&mut self, error: &BatchError) {
        tracing::warn!(code = %error.code(), "engine step failed: {error}");
        for id in self.scheduler.running_ids() {
            add(&self.counters.failed_total, 1);
            self.remove(id).fail(error.clone());
        }
        debug_assert_eq!(self.scheduler.tokens_used(), 0, "those that wait have no blocks");
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
        assert_eq!(
            batch.iter().map(|pair| pair.tokens.len()).sum::<usize>(),
            tokens,
            "its tokens are counted"
        );
        self.counters.running.store(shares.len() as u64, Ordering::Relaxed);
        add(&self.counters.steps_total, 1);
        let inputs = batch.len();
        let outcome = self.compute_batch(batch);
        self.counters.running.store(0, Ordering::Relaxed);
        match outcome {
            Ok(vectors) => {
                assert_eq!(vectors.len(), inputs, "one vector for each text");
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

    /// Computes the vectors of texts, or the scores of pairs as vectors of one number.
    fn compute_batch(&mut self, batch: Vec<TokenPair>) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.engine.frontend().operation() == Operation::Rerank {
            let scores = self.engine.score(&batch)?;
            return Ok(scores.into_iter().map(|score| vec![score]).collect());
        }
        let texts: Vec<Vec<u32>> = batch.into_iter().map(|pair| pair.tokens).collect();
        self.engine.embed(&texts)
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
        debug_assert!(
            !self.embeddings.iter().any(EmbeddingTask::is_complete),
            "they end in order of arrival"
        );
    }
}

/// Builds the failure of a request whose grammar lets no token follow.
fn outside_grammar(reason: String) -> BatchError {
    BatchError::Failed {
        code: code::GRAMMAR_FAILED,
        message: format!("the answer left its grammar: {reason}"),
    }
}

/// Builds the failure of a request whose result has a NaN: an answer with it would be null or noise, yet look
/// valid.
fn not_a_number() -> BatchError {
    let message =
        "the model computed a value that is not a number: its weights or its input are out of range";
    BatchError::Failed { code: code::ENGINE_FAILED, message: message.to_owned() }
}
