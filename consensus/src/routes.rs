//! What a replica answers to its peers, over HTTP/2 on the overlay. Strangers get 403: that a key may
//! connect does not make it a replica.

use crate::handle::Port;
use crate::transport::{Assembly, Peers, Refusal, Request};
use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use overlay::Peer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

struct Shared {
    peers: Arc<Peers>,
    port: Arc<Port>,
    snapshot_bytes_max: u64,
    assemblies: Mutex<BTreeMap<u64, Assembly>>,
}

/// The peer endpoints.
pub(crate) fn router(peers: Arc<Peers>, port: Arc<Port>, snapshot_bytes_max: u64) -> Router {
    use crate::transport::paths;
    let assemblies = Mutex::default();
    Router::new()
        .route(paths::MESSAGES, get(messages))
        .route(paths::SNAPSHOT, post(snapshot))
        .route(paths::PROPOSE, post(propose))
        .route(paths::READ, post(read))
        .with_state(Arc::new(Shared { peers, port, snapshot_bytes_max, assemblies }))
}

async fn messages(State(shared): State<Arc<Shared>>, Extension(Peer(key)): Extension<Peer>) -> Response {
    let stream = shared.peers.identify(&key).and_then(|id| shared.peers.open_outbox(id));
    stream.map_or_else(stranger, |stream| Body::new(stream).into_response())
}

async fn snapshot(
    State(shared): State<Arc<Shared>>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Response {
    let Some(from) = shared.peers.identify(&key) else { return stranger() };
    let outcome = {
        let mut assemblies = shared.assemblies.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Assembly::new(shared.snapshot_bytes_max);
        assemblies.entry(from).or_insert_with(fresh).push(&body)
    };
    match outcome {
        Ok(Some(message)) if message.from == from => {
            shared.port.deliver(message);
            StatusCode::OK.into_response()
        }
        Ok(Some(_)) => stranger(),
        Ok(None) => StatusCode::OK.into_response(),
        Err(error) => {
            tracing::warn!(peer = from, %error, "refused a chunk of a snapshot");
            (StatusCode::CONFLICT, error.to_string()).into_response()
        }
    }
}

async fn propose(
    State(shared): State<Arc<Shared>>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Response {
    answer(&shared, &key, Request::Propose(body)).await
}

async fn read(State(shared): State<Arc<Shared>>, Extension(Peer(key)): Extension<Peer>) -> Response {
    answer(&shared, &key, Request::Read).await
}

async fn answer(shared: &Shared, key: &protocol::PublicKey, request: Request) -> Response {
    if shared.peers.identify(key).is_none() {
        return stranger();
    }
    match shared.port.answer(request).await {
        Ok(bytes) => bytes.into_response(),
        Err(Refusal::NotLeader | Refusal::Unreachable) => {
            (StatusCode::MISDIRECTED_REQUEST, "not-leader").into_response()
        }
        Err(Refusal::Lost) => (StatusCode::BAD_GATEWAY, "outcome-unknown").into_response(),
        Err(Refusal::Propose(error)) => (StatusCode::CONFLICT, error.code().as_str()).into_response(),
    }
}

fn stranger() -> Response {
    (StatusCode::FORBIDDEN, "not-a-replica").into_response()
}
