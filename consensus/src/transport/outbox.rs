//! Outbox of one peer: raft messages queued until the peer fetches them.
//!
//! The queue is bounded: a peer that does not read loses messages, but never exhausts memory.

use super::encode_message;
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use raft::eraftpb::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Limit on messages per chunk of the stream; if more wait, several chunks are sent back to back.
const MESSAGES_PER_CHUNK: usize = 64;

/// Outbox of one peer. Only the peer's newest stream is fed; an older one ends.
#[derive(Debug)]
pub(super) struct Outbox {
    capacity: usize,
    stream: Mutex<OutboxState>,
}

#[derive(Debug)]
enum OutboxState {
    /// The peer has not fetched yet.
    None,
    Open(mpsc::Sender<Message>),
    /// The replica has stopped.
    Closed,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, stream: Mutex::new(OutboxState::None) }
    }

    /// Queues a message. Returns false if the peer does not fetch or the queue is full; the message is then
    /// lost.
    pub(super) fn put(&self, message: Message) -> bool {
        matches!(&*self.lock(), OutboxState::Open(stream) if stream.try_send(message).is_ok())
    }

    /// Begins a new stream, unless the replica has stopped. Messages of the old stream are lost with it:
    /// nothing is ever sent twice.
    pub(super) fn open(&self) -> Option<OutboxStream> {
        let mut stream = self.lock();
        if matches!(*stream, OutboxState::Closed) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(self.capacity);
        *stream = OutboxState::Open(sender);
        Some(OutboxStream { receiver, waiting: Vec::with_capacity(MESSAGES_PER_CHUNK) })
    }

    /// Ends the stream permanently.
    pub(super) fn close(&self) {
        *self.lock() = OutboxState::Closed;
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Response body for a peer that fetches its messages; it ends when a newer stream begins.
#[derive(Debug)]
pub(crate) struct OutboxStream {
    receiver: mpsc::Receiver<Message>,
    waiting: Vec<Message>,
}

impl http_body::Body for OutboxStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { receiver, waiting } = self.get_mut();
        match receiver.poll_recv_many(context, waiting, MESSAGES_PER_CHUNK) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => Poll::Ready(None),
            Poll::Ready(_) => {
                let mut buffer = BytesMut::new();
                waiting.drain(..).for_each(|message| encode_message(&message, &mut buffer));
                Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))))
            }
        }
    }
}
