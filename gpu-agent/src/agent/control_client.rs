//! Client of the control replicas: it asks the leader if known, any replica otherwise. A follower's answer
//! names the leader.

use super::error::AgentError;
use super::polling::POLL_LIMIT;
use bytes::Bytes;
use host::Clock;
use http::{Request, Response, StatusCode, header};
use overlay::{Address, Backoff, Client, Identity, Limits, NotAnAddress, PublicKey};
use protocol::access::{ACCESS_PAGE_MAX, ACCESS_RECORD_BYTES_MAX, AccessAnswer, AccessRequest};
use protocol::agent::{ClockReading, EnrolRequest, EnrolResponse, NotLeader, SyncRequest, SyncResponse};
use protocol::canonical;
use protocol::error_code;
use protocol::governance::ControlReplica;
use protocol::halt::{HALT_BYTES_MAX, HALTS_PAGE_MAX, HaltsAnswer, HaltsRequest};
use protocol::job_data::{JOB_DATA_ANSWER_BYTES_MAX, JobDataAnswer, RegisterJobData};
use protocol::limits::{
    GENESIS_BYTES_MAX, LEASE_MS, SYNC_BYTES_MAX, SYNC_INTERVAL_IDLE_MS, SYNC_INTERVAL_MS,
};
use protocol::{BootTime, Millis, NodeId};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

#[cfg(test)]
mod tests;

/// Longest wait for an answer that is not held for news: a read barrier, and headroom.
const ANSWER_LIMIT_MS: u64 = 800;
/// Longest wait for an answer other than those to polls, of a node that holds work: its long poll, and the
/// above. Two replicas may be silent and the third is still asked within one lease.
const REQUEST_LIMIT: Duration = Duration::from_millis(SYNC_INTERVAL_MS + ANSWER_LIMIT_MS);
const _: () =
    assert!(2 * (SYNC_INTERVAL_MS + ANSWER_LIMIT_MS) < LEASE_MS, "a lease outlasts two silent replicas");
const _: () = assert!(
    SYNC_INTERVAL_IDLE_MS + ANSWER_LIMIT_MS < LEASE_MS,
    "an idle node asks another replica before it counts as silent"
);
/// Longest TCP connect and handshake, for the same reason.
const HANDSHAKE_LIMIT: Duration = Duration::from_millis(800);
/// Longest error text that is read from an answer.
const PROBLEM_BYTES_MAX: usize = 2048;
/// Largest answer other than a sync response.
const NOT_LEADER_BYTES_MAX: usize = 1024;
/// Largest answer to a request for halts.
const HALTS_BYTES_MAX: usize = HALTS_PAGE_MAX * HALT_BYTES_MAX + 64;
/// Largest answer to a request for grants and revocations.
const ACCESS_BYTES_MAX: usize = ACCESS_PAGE_MAX * (ACCESS_RECORD_BYTES_MAX + 16) + 64;
/// Largest answer to a request for a clock.
const CLOCK_BYTES_MAX: usize = 64;

/// Link between an agent and the control replicas.
#[derive(Debug)]
pub enum ControlLink {
    /// Over the overlay, at the addresses in genesis.
    Overlay,
    /// In this process, for simulations: one queue of calls per replica, in the order of genesis.
    InProcess(Vec<mpsc::Sender<ControlCall>>),
}

/// An agent's request to a control replica in this process.
#[derive(Debug)]
pub struct ControlCall {
    /// Node that asks; on a real connection the handshake proves it.
    pub node: NodeId,
    /// Path of the request.
    pub path: &'static str,
    /// Body of the request.
    pub body: Bytes,
    /// Channel for the answer. Dropping it simulates a broken connection.
    pub answer: oneshot::Sender<Response<Bytes>>,
}

/// The control replicas of one circle.
#[derive(Debug)]
pub(super) struct AgentControlClient {
    node: NodeId,
    clock: Clock,
    replicas: Vec<ReplicaLink>,
    /// Index of the replica to ask first.
    preferred: AtomicUsize,
}

#[derive(Debug)]
struct ReplicaLink {
    key: PublicKey,
    address: String,
    way: Way,
    /// True while its last reply denied the admission of this node.
    denies: AtomicBool,
}

#[derive(Debug)]
enum Way {
    Overlay(Box<Client>),
    InProcess(mpsc::Sender<ControlCall>),
}

/// Outcome of a request.
#[derive(Debug)]
pub(super) enum RequestOutcome<T> {
    /// A replica answered.
    Answered(ReplicaAnswer<T>),
    /// No replica gave a usable answer, and one of them reports that no certificate admits this node.
    NotAdmitted,
    /// No replica gave a usable answer; the text holds the reason of each.
    Failed(String),
}

/// An answer and its origin.
#[derive(Debug)]
pub(super) struct ReplicaAnswer<T> {
    pub(super) body: Box<T>,
    /// Boot clock just before the request was sent.
    pub(super) sent_at: BootTime,
    /// Index of the replica that answered, in the order of genesis.
    pub(super) replica: usize,
}

impl AgentControlClient {
    pub(super) fn new(
        link: ControlLink,
        identity: &Identity,
        replicas: &[ControlReplica],
        clock: Clock,
    ) -> Result<Self, AgentError> {
        let ways: Vec<Way> = match link {
            ControlLink::Overlay => {
                let way = |replica: &ControlReplica| Ok(Way::Overlay(Box::new(dial(identity, replica)?)));
                replicas.iter().map(way).collect::<Result<_, AgentError>>()?
            }
            ControlLink::InProcess(queues) => queues.into_iter().map(Way::InProcess).collect(),
        };
        if ways.len() != replicas.len() {
            let message = format!("{} ways to {} control replicas", ways.len(), replicas.len());
            return Err(AgentError::Configuration(message));
        }
        let replica = |(replica, way): (&ControlReplica, Way)| ReplicaLink {
            key: replica.key,
            address: replica.address.clone(),
            way,
            denies: AtomicBool::new(false),
        };
        let replicas = replicas.iter().zip(ways).map(replica).collect();
        let node = NodeId(identity.public_key());
        Ok(Self { node, clock, replicas, preferred: AtomicUsize::new(0) })
    }

    /// Reports this node's state and requests its desired state.
    pub(super) async fn sync(&self, request: &SyncRequest) -> RequestOutcome<SyncResponse> {
        let limit = Duration::from_millis(u64::from(request.wait_ms) + ANSWER_LIMIT_MS);
        self.ask("/agent/v1/sync", canonical::to_bytes(request).into(), SYNC_BYTES_MAX, limit).await
    }

    /// Requests admission.
    pub(super) async fn enrol(&self, request: &EnrolRequest) -> RequestOutcome<EnrolResponse> {
        let body = canonical::to_bytes(request).into();
        self.ask("/agent/v1/enrol", body, GENESIS_BYTES_MAX + 64, REQUEST_LIMIT).await
    }

    /// Requests that control keep a checkpoint or outputs of a job.
    pub(super) async fn register_job_data(&self, request: &RegisterJobData) -> RequestOutcome<JobDataAnswer> {
        let body = canonical::to_bytes(request).into();
        self.ask("/agent/v1/job-data", body, JOB_DATA_ANSWER_BYTES_MAX, REQUEST_LIMIT).await
    }

    /// Returns the number of control replicas.
    pub(super) fn replica_count(&self) -> usize {
        self.replicas.len()
    }

    /// Returns the clock of one replica, whether it leads or not, and the boot clock just before it was
    /// asked. Returns none if it does not answer.
    pub(super) async fn clock_of(&self, replica: usize) -> Option<(Millis, BootTime)> {
        let asked_at = self.clock.boot();
        let replica = self.replicas.get(replica)?;
        let response = self.exchange(replica, "/agent/v1/clock", Bytes::new(), REQUEST_LIMIT).await.ok()?;
        let answers = response.status() == StatusCode::OK;
        let reading: ClockReading = canonical::from_bytes(response.body(), CLOCK_BYTES_MAX).ok()?;
        answers.then_some((reading.now, asked_at))
    }

    /// Returns the halts that one replica has, whether it leads or not. Returns none if it does not answer.
    pub(super) async fn halts_of(&self, replica: usize, request: &HaltsRequest) -> Option<HaltsAnswer> {
        let (replica, body) = (self.replicas.get(replica)?, canonical::to_bytes(request).into());
        let response = self.exchange(replica, "/agent/v1/halts", body, POLL_LIMIT).await.ok()?;
        let answers = response.status() == StatusCode::OK;
        let answer: HaltsAnswer = canonical::from_bytes(response.body(), HALTS_BYTES_MAX).ok()?;
        (answers && answer.halts.len() <= HALTS_PAGE_MAX).then_some(answer)
    }

    /// Returns the grants and revocations that one replica has, whether it leads or not. Returns none if it
    /// does not answer.
    pub(super) async fn access_of(&self, replica: usize, request: &AccessRequest) -> Option<AccessAnswer> {
        let (replica, body) = (self.replicas.get(replica)?, canonical::to_bytes(request).into());
        let response = self.exchange(replica, "/agent/v1/access", body, POLL_LIMIT).await.ok()?;
        let answers = response.status() == StatusCode::OK;
        let answer: AccessAnswer = canonical::from_bytes(response.body(), ACCESS_BYTES_MAX).ok()?;
        (answers && answer.records.len() <= ACCESS_PAGE_MAX).then_some(answer)
    }

    /// Lets the next request begin with another replica than this one, whose answer was refused.
    pub(super) fn ask_another_than(&self, replica: usize) {
        self.preferred.store((replica + 1) % self.replicas.len(), Ordering::Relaxed);
    }

    /// Returns the replica to ask next: the first from this index on that was not tried. Those that denied
    /// the admission of this node come last.
    fn next_of(&self, tried: &[bool], from: usize) -> Option<usize> {
        let count = self.replicas.len();
        let untried = (0..count).map(|step| (from + step) % count).filter(|index| !tried[*index]);
        untried.min_by_key(|index| self.denies(*index))
    }

    fn denies(&self, index: usize) -> bool {
        self.replicas[index].denies.load(Ordering::Relaxed)
    }

    /// Asks the preferred replica, then the leader that it names, then the others; each at most once. A
    /// replica that does not admit this node speaks for itself alone: it may be behind, or hostile. It is
    /// asked last until it replies otherwise.
    async fn ask<T>(
        &self,
        path: &'static str,
        body: Bytes,
        bytes_max: usize,
        limit: Duration,
    ) -> RequestOutcome<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let count = self.replicas.len();
        let mut tried = vec![false; count];
        let preferred = self.preferred.load(Ordering::Relaxed) % count;
        let mut index = self.next_of(&tried, preferred).unwrap_or(preferred);
        let (mut reasons, mut is_denied) = (Vec::new(), false);
        loop {
            tried[index] = true;
            let replica = &self.replicas[index];
            let mut next = None;
            let sent_at = self.clock.boot();
            let reply = self.exchange(replica, path, body.clone(), limit).await;
            let denies = reply.as_ref().is_ok_and(is_not_admitted);
            if reply.is_ok() {
                replica.denies.store(denies, Ordering::Relaxed);
            }
            match reply {
                Ok(response) => match response.status() {
                    StatusCode::OK => match canonical::from_bytes(response.body(), bytes_max) {
                        Ok(answer) => {
                            self.preferred.store(index, Ordering::Relaxed);
                            let body = Box::new(answer);
                            return RequestOutcome::Answered(ReplicaAnswer { body, sent_at, replica: index });
                        }
                        Err(error) => reasons.push(format!("{}: {error}", replica.address)),
                    },
                    _ if denies => {
                        is_denied = true;
                        reasons.push(format!("{}: does not admit this node", replica.address));
                    }
                    StatusCode::MISDIRECTED_REQUEST => {
                        let named = self.leader_named(&response);
                        next = named.filter(|leader| !tried[*leader] && !self.denies(*leader));
                        reasons.push(format!("{}: does not lead", replica.address));
                    }
                    status => reasons.push(format!("{}: {status}: {}", replica.address, problem(&response))),
                },
                Err(reason) => reasons.push(reason),
            }
            match next.or_else(|| self.next_of(&tried, index + 1)) {
                Some(next) => index = next,
                None => {
                    // The next request starts with another replica, so that one bad replica does not delay
                    // each.
                    self.preferred.store(index, Ordering::Relaxed);
                    return match is_denied {
                        true => RequestOutcome::NotAdmitted,
                        false => RequestOutcome::Failed(reasons.join("; ")),
                    };
                }
            }
        }
    }

    async fn exchange(
        &self,
        replica: &ReplicaLink,
        path: &'static str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response<Bytes>, String> {
        let failed = |reason: &str| format!("{}: {reason}", replica.address);
        let exchange = async {
            match &replica.way {
                Way::Overlay(client) => {
                    let request = Request::post(path)
                        .header(header::CONTENT_TYPE, "application/cbor")
                        .body(body)
                        .expect("a literal path is valid");
                    client.request(request).await.map_err(|error| failed(&protocol::error_chain(&error)))
                }
                Way::InProcess(calls) => {
                    let (answer, response) = oneshot::channel();
                    let call = ControlCall { node: self.node, path, body, answer };
                    calls.try_send(call).map_err(|_| failed("takes no calls"))?;
                    response.await.map_err(|_| failed("the connection broke"))
                }
            }
        };
        let answer = tokio::time::timeout(limit, exchange).await;
        answer.unwrap_or_else(|_| Err(failed("no answer in time")))
    }

    fn leader_named(&self, response: &Response<Bytes>) -> Option<usize> {
        let answer: NotLeader = canonical::from_bytes(response.body(), NOT_LEADER_BYTES_MAX).ok()?;
        let leader: PublicKey = answer.leader?;
        self.replicas.iter().position(|replica| replica.key == leader)
    }
}

fn dial(identity: &Identity, replica: &ControlReplica) -> Result<Client, AgentError> {
    let limits = Limits {
        handshake: HANDSHAKE_LIMIT,
        // Each request has its own limit below this one.
        request: POLL_LIMIT,
        request_bytes_max: SYNC_BYTES_MAX,
        response_bytes_max: SYNC_BYTES_MAX,
        // A restarted replica must be reached again within a lease.
        backoff: Backoff { first: Duration::from_millis(20), most: Duration::from_millis(400) },
        ..Limits::default()
    };
    let address: Address = replica.address.parse().map_err(|error: NotAnAddress| AgentError::Address {
        address: replica.address.clone(),
        reason: error.to_string(),
    })?;
    Ok(Client::new(identity.clone(), address, replica.key, limits))
}

/// The body of a problem is JSON for people; only the code in it matters here.
fn is_not_admitted(response: &Response<Bytes>) -> bool {
    response.status() == StatusCode::FORBIDDEN
        && problem(response).contains(error_code::NODE_NOT_ADMITTED.as_str())
}

fn problem(response: &Response<Bytes>) -> String {
    let body = response.body();
    String::from_utf8_lossy(&body[..body.len().min(PROBLEM_BYTES_MAX)]).into_owned()
}
