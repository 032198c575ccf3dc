//! TLS handshake between our processes: TLS 1.3, X25519MLKEM768, raw Ed25519 keys (RFC 7250) on both sides.
//!
//! No resumption: a resumed session skips the proof of the key, so a removed key could come back. No server
//! name: the key is the name. Ed25519 is verified strictly, as everywhere in Quorate.

use crate::error::Error;
use crate::identity::{Identity, SPKI_PREFIX};
use crate::limits::Limits;
use crate::policy::PeerPolicy;
use crate::stream::{Watched, denies_access};
use protocol::PublicKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// ALPN protocol for HTTP/2 with the usual roles.
pub(crate) const FORWARD: &[u8] = b"h2";
/// ALPN protocol for a bare byte stream, whose first message states its purpose.
pub(crate) const BARE: &[u8] = b"quorate-stream";
/// ALPN protocol for a preface, then HTTP/2 with the TLS client as the server.
pub(crate) const REVERSED: &[u8] = b"quorate-reversed-h2";

/// A connection whose peer has proven its key, over a TCP connection or another stream.
#[derive(Debug)]
pub struct Connection<S = TcpStream> {
    /// Peer's proven key, which is its name.
    pub peer: PublicKey,
    /// Byte stream inside TLS.
    pub stream: Watched<TlsStream<S>>,
}

impl<S> Connection<S> {
    /// Returns the ALPN protocol that both sides chose.
    pub(crate) fn inside(&self) -> Option<&[u8]> {
        let (_, session) = self.stream.get_ref().get_ref();
        session.alpn_protocol()
    }
}

impl Connection {
    /// Returns the IANA name of the key exchange that protects this connection.
    #[must_use]
    pub fn key_exchange(&self) -> String {
        let (_, session) = self.stream.get_ref().get_ref();
        session
            .negotiated_key_exchange_group()
            .map_or_else(|| "none".to_owned(), |group| group.name().as_str().unwrap_or("unknown").to_owned())
    }
}

/// Dials `address` and proves that the answering peer holds the key `expected`.
///
/// The peer checks our key after this returns: a refusal surfaces as [`Error::PeerRefused`] on first use
/// through a [`crate::Client`], or as a failing read here.
///
/// # Errors
/// [`Error::Dial`], [`Error::WrongPeer`], [`Error::Handshake`], [`Error::TimedOut`].
pub async fn connect(
    identity: &Identity,
    address: SocketAddr,
    expected: PublicKey,
    limits: &Limits,
) -> Result<Connection, Error> {
    connect_as(identity, address, expected, FORWARD, limits).await
}

/// Dials `address` for the protocol `inside`.
pub(crate) async fn connect_as(
    identity: &Identity,
    address: SocketAddr,
    expected: PublicKey,
    inside: &[u8],
    limits: &Limits,
) -> Result<Connection, Error> {
    let tcp = within("dial", limits.handshake, async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    })
    .await?
    .map_err(|source| Error::Dial { address, source })?;
    connect_over(tcp, identity, expected, inside, limits).await
}

/// Performs the client's handshake over an existing connection. Calls no `setsockopt`: workers may not.
pub(crate) async fn connect_over<S: AsyncRead + AsyncWrite + Unpin>(
    tcp: S,
    identity: &Identity,
    expected: PublicKey,
    inside: &[u8],
    limits: &Limits,
) -> Result<Connection<S>, Error> {
    let connector = TlsConnector::from(Arc::new(client_config(identity, expected, inside)));
    // Never sent (no SNI) and never compared (the key is): rustls requires a name in any case.
    let name = ServerName::try_from("quorate.invalid").expect("this is a valid name");
    let stream = within("tls handshake", limits.handshake, connector.connect(name, tcp))
        .await?
        .map_err(|error| explain(error, expected))?;
    established(TlsStream::from(stream), &[inside], limits)
}

/// Answers a handshake on `tcp` and proves the key of the dialling peer; `policy` decides whether to admit
/// it.
///
/// # Errors
/// [`Error::Handshake`], also when the policy does not admit the key; [`Error::TimedOut`].
pub async fn accept(
    tcp: TcpStream,
    identity: &Identity,
    policy: &PeerPolicy,
    limits: &Limits,
) -> Result<Connection, Error> {
    accept_as(tcp, &acceptor(identity, policy, &[FORWARD]), &[FORWARD], limits).await
}

/// Returns the server's half, made once for each listener: `inside` are its protocols, the preferred first.
pub(crate) fn acceptor(identity: &Identity, policy: &PeerPolicy, inside: &[&[u8]]) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server_config(identity, policy, inside)))
}

pub(crate) async fn accept_as(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    inside: &[&[u8]],
    limits: &Limits,
) -> Result<Connection, Error> {
    tcp.set_nodelay(true).map_err(Error::Handshake)?;
    let shaken = within("tls handshake", limits.handshake, acceptor.accept(tcp).into_fallible());
    match shaken.await? {
        Ok(stream) => established(TlsStream::from(stream), inside, limits),
        Err((error, tcp)) => {
            linger(tcp).await;
            Err(Error::Handshake(error))
        }
    }
}

/// Answers a handshake over any stream; as [`accept_as`], but the caller ends the stream of a refused peer.
pub(crate) async fn accept_over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    acceptor: &TlsAcceptor,
    inside: &[&[u8]],
    limits: &Limits,
) -> Result<Connection<S>, Error> {
    let shaken = within("tls handshake", limits.handshake, acceptor.accept(stream)).await?;
    established(TlsStream::from(shaken.map_err(Error::Handshake)?), inside, limits)
}

/// Bounds a step by a limit.
pub(crate) async fn within<T>(
    step: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::TimedOut { step, limit })
}

/// Drains the bytes that the refused client has already sent. Closing then does not reset the connection and
/// destroy our alert before the client has read it.
async fn linger(mut tcp: TcpStream) {
    const LINGER: Duration = Duration::from_millis(500);
    const LINGER_BYTES_MAX: u64 = 64 * 1024;
    let drain = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Best effort: the refusal stands whether or not the client receives the alert.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

fn established<S>(stream: TlsStream<S>, inside: &[&[u8]], limits: &Limits) -> Result<Connection<S>, Error> {
    let (_, session) = stream.get_ref();
    if !session.alpn_protocol().is_some_and(|chosen| inside.contains(&chosen)) {
        return Err(Error::Handshake(io::Error::other("peer speaks another protocol inside TLS")));
    }
    let peer = session.peer_certificates().and_then(|certificates| certificates.first());
    let peer = peer.and_then(|certificate| raw_key(certificate).ok());
    let peer = peer.ok_or_else(|| Error::Handshake(io::Error::other("peer sent no raw key")))?;
    Ok(Connection { peer, stream: Watched::new(stream, limits.idle) })
}

fn explain(error: io::Error, expected: PublicKey) -> Error {
    if denies_access(&error) {
        return Error::PeerRefused { peer: expected };
    }
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) = cause
        && let Some(wrong) = inner.downcast_ref::<WrongKey>()
    {
        return Error::WrongPeer { expected, presented: wrong.0 };
    }
    Error::Handshake(error)
}

/// Provider with one key exchange, three AEADs, TLS 1.3 alone. There is nothing to downgrade to.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768],
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
});

const SUPPORTED: &str = "TLS 1.3 with its own suites is a consistent provider";

fn client_config(identity: &Identity, expected: PublicKey, inside: &[u8]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect(SUPPORTED)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedServer(expected)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            identity.certified.clone(),
        )));
    config.alpn_protocols = vec![inside.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

fn server_config(identity: &Identity, policy: &PeerPolicy, inside: &[&[u8]]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect(SUPPORTED)
        .with_client_cert_verifier(Arc::new(AdmittedClient(policy.clone())))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified.clone())));
    config.alpn_protocols = inside.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// Verifier methods that rustls requires identically of both verifiers, though no trait holds them: a peer
/// proves that it holds the raw key it presented. Each verifier decides separately whether that key may
/// connect.
macro_rules! peers_prove_their_key {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(older_tls())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            presented: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_signature(message, presented, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

/// The server presented another key than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("peer holds key {0}")]
struct WrongKey(PublicKey);

#[derive(Debug)]
struct PinnedServer(PublicKey);

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = raw_key(presented)?;
        if key != self.0 {
            let wrong = OtherError(Arc::new(WrongKey(key)));
            return Err(CertificateError::Other(wrong).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    peers_prove_their_key!();
}

#[derive(Debug)]
struct AdmittedClient(PeerPolicy);

impl ClientCertVerifier for AdmittedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.0.admits(&raw_key(presented)?) {
            return Ok(ClientCertVerified::assertion());
        }
        // The one error that rustls sends as the alert `access_denied`.
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    peers_prove_their_key!();
}

fn older_tls() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".to_owned())
}

/// Returns the key inside a `SubjectPublicKeyInfo`, which for Ed25519 has exactly one encoding.
fn raw_key(spki: &CertificateDer<'_>) -> Result<PublicKey, rustls::Error> {
    let key = spki.as_ref().strip_prefix(&SPKI_PREFIX);
    let key = key.and_then(|key| key.try_into().ok());
    key.map(PublicKey).ok_or_else(|| CertificateError::BadEncoding.into())
}

fn verify_signature(
    message: &[u8],
    presented: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let bad = || rustls::Error::from(CertificateError::BadSignature);
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(bad());
    }
    let key = raw_key(presented)?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(|_| bad())?;
    let signature = ed25519_dalek::Signature::from_slice(signed.signature()).map_err(|_| bad())?;
    key.verify_strict(message, &signature).map_err(|_| bad())?;
    Ok(HandshakeSignatureValid::assertion())
}
