//! Messages between an agent, the init of a sandbox, and the worker inside it.
//!
//! Frames are canonical CBOR behind a little-endian `u32` length (see `overlay::descriptors`). The worker
//! receives every resource as a descriptor: it cannot open a socket or a file.

use crate::digest::Digest;
use crate::ids::{BootTime, Fence, Millis, ModelRoot, ServiceName, SlotIndex};
use crate::keys::PublicKey;
use crate::manifest::Task;
use crate::model::ModelFile;
use crate::order::SignedTicket;
use serde::{Deserialize, Serialize};

/// Descriptor of the worker's listening unix socket.
pub const WORKER_SOCKET_FD: i32 = 3;
/// Descriptor of the weights, a sealed memfd opened for reading.
pub const WORKER_WEIGHTS_FD: i32 = 4;
/// Descriptor of the progress map: one byte per segment; 1 = verified and present.
pub const WORKER_PROGRESS_FD: i32 = 5;
/// Descriptor of the metrics pipe, write end.
pub const WORKER_METRICS_FD: i32 = 6;
/// Descriptor of the [`WorkerManifest`], a sealed memfd.
pub const WORKER_MANIFEST_FD: i32 = 7;
/// Maximum size of a worker manifest in bytes: its segment table for 250 GB is about 7 MB.
pub const WORKER_MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;

const _: () = assert!(
    WORKER_MANIFEST_BYTES_MAX <= crate::limits::MODEL_MANIFEST_BYTES_MAX,
    "a worker's manifest is an extract of the model's"
);

/// Range of a segment in the weights map. The segment's index is the index of its byte in the progress map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRange {
    /// First byte in the weights map.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

/// Manifest of a worker: all of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerManifest {
    /// Service that the worker runs.
    pub service: ServiceName,
    /// Index of the slot that the worker runs in.
    pub slot: SlotIndex,
    /// Fence of the order under which the slot is held.
    pub fence: Fence,
    /// Task that the worker performs.
    pub task: Task,
    /// Root of the model; part of the worker's numeric class.
    pub root: ModelRoot,
    /// Files of the model, as ranges of the weights map.
    pub files: Vec<ModelFile>,
    /// Segments of the weights map, by index.
    pub segments: Vec<SegmentRange>,
    /// Size of the weights map in bytes.
    pub map_bytes: u64,
    /// Maximum number of tokens of a context; none = the model's own limit.
    pub context_tokens_max: Option<u32>,
    /// Maximum number of sequences in one step.
    pub batch_sequences_max: u32,
    /// Number of compute threads.
    pub threads: u32,
    /// Memory that the worker may use besides its weights, in bytes.
    pub memory_bytes: u64,
    /// Devices to compute on, as indices of visible GPUs; empty = CPU.
    pub gpus: Vec<u32>,
    /// Device memory that the worker may use, in bytes; none = a whole device, or no device.
    pub gpu_memory_bytes: Option<u64>,
}

/// Message from an agent to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// Request for the worker's key and state: the first frame of each connection.
    Hello,
    /// Request to serve a gateway on the connected TCP descriptor that comes with this frame.
    Connection {
        /// TLS key of the gateway.
        gateway: PublicKey,
        /// Ticket to present to the gateway.
        ticket: SignedTicket,
    },
    /// New ticket for a gateway that already has a connection.
    Ticket(SignedTicket),
    /// Request to finish running requests and to admit no new ones.
    Drain,
}

/// State of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Waits for segments or builds the engine.
    Loading,
    /// Serves requests.
    Ready,
    /// Finishes running requests and admits no new ones.
    Draining,
    /// Cannot serve; the failure's text follows.
    Failed,
}

/// Message from a worker to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// Answer to [`ToWorker::Hello`].
    Hello {
        /// TLS key that the worker generated.
        worker: PublicKey,
        /// State at the time of the answer.
        state: WorkerState,
    },
    /// Sent on every change of state.
    State {
        /// State after the change.
        state: WorkerState,
        /// Explanation of the state, as text for people.
        detail: String,
    },
    /// A gateway connection ended; the agent may pass a new one.
    Disconnected {
        /// TLS key of the gateway.
        gateway: PublicKey,
    },
}

/// Message from an agent to the init of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InitRequest {
    /// Extends the lease until this time of the boot clock.
    Renew {
        /// End of the lease.
        until_boottime_ms: BootTime,
    },
    /// Requests the state of the worker.
    Status,
    /// Stops the worker: SIGTERM, then SIGKILL after the grace period.
    Stop {
        /// Grace period in milliseconds.
        grace_ms: u64,
    },
    /// Requests copies of the descriptors that the init of a process sandbox holds for its agent. They come
    /// with the answer: standard output and error of each rank, then the gang device if there is one.
    Descriptors,
}

/// Answer of the init of a sandbox to an [`InitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitReply {
    /// True while the worker runs.
    pub running: bool,
    /// Exit status of the worker, or 128 + signal; none while it runs.
    pub exit: Option<i32>,
    /// End of the lease in force.
    pub lease_until_boottime_ms: BootTime,
}

/// Metrics of a worker: one line of JSON that it writes to its metrics pipe every second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerMetrics {
    /// Time of measurement by the wall clock.
    pub at: Millis,
    /// Number of requests in the engine.
    pub requests_running: u32,
    /// Number of requests in the queue.
    pub requests_waiting: u32,
    /// Number of requests answered since the worker started.
    pub requests_total: u64,
    /// Number of prompt tokens since the worker started.
    pub prompt_tokens_total: u64,
    /// Number of generated tokens since the worker started.
    pub generation_tokens_total: u64,
    /// KV cache in use, in thousandths.
    pub kv_cache_usage_permille: u32,
    /// Median time to first token of the most recent requests, in microseconds.
    pub time_to_first_token_p50_us: u64,
}

/// Answer of a worker to a gateway that queries its load (`GET /worker/v1/load`), as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLoad {
    /// State at the time of the answer.
    pub state: WorkerState,
    /// Metrics at the time of the answer.
    pub metrics: WorkerMetrics,
    /// Longest input and output of the model together, in tokens; absent until it is loaded.
    pub context_tokens_max: Option<u32>,
    /// Digest of all that decides the bits of an answer: model root, engine, device kind, longest sequence.
    /// Workers of one class continue each other's streams; absent until the model is loaded, and for a worker
    /// that continues none.
    pub numeric_class: Option<Digest>,
}
