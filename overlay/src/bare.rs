//! Bare byte streams to a public key: without HTTP, for traffic that has a framing of its own.
//!
//! A stream to a listener begins with the usual handshake, under an ALPN protocol of its own. Where neither
//! side can listen, both dial a third party that copies bytes between them, and prove their keys to each
//! other in a second handshake inside: the third party sees ciphertext alone, and cannot take a side's
//! place.

use crate::address::{Address, NameResolver, TRIED_MAX};
use crate::error::Error;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::tls::{BARE, Connection, accept_over, acceptor, connect_as, connect_over, within};
use protocol::PublicKey;
use tokio::io::{AsyncRead, AsyncWrite};

/// Dials a listener of [`crate::serve_with_streams`] and proves that it holds the key `expected`.
///
/// The peer checks our key after this returns: a refusal surfaces as a failing read.
///
/// # Errors
/// [`Error::Name`], [`Error::Dial`], [`Error::WrongPeer`], [`Error::Handshake`], [`Error::TimedOut`].
pub async fn dial_stream(
    identity: &Identity,
    address: &Address,
    expected: PublicKey,
    limits: &Limits,
) -> Result<Connection, Error> {
    let found = within("look up", limits.handshake, NameResolver::system().of(address)).await?;
    let found = found.map_err(|source| Error::Name { name: address.to_string(), source })?;
    let mut failure = None;
    for address in found.into_iter().take(TRIED_MAX) {
        match connect_as(identity, address, expected, BARE, limits).await {
            Ok(connection) => return Ok(connection),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.expect("a name that was found has an address"))
}

/// Performs the dialling side's handshake over a stream that a third party may carry.
///
/// # Errors
/// [`Error::WrongPeer`], [`Error::PeerRefused`], [`Error::Handshake`], [`Error::TimedOut`].
pub async fn connect_inside<S: AsyncRead + AsyncWrite + Unpin>(
    carrier: S,
    identity: &Identity,
    expected: PublicKey,
    limits: &Limits,
) -> Result<Connection<S>, Error> {
    connect_over(carrier, identity, expected, BARE, limits).await
}

/// Performs the answering side's handshake over such a stream.
///
/// # Errors
/// [`Error::Handshake`], also when the policy does not admit the key; [`Error::TimedOut`].
pub async fn accept_inside<S: AsyncRead + AsyncWrite + Unpin>(
    carrier: S,
    identity: &Identity,
    policy: &PeerPolicy,
    limits: &Limits,
) -> Result<Connection<S>, Error> {
    accept_over(carrier, &acceptor(identity, policy, &[BARE]), &[BARE], limits).await
}
