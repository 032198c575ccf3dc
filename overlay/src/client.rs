//! Client of one peer that keeps a connection to it and reconnects after a loss.

use crate::Body;
use crate::address::{Address, NameResolver, TRIED_MAX};
use crate::channel::{Channel, ResponseBody, SendFailure, collect};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::tls::{connect, within};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use http::{Request, Response};
use protocol::PublicKey;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Sends requests to the holder of one key at one address. Clones share the connection, which is made with
/// the first request and remade, after [`crate::Backoff`], when it was lost. A name is resolved for each
/// connection; with several addresses, each failure starts with the next.
///
/// A request is sent once. Only a request that certainly never left this process is moved to a new
/// connection; the caller decides whether to retry any other.
#[derive(Debug, Clone)]
pub struct Client {
    target: Arc<Target>,
    limits: Arc<Limits>,
}

#[derive(Debug)]
struct Target {
    identity: Identity,
    address: Address,
    resolver: NameResolver,
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
    /// Creates a client of the holder of `peer` at `address`. It does not dial yet.
    #[must_use]
    pub fn new(identity: Identity, address: impl Into<Address>, peer: PublicKey, limits: Limits) -> Self {
        Self::with_resolver(NameResolver::system(), identity, address.into(), peer, limits)
    }

    fn with_resolver(
        resolver: NameResolver,
        identity: Identity,
        address: Address,
        peer: PublicKey,
        limits: Limits,
    ) -> Self {
        let target = Target { identity, address, resolver, peer, link: Mutex::default() };
        Self { target: Arc::new(target), limits: Arc::new(limits) }
    }

    /// Returns the same connection under other limits of time and size.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits: Arc::new(limits), ..self.clone() }
    }

    /// Returns the key of the peer.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.target.peer
    }

    /// Returns the address at which the peer is dialled.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.target.address
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
            Err(SendFailure { error: error @ Error::PeerRefused { .. }, .. }) => Err(error),
            Err(SendFailure { unsent: Some(request), .. }) => {
                let channel = self.channel().await?;
                channel.try_send(request).await.map_err(|failure| failure.error)
            }
            Err(SendFailure { error, unsent: None }) => Err(error),
        }
    }

    /// Returns the live connection, or makes one. One caller dials; the others wait for its success.
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
        match self.dial(link.failures).await {
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

    async fn dial(&self, failures: u32) -> Result<Channel, Error> {
        let Target { identity, address, resolver, peer, .. } = &*self.target;
        let found = within("look up", self.limits.handshake, resolver.of(address)).await?;
        let mut found = found.map_err(|source| Error::Name { name: address.to_string(), source })?;
        let turn = failures as usize % found.len();
        found.rotate_left(turn);
        found.truncate(TRIED_MAX);
        let mut failure = None;
        for address in found {
            match connect(identity, address, *peer, &self.limits).await {
                Ok(connection) => return Channel::open(connection, self.limits.clone()).await,
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("a name that was found has an address"))
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
    // Without randomness the waits are merely not spread out.
    let _ = SystemRandom::new().fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CancellationToken, PeerPolicy, listen, serve};
    use axum::Router;
    use std::net::SocketAddr;
    use std::sync::Mutex as BlockingMutex;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn start(identity: &Identity, says: &'static str) -> (SocketAddr, CancellationToken) {
        let listener = listen::tcp("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (identity, ending) = (identity.clone(), CancellationToken::new());
        let router = Router::new().fallback(move || async move { says });
        let until = ending.clone();
        tokio::spawn(async move {
            serve(listener, &identity, PeerPolicy::any(), Limits::default(), router, until).await
        });
        (address, ending)
    }

    async fn ask(client: &Client) -> Result<Bytes, Error> {
        let request = Request::get("/").body(Bytes::new()).unwrap();
        let answer = tokio::time::timeout(PATIENCE, client.request(request)).await.expect("in time");
        answer.map(Response::into_body)
    }

    #[tokio::test]
    async fn a_name_is_resolved_for_every_connection() {
        let (server, own) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let (old, old_ends) = start(&server, "old").await;
        let (new, _new_ends) = start(&server, "new").await;
        let (impostor, _impostor_ends) = start(&Identity::from_seed(&[3; 32]), "impostor").await;
        let means = Arc::new(BlockingMutex::new(vec![old]));
        let answers = means.clone();
        let resolver = NameResolver::with(move |name| {
            assert_eq!(&*name, "control-1.example:7600");
            let found = answers.lock().unwrap().clone();
            Box::pin(async move { Ok(found) })
        });
        let address: Address = "control-1.example:7600".parse().unwrap();
        let client = Client::with_resolver(resolver, own, address, server.public_key(), Limits::default());
        assert_eq!(ask(&client).await.unwrap(), "old");
        // The machine has moved; at one of its new addresses another peer answers.
        *means.lock().unwrap() = vec![impostor, new];
        assert_eq!(ask(&client).await.unwrap(), "old", "a connection that holds is not looked up again");
        old_ends.cancel();
        tokio::time::timeout(PATIENCE, async {
            while ask(&client).await.is_ok_and(|answer| answer == "old") {}
            while ask(&client).await.is_ok_and(|answer| answer != "new") {}
        })
        .await
        .expect("in time");
        assert_eq!(ask(&client).await.unwrap(), "new");
    }

    #[tokio::test]
    async fn the_system_resolves_names_and_an_unknown_name_is_an_error() {
        let (server, own) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let (address, _ends) = start(&server, "in").await;
        let named = |name: &str| {
            let address: Address = format!("{name}:{}", address.port()).parse().unwrap();
            Client::new(own.clone(), address, server.public_key(), Limits::default())
        };
        assert_eq!(ask(&named("localhost")).await.unwrap(), "in");
        let unknown = ask(&named("no-such-machine.invalid")).await.unwrap_err();
        assert!(matches!(unknown, Error::Name { .. } | Error::TimedOut { .. }), "{unknown:?}");
    }
}
