//! Tests of bare streams: beside HTTP on one listener, and inside a stream that a third party carries.

use crate::common::{bind, get, identity, patient, until_some, within_deadline};
use axum::Router;
use axum::routing::get as on_get;
use futures::FutureExt;
use overlay::{
    Address, CancellationToken, Client, Connection, Error, Identity, Limits, PeerPolicy, StreamHandler,
    accept_inside, connect_inside, dial_stream, serve, serve_with_streams,
};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// Returns the work of a listener that sends each byte back.
fn echo() -> StreamHandler {
    Arc::new(|connection: Connection| {
        async move {
            let (mut reader, mut writer) = tokio::io::split(connection.stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
        .boxed()
    })
}

/// Starts a listener of key 1, and returns its address.
async fn start(policy: PeerPolicy, streams: Option<StreamHandler>, shutdown: CancellationToken) -> Address {
    let (listener, address) = bind().await;
    let router = Router::new().route("/", on_get(|| async { "http" }));
    tokio::spawn(async move {
        let own = identity(1);
        match streams {
            Some(streams) => {
                serve_with_streams(listener, &own, policy, patient(), router, streams, shutdown).await
            }
            None => serve(listener, &own, policy, patient(), router, shutdown).await,
        }
    });
    address.into()
}

async fn dial(from: &Identity, address: &Address) -> Result<Connection, Error> {
    within_deadline(dial_stream(from, address, identity(1).public_key(), &patient())).await
}

async fn says(connection: &mut Connection) -> std::io::Result<u8> {
    connection.stream.write_all(b"a").await?;
    connection.stream.flush().await?;
    within_deadline(connection.stream.read_u8()).await
}

#[tokio::test]
async fn streams_and_requests_share_a_listener() {
    let shutdown = CancellationToken::new();
    let address = start(PeerPolicy::any(), Some(echo()), shutdown.clone()).await;
    let mut connection = dial(&identity(2), &address).await.unwrap();
    assert_eq!(connection.peer, identity(1).public_key());
    assert_eq!(says(&mut connection).await.unwrap(), b'a');
    let client = Client::new(identity(2), address, identity(1).public_key(), patient());
    assert_eq!(within_deadline(client.request(get("/"))).await.unwrap().body(), "http");
    shutdown.cancel();
    assert!(within_deadline(connection.stream.read_u8()).await.is_err(), "a shutdown ends streams");
}

#[tokio::test]
async fn a_listener_without_streams_and_one_that_does_not_admit_the_key_refuse() {
    let shutdown = CancellationToken::new();
    let plain = start(PeerPolicy::any(), None, shutdown.clone()).await;
    assert!(matches!(dial(&identity(2), &plain).await, Err(Error::Handshake(_))));
    let closed = start(PeerPolicy::only([identity(3).public_key()]), Some(echo()), shutdown.clone()).await;
    let refused = match dial(&identity(2), &closed).await {
        Ok(mut connection) => says(&mut connection).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "the key is not admitted");
    let mut admitted = dial(&identity(3), &closed).await.unwrap();
    assert_eq!(says(&mut admitted).await.unwrap(), b'a', "positive control");
    shutdown.cancel();
}

#[tokio::test]
async fn a_peer_that_is_admitted_but_unknown_gets_no_stream() {
    let shutdown = CancellationToken::new();
    let policy = PeerPolicy::any().knowing(|key| *key == identity(3).public_key());
    let address = start(policy, Some(echo()), shutdown.clone()).await;
    let mut unknown = dial(&identity(2), &address).await.unwrap();
    assert!(says(&mut unknown).await.is_err());
    let mut known = dial(&identity(3), &address).await.unwrap();
    assert_eq!(says(&mut known).await.unwrap(), b'a', "positive control");
    shutdown.cancel();
}

#[tokio::test]
async fn streams_of_one_key_keep_no_other_out() {
    let shutdown = CancellationToken::new();
    let limits = Limits { connections_max: 2, ..patient() };
    let (listener, address) = bind().await;
    let ending = shutdown.clone();
    tokio::spawn(async move {
        let (policy, router) = (PeerPolicy::any(), Router::new());
        serve_with_streams(listener, &identity(1), policy, limits, router, echo(), ending).await
    });
    let address = Address::from(address);
    let mut first = dial(&identity(2), &address).await.unwrap();
    let mut second = dial(&identity(2), &address).await.unwrap();
    assert_eq!((says(&mut first).await.unwrap(), says(&mut second).await.unwrap()), (b'a', b'a'));
    let mut other = dial(&identity(3), &address).await.unwrap();
    assert_eq!(says(&mut other).await.unwrap(), b'a', "another key gets its share");
    let lost = until_some(async || {
        let alive = (says(&mut first).await.is_ok(), says(&mut second).await.is_ok());
        (alive != (true, true)).then_some(alive)
    });
    assert_ne!(lost.await, (false, false), "one stream gave way");
    shutdown.cancel();
}

/// A third party copies the bytes of a handshake and of what follows, and sees no plain text.
#[tokio::test]
async fn a_third_party_carries_what_it_cannot_read_or_answer() {
    let (near, mut carries_near) = duplex(1 << 16);
    let (mut carries_far, far) = duplex(1 << 16);
    let carrier = tokio::spawn(async move {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        let mut back = [0; 4096];
        loop {
            tokio::select! {
                length = carries_near.read(&mut buffer) => {
                    let Some(length) = length.ok().filter(|length| *length > 0) else { return seen };
                    seen.extend_from_slice(&buffer[..length]);
                    if carries_far.write_all(&buffer[..length]).await.is_err() { return seen }
                }
                length = carries_far.read(&mut back) => {
                    let Some(length) = length.ok().filter(|length| *length > 0) else { return seen };
                    if carries_near.write_all(&back[..length]).await.is_err() { return seen }
                }
            }
        }
    });
    let (dials, answers) = (identity(2), identity(3));
    let policy = PeerPolicy::only([dials.public_key()]);
    let (limits, key) = (patient(), answers.public_key());
    let (dialled, answered) = within_deadline(async {
        tokio::join!(
            connect_inside(near, &dials, key, &limits),
            accept_inside(far, &answers, &policy, &limits)
        )
    })
    .await;
    let (mut dialled, mut answered) = (dialled.unwrap(), answered.unwrap());
    assert_eq!((dialled.peer, answered.peer), (key, dials.public_key()));
    let secret = b"gradients of a gang";
    dialled.stream.write_all(secret).await.unwrap();
    dialled.stream.flush().await.unwrap();
    let mut read = [0; 19];
    within_deadline(answered.stream.read_exact(&mut read)).await.unwrap();
    assert_eq!(&read, secret);
    drop((dialled, answered));
    let seen = within_deadline(carrier).await.unwrap();
    assert!(!seen.windows(secret.len()).any(|window| window == secret), "it carried ciphertext");

    // A third party that answers itself has another key.
    let (near, far) = duplex(1 << 16);
    let (liar, any) = (identity(4), PeerPolicy::any());
    let (dialled, _) = within_deadline(async {
        tokio::join!(connect_inside(near, &dials, key, &limits), accept_inside(far, &liar, &any, &limits))
    })
    .await;
    assert!(matches!(dialled, Err(Error::WrongPeer { presented, .. }) if presented == liar.public_key()));
}
