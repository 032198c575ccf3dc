//! State of a worker: its batcher once loaded, its lifecycle, its metrics.

use super::outstanding::OutstandingCount;
use crate::batcher::Batcher;
use crate::memory::Memory;
use crate::openai::ApiError;
use http::StatusCode;
use protocol::error_code as code;
use protocol::worker::{WorkerLoad, WorkerMetrics, WorkerState};
use protocol::{Digest, Millis};
use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Number of recent requests in the median time to first token.
const RECENT_REQUESTS: usize = 128;
/// Limit on bodies and on texts that are not tokenized yet, in bytes: four of the largest requests. It is
/// part of the 128 MiB that a worker has beside its cache.
const MEMORY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A worker's engine and its state, shared by all request handlers.
#[derive(Debug)]
pub struct WorkerService {
    batcher: OnceLock<Batcher>,
    /// Class of workers that continue this one's streams, if any.
    numeric_class: OnceLock<Digest>,
    state: watch::Sender<(WorkerState, String)>,
    first_tokens: Mutex<VecDeque<Duration>>,
    /// The only model name that is answered; `None` accepts any, because the gateway has checked it.
    model: Option<String>,
    memory: Memory<()>,
    /// Answers that are still being sent.
    answers: OutstandingCount,
}

impl WorkerService {
    /// Creates a loading worker. `model` is the only name it answers to, if given.
    #[must_use]
    pub fn new(model: Option<String>) -> Self {
        let state = watch::Sender::new((WorkerState::Loading, String::new()));
        let memory = Memory::new(MEMORY_BYTES_MAX);
        let (first_tokens, answers) = (Mutex::default(), OutstandingCount::default());
        let (batcher, numeric_class) = (OnceLock::new(), OnceLock::new());
        Self { batcher, numeric_class, state, first_tokens, model, memory, answers }
    }

    /// Installs the loaded engine.
    ///
    /// # Panics
    /// If one was installed already.
    pub fn ready(&self, batcher: Batcher) {
        self.batcher.set(batcher).expect("a worker loads one engine once");
        self.enter(WorkerState::Ready, String::new());
    }

    /// Stores the class of workers whose streams this one can continue, before it is ready.
    ///
    /// # Panics
    /// If a class was stored already.
    pub fn join_class(&self, class: Digest) {
        self.numeric_class.set(class).expect("a worker loads one engine once");
    }

    /// Records that the engine cannot be loaded.
    pub fn failed(&self, detail: String) {
        self.enter(WorkerState::Failed, detail);
    }

    /// Stops admission; running requests are finished.
    pub fn drain(&self) {
        if let Some(batcher) = self.batcher.get() {
            batcher.drain();
        }
        self.enter(WorkerState::Draining, String::new());
    }

    fn enter(&self, state: WorkerState, detail: String) {
        self.state.send_if_modified(|current| {
            // A failed or draining worker never returns to service.
            let is_final = matches!(current.0, WorkerState::Failed | WorkerState::Draining);
            if !is_final {
                *current = (state, detail);
            }
            !is_final
        });
    }

    /// Subscribes to the state and its changes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<(WorkerState, String)> {
        self.state.subscribe()
    }

    /// Reports whether no request runs or waits, and no answer is still being sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.answers.count() == 0 && self.batcher.get().is_none_or(Batcher::is_idle)
    }

    /// Returns the count of answers that are still being sent.
    pub(super) fn answers(&self) -> &OutstandingCount {
        &self.answers
    }

    /// Returns the model's name, if only one is answered.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Returns the model's context in tokens, once it is loaded.
    #[must_use]
    pub fn context_tokens_max(&self) -> Option<usize> {
        self.batcher.get().map(|batcher| batcher.frontend().context_tokens_max())
    }

    /// Returns the memory budget of requests that the engine does not have yet.
    pub(super) fn memory(&self) -> &Memory<()> {
        &self.memory
    }

    /// Returns the batcher.
    ///
    /// # Errors
    /// 503 while it loads or drains, or after a failure.
    pub fn batcher(&self) -> Result<&Batcher, ApiError> {
        let (state, detail) = self.state.borrow().clone();
        let (code, message) = match (state, self.batcher.get()) {
            (WorkerState::Ready, Some(batcher)) => return Ok(batcher),
            (WorkerState::Draining, _) => (code::WORKER_DRAINING, "this worker is draining".to_owned()),
            (WorkerState::Failed, _) => (code::WORKER_FAILED, format!("this worker has failed: {detail}")),
            _ => (code::WORKER_LOADING, "this worker is still loading its model".to_owned()),
        };
        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(1))
    }

    /// Records a request's time to first token.
    pub fn record_first_token(&self, waited: Duration) {
        let mut recent = self.first_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT_REQUESTS {
            recent.pop_front();
        }
        recent.push_back(waited);
    }

    /// Returns the current state and metrics.
    #[must_use]
    pub fn load(&self) -> WorkerLoad {
        let context = self.context_tokens_max().map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        WorkerLoad {
            state: self.state.borrow().0,
            metrics: self.metrics(),
            context_tokens_max: context,
            numeric_class: self.numeric_class.get().copied(),
        }
    }

    /// Returns the current metrics.
    #[must_use]
    pub fn metrics(&self) -> WorkerMetrics {
        let numbers = self.batcher.get().map(Batcher::snapshot).unwrap_or_default();
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let usage = (numbers.cache_tokens_used * 1000).checked_div(numbers.cache_tokens_total);
        // An answer counts until it has been sent: a draining worker is ended when no request is left.
        let sending = self.answers.count().saturating_sub(numbers.requests_waiting);
        WorkerMetrics {
            at: now(),
            requests_running: narrow(numbers.requests_running.max(sending)),
            requests_waiting: narrow(numbers.requests_waiting),
            requests_total: numbers.requests_finished_total,
            prompt_tokens_total: numbers.prompt_tokens_total,
            generation_tokens_total: numbers.generation_tokens_total,
            kv_cache_usage_permille: narrow(usage.unwrap_or(0)),
            time_to_first_token_p50_us: self.median_first_token().as_micros() as u64,
        }
    }

    fn median_first_token(&self) -> Duration {
        let recent = self.first_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<Duration> = recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

/// Returns the wall-clock time.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::BatcherLimits;
    use crate::engine::simulated::SimulatedEngine;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    fn batcher() -> Batcher {
        Batcher::start(Box::new(SimulatedEngine::encoder(16, 4)), BatcherLimits::default()).expect("a thread")
    }

    fn refusal(service: &WorkerService) -> &'static str {
        service.batcher().expect_err("not ready").code.as_str()
    }

    #[test]
    fn a_worker_loads_serves_and_drains() {
        let service = WorkerService::new(None);
        assert_eq!(refusal(&service), "worker-loading");
        service.ready(batcher());
        assert!(service.batcher().is_ok());
        service.drain();
        assert_eq!(refusal(&service), "worker-draining");
        assert!(service.is_idle());
        service.failed("late".to_owned());
        assert_eq!(service.load().state, WorkerState::Draining, "a draining worker stays so");
    }

    #[tokio::test]
    async fn a_worker_is_idle_once_its_answers_have_been_sent() {
        let service = std::sync::Arc::new(WorkerService::new(None));
        let engine = SimulatedEngine::decoder(64, 64);
        service.ready(Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread"));
        for body in
            [r#"{"model": "m", "prompt": "abc"}"#, r#"{"model": "m", "prompt": "abc", "stream": true}"#]
        {
            let request =
                http::Request::post("/v1/completions").body(axum::body::Body::from(body)).expect("valid");
            let response = super::super::answer::router(service.clone()).oneshot(request).await;
            let answer = response.expect("infallible").into_body();
            while !service.batcher().is_ok_and(Batcher::is_idle) {
                tokio::task::yield_now().await;
            }
            assert!(!service.is_idle(), "the engine is idle, and the bytes are not out");
            assert_eq!(service.metrics().requests_running, 1);
            let bytes = answer.collect().await.expect("whole").to_bytes();
            assert!(!bytes.is_empty());
            assert!(service.is_idle());
            assert_eq!(service.metrics().requests_running, 0);
        }
    }

    #[test]
    fn a_failed_load_is_reported() {
        let service = WorkerService::new(None);
        service.failed("no tokenizer".to_owned());
        let error = service.batcher().expect_err("failed");
        assert_eq!((error.status.as_u16(), error.retry_after), (503, Some(1)));
        assert!(error.message.contains("no tokenizer"));
    }

    #[test]
    fn the_median_covers_recent_requests_only() {
        let service = WorkerService::new(None);
        assert_eq!(service.metrics().time_to_first_token_p50_us, 0);
        service.record_first_token(Duration::from_secs(9));
        for _ in 0..RECENT_REQUESTS {
            service.record_first_token(Duration::from_micros(5));
        }
        assert_eq!(service.metrics().time_to_first_token_p50_us, 5);
    }

    #[test]
    fn a_line_of_metrics_fits_a_pipe_write() {
        let full = u64::MAX;
        let metrics = WorkerMetrics {
            at: Millis(full),
            requests_running: u32::MAX,
            requests_waiting: u32::MAX,
            requests_total: full,
            prompt_tokens_total: full,
            generation_tokens_total: full,
            kv_cache_usage_permille: u32::MAX,
            time_to_first_token_p50_us: full,
        };
        let line = serde_json::to_vec(&metrics).expect("plain numbers");
        assert!(line.len() < protocol::limits::METRICS_LINE_BYTES_MAX);
    }
}
