//! Tests of the reported outcome of a write.
//!
//! The codes 503 and 507 report that nothing was done; `outcome-unknown` reports that the write may have been
//! applied. No response may report that nothing was done if something was.

use super::circle::{admission, alice, other};
use super::faults::{SimulatedServers, ask, create, deposed_unnoticed, key, keys};
use crate::server::{Server, leader};
use axum::http::{Method, StatusCode};
use host::wall_clock;
use protocol::Digest;
use protocol::api::{Problem, ProposalView, SubmitProposal};
use protocol::governance::{Change, Choice, Proposal, SignedBallot};
use serde::Serialize;
use std::time::Duration;

/// Interval between two polls of a simulated replica.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Builds a proposal to admit a node of this name, bound to the circle's present state.
pub(super) fn proposal(server: &Server, name: &str) -> Proposal {
    let now = wall_clock();
    let later = now.plus(3_600_000);
    let (change, nonce) =
        (Change::AdmitNode(Box::new(admission(name, &other(1)))), Digest::of(name.as_bytes()));
    server.cluster(|cluster| {
        let state = cluster.circle_state().unwrap();
        human_chain::propose(state, change, "a test".into(), now, later, nonce).unwrap()
    })
}

pub(super) fn ballot(proposal: &Proposal) -> SignedBallot {
    let (member, secret) = alice();
    human_chain::vote(secret, member, proposal.history, proposal, Choice::Approve, wall_clock())
}

fn is_drafted(server: &Server, proposal: &Proposal) -> bool {
    server.cluster(|cluster| cluster.drafts().contains_key(&proposal.id()))
}

fn is_in_force(server: &Server, proposal: &Proposal) -> bool {
    let carries = |bundle: &protocol::governance::Bundle| bundle.certificate.proposal == *proposal;
    server.cluster(|cluster| cluster.governance_chain().iter().any(carries))
}

fn problem(body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap()
}

/// Sends a write through a lagging replica, and returns the response.
///
/// The replica is a follower that takes itself for the leader and forwards the write to the real one. It
/// receives none of the leader's commits, so that its own state lags behind the reply. `meanwhile` runs once
/// the leader has applied the write.
async fn through_a_lagging_replica<B: Serialize + Clone + Send + Sync + 'static>(
    world: &SimulatedServers,
    path: &str,
    body: B,
    done: impl Fn(&Server) -> bool,
    meanwhile: impl Fn(),
) -> (StatusCode, Vec<u8>) {
    loop {
        let leads = world.lead().await;
        let follows = world.servers[(leads + 1) % 3].clone();
        deposed_unnoticed(&follows).await;
        world.group.network().set_deaf(follows.id, true);
        let asking = tokio::spawn({
            let (path, body) = (path.to_string(), body.clone());
            async move { ask(&follows, Method::POST, &path, Some(&body)).await }
        });
        let leader = &world.servers[leads];
        while !done(leader) && !asking.is_finished() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        if done(leader) {
            meanwhile();
            return asking.await.unwrap();
        }
        // The deaf replica missed its leader before it had forwarded anything: nothing was done, as it
        // reports.
        world.group.network().set_deaf(world.servers[(leads + 1) % 3].id, false);
        assert!(!asking.await.unwrap().0.is_success());
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_another_leader_committed_is_answered_once_it_is_applied_here() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let proposed = proposal(&world.servers[leads], "late");
    let everybody_hears =
        || world.servers.iter().for_each(|server| world.group.network().set_deaf(server.id, false));

    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    let open = |leader: &Server| is_drafted(leader, &proposed);
    let (status, body) =
        through_a_lagging_replica(&world, "/v1/proposals", body, open, everybody_hears).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let view: ProposalView = serde_json::from_slice(&body).unwrap();
    assert_eq!(view.id, proposed.id());

    let path = format!("/v1/proposals/{}/ballots", proposed.id());
    let in_force = |leader: &Server| is_in_force(leader, &proposed);
    let (status, body) =
        through_a_lagging_replica(&world, &path, ballot(&proposed), in_force, everybody_hears).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let view: ProposalView = serde_json::from_slice(&body).unwrap();
    assert!(view.certificate.is_some(), "the answer shows the vote that it answers");
}

#[tokio::test(start_paused = true)]
async fn a_committed_proposal_that_this_replica_cannot_show_is_of_unknown_outcome() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let proposed = proposal(&world.servers[leads], "late");
    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    let open = |leader: &Server| is_drafted(leader, &proposed);
    let (status, body) = through_a_lagging_replica(&world, "/v1/proposals", body, open, || {}).await;
    assert_eq!((status, problem(&body).code.as_str()), (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_lost_reply_does_not_claim_that_nothing_was_done() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let (leader, follows) = (world.servers[leads].clone(), world.servers[(leads + 1) % 3].clone());
    deposed_unnoticed(&follows).await;
    assert_eq!(create(&follows, "before").await.0, StatusCode::OK);
    world.group.network().lose_answers(follows.id, usize::MAX);
    let asking = tokio::spawn(async move { create(&follows, "done").await });
    let done = key(&leader, "done").grant.id();
    let is_done = || leader.cluster(|cluster| cluster.access().contains(&done));
    while !is_done() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    // Another request in the same session is refused now, and that response arrives.
    world.group.disk(leader.id).set_full(true);
    let refused = || create(&leader, "refused");
    while refused().await.0 != StatusCode::INSUFFICIENT_STORAGE {}
    // One more response is lost: that of an attempt which may have begun before the disk was full.
    world.group.network().lose_answers(world.servers[(leads + 1) % 3].id, 1);
    let (status, problem) = asking.await.unwrap();
    // Either the next leader has responded, or no leader has in time.
    assert!([StatusCode::OK, StatusCode::GATEWAY_TIMEOUT].contains(&status), "{status}: {problem:?}");
    world.group.disk(leader.id).set_full(false);
    let leads = world.lead().await;
    assert!(keys(&world.servers[leads]).await.contains(&"done".to_string()));
}

/// Clients that take every session cannot keep a leader from announcing itself or from executing plans.
#[tokio::test(start_paused = true)]
async fn clients_that_write_continuously_leave_sessions_for_the_leader() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let held = server.session_pool.fill();
    let (status, refused) = create(server, "refused").await;
    assert_eq!((status, refused.unwrap().code.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "log-busy"));
    let term = server.handle.status().term;
    *server.lock_leadership() = None;
    leader::planning_round(server, term).await;
    assert!(server.lock_leadership().is_some(), "the leader announced itself");
    drop(held);
    assert_eq!(create(server, "after").await.0, StatusCode::OK);
}
