//! Tests of the handshake: admitted keys, key exchanges, and time limits for unauthenticated clients.

use crate::common::{REACHED, bind, identity, patient, within_deadline};
use overlay::{Error, Identity, Limits, PeerPolicy, accept, connect};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Performs one handshake; returns the client's result and the server's.
async fn shake(
    client: &Identity,
    expected: &Identity,
    server: Identity,
    policy: PeerPolicy,
) -> (Result<overlay::Connection, Error>, Result<overlay::Connection, Error>) {
    let (listener, address) = bind().await;
    let accepted = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(tcp, &server, &policy, &patient()).await
    });
    let connected = connect(client, address, expected.public_key(), &patient()).await;
    (connected, within_deadline(accepted).await.unwrap())
}

#[tokio::test]
async fn both_sides_learn_the_proven_key_and_agree_on_the_hybrid_group() {
    let (client, server) = (identity(2), identity(1));
    let policy = PeerPolicy::only([client.public_key()]);
    let (connected, accepted) = shake(&client, &server, server.clone(), policy).await;
    let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(connected.peer, server.public_key());
    assert_eq!(accepted.peer, client.public_key());
    assert_eq!(connected.key_exchange(), "X25519MLKEM768");
    assert_eq!(accepted.key_exchange(), "X25519MLKEM768");

    connected.stream.write_all(b"bytes").await.unwrap();
    connected.stream.flush().await.unwrap();
    let mut received = [0; 5];
    accepted.stream.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"bytes");
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_by_name() {
    let (client, expected, impostor) = (identity(2), identity(1), identity(66));
    let (connected, accepted) = shake(&client, &expected, impostor.clone(), PeerPolicy::any()).await;
    let Err(Error::WrongPeer { expected: named, presented }) = connected else {
        panic!("an impostor must not pass: {connected:?}");
    };
    assert_eq!((named, presented), (expected.public_key(), impostor.public_key()));
    assert!(matches!(accepted, Err(Error::Handshake(_))));
}

#[tokio::test]
async fn a_client_that_is_not_admitted_is_refused_before_it_can_send() {
    let (client, server) = (identity(2), identity(1));
    let policy = PeerPolicy::only([identity(3).public_key()]);
    let (connected, accepted) = shake(&client, &server, server.clone(), policy).await;
    assert!(matches!(accepted, Err(Error::Handshake(_))));
    // TLS 1.3: the client sees the refusal with its first read.
    let mut byte = [0];
    let read = within_deadline(connected.unwrap().stream.read(&mut byte)).await;
    let error = read.unwrap_err().to_string();
    assert!(error.contains("AccessDenied"), "{error}");
}

/// A verifier that accepts any server, so that only the key exchange can fail.
#[derive(Debug)]
struct Careless;

impl rustls::client::danger::ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Returns our server's refusal of a client that offers these key exchanges, and no key of its own.
async fn refusal_of(groups: Vec<&'static dyn SupportedKxGroup>) -> String {
    let (listener, address) = bind().await;
    let accepted = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(tcp, &identity(1), &PeerPolicy::any(), &patient()).await
    });
    let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("quorate.invalid").unwrap();
    let client = async {
        let mut stream = connector.connect(name, tcp).await?;
        stream.read_u8().await
    };
    let error = within_deadline(client).await.unwrap_err().to_string();
    assert!(error.contains("alert"), "the client gets an alert: {error}");
    let Err(Error::Handshake(cause)) = within_deadline(accepted).await.unwrap() else {
        panic!("such a client must not pass");
    };
    cause.to_string()
}

#[tokio::test]
async fn a_client_without_the_hybrid_group_is_refused() {
    for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1] {
        let cause = refusal_of(vec![group]).await;
        assert!(cause.contains("NoKxGroupsInCommon"), "{:?}: {cause}", group.name());
    }
}

#[tokio::test]
async fn a_client_without_a_key_is_refused() {
    let cause = refusal_of(vec![kx_group::X25519MLKEM768]).await;
    assert!(!cause.contains("NoKxGroupsInCommon"), "the group was right: {cause}");
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut_off() {
    let (listener, address) = bind().await;
    let limits = Limits { handshake: Duration::from_millis(100), ..patient() };
    let _silent = TcpStream::connect(address).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let accepted = within_deadline(accept(tcp, &identity(1), &PeerPolicy::any(), &limits)).await;
    assert!(matches!(accepted, Err(Error::TimedOut { step: "tls handshake", .. })));

    // The opposite direction: the peer that accepts the dial sends nothing.
    let connected = within_deadline(connect(&identity(2), address, identity(1).public_key(), &limits)).await;
    assert!(matches!(connected, Err(Error::TimedOut { .. })));
}

#[tokio::test]
async fn noise_instead_of_tls_is_refused() {
    let (listener, address) = bind().await;
    let mut noise = TcpStream::connect(address).await.unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let accepted = accept(tcp, &identity(1), &PeerPolicy::any(), &patient()).await;
    assert!(matches!(accepted, Err(Error::Handshake(_))));
}

#[tokio::test]
async fn a_silent_peer_is_detected() {
    let (client, server) = (identity(2), identity(1));
    let (listener, address) = bind().await;
    let limits = Limits { idle: REACHED, ..patient() };
    let accepted = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(tcp, &server, &PeerPolicy::any(), &patient()).await
    });
    let mut connection = connect(&client, address, identity(1).public_key(), &limits).await.unwrap();
    let _silent = accepted.await.unwrap().unwrap();
    let read = within_deadline(connection.stream.read_u8()).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}
