//! Byte stream that detects silence, a stalled write, and a TLS alert that our key is not admitted.
//!
//! The alert must be detected here, since HTTP/2 keeps only an error's text, not its cause.

use rustls::AlertDescription;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsStream;

/// The bytes of an overlay connection. Reads fail with `TimedOut` after [`crate::Limits::idle`] of silence,
/// writes after the peer has taken nothing for as long.
pub type Stream = Watched<TlsStream<TcpStream>>;

/// Whether the peer has sent the alert `access_denied`; shared with the code that must explain the failure.
#[derive(Debug, Clone, Default)]
pub(crate) struct AccessDeniedFlag(Arc<AtomicBool>);

impl AccessDeniedFlag {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A watched stream; see the module's documentation.
#[derive(Debug)]
pub struct Watched<S> {
    inner: S,
    refusal: AccessDeniedFlag,
    read: Option<ProgressTimeout>,
    write: ProgressTimeout,
}

impl<S> Watched<S> {
    /// Watches reads and writes: for protocols whose peer is never silent while alive.
    pub(crate) fn new(inner: S, idle: Duration) -> Self {
        Self { read: Some(ProgressTimeout::new(idle)), ..Self::writes_only(inner, idle) }
    }

    /// Watches writes only: for HTTP/1, whose client is silent while it waits for its answer.
    pub(crate) fn writes_only(inner: S, idle: Duration) -> Self {
        Self { inner, refusal: AccessDeniedFlag::default(), read: None, write: ProgressTimeout::new(idle) }
    }

    /// Returns the stream beneath.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(crate) fn refusal(&self) -> AccessDeniedFlag {
        self.refusal.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Pending => match &mut self.read {
                Some(timeout) => timeout.poll_timed_out(context).map(Err),
                None => Poll::Pending,
            },
            Poll::Ready(outcome) => {
                if let Some(timeout) = &mut self.read {
                    timeout.since = None;
                }
                if outcome.as_ref().is_err_and(denies_access) {
                    self.refusal.0.store(true, Ordering::Release);
                }
                Poll::Ready(outcome)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.write.track(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.write.track(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(context);
        self.write.track(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(context);
        self.write.track(outcome, context)
    }
}

/// The time limit on progress in one direction. The timer is armed lazily: a stream that never waits pays
/// nothing.
#[derive(Debug)]
struct ProgressTimeout {
    limit: Duration,
    since: Option<Pin<Box<Sleep>>>,
}

impl ProgressTimeout {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// Returns ready with the error once `limit` has passed without progress.
    fn poll_timed_out(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.limit;
        let deadline =
            self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "peer is silent"))
    }

    fn track<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            return self.poll_timed_out(context).map(Err);
        }
        self.since = None;
        outcome
    }
}

/// Returns whether an I/O error is the peer's alert that it does not admit our key.
pub(crate) fn denies_access(error: &io::Error) -> bool {
    matches!(
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn a_silent_peer_times_out_in_both_directions() {
        let (near, _far) = duplex(4);
        let mut stream = Watched::new(near, Duration::ZERO);
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let written = stream.write_all(b"more than four bytes").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_stream_without_a_limit_on_reads_waits() {
        let (near, mut far) = duplex(4);
        let mut stream = Watched::writes_only(near, Duration::ZERO);
        assert!(stream.read_u8().now_or_never().is_none());
        far.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
    }

    #[tokio::test]
    async fn progress_restarts_the_limit() {
        let (near, mut far) = duplex(4);
        let mut stream = Watched::new(near, Duration::from_secs(3600));
        let waits = |stream: &Watched<tokio::io::DuplexStream>| {
            stream.read.as_ref().is_some_and(|timeout| timeout.since.is_some())
        };
        assert!(stream.read_u8().now_or_never().is_none() && waits(&stream));
        far.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        assert!(!waits(&stream), "the timer is armed again by the next wait");
    }

    #[test]
    fn only_an_alert_of_denied_access_refuses_a_key() {
        let alert = |description| io::Error::other(rustls::Error::AlertReceived(description));
        assert!(denies_access(&alert(AlertDescription::AccessDenied)));
        assert!(!denies_access(&alert(AlertDescription::HandshakeFailure)));
        assert!(!denies_access(&io::ErrorKind::TimedOut.into()));
    }
}
