//! Listeners for people and their programs: browsers, `curl`, OpenAI clients.
//!
//! These clients hold no key of ours and do not support raw keys. They get plain HTTP on loopback, or
//! ordinary TLS 1.3 with the operator's certificate. The hybrid key exchange is preferred if the client
//! offers it, and [`KeyExchanges`] counts the exchanges actually negotiated.

use crate::accept::accept_loop;
use crate::admission::Activity;
use crate::error::Error;
use crate::limits::Limits;
use crate::refusal::{RefusalForm, Refusing};
use crate::server::{Guard, serve_http1, serve_http2};
use crate::stream::Watched;
use crate::tls::within;
use axum::Router;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::Acceptor;
use rustls::version::TLS13;
use rustls::{NamedGroup, ServerConfig};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// The operator's certificate chain and private key, ready for a listener.
#[derive(Clone)]
pub struct ServerCertificate {
    /// For clients that offer the hybrid group anywhere in their list.
    hybrid: Arc<ServerConfig>,
    /// For all other clients.
    classical: Arc<ServerConfig>,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ServerCertificate {
    /// Reads a PEM certificate chain (leaf first) and its PEM private key.
    ///
    /// # Errors
    /// [`Error::Certificate`]: no certificate, no key, or a key that does not match the certificate.
    pub fn from_pem(chain: &[u8], private_key: &[u8]) -> Result<Self, Error> {
        let invalid =
            |step: &str, error: &dyn std::fmt::Display| Error::Certificate(format!("{step}: {error}"));
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| invalid("read the chain", &error))?;
        if chain.is_empty() {
            return Err(Error::Certificate("the chain holds no certificate".to_owned()));
        }
        let private_key = PrivateKeyDer::from_pem_slice(private_key)
            .map_err(|error| invalid("read the private key", &error))?;
        let configure = |groups: &[&'static dyn SupportedKxGroup]| {
            let mut config = ServerConfig::builder_with_provider(provider(groups))
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| invalid("configure", &error))?
                .with_no_client_auth()
                .with_single_cert(chain.clone(), private_key.clone_key())
                .map_err(|error| invalid("use the chain with the key", &error))?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        let hybrid = configure(&[kx_group::X25519MLKEM768])?;
        let classical = [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        Ok(Self { hybrid, classical: configure(&classical)? })
    }

    /// Runs the server's half of a handshake. rustls follows the client's order of groups. This server
    /// prefers the hybrid group whenever it is offered, so it reads the offer first.
    async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let offered = start.client_hello().named_groups();
        let hybrid = offered.is_some_and(|groups| groups.contains(&NamedGroup::X25519MLKEM768));
        start.into_stream(if hybrid { self.hybrid.clone() } else { self.classical.clone() }).await
    }
}

/// Groups that the clients of people may use, best first.
const GROUPS: [NamedGroup; 4] =
    [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

fn provider(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() })
}

/// Number of connections by key exchange, since the start.
#[derive(Debug, Default)]
pub struct KeyExchanges {
    groups: [AtomicU64; GROUPS.len()],
    plain: AtomicU64,
}

impl KeyExchanges {
    /// Returns the number of connections by the IANA name of their key exchange; `none` is plain HTTP on
    /// loopback.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let groups = GROUPS.iter().zip(&self.groups);
        let named = groups.map(|(group, count)| (group.as_str().unwrap_or("unknown"), count));
        let all = named.chain([("none", &self.plain)]);
        all.map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }

    fn count(&self, negotiated: Option<NamedGroup>) {
        let index = GROUPS.iter().position(|group| Some(*group) == negotiated);
        let counter = index.map_or(&self.plain, |index| &self.groups[index]);
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Serves `router` to people until `shutdown`: HTTP/1.1, and HTTP/2 where TLS agrees on it.
///
/// # Errors
/// [`Error::PlainRefused`] without a certificate on an address that is not loopback; [`Error::Listener`].
pub async fn serve(
    listener: TcpListener,
    certificate: Option<ServerCertificate>,
    limits: Limits,
    router: Router,
    key_exchanges: Arc<KeyExchanges>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let refusals = RefusalForm::default();
    serve_refusing(listener, certificate, limits, router, key_exchanges, refusals, shutdown).await
}

/// Serves `router` as [`serve`] does; requests that reach no route are refused in this form.
///
/// # Errors
/// As [`serve`].
pub async fn serve_refusing(
    listener: TcpListener,
    certificate: Option<ServerCertificate>,
    limits: Limits,
    router: Router,
    key_exchanges: Arc<KeyExchanges>,
    refusals: RefusalForm,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let address = listener.local_addr().map_err(Error::Listener)?;
    if certificate.is_none() && !address.ip().is_loopback() {
        return Err(Error::PlainRefused { address });
    }
    let limits = Arc::new(limits);
    let guard = Guard::new(router, None, limits.clone()).refusing(refusals);
    let ending = shutdown.clone();
    accept_loop(listener, &limits.clone(), shutdown, move |tcp, mut arrival| {
        let (certificate, limits) = (certificate.clone(), limits.clone());
        let (guard, ending, key_exchanges) = (guard.clone(), ending.clone(), key_exchanges.clone());
        async move {
            // An error means that the connection is closed already.
            let Ok(()) = tcp.set_nodelay(true) else { return };
            let Some(certificate) = certificate else {
                key_exchanges.count(None);
                if arrival.take_permit(arrival.prefix(), Activity::Silent) {
                    let stream = Refusing::new(Watched::writes_only(tcp, limits.idle), refusals);
                    serve_http1(stream, guard.on(&arrival), &limits, ending).await;
                }
                return;
            };
            let outcome = within("tls handshake", limits.handshake, certificate.accept(tcp)).await;
            let tls = match outcome.and_then(|accepted| accepted.map_err(Error::Handshake)) {
                Ok(tls) => tls,
                Err(error) => return arrival.failed(&error),
            };
            let (_, session) = tls.get_ref();
            key_exchanges.count(session.negotiated_key_exchange_group().map(|group| group.name()));
            if !arrival.take_permit(arrival.prefix(), Activity::Silent) {
                return;
            }
            let guard = guard.on(&arrival);
            if session.alpn_protocol() == Some(b"h2") {
                let stream = Watched::new(tls, limits.idle);
                serve_http2(stream, guard, &limits, ending).await;
            } else {
                let stream = Refusing::new(Watched::writes_only(tls, limits.idle), refusals);
                serve_http1(stream, guard, &limits, ending).await;
            }
        }
    })
    .await
}
