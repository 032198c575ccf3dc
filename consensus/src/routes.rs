//! Peer endpoints of a replica, over HTTP/2 on the overlay.
//!
//! A peer that is not a replica gets 403 before any of its body is read, because not every key that may
//! connect is a replica's. A replica of another group gets 412 and `log-foreign`, even if its key is the
//! right one.

use crate::handle::Inner;
use crate::transport::{Assembly, FOREIGN, GROUP, Peers, Request, RequestError};
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use overlay::Peer;
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

struct EndpointState {
    peers: Arc<Peers>,
    inner: Arc<Inner>,
    snapshot_bytes_max: u64,
    assemblies: Mutex<BTreeMap<ReplicaId, Assembly>>,
}

/// Builds the peer endpoints.
pub(crate) fn router(peers: Arc<Peers>, inner: Arc<Inner>, snapshot_bytes_max: u64) -> Router {
    use crate::transport::paths;
    let assemblies = Mutex::default();
    Router::new()
        .route(paths::MESSAGES, get(messages))
        .route(paths::SNAPSHOT, post(snapshot))
        .route(paths::PROPOSE, post(propose))
        .route(paths::READ, post(read))
        .with_state(Arc::new(EndpointState { peers, inner, snapshot_bytes_max, assemblies }))
}

/// Id of an authenticated replica of this group. Bodies are read only after this extractor succeeds.
struct Sender(ReplicaId);

impl FromRequestParts<Arc<EndpointState>> for Sender {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<EndpointState>) -> Result<Self, Response> {
        let peer = parts.extensions.get::<Peer>();
        let id = peer.and_then(|Peer(key)| shared.peers.identify(key)).ok_or_else(not_a_replica)?;
        if !shared.peers.same_group(id, parts.headers.get(GROUP)) {
            return Err((FOREIGN, protocol::error_code::LOG_FOREIGN.as_str()).into_response());
        }
        Ok(Self(id))
    }
}

async fn messages(Sender(id): Sender, State(shared): State<Arc<EndpointState>>) -> Response {
    shared.peers.open_outbox(id).map_or_else(not_a_replica, |stream| Body::new(stream).into_response())
}

async fn snapshot(Sender(from): Sender, State(shared): State<Arc<EndpointState>>, body: Bytes) -> Response {
    let outcome = {
        let mut assemblies = shared.assemblies.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Assembly::new(shared.snapshot_bytes_max);
        assemblies.entry(from).or_insert_with(fresh).push(&body)
    };
    match outcome {
        Ok(Some(message)) if message.from == from.0 => {
            shared.inner.deliver(message);
            StatusCode::OK.into_response()
        }
        Ok(Some(_)) => not_a_replica(),
        Ok(None) => StatusCode::OK.into_response(),
        Err(error) => {
            tracing::warn!(peer = from.0, %error, "rejected a chunk of a snapshot");
            (StatusCode::CONFLICT, error.to_string()).into_response()
        }
    }
}

async fn propose(_: Sender, State(shared): State<Arc<EndpointState>>, body: Bytes) -> Response {
    answer(&shared, Request::Propose(body)).await
}

async fn read(_: Sender, State(shared): State<Arc<EndpointState>>) -> Response {
    answer(&shared, Request::Read).await
}

async fn answer(shared: &EndpointState, request: Request) -> Response {
    match shared.inner.answer(request).await {
        Ok(bytes) => bytes.into_response(),
        Err(RequestError::NotLeader | RequestError::Unreachable) => {
            (StatusCode::MISDIRECTED_REQUEST, "not-leader").into_response()
        }
        Err(RequestError::Lost) => (StatusCode::BAD_GATEWAY, "outcome-unknown").into_response(),
        Err(RequestError::Propose(error)) => (StatusCode::CONFLICT, error.code().as_str()).into_response(),
    }
}

fn not_a_replica() -> Response {
    (StatusCode::FORBIDDEN, "not-a-replica").into_response()
}
