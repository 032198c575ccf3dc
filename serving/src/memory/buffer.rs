//! Charged buffers. A body is collected in one buffer that is charged before it grows; an answer stays
//! charged until its reader has taken it.

use super::{Charge, Exhausted};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Smallest and largest step by which a buffer grows. It doubles in between: large enough that copying costs
/// little, small enough that an endless body holds hardly more than it sent.
const STEP_BYTES_MIN: usize = 16 * 1024;
const STEP_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an answer per frame: the bytes that the connection has not requested yet can still be evicted.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes collected so far.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// Returns the number of bytes collected.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends, after charging for the growth of the buffer; spare capacity does not exceed `bytes_max`.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub(crate) async fn push<K: Ord + Clone>(
        &mut self,
        data: &[u8],
        bytes_max: usize,
        charge: &mut Charge<K>,
    ) -> Result<(), Exhausted> {
        let capacity = self.0.capacity();
        let missing = (self.0.len() + data.len()).saturating_sub(capacity);
        if missing > 0 {
            let step = capacity.clamp(STEP_BYTES_MIN, STEP_BYTES_MAX);
            let more = step.min(bytes_max.saturating_sub(capacity)).max(missing);
            charge.grow(more).await?;
            self.0.reserve_exact(capacity - self.0.len() + more);
        }
        self.0.extend_from_slice(data);
        Ok(())
    }

    /// Returns all bytes without a copy.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.0)
    }
}

/// A whole answer in transit to its reader. It stays charged until the reader has taken it, and breaks off
/// when it is evicted in favour of another key's request.
pub(crate) struct ChargedBody<K: Ord + Clone> {
    bytes: Bytes,
    evicted: BoxFuture<'static, ()>,
    _charge: Charge<K>,
}

impl<K: Ord + Clone> ChargedBody<K> {
    /// Wraps `bytes`, for which `charge` has been charged.
    pub(crate) fn new(bytes: Bytes, charge: Charge<K>) -> Self {
        Self { bytes, evicted: charge.eviction().cancelled_owned().boxed(), _charge: charge }
    }
}

impl<K: Ord + Clone + Unpin> Body for ChargedBody<K> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        if self.evicted.poll_unpin(context).is_ready() {
            self.bytes.clear();
            return Poll::Ready(Some(Err(std::io::ErrorKind::OutOfMemory.into())));
        }
        let chunk = self.bytes.len().min(CHUNK_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, REQUEST_BYTES_MIN};
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test(start_paused = true)]
    async fn a_buffer_is_charged_for_its_capacity() {
        let memory = Memory::new(usize::MAX);
        for (pieces, size, bytes_max) in [(1, 1, 1 << 20), (9_000, 1_000, 1 << 24), (3, 4 << 20, 1 << 24)] {
            let mut charge = memory.open(());
            let mut buffer = Buffer::default();
            for _ in 0..pieces {
                buffer.push(&vec![7; size], bytes_max, &mut charge).await.expect("room");
                assert!(buffer.0.capacity() <= memory.used(), "charged before it grows");
                let most = (2 * buffer.len()).min(buffer.len() + STEP_BYTES_MAX).max(REQUEST_BYTES_MIN);
                assert!(memory.used() <= most, "{} for {}", memory.used(), buffer.len());
            }
            assert_eq!(buffer.into_bytes(), vec![7; pieces * size]);
        }
        let mut charge = memory.open(());
        let mut buffer = Buffer::default();
        for _ in 0..100 {
            buffer.push(&[1; 1000], 100_000, &mut charge).await.expect("room");
        }
        assert_eq!(memory.used(), 100_000, "a buffer does not grow beyond what may come");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_charged_until_it_is_read_and_can_be_evicted() {
        let memory = Memory::new(1 << 20);
        let answer = |bytes: usize| {
            let memory = memory.clone();
            async move {
                let mut charge = memory.open("a");
                charge.grow(bytes).await.expect("room");
                ChargedBody::new(Bytes::from(vec![1; bytes]), charge)
            }
        };
        let whole = answer(200_000).await;
        assert_eq!(whole.size_hint().exact(), Some(200_000));
        assert_eq!(whole.collect().await.expect("whole").to_bytes().len(), 200_000);
        assert_eq!(memory.used(), 0);

        let mut slow = answer(1 << 20).await;
        assert!(slow.frame().await.is_some_and(|frame| frame.is_ok()));
        let mut other = memory.open("b");
        let mut waiting = Box::pin(other.grow(1000));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert!(slow.frame().await.is_some_and(|frame| frame.is_err()), "broken off");
        drop(slow);
        assert_eq!(waiting.await, Ok(()));
    }
}
