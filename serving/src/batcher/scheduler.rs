//! The pure half of the batcher: which requests run, which blocks of the KV cache they have, and which tokens
//! the next step computes. It knows no engine, channel, text or clock; measured times are arguments.
//!
//! Blocks are taken as a sequence grows. Where none is left, the last sequence in order gives up its blocks,
//! waits again and is computed again: its tokens stay, and a drawn token depends on its position alone, so no
//! answer changes by it.
//!
//! Order is by priority, then by arrival. A request that does not fit waits, and later ones that fit pass it,
//! but at most [`PASSED_MAX`] of them: then it is due, precedes every other request, and runs next.

mod invariants;
#[cfg(test)]
mod tests;

use super::blocks::{BlockPool, PrefixNumber};
use super::pace::Pace;
use super::{Priority, Tenant};
use crate::engine::logits::LogitState;
use crate::engine::{BLOCK_TOKENS, BlockId, Draw, SequenceChunk};
use kernels::sampling::Sampling;
use std::time::Duration;

/// Requests that may pass a waiting one: a quarter of a full batch, so that a large request waits for its
/// place and not for a quiet hour.
pub(super) const PASSED_MAX: u32 = 16;

/// Number of a sequence, in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SequenceId(pub(super) u64);

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScheduleLimits {
    pub(super) sequences_max: usize,
    pub(super) step_tokens_max: usize,
    /// Target between two tokens of a generation.
    pub(super) gap: Duration,
}

/// A request to generate.
#[derive(Debug, Clone)]
pub(super) struct SequenceRequest {
    pub(super) prompt: Vec<u32>,
    /// Tokens of its answer that another worker drew.
    pub(super) drawn: Vec<u32>,
    pub(super) sampling: Sampling,
    /// Rules that change its logits, if any, after the tokens drawn.
    pub(super) rules: Option<LogitState>,
    /// Alternatives to report with the log-probability of each token, if any.
    pub(super) logprobs: Option<usize>,
    pub(super) priority: Priority,
    /// Party whose published prefixes it may use and extend.
    pub(super) tenant: Option<Tenant>,
}

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    id: SequenceId,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens whose keys and values are in the blocks.
    computed: usize,
    blocks: Vec<BlockId>,
    /// Leading blocks that are published, and the number of the last.
    published: (usize, PrefixNumber),
    /// Later requests that were started while it waited.
    passed: u32,
    /// Whether it has run, even if it waits again.
    is_begun: bool,
    sampling: Sampling,
    rules: Option<LogitState>,
    logprobs: Option<usize>,
    priority: Priority,
    tenant: Option<Tenant>,
}

/// Tokens of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlannedChunk {
    pub(super) id: SequenceId,
    /// Number of tokens.
    pub(super) count: usize,
    /// Whether a token is drawn after them.
    pub(super) draws: bool,
}

/// One step.
#[derive(Debug, Default)]
pub(super) struct StepPlan {
    pub(super) chunks: Vec<PlannedChunk>,
    /// Number of requests that run for the first time, and of those that wait again.
    pub(super) begun: usize,
    pub(super) preempted: usize,
    /// Prompt tokens found in the cache.
    pub(super) shared_tokens: usize,
    /// Tokens of prompts, and of what is computed again after a preemption.
    prompt_tokens: usize,
}

/// All requests of one engine.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: ScheduleLimits,
    pool: BlockPool,
    pace: Pace,
    /// By arrival.
    waiting: Vec<Sequence>,
    /// By order of service.
    running: Vec<Sequence>,
    /// Whether a waiting request may fit that did not before.
    has_changed: bool,
}

impl Sequence {
    /// Returns the order of service: what compares less precedes.
    fn order(&self) -> (bool, Priority, SequenceId) {
        (!self.is_due(), self.priority, self.id)
    }

    fn is_due(&self) -> bool {
        self.passed >= PASSED_MAX
    }

    /// Reports whether the next step computes only the token drawn last.
    fn is_generating(&self) -> bool {
        self.tokens.len() > self.prompt && self.computed + 1 == self.tokens.len()
    }

    /// Reports whether a request of this priority may take its place.
    fn is_yielding_to(&self, priority: Priority) -> bool {
        self.priority > priority && !self.is_due()
    }

    /// Returns the number of blocks that its tokens still need.
    fn missing_blocks(&self) -> usize {
        blocks_of(self.tokens.len()).saturating_sub(self.blocks.len())
    }
}

/// Returns the number of blocks that hold this many positions.
pub(super) fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

impl Scheduler {
    /// Creates a scheduler of an engine with this many blocks.
    pub(super) fn new(limits: ScheduleLimits, blocks: usize) -> Self {
        assert!(limits.sequences_max > 0 && limits.step_tokens_max > 0, "a step advances a generation");
        Self {
            limits,
            pool: BlockPool::new(blocks),
            pace: Pace::new(limits.gap),
            waiting: Vec::new(),
            running: Vec::new(),
            has_changed: false,
        }
    }

    /// Queues a request. Ids ascend, and the whole cache holds the request's longest form.
    pub(super) fn submit(&mut self, id: SequenceId, request: SequenceRequest) {
        assert!(!request.prompt.is_empty(), "checked when the request was queued");
        let length = request.prompt.len() + request.drawn.len();
        assert!(blocks_of(length + 1) <= self.pool.total(), "checked when it was queued");
        let SequenceRequest { prompt, drawn, sampling, rules, logprobs, priority, tenant } = request;
        let (prompt, tokens) = (prompt.len(), [prompt, drawn].concat());
        assert!(self.waiting.iter().chain(&self.running).all(|other| other.id < id), "numbered by arrival");
        self.waiting.push(Sequence {
            id,
            prompt,
            tokens,
            computed: 0,
            blocks: Vec::new(),
            published: (0, PrefixNumber::default()),
            passed: 0,
            is_begun: false,
            sampling,
            rules,
            logprobs,
            priority,
            tenant,
        });
        self.has_changed = true;
    }

    /// Removes a request, finished or not, and releases its blocks. Returns whether it has run; `None` for a
    /// request that is not here.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<bool> {
        self.has_changed = true;
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            let sequence = self.waiting.remove(index);
            debug_assert!(sequence.blocks.is_empty(), "a waiting request has no blocks to release");
            return Some(sequence.is_begun);
        }
        let index = self.running.iter().position(|sequence| sequence.id == id)?;
        let mut sequence = self.running.remove(index);
        debug_assert!(sequence.is_begun, "a running request has begun");
        self.release(&mut sequence);
        Some(true)
    }

    /// Returns the ids of the running requests.
    pub(super) fn running_ids(&self) -> Vec<SequenceId> {
        self.running.iter().map(|sequence| sequence.id).collect()
    }

    /// Returns the reason for which the grammar of a running sequence lets no token follow, if there is one.
    pub(super) fn grammar_failure(&self, id: SequenceId) -> Option<String> {
        self.find(id).rules.as_ref()?.grammar()?.failure()
    }

    /// Returns the number of requests that have run, and of those that have not.
    #[cfg(test)]
    pub(super) fn levels(&self) -> (usize, usize) {
        let begun = self.waiting.iter().filter(|sequence| sequence.is_begun).count();
        (self.running.len() + begun, self.waiting.len() - begun)
    }

    /// Reports whether no request is here.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Returns the positions of blocks that sequences have.
    pub(super) fn tokens_used(&self) -> usize {
        (self.pool.total() - self.pool.available()) * BLOCK_TOKENS
    }

    /// Starts what fits, and chooses the tokens of the next step: one for each generation, then chunks of
    /// prompts within the time that the generations leave. Empty only if no request is here.
    pub(super) fn plan(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        self.start_what_fits(&mut plan);
        let mut left = self.limits.step_tokens_max;
        self.plan_generations(&mut left, &mut plan);
        let generating = plan.chunks.len();
        if generating > 0 {
            left = left.min(self.pace.budget());
        }
        self.plan_prompts(left, &mut plan);
        plan.prompt_tokens = plan.chunks[generating..].iter().map(|chunk| chunk.count).sum();
        assert_eq!(plan.chunks.is_empty(), self.is_idle(), "each step advances a request");
        debug_assert!(self.running.len() <= self.limits.sequences_max, "a step has a bounded batch");
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.count).sum();
        debug_assert!(tokens <= self.limits.step_tokens_max, "a step has a bounded number of tokens");
        plan
    }

    /// Returns a planned chunk's input to the engine.
    pub(super) fn chunk(&self, planned: &PlannedChunk) -> SequenceChunk<'_> {
        let sequence = self.find(planned.id);
        let written = &sequence.blocks[sequence.computed / BLOCK_TOKENS..];
        let is_own = |block: &BlockId| self.pool.is_exclusive(*block);
        assert!(!written.is_empty() && written.iter().all(is_own), "a sequence writes blocks of its own");
        let end = sequence.computed + planned.count;
        debug_assert!(end <= sequence.blocks.len() * BLOCK_TOKENS, "each token has a position in a block");
        debug_assert_eq!(planned.draws, end == sequence.tokens.len(), "a token follows the last one alone");
        SequenceChunk {
            blocks: &sequence.blocks,
            position: sequence.computed,
            tokens: &sequence.tokens[sequence.computed..sequence.computed + planned.count],
            draw: planned.draws.then_some(Draw {
                sampling: sequence.sampling,
                rules: sequence.rules.as_ref(),
                logprobs: sequence.logprobs,
                prompt: sequence.prompt,
            }),
        }
    }

    /// Records that the engine has computed a plan in this time.
    pub(super) fn computed(&mut self, plan: &StepPlan, elapsed: Duration) {
        for chunk in &plan.chunks {
            let sequence = self.running.iter_mut().find(|sequence| sequence.id == chunk.id);
            let sequence = sequence.expect("nothing is removed between a plan and its step");
            sequence.computed += chunk.count;
            assert!(sequence.computed <= sequence.tokens.len(), "only tokens that exist are computed");
        }
        let generating = plan.chunks.iter().map(|chunk| chunk.count).sum::<usize>() > plan.prompt_tokens;
        self.pace.measured(plan.prompt_tokens, generating, elapsed);
    }

    fn find(&self, id: SequenceId) -> &Sequence {
        let found = self.running.iter().find(|sequence| sequence.id == id);
        found.expect("nothing is removed between a plan and its step")
    }

    /// Appends the token drawn for a running sequence, and publishes the blocks that it has filled. A token
    /// proves that no NaN is in them. Returns whether it is the first after the prompt.
    pub(super) fn accept(&mut self, id: SequenceId, token: u32) -> bool {
        let sequence = self.running.iter_mut().find(|sequence| sequence.id == id);
        let sequence = sequence.expect("a token is drawn for a running sequence");
        assert_eq!(sequence.computed, sequence.tokens.len(), "a token follows the last one");
        sequence.tokens.push(token);
        if let Some(rules) = &mut sequence.rules {
            rules.push(token);
        }
        if let Some(tenant) = &sequence.tenant {
            let full = sequence.computed / BLOCK_TOKENS;
            let (first, mut number) = sequence.published;
            for index in first..full {
                let tokens = &sequence.tokens[index * BLOCK_TOKENS..][..BLOCK_TOKENS];
                number = self.pool.publish(sequence.blocks[index], tenant, number, tokens);
            }
            sequence.published = (full.max(first), number);
        }
        sequence.tokens.len() == sequence.prompt + 1
    }

    /// Releases all blocks of a sequence, the last first: of a prefix, the tail is evicted first.
    fn release(&mut self, sequence: &mut Sequence) {
        debug_assert!(
            sequence.computed <= sequence.blocks.len() * BLOCK_TOKENS,
            "what is computed has a block"
        );
        sequence.blocks.drain(..).rev().for_each(|block| self.pool.release(block));
        sequence.published = (0, PrefixNumber::default());
        sequence.computed = 0;
    }

    /// Returns running sequence `index` to those that wait.
    fn preempt(&mut self, index: usize, plan: &mut StepPlan) {
        let mut sequence = self.running.remove(index);
        debug_assert!(plan.chunks.iter().all(|chunk| chunk.id != sequence.id), "what is planned is computed");
        self.release(&mut sequence);
        let place = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(place, sequence);
        plan.preempted += 1;
        self.has_changed = true;
    }

    /// Starts waiting requests in order of service while they fit. One that is due holds all others back.
    fn start_what_fits(&mut self, plan: &mut StepPlan) {
        if !std::mem::take(&mut self.has_changed) {
            return;
        }
        while let Some(id) = self.next_to_start(plan) {
            let place = self.waiting.iter().position(|sequence| sequence.id == id);
            let mut sequence = self.waiting.remove(place.expect("it was just found"));
            for earlier in self.waiting.iter_mut().filter(|other| other.id < id) {
                earlier.passed += 1;
            }
            debug_assert!(sequence.blocks.is_empty() && sequence.computed == 0, "it starts without blocks");
            if let Some(tenant) = &sequence.tenant {
                let shared = self.pool.find(tenant, &sequence.tokens);
                shared.blocks.iter().for_each(|block| self.pool.share(*block));
                sequence.computed = shared.blocks.len() * BLOCK_TOKENS;
                sequence.published = (shared.blocks.len(), shared.number);
                sequence.blocks = shared.blocks;
                plan.shared_tokens += sequence.computed.min(sequence.prompt);
            }
            debug_assert!(sequence.computed < sequence.tokens.len(), "a token is left to compute");
            let is_begun = std::mem::replace(&mut sequence.is_begun, true);
            let place = self.running.partition_point(|other| other.order() < sequence.order());
            self.running.insert(place, sequence);
            plan.begun += usize::from(!is_begun);
        }
        // A request that was preempted on the way did not fit beside the one that took its place.
        self.has_changed = false;
    }

    /// Returns the request to start next, after making room for it where its priority allows that.
    fn next_to_start(&mut self, plan: &mut StepPlan) -> Option<SequenceId> {
        let mut order: Vec<(bool, Priority, SequenceId)> = self.waiting.iter().map(Sequence::order).collect();
        order.sort_unstable();
        for (is_patient, priority, id) in order {
            if self.fits(id) {
                return Some(id);
            }
            if self.fits_after_preemption(id, priority) && self.make_room(id, priority, plan) {
                return Some(id);
            }
            if !is_patient {
                return None;
            }
        }
        None
    }

    /// Reports whether a waiting request fits beside the running ones and what they still need for the tokens
    /// that they have.
    fn fits(&self, id: SequenceId) -> bool {
        self.running.len() < self.limits.sequences_max && self.fits_into(id, self.room())
    }

    /// Reports whether a waiting request would fit if all running ones of a lower priority gave way.
    fn fits_after_preemption(&self, id: SequenceId, priority: Priority) -> bool {
        let yielding = self.running.iter().filter(|other| other.is_yielding_to(priority));
        let (count, blocks) = yielding.fold((0, 0), |(count, blocks), other| {
            let exclusive = other.blocks.iter().filter(|block| self.pool.is_exclusive(**block)).count();
            (count + 1, blocks + exclusive + other.missing_blocks())
        });
        count > 0
            && self.running.len() - count < self.limits.sequences_max
            && self.fits_into(id, self.room().saturating_add_unsigned(blocks))
    }

    /// Preempts running requests of a lower priority, the last first, until a waiting one fits. Returns
    /// whether it does.
    fn make_room(&mut self, id: SequenceId, priority: Priority, plan: &mut StepPlan) -> bool {
        while !self.fits(id) {
            if !self.running.last().is_some_and(|last| last.is_yielding_to(priority)) {
                return false;
            }
            self.preempt(self.running.len() - 1, plan);
        }
        true
    }

    /// Returns the blocks that are neither held nor needed by running sequences, less a reserve for their
    /// growth; negative where they need more than there are.
    fn room(&self) -> isize {
        let missing: usize = self.running.iter().map(Sequence::missing_blocks).sum();
        let reserve = if self.running.is_empty() { 0 } else { (self.pool.total() / 100).max(1) };
        self.pool.available() as isize - (missing + reserve) as isize
    }

    fn fits_into(&self, id: SequenceId, room: isize) -> bool {
        let sequence = self.waiting.iter().find(|sequence| sequence.id == id).expect("it waits");
        // One position more: that of the token which it draws first.
        let needed = blocks_of(sequence.tokens.len() + 1) as isize;
        if needed <= room {
            return true;
        }
        let Some(tenant) = &sequence.tenant else { return false };
        let shared = self.pool.find(tenant, &sequence.tokens).blocks;
        // An idle block is available until it is shared.
        let in_use = shared.iter().filter(|block| !self.pool.is_idle(**block)).count();
        needed - in_use as isize <= room
    }

    /// Adds the generations' tokens to a plan, in order of service. A generation for which no later one can
    /// give way gives way itself.
    fn plan_generations(&mut self, left: &mut usize, plan: &mut StepPlan) {
        let mut index = 0;
        while index < self.running.len() && *left > 0 {
            if !self.running[index].is_generating() {
                index += 1;
            } else if self.grow(index, 1, plan) == 1 {
                self.add_chunk(index, 1, plan);
                *left -= 1;
                index += 1;
            } else {
                self.preempt(index, plan);
            }
        }
    }

    /// Adds chunks of prompts to a plan, in order of service.
    fn plan_prompts(&mut self, mut left: usize, plan: &mut StepPlan) {
        let mut index = 0;
        while index < self.running.len() && left > 0 {
            let sequence = &self.running[index];
            if !sequence.is_generating() {
                let wanted = (sequence.tokens.len() - sequence.computed).min(left);
                let count = self.grow(index, wanted, plan);
                if count > 0 {
                    self.add_chunk(index, count, plan);
                    left -= count;
                }
            }
            index += 1;
        }
    }

    fn add_chunk(&mut self, index: usize, count: usize, plan: &mut StepPlan) {
        let sequence = &self.running[index];
        let draws = sequence.computed + count == sequence.tokens.len();
        debug_assert!(count > 0, "a chunk has a token");
        debug_assert!(plan.chunks.iter().all(|chunk| chunk.id != sequence.id), "one chunk for each sequence");
        plan.chunks.push(PlannedChunk { id: sequence.id, count, draws });
    }

    /// Takes blocks for `count` more positions of a running sequence. Later sequences that are not in the
    /// plan yet give theirs up for it. Returns the number of positions that there is room for.
    fn grow(&mut self, index: usize, count: usize, plan: &mut StepPlan) -> usize {
        let end = self.running[index].computed + count;
        debug_assert!(end <= self.running[index].tokens.len(), "blocks are taken for tokens that exist");
        while self.running[index].blocks.len() < blocks_of(end) {
            if let Some(block) = self.pool.take() {
                self.running[index].blocks.push(block);
                continue;
            }
            let is_planned = |id: SequenceId| plan.chunks.iter().any(|chunk| chunk.id == id);
            let last = self.running.iter().rposition(|sequence| !is_planned(sequence.id));
            match last.filter(|last| *last > index) {
                Some(last) => self.preempt(last, plan),
                None => break,
            }
        }
        let sequence = &self.running[index];
        count.min(sequence.blocks.len() * BLOCK_TOKENS - sequence.computed)
    }
}
