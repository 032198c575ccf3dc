//! Manifest of a job: the envelope of all its submissions.
//!
//! One vote approves the program, the bounds of its parameters, what it may use and who may submit. A
//! submission then chooses parameters alone. Each node derives the command of a rank from the approved
//! manifest and the submission itself.

use super::parameter::JobParameter;
use super::{ModelChoice, Placement, Resources};
use crate::ids::{ArtifactRoot, Millis, ModelName, ParameterName, ProjectName, ServiceName, TokenName};
use crate::keys::{ByteString, PublicKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Environment variables that the node sets for each rank, as launchers of common frameworks do (PyTorch's
/// `torchrun` documents them); the two of an array for its tasks alone. No manifest may set them.
pub const RANK_VARIABLES: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "JOB_ARRAY_COUNT",
    "JOB_ARRAY_INDEX",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
];

/// Artifact of a job: its name for people and its exact content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArtifactChoice {
    /// Name under which the artifact was imported.
    pub name: ModelName,
    /// Root of the packed tree; nodes run no other content.
    pub root: ArtifactRoot,
}

/// Public keys by which a program or a person submits to one job. It is no member and votes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitKey {
    /// Ed25519 signing key: the classical half.
    pub ed25519: PublicKey,
    /// ML-DSA-65 signing key, 1,952 bytes: the post-quantum half.
    pub ml_dsa: ByteString,
}

/// Parties that may submit to a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSubmitters {
    /// True if every access token of scope `submit` may.
    pub any_token: bool,
    /// Holders whose access tokens of scope `submit` may; empty if every token may.
    pub tokens: BTreeSet<TokenName>,
    /// True if every active member may, by a signature of its keys.
    pub members: bool,
    /// Submit keys that may, by a signature.
    pub signers: BTreeMap<TokenName, SubmitKey>,
}

/// Limits of what all submissions to a job use together in one period, by the reserved resources of their
/// slots. An attempt that would pass one waits; one that has started runs on, for its run time at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobBudget {
    /// Length of a period in seconds.
    pub period_seconds: u64,
    /// Limit of GPU-seconds; none = no limit.
    pub gpu_seconds: Option<u64>,
    /// Limit of the spend, in millionths of the circle's unit; none = no limit.
    pub spend_micro_units: Option<u64>,
}

/// Manifest of a job: what its submissions may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobManifest {
    /// Name, unique in the circle.
    pub name: ServiceName,
    /// Project whose quota and share its gangs use; none = the root, [`crate::project::ROOT_PROJECT`].
    pub project: Option<ProjectName>,
    /// Artifact to run; none = open: each submission names one, and is signed.
    pub artifact: Option<ArtifactChoice>,
    /// Program and its arguments, in which `{steps}` stands for the parameter `steps`; none = open: each
    /// submission names them, and is signed.
    pub command: Option<Vec<String>>,
    /// Environment variables, beside those of the artifact and those of each rank.
    pub environment: BTreeMap<String, String>,
    /// Parameters that a submission sets.
    pub parameters: BTreeMap<ParameterName, JobParameter>,
    /// Models that the ranks read under `/models`.
    pub models: Vec<ModelChoice>,
    /// Datasets that the ranks read under `/datasets`.
    pub datasets: Vec<ModelChoice>,
    /// Number of ranks of a gang: all run together, or none.
    pub ranks: u32,
    /// Maximum number of ranks in one slot: those on one node, which share a sandbox.
    pub ranks_per_slot: u32,
    /// Number of slots that all gangs of the job hold together: at most `slots * ranks_per_slot` ranks run
    /// at once.
    pub slots: u32,
    /// Resources of each rank.
    pub resources: Resources,
    /// Accepted models of GPUs, any of them; empty = any.
    pub gpu_models: Vec<String>,
    /// Placement constraints of the ranks.
    pub placement: Placement,
    /// Hosts that the job may reach. Must be empty in this release.
    pub egress: Vec<String>,
    /// Highest priority that a submission may ask for.
    pub priority: u32,
    /// Maximum run time of an attempt in seconds.
    pub run_seconds_max: u64,
    /// Time in seconds from the request to end until a rank is killed.
    pub grace_seconds: u64,
    /// Time in seconds for which a rank runs on without hearing the control plane. In that time its gang may
    /// be placed elsewhere too.
    pub autonomy_seconds: u64,
    /// Maximum number of attempts after one that failed.
    pub retries: u32,
    /// Number of checkpoints that are kept, the newest; 0 = the job makes none.
    pub checkpoints: u32,
    /// Limits per period; none = no limit.
    pub budget: Option<JobBudget>,
    /// Parties that may submit.
    pub submit: JobSubmitters,
    /// End of the approval; none = until retired.
    pub valid_until: Option<Millis>,
}

impl JobManifest {
    /// Returns whether a submission names the artifact or the command, so that it needs a signature.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.artifact.is_none() || self.command.is_none()
    }
}
