//! What passes between an agent, the init of a sandbox, and the worker inside it.
//!
//! Frames are canonical CBOR behind a little-endian `u32` length (see `overlay::descriptors`). The
//! worker is given everything and asks for nothing: it cannot open a socket or a file.

use crate::ids::{Fence, Millis, ServiceName, SlotIndex};
use crate::keys::PublicKey;
use crate::manifest::Task;
use crate::model::ModelFile;
use crate::order::SignedTicket;
use serde::{Deserialize, Serialize};

/// Descriptor of the worker's listening unix socket.
pub const WORKER_SOCKET_FD: i32 = 3;
/// Descriptor of the weights, a sealed memfd opened for reading.
pub const WORKER_WEIGHTS_FD: i32 = 4;
/// Descriptor of the progress map: one byte per segment, 1 = verified and present.
pub const WORKER_PROGRESS_FD: i32 = 5;
/// Descriptor of the metrics pipe, write end.
pub const WORKER_METRICS_FD: i32 = 6;
/// Descriptor of the [`WorkerManifest`], a sealed memfd.
pub const WORKER_MANIFEST_FD: i32 = 7;
/// Largest worker manifest: its segment table for 250 GB is about 4 MB.
pub const WORKER_MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A segment's place in the weights map; its index is its byte in the progress map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

/// All that a worker knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerManifest {
    /// Which service.
    pub service: ServiceName,
    /// Which slot of it.
    pub slot: SlotIndex,
    /// Under which order.
    pub fence: Fence,
    /// What it must answer.
    pub task: Task,
    /// Files in the weights map.
    pub files: Vec<ModelFile>,
    /// Segments of the weights map.
    pub segments: Vec<SegmentRange>,
    /// Bytes of the weights map.
    pub map_bytes: u64,
    /// Most tokens of a context; none = the model's own limit.
    pub context_tokens_max: Option<u32>,
    /// Most sequences in one step.
    pub batch_sequences_max: u32,
    /// Threads to compute with.
    pub threads: u32,
    /// Memory that it may use besides its weights, in bytes.
    pub memory_bytes: u64,
    /// Devices to compute on: indices of visible GPUs; empty = CPU.
    pub gpus: Vec<u32>,
    /// Memory of its device that it may use, in bytes; none = a whole device is its own, or it has none.
    pub gpu_memory_bytes: Option<u64>,
}

/// From an agent to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// Who are you? The first frame of each connection.
    Hello,
    /// One connected TCP descriptor comes with this frame: serve the gateway on it.
    Connection {
        /// The gateway's TLS key.
        gateway: PublicKey,
        /// Proof for it.
        ticket: SignedTicket,
    },
    /// A fresh ticket for a gateway that already has a connection.
    Ticket(SignedTicket),
    /// Finish what runs, take nothing new.
    Drain,
}

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Waits for segments or builds the engine.
    Loading,
    /// Answers requests.
    Ready,
    /// Finishes what runs.
    Draining,
    /// Cannot serve; the text of the failure follows.
    Failed,
}

/// From a worker to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// Answer to [`ToWorker::Hello`].
    Hello {
        /// The TLS key that the worker made for itself.
        worker: PublicKey,
        /// How far it is.
        state: WorkerState,
    },
    /// Sent whenever it changes.
    State {
        /// How far it is.
        state: WorkerState,
        /// For people.
        detail: String,
    },
    /// A gateway connection ended; the agent may hand over a new one.
    Disconnected {
        /// Which gateway.
        gateway: PublicKey,
    },
}

/// From an agent to the init of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InitRequest {
    /// The lease holds until this time of the boot clock.
    Renew {
        /// `CLOCK_BOOTTIME` in milliseconds.
        until_boottime_ms: u64,
    },
    /// How is it going?
    Status,
    /// End the worker: SIGTERM, then SIGKILL after the grace.
    Stop {
        /// How long the worker may take.
        grace_ms: u64,
    },
}

/// From the init of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitReply {
    /// Whether the worker lives.
    pub running: bool,
    /// How it ended: exit status, or 128 + signal.
    pub exit: Option<i32>,
    /// The lease in force, `CLOCK_BOOTTIME` in milliseconds.
    pub lease_until_boottime_ms: u64,
}

/// One line of JSON that a worker writes to its metrics pipe every second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerMetrics {
    /// When it was measured, wall clock.
    pub at: Millis,
    /// Requests in the engine.
    pub requests_running: u32,
    /// Requests in the queue.
    pub requests_waiting: u32,
    /// Requests answered since start.
    pub requests_total: u64,
    /// Prompt tokens since start.
    pub prompt_tokens_total: u64,
    /// Generated tokens since start.
    pub generation_tokens_total: u64,
    /// KV cache in use, in thousandths.
    pub kv_cache_usage_permille: u32,
    /// Median of the last requests' time to first token, microseconds.
    pub time_to_first_token_p50_us: u64,
}

/// What a worker answers to a gateway that asks how it is doing (`GET /worker/v1/load`), as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLoad {
    /// How far it is.
    pub state: WorkerState,
    /// Its numbers now.
    pub metrics: WorkerMetrics,
}
