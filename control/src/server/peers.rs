//! Health checks among control replicas: each queries the others over the overlay once a second.
//!
//! Thus `status` can report a dead replica before a second one dies. Each answer shows the other's wall
//! clock.

use super::Server;
use super::clocks::ReplicaClocks;
use axum::Router;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use overlay::{Address, CancellationToken, Client, Identity, Limits, NotAnAddress, Peer};
use protocol::canonical::{self, from_bytes};
use protocol::governance::Genesis;
use protocol::{Millis, ReplicaId};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Pause between two rounds of checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a health check; a replica that takes longer counts as silent until the next round.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two rounds while the clocks of too few replicas are known.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Largest answer to a health check, in bytes.
const ANSWER_BYTES_MAX: usize = 64;
/// Path of the health check.
const PATH: &str = "/control/v1/alive";

/// Answer to a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AliveAnswer {
    /// Wall clock of the replica that answers.
    pub(super) clock: Millis,
}

/// The other replicas and their reachability.
pub(crate) struct PeerHealth {
    clients: Vec<(ReplicaId, Client)>,
    /// Replicas that did not answer in the last round; none before the first round.
    silent: Mutex<Option<Vec<ReplicaId>>>,
}

impl PeerHealth {
    pub(crate) fn new(identity: &Identity, genesis: &Genesis) -> Result<Self, NotAnAddress> {
        let limits = Limits { request: CHECK_TIMEOUT, ..Limits::default() };
        let others = genesis.control.iter().filter(|replica| replica.key != identity.public_key());
        let clients = others
            .map(|replica| {
                let address: Address = replica.address.parse()?;
                Ok((replica.id, Client::new(identity.clone(), address, replica.key, limits.clone())))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { clients, silent: Mutex::default() })
    }

    /// Returns a client of each other replica.
    pub(crate) fn clients(&self) -> impl Iterator<Item = &(ReplicaId, Client)> {
        self.clients.iter()
    }

    /// Returns the replicas that do not answer this one; none before the first round.
    pub(crate) fn silent(&self) -> Option<Vec<ReplicaId>> {
        self.lock().clone()
    }

    /// Returns the number of replicas that answer, including this one; none before the first round.
    pub(crate) fn alive(&self) -> Option<u64> {
        let silent = self.lock().as_ref().map(Vec::len)?;
        Some((1 + self.clients.len() - silent) as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<ReplicaId>>> {
        self.silent.lock().expect("no holder of this lock panics")
    }

    async fn check_all(&self, clocks: &ReplicaClocks) {
        let asked = self.clients.iter().map(|(id, client)| async {
            let request = http::Request::get(PATH).body(bytes::Bytes::new()).expect("a constant request");
            let response = client.request(request).await.ok().filter(|answer| answer.status().is_success());
            let body = response.map(http::Response::into_body);
            let answer = body.and_then(|body| from_bytes::<AliveAnswer>(&body, ANSWER_BYTES_MAX).ok());
            let Some(AliveAnswer { clock }) = answer else { return Some(*id) };
            clocks.hear(*id, clock);
            None
        });
        let silent = futures::future::join_all(asked).await.into_iter().flatten().collect();
        *self.lock() = Some(silent);
    }
}

/// Checks the other replicas in every round, until `shutdown`, and bars those with wrong clocks from leading.
pub(crate) async fn watch(server: Arc<Server>, shutdown: CancellationToken) {
    loop {
        server.peers.check_all(&server.clocks).await;
        server.bar_wrong_clocks();
        let suffices = 2 * server.peers.alive().unwrap_or(0) > server.genesis.genesis.control.len() as u64;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(if suffices { CHECK_INTERVAL } else { FIRST_CHECK_INTERVAL }) => {}
        }
    }
}

/// Builds the router of the health check, which answers control replicas only.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new().route(PATH, get(alive)).with_state(server)
}

async fn alive(State(server): State<Arc<Server>>, Extension(Peer(key)): Extension<Peer>) -> Response {
    match server.is_replica(&key) {
        true => canonical::to_bytes(&AliveAnswer { clock: server.clocks.wall() }).into_response(),
        false => (StatusCode::FORBIDDEN, "not-a-replica").into_response(),
    }
}
