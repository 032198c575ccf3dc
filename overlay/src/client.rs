//! A client of one peer that keeps a connection to it, and makes a new one when it is lost.

use crate::Body;
use crate::channel::{Channel, Failure, ResponseBody, collect};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::tls::{connect, within};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use http::{Request, Response};
use protocol::PublicKey;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Sends requests to the holder of one key at one address. Clones share the connection, which is made
/// with the first request and made anew, after [`crate::Backoff`], when it was lost.
///
/// A request is sent once. Only one that certainly never left this process is put on a new connection;
/// whether to repeat any other is for the caller to know.
#[derive(Debug, Clone)]
pub struct Client {
    target: Arc<Target>,
    limits: Arc<Limits>,
}

#[derive(Debug)]
struct Target {
    identity: Identity,
    address: SocketAddr,
    peer: PublicKey,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    channel: Option<Channel>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Client {
    /// A client of the holder of `peer` at `address`. Dials nobody yet.
    #[must_use]
    pub fn new(identity: Identity, address: SocketAddr, peer: PublicKey, limits: Limits) -> Self {
        let target = Target { identity, address, peer, link: Mutex::default() };
        Self { target: Arc::new(target), limits: Arc::new(limits) }
    }

    /// The same connection under other limits of time and size.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits: Arc::new(limits), ..self.clone() }
    }

    /// The key of the peer.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.target.peer
    }

    /// Where the peer is dialled.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.target.address
    }

    /// Sends `request` and reads the whole response: connecting, back-off, head and body all within
    /// [`Limits::request`]. Only path and query of the URI matter.
    ///
    /// # Errors
    /// See [`Error`]; a response of any status is not an error.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let exchange = async { collect(self.exchange(request.map(Body::from)).await?).await };
        within("request", self.limits.request, exchange).await?
    }

    /// Sends `request` and waits for the response's head within [`Limits::request`]; both bodies stream.
    /// Dropping the future or the response's body cancels the work on the other side.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&self, request: Request<Body>) -> Result<Response<ResponseBody>, Error> {
        within("request", self.limits.request, self.exchange(request)).await?
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<ResponseBody>, Error> {
        match self.channel().await?.try_send(request).await {
            Ok(response) => Ok(response),
            Err(Failure { error: error @ Error::PeerRefused { .. }, .. }) => Err(error),
            Err(Failure { unsent: Some(request), .. }) => {
                let channel = self.channel().await?;
                channel.try_send(request).await.map_err(|failure| failure.error)
            }
            Err(Failure { error, unsent: None }) => Err(error),
        }
    }

    /// The live connection, made if there is none. One caller dials, the others wait for its success.
    async fn channel(&self) -> Result<Channel, Error> {
        let mut link = self.target.link.lock().await;
        match link.channel.take() {
            Some(channel) if !channel.is_closed() => {
                link.channel = Some(channel.clone());
                return Ok(channel.with_shared_limits(&self.limits));
            }
            Some(lost) if lost.answered() => link.failures = 0,
            Some(_) => link.failed(&self.limits),
            None => {}
        }
        if let Some(not_before) = link.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        match self.dial().await {
            Ok(channel) => {
                link.channel = Some(channel.clone());
                Ok(channel)
            }
            Err(error) => {
                link.failed(&self.limits);
                Err(error)
            }
        }
    }

    async fn dial(&self) -> Result<Channel, Error> {
        let Target { identity, address, peer, .. } = &*self.target;
        let connection = connect(identity, *address, *peer, &self.limits).await?;
        Channel::open(connection, self.limits.clone()).await
    }
}

impl Link {
    fn failed(&mut self, limits: &Limits) {
        self.failures = self.failures.saturating_add(1);
        let wait = limits.backoff.delay(self.failures, random_jitter());
        self.not_before = Some(Instant::now() + wait);
    }
}

fn random_jitter() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the wait is merely not spread out.
    let _ = SystemRandom::new().fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
