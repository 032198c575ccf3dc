//! Transport over the overlay: raft messages, snapshots and forwarded requests over pinned TLS.
//!
//! Each replica fetches its messages from every other one as a long-lived response. Both ends of every stream
//! are therefore pinned, by the key of the dialler and by the key of the listener.

use super::outbox::{Outbox, OutboxStream};
use super::{FrameReader, GROUP, Request, RequestError, Transport, paths, snapshots};
use crate::config::{Config, GroupId};
use crate::error::ProposeError;
use crate::handle::Inner;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use http_body_util::BodyExt;
use overlay::{Client, PublicKey};
use protocol::ReplicaId;
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Status of the answer to a request of another group; no other answer has it.
pub(crate) const FOREIGN: StatusCode = StatusCode::PRECONDITION_FAILED;
/// Timeout for one chunk of a snapshot: a megabyte over a poor link.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between the end of a stream and the request for the next; the client adds its own back-off to
/// dialling.
const STREAM_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a message beside its entries.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;

/// Transport of one replica over the overlay.
pub struct OverlayTransport {
    peers: Arc<Peers>,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

/// All other replicas, by id.
pub(crate) struct Peers {
    group: GroupId,
    by_id: BTreeMap<ReplicaId, PeerLink>,
    frame_bytes_max: usize,
    inner: OnceLock<Arc<Inner>>,
}

struct PeerLink {
    key: PublicKey,
    client: Client,
    stream_client: Client,
    outbox: Outbox,
    /// Whether the peer was last found to be of another group; the warning is logged once, not at every
    /// attempt.
    foreign: AtomicBool,
}

impl OverlayTransport {
    /// Prepares clients to all peers, without dialling any. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(config: &Config, shutdown: CancellationToken) -> Self {
        let others = config.peers.iter().filter(|(id, _)| **id != config.id);
        let by_id = others.map(|(id, peer)| (*id, PeerLink::new(config, peer))).collect();
        let limits = &config.limits;
        // A message holds `message_bytes` of entries, or one entry that is larger.
        let entries = (limits.message_bytes as usize).max(limits.command_bytes_max);
        let frame_bytes_max = 2 * entries + FRAME_OVERHEAD_BYTES;
        let peers = Arc::new(Peers { group: config.group, by_id, frame_bytes_max, inner: OnceLock::new() });
        Self { peers, runtime: tokio::runtime::Handle::current(), shutdown }
    }

    pub(crate) fn peers(&self) -> Arc<Peers> {
        self.peers.clone()
    }

    /// Starts to fetch messages for the replica behind `inner`.
    pub(crate) fn start(&self, inner: Arc<Inner>) {
        for id in self.peers.by_id.keys().copied() {
            let (peers, inner, ended) = (self.peers.clone(), inner.clone(), self.shutdown.clone());
            self.runtime.spawn(async move {
                ended.run_until_cancelled(peers.fetch_forever(id, &inner)).await;
            });
        }
        let _ = self.peers.inner.set(inner);
    }

    fn send_snapshot(&self, message: Message) {
        let (peers, ended) = (self.peers.clone(), self.shutdown.clone());
        self.runtime.spawn(async move {
            let peer = ReplicaId(message.to);
            let sent = ended.run_until_cancelled(peers.push_snapshot(message)).await;
            if let Some(inner) = peers.inner.get() {
                inner.snapshot_sent(peer, sent == Some(true));
            }
        });
    }
}

impl Transport for OverlayTransport {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let to = ReplicaId(message.to);
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(message);
                continue;
            }
            let Some(link) = self.peers.by_id.get(&to) else { continue };
            if !link.outbox.put(message)
                && let Some(inner) = self.peers.inner.get()
            {
                inner.unreachable(to);
            }
        }
    }

    fn forward(
        &self,
        leader: ReplicaId,
        request: Request,
    ) -> BoxFuture<'static, Result<Bytes, RequestError>> {
        let peers = self.peers.clone();
        Box::pin(async move {
            let link = peers.by_id.get(&leader).ok_or(RequestError::Unreachable)?;
            let (path, body) = match request {
                Request::Propose(entry) => (paths::PROPOSE, entry),
                Request::Read => (paths::READ, Bytes::new()),
            };
            match link.client.request(peers.post(path, body)).await {
                Ok(response) => interpret_answer(response.status(), response.into_body()),
                Err(error) if error.never_sent() => Err(RequestError::Unreachable),
                Err(_) => Err(RequestError::Lost),
            }
        })
    }
}

impl PeerLink {
    fn new(config: &Config, peer: &crate::config::ReplicaAddress) -> Self {
        let requests = overlay::Limits {
            request: config.timings.request,
            backoff: overlay::Backoff { first: Duration::from_millis(20), most: Duration::from_millis(500) },
            ..overlay::Limits::default()
        };
        // A stream of messages has no end and may be silent; pings detect a dead peer.
        let streams = overlay::Limits {
            body_idle: Duration::from_secs(24 * 3600),
            response_bytes_max: usize::MAX,
            ..requests.clone()
        };
        let client = Client::new((*config.identity).clone(), peer.address.clone(), peer.key, requests);
        let stream_client = client.with_limits(streams);
        let outbox = Outbox::new(config.limits.outbox_messages_max);
        Self { key: peer.key, client, stream_client, outbox, foreign: AtomicBool::new(false) }
    }
}

impl Peers {
    /// Returns the id of the replica to which an authenticated key belongs.
    pub(crate) fn identify(&self, key: &PublicKey) -> Option<ReplicaId> {
        self.by_id.iter().find(|(_, link)| link.key == *key).map(|(id, _)| *id)
    }

    /// Returns whether a request of `peer` names this group. Warns once if it does not.
    pub(crate) fn same_group(&self, peer: ReplicaId, named: Option<&http::HeaderValue>) -> bool {
        let same = named.is_some_and(|named| named.as_bytes() == self.group.to_string().as_bytes());
        self.record_foreign(peer, !same);
        same
    }

    /// Records whether a peer is of another group, and warns when that becomes true.
    fn record_foreign(&self, peer: ReplicaId, foreign: bool) {
        let Some(link) = self.by_id.get(&peer) else { return };
        if !link.foreign.swap(foreign, Ordering::Relaxed) && foreign {
            let code = protocol::error_code::LOG_FOREIGN;
            let group = self.group;
            tracing::warn!(%peer, %group, %code, "a peer with the right key is of another group");
        }
    }

    fn post(&self, path: &'static str, body: Bytes) -> http::Request<Bytes> {
        let request = http::Request::post(path).header(GROUP, self.group.to_string());
        request.body(body).expect("the path is a constant, and a digest is a header value")
    }

    /// Returns the stream of everything that is sent to `peer` from now on.
    pub(crate) fn open_outbox(&self, peer: ReplicaId) -> Option<OutboxStream> {
        self.by_id.get(&peer).and_then(|link| link.outbox.open())
    }

    /// Ends every stream, so that none keeps a listener from an orderly stop.
    pub(crate) fn close(&self) {
        self.by_id.values().for_each(|link| link.outbox.close());
    }

    async fn fetch_forever(&self, id: ReplicaId, inner: &Inner) {
        loop {
            if let Err(error) = self.fetch(id, inner).await {
                tracing::debug!(peer = %id, error = %error, "stream of raft messages ended");
            }
            inner.unreachable(id);
            tokio::time::sleep(STREAM_PAUSE).await;
        }
    }

    async fn fetch(
        &self,
        id: ReplicaId,
        inner: &Inner,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let link = &self.by_id[&id];
        let request = http::Request::get(paths::MESSAGES).header(GROUP, self.group.to_string());
        let response = link.stream_client.send(request.body(overlay::Body::empty())?).await?;
        self.record_foreign(id, response.status() == FOREIGN);
        if response.status() != StatusCode::OK {
            return Err(format!("the peer answered {}", response.status()).into());
        }
        let mut body = response.into_body();
        let mut reader = FrameReader::new(self.frame_bytes_max);
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame?.into_data() else { continue };
            for message in reader.push(&chunk)? {
                if message.from != id.0 {
                    return Err("the peer speaks for another replica".into());
                }
                inner.deliver(message);
            }
        }
        Ok(())
    }

    /// Sends a snapshot in chunks, each of them once. If one fails, raft starts over.
    async fn push_snapshot(&self, message: Message) -> bool {
        let peer = ReplicaId(message.to);
        let Some(link) = self.by_id.get(&peer) else { return false };
        tracing::info!(%peer, bytes = message.get_snapshot().data.len(), "sending a snapshot");
        for chunk in snapshots::cut(message) {
            let request = link.client.request(self.post(paths::SNAPSHOT, chunk));
            let sent = tokio::time::timeout(CHUNK_TIMEOUT, request).await;
            if !sent.is_ok_and(|answer| answer.is_ok_and(|response| response.status().is_success())) {
                tracing::info!(%peer, "the snapshot did not arrive");
                return false;
            }
        }
        true
    }
}

/// Interprets the answer to a forwarded request.
fn interpret_answer(status: StatusCode, body: Bytes) -> Result<Bytes, RequestError> {
    if status == StatusCode::OK {
        return Ok(body);
    }
    match &body[..] {
        // A peer of another group has done nothing, and leads nothing here.
        b"not-leader" | b"log-foreign" => Err(RequestError::NotLeader),
        b"log-busy" => Err(ProposeError::Busy.into()),
        b"session-expired" => Err(ProposeError::SessionExpired.into()),
        b"sequence-passed" => Err(ProposeError::SequencePassed.into()),
        b"log-disk-full" => Err(ProposeError::DiskFull.into()),
        // Any other answer leaves the outcome of the request unknown.
        _ => Err(RequestError::Lost),
    }
}
