//! Tests of the services beside the main loop: the gateway child, the shard service, metrics.

use crate::node::{Bench, gateway_config, storage};
use bytes::Bytes;
use http::Request;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay::{Client, Identity, Limits};
use protocol::gateway::RouteTable;
use protocol::governance::Change;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Returns the simulated gateway's answer on its public socket: table version and process id.
async fn ask(address: SocketAddr) -> Option<(u64, i32)> {
    let answer = async {
        let mut text = String::new();
        TcpStream::connect(address).await.ok()?.read_to_string(&mut text).await.ok()?;
        let (version, pid) = text.split_once(' ')?;
        Some((version.parse().ok()?, pid.parse().ok()?))
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.ok()?
}

async fn until_version(address: SocketAddr, wanted: u64) -> i32 {
    let deadline = Instant::now() + crate::control::PATIENCE;
    loop {
        match ask(address).await {
            Some((version, pid)) if version == wanted => return pid,
            found => assert!(Instant::now() < deadline, "wanted {wanted}, found {found:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_kept_running_on_the_same_port_and_told_every_table() {
    let bench = Bench::new(1).await;
    let (config, address) = gateway_config(bench.directory.path()).await;
    let agent = bench.start_with(|agent| agent.gateway = Some(config));
    let table = |version| RouteTable { version, services: vec![], api_keys: vec![] };
    bench.control.say(|script| script.desired.routes = Some(table(1)));
    until_version(address, 1).await;
    bench.control.say(|script| script.desired.routes = Some(table(7)));
    let pid = until_version(address, 7).await;
    bench.control.until("says so", |s| (s.last.as_ref()?.routes_version == Some(7)).then_some(())).await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + crate::control::PATIENCE;
    let next = loop {
        match ask(address).await {
            Some((7, next)) if next != pid => break next,
            _ => assert!(Instant::now() < deadline, "a new gateway with the newest table"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    agent.stop().await;
    assert!(kill(Pid::from_raw(next), None).is_err(), "it ends with its agent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_offered_to_admitted_peers_alone() {
    let bench = Bench::new(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let offered = storage(listener, bench.directory.path());
    let agent = bench.start_with(|agent| agent.storage = Some(offered));
    let server = Identity::from_seed(&[7; 32]).public_key();
    // Retries until the request is answered or refused: on a busy machine an attempt may end early, which
    // proves nothing.
    let ask = |identity: Identity| async move {
        let deadline = Instant::now() + crate::control::PATIENCE;
        loop {
            let client = Client::new(identity.clone(), address, server, Limits::default());
            let request = Request::get("/shards/v1/disk-0").body(Bytes::new()).unwrap();
            match client.request(request).await {
                Ok(response) => return Ok(response.status().as_u16()),
                Err(error) if error.code() == protocol::error_code::PEER_REFUSED => return Err(error),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    let (peer, stranger) = (Identity::from_seed(&[8; 32]), Identity::from_seed(&[9; 32]));
    let refused = ask(peer.clone()).await.unwrap_err();
    assert_eq!(refused.code(), protocol::error_code::PEER_REFUSED);
    // The circle admits the peer; the agent follows.
    let encryption = human_chain::MemberSecret::generate(&[9; 64]).public().encryption;
    let admission = crate::circle::admission("node-2", &peer, encryption);
    bench.control.say(|script| drop(script.world.decide(Change::AdmitNode(Box::new(admission)))));
    bench.control.until("knows", |s| (s.last.as_ref()?.governance_length == 1).then_some(())).await;
    assert_eq!(ask(peer.clone()).await.unwrap(), 200);
    assert_eq!(ask(stranger).await.unwrap_err().code(), protocol::error_code::PEER_REFUSED);
    bench.control.say(|script| {
        script.world.decide(Change::RemoveNode { node: "node-2".parse().unwrap() });
    });
    bench.control.until("knows", |s| (s.last.as_ref()?.governance_length == 2).then_some(())).await;
    assert_eq!(ask(peer).await.unwrap_err().code(), protocol::error_code::PEER_REFUSED);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_served_on_loopback() {
    let bench = Bench::new(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = bench.start_with(|agent| agent.metrics = Some(listener));
    bench.deploy("chat");
    bench.control.until("knows", |s| (s.last.as_ref()?.governance_length == 1).then_some(())).await;
    let mut text = String::new();
    let deadline = Instant::now() + crate::control::PATIENCE;
    while !text.contains("quorate_agent_governance_length 1\n") {
        assert!(Instant::now() < deadline, "{text}");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        text.clear();
        stream.read_to_string(&mut text).await.unwrap();
    }
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    agent.stop().await;
}
