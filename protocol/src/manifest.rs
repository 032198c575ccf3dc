//! Workload manifests. A manifest describes a workload and is also the envelope that members approve.
//!
//! Inside the bounds of an approved manifest the scheduler places, scales and heals freely; outside them it
//! does nothing. Users write TOML ([`Manifest::from_toml`]); members sign canonical CBOR.

mod bounds;
mod fields;
mod parse;
mod size;

pub use bounds::{CPU_MILLICORES_MIN, OutOfBounds, check_label};
pub use parse::ManifestError;
pub use size::{format_bytes, parse_bytes};

use crate::digest::Digest;
use crate::ids::{Millis, ModelName, ModelRoot, ServiceName};
use crate::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Manifest of a workload of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Manifest {
    /// Service: answers requests for as long as it is approved.
    Service(ServiceManifest),
    /// Job: runs to completion. This release reads and checks it, but cannot run it.
    Job(JobManifest),
    /// Edge rollout: distributes a model to sites. This release reads and checks it, but cannot run it.
    Edge(EdgeManifest),
}

impl Manifest {
    /// Returns the workload's name.
    #[must_use]
    pub fn name(&self) -> &ServiceName {
        match self {
            Manifest::Service(service) => &service.name,
            Manifest::Job(job) => &job.name,
            Manifest::Edge(edge) => &edge.name,
        }
    }
}

/// Model of a workload: its name for clients and its exact content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelChoice {
    /// Name that clients send as `model`.
    pub name: ModelName,
    /// Root of the model; nodes load no other content.
    pub root: ModelRoot,
}

/// Task that a service performs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Embedding: `/v1/embeddings`.
    Embed,
    /// Text generation: `/v1/chat/completions` and `/v1/completions`.
    Generate,
    /// Scores of documents for a query: `/v1/rerank`.
    Rerank,
}

/// Runtime that executes a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The built-in engine.
    Candle,
    /// Approved artefact tree with an entry point. This release reads and checks it, but cannot run it.
    Process,
}

/// Range of the number of replicas; slots are numbered `0..max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRange {
    /// Minimum number of replicas, always kept running.
    pub min: u32,
    /// Maximum number of replicas, never exceeded.
    pub max: u32,
}

/// Resources that one replica needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory in bytes, without the weights: a node keeps one copy of them for all replicas.
    pub memory_bytes: u64,
    /// Number of whole GPUs; 0 if `gpu_share_percent` is used or no GPU is needed.
    pub gpu_count: u32,
    /// Share of one GPU in percent, 1 to 99; 0 = whole GPUs or none.
    pub gpu_share_percent: u32,
    /// GPU memory in bytes that each GPU used must have.
    pub gpu_memory_bytes: u64,
}

/// Placement constraints of the replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Allowed regions; empty = any.
    pub regions: Vec<String>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Minimum isolation that a node must enforce.
    pub isolation: Isolation,
}

/// Isolation of workloads that a node can enforce; a later variant is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing is enforced.
    None,
    /// User namespaces only: every workload runs as the agent's own user.
    SameUid,
    /// Every form of isolation; needs root.
    Full,
}

/// Treatment of running replicas when the approval expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// Running replicas continue; no new ones start.
    Hold,
    /// Running replicas drain and stop.
    Drain,
}

/// Manifest of a service: the workload and its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceManifest {
    /// Name, unique in the circle.
    pub name: ServiceName,
    /// Model that the service serves.
    pub model: ModelChoice,
    /// Task that the service performs.
    pub task: Task,
    /// Runtime that executes the service.
    pub runtime: Runtime,
    /// Range of the number of replicas.
    pub replicas: ReplicaRange,
    /// Resources of each replica.
    pub resources: Resources,
    /// Placement constraints of the replicas.
    pub placement: Placement,
    /// Hosts that the service may reach. Must be empty in this release.
    pub egress: Vec<String>,
    /// Spend limit per hour, in millionths of the circle's unit; none = no limit.
    pub spend_micro_units_per_hour: Option<u64>,
    /// End of the approval; none = until retired.
    pub valid_until: Option<Millis>,
    /// Treatment of running replicas when the approval ends.
    pub on_expiry: OnExpiry,
    /// Time in seconds for which a node keeps a replica without hearing the control plane. In that time the
    /// replica may be placed elsewhere too. Exactly 3, one lease, if `exclusive`.
    pub autonomy_seconds: u64,
    /// True if no slot may ever live on two nodes.
    pub exclusive: bool,
    /// Maximum number of tokens of a context; none = the model's own limit.
    pub context_tokens_max: Option<u32>,
    /// Maximum number of sequences computed in one step.
    pub batch_sequences_max: u32,
}

impl ServiceManifest {
    /// Returns the autonomy of the service's slots in milliseconds.
    #[must_use]
    pub fn autonomy_ms(&self) -> u64 {
        let within = self.autonomy_seconds >= limits::AUTONOMY_SECONDS_MIN;
        debug_assert!(within && self.autonomy_seconds <= limits::AUTONOMY_SECONDS_MAX, "it is in bounds");
        self.autonomy_seconds.saturating_mul(1000)
    }
}

/// Manifest of a job. This release reads and checks it, but cannot run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobManifest {
    /// Name, unique in the circle.
    pub name: ServiceName,
    /// Digest of the artefact tree to run.
    pub artefact: Digest,
    /// Entry point within the artefact tree, and its arguments.
    pub command: Vec<String>,
    /// Number of ranks that run together.
    pub ranks: u32,
    /// Resources of each rank.
    pub resources: Resources,
    /// Placement constraints of the ranks.
    pub placement: Placement,
    /// Hosts that the job may reach. Must be empty in this release.
    pub egress: Vec<String>,
    /// Maximum run time in seconds.
    pub run_seconds_max: u64,
}

/// Manifest of an edge rollout. This release reads and checks it, but cannot run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeManifest {
    /// Name, unique in the circle.
    pub name: ServiceName,
    /// Model to distribute.
    pub model: ModelChoice,
    /// Pattern that selects the sites: `ca-*`.
    pub sites: String,
    /// Percentage of sites per wave, rising and ending at 100.
    pub waves_percent: Vec<u32>,
    /// Model to roll back to when a wave fails; none = no rollback.
    pub rollback: Option<ModelRoot>,
}
