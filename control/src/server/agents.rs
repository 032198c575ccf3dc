//! The agents' endpoints on the overlay: `sync` for admitted nodes, `enrol` for all other peers. Every
//! replica answers alone for its clock, its halts, and the grants of access.
//!
//! Leases rest on the rules of [`scheduler::Observed`]. A leader answers only after its own announcement is
//! applied, and after a read barrier that began when the request had arrived.

use super::Server;
use super::halts;
use super::job_logs;
use super::leader::LeaderState;
use super::logs;
use super::polls::hold;
use super::problem::{Failure, unavailable};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use host::wall_clock;
use human_chain::{CircleState, check_complaint};
use overlay::{Limits, Peer, PeerAddress};
use protocol::access::AccessRequest;
use protocol::agent::{
    Assignment, COMPLAINTS_MAX, ClockReading, Desired, EnrolRequest, EnrolResponse, NotLeader, SyncRequest,
    SyncResponse,
};
use protocol::halt::HaltsRequest;
use protocol::job::{JOB_ORDER_DOMAIN, JobOrder, SignedJobOrder};
use protocol::job_data::{JOB_DATA_BYTES_MAX, JobDataAnswer, RegisterJobData};
use protocol::job_report::{JobAssignment, RankLine};
use protocol::limits::{HISTORY_PAGE_BYTES_MAX, LEASE_MS, NODES_MAX, SYNC_BYTES_MAX, SYNC_INTERVAL_IDLE_MS};
use protocol::model::SignedComplaint;
use protocol::order::{ORDER_DOMAIN, SignedOrder, SlotOrder};
use protocol::{NodeId, NodeName, Refusal, canonical, error_code};
use scheduler::limits::PENDING_BYTES_MAX;
use scheduler::{Action, Actor, ClockReadings, Cluster, ClusterView, LeaderTime, Reply, enrol_answer};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of a request from an unadmitted node: the state machine's limit plus the framing.
const ENROL_BYTES_MAX: usize = PENDING_BYTES_MAX + 1024;
/// Connection limit of the overlay listener: one per node, an old one for every fourth node that has
/// reconnected, and a few per other replica.
pub(super) const CONNECTIONS_MAX: usize = NODES_MAX + NODES_MAX / 4 + 64;

const _: () = assert!(CONNECTIONS_MAX > NODES_MAX, "every node has a place on every replica");

/// Path on which admitted nodes report their state and fetch their orders.
pub(super) const SYNC: &str = "/agent/v1/sync";
/// Path on which unadmitted nodes ask for admission.
pub(super) const ENROL: &str = "/agent/v1/enrol";

/// Path on which admitted nodes ask each replica for grants and revocations of access.
const ACCESS: &str = "/agent/v1/access";
/// Maximum size of such a request in bytes.
const ACCESS_REQUEST_BYTES_MAX: usize = 64;

/// Path on which admitted nodes ask the leader to keep checkpoints and outputs of jobs.
const JOB_DATA: &str = "/agent/v1/job-data";

/// Path on which admitted nodes ask each replica for its clock.
const CLOCK: &str = "/agent/v1/clock";

/// Returns the limits of the overlay listener: a sync may wait for news, and carries a page of history.
pub(crate) fn limits() -> Limits {
    Limits {
        request_bytes_max: SYNC_BYTES_MAX,
        response_bytes_max: SYNC_BYTES_MAX,
        connections_max: CONNECTIONS_MAX,
        ..Limits::default()
    }
}

/// Builds the router of the agents' endpoints.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let enrol = post(enrol).layer(DefaultBodyLimit::max(ENROL_BYTES_MAX));
    let halts = post(halts_after).layer(DefaultBodyLimit::max(halts::REQUEST_BYTES_MAX));
    let job_data = post(keep_job_data).layer(DefaultBodyLimit::max(JOB_DATA_BYTES_MAX));
    let access = post(access_after).layer(DefaultBodyLimit::max(ACCESS_REQUEST_BYTES_MAX));
    Router::new()
        .route(SYNC, post(sync))
        .route(ACCESS, access)
        .route(ENROL, enrol)
        .route(CLOCK, post(clock))
        .route(JOB_DATA, job_data)
        .route(halts::PATH, halts)
        .with_state(server)
}

fn cbor<T: Serialize>(status: StatusCode, value: &T) -> Response {
    (status, [(header::CONTENT_TYPE, "application/cbor")], canonical::to_bytes(value)).into_response()
}

/// Returns the response of a replica that does not lead; it names the leader.
fn not_leader(server: &Server) -> Response {
    let leader = server.handle.status().leader;
    let replicas = &server.genesis.genesis.control;
    let leader = replicas.iter().find(|replica| Some(replica.id) == leader).map(|replica| replica.key);
    cbor(StatusCode::MISDIRECTED_REQUEST, &NotLeader { leader })
}

/// Returns the response to a node that, as far as this replica knows, no certificate admits.
pub(super) fn not_admitted(server: &Server) -> Response {
    // A follower may not have applied the admission yet; only the leader's rejection is final.
    if server.lock_leadership().is_none() {
        return not_leader(server);
    }
    let message = "no certificate admits this node; it may only enrol";
    Failure::new(error_code::NODE_NOT_ADMITTED, message).into_response()
}

async fn enrol(
    State(server): State<Arc<Server>>,
    Extension(Peer(key)): Extension<Peer>,
    Extension(address): Extension<PeerAddress>,
    body: Bytes,
) -> Result<Response, Failure> {
    let request: EnrolRequest = canonical::from_bytes(&body, ENROL_BYTES_MAX)
        .map_err(|error| Failure::new(error_code::REQUEST_INVALID, error.to_string()))?;
    if request.admission.id != NodeId(key) {
        let message = "the admission's key is not the connection's";
        return Err(Failure::new(error_code::REQUEST_INVALID, message));
    }
    // Most requests from unadmitted peers repeat a known admission; they are answered without writing to the
    // log.
    let clocks = server.clocks.readings();
    let known = server.cluster(|cluster| enrol_answer(cluster, &request.admission, &clocks));
    let reply = match known {
        Some(answer) => answer?,
        None => {
            server.unadmitted.take_log_write(address)?;
            server.command(Actor::Scheduler, Action::Enrol(Box::new(request.admission))).await?
        }
    };
    match super::problem::accepted(reply)? {
        Reply::Enrolled { admitted } => {
            let genesis = server.genesis.clone();
            Ok(cbor(StatusCode::OK, &EnrolResponse { admitted, genesis }))
        }
        _ => Err(unavailable("the state machine gave an unexpected reply")),
    }
}

/// Reports this replica's clock, as leader or follower.
async fn clock() -> Response {
    cbor(StatusCode::OK, &ClockReading { now: wall_clock() })
}

/// Reports the halts of this replica, as leader or follower, as soon as there is a new one.
async fn halts_after(State(server): State<Arc<Server>>, body: Bytes) -> Result<Response, Failure> {
    let request: HaltsRequest = canonical::from_bytes(&body, halts::REQUEST_BYTES_MAX)
        .map_err(|error| Failure::new(error_code::REQUEST_INVALID, error.to_string()))?;
    Ok(cbor(StatusCode::OK, &server.halts.wait(request, &server.ending).await))
}

/// Reports grants and revocations of access, as leader or follower, as soon as there is a new one. A node
/// that the circle removes in the meantime gets none.
async fn access_after(
    State(server): State<Arc<Server>>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Failure> {
    let request: AccessRequest = canonical::from_bytes(&body, ACCESS_REQUEST_BYTES_MAX)
        .map_err(|error| Failure::new(error_code::REQUEST_INVALID, error.to_string()))?;
    let answer = server.access_after(request).await;
    if !server.is_admitted(NodeId(key)) {
        return Ok(not_admitted(&server));
    }
    Ok(cbor(StatusCode::OK, &answer))
}

/// Keeps a checkpoint, outputs or logs of a job, by the statement of the node that made it. A statement that
/// the state machine would refuse is not written to the log.
async fn keep_job_data(
    State(server): State<Arc<Server>>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Failure> {
    if !server.is_admitted(NodeId(key)) {
        return Ok(not_admitted(&server));
    }
    let request: RegisterJobData = canonical::from_bytes(&body, JOB_DATA_BYTES_MAX)
        .map_err(|error| Failure::new(error_code::REQUEST_INVALID, error.to_string()))?;
    if request.signed.data.node != NodeId(key) {
        let message = "the statement is of another node than that of the connection";
        return Err(Failure::new(error_code::REQUEST_INVALID, message));
    }
    if server.lock_leadership().is_none() {
        return Ok(not_leader(&server));
    }
    server.shared_read_barrier().await?;
    let clocks = server.clocks.readings();
    let refused = server.cluster(|cluster| scheduler::refused_job_data(cluster, &request, &clocks));
    let refusal = match refused {
        Some(refusal) => Some(refusal),
        None => match server.command(Actor::Scheduler, Action::RegisterJobData(Box::new(request))).await? {
            Reply::Refused { code, message } => Some(Refusal::new(code, message)),
            _ => None,
        },
    };
    Ok(cbor(StatusCode::OK, &JobDataAnswer { refusal }))
}

async fn sync(
    State(server): State<Arc<Server>>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Failure> {
    let node = NodeId(key);
    let arrived = LeaderTime(wall_clock());
    let Some(name) = server.cluster(|cluster| cluster.node(&node).map(|n| n.name.clone())) else {
        return Ok(not_admitted(&server));
    };
    let request: SyncRequest = canonical::from_bytes(&body, SYNC_BYTES_MAX)
        .map_err(|error| Failure::new(error_code::REQUEST_INVALID, error.to_string()))?;
    if server.lock_leadership().is_none() {
        return Ok(not_leader(&server));
    }
    // Readers need not wait for the barrier; the node learns only behind it that its lines have arrived.
    server.take_rank_lines(node, &name, &request);
    server.shared_read_barrier().await?;
    if !server.note(node, &name, &request, arrived)? {
        return Ok(not_leader(&server));
    }
    server.drop_wraps(&request.complaints).await;
    let Some(response) = server.answer_with_news(node, &request).await else {
        return Ok(not_leader(&server));
    };
    server.metrics.syncs.inc();
    Ok(cbor(StatusCode::OK, &response))
}

impl Server {
    /// Records the node's report; false if this replica does not lead.
    fn note(
        &self,
        node: NodeId,
        name: &NodeName,
        request: &SyncRequest,
        arrived: LeaderTime,
    ) -> Result<bool, Failure> {
        let generation = self.cluster(Cluster::generation);
        let mut leadership = self.lock_leadership();
        let Some(leadership) = self.confirmed(&mut leadership) else { return Ok(false) };
        let recorded = leadership.observed.record_heartbeat(node, request, generation, arrived);
        if recorded.map_err(unavailable)? {
            self.report_news.notify_one();
        }
        if !request.logs.is_empty() {
            let lines = self.cluster(|cluster| logs::of_holder(cluster.services(), node, &request.logs));
            let mut logs = self.logs.lock().expect("no holder of this lock panics");
            logs.append(leadership.term.0, name, request.boot, lines);
        }
        Ok(true)
    }

    /// Keeps the lines of ranks that a node sends to the leader of this replica's term.
    fn take_rank_lines(&self, node: NodeId, name: &NodeName, request: &SyncRequest) {
        if request.rank_lines.is_empty() {
            return;
        }
        let mut leadership = self.lock_leadership();
        let term = self.confirmed(&mut leadership).map(|leadership| leadership.term.0);
        if let Some(term) = term.filter(|term| *term == request.rank_lines_term) {
            let lines =
                self.cluster(|cluster| job_logs::of_holder(cluster.jobs(), node, &request.rank_lines));
            self.keep_rank_lines(term, name, lines);
        }
    }

    /// Keeps lines of jobs that a node sent to the leader of this term, and wakes those that wait for them.
    pub(super) fn keep_rank_lines(&self, epoch: u64, name: &NodeName, lines: Vec<RankLine>) {
        self.job_logs.lock().expect("no holder of this lock panics").append(epoch, name, lines);
        self.job_line_news.send_replace(());
    }

    /// Drops the wraps about which a node complains. A complaint that changes nothing, or does not hold, is
    /// not written to the log: a node cannot fill it.
    async fn drop_wraps(&self, complaints: &[SignedComplaint]) {
        for signed in complaints.iter().take(COMPLAINTS_MAX) {
            let complaint = &signed.complaint;
            let stands = self.cluster(|cluster| {
                let held = cluster.wrap_of(&complaint.root, &complaint.recipient);
                let holds =
                    cluster.circle_state().is_some_and(|state| check_complaint(state, signed).is_ok());
                holds && held.is_some_and(|held| held.digest() == complaint.wrap)
            });
            if stands {
                let action = Action::DropWrap(Box::new(signed.clone()));
                if let Err(failure) = self.command(Actor::Scheduler, action).await {
                    let reason = &failure.problem().message;
                    tracing::warn!(reason, "a complaint about a wrap was not recorded; the node repeats it");
                }
            }
        }
    }

    /// Returns the response as soon as it has news, or when the agent's wait is over.
    async fn answer_with_news(&self, node: NodeId, request: &SyncRequest) -> Option<SyncResponse> {
        let wait = Duration::from_millis(u64::from(request.wait_ms).min(SYNC_INTERVAL_IDLE_MS));
        let applied = self.handle.watch_applied();
        hold(wait, applied, self.ending.cancelled(), || {
            let response = self.answer(node, request);
            let has_news = |response: &SyncResponse| {
                // The answer acknowledges lines; those for the leader of another term come again at once.
                let has_lines = !request.rank_lines.is_empty();
                response.desired.is_some() || !response.governance.is_empty() || has_lines
            };
            // A replica that leads no more says so at once.
            let is_news = response.as_ref().is_none_or(has_news);
            (response, is_news)
        })
        .await
    }

    fn answer(&self, node: NodeId, request: &SyncRequest) -> Option<SyncResponse> {
        let mut leadership = self.lock_leadership();
        let leadership = self.confirmed(&mut leadership)?;
        let clocks = self.clocks.readings();
        let (now, history, governance, desired) = self.cluster(|cluster| {
            let (chain, length) = (cluster.governance_chain(), request.governance_length);
            let page = scheduler::history_page(chain, length, HISTORY_PAGE_BYTES_MAX);
            let history = cluster.circle_state().map(CircleState::head);
            (cluster.time(&clocks), history, page, self.desired(cluster, leadership, node, &clocks))
        });
        let desired = (desired.digest() != request.desired).then_some(desired);
        let term = leadership.term.0;
        Some(SyncResponse { now: now.0, term, lease_ms: LEASE_MS, history: history?, governance, desired })
    }

    fn desired(
        &self,
        cluster: &Cluster,
        leadership: &mut LeaderState,
        node: NodeId,
        clocks: &ClockReadings,
    ) -> Desired {
        let assignments = scheduler::desired_for(cluster, node)
            .into_iter()
            .map(|part| Assignment {
                certificate: part.certificate,
                orders: part.orders.into_iter().map(|order| self.sign(order)).collect(),
                draining: part.draining,
                model: part.model,
                wrap: part.wrap,
            })
            .collect();
        let is_gateway = cluster.node(&node).is_some_and(|admission| admission.gateway.is_some());
        let routes = is_gateway.then(|| {
            let (observed, now) = (&leadership.observed, LeaderTime(wall_clock()));
            let view = ClusterView { cluster, observed, now, clocks };
            leadership.routes = scheduler::route_table(view, &leadership.routes);
            leadership.routes.clone()
        });
        let jobs = scheduler::desired_jobs(cluster, node).into_iter().map(|part| JobAssignment {
            order: self.sign_job(part.order),
            start: part.start,
            peers: part.peers.into_iter().map(|order| self.sign_job(order)).collect(),
            artifact: part.artifact,
            inputs: part.inputs,
            checkpoint: part.checkpoint,
        });
        Desired { assignments, routes, jobs: jobs.collect() }
    }

    /// Signs an order. Ed25519 is deterministic, so the same order always has the same bytes. The digest of
    /// an agent's orders therefore stays equal while nothing changes and this replica leads.
    fn sign(&self, order: SlotOrder) -> SignedOrder {
        let signature = self.identity.sign(ORDER_DOMAIN, &canonical::to_bytes(&order));
        SignedOrder { order, signer: self.identity.public_key(), signature }
    }

    /// Signs an order for part of a gang, as [`Self::sign`] does.
    fn sign_job(&self, order: JobOrder) -> SignedJobOrder {
        let signature = self.identity.sign(JOB_ORDER_DOMAIN, &canonical::to_bytes(&order));
        SignedJobOrder { order, signer: self.identity.public_key(), signature }
    }
}
