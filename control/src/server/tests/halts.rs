//! Tests of halts at control replicas: taken without a leader and a quorum, durable, and handed on to nodes
//! and replicas. Each attack has a positive control.

use super::circle::{TOKEN, alice};
use super::faults::{SimulatedServers, ask};
use super::outcomes::ballot;
use crate::server::halts::{HaltStore, PATH};
use crate::server::{Server, agents, leader};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use host::wall_clock;
use human_chain::{MemberSecret, lift, sign_halt};
use protocol::api::{Page, Problem, Status, SubmitProposal};
use protocol::governance::Change;
use protocol::halt::{Halt, HaltCursor, HaltReceipt, HaltScope, HaltsAnswer, HaltsRequest, SignedHalt};
use protocol::limits::POLL_WAIT_MS_MAX;
use protocol::{CircleId, Digest, ReplicaId, canonical};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt as _;

fn circle(server: &Server) -> CircleId {
    human_chain::circle_id(&server.genesis.genesis)
}

fn halt_by(server: &Server, member: &str, secret: &MemberSecret, number: u64) -> SignedHalt {
    let halt = Halt {
        circle: circle(server),
        member: member.parse().unwrap(),
        signer: secret.public().ed25519,
        scope: HaltScope::Circle,
        reason: "smoke".into(),
        issued_at: wall_clock(),
        nonce: Digest::of(&number.to_le_bytes()),
    };
    sign_halt(secret, halt)
}

fn halt(server: &Server, number: u64) -> SignedHalt {
    let (member, secret) = alice();
    halt_by(server, member.as_str(), secret, number)
}

/// Waits until a replica has applied the founding and the first grant of access.
async fn founded(server: &Server) {
    while server.standing_token(Digest::of(TOKEN.as_bytes())).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sends a halt to a replica; returns the code of its refusal.
async fn send(server: &Arc<Server>, signed: &SignedHalt) -> Result<HaltReceipt, String> {
    let (status, body) = ask(server, Method::POST, "/v1/halts", Some(signed)).await;
    match status {
        StatusCode::OK => Ok(serde_json::from_slice(&body).unwrap()),
        _ => Err(serde_json::from_slice::<Problem>(&body).unwrap().code),
    }
}

/// Returns the halts that a replica lists.
pub(super) async fn listed(server: &Arc<Server>) -> Vec<SignedHalt> {
    let (status, body) = ask::<()>(server, Method::GET, "/v1/halts", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice::<Page<SignedHalt>>(&body).unwrap().items
}

/// Hands on what a replica has, as the exchange among replicas does.
async fn exchange(from: &Arc<Server>, to: &Arc<Server>) {
    let answer = from.halts.wait(HaltsRequest::default(), &from.ending).await;
    to.take_halts_of(from.id, answer.halts).await;
}

/// Has the circle decide a change, by its only member's vote.
pub(super) async fn decide(server: &Arc<Server>, change: Change) {
    let now = wall_clock();
    let proposal = server.cluster(|cluster| {
        let nonce = Digest::of(&cluster.generation().to_le_bytes());
        let state = cluster.circle_state().unwrap();
        human_chain::propose(state, change, "a test".into(), now, now.plus(3_600_000), nonce).unwrap()
    });
    let (vote, path) = (ballot(&proposal), format!("/v1/proposals/{}/ballots", proposal.id()));
    let (status, body) =
        ask(server, Method::POST, "/v1/proposals", Some(&SubmitProposal { proposal, ballot: None })).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let (status, body) = ask(server, Method::POST, &path, Some(&vote)).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_a_halt_without_a_leader_and_without_a_quorum() {
    let mut world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let left = world.servers[(leads + 1) % 3].clone();
    founded(&left).await;
    let others: Vec<_> = world.servers.iter().filter(|server| server.id != left.id).map(|s| s.id).collect();
    others.into_iter().for_each(|id| world.group.crash(id));
    // The positive control: nothing that needs a quorum works any more.
    let (status, _) = ask::<()>(&left, Method::GET, "/v1/status", None).await;
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
    let signed = halt(&left, 1);
    let receipt = send(&left, &signed).await.expect("one replica is enough");
    assert_eq!(receipt, HaltReceipt { id: signed.halt.id(), slots: 0, shown: vec![] });
    assert_eq!(listed(&left).await, std::slice::from_ref(&signed));
    // It is on the disk already: a new process reads it.
    let directory = world.directory.path().join(left.id.to_string());
    let again = HaltStore::open(&directory, circle(&left)).unwrap();
    assert_eq!(again.listed(None), [(signed.halt.id(), signed)]);
}

#[tokio::test(start_paused = true)]
async fn halts_that_no_member_signed_are_refused_and_leave_no_trace() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let (_, secret) = alice();
    let thief = MemberSecret::generate(&[66; 64]);
    let mut altered = halt(server, 1);
    altered.halt.scope = HaltScope::Region("local".into());
    let mut foreign = halt(server, 1).halt;
    foreign.circle = CircleId(Digest::of(b"another"));
    for (case, signed, expected) in [
        ("another key", halt_by(server, "alice", &thief, 1), "signature-invalid"),
        ("altered", altered, "signature-invalid"),
        ("no member", halt_by(server, "mallory", &thief, 1), "not-a-member"),
        ("another circle", sign_halt(secret, foreign), "circle-mismatch"),
    ] {
        assert_eq!(send(server, &signed).await, Err(expected.to_string()), "{case}");
    }
    assert_eq!(listed(server).await, []);
    assert!(!world.directory.path().join("1/halts").exists());
    assert!(send(server, &halt(server, 1)).await.is_ok(), "the positive control");
}

/// A decision arrives between the verification of a halt by an earlier history and its wait for a later one.
#[tokio::test(start_paused = true)]
async fn a_halt_that_was_judged_by_an_earlier_history_waits_for_no_further_decision() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    founded(server).await;
    let head = server.cluster(|cluster| cluster.circle_state().map(human_chain::CircleState::head));
    server.follow_decisions().await;
    // Judged by the history that was followed last, it waits for another one.
    server.halts.defer(ReplicaId(2), halt(server, 1), head);
    server.follow_decisions().await;
    assert_eq!(listed(server).await, []);
    let signed = halt(server, 2);
    server.halts.defer(ReplicaId(2), signed.clone(), None);
    server.follow_decisions().await;
    assert!(listed(server).await.contains(&signed));
}

/// The attack: one replica withholds a halt. The others exchange theirs, and a forged one is not taken.
#[tokio::test(start_paused = true)]
async fn replicas_hand_on_what_they_have_and_believe_no_replica() {
    let world = SimulatedServers::start(3);
    world.lead().await;
    for server in &world.servers {
        founded(server).await;
    }
    let [first, second, third] = [0, 1, 2].map(|index| world.servers[index].clone());
    let signed = halt(&first, 1);
    send(&first, &signed).await.unwrap();
    exchange(&first, &second).await;
    assert_eq!(listed(&second).await, std::slice::from_ref(&signed));
    assert_eq!(listed(&third).await, [], "the positive control: nothing was handed on to it");
    let forged = halt_by(&third, "alice", &MemberSecret::generate(&[66; 64]), 2);
    second.take_halts_of(first.id, vec![forged]).await;
    assert_eq!(listed(&second).await, std::slice::from_ref(&signed));
    exchange(&second, &third).await;
    exchange(&second, &third).await;
    assert_eq!(listed(&third).await, [signed], "each once");
}

/// A lifted halt is forgotten, and refused when it is sent again.
#[tokio::test(start_paused = true)]
async fn a_lifted_halt_does_not_come_back() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let signed = halt(&server, 1);
    send(&server, &signed).await.unwrap();
    server.follow_decisions().await;
    assert_eq!(listed(&server).await.len(), 1, "nothing was lifted");
    decide(&server, lift(vec![signed.halt.clone()])).await;
    assert_eq!(server.standing_halts(), [], "the plan knows it at once");
    server.follow_decisions().await;
    assert_eq!(listed(&server).await, []);
    assert_eq!(send(&server, &signed).await, Err("halt-lifted".into()));
    server.take_halts_of(server.id, vec![signed]).await;
    assert_eq!(listed(&server).await, []);
    assert!(send(&server, &halt(&server, 2)).await.is_ok(), "the positive control");
}

#[tokio::test(start_paused = true)]
async fn a_halt_that_comes_before_its_history_waits_for_it() {
    let world = SimulatedServers::start(1);
    let server = world.servers[0].clone();
    let signed = halt(&server, 1);
    assert_eq!(send(&server, &signed).await, Err("not-leader".into()), "no token is known yet");
    server.take_halts_of(protocol::ReplicaId(2), vec![signed.clone()]).await;
    server.follow_decisions().await;
    assert_eq!(server.standing_halts(), []);
    world.lead().await;
    server.follow_decisions().await;
    assert_eq!(server.standing_halts(), [signed.halt]);
}

#[tokio::test(start_paused = true)]
async fn the_leaders_plan_and_status_know_a_halt() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let status = async || {
        let (_, body) = ask::<()>(&server, Method::GET, "/v1/status", None).await;
        serde_json::from_slice::<Status>(&body).unwrap()
    };
    assert!(status().await.healthy);
    let signed = halt(&server, 1);
    send(&server, &signed).await.unwrap();
    leader::round(&server).await;
    let found = status().await;
    let expected =
        format!("the whole circle is halted by alice: \"smoke\" (halt {})", signed.halt.id().short());
    assert_eq!(found.findings[0].message, expected);
    assert!(!found.healthy);
}

/// The attack: the holder of a leaked token sends forged halts of a member, halts of persons who are no
/// members, and a halt of the member that every reader gets, as fast as it can. An honest halt by the same
/// token is taken nevertheless. The positive control: with the limit taken for them, it is not.
#[tokio::test(start_paused = true)]
async fn attack_a_leaked_token_starves_no_honest_halt() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let (member, thief) = (alice().0, MemberSecret::generate(&[66; 64]));
    let known = halt(&server, 1);
    send(&server, &known).await.unwrap();
    for number in 0..100 {
        let forged = halt_by(&server, "alice", &thief, number);
        assert_eq!(send(&server, &forged).await, Err("signature-invalid".into()));
        let foreign = halt_by(&server, "mallory", &thief, number);
        assert_eq!(send(&server, &foreign).await, Err("not-a-member".into()));
        assert!(send(&server, &known).await.is_ok(), "the same halt may be sent again");
    }
    assert!(send(&server, &halt(&server, 2)).await.is_ok());
    let left = (0..1000).take_while(|_| server.halts.admit(&member).is_ok()).count();
    assert!((62..100).contains(&left), "two halts were new: {left}");
    assert_eq!(send(&server, &halt(&server, 3)).await, Err("limit-reached".into()), "the positive control");
    assert!(send(&server, &known).await.is_ok(), "what it has costs nothing");
}

/// Sends a request for halts over an authenticated connection.
async fn halts_after(server: &Arc<Server>, request: HaltsRequest) -> HaltsAnswer {
    let request = Request::post(PATH).body(Body::from(canonical::to_bytes(&request))).unwrap();
    let answer = agents::router(server.clone()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    canonical::from_bytes(&body, body.len()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_waits_gets_a_halt_at_once() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let began = Instant::now();
    let request = HaltsRequest { after: HaltCursor::default(), wait_ms: u32::MAX };
    let empty = halts_after(&server, request).await;
    let waited = began.elapsed().as_millis() as u64;
    assert!(empty.halts.is_empty() && waited <= u64::from(POLL_WAIT_MS_MAX) + 100, "{waited} ms");
    let signed = halt(&server, 1);
    let began = Instant::now();
    let (answer, receipt) = tokio::join!(
        halts_after(&server, HaltsRequest { after: empty.last, wait_ms: POLL_WAIT_MS_MAX }),
        send(&server, &signed)
    );
    assert!(receipt.is_ok());
    assert_eq!(answer.halts, std::slice::from_ref(&signed));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let next = HaltsRequest { after: answer.last, wait_ms: 0 };
    assert!(halts_after(&server, next).await.halts.is_empty(), "each once");
    // A position of another incarnation means nothing here.
    let other = HaltCursor { boot: answer.last.boot.wrapping_add(1), number: u64::MAX };
    assert_eq!(halts_after(&server, HaltsRequest { after: other, wait_ms: 0 }).await.halts, [signed]);
}

/// A replica that stops does not wait for requests that it holds.
#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_answers_the_polls_that_it_holds() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let request = HaltsRequest { after: HaltCursor::default(), wait_ms: POLL_WAIT_MS_MAX };
    let began = Instant::now();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.ending.cancel();
    };
    let (answer, ()) = tokio::join!(halts_after(&server, request), stop);
    assert!(answer.halts.is_empty());
    assert_eq!(began.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_no_halt_acknowledges_none_and_a_damaged_file_is_not_trusted() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let directory = world.directory.path().join("1");
    std::fs::create_dir(directory.join("halts.new")).unwrap();
    let signed = halt(&server, 1);
    let refused = server.take_halt(signed.clone()).await.expect_err("the disk refuses it");
    assert_eq!(refused.problem().code, "control-unavailable");
    server.follow_decisions().await;
    server.take_halts_of(protocol::ReplicaId(2), vec![signed.clone()]).await;
    server.follow_decisions().await;
    assert_eq!(listed(&server).await, [], "what is not durable is not handed on");
    std::fs::remove_dir(directory.join("halts.new")).unwrap();
    server.follow_decisions().await;
    assert_eq!(
        listed(&server).await,
        std::slice::from_ref(&signed),
        "that of another replica is written again"
    );
    let file = directory.join("halts");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = HaltStore::open(&directory, circle(&server)).err().expect("truncated");
    assert!(format!("{error:#}").contains("its bytes are damaged"), "{error:#}");
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(HaltStore::open(&directory, circle(&server)).unwrap().listed(None).len(), 1);
}
