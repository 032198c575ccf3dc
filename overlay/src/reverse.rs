//! Reversed connections: on one TLS stream, the dialling side (the TLS client) answers the HTTP/2 requests.
//!
//! A worker that may not listen, behind any NAT, thus serves like any other. After the handshake the TLS
//! client sends a preface: its length as a big-endian `u32`, then its bytes. The gateway checks the preface
//! before it starts HTTP.

use crate::accept::{Arrival, accept_loop};
use crate::channel::Channel;
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::server::{Guard, serve_http2};
use crate::tls::{Connection, REVERSED, accept_as, acceptor, connect_over, within};
use axum::Router;
use bytes::Bytes;
use protocol::PublicKey;
use std::future::Future;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Longest preface in bytes: a signed ticket is below 1 KiB.
pub const PREFACE_BYTES_MAX: usize = 64 * 1024;

/// Performs the handshake as the TLS client over `tcp`, sends `preface`, then serves `router` until the
/// connection ends or `shutdown`. Every request carries a [`crate::Peer`] extension with the gateway's key.
///
/// Calls no `setsockopt`, `connect` or `socket`: it runs under a filter that denies them.
///
/// # Errors
/// [`Error::WrongPeer`], [`Error::PeerRefused`], [`Error::Handshake`], [`Error::Preface`],
/// [`Error::TimedOut`]; a connection that ends later is no error.
pub async fn reverse_serve(
    tcp: TcpStream,
    identity: &Identity,
    expected: PublicKey,
    preface: Bytes,
    limits: Limits,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Connection { peer, mut stream } = connect_over(tcp, identity, expected, REVERSED, &limits).await?;
    let length = u32::try_from(preface.len()).ok().filter(|_| preface.len() <= PREFACE_BYTES_MAX);
    let length = length.ok_or_else(|| Error::Preface(io::ErrorKind::FileTooLarge.into()))?;
    let send = async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&preface).await?;
        stream.flush().await
    };
    within("preface", limits.handshake, send).await?.map_err(Error::Preface)?;
    let limits = Arc::new(limits);
    let guard = Guard::new(router, None, limits.clone()).of(peer);
    let refusal = stream.refusal();
    serve_http2(stream, guard, &limits, shutdown).await;
    if refusal.is_set() {
        return Err(Error::PeerRefused { peer });
    }
    Ok(())
}

/// A reversed connection whose peer has proven its key and sent its preface; HTTP has not begun.
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Reversed {
    /// Bytes that the peer sent first; they have not been verified.
    pub preface: Bytes,
    connection: Connection,
    limits: Arc<Limits>,
}

impl Reversed {
    /// Returns the peer's proven key.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.connection.peer
    }

    /// Starts HTTP/2; this side sends the requests.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn open(self) -> Result<Channel, Error> {
        Channel::open(self.connection, self.limits).await
    }
}

/// Answers the handshake of a peer that will serve, and reads its preface.
///
/// # Errors
/// [`Error::Handshake`], [`Error::Preface`], [`Error::TimedOut`].
pub async fn accept_reverse(
    tcp: TcpStream,
    identity: &Identity,
    policy: &PeerPolicy,
    limits: &Limits,
) -> Result<Reversed, Error> {
    let acceptor = acceptor(identity, policy, &[REVERSED]);
    accept_reverse_as(tcp, &acceptor, Arc::new(limits.clone())).await
}

/// Accepts reversed connections until `shutdown`, bounded as [`crate::serve`] bounds its own, and runs
/// `handle` for each in a task of its own.
///
/// A connection arrives with the permit of its handshake alone, of which there are few. `handle` checks the
/// preface and immediately takes another permit by [`Arrival::admit`] or [`Arrival::wait_unadmitted`], or
/// returns. It keeps the [`Arrival`] as long as the connection, and is dropped when the permit passes to
/// another connection. A channel that it opened stays open as long as a clone of it: dropping `handle` must
/// drop them all.
///
/// # Errors
/// [`Error::Listener`] when the listener itself is unusable.
pub async fn accept_reverse_loop<F, T>(
    listener: TcpListener,
    identity: &Identity,
    policy: &PeerPolicy,
    limits: Limits,
    shutdown: CancellationToken,
    handle: F,
) -> Result<(), Error>
where
    F: Fn(Reversed, Arrival) -> T + Clone + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let acceptor = acceptor(identity, policy, &[REVERSED]);
    let limits = Arc::new(limits);
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, arrival| {
        let (acceptor, limits, handle) = (acceptor.clone(), limits.clone(), handle.clone());
        async move {
            match accept_reverse_as(tcp, &acceptor, limits).await {
                Ok(reversed) => handle(reversed, arrival).await,
                Err(error) => arrival.failed(&error),
            }
        }
    })
    .await
}

async fn accept_reverse_as(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    limits: Arc<Limits>,
) -> Result<Reversed, Error> {
    let mut connection = accept_as(tcp, acceptor, &[REVERSED], &limits).await?;
    let read = read_preface(&mut connection.stream);
    let preface = within("preface", limits.handshake, read).await?.map_err(Error::Preface)?;
    Ok(Reversed { preface, connection, limits })
}

/// Reads the preface of a peer that will serve. Public so that it can be fuzzed without a handshake.
#[doc(hidden)]
pub async fn read_preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let length = stream.read_u32().await? as usize;
    if length > PREFACE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut preface = vec![0; length];
    stream.read_exact(&mut preface).await?;
    Ok(Bytes::from(preface))
}
