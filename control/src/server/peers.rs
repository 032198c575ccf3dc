//! Health checks among control replicas: each queries the others over the overlay once a second.
//!
//! Thus `status` can report a dead replica before a second one dies.

use super::Server;
use axum::Router;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use overlay::{Address, CancellationToken, Client, Identity, Limits, NotAnAddress, Peer};
use protocol::ReplicaId;
use protocol::governance::Genesis;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Pause between two rounds of checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a health check; a replica that takes longer counts as silent until the next round.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Path of the health check.
const PATH: &str = "/control/v1/alive";

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

    async fn check_all(&self) {
        let asked = self.clients.iter().map(|(id, client)| async {
            let request = http::Request::get(PATH).body(bytes::Bytes::new()).expect("a constant request");
            let answered = client.request(request).await.is_ok_and(|answer| answer.status().is_success());
            (!answered).then_some(*id)
        });
        let silent = futures::future::join_all(asked).await.into_iter().flatten().collect();
        *self.lock() = Some(silent);
    }
}

/// Checks the other replicas in every round, until `shutdown`.
pub(crate) async fn watch(server: Arc<Server>, shutdown: CancellationToken) {
    loop {
        server.peers.check_all().await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
}

/// Builds the router of the health check, which answers control replicas only.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new().route(PATH, get(alive)).with_state(server)
}

async fn alive(State(server): State<Arc<Server>>, Extension(Peer(key)): Extension<Peer>) -> Response {
    match server.is_replica(&key) {
        true => "alive\n".into_response(),
        false => (StatusCode::FORBIDDEN, "not-a-replica").into_response(),
    }
}
