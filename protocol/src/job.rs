//! Submissions to jobs, and the orders by which a node runs part of a gang.
//!
//! A submission alone grants nothing: it chooses values within an approved manifest. `human-chain`
//! verifies it, and derives the command of each rank from the manifest and the submission alone.

use crate::canonical;
use crate::digest::Digest;
use crate::ids::{
    CircleId, Fence, JobId, MemberId, Millis, NodeId, ParameterName, ServiceName, SlotIndex, TokenName,
};
use crate::keys::{HybridSignature, PublicKey, Signature};
use crate::manifest::ArtifactChoice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Signature domain of a submission's hybrid signature, and digest domain of its id.
pub const SUBMISSION_DOMAIN: &str = "quorate/job-submission/v1";
/// Digest domain of the key of idempotency of an array's task.
pub const ARRAY_TASK_DOMAIN: &str = "quorate/job-array-task/v1";
/// Signature domain of a job's order.
pub const JOB_ORDER_DOMAIN: &str = "quorate/job-order/v1";

/// Party that submits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Submitter {
    /// Holder of an access token of scope `submit`; control checks the token, and the submission has no
    /// signature.
    Token(TokenName),
    /// Member, by the signature of its keys.
    Member(MemberId),
    /// Submit key that the manifest names, by its signature.
    Signer(TokenName),
}

/// Choice of parameters for one run of an approved job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSubmission {
    /// Circle that the job belongs to.
    pub circle: CircleId,
    /// Name of the job.
    pub job: ServiceName,
    /// Digest of the certificate that approves the job.
    pub certificate: Digest,
    /// Key of idempotency, chosen by the submitter: the same submission under the same key is one job.
    pub idempotency: Digest,
    /// Value of each parameter, as the program receives it; a parameter that is left out has its default.
    pub parameters: BTreeMap<ParameterName, String>,
    /// Artifact to run, if the manifest leaves it open.
    pub artifact: Option<ArtifactChoice>,
    /// Program and its arguments, if the manifest leaves them open. Braces mean nothing here.
    pub command: Option<Vec<String>>,
    /// Priority, at most that of the manifest.
    pub priority: u32,
    /// Party that submits.
    pub submitter: Submitter,
    /// Time of the submission, by the submitter's clock.
    pub issued_at: Millis,
    /// Time after which no attempt of it begins.
    pub deadline: Millis,
    /// Jobs that succeed before an attempt of this one begins, ascending; the id of an array stands for all
    /// its tasks. An id is a digest over this list, so dependencies have no cycle.
    pub after: Vec<JobId>,
    /// Task of an array that the job is; none for a job of its own.
    pub array: Option<ArrayTask>,
}

/// Task of an array: one of many jobs of the same submission, which differ in their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArrayTask {
    /// Id of the array: a digest of its submitter and key of idempotency.
    pub array: JobId,
    /// Index of the task, from 0.
    pub index: u32,
    /// Number of tasks of the array.
    pub count: u32,
}

impl ArrayTask {
    /// Returns the key of idempotency of this task.
    #[must_use]
    pub fn idempotency(&self) -> Digest {
        Digest::of_domain(ARRAY_TASK_DOMAIN, &canonical::to_bytes(self))
    }
}

impl JobSubmission {
    /// Returns the id of the job: the digest of the submission's canonical bytes. The signature is no part of
    /// it.
    #[must_use]
    pub fn id(&self) -> JobId {
        JobId(Digest::of_domain(SUBMISSION_DOMAIN, &canonical::to_bytes(self)))
    }
}

/// Submission with the signature of its submitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedSubmission {
    /// Submission that was signed.
    pub submission: JobSubmission,
    /// Signature by both keys, domain [`SUBMISSION_DOMAIN`]; none for a submission by token.
    pub signature: Option<HybridSignature>,
}

/// Ranks of a gang that one slot runs: consecutive ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotRanks {
    /// First rank of the slot.
    pub first: u32,
    /// Number of ranks, at least 1.
    pub count: u32,
}

/// Assignment of a slot of a job to a node by control. It grants nothing: the authority is the certificate
/// that it names, and the submission chooses within it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobOrder {
    /// Circle that the order belongs to.
    pub circle: CircleId,
    /// Digest of the certificate that approves the job.
    pub certificate: Digest,
    /// Submission to run.
    pub submission: SignedSubmission,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Index of the slot, within the manifest's number of slots.
    pub slot: SlotIndex,
    /// Fence of this order, above that of the slot's previous order, for this or another submission.
    pub fence: Fence,
    /// Node that the slot is assigned to.
    pub node: NodeId,
    /// Ranks that the slot runs.
    pub ranks: SlotRanks,
    /// UUIDs of the GPUs of all these ranks, in the order of the ranks, as many for each as the manifest's
    /// resources say.
    pub gpus: Vec<String>,
    /// Time of issue by control's clock.
    pub issued_at: Millis,
}

/// Order with the signature of a control replica, domain [`JOB_ORDER_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedJobOrder {
    /// Order that the replica signed.
    pub order: JobOrder,
    /// Key of the control replica that signed; genesis lists these keys.
    pub signer: PublicKey,
    /// Signature over the order's canonical bytes.
    pub signature: Signature,
}

impl SignedJobOrder {
    /// Checks that the signature is by the named signer. The caller must check that the signer may sign
    /// orders.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = canonical::to_bytes(&self.order);
        debug_assert!(!bytes.is_empty(), "an order has its fields");
        self.signer.verifies(JOB_ORDER_DOMAIN, &bytes, &self.signature)
    }
}
