//! Workload manifests. A manifest describes a workload and is also the envelope that members approve.
//!
//! Inside the bounds of an approved manifest the scheduler places, scales and heals freely; outside them it
//! does nothing. Users write TOML ([`Manifest::from_toml`]); members sign canonical CBOR.

mod bounds;
mod fields;
mod job;
mod parameter;
mod parse;
mod size;

pub use bounds::{CPU_MILLICORES_MIN, OutOfBounds, check_command_words, check_label};
pub use job::{ArtifactChoice, JobBudget, JobManifest, JobSubmitters, RANK_VARIABLES, SubmitKey};
pub use parameter::{Decimal, JobParameter, ParameterRule, TextCharacters, expand_argument};
pub use parse::ManifestError;
pub use size::{format_bytes, parse_bytes};

use crate::ids::{Millis, ModelName, ModelRoot, ServiceName};
use crate::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Manifest of a workload of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(clippy::large_enum_variant, reason = "a manifest is moved rarely and boxed where it is kept")]
pub enum Manifest {
    /// Service: answers requests for as long as it is approved.
    Service(ServiceManifest),
    /// Job: runs to completion, as often as submissions ask for it.
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
    /// Approved artifact with an entry point. This release reads and checks it, but cannot run it.
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

/// Treatment of running replicas when the approval expires, and once the spend limit of an hour is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// Running replicas continue; no new ones start.
    Hold,
    /// Running replicas drain and stop.
    Drain,
}

/// Treatment of a roll-out that failed: so many starts of the new approval failed in a row as its limit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The roll-out waits. Nothing that was approved before runs again without a vote.
    Hold,
    /// The service returns to the approval before, which the certificate names, until the next vote.
    Return,
}

/// Rules for the roll-out of an approval, and for other planned work on a service's replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollOutRules {
    /// Time in seconds for which a replica must answer before it counts as available.
    pub ready_seconds: u32,
    /// Number of replicas below the wanted number that planned work may take away at once. At 0, a
    /// replacement always answers first.
    pub max_unavailable: u32,
    /// Number of failed starts in a row under a new approval that end its roll-out.
    pub failure_limit: u32,
    /// Treatment of a roll-out that failed. A return is possible only if it says so.
    pub on_failure: OnFailure,
}

impl Default for RollOutRules {
    fn default() -> Self {
        Self {
            ready_seconds: 0,
            max_unavailable: limits::UNAVAILABLE_DEFAULT,
            failure_limit: limits::FAILURES_DEFAULT,
            on_failure: OnFailure::Hold,
        }
    }
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
    /// Spend limit per clock hour, in millionths of the circle's unit; none = no limit. A replica that would
    /// pass it waits; `on_expiry` says what running replicas do once it is spent.
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
    /// Priority of the service's replicas, 1 to 100. Higher ones are placed first, and take the room of lower
    /// ones if there is no other.
    pub priority: u32,
    /// Rules for roll-outs and other planned work.
    pub rollout: RollOutRules,
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

    /// Returns the time in milliseconds for which a replica must answer before it counts as available.
    #[must_use]
    pub fn ready_ms(&self) -> u64 {
        debug_assert!(self.rollout.ready_seconds <= limits::READY_SECONDS_MAX, "it is in bounds");
        u64::from(self.rollout.ready_seconds) * 1000
    }

    /// Returns whether the approval of this manifest lets the service return to the approval before.
    #[must_use]
    pub fn may_return(&self) -> bool {
        self.rollout.on_failure == OnFailure::Return
    }
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
