//! One live HTTP/2 connection for sending requests. It never reconnects; that is the task of `Client`.

use crate::Body;
use crate::error::Error;
use crate::limits::Limits;
use crate::stream::AccessDeniedFlag;
use crate::tls::{Connection, within};
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use protocol::PublicKey;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

/// Flow-control window of one exchange: a segment of 1 MiB and its head pass without a window update from the
/// reader.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Flow-control window of a whole connection: several concurrent segments, and the most that a peer can make
/// us hold.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// A live HTTP/2 connection, as the side that sends requests. Clones share it; it closes when the last clone
/// and the last response body are dropped.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: http2::SendRequest<Body>,
    shared: Arc<ChannelState>,
    limits: Arc<Limits>,
}

#[derive(Debug)]
struct ChannelState {
    peer: PublicKey,
    refusal: AccessDeniedFlag,
    answered: AtomicBool,
    permits: Arc<Semaphore>,
    closed: CancellationToken,
}

/// A request that failed, returned to the caller if not one byte of it was sent.
pub(crate) struct SendFailure {
    pub(crate) error: Error,
    pub(crate) unsent: Option<Request<Body>>,
}

impl Channel {
    /// Starts HTTP/2 as the requesting side over `connection`.
    pub(crate) async fn open(connection: Connection, limits: Arc<Limits>) -> Result<Self, Error> {
        let Connection { peer, stream } = connection;
        let refusal = stream.refusal();
        Self::start(peer, refusal, stream, limits).await
    }

    /// Starts HTTP/2 as the requesting side over any stream, without verifying the peer's key. It serves
    /// simulations, in which streams are in memory and time is simulated.
    ///
    /// # Errors
    /// [`Error::Lost`].
    #[doc(hidden)]
    pub async fn over<S>(peer: PublicKey, stream: S, limits: Limits) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::start(peer, AccessDeniedFlag::default(), stream, Arc::new(limits)).await
    }

    async fn start<S>(
        peer: PublicKey,
        refusal: AccessDeniedFlag,
        stream: S,
        limits: Arc<Limits>,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(limits.header_bytes_max)
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.ping_timeout)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Lost { peer, sent: false, source: error.into() })?;
        let closed = CancellationToken::new();
        let ended = closed.clone().drop_guard();
        tokio::spawn(async move {
            let _ended = ended;
            if let Err(error) = driver.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
        let permits = Arc::new(Semaphore::new(limits.streams_max as usize));
        let answered = AtomicBool::new(false);
        let shared = Arc::new(ChannelState { peer, refusal, answered, permits, closed });
        Ok(Self { sender, shared, limits })
    }

    /// Returns the key of the peer that answers.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.shared.peer
    }

    /// Returns whether the connection has ended, so that every further request would fail.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled() || self.sender.is_closed()
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Returns the same connection under other limits of time and size.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits: Arc::new(limits), ..self.clone() }
    }

    /// Sends `request` and waits for the response's head; the body streams. Dropping the future or the
    /// body cancels the work on the other side.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::PeerRefused`], [`Error::Lost`].
    pub async fn send(&self, request: Request<Body>) -> Result<Response<ResponseBody>, Error> {
        within("request", self.limits.request, self.try_send(request)).await?.map_err(|failure| failure.error)
    }

    /// Sends `request` and reads the whole response, all within [`Limits::request`].
    ///
    /// # Errors
    /// As [`Channel::send`], and [`Error::BodyTooLarge`].
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let exchange = async {
            let sent = self.try_send(request.map(Body::from)).await;
            collect(sent.map_err(|failure| failure.error)?).await
        };
        within("request", self.limits.request, exchange).await?
    }

    pub(crate) fn with_shared_limits(&self, limits: &Arc<Limits>) -> Self {
        Self { limits: limits.clone(), ..self.clone() }
    }

    /// Returns whether this connection has carried at least one response.
    pub(crate) fn answered(&self) -> bool {
        self.shared.answered.load(Ordering::Relaxed)
    }

    pub(crate) async fn try_send(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<ResponseBody>, SendFailure> {
        let permit = self.shared.permits.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        *request.uri_mut() = absolute(request.uri());
        *request.version_mut() = http::Version::HTTP_2;
        match self.sender.clone().try_send_request(request).await {
            Ok(response) => {
                self.shared.answered.store(true, Ordering::Relaxed);
                Ok(response.map(|incoming| ResponseBody::new(incoming, self, permit)))
            }
            Err(mut error) => {
                let unsent = error.take_message();
                let error = self.shared.explain(error.into_error(), unsent.is_none());
                Err(SendFailure { error, unsent })
            }
        }
    }
}

impl ChannelState {
    fn explain(&self, error: hyper::Error, sent: bool) -> Error {
        if self.refusal.is_set() {
            return Error::PeerRefused { peer: self.peer };
        }
        Error::Lost { peer: self.peer, sent, source: error.into() }
    }
}

/// Reads a whole response.
pub(crate) async fn collect(response: Response<ResponseBody>) -> Result<Response<Bytes>, Error> {
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// Completes a URI. HTTP/2 needs scheme and authority; between our processes the key is the authority, so any
/// value will do.
fn absolute(uri: &Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme.get_or_insert(Scheme::HTTPS);
    parts.authority.get_or_insert(Authority::from_static("quorate"));
    parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
    Uri::from_parts(parts).expect("scheme, authority and path are all there")
}

/// The body of a response as it arrives: bounded in bytes, and in silence between two frames.
#[derive(Debug)]
pub struct ResponseBody {
    incoming: Incoming,
    remaining: usize,
    silence: Option<Pin<Box<Sleep>>>,
    limits: Arc<Limits>,
    shared: Arc<ChannelState>,
    /// Keeps the connection open while the body is read.
    _sender: http2::SendRequest<Body>,
    _permit: OwnedSemaphorePermit,
}

impl ResponseBody {
    fn new(incoming: Incoming, channel: &Channel, permit: OwnedSemaphorePermit) -> Self {
        Self {
            incoming,
            remaining: channel.limits.response_bytes_max,
            silence: None,
            limits: channel.limits.clone(),
            shared: channel.shared.clone(),
            _sender: channel.sender.clone(),
            _permit: permit,
        }
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), Error> {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let limit = self.limits.response_bytes_max;
        self.remaining = self.remaining.checked_sub(bytes).ok_or(Error::BodyTooLarge { limit })?;
        Ok(())
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Pending => {
                let limit = self.limits.body_idle;
                let silence = self
                    .silence
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
                let timed_out = Error::TimedOut { step: "response body", limit };
                silence.as_mut().poll(context).map(|()| Some(Err(timed_out)))
            }
            Poll::Ready(frame) => {
                self.silence = None;
                Poll::Ready(frame.map(|frame| {
                    let frame = frame.map_err(|error| self.shared.explain(error, true))?;
                    self.count(&frame)?;
                    Ok(frame)
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.incoming.size_hint()
    }
}
