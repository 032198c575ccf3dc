//! What waits for one peer to fetch it. Bounded: a peer that does not read loses messages, never memory.

use super::encode_message;
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use raft::eraftpb::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Messages put into one chunk of the stream; several chunks go out back to back when more wait.
const MESSAGES_PER_CHUNK: usize = 64;

/// One peer's outbox. Only the newest stream of the peer is fed: an older one ends.
#[derive(Debug)]
pub(super) struct Outbox {
    capacity: usize,
    stream: Mutex<Option<mpsc::Sender<Message>>>,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, stream: Mutex::new(None) }
    }

    /// Puts a message out. False when nobody fetches or too much waits: the message is lost.
    pub(super) fn put(&self, message: Message) -> bool {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.as_ref().is_some_and(|stream| stream.try_send(message).is_ok())
    }

    /// Begins a new stream. Messages of the old one are lost with it: nothing is ever sent twice.
    pub(super) fn open(&self) -> OutboxStream {
        let (sender, receiver) = mpsc::channel(self.capacity);
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        OutboxStream { receiver, waiting: Vec::with_capacity(MESSAGES_PER_CHUNK) }
    }
}

/// The body of the answer to a peer that fetches its messages; ends when a newer one begins.
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
