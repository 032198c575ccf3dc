//! Tests of metered usage at the control API: totals, entries in pages, and the journal behind them.

use super::circle::{self, alice};
use super::faults::{SimulatedServers, ask};
use crate::server::Server;
use axum::http::{Method, StatusCode};
use host::wall_clock;
use protocol::api::{Page, Problem};
use protocol::governance::{Change, Choice};
use protocol::job::SlotRanks;
use protocol::manifest::Manifest;
use protocol::slot_usage::{SLOT_USAGE_DOMAIN, SLOT_USAGE_VERSION, SignedSlotUsage, SlotUsage};
use protocol::usage::{Prices, UsageCounts, UsageEntry, UsagePage};
use protocol::{Digest, Fence, JobId, NodeId, SlotIndex, canonical};
use scheduler::{
    Action, Actor, EndCause, GangPlan, GangSlotPlan, JobRequest, JobSlotName, Rebill, Reply, Step,
};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const JOB: &str = "kind = 'job'\nname = 'train'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
    command = ['/bin/train']\nranks = 1\nranks_per_slot = 1\nslots = 1\nrun_seconds_max = 600\nretries = 99\n\
    submit = { any_token = true }\nresources = { cpu_millicores = 2000, memory = '1 GiB' }\n";

pub(super) async fn get<T: DeserializeOwned>(server: &Arc<Server>, path: &str) -> T {
    let (status, body) = ask::<()>(server, Method::GET, path, None).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

pub(super) async fn must(server: &Arc<Server>, actor: Actor, action: Action) -> Reply {
    let reply = server.command(actor, action).await.unwrap();
    assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
    reply
}

/// Has the circle decide a change, by its only member's vote.
pub(super) async fn decide(server: &Arc<Server>, change: Change) {
    let now = wall_clock();
    let proposal = server.cluster(|cluster| {
        let nonce = Digest::of(&cluster.generation().to_le_bytes());
        let state = cluster.circle_state().unwrap();
        human_chain::propose(state, change, "a test".into(), now, now.plus(3_600_000), nonce).unwrap()
    });
    must(server, Actor::Scheduler, Action::SubmitProposal(Box::new(proposal.clone()))).await;
    let (member, secret) = alice();
    let ballot =
        human_chain::vote(secret, member, proposal.history, &proposal, Choice::Approve, wall_clock());
    must(server, Actor::Scheduler, Action::CastBallot(Box::new(ballot))).await;
}

async fn execute(server: &Arc<Server>, steps: Vec<Step>) {
    let parent_generation = server.cluster(scheduler::Cluster::generation);
    must(server, Actor::Scheduler, Action::Execute { parent_generation, steps }).await;
}

/// Returns a leader with a node, a price of 3.6 units for a core's hour, and a job.
pub(super) async fn lab() -> (SimulatedServers, usize, JobId) {
    let world = SimulatedServers::start(1);
    let leads = world.lead().await;
    let server = &world.servers[leads];
    let node = circle::admission("node-1", &circle::other(1));
    decide(server, Change::AdmitNode(Box::new(node))).await;
    let prices = Prices { cpu_hour_micro_units: 3_600_000, ..Prices::default() };
    decide(server, Change::SetPrices(prices)).await;
    let manifest = Manifest::from_toml(&JOB.replace("ROOT", &"1".repeat(64))).unwrap();
    decide(server, Change::Deploy(Box::new(manifest))).await;
    let request = JobRequest {
        job: "train".parse().unwrap(),
        idempotency: Digest::of(b"once"),
        parameters: BTreeMap::new(),
        priority: None,
        deadline_seconds: None,
        after: BTreeSet::new(),
        array: None,
    };
    let tester = Actor::Token("tester".parse().unwrap());
    let reply = must(server, tester, Action::RequestJob(Box::new(request))).await;
    let Reply::JobSubmitted { job } = reply else { panic!("no job: {reply:?}") };
    (world, leads, job)
}

/// Begins an attempt of the job on the node; returns the slot that it holds.
pub(super) async fn begin(server: &Arc<Server>, id: JobId, number: u32) -> JobSlotName {
    let node = NodeId(circle::other(1).public_key());
    let slot = JobSlotName {
        job: "train".parse().unwrap(),
        slot: SlotIndex(0),
        fence: Fence { version: 1, count: u64::from(number) },
    };
    let part = GangSlotPlan {
        slot: slot.slot,
        fence: slot.fence,
        node,
        ranks: SlotRanks { first: 0, count: 1 },
        gpus: Vec::new(),
    };
    execute(server, vec![Step::StartGang(GangPlan { id, attempt: number, slots: vec![part] })]).await;
    slot
}

/// Ends an attempt of the job, and frees its slot.
pub(super) async fn end(server: &Arc<Server>, id: JobId, number: u32, slot: JobSlotName) {
    let cause = EndCause::Preempted("a test".into());
    let end = Step::EndGang { id, attempt: number, cause, ends: Vec::new() };
    let counts = UsageCounts { cpu_used_microseconds: 77, ..UsageCounts::default() };
    let node = circle::other(1);
    let usage = SlotUsage {
        version: SLOT_USAGE_VERSION,
        circle: server.cluster(|cluster| cluster.circle_id()).unwrap(),
        node: NodeId(node.public_key()),
        envelope: slot.job.clone(),
        slot: slot.slot,
        fence: slot.fence,
        counts,
    };
    let signature = node.sign(SLOT_USAGE_DOMAIN, &canonical::to_bytes(&usage));
    let count = Step::CountUsage(Box::new(SignedSlotUsage { usage, signature }));
    execute(server, vec![count, end, Step::ReleaseGang(slot)]).await;
}

/// Lets an attempt of the job hold its slot for so many seconds.
async fn attempt(server: &Arc<Server>, id: JobId, number: u32, seconds: u64) {
    let slot = begin(server, id, number).await;
    tokio::time::advance(Duration::from_secs(seconds)).await;
    end(server, id, number, slot).await;
}

#[tokio::test(start_paused = true)]
async fn totals_and_entries_are_those_of_the_log_before_and_after_the_journal_has_them() {
    let (world, leads, job) = lab().await;
    let server = &world.servers[leads];
    for number in 1..=3 {
        attempt(server, job, number, 10).await;
    }
    assert_eq!(server.usage_journal.last(), 0, "nothing has copied them yet");
    let fresh: Page<UsageEntry> = get(server, "/v1/usage/entries").await;
    server.journal_usage().await;
    server.journal_usage().await;
    assert_eq!(server.usage_journal.last(), 3, "each is copied once");
    let kept: Page<UsageEntry> = get(server, "/v1/usage/entries").await;
    assert_eq!((&kept.items, &kept.next_page_token), (&fresh.items, &None));
    attempt(server, job, 4, 1).await;
    let usage: UsagePage = get(server, "/v1/usage").await;
    let mut read: Vec<UsageEntry> = Vec::new();
    let mut token = String::new();
    loop {
        let page: Page<UsageEntry> = get(server, &format!("/v1/usage/entries?page_size=2{token}")).await;
        read.extend(page.items);
        match page.next_page_token {
            Some(next) => token = format!("&page_token={next}"),
            None => break,
        }
    }
    assert_eq!(read.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let mut run = Rebill::new(usage.recorded, &usage.prices).unwrap();
    read.iter().for_each(|entry| assert_eq!(run.add(entry), Ok(true)));
    let sum = run.finish().unwrap();
    assert_eq!((sum.charged, sum.credited), (usage.charged, usage.credited));
    // Two cores at a thousandth of a unit for each second.
    assert_eq!(usage.charged.spend_micro_units, 2 * 31 * 1000);
    assert_eq!(usage.charged.cpu_used_microseconds, 4 * 77);
    assert_eq!(read.iter().fold(Digest([0; 32]), |head, entry| entry.head_after(&head)), usage.head);
    let spent: u64 = usage.items.iter().map(|row| row.amounts.spend_micro_units).sum();
    assert_eq!(spent, usage.charged.spend_micro_units);
    assert_eq!(usage.items[0].submitter_text(), "token/tester");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_list_and_a_foreign_parameter_are_refused() {
    let (world, leads, _) = lab().await;
    let server = &world.servers[leads];
    for (path, code) in [
        ("/v1/usage?page_token=00", "page-token-invalid"),
        ("/v1/usage/entries?page_token=zz", "page-token-invalid"),
        ("/v1/usage?member=alice", "request-invalid"),
        ("/v1/usage/entries?page_size=-1", "request-invalid"),
    ] {
        let (status, body) = ask::<()>(server, Method::GET, path, None).await;
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, problem.code.as_str()), (StatusCode::BAD_REQUEST, code), "{path}");
    }
    let usage: UsagePage = get(server, "/v1/usage").await;
    assert!(usage.items.is_empty() && usage.recorded == 0 && usage.prices.len() == 2);
}
