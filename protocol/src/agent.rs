//! Messages between an agent and control. The agent always sends the request: a node listens on nothing.

use crate::digest::Digest;
use crate::gateway::RouteTable;
use crate::governance::{Bundle, HistoryHead, NodeAdmission, SignedGenesis};
use crate::ids::{Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::job_report::{JobAssignment, JobSlotReport, RankLine};
use crate::keys::PublicKey;
use crate::manifest::Isolation;
use crate::model::{ModelRecord, SignedComplaint, SignedWrap};
use crate::order::SignedOrder;
use crate::slot_usage::SignedSlotUsage;
use crate::worker::WorkerMetrics;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// GPU of a node: a device that its driver describes, or a simulated one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Index on its node; slot orders name the GPU by it.
    pub index: u32,
    /// Unique id that the driver reports.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// True for `--simulate-gpus`: schedules, but computes nothing.
    pub simulated: bool,
    /// True if the GPU is healthy enough for new work.
    pub healthy: bool,
}

/// Capacity that a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct NodeResources {
    /// CPU that the node offers, in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory that the node offers, in bytes.
    pub memory_bytes: u64,
    /// GPUs, simulated ones included.
    pub gpus: Vec<Gpu>,
}

/// State of a slot on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Fetches and verifies segments.
    Loading,
    /// The sandbox runs; the engine is not ready.
    Starting,
    /// Serves requests.
    Ready,
    /// Finishes running requests and admits no new ones.
    Draining,
    /// Stopped; the slot is free.
    Released,
    /// The worker did not start or died; the agent retries with back-off.
    Failed,
    /// The agent rejected the order; the detail begins with the error code.
    Refused,
}

/// State of a slot, as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotReport {
    /// Service that the slot belongs to.
    pub service: ServiceName,
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Fence of the order under which the node holds the slot.
    pub fence: Fence,
    /// State at the time of the report.
    pub state: SlotState,
    /// Explanation of the state, as text for people.
    pub detail: String,
    /// Number of segments present and verified.
    pub segments_verified: u64,
    /// Number of segments of the model.
    pub segments_total: u64,
    /// Number of restarts of the worker.
    pub restarts: u32,
    /// Last metrics that the worker wrote, if any.
    pub metrics: Option<WorkerMetrics>,
}

/// Request of an agent to control: reports the node's state and requests the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// Incarnation of the agent; a new value means that its volatile state is lost.
    pub boot: u64,
    /// Version of the agent's software.
    pub version: String,
    /// Capacity that the node offers.
    pub resources: NodeResources,
    /// Isolation that the node can enforce.
    pub isolation: Isolation,
    /// Labels of the limits that the node cannot enforce.
    pub not_enforced: Vec<String>,
    /// Report of every slot on the node, and of every order that the node could start without a further
    /// answer, after a restart of its agent too.
    pub slots: Vec<SlotReport>,
    /// Number of governance bundles that the agent has verified and stored.
    pub governance_length: u64,
    /// Version of the route table in force at the node's gateway; none without a gateway.
    pub routes_version: Option<u64>,
    /// Long-poll timeout: the longest time in milliseconds that control may hold the request until there is
    /// news.
    pub wait_ms: u32,
    /// Digest of the desired state that the agent already has; control holds its answer while that state is
    /// unchanged.
    pub desired: Digest,
    /// Lines that workers wrote and that no answer has acknowledged, oldest first; at most [`LOG_LINES_MAX`].
    pub logs: Vec<WorkerLine>,
    /// Complaints about wraps that the node was sent and cannot use; at most [`COMPLAINTS_MAX`].
    pub complaints: Vec<SignedComplaint>,
    /// Report of every slot of a job on the node; at most [`crate::job_report::JOB_REPORTS_MAX`]. An ended
    /// slot is reported until control no longer assigns it.
    pub jobs: Vec<JobSlotReport>,
    /// Raft term whose leader acknowledged the lines of ranks before these; 0 if none did. A leader of
    /// another term takes none: the node sends them again from the first that it keeps.
    pub rank_lines_term: u64,
    /// Lines that ranks wrote and that no answer has acknowledged, those of each rank in their order; at most
    /// [`crate::job_report::RANK_LINES_MAX`].
    pub rank_lines: Vec<RankLine>,
    /// Counts of slots that changed and that no answer has acknowledged; at most
    /// [`crate::slot_usage::SLOT_USAGES_MAX`].
    pub usage: Vec<SignedSlotUsage>,
}

/// Maximum number of complaints in one request: more models than a node loads at the same time.
pub const COMPLAINTS_MAX: usize = 16;

/// Maximum number of log lines in one request. Excess lines are dropped, oldest first, and a line reports the
/// loss.
pub const LOG_LINES_MAX: usize = 128;

const _: () = assert!(
    LOG_LINES_MAX * 8192 < crate::limits::SYNC_BYTES_MAX / 2,
    "log lines leave room for the node's report"
);

/// Line that a worker wrote to its standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLine {
    /// Service that the worker runs.
    pub service: ServiceName,
    /// Index of the slot that the worker runs in.
    pub slot: SlotIndex,
    /// Number of the line within this incarnation of the agent ([`SyncRequest::boot`]); it only rises. A line
    /// that is resent because no answer acknowledged it keeps its number.
    pub sequence: u64,
    /// Time at which the agent read the line, by the node's wall clock.
    pub at: Millis,
    /// Text of the line, at most 4 KiB.
    pub text: String,
}

/// Deployment that names this node, with everything that the node needs to run its slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Certificate in force that approves the deployment: the authority for the orders. The node has it from
    /// its chain, which [`SyncResponse::governance`] completes.
    pub certificate: Digest,
    /// Orders for those slots of the deployment that this node holds.
    pub orders: Vec<SignedOrder>,
    /// Slots to drain and release, because their service is being retired or moved.
    pub draining: Vec<SlotIndex>,
    /// Stores, size and erasure code of the model.
    pub model: ModelRecord,
    /// Key of the model, wrapped to this node alone.
    pub wrap: Option<SignedWrap>,
}

/// Desired state of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Deployments whose slots the node holds. The agent stops a running slot that is missing here.
    pub assignments: Vec<Assignment>,
    /// Route table to pass to the gateway; present only for the gateway role.
    pub routes: Option<RouteTable>,
    /// Slots of jobs that the node holds. The agent ends a slot that is missing here.
    pub jobs: Vec<JobAssignment>,
}

/// Digest domain of a desired state.
pub const DESIRED_DOMAIN: &str = "quorate/desired/v4";

impl Desired {
    /// Digest of the canonical bytes, by which an agent reports the state that it already has.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(DESIRED_DOMAIN, &crate::canonical::to_bytes(self))
    }
}

/// Answer of control to a [`SyncRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncResponse {
    /// Cluster's time: what the clocks of a majority of the control replicas have reached.
    pub now: Millis,
    /// Raft term of the leader that answers. It has taken the lines of ranks if the request names this term.
    pub term: u64,
    /// Lease in milliseconds, counted from the time at which the node *sent* its request.
    pub lease_ms: u64,
    /// Head of the history that control serves. The agent refuses an answer whose history lacks or changes a
    /// decision that it has verified.
    pub history: HistoryHead,
    /// Governance bundles after those that the agent has, in order: as many as fit into
    /// [`crate::limits::HISTORY_PAGE_BYTES_MAX`]. The agent is up to date once there are none.
    pub governance: Vec<Bundle>,
    /// Desired state; none if the agent already has it.
    pub desired: Option<Desired>,
}

/// Answer of a control replica that is not the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotLeader {
    /// Key of the leader, if known; genesis has its address.
    pub leader: Option<PublicKey>,
}

/// Clock of a control replica, whether it leads or not. Nodes ask all replicas, so that no single wrong clock
/// counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockReading {
    /// Current time of the replica's wall clock.
    pub now: Millis,
}

/// Request of an unadmitted node for admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// Admission as the node proposes it; its id must be the key of the connection.
    pub admission: NodeAdmission,
}

/// Answer to an [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolResponse {
    /// True once a certificate has admitted this identity.
    pub admitted: bool,
    /// Signed genesis of the circle, to check against the pinned circle id.
    pub genesis: SignedGenesis,
}

/// Node that waits for admission, as members see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PendingNode {
    /// Admission as the node proposes it.
    pub admission: NodeAdmission,
    /// Identity key of the node, proven by its connection.
    pub id: NodeId,
    /// Time of the node's last request.
    pub last_seen: Millis,
}
