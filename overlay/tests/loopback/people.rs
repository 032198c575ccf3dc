//! Tests of the listeners for people with common clients: `curl`, Python's `ssl`, a raw socket.
//!
//! The certificate beside this file is a throw-away for `localhost`, made by
//! `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 36500`.

use crate::common::{REACHED, bind, patient, until_some, within_deadline};
use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use overlay::people::{KeyExchanges, ServerCertificate, serve};
use overlay::{Body, CancellationToken, Error, Limits};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const CHAIN: &[u8] = include_bytes!("certificate/chain.pem");
const PRIVATE_KEY: &[u8] = include_bytes!("certificate/private-key.pem");
const CHAIN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/loopback/certificate/chain.pem");

struct Site {
    address: SocketAddr,
    key_exchanges: Arc<KeyExchanges>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    /// Signals that an endless answer was abandoned.
    ended: mpsc::UnboundedReceiver<()>,
}

/// Signals when it is dropped.
struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Site {
    async fn start(certificate: Option<ServerCertificate>, limits: Limits) -> Self {
        let (listener, address) = bind().await;
        let echo = |body: Bytes| async move { body };
        let stream = || async {
            let events = ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"];
            Body::from_stream(futures::stream::iter(events.map(Ok::<_, std::io::Error>)))
        };
        let (ends, ended) = mpsc::unbounded_channel();
        let endless = move || {
            let guard = OnDrop(ends.clone());
            async move {
                Body::from_stream(futures::stream::repeat_with(move || {
                    let _kept = &guard;
                    Ok::<_, std::io::Error>(vec![7; 64 * 1024])
                }))
            }
        };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/echo", post(echo))
            .route("/stream", get(stream))
            .route("/endless", get(endless));
        let key_exchanges = Arc::new(KeyExchanges::default());
        let shutdown = CancellationToken::new();
        let served = serve(listener, certificate, limits, router, key_exchanges.clone(), shutdown.clone());
        Self { address, key_exchanges, shutdown, task: tokio::spawn(served), ended }
    }

    async fn start_with_tls() -> Self {
        let certificate = ServerCertificate::from_pem(CHAIN, PRIVATE_KEY).unwrap();
        Self::start(Some(certificate), patient()).await
    }

    fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = self.key_exchanges.counts();
        counts.retain(|_, count| *count > 0);
        counts
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within_deadline(self.task).await.unwrap().unwrap();
    }
}

/// Returns the output of a program, which must succeed.
async fn output(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let run = command.args(arguments).kill_on_drop(true).output();
    let run = within_deadline(run).await.unwrap_or_else(|error| panic!("run {program}: {error}"));
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(run.stdout).unwrap()
}

#[tokio::test]
async fn curl_speaks_to_both_kinds_of_listener() {
    let plain = Site::start(None, patient()).await;
    let url = format!("http://{}", plain.address);
    assert_eq!(output("curl", &["-sSf", &format!("{url}/")]).await, "hello");
    assert_eq!(output("curl", &["-sSf", "-d", "body", &format!("{url}/echo")]).await, "body");
    assert_eq!(plain.counts(), BTreeMap::from([("none", 2)]));
    plain.stop().await;

    let site = Site::start_with_tls().await;
    let url = format!("https://localhost:{}", site.address.port());
    for version in ["--http1.1", "--http2"] {
        let common = ["-sSf", "--cacert", CHAIN_PATH, version];
        let fetch = async |extra: &[&str]| output("curl", &[&common[..], extra].concat()).await;
        assert_eq!(fetch(&[&format!("{url}/")]).await, "hello");
        assert_eq!(fetch(&["-d", "body", &format!("{url}/echo")]).await, "body");
        let streamed = fetch(&["-N", &format!("{url}/stream")]).await;
        assert_eq!(streamed, "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n");
    }
    assert_eq!(site.counts().values().sum::<u64>(), 6);
    site.stop().await;
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_in_words() {
    let site = Site::start(None, patient()).await;
    // As many bytes as the limit: the server reads them all, so that closing destroys no answer.
    let start = "GET / HTTP/1.1\r\nx-long: ";
    let long = format!("{start}{}", "y".repeat(16 * 1024 - start.len()));
    for (head, status, words) in [
        ("GET\u{1} / HTTP/1.1\r\n\r\n", "400 Bad Request", "is not valid HTTP/1.1"),
        (long.as_str(), "431 Request Header Fields Too Large", "is too large"),
    ] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within_deadline(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.ends_with(words), "{answer}");
    }
    site.stop().await;
}

#[tokio::test]
async fn python_speaks_to_the_listener_with_tls() {
    let site = Site::start_with_tls().await;
    let program = "
import ssl, sys, http.client
context = ssl.create_default_context(cafile=sys.argv[1])
connection = http.client.HTTPSConnection('localhost', int(sys.argv[2]), context=context, timeout=3600)
for body in (b'one', b'two'):
    connection.request('POST', '/echo', body)
    print(connection.getresponse().read().decode(), connection.sock.version())
";
    let port = site.address.port().to_string();
    let printed = output("python3", &["-c", program, CHAIN_PATH, &port]).await;
    assert_eq!(printed, "one TLSv1.3\ntwo TLSv1.3\n");
    assert_eq!(site.counts().values().sum::<u64>(), 1, "one connection served both requests");
    site.stop().await;
}

/// Connects as a client that trusts the certificate and offers its usual groups in its usual order.
async fn negotiate(site: &Site, groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>) {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(CHAIN).unwrap()).unwrap();
    let provider =
        rustls::crypto::CryptoProvider { kx_groups: groups, ..rustls::crypto::aws_lc_rs::default_provider() };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(site.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut stream = within_deadline(connector.connect(name, tcp)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    within_deadline(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"hello"));
}

#[tokio::test]
async fn the_hybrid_group_is_preferred_and_every_group_is_counted() {
    use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    let site = Site::start_with_tls().await;
    // A client that prefers the classical group, but offers both.
    negotiate(&site, vec![X25519, X25519MLKEM768]).await;
    for group in [X25519MLKEM768, X25519, SECP256R1, SECP384R1] {
        negotiate(&site, vec![group]).await;
    }
    let expected = [("X25519MLKEM768", 2), ("X25519", 1), ("secp256r1", 1), ("secp384r1", 1)];
    assert_eq!(site.counts(), BTreeMap::from(expected));
    site.stop().await;
}

#[tokio::test]
async fn plain_http_is_refused_where_other_machines_can_reach_it() {
    let listener = overlay::listen::tcp("0.0.0.0:0").await.unwrap();
    let (counts, shutdown) = (Arc::default(), CancellationToken::new());
    let served = serve(listener, None, patient(), Router::new(), counts, shutdown);
    assert!(matches!(within_deadline(served).await, Err(Error::PlainRefused { .. })));
}

#[tokio::test]
async fn a_certificate_that_cannot_serve_is_refused() {
    let other = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let pairs = [(&b""[..], PRIVATE_KEY), (CHAIN, b""), (PRIVATE_KEY, CHAIN), (other, PRIVATE_KEY)];
    for (chain, private_key) in pairs {
        assert!(matches!(ServerCertificate::from_pem(chain, private_key), Err(Error::Certificate(_))));
    }
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let quick = Duration::from_millis(100);
    let limits = Limits { handshake: quick, idle: quick, ..patient() };
    let certificate = ServerCertificate::from_pem(CHAIN, PRIVATE_KEY).unwrap();
    for certificate in [None, Some(certificate)] {
        let site = Site::start(certificate, limits.clone()).await;
        for opening in [&b""[..], b"GET / HTTP/1.1\r\nhost: l", b"\x16\x03\x01"] {
            let mut slow = TcpStream::connect(site.address).await.unwrap();
            slow.write_all(opening).await.unwrap();
            let mut answer = Vec::new();
            // A reset is as good an end as any other.
            let _ = within_deadline(slow.read_to_end(&mut answer)).await;
            assert!(!answer.windows(6).any(|window| window == b"200 OK"), "{opening:?}");
        }
        site.stop().await;
    }
}

#[tokio::test]
async fn oversized_bodies_and_heads_are_refused() {
    let limits = Limits { request_bytes_max: 1000, ..patient() };
    let site = Site::start(None, limits).await;
    let url = format!("http://{}/echo", site.address);
    let status = ["-sS", "-o", "/dev/null", "-w", "%{http_code}"];
    let body = "x".repeat(1001);
    let sized = output("curl", &[&status[..], &["-d", &body, &url]].concat()).await;
    assert_eq!(sized, "413");
    let chunked = ["-H", "transfer-encoding: chunked", "-d", &body, &url];
    assert_eq!(output("curl", &[&status[..], &chunked].concat()).await, "413");
    let head = format!("x-long: {}", "x".repeat(20_000));
    let long = output("curl", &[&status[..], &["-H", &head, &url]].concat()).await;
    assert_eq!(long, "431");
    site.stop().await;
}

/// Sends `request` and returns the connection with the beginning of its answer.
async fn begin(site: &Site, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    // Zero bytes, or a reset, from a server that rejects the connection.
    let length = within_deadline(stream.read(&mut answer)).await.unwrap_or(0);
    (stream, String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Waits until the server ends the connection.
async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = within_deadline(stream.read_to_end(&mut rest)).await;
}

const HELLO: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test]
async fn a_trickling_body_times_out() {
    let limits = Limits { request: Duration::from_millis(200), ..patient() };
    let site = Site::start(None, limits).await;
    let head = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nx";
    let (stream, answer) = begin(&site, head).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    ends(stream).await;
    site.stop().await;
}

#[tokio::test]
async fn an_idle_connection_that_was_kept_alive_is_closed() {
    let limits = Limits { idle: REACHED, ..patient() };
    let site = Site::start(None, limits).await;
    let (stream, answer) = until_some(async || {
        let (stream, answer) = begin(&site, HELLO).await;
        answer.starts_with("HTTP/1.1 200").then_some((stream, answer))
    })
    .await;
    assert!(!answer.contains("connection: close"), "{answer}");
    ends(stream).await;
    site.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_rejected_until_a_permit_is_free() {
    let site = Site::start(None, Limits { connections_max: 1, ..patient() }).await;
    let (first, answer) = begin(&site, "GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_, refused) = begin(&site, HELLO).await;
    assert_eq!(refused, "", "an answer under way is not broken off for another of the same address");
    drop(first);
    within_deadline(async { while !begin(&site, HELLO).await.1.ends_with("hello") {} }).await;
    site.stop().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_its_work_ends() {
    let limits = Limits { idle: REACHED, ..patient() };
    let mut site = Site::start(None, limits).await;
    let _stuck = until_some(async || {
        let (stalled, answer) = begin(&site, "GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        answer.starts_with("HTTP/1.1 200").then_some(stalled)
    })
    .await;
    within_deadline(site.ended.recv()).await.unwrap();
    site.stop().await;
}
