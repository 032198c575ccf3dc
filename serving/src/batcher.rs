//! Continuous batching: one thread that owns an engine and decides what each step computes.
//!
//! Requests come through a bounded queue and leave as events on channels. Every step advances all running
//! generations by one token. Prompts are read in chunks, as large as the time allows that the generations
//! leave ([`pace`]). The [`scheduler`] decides, without knowing engine or clock, which requests run and which
//! blocks of the KV cache they have ([`blocks`]); the [`worker`] owns the engine, computes and measures.
//!
//! Texts are tokenized beforehand, on separate threads ([`tokenizers`]).
//!
//! There is no cancel call. A client that drops its receiver is noticed before the next step.

mod blocks;
mod counters;
mod embedding;
mod generation;
mod masks;
mod pace;
mod rerank;
mod scheduler;
mod tokenizers;
mod worker;

use crate::engine::chat::Conversation;
use crate::engine::grammar::{AnswerGrammar, CompiledGrammar, GrammarError};
use crate::engine::logits::{BarredTokens, LogitRules, LogitState};
use crate::engine::reasoning::ReasoningStart;
use crate::engine::tools::CallParser;
use crate::engine::{BLOCK_TOKENS, Engine, EngineError, Operation, TextFrontend};
use counters::Counters;
use kernels::sampling::Sampling;
use protocol::ErrorCode;
use protocol::error_code as code;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use tokenizers::Tokenizers;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

pub use crate::engine::stop::StopConditions;
pub use counters::BatcherSnapshot;
pub use generation::{AnswerToken, Event, Finish, FinishReason, TokenPiece};
pub use rerank::{Reranking, Scores};

/// Limits of a batcher.
#[derive(Debug, Clone, Copy)]
pub struct BatcherLimits {
    /// Maximum generations in one step.
    pub sequences_max: usize,
    /// Maximum waiting requests; further ones are rejected immediately.
    pub waiting_max: usize,
    /// Maximum tokens computed in one step.
    pub step_tokens_max: usize,
    /// Target between two tokens of a generation while prompts are read beside it. Where generating alone
    /// takes that long, prompts add half of it.
    pub gap: Duration,
    /// Maximum texts in one embedding request, and documents in one to rerank.
    pub inputs_max: usize,
    /// Maximum stop strings of a request.
    pub stops_max: usize,
}

impl Default for BatcherLimits {
    /// Returns 64 generations, 256 waiting, 512 tokens a step and 100 ms between tokens; 2048 texts and 4
    /// stop strings, as in OpenAI's API.
    fn default() -> Self {
        Self {
            sequences_max: 64,
            waiting_max: 256,
            step_tokens_max: 512,
            gap: Duration::from_millis(100),
            inputs_max: 2048,
            stops_max: 4,
        }
    }
}

/// Rejection or failure of a request, with a stable error code for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too many requests wait already; retry later or on another worker.
    #[error("{waiting} requests wait already")]
    Overloaded {
        /// Number of waiting requests.
        waiting: usize,
    },
    /// The worker finishes its current requests and admits no new one.
    #[error("worker is draining")]
    Draining,
    /// The request is invalid.
    #[error("{message}")]
    Refused {
        /// Stable error code.
        code: ErrorCode,
        /// Description of the fault, for the client.
        message: String,
    },
    /// The engine failed during the request.
    #[error("{message}")]
    Failed {
        /// Stable error code.
        code: ErrorCode,
        /// The whole chain of causes.
        message: String,
    },
}

impl BatchError {
    /// Returns the stable code that `quorate explain` documents.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Overloaded { .. } => code::WORKER_OVERLOADED,
            Self::Draining => code::WORKER_DRAINING,
            Self::Refused { code, .. } | Self::Failed { code, .. } => *code,
        }
    }

    fn refused(error: &EngineError) -> Self {
        Self::Refused { code: error.code(), message: protocol::error_chain(error) }
    }

    fn unsupported(error: &GrammarError) -> Self {
        Self::Refused { code: error.code(), message: error.to_string() }
    }

    fn failed(error: &EngineError) -> Self {
        Self::Failed { code: error.code(), message: protocol::error_chain(error) }
    }
}

/// Prompt of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Raw text, with the tokens that the tokenizer puts around an input.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A conversation, rendered with the model's chat template.
    Chat(Conversation),
    /// A prompt that was tokenized before, for several generations.
    Encoded(EncodedPrompt),
}

/// A tokenized prompt; see [`Batcher::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    tokens: Arc<[u32]>,
    /// Whether the text of an answer continues that of the prompt.
    continues: bool,
    /// Where the answer begins, of a model that reasons.
    reasoning: Option<ReasoningStart>,
}

impl EncodedPrompt {
    /// Returns the tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// Party whose requests may share what the KV cache holds: the holder of an API key and its successor. Others
/// never do, so that no answer and no time to first token depends on what they asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// Creates a tenant of this name; equal names share.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

/// Rank of a request. The lesser rank precedes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// In order of arrival.
    #[default]
    Standard,
    /// After all of standard priority, for which it gives up its place in the cache.
    Flexible,
}

/// Origin and rank of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// Party whose cached prefixes it shares; `None` shares with no request.
    pub tenant: Option<Tenant>,
    pub priority: Priority,
}

/// Request for one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Prompt to continue.
    pub prompt: Prompt,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Rules that change the logits before a token is drawn.
    pub rules: LogitRules,
    /// Maximum tokens to generate; `None` uses the rest of the context, or of the KV cache where that is
    /// smaller.
    pub tokens_max: Option<usize>,
    pub stops: StopConditions,
    /// Alternatives to report with the log-probability of each token; `None` reports none of both.
    pub logprobs: Option<usize>,
    /// Grammar that the answer must follow; see [`Batcher::compile`].
    pub grammar: Option<CompiledGrammar>,
    /// Functions that the answer may call, by name; empty where its text is passed on as it is.
    pub functions: Arc<[String]>,
    pub caller: Caller,
}

/// A running generation. Dropping it stops the work.
#[derive(Debug)]
pub struct Generation {
    pub prompt_tokens: usize,
    /// Text as it is generated, then one [`Event::Finished`] or [`Event::Failed`].
    pub events: UnboundedReceiver<Event>,
}

/// Input of one embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// Raw text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Embedding vectors and their token count.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One vector per input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
}

/// Handle to the thread that owns an engine. Clones share it; the thread ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct Batcher {
    frontend: Arc<TextFrontend>,
    limits: BatcherLimits,
    counters: Arc<Counters>,
    tokenizers: Arc<Tokenizers>,
    commands: mpsc::Sender<BatcherCommand>,
    /// Positions of the whole KV cache.
    cache_tokens: usize,
}

/// An embedding request that has been tokenized and queued. Dropping it stops the work.
#[derive(Debug)]
pub struct Embedding {
    prompt_tokens: usize,
    answer: oneshot::Receiver<Result<Vec<Vec<f32>>, BatchError>>,
}

impl Embedding {
    /// Waits for the vectors.
    ///
    /// # Errors
    /// [`BatchError::Failed`]: the engine failed, or its thread has ended.
    pub async fn computed(self) -> Result<Embeddings, BatchError> {
        let vectors = self.answer.await.map_err(|_| stopped())??;
        Ok(Embeddings { vectors, prompt_tokens: self.prompt_tokens })
    }
}

/// A slot in the queue, released when dropped before the thread has the request.
struct QueueSlot<'c>(&'c Counters);

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        counters::leave(&self.0.waiting);
    }
}

/// Command to the engine's thread.
enum BatcherCommand {
    Generate(Box<generation::QueuedGeneration>),
    Resume(Box<generation::ResumedGeneration>),
    Embed(embedding::EmbeddingTask),
}

impl Batcher {
    /// Starts the engine's thread and the tokenizer threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    ///
    /// # Panics
    /// If `limits` allow no generation.
    pub fn start(engine: Box<dyn Engine>, limits: BatcherLimits) -> std::io::Result<Self> {
        let frontend = Arc::clone(engine.frontend());
        let counters = Arc::new(Counters::default());
        let cache_tokens = engine.blocks() * BLOCK_TOKENS;
        counters.cache_tokens_total.store(cache_tokens as u64, Ordering::Relaxed);
        let (commands, received) = mpsc::channel();
        let worker = worker::Worker::new(engine, &limits, worker::monotonic, Arc::clone(&counters), received);
        std::thread::Builder::new().name("batcher".to_owned()).spawn(move || worker.run())?;
        let tokenizers = Arc::new(Tokenizers::start()?);
        Ok(Self { frontend, limits, counters, tokenizers, commands, cache_tokens })
    }

    /// Returns the text side of the model.
    #[must_use]
    pub fn frontend(&self) -> &Arc<TextFrontend> {
        &self.frontend
    }

    /// Returns the current counters, for metrics.
    #[must_use]
    pub fn snapshot(&self) -> BatcherSnapshot {
        self.counters.snapshot()
    }

    /// Stops admission; running and waiting requests are finished.
    pub fn drain(&self) {
        self.counters.draining.store(true, Ordering::Release);
    }

    /// Reports whether no request runs or waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let now = self.counters.snapshot();
        now.requests_running == 0 && now.requests_waiting == 0
    }

    /// Tokenizes and queues a generation.
    ///
    /// # Errors
    /// [`BatchError`]: the queue is full, the worker drains, or the request is invalid for this model.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, BatchError> {
        let slot = self.begin_generation(&request)?;
        let (job, events) = self.prepare(request).await?;
        let prompt_tokens = job.prompt.len();
        self.submit(slot, BatcherCommand::Generate(Box::new(job)))?;
        Ok(Generation { prompt_tokens, events })
    }

    /// Tokenizes and queues a generation that reports each token by its id, and continues after those that
    /// another worker drew. Its events are those of an undisturbed generation that follow these tokens' text.
    ///
    /// # Errors
    /// As [`Self::generate`], and [`BatchError::Refused`] where the tokens are not of one answer to it.
    pub async fn resume(&self, request: GenerateRequest, drawn: Vec<u32>) -> Result<Generation, BatchError> {
        let slot = self.begin_generation(&request)?;
        let (job, events) = self.prepare(request).await?;
        let prompt_tokens = job.prompt.len();
        if drawn.len() > job.tokens_max {
            return Err(refuse(format!("{} drawn tokens, at most {}", drawn.len(), job.tokens_max)));
        }
        let frontend = self.frontend.clone();
        let bytes = size_of_val(drawn.as_slice());
        let replay = move |_: &dyn Fn() -> bool| -> Result<_, generation::ReplayError> {
            let mut job = job;
            let mut text = generation::GeneratedText::new(&mut job).reporting_tokens();
            let has_ended = text.replay(&frontend, &drawn)?;
            if let Some(logits) = &mut job.logits {
                logits.replay(&drawn).map_err(generation::ReplayError::OutsideGrammar)?;
            }
            Ok((generation::ResumedGeneration { job, drawn, text }, has_ended))
        };
        let replayed = self.tokenizers.run(bytes, replay).await.ok_or_else(stopped)?;
        let (resumed, has_ended) = replayed.map_err(|error| refuse(error.to_string()))?;
        debug_assert!(!resumed.job.prompt.is_empty(), "a prompt precedes the tokens");
        if !has_ended {
            self.submit(slot, BatcherCommand::Resume(Box::new(resumed)))?;
        }
        Ok(Generation { prompt_tokens, events })
    }

    /// Checks what needs no tokens, and takes a slot in the queue.
    fn begin_generation(&self, request: &GenerateRequest) -> Result<QueueSlot<'_>, BatchError> {
        self.expect_operation(Operation::Generate)?;
        if request.stops.strings.len() > self.limits.stops_max {
            return Err(refuse(format!("at most {} stop strings", self.limits.stops_max)));
        }
        let vocabulary = self.frontend.vocabulary();
        if let Some(unknown) = request.rules.bias.keys().find(|token| **token as usize >= vocabulary) {
            let message =
                format!("token {unknown} of `logit_bias` is not below the vocabulary of {vocabulary}");
            return Err(refuse(message));
        }
        if let Some(unknown) = request.stops.tokens.iter().find(|token| **token as usize >= vocabulary) {
            let message =
                format!("token {unknown} of `stop_token_ids` is not below the vocabulary of {vocabulary}");
            return Err(refuse(message));
        }
        if self.barred(&request.stops).tokens.len() >= vocabulary {
            return Err(refuse("`min_tokens` with these `stop_token_ids` leaves no token".to_owned()));
        }
        self.take_slot()
    }

    /// Returns the tokens that end no answer before its least length.
    fn barred(&self, stops: &StopConditions) -> BarredTokens {
        let count = stops.tokens_min;
        if count == 0 {
            return BarredTokens::default();
        }
        let end_tokens = if stops.ignores_end { &[] } else { self.frontend.end_tokens() };
        let mut tokens = [end_tokens, &stops.tokens].concat();
        // A configuration may name an end token that its vocabulary lacks.
        tokens.retain(|token| (*token as usize) < self.frontend.vocabulary());
        tokens.sort_unstable();
        tokens.dedup();
        BarredTokens { tokens, count }
    }

    /// Tokenizes a generation.
    async fn prepare(
        &self,
        request: GenerateRequest,
    ) -> Result<(generation::QueuedGeneration, UnboundedReceiver<Event>), BatchError> {
        let EncodedPrompt { tokens, continues, reasoning } = self.encode_prompt(request.prompt).await?;
        let prompt = tokens.to_vec();
        let logits = LogitState::new(
            request.rules,
            request.sampling.temperature,
            &prompt,
            self.barred(&request.stops),
            request.grammar.as_ref().map(CompiledGrammar::begin),
        );
        let calls = if request.functions.is_empty() { None } else { self.frontend.call_format() };
        let options = generation::AnswerOptions {
            continues_prompt: continues,
            reasoning,
            logprobs: request.logprobs,
            calls: calls.map(|format| CallParser::new(format, request.functions)),
        };
        let tokens_max = self.answer_tokens_max(prompt.len(), request.tokens_max)?;
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        let job = generation::QueuedGeneration {
            prompt,
            options,
            logits,
            tokens_max,
            sampling: request.sampling,
            stops: request.stops,
            caller: request.caller,
            sender,
        };
        Ok((job, events))
    }

    /// Returns the longest answer with its prompt, in tokens: the least of context and cache. It decides
    /// where an answer without `max_tokens` ends.
    #[must_use]
    pub fn sequence_tokens_max(&self) -> usize {
        self.frontend.context_tokens_max().min(self.cache_tokens)
    }

    /// Tokenizes a prompt, which counts as a waiting request until it is done.
    ///
    /// # Errors
    /// [`BatchError`]: the queue is full, the worker drains, or the prompt is invalid for this model.
    pub async fn encode(&self, prompt: Prompt) -> Result<EncodedPrompt, BatchError> {
        self.expect_operation(Operation::Generate)?;
        let _slot = self.take_slot()?;
        self.encode_prompt(prompt).await
    }

    /// Returns the text of tokens, with that of special tokens.
    ///
    /// # Errors
    /// [`BatchError`]: the worker drains, or the tokens are invalid for this model.
    pub async fn decode(&self, tokens: Vec<u32>) -> Result<String, BatchError> {
        self.expect_operation(Operation::Generate)?;
        let _slot = self.take_slot()?;
        if tokens.is_empty() {
            return Ok(String::new());
        }
        self.check_tokens(&tokens)?;
        let bytes = size_of_val(tokens.as_slice());
        self.tokenize(bytes, move |frontend, _| Ok(frontend.decode_whole(&tokens))).await
    }

    /// Compiles the grammar of an answer to this prompt, which counts as a waiting request until it is done.
    ///
    /// # Errors
    /// [`BatchError`]: the queue is full, the worker drains, or the grammar cannot be enforced.
    pub async fn compile(
        &self,
        grammar: AnswerGrammar,
        prompt: &EncodedPrompt,
    ) -> Result<CompiledGrammar, BatchError> {
        self.expect_operation(Operation::Generate)?;
        let _slot = self.take_slot()?;
        let (frontend, start) = (self.frontend.clone(), prompt.reasoning);
        let compile = move |_: &dyn Fn() -> bool| frontend.grammars()?.compile(&grammar, start);
        let compiled = self.tokenizers.compile(compile).await.ok_or_else(stopped)?;
        compiled.map_err(|error| BatchError::unsupported(&error))
    }

    async fn encode_prompt(&self, prompt: Prompt) -> Result<EncodedPrompt, BatchError> {
        // An answer to a chat begins afresh; a completion continues the text of its prompt.
        let continues = !matches!(prompt, Prompt::Chat(_));
        let mut reasoning = None;
        let tokens = match prompt {
            Prompt::Encoded(prompt) => return Ok(prompt),
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => {
                self.tokenize(text.len(), move |frontend, _| frontend.encode_checked(&text, true)).await?
            }
            Prompt::Chat(conversation) => {
                let bytes = conversation.text_bytes();
                let encode = self.tokenize(bytes, move |frontend, _| frontend.encode_chat(&conversation));
                let prompt = encode.await?;
                reasoning = prompt.reasoning;
                prompt.tokens
            }
        };
        self.check_tokens(&tokens)?;
        Ok(EncodedPrompt { tokens: tokens.into(), continues, reasoning })
    }

    /// Tokenizes and queues texts to embed.
    ///
    /// # Errors
    /// [`BatchError`]: the queue is full, the worker drains, or an input is invalid for this model.
    pub async fn embed(&self, inputs: Vec<EmbedInput>) -> Result<Embedding, BatchError> {
        self.expect_operation(Operation::Embed)?;
        if inputs.is_empty() || inputs.len() > self.limits.inputs_max {
            let message = format!("{} inputs, expected 1 to {}", inputs.len(), self.limits.inputs_max);
            return Err(refuse(message));
        }
        let slot = self.take_slot()?;
        let count = inputs.len();
        let length = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => text.len(),
            EmbedInput::Tokens(_) => 0,
        };
        let bytes = inputs.iter().map(length).sum();
        let encode = move |frontend: &TextFrontend, is_abandoned: &dyn Fn() -> bool| {
            let mut sequences = Vec::with_capacity(inputs.len());
            for input in inputs {
                if is_abandoned() {
                    break;
                }
                sequences.push(match input {
                    EmbedInput::Text(text) => frontend.encode_document(&text)?,
                    EmbedInput::Tokens(tokens) => tokens,
                });
            }
            Ok(sequences)
        };
        let sequences = self.tokenize(bytes, encode).await?;
        debug_assert_eq!(sequences.len(), count, "a caller that waits gets every input tokenized");
        sequences.iter().try_for_each(|tokens| self.check_tokens(tokens))?;
        let prompt_tokens = sequences.iter().map(Vec::len).sum();
        let (reply, answer) = oneshot::channel();
        self.submit(slot, BatcherCommand::Embed(embedding::EmbeddingTask::new(sequences, reply)))?;
        Ok(Embedding { prompt_tokens, answer })
    }

    /// Runs `encode` over texts of this many bytes on a tokenizer thread.
    async fn tokenize<T: Send + 'static>(
        &self,
        bytes: usize,
        encode: impl FnOnce(&TextFrontend, &dyn Fn() -> bool) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, BatchError> {
        let frontend = self.frontend.clone();
        let tokens = self.tokenizers.run(bytes, move |is_abandoned| encode(&frontend, is_abandoned)).await;
        tokens.ok_or_else(stopped)?.map_err(|error| BatchError::refused(&error))
    }

    fn expect_operation(&self, wanted: Operation) -> Result<(), BatchError> {
        if self.frontend.operation() == wanted {
            return Ok(());
        }
        let operation = match wanted {
            Operation::Embed => "embed",
            Operation::Generate => "generate",
            Operation::Rerank => "rerank",
        };
        Err(BatchError::refused(&EngineError::OperationUnsupported { operation }))
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), BatchError> {
        if tokens.is_empty() {
            return Err(refuse("the input has no tokens".to_owned()));
        }
        let vocabulary = self.frontend.vocabulary();
        if let Some(unknown) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let message = format!("token {unknown} is not below the vocabulary of {vocabulary}");
            return Err(refuse(message));
        }
        let context_tokens_max = self.frontend.context_tokens_max();
        if tokens.len() > context_tokens_max {
            let tokens = tokens.len();
            return Err(BatchError::refused(&EngineError::ContextExceeded { tokens, context_tokens_max }));
        }
        Ok(())
    }

    /// Returns the longest answer to a prompt of this many tokens, at least 1.
    fn answer_tokens_max(&self, prompt: usize, requested: Option<usize>) -> Result<usize, BatchError> {
        let (context_tokens_max, cache_tokens) = (self.frontend.context_tokens_max(), self.cache_tokens);
        // An answer has at least one token.
        let tokens = prompt + requested.unwrap_or(1).max(1);
        if tokens > context_tokens_max {
            return Err(BatchError::refused(&EngineError::ContextExceeded { tokens, context_tokens_max }));
        }
        if tokens > cache_tokens {
            return Err(BatchError::refused(&EngineError::CacheExceeded { tokens, cache_tokens }));
        }
        let room = self.sequence_tokens_max() - prompt;
        let most = requested.map_or(room, |requested| requested.max(1));
        debug_assert!((1..=room).contains(&most), "the longest answer fits beside its prompt");
        Ok(most)
    }

    /// Takes a slot in the queue: from here on the request counts, so a draining worker waits for it.
    fn take_slot(&self) -> Result<QueueSlot<'_>, BatchError> {
        if self.counters.draining.load(Ordering::Acquire) {
            return Err(BatchError::Draining);
        }
        let waiting = self.counters.waiting.fetch_add(1, Ordering::AcqRel) as usize;
        let slot = QueueSlot(&self.counters);
        if waiting >= self.limits.waiting_max {
            self.counters.refused_total.fetch_add(1, Ordering::Relaxed);
            return Err(BatchError::Overloaded { waiting });
        }
        Ok(slot)
    }

    fn submit(&self, slot: QueueSlot<'_>, command: BatcherCommand) -> Result<(), BatchError> {
        self.commands.send(command).map_err(|_| stopped())?;
        // The thread owns the request now and decrements the count of waiting requests.
        std::mem::forget(slot);
        Ok(())
    }
}

fn refuse(message: String) -> BatchError {
    BatchError::Refused { code: code::INVALID_VALUE, message }
}

fn stopped() -> BatchError {
    BatchError::Failed { code: code::ENGINE_FAILED, message: "the engine's thread has ended".to_owned() }
}
