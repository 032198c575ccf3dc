//! Simulated control replicas for tests, in simulated time.
//!
//! The replicas can hang, be dead, name a leader, respond late or lose their responses.

use super::ControlClient;
use super::exchange::{ControlRequest, Exchange, ExchangeOutcome};
use bytes::Bytes;
use futures::future::BoxFuture;
use protocol::ReplicaId;
use protocol::api::{Page, PeerView, Problem, ReplicaView, Status};
use protocol::halt::{HaltReceipt, SignedHalt};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Behaviour of a simulated replica.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Accepts connections and never responds, like a stopped process.
    Hangs,
    /// Accepts no connection.
    IsDead,
    /// Follows the replica with this index, or knows no leader.
    Follows(Option<usize>),
    /// Leads, and responds after this time.
    Leads(Duration),
    /// Responds to every request with this status and code.
    Refuses(u16, &'static str),
    /// Leads, and loses this number of responses after it has applied the requests.
    LosesAnswers(u32),
    /// Behaves in the first way until this time of the test, then in the second.
    Until(Duration, Box<(Does, Does)>),
}

/// A request as a replica received it.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) replica: usize,
    pub(crate) key: Option<String>,
}

/// The simulated replicas and the requests that they received.
pub(crate) struct SimulatedReplicas {
    replicas: Mutex<Vec<Does>>,
    arrived: Mutex<Vec<Arrived>>,
    began: Instant,
    /// Halts that the replicas hold, each with the index of its replica; without one, all of them hold it.
    halts: Mutex<Vec<(Option<usize>, SignedHalt)>>,
    /// Answers of the leader to the paths of a test.
    served: Mutex<Option<Served>>,
}

/// Body of the leader's answer to a path; none for a path that the test leaves alone.
type Served = Box<dyn Fn(&str) -> Option<Bytes> + Send>;

pub(crate) fn url(replica: usize) -> String {
    format!("http://10.0.0.{}:4000", replica + 1)
}

impl SimulatedReplicas {
    /// Creates replicas with these behaviours, and a client of them.
    pub(crate) fn client(replicas: Vec<Does>) -> (ControlClient, Arc<Self>) {
        let urls: Arc<[String]> = (0..replicas.len()).map(url).collect();
        let (replicas, arrived) = (Mutex::new(replicas), Mutex::default());
        let simulated = Arc::new(Self {
            replicas,
            arrived,
            began: Instant::now(),
            halts: Mutex::default(),
            served: Mutex::default(),
        });
        (ControlClient::with_exchange(urls, simulated.clone()), simulated)
    }

    /// Returns the requests received so far.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().expect("no panic").clone()
    }

    /// Returns the simulated time since the test began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Changes the behaviour of a replica from now on.
    pub(crate) fn set(&self, replica: usize, does: Does) {
        self.replicas.lock().expect("no panic")[replica] = does;
    }

    /// Makes every replica hold a halt.
    pub(crate) fn hold(&self, signed: SignedHalt) {
        self.halts.lock().expect("no panic").push((None, signed));
    }

    /// Makes one replica hold a halt.
    pub(crate) fn hold_at(&self, replica: usize, signed: SignedHalt) {
        self.halts.lock().expect("no panic").push((Some(replica), signed));
    }

    /// Makes the leader answer these paths.
    pub(crate) fn serve(&self, answer: impl Fn(&str) -> Option<Bytes> + Send + 'static) {
        *self.served.lock().expect("no panic") = Some(Box::new(answer));
    }

    /// Takes a halt at a replica that answers, whether it leads or not, and returns the receipt.
    fn take(&self, replica: usize, body: &[u8]) -> Option<Bytes> {
        let does = self.replicas.lock().expect("no panic")[replica].clone();
        let answers = matches!(does, Does::Leads(_) | Does::Follows(_));
        let signed: SignedHalt = serde_json::from_slice(body).ok().filter(|_| answers)?;
        let receipt = HaltReceipt { id: signed.halt.id(), slots: 0, shown: vec![] };
        self.hold_at(replica, signed);
        Some(serde_json::to_vec(&receipt).expect("JSON").into())
    }

    fn leader(&self) -> Option<usize> {
        let leads = |does: &Does| matches!(does, Does::Leads(_) | Does::LosesAnswers(_));
        self.replicas.lock().expect("no panic").iter().position(leads)
    }

    /// Returns the present behaviour of a replica; counts a response to lose.
    fn now(&self, replica: usize) -> Does {
        let mut replicas = self.replicas.lock().expect("no panic");
        let mut does = replicas[replica].clone();
        while let Does::Until(time, both) = does {
            does = if self.began.elapsed() < time { both.0 } else { both.1 };
        }
        if let Does::LosesAnswers(left) = &mut replicas[replica] {
            let lost = *left > 0;
            *left = left.saturating_sub(1);
            return if lost { Does::LosesAnswers(1) } else { Does::Leads(Duration::ZERO) };
        }
        does
    }
}

impl Exchange for SimulatedReplicas {
    fn send(&self, replica: usize, request: &ControlRequest) -> BoxFuture<'static, ExchangeOutcome> {
        let (path, key) = (request.path.clone(), request.key.clone());
        let halts = path == "/v1/halts" && key.is_none();
        self.arrived.lock().expect("no panic").push(Arrived { replica, key });
        // A replica answers these itself, whether it leads or not.
        let stale = path.contains("any_replica=true");
        let posted = request.body.as_deref().filter(|_| path == "/v1/halts" && !halts);
        let taken = posted.and_then(|body| self.take(replica, body));
        let own = path == "/v1/replica" || halts || stale || taken.is_some();
        let (leader, count) = (self.leader(), self.replicas.lock().expect("no panic").len());
        let body = match (own, halts) {
            (_, true) => held(&self.halts.lock().expect("no panic"), replica),
            (true, _) if !stale && taken.is_none() => view(replica, count, leader),
            _ => taken.unwrap_or_else(|| {
                let served = self.served.lock().expect("no panic");
                served.as_ref().and_then(|served| served(&path)).unwrap_or_else(|| answer(&path))
            }),
        };
        let success = ExchangeOutcome::Answer { status: 200, body, leader: None };
        match self.now(replica) {
            Does::Hangs | Does::Until(..) => Box::pin(std::future::pending()),
            Does::IsDead => Box::pin(async { ExchangeOutcome::NotSent("connection refused".into()) }),
            Does::Leads(late) => Box::pin(async move {
                tokio::time::sleep(late).await;
                success
            }),
            Does::LosesAnswers(_) if !own => {
                Box::pin(async { ExchangeOutcome::Lost("connection reset".into()) })
            }
            Does::Follows(leader) if !own => {
                let leader = leader.map(url);
                Box::pin(async move { refusal(421, "not-leader", leader) })
            }
            Does::Refuses(status, code) if !own => Box::pin(async move { refusal(status, code, None) }),
            Does::LosesAnswers(_) | Does::Follows(_) | Does::Refuses(..) => Box::pin(async { success }),
        }
    }
}

fn refusal(status: u16, code: &str, leader: Option<String>) -> ExchangeOutcome {
    let message = format!("this replica says {code}");
    let problem = Problem { code: code.into(), message, at: None, remedy: None };
    ExchangeOutcome::Answer { status, body: serde_json::to_vec(&problem).expect("JSON").into(), leader }
}

fn view(replica: usize, replicas: usize, leader: Option<usize>) -> Bytes {
    let id = |index: usize| ReplicaId(index as u64 + 1);
    let peer = |index| PeerView { id: id(index), api: url(index), answers: None };
    let view = ReplicaView {
        id: id(replica),
        leader: leader.map(id),
        applied: 7,
        replicas: (0..replicas).map(peer).collect(),
    };
    serde_json::to_vec(&view).expect("JSON").into()
}

fn held(halts: &[(Option<usize>, SignedHalt)], replica: usize) -> Bytes {
    let own = halts.iter().filter(|(holder, _)| holder.is_none_or(|holder| holder == replica));
    let own: Vec<SignedHalt> = own.map(|(_, signed)| signed.clone()).collect();
    serde_json::to_vec(&Page::whole(own)).expect("JSON").into()
}

fn answer(path: &str) -> Bytes {
    if path != "/v1/status" {
        return Bytes::from_static(b"{\"done\":true}");
    }
    let summary = "all is well; 2 services, 3 of 3 nodes alive".into();
    let status =
        Status { summary, leader: Some(ReplicaId(1)), nodes: 3, nodes_alive: 3, ..crate::testing::status() };
    serde_json::to_vec(&status).expect("JSON").into()
}
