//! Tests of the pages of jobs: what a member reads of them, also as text of others, and lines that follow.

use crate::attacks::HOSTILE;
use crate::browser::Desk;
use crate::routes::{PORT, ask, enter, get};
use crate::world::{Lab, World};
use axum::http::{Method, StatusCode};
use protocol::api::AuditEvent;
use protocol::job::{SlotRanks, Submitter};
use protocol::job_api::{JobEndView, JobLogLine, JobSlotView, JobView, JobWaitView};
use protocol::job_data::{JobDataKind, JobDataView};
use protocol::job_report::{RankEnd, RankOutcome};
use protocol::project::{ProjectList, ProjectQuota, ProjectView, ROOT_PROJECT};
use protocol::usage::{UsageAmounts, UsageRate};
use protocol::{Digest, Fence, JobId, Millis, ModelRoot, SlotIndex};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn id(name: &str) -> JobId {
    JobId(Digest::of(name.as_bytes()))
}

fn line(sequence: u64, rank: u32, text: &str) -> JobLogLine {
    let node = "node-1".parse().unwrap();
    JobLogLine { sequence, attempt: 2, rank, number: sequence, node, dropped: 0, text: text.into() }
}

fn job(name: &str, state: &str) -> JobView {
    JobView {
        id: id(name),
        job: "train".parse().unwrap(),
        state: state.into(),
        since: Millis(1_790_000_100_000),
        submitted_at: Millis(1_790_000_000_000),
        deadline: Millis(1_790_086_400_000),
        submitter: Submitter::Token("ci".parse().unwrap()),
        priority: 40,
        parameters: BTreeMap::from([("steps".parse().unwrap(), "1000".to_string())]),
        after: vec![],
        array: None,
        attempts: 2,
        failures: 0,
        lost_nodes: 1,
        preemptions: 0,
        waits: None,
        slots: vec![],
        last_end: None,
        used: UsageAmounts::default(),
    }
}

fn running() -> JobView {
    let slot = |slot: u32, first: u32| JobSlotView {
        slot: SlotIndex(slot),
        fence: Fence::new(1, 4),
        node: format!("node-{}", slot + 1),
        ranks: SlotRanks { first, count: 2 },
        state: "running".into(),
        cpu_micros: 12_340_000,
    };
    let ends = vec![RankEnd { rank: 3, outcome: RankOutcome::Exited { code: 137 } }];
    let last_end =
        JobEndView { attempt: 1, at: Millis(1_790_000_050_000), cause: "node-2 was lost".into(), ends };
    let used = UsageAmounts {
        cpu_microseconds: 5_400_000_000,
        spend_micro_units: 60_000,
        ..UsageAmounts::default()
    };
    JobView { slots: vec![slot(0, 0), slot(1, 2)], last_end: Some(last_end), used, ..job("one", "running") }
}

fn kept(kind: JobDataKind) -> JobDataView {
    JobDataView {
        kind,
        attempt: 2,
        ranks: SlotRanks { first: 0, count: 2 },
        fence: Fence::new(1, 4),
        node: "node-1".into(),
        bytes: 3 << 20,
        tree: None,
        root: ModelRoot(Digest::of(b"stored")),
        registered_at: Millis(1_790_000_120_000),
    }
}

/// Returns an event of the job that runs.
fn event(sequence: u64, actor: &str, action: &str, detail: &str) -> AuditEvent {
    let subject = format!("job/{}", id("one").short());
    let at = Millis(1_790_000_000_000 + sequence * 1000);
    let [actor, action, detail] = [actor, action, detail].map(String::from);
    AuditEvent { sequence, at, actor, action, subject, detail }
}

/// Returns the root and two projects, of which one borrows.
fn projects() -> ProjectList {
    let project = |name: &str, parent: Option<&str>, borrowed: u64, share_millionths: u64| ProjectView {
        name: name.parse().unwrap(),
        parent: parent.map(|parent| parent.parse().unwrap()),
        weight: 3,
        quota: (name != ROOT_PROJECT).then_some(ProjectQuota {
            cpu_millicores: 8000,
            memory_bytes: 64 << 30,
            gpus: 4,
        }),
        borrow: None,
        held: UsageRate { gpu_millis: 4250, cpu_millicores: 16_000, memory_mib: 131_072 },
        borrowed: UsageRate { gpu_millis: borrowed, ..UsageRate::default() },
        average: UsageRate::default(),
        share_millionths,
        placed: 2,
        waiting: 7,
    };
    let root = project(ROOT_PROJECT, None, 0, 120_000);
    let items =
        vec![root, project("research", None, 250, 531_250), project("vision", Some("research"), 0, 5000)];
    let offered = UsageRate { gpu_millis: 8000, cpu_millicores: 32_000, memory_mib: 262_144 };
    ProjectList { at: Millis(1_790_000_000_000), half_life_seconds: 604_800, offered, items }
}

/// Gives the cluster three jobs, and projects; returns the job that runs.
pub(crate) fn give_jobs(world: &World) -> JobId {
    let waits = JobWaitView { reason: "no_room".into(), text: "2 of 4 ranks have no room".into() };
    let waiting = JobView { waits: Some(waits), ..job("two", "queued") };
    let mut state = world.state();
    state.jobs = vec![waiting, running(), job("three", "succeeded")];
    let lines = (1..=40).map(|step| line(step, step as u32 % 4, &format!("step {step} loss 0.{step}")));
    state.job_lines.insert(id("one"), lines.collect());
    let events = [
        event(1, "token/ci", "submit-job", "train"),
        event(2, "scheduler", "end-job", "attempt 1: node node-2 was lost"),
    ];
    state.job_events.insert(id("one"), events.into());
    state.projects = Some(projects());
    id("one")
}

#[tokio::test]
async fn a_member_reads_what_projects_hold_and_borrow() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let silent = get(&lab, &cookie, "/console/projects").await.text;
    assert!(silent.contains("not known"), "{silent}");
    lab.world.state().projects = Some(projects());
    let page = get(&lab, &cookie, "/console/projects").await.text;
    for expected in
        ["168 hours", "8 GPU 32 cores 256 GiB", "of research", "0.250 GPU", "53.1 %", "2 placed, 7 waiting"]
    {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    lab.world.state().projects = Some(ProjectList { half_life_seconds: 0, ..projects() });
    let page = get(&lab, &cookie, "/console/projects").await.text;
    assert!(page.contains("No projects were voted") && page.contains("propose-projects"), "{page}");
}

#[tokio::test]
async fn a_member_reads_jobs_and_the_ranks_of_one() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    assert!(get(&lab, &cookie, "/console/jobs").await.text.contains("No job was submitted"));
    let one = give_jobs(&lab.world);
    let list = get(&lab, &cookie, "/console/jobs").await.text;
    for expected in ["3 jobs.", "2 of 4 ranks have no room", &format!("/console/jobs/{one}"), "succeeded"] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    lab.world.state().job_data.insert(one, vec![kept(JobDataKind::Checkpoint("step-4".parse().unwrap()))]);
    let page = get(&lab, &cookie, &format!("/console/jobs/{one}")).await.text;
    for expected in [
        "the access token ",
        "checkpoint `step-4`",
        "3 MiB",
        "2 (0 failures, 1 lost node, 0 preemptions)",
        "2 to 3",
        "12.3 s",
        "End of attempt 1",
        "node-2 was lost",
        "rank 3: ",
        "2.0 step 40 loss 0.40",
        "attempt 1: node node-2 was lost",
        "1.500 core-hours, 0.060000 of the circle's units",
        &format!("quorate job cancel {}", one.short()),
        &format!("data-follow=\"/console/jobs/{one}/lines\" data-after=\"40\" data-epoch=\"1\""),
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    let ended = get(&lab, &cookie, &format!("/console/jobs/{}", id("three"))).await.text;
    assert!(!ended.contains("data-follow") && ended.contains("quorate job retry"), "{ended}");
}

#[tokio::test]
async fn a_page_of_a_job_shows_its_latest_lines_and_no_more() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let one = give_jobs(&lab.world);
    let many = (1..=1_700).map(|number| line(number, 0, &format!("line {number}.")));
    lab.world.state().job_lines.insert(one, many.collect());
    let page = get(&lab, &cookie, &format!("/console/jobs/{one}")).await.text;
    assert_eq!(page.matches("2.0 line ").count(), 500, "{page}");
    assert!(
        page.contains("2.0 line 1201.") && page.contains("2.0 line 1700.") && !page.contains("line 1200.")
    );
}

#[tokio::test]
async fn lines_follow_those_that_a_page_shows_until_the_job_ends() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let one = give_jobs(&lab.world);
    let follow = async |after: u64, epoch: u64| -> Value {
        let path = format!("/console/jobs/{one}/lines?after={after}&epoch={epoch}");
        serde_json::from_str(&get(&lab, &cookie, &path).await.text).unwrap()
    };
    let lines = json!(["2.3 step 39 loss 0.39", "2.0 step 40 loss 0.40"]);
    assert_eq!(follow(38, 1).await, json!({"epoch": 1, "after": 40, "ended": false, "lines": lines}));
    assert_eq!(follow(40, 1).await, json!({"epoch": 1, "after": 40, "ended": false, "lines": []}));
    // Another leader numbers its lines from the beginning.
    {
        let mut state = lab.world.state();
        state.job_epoch = 2;
        state.job_lines.insert(one, vec![line(1, 0, "after the election")]);
    }
    let lines = json!(["2.0 after the election"]);
    assert_eq!(follow(40, 1).await, json!({"epoch": 2, "after": 1, "ended": false, "lines": lines}));
    // The last lines come before the end.
    lab.world.state().jobs = vec![job("one", "succeeded")];
    assert_eq!(follow(0, 2).await, json!({"epoch": 2, "after": 1, "ended": false, "lines": lines}));
    assert_eq!(follow(1, 2).await, json!({"epoch": 2, "after": 1, "ended": true, "lines": []}));
}

#[tokio::test]
async fn a_job_that_is_unknown_or_named_wrongly_is_an_error_of_its_own() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let unknown = format!("/console/jobs/{}", id("none"));
    for (path, status, text) in [
        (unknown.as_str(), StatusCode::NOT_FOUND, "ended ones are forgotten"),
        ("/console/jobs/7", StatusCode::BAD_REQUEST, "request-invalid"),
        ("/console/jobs?skip=-1", StatusCode::BAD_REQUEST, "request-invalid"),
        ("/console/jobs?other=1", StatusCode::BAD_REQUEST, "request-invalid"),
    ] {
        let answer = get(&lab, &cookie, path).await;
        assert!(answer.status == status && answer.text.contains(text), "{path}: {}", answer.text);
    }
    give_jobs(&lab.world);
    lab.world.state().no_leader = true;
    let page = get(&lab, &cookie, "/console/jobs").await;
    assert!(page.status == StatusCode::OK && page.text.contains("no leader answers"), "{}", page.text);
    let one = get(&lab, &cookie, &format!("/console/jobs/{}", id("one"))).await;
    assert_eq!(one.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Attack: markup in what others wrote; and a reader who is not signed in.
#[tokio::test]
async fn text_of_a_job_is_text_and_for_readers_alone() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let one = give_jobs(&lab.world);
    {
        let mut state = lab.world.state();
        state.job_lines.insert(one, vec![line(1, 0, HOSTILE)]);
        let view = &mut state.jobs[1];
        view.parameters.insert("steps".parse().unwrap(), HOSTILE.into());
        view.slots[0].node = HOSTILE.into();
        view.state = HOSTILE.into();
    }
    for path in ["/console/jobs".to_string(), format!("/console/jobs/{one}")] {
        let page = get(&lab, &cookie, &path).await.text;
        assert!(!page.contains("<img") && page.contains("&lt;img src=x"), "{page}");
    }
    for path in ["/console/jobs".to_string(), format!("/console/jobs/{one}/lines?after=0&epoch=1")] {
        let without = ask(&lab, Method::GET, &path, &[], "").await;
        assert!(without.text.contains("Sign in") && !without.text.contains("img src"), "{}", without.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_a_running_job_adds_lines_until_it_ends() {
    let mut desk = Desk::of_member(0).await;
    let one = give_jobs(&desk.lab.world);
    desk.go(&format!("/console/jobs/{one}"));
    assert!(desk.browser.text().contains("step 40 loss 0.40"));
    {
        let mut state = desk.lab.world.state();
        state.job_lines.get_mut(&one).unwrap().push(line(41, 1, HOSTILE));
    }
    desk.browser.until("document.querySelector('pre.log').textContent.includes('img src')");
    assert_eq!(desk.browser.eval("document.querySelectorAll('img').length"), json!(0));
    let ended = job("one", "succeeded");
    desk.lab.world.state().jobs = vec![ended];
    desk.browser.until("document.querySelector('#state')?.textContent === 'succeeded'");
}
