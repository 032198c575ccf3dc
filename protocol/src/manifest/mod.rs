//! Workload manifests: what people ask for, and at the same time the envelope that they approve.
//!
//! Inside the bounds of an approved manifest the scheduler places, scales and heals freely; outside
//! them nothing happens. People write TOML ([`Manifest::from_toml`]); what is signed is canonical CBOR.

mod bounds;
mod fields;
mod parse;
mod size;

pub use bounds::{CPU_MILLICORES_MIN, OutOfBounds, check_label};
pub use parse::ManifestError;
pub use size::{format_bytes, parse_bytes};

use crate::digest::Digest;
use crate::ids::{Millis, ModelName, ModelRoot, ServiceName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A workload of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Manifest {
    /// Answers requests for as long as it is approved.
    Service(ServiceManifest),
    /// Runs to completion. Read and checked; running one is not built yet.
    Job(JobManifest),
    /// Brings a model to sites. Read and checked; running one is not built yet.
    Edge(EdgeManifest),
}

impl Manifest {
    /// The workload's name.
    #[must_use]
    pub fn name(&self) -> &ServiceName {
        match self {
            Manifest::Service(service) => &service.name,
            Manifest::Job(job) => &job.name,
            Manifest::Edge(edge) => &edge.name,
        }
    }
}

/// Which model, by name and by every byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelChoice {
    /// What clients send as `model`.
    pub name: ModelName,
    /// What it is; nodes load nothing else.
    pub root: ModelRoot,
}

/// What a service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// `/v1/embeddings`.
    Embed,
    /// `/v1/chat/completions` and `/v1/completions`.
    Generate,
}

/// What runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The built-in engine.
    Candle,
    /// An approved artefact tree with an entry point. Read and checked; running one is not built yet.
    Process,
}

/// How many replicas; slots are numbered `0..max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRange {
    /// Kept running always.
    pub min: u32,
    /// Never exceeded.
    pub max: u32,
}

/// What one replica needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    /// Bytes of memory, weights not counted: a node keeps one copy of them for all replicas.
    pub memory_bytes: u64,
    /// Whole GPUs; 0 when `gpu_share_percent` is used or no GPU is needed.
    pub gpu_count: u32,
    /// A share of one GPU, 1 to 99 percent; 0 = whole GPUs or none.
    pub gpu_share_percent: u32,
    /// Bytes of GPU memory that must be on each GPU used.
    pub gpu_memory_bytes: u64,
}

/// Where replicas may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Allowed regions; empty = any.
    pub regions: Vec<String>,
    /// Labels a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// The least isolation a node must give.
    pub isolation: crate::agent::Isolation,
}

/// What happens to what runs when the approval expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// What runs goes on; nothing new starts.
    Hold,
    /// What runs drains and ends.
    Drain,
}

/// A service and the envelope it may move in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceManifest {
    /// Unique in the circle.
    pub name: ServiceName,
    /// What it serves.
    pub model: ModelChoice,
    /// What it answers.
    pub task: Task,
    /// What runs it.
    pub runtime: Runtime,
    /// How many.
    pub replicas: ReplicaRange,
    /// What each needs.
    pub resources: Resources,
    /// Where.
    pub placement: Placement,
    /// Hosts it may reach. Must be empty in this release.
    pub egress: Vec<String>,
    /// Most it may cost per hour, in millionths of the circle's unit; none = no limit.
    pub spend_micro_units_per_hour: Option<u64>,
    /// Approval ends then; none = until retired.
    pub valid_until: Option<Millis>,
    /// And this happens.
    pub on_expiry: OnExpiry,
    /// Most tokens of a context; none = the model's own limit.
    pub context_tokens_max: Option<u32>,
    /// Most sequences computed in one step.
    pub batch_sequences_max: u32,
}

/// A job: read and checked in this release, not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobManifest {
    /// Unique in the circle.
    pub name: ServiceName,
    /// The artefact tree that runs.
    pub artefact: Digest,
    /// Entry point within it and its arguments.
    pub command: Vec<String>,
    /// How many ranks run together.
    pub ranks: u32,
    /// What each rank needs.
    pub resources: Resources,
    /// Where.
    pub placement: Placement,
    /// Hosts it may reach. Must be empty in this release.
    pub egress: Vec<String>,
    /// Longest run in seconds.
    pub run_seconds_max: u64,
}

/// An edge rollout: read and checked in this release, not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeManifest {
    /// Unique in the circle.
    pub name: ServiceName,
    /// What is brought.
    pub model: ModelChoice,
    /// Which sites, as a pattern: `ca-*`.
    pub sites: String,
    /// Percent of sites per wave, rising, ending at 100.
    pub waves_percent: Vec<u32>,
    /// What it goes back to when a wave fails.
    pub rollback: Option<ModelRoot>,
}
