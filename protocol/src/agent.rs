//! What an agent and control say to each other. The agent asks, always: a node listens on nothing.

use crate::gateway::RouteTable;
use crate::governance::{Bundle, NodeAdmission, SignedGenesis};
use crate::ids::{Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::keys::PublicKey;
use crate::model::{KeyWrap, ModelRecord};
use crate::order::SignedOrder;
use crate::worker::WorkerMetrics;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A GPU, as its driver describes it or as a rehearsal pretends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Index on its node.
    pub index: u32,
    /// The driver's unique id.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// True for `--simulate-gpus`: schedules, but computes nothing.
    pub simulated: bool,
    /// Healthy enough to be given work.
    pub healthy: bool,
}

/// What a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct NodeResources {
    /// CPU it offers, in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory it offers, in bytes.
    pub memory_bytes: u64,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
}

/// How well a node can keep a workload in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing is enforced.
    None,
    /// User namespaces, one user id.
    SameUid,
    /// Everything, as root.
    Full,
}

/// How far a slot is on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Verifying and fetching segments.
    Loading,
    /// The sandbox runs, the engine is not ready.
    Starting,
    /// Answers requests.
    Ready,
    /// Finishes what runs.
    Draining,
    /// Stopped, the slot is free.
    Released,
    /// Did not start or died; the agent tries again with back-off.
    Failed,
    /// The agent refused the order; the detail begins with the error code.
    Refused,
}

/// A slot as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotReport {
    /// Which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
    /// Under which order.
    pub fence: Fence,
    /// How far.
    pub state: SlotState,
    /// For people.
    pub detail: String,
    /// Segments present and verified.
    pub segments_verified: u64,
    /// Segments of the model.
    pub segments_total: u64,
    /// Times its worker was started again.
    pub restarts: u32,
    /// The worker's last metrics.
    pub metrics: Option<WorkerMetrics>,
}

/// Control, this is how I am; what shall I do?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// Which start of the agent; a new one means that volatile state is gone.
    pub boot: u64,
    /// Its software.
    pub version: String,
    /// What it has.
    pub resources: NodeResources,
    /// How well it can isolate.
    pub isolation: Isolation,
    /// What it cannot enforce, each a label.
    pub not_enforced: Vec<String>,
    /// Its slots.
    pub slots: Vec<SlotReport>,
    /// How many governance bundles it has verified and kept.
    pub governance_length: u64,
    /// Route table version in force at its gateway, if it has one.
    pub routes_version: Option<u64>,
    /// Largest time the agent will wait for an answer that brings news, in milliseconds.
    pub wait_ms: u32,
    /// Digest of the desired state it already has; an answer waits while it is unchanged.
    pub desired: crate::Digest,
    /// Lines that workers wrote and that no answer has acknowledged, oldest first; at most [`LOG_LINES_MAX`].
    pub logs: Vec<WorkerLine>,
}

/// Most log lines in one request; what is more is dropped, oldest first, and said so in a line.
pub const LOG_LINES_MAX: usize = 128;

/// A line that a worker wrote to its standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLine {
    /// Which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
    /// Its number among the lines of this agent's life ([`SyncRequest::boot`]), which only rises. A line that is sent
    /// again, because no answer said that it arrived, has the same.
    pub sequence: u64,
    /// When it was read.
    pub at: Millis,
    /// The text, at most 4 KiB.
    pub text: String,
}

/// A deployment that names this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The authority.
    pub bundle: Bundle,
    /// The slots of it that this node holds.
    pub orders: Vec<SignedOrder>,
    /// Finish and release these slots: their service is being retired or moved.
    pub draining: Vec<SlotIndex>,
    /// Where the model lies.
    pub model: ModelRecord,
    /// The model's key, for this node alone.
    pub wrap: Option<KeyWrap>,
}

/// What a node shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Its slots. A slot that it runs and that is not here ends.
    pub assignments: Vec<Assignment>,
    /// For the gateway role: the table to hand over.
    pub routes: Option<RouteTable>,
}

/// Digest domain of a desired state.
pub const DESIRED_DOMAIN: &str = "quorate/desired/v1";

impl Desired {
    /// By which an agent says what it already has.
    #[must_use]
    pub fn digest(&self) -> crate::Digest {
        crate::Digest::of_domain(DESIRED_DOMAIN, &crate::canonical::to_bytes(self))
    }
}

/// Control's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncResponse {
    /// Control's time.
    pub now: Millis,
    /// The node may act this long, counted from when it *sent* its request.
    pub lease_ms: u64,
    /// Governance bundles after those the agent has, in order.
    pub governance: Vec<Bundle>,
    /// The desired state; none when it is the one the agent already has.
    pub desired: Option<Desired>,
}

/// Answer of a replica that does not lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotLeader {
    /// The leader's key, if known; genesis has its address.
    pub leader: Option<PublicKey>,
}

/// A node that nobody admitted yet asks to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// What it says it is; its id must be the key of the connection.
    pub admission: NodeAdmission,
}

/// Answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolResponse {
    /// True once a certificate has admitted this identity.
    pub admitted: bool,
    /// The circle's beginning, to check against the pinned circle id.
    pub genesis: SignedGenesis,
}

/// A node that waits for admission, as members see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PendingNode {
    /// What it says it is.
    pub admission: NodeAdmission,
    /// Who asked.
    pub id: NodeId,
    /// When it last asked.
    pub last_seen: Millis,
}
