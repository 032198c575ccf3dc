//! Admission control for requests of unadmitted peers, whose keys no certificate admits.
//!
//! They may ask for admission, at a limited rate. Any other request of theirs is rejected before a byte of
//! its body is read.

use super::Server;
use super::agents::{self, ENROL, SYNC};
use super::problem::Failure;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use overlay::{Peer, PeerAddress, PublicKey, Rate, RateLimiter, SourcePrefix};
use protocol::{NodeId, error_code};
use scheduler::limits::{PENDING_NODES_MAX, PENDING_SILENT_MS};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Rate limit of one source. A node that waits for admission asks once in two seconds, so a site of a hundred
/// such nodes is served.
const REQUESTS_PER_SOURCE: Rate = Rate { burst: 200, interval: Duration::from_millis(10) };
/// Rate limit of all sources: a response may carry a genesis of a megabyte or two, and costs about as much as
/// a sync.
const REQUESTS_TOTAL: Rate = Rate { burst: 1000, interval: Duration::from_millis(2) };
/// Rate limit of one source for requests that write to the log. A full list of honest nodes writes four a
/// second.
const LOG_WRITES_PER_SOURCE: Rate = Rate { burst: 16, interval: Duration::from_secs(2) };
/// Rate limit of all sources for requests that write to the log: a fraction of the log's throughput.
const LOG_WRITES_TOTAL: Rate = Rate { burst: 64, interval: Duration::from_millis(200) };
/// Maximum number of source addresses remembered; one takes some tens of bytes.
const ADDRESSES_MAX: usize = 4096;

const _: () = assert!(
    PENDING_SILENT_MS as u128 / LOG_WRITES_PER_SOURCE.interval.as_millis()
        + (LOG_WRITES_PER_SOURCE.burst as u128)
        < PENDING_NODES_MAX as u128,
    "no single address keeps the list of waiting nodes full of its own"
);

/// Rate limiters of unadmitted peers.
#[derive(Debug)]
pub(super) struct UnadmittedPeers {
    /// Origin of the limiters' clock, which is monotonic: a wall clock set back would shut peers out.
    began: Instant,
    requests: Mutex<RateLimiter<SourcePrefix>>,
    log_writes: Mutex<RateLimiter<SourcePrefix>>,
}

impl Default for UnadmittedPeers {
    fn default() -> Self {
        let requests = Mutex::new(RateLimiter::new(ADDRESSES_MAX, Some(REQUESTS_TOTAL)));
        let log_writes = Mutex::new(RateLimiter::new(ADDRESSES_MAX, Some(LOG_WRITES_TOTAL)));
        Self { began: Instant::now(), requests, log_writes }
    }
}

impl UnadmittedPeers {
    /// Takes one request from the source's limit.
    fn take_request(&self, address: PeerAddress) -> Result<(), Failure> {
        self.take(&self.requests, REQUESTS_PER_SOURCE, address)
    }

    /// Takes one write to the log from the source's limit.
    pub(super) fn take_log_write(&self, address: PeerAddress) -> Result<(), Failure> {
        self.take(&self.log_writes, LOG_WRITES_PER_SOURCE, address)
    }

    fn take(
        &self,
        limiter: &Mutex<RateLimiter<SourcePrefix>>,
        each: Rate,
        address: PeerAddress,
    ) -> Result<(), Failure> {
        let mut limiter = limiter.lock().expect("no holder of this lock panics");
        limiter.take(&address.source_prefix(), each, self.began.elapsed()).map_err(|wait| {
            let message = "too many requests from unadmitted nodes";
            let failure = Failure::new(error_code::LIMIT_REACHED, message);
            failure.remedy(format!("retry in {} s", wait.as_millis().div_ceil(1000)))
        })
    }
}

/// Middleware in front of every route of the overlay listener.
pub(super) async fn refuse_unadmitted(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    let extensions = request.extensions();
    let (Some(Peer(key)), Some(address)) =
        (extensions.get::<Peer>().copied(), extensions.get::<PeerAddress>().copied())
    else {
        return Failure::new(error_code::NODE_NOT_ADMITTED, "the connection is not authenticated by a key")
            .into_response();
    };
    if server.is_replica(&key) || server.is_admitted(NodeId(key)) {
        return next.run(request).await;
    }
    match request.uri().path() {
        ENROL => match server.unadmitted.take_request(address) {
            Ok(()) => next.run(request).await,
            Err(failure) => failure.into_response(),
        },
        SYNC => agents::not_admitted(&server),
        _ => Failure::new(
            error_code::NODE_NOT_ADMITTED,
            "only control replicas and admitted nodes may send this request",
        )
        .into_response(),
    }
}

impl Server {
    /// Returns whether the key belongs to a control replica.
    pub(super) fn is_replica(&self, key: &PublicKey) -> bool {
        self.genesis.genesis.control.iter().any(|replica| replica.key == *key)
    }

    /// Returns whether a certificate that this replica has applied admits the node.
    pub(super) fn is_admitted(&self, node: NodeId) -> bool {
        self.cluster(|cluster| cluster.node(&node).is_some())
    }

    /// Returns whether the listener reserves a permit for the key.
    ///
    /// A replica that has just started knows the first nodes from genesis, and the others a moment later.
    pub(super) fn has_reserved_permit(&self, key: &PublicKey) -> bool {
        let first = self.genesis.genesis.nodes.iter().any(|node| node.id.0 == *key);
        first || self.is_replica(key) || self.is_admitted(NodeId(*key))
    }
}
