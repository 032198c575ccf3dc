//! Counts of what a worker must finish before it exits: answers that are still being sent, and connections.

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// A count of things under way. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct OutstandingCount(Arc<AtomicU64>);

/// One of them; dropping it ends it.
#[derive(Debug)]
pub(super) struct OutstandingOne(Arc<AtomicU64>);

impl OutstandingCount {
    /// Counts one more.
    pub(super) fn begin(&self) -> OutstandingOne {
        self.0.fetch_add(1, Ordering::AcqRel);
        OutstandingOne(self.0.clone())
    }

    /// Returns the number under way.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for OutstandingOne {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl OutstandingOne {
    /// Wraps the body of an answer, which ends this one when its connection has taken it, or dropped it.
    pub(super) fn until_sent(self, body: Body) -> Body {
        Body::new(SentBody { body, _one: self })
    }
}

struct SentBody {
    body: Body,
    _one: OutstandingOne,
}

impl hyper::body::Body for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
