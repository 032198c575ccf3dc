//! Streams of other nodes at the storage listener: links of gangs of this node, and meetings of two others.
//!
//! The peer has proven the key of an admitted node. Its hello is bounded in bytes and time, and each node has
//! a bounded number of streams here, so that none can take the place of the others.

use super::link::{LinkEnd, read_message, write_message};
use super::meeting::MeetingKey;
use super::{GangLink, Gangs};
use crate::agent::core::Refusal;
use futures::FutureExt;
use overlay::{Connection, Stream, StreamHandler};
use protocol::gang::{GANG_HELLO_BYTES_MAX, GANG_LINK_VERSION, GangAnswer, GangHello};
use protocol::{NodeId, error_code};
use sandbox::GangId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most streams of one other node here: one for each gang that both hold, and its meetings.
pub(super) const STREAMS_PER_NODE_MAX: usize = 64;
/// Most streams of all other nodes here: a share of the listener's connections.
pub(super) const STREAMS_MAX: usize = 384;

/// Streams of each other node.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamPlaces(Arc<Mutex<BTreeMap<NodeId, usize>>>);

/// Place of one stream, until it is dropped.
pub(super) struct StreamPlace(StreamPlaces, NodeId);

impl StreamPlaces {
    pub(super) fn take(&self, peer: NodeId) -> Option<StreamPlace> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let of_peer = held.entry(peer).or_default();
        if *of_peer >= STREAMS_PER_NODE_MAX || all >= STREAMS_MAX {
            return None;
        }
        *of_peer += 1;
        Some(StreamPlace(self.clone(), peer))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut held = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.1) {
            *count -= 1;
        }
        held.retain(|_, count| *count > 0);
    }
}

/// Purpose of a stream whose hello was judged.
#[derive(Debug)]
pub(super) enum StreamPurpose {
    Link(Arc<GangLink>),
    Meeting(MeetingKey),
}

/// Returns the work of the listener on the streams of other nodes.
pub(in crate::agent) fn stream_handler(gangs: Arc<Gangs>) -> StreamHandler {
    Arc::new(move |connection| {
        let gangs = gangs.clone();
        async move { gangs.answer(connection).await }.boxed()
    })
}

impl Gangs {
    async fn answer(&self, connection: Connection) {
        let Connection { peer, mut stream } = connection;
        let peer = NodeId(peer);
        let Some(_place) = self.places.take(peer) else {
            let refusal = Refusal::new(error_code::GANG_LINK_REFUSED, "this node has too many streams here");
            return self.refuse(&mut stream, peer, refusal).await;
        };
        let hello = read_message::<GangHello>(&mut stream, GANG_HELLO_BYTES_MAX);
        let hello = match tokio::time::timeout(self.limits.handshake, hello).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(_)) | Err(_) => {
                let refusal = Refusal::new(error_code::GANG_LINK_REFUSED, "no hello of a gang's link");
                return self.refuse(&mut stream, peer, refusal).await;
            }
        };
        match self.judge(peer, &hello) {
            Ok(StreamPurpose::Link(link)) => self.serve_link(stream, &link).await,
            Ok(StreamPurpose::Meeting(key)) => {
                if let Err(refusal) = self.meetings.meet(key, peer, stream, self.circle.clone()).await {
                    tracing::debug!(%peer, %refusal, "a meeting did not take place");
                }
            }
            Err(refusal) => self.refuse(&mut stream, peer, refusal).await,
        }
    }

    /// Judges the hello of a node that has proven its key. A link needs an order of this node that names the
    /// peer; a meeting needs the orders of the two nodes that meet.
    pub(super) fn judge(&self, peer: NodeId, hello: &GangHello) -> Result<StreamPurpose, Refusal> {
        let refuse = |message: &str| Err(Refusal::new(error_code::GANG_LINK_REFUSED, message));
        let circle = self.circle.borrow().clone();
        let GangHello { version, circle: of, job, attempt, meeting } = hello;
        if (*version, *of) != (GANG_LINK_VERSION, circle.id()) {
            return refuse("the hello is of another version or circle");
        }
        if circle.node_by_id(peer).is_none() {
            return refuse("the node is not admitted");
        }
        if let Some(meeting) = meeting {
            return MeetingKey::of(&circle, peer, meeting).map(StreamPurpose::Meeting);
        }
        match self.link(GangId { job: *job, attempt: *attempt }, peer) {
            Some(link) => Ok(StreamPurpose::Link(link)),
            None => refuse("this node holds no slot of the attempt whose orders name the peer"),
        }
    }

    async fn serve_link(&self, mut stream: Stream, link: &GangLink) {
        if write_message(&mut stream, &GangAnswer { refusal: None }).await.is_ok() {
            let end = self.carry(stream, link).await;
            if let LinkEnd::Oversized(_) | LinkEnd::NotAdmitted = end {
                tracing::warn!(peer = %link.peer, %end, "a link of a gang was cut");
            }
        }
    }

    async fn refuse(&self, stream: &mut Stream, peer: NodeId, refusal: Refusal) {
        tracing::debug!(%peer, %refusal, "a stream of a node was refused");
        self.lock().counters.links_refused += 1;
        // The refusal stands whether or not the peer reads it.
        let answer = GangAnswer { refusal: Some(refusal) };
        let _ = tokio::time::timeout(self.limits.handshake, write_message(stream, &answer)).await;
    }
}
