//! Tests of the admin socket: decisions, limits, and agents that end.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::testing::{NOW, TestCircle, service};
use protocol::{Digest, ModelRoot, error_code};
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn order(fence: u64) -> HandOrder {
    let mut world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
    let bundle = world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
    let node = protocol::NodeId(overlay::Identity::from_seed(&[7; 32]).public_key());
    let order = world.order(&bundle, node, 0, fence);
    HandOrder { bundle, order }
}

/// A served socket, and the queue of the orders submitted to it.
struct AdminServer {
    directory: tempfile::TempDir,
    injected: mpsc::Receiver<InjectedRequest>,
    shutdown: CancellationToken,
}

impl AdminServer {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, injected) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(bind(directory.path()).unwrap(), sender, shutdown.clone()));
        Self { directory, injected, shutdown }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join(ADMIN_SOCKET)).await.unwrap()
    }
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut UnixStream) {
    // A connection that is reset has been closed too.
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
}

#[test]
fn a_decision_carries_the_code_of_the_refusal() {
    let accepted = decision_on_order(Ok(()));
    assert!(accepted.accepted && accepted.code.is_none());
    let taken = decision_on_halt(Ok(()));
    assert!(taken.accepted && taken.message != accepted.message, "{}", taken.message);
    let refused = decision_on_order(Err(Refusal::new(error_code::ORDER_REPLAYED, "fence 3 is old")));
    assert_eq!((refused.accepted, refused.code), (false, Some(error_code::ORDER_REPLAYED)));
    assert_eq!(refused.message, "fence 3 is old");
}

#[tokio::test]
async fn a_socket_is_its_owners_alone_and_replaces_that_of_a_dead_agent() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("d".repeat(200));
    std::fs::create_dir(&directory).unwrap();
    for _ in 0..2 {
        let listener = bind(&directory).unwrap();
        let mode = std::fs::metadata(directory.join(ADMIN_SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
    }
    assert!(bind(&directory.join("none")).is_err());
}

#[tokio::test]
async fn orders_are_passed_on_and_their_decisions_returned() {
    let mut server = AdminServer::start();
    for fence in [1, 2] {
        let submitted = order(fence);
        let (answer, passed) = tokio::join!(hand_order(server.directory.path(), &submitted), async {
            let InjectedRequest { request, decision } = server.injected.recv().await.unwrap();
            let AdminRequest::Order(order) = request else { panic!("an order was handed over") };
            let refusal = Refusal::new(error_code::NODE_UNFIT, order.order.order.fence.to_string());
            decision.send(decision_on_order(Err(refusal))).unwrap();
            *order
        });
        assert_eq!(passed, submitted);
        let answer = answer.unwrap();
        assert_eq!((answer.code, answer.message), (Some(error_code::NODE_UNFIT), format!("1.{fence}")));
    }
}

#[tokio::test]
async fn a_halt_is_passed_on_whole() {
    let mut server = AdminServer::start();
    let world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
    let halt = world.halt(0, protocol::halt::HaltScope::Circle, 1);
    let (answer, passed) = tokio::join!(hand_halt(server.directory.path(), &halt), async {
        let InjectedRequest { request, decision } = server.injected.recv().await.unwrap();
        decision.send(decision_on_halt(Ok(()))).unwrap();
        request
    });
    assert_eq!(passed, AdminRequest::Halt(Box::new(halt)));
    assert!(answer.unwrap().accepted);
}

#[tokio::test]
async fn without_an_agent_there_is_no_decision() {
    let directory = tempfile::tempdir().unwrap();
    assert!(hand_order(directory.path(), &order(1)).await.is_err(), "no socket");
    drop(bind(directory.path()).unwrap());
    assert!(hand_order(directory.path(), &order(1)).await.is_err(), "nothing listens");
    let mut server = AdminServer::start();
    server.injected.close();
    let error = hand_order(server.directory.path(), &order(1)).await.unwrap_err();
    assert!(
        matches!(&error, FrameError::Socket(error) if error.kind() == io::ErrorKind::UnexpectedEof),
        "the agent ends: {error}"
    );
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_stay() {
    let mut server = AdminServer::start();
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        streams.push(server.connect().await);
    }
    closed(&mut server.connect().await).await;
    // Each of the others is still served.
    for stream in streams {
        let (mut sender, mut receiver) = channel(stream);
        sender.send(&AdminRequest::Order(Box::new(order(1))), &[]).await.unwrap();
        let InjectedRequest { decision, .. } = server.injected.recv().await.unwrap();
        decision.send(decision_on_order(Ok(()))).unwrap();
        let (verdict, _) = receiver.receive::<Verdict>().await.unwrap().unwrap();
        assert!(verdict.accepted);
    }
}

#[tokio::test]
async fn a_malformed_order_ends_the_connection_and_reaches_no_agent() {
    let mut server = AdminServer::start();
    for bytes in [&u32::MAX.to_le_bytes()[..], b"\x04\0\0\0junk", b"\0\0\0\0"] {
        let mut stream = server.connect().await;
        stream.write_all(bytes).await.unwrap();
        closed(&mut stream).await;
    }
    assert!(server.injected.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_its_limit() {
    let server = AdminServer::start();
    let began = tokio::time::Instant::now();
    closed(&mut server.connect().await).await;
    assert!(began.elapsed() >= IDLE_LIMIT);
}

#[tokio::test]
async fn the_end_of_the_agent_closes_every_connection() {
    let server = AdminServer::start();
    let mut stream = server.connect().await;
    server.shutdown.cancel();
    closed(&mut stream).await;
}
