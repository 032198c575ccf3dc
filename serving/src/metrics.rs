//! Prometheus metrics, under vLLM's names with Quorate's prefix and under OpenTelemetry's, so that dashboards
//! for either work. Labels name models, whose number the circle bounds; no label is chosen by a client.

use crate::openai::Endpoint;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use overlay::{CancellationToken, PublicKey};
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use protocol::TokenName;
use protocol::error_code as code;
use protocol::worker::{WorkerLoad, WorkerMetrics, WorkerState};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// Buckets of seconds to the first token: vLLM's.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0,
];
/// Buckets of seconds between tokens: vLLM's, and finer ones for small models.
const BETWEEN_TOKENS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// Buckets of seconds of a whole request: vLLM's, and finer ones for embeddings.
const REQUEST: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0,
    120.0, 240.0,
];
/// Buckets of tokens of a request: OpenTelemetry's, powers of four.
const TOKENS: &[f64] =
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];

const MODEL: &[&str] = &["model_name"];
const OPERATION: &[&str] = &["gen_ai_operation_name", "gen_ai_request_model"];

/// All metrics of a gateway.
#[derive(Debug)]
pub struct GatewayMetrics {
    registry: Registry,
    requests: IntCounterVec,
    retries: IntCounterVec,
    held: IntCounterVec,
    tickets_refused: IntCounterVec,
    prompt_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    first_token: HistogramVec,
    between_tokens: HistogramVec,
    request: HistogramVec,
    otel: OpenTelemetry,
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    cache: GaugeVec,
    workers: IntGaugeVec,
    ready: IntGaugeVec,
    connections: IntGaugeVec,
    memory: IntGaugeVec,
}

/// The same metrics under OpenTelemetry's names for generative models.
#[derive(Debug)]
struct OpenTelemetry {
    request: HistogramVec,
    first_token: HistogramVec,
    per_token: HistogramVec,
    tokens: HistogramVec,
}

impl OpenTelemetry {
    fn new(r: &Registry) -> Self {
        let seconds = |name, help, buckets| histogram(r, name, help, OPERATION, buckets);
        Self {
            request: seconds("gen_ai_server_request_duration_seconds", "Whole requests.", REQUEST),
            first_token: seconds(
                "gen_ai_server_time_to_first_token_seconds",
                "Until the first token.",
                FIRST_TOKEN,
            ),
            per_token: seconds(
                "gen_ai_server_time_per_output_token_seconds",
                "Between tokens.",
                BETWEEN_TOKENS,
            ),
            tokens: histogram(
                r,
                "gen_ai_client_token_usage",
                "Tokens of a request.",
                &["gen_ai_operation_name", "gen_ai_request_model", "gen_ai_token_type"],
                TOKENS,
            ),
        }
    }
}

impl GatewayMetrics {
    /// Creates metrics that start at zero.
    ///
    /// # Panics
    /// If two metrics share a name; the first test detects that.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        Self {
            requests: counter(
                r,
                "quorate_requests_total",
                "Requests answered.",
                &["model_name", "operation", "status"],
            ),
            retries: counter(r, "quorate_request_retries_total", "Requests put on another worker.", MODEL),
            held: counter(r, "quorate_requests_held_total", "Requests that waited for a worker.", MODEL),
            tickets_refused: counter(r, "quorate_tickets_refused_total", "Tickets refused.", &["reason"]),
            prompt_tokens: counter(r, "quorate_prompt_tokens_total", "Prompt tokens read.", MODEL),
            generation_tokens: counter(r, "quorate_generation_tokens_total", "Tokens generated.", MODEL),
            first_token: histogram(
                r,
                "quorate_time_to_first_token_seconds",
                "Until the first token.",
                MODEL,
                FIRST_TOKEN,
            ),
            between_tokens: histogram(
                r,
                "quorate_inter_token_latency_seconds",
                "Between tokens.",
                MODEL,
                BETWEEN_TOKENS,
            ),
            request: histogram(r, "quorate_e2e_request_latency_seconds", "Whole requests.", MODEL, REQUEST),
            otel: OpenTelemetry::new(r),
            running: gauge(r, "quorate_num_requests_running", "Requests on workers.", MODEL),
            waiting: gauge(r, "quorate_num_requests_waiting", "Requests that wait in workers.", MODEL),
            cache: register(
                r,
                GaugeVec::new(Opts::new("quorate_kv_cache_usage_perc", "KV cache in use, 0 to 1."), MODEL),
            ),
            workers: gauge(r, "quorate_workers", "Workers connected with a valid ticket.", MODEL),
            ready: gauge(r, "quorate_workers_ready", "Of these, workers whose model is loaded.", MODEL),
            connections: gauge(
                r,
                "quorate_client_connections",
                "Client connections by key exchange.",
                &["key_exchange"],
            ),
            memory: gauge(r, "quorate_request_memory_bytes", "Bodies and answers held, in bytes.", &[]),
            registry,
        }
    }

    /// Counts a worker's rejected ticket.
    pub fn ticket_refused(&self, reason: &str) {
        self.tickets_refused.with_label_values(&[reason]).inc();
    }

    /// Counts a retry on another worker.
    pub fn retried(&self, model: &str) {
        self.retries.with_label_values(&[model]).inc();
    }

    /// Counts a request that waits for a worker.
    pub fn held(&self, model: &str) {
        self.held.with_label_values(&[model]).inc();
    }

    /// Returns the metrics in Prometheus's text format. `workers` are (model, requests in flight, last
    /// reported load); `memory_bytes` are the bytes that requests hold.
    #[must_use]
    pub fn text(
        &self,
        workers: impl Iterator<Item = (String, u32, Option<WorkerLoad>)>,
        key_exchanges: &BTreeMap<&'static str, u64>,
        memory_bytes: usize,
    ) -> String {
        self.memory.with_label_values::<&str>(&[]).set(i64::try_from(memory_bytes).unwrap_or(i64::MAX));
        self.running.reset();
        self.waiting.reset();
        self.cache.reset();
        self.workers.reset();
        self.ready.reset();
        for (model, in_flight, load) in workers {
            let labels = &[model.as_str()];
            self.workers.with_label_values(labels).inc();
            self.running.with_label_values(labels).add(i64::from(in_flight));
            let is_ready = load.as_ref().is_some_and(|load| load.state == WorkerState::Ready);
            self.ready.with_label_values(labels).add(i64::from(is_ready));
            let numbers = load.map(|load| load.metrics).unwrap_or_default();
            self.waiting.with_label_values(labels).add(i64::from(numbers.requests_waiting));
            let cache = self.cache.with_label_values(labels);
            cache.set(cache.get().max(f64::from(numbers.kv_cache_usage_permille) / 1000.0));
        }
        for (name, count) in key_exchanges {
            self.connections.with_label_values(&[*name]).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        encode(&self.registry)
    }
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns a worker's metrics in Prometheus's text format, for a worker without an agent.
#[must_use]
pub fn worker_text(model: &str, numbers: &WorkerMetrics) -> String {
    let r = &Registry::new();
    let labels = &[model];
    let total = |name, help, count| counter(r, name, help, MODEL).with_label_values(labels).inc_by(count);
    let level =
        |name, help, count: u32| gauge(r, name, help, MODEL).with_label_values(labels).set(i64::from(count));
    level("quorate_num_requests_running", "Requests in the engine.", numbers.requests_running);
    level("quorate_num_requests_waiting", "Requests in the queue.", numbers.requests_waiting);
    total("quorate_request_success_total", "Requests answered in full.", numbers.requests_total);
    total("quorate_prompt_tokens_total", "Prompt tokens read.", numbers.prompt_tokens_total);
    total("quorate_generation_tokens_total", "Tokens generated.", numbers.generation_tokens_total);
    let cache = Opts::new("quorate_kv_cache_usage_perc", "KV cache in use, 0 to 1.");
    let cache = register(r, GaugeVec::new(cache, MODEL));
    cache.with_label_values(labels).set(f64::from(numbers.kv_cache_usage_permille) / 1000.0);
    encode(r)
}

/// Builds a 200 response in Prometheus's text format.
#[must_use]
pub fn text_response(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn encode(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).expect("registered metrics are consistent")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("the literal name and labels are valid");
    registry.register(Box::new(metric.clone())).expect("no other metric has this name");
    metric
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

/// One request, measured from its arrival to its last byte. If dropped before its end, it counts as a client
/// that disconnected.
#[derive(Debug)]
pub struct Observation {
    metrics: Arc<GatewayMetrics>,
    endpoint: Endpoint,
    request_id: HeaderValue,
    key: Option<TokenName>,
    model: String,
    worker: Option<PublicKey>,
    workers_tried: u32,
    started: Instant,
    last_chunk: Option<Instant>,
    prompt_tokens: Option<u64>,
    generated_tokens: Option<u64>,
    has_ended: bool,
    evicted: Option<CancellationToken>,
}

/// nginx's status for a client that closed the connection before the answer.
const CLIENT_GONE: u16 = 499;

impl Observation {
    /// Starts the measurement of a request on its arrival.
    #[must_use]
    pub fn begin(metrics: Arc<GatewayMetrics>, endpoint: Endpoint, request_id: HeaderValue) -> Self {
        Self {
            metrics,
            endpoint,
            request_id,
            key: None,
            model: String::new(),
            worker: None,
            workers_tried: 0,
            started: Instant::now(),
            last_chunk: None,
            prompt_tokens: None,
            generated_tokens: None,
            has_ended: false,
            evicted: None,
        }
    }

    /// Stores the token that is cancelled when the request is evicted from memory.
    pub fn evicted_by(&mut self, evicted: CancellationToken) {
        self.evicted = Some(evicted);
    }

    /// Records the API key's name.
    pub fn key(&mut self, name: &TokenName) {
        self.key = Some(name.clone());
    }

    /// Records the model; it must exist, because it becomes a label.
    pub fn model(&mut self, name: &str) {
        name.clone_into(&mut self.model);
    }

    /// Records the worker of the current attempt.
    pub fn sent_to(&mut self, worker: &PublicKey) {
        self.worker = Some(*worker);
        self.workers_tried += 1;
    }

    /// Records the token counts known so far.
    pub fn tokens(&mut self, prompt: Option<u64>, generated: Option<u64>) {
        self.prompt_tokens = prompt.or(self.prompt_tokens);
        self.generated_tokens = generated.or(self.generated_tokens);
    }

    /// Reports whether the worker has sent the count of generated tokens, which it does at the end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.generated_tokens.is_some()
    }

    /// Records a chunk of a streamed answer.
    pub fn chunk(&mut self) {
        let now = Instant::now();
        let (ours, otel, since) = match self.last_chunk {
            None => (&self.metrics.first_token, &self.metrics.otel.first_token, self.started),
            Some(last) => (&self.metrics.between_tokens, &self.metrics.otel.per_token, last),
        };
        let seconds = now.duration_since(since).as_secs_f64();
        ours.with_label_values(&[self.model.as_str()]).observe(seconds);
        otel.with_label_values(&[self.endpoint.operation(), self.model.as_str()]).observe(seconds);
        self.last_chunk = Some(now);
    }

    /// Records the end of the request; only the first call counts. `code` is empty on success.
    pub fn end(&mut self, status: StatusCode, code: &str) {
        self.end_as(status.as_u16(), code);
    }

    fn end_as(&mut self, status: u16, code: &str) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let (metrics, model) = (&self.metrics, self.model.as_str());
        let operation = self.endpoint.operation();
        let elapsed = self.started.elapsed();
        metrics.requests.with_label_values(&[model, operation, &status.to_string()]).inc();
        if status == StatusCode::OK.as_u16() {
            metrics.request.with_label_values(&[model]).observe(elapsed.as_secs_f64());
            metrics.otel.request.with_label_values(&[operation, model]).observe(elapsed.as_secs_f64());
        }
        for (tokens, counter, kind) in [
            (self.prompt_tokens, &metrics.prompt_tokens, "input"),
            (self.generated_tokens, &metrics.generation_tokens, "output"),
        ] {
            if let Some(tokens) = tokens {
                counter.with_label_values(&[model]).inc_by(tokens);
                metrics.otel.tokens.with_label_values(&[operation, model, kind]).observe(tokens as f64);
            }
        }
        tracing::info!(
            request = self.request_id.to_str().unwrap_or_default(),
            operation,
            model,
            key = self.key.as_ref().map(TokenName::as_str),
            worker = self.worker.map(|worker| worker.short()),
            workers_tried = self.workers_tried,
            status,
            code,
            prompt_tokens = self.prompt_tokens,
            generated_tokens = self.generated_tokens,
            milliseconds = elapsed.as_millis() as u64,
            "request"
        );
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if self.evicted.as_ref().is_some_and(CancellationToken::is_cancelled) {
            return self.end(StatusCode::TOO_MANY_REQUESTS, code::GATEWAY_MEMORY_FULL.as_str());
        }
        self.end_as(CLIENT_GONE, "client-gone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &GatewayMetrics) -> String {
        let numbers =
            WorkerMetrics { requests_waiting: 3, kv_cache_usage_permille: 250, ..Default::default() };
        let (context_tokens_max, numeric_class) = (None, None);
        let state = WorkerState::Ready;
        let load = WorkerLoad { state, metrics: numbers, context_tokens_max, numeric_class };
        let workers = [("tiny".to_owned(), 2, Some(load)), ("tiny".to_owned(), 1, None)];
        metrics.text(workers.into_iter(), &BTreeMap::from([("X25519MLKEM768", 4)]), 7)
    }

    #[test]
    fn a_request_is_counted_under_both_names() {
        let metrics = Arc::new(GatewayMetrics::new());
        let mut observation =
            Observation::begin(metrics.clone(), Endpoint::Chat, HeaderValue::from_static("r"));
        observation.model("tiny");
        observation.tokens(Some(7), None);
        observation.chunk();
        observation.chunk();
        observation.tokens(None, Some(2));
        observation.end(StatusCode::OK, "");
        drop(observation);
        let text = text(&metrics);
        for line in [
            "quorate_requests_total{model_name=\"tiny\",operation=\"chat\",status=\"200\"} 1",
            "quorate_prompt_tokens_total{model_name=\"tiny\"} 7",
            "quorate_generation_tokens_total{model_name=\"tiny\"} 2",
            "quorate_time_to_first_token_seconds_count{model_name=\"tiny\"} 1",
            "quorate_inter_token_latency_seconds_count{model_name=\"tiny\"} 1",
            "quorate_e2e_request_latency_seconds_count{model_name=\"tiny\"} 1",
            "gen_ai_server_request_duration_seconds_count{gen_ai_operation_name=\"chat\",\
             gen_ai_request_model=\"tiny\"} 1",
            "quorate_num_requests_running{model_name=\"tiny\"} 3",
            "quorate_num_requests_waiting{model_name=\"tiny\"} 3",
            "quorate_kv_cache_usage_perc{model_name=\"tiny\"} 0.25",
            "quorate_workers{model_name=\"tiny\"} 2",
            "quorate_workers_ready{model_name=\"tiny\"} 1",
            "quorate_client_connections{key_exchange=\"X25519MLKEM768\"} 4",
            "quorate_request_memory_bytes 7",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_client_that_disconnects_is_counted_as_such() {
        let metrics = Arc::new(GatewayMetrics::new());
        drop(Observation::begin(metrics.clone(), Endpoint::Embeddings, HeaderValue::from_static("r")));
        assert!(text(&metrics).contains("operation=\"embeddings\",status=\"499\"} 1"));
    }

    #[test]
    fn a_worker_exports_its_metrics() {
        let numbers = WorkerMetrics { requests_running: 2, prompt_tokens_total: 9, ..Default::default() };
        let text = worker_text("m", &numbers);
        assert!(text.contains("quorate_num_requests_running{model_name=\"m\"} 2"), "{text}");
        assert!(text.contains("quorate_prompt_tokens_total{model_name=\"m\"} 9"), "{text}");
    }
}
