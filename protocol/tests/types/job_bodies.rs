//! Bodies of the API about jobs: the JSON that clients read and write, and what is refused.

use protocol::job::{ArrayTask, SlotRanks, Submitter};
use protocol::job_api::{
    JobEndView, JobLogLine, JobLogPage, JobSlotView, JobView, JobWaitView, SubmitJobBody, SubmittedJob,
};
use protocol::job_report::{RankEnd, RankOutcome};
use protocol::usage::UsageAmounts;
use protocol::{Digest, Fence, JobId, Millis, SlotIndex};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;

fn view() -> JobView {
    let slot = JobSlotView {
        slot: SlotIndex(1),
        fence: Fence::new(2, 3),
        node: "node-1".into(),
        ranks: SlotRanks { first: 2, count: 2 },
        state: "ready".into(),
        cpu_micros: 7,
    };
    let end = JobEndView {
        attempt: 1,
        at: Millis(5),
        cause: "rank 0: signal 9".into(),
        ends: vec![RankEnd { rank: 0, outcome: RankOutcome::Signalled { signal: 9 } }],
    };
    JobView {
        id: JobId(Digest([0xab; 32])),
        job: "train".parse().expect("a name"),
        state: "starting".into(),
        since: Millis(6),
        submitted_at: Millis(4),
        deadline: Millis(9),
        submitter: Submitter::Token("ann".parse().expect("a name")),
        priority: 10,
        parameters: BTreeMap::from([("steps".parse().expect("a name"), "100".into())]),
        after: vec![JobId(Digest([0xac; 32]))],
        array: Some(ArrayTask { array: JobId(Digest([0xad; 32])), index: 3, count: 8 }),
        attempts: 2,
        failures: 1,
        lost_nodes: 0,
        preemptions: 0,
        waits: Some(JobWaitView { reason: "behind".into(), text: "others come first".into() }),
        slots: vec![slot],
        last_end: Some(end),
        used: UsageAmounts { spend_micro_units: 7, ..UsageAmounts::default() },
    }
}

/// The states of the API's document: those in which a person has to act before the job runs again have ended.
#[test]
fn a_job_that_runs_again_without_a_person_has_not_ended() {
    for (state, has_ended) in [
        ("queued", false),
        ("starting", false),
        ("running", false),
        ("backing_off", false),
        ("succeeded", true),
        ("failed", true),
        ("cancelled", true),
    ] {
        let job = JobView { state: state.into(), ..view() };
        assert_eq!(job.has_ended(), has_ended, "{state}");
    }
}

/// Checks that a value survives JSON, and that no object within it accepts a further field.
fn check_strict<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let json = serde_json::to_value(value).expect("JSON");
    assert_eq!(serde_json::from_value::<T>(json.clone()).as_ref().ok(), Some(value));
    let mut further = json;
    further.as_object_mut().expect("an object").insert("further".into(), Value::Null);
    let refused = serde_json::from_value::<T>(further).expect_err("a further field");
    assert!(refused.to_string().contains("unknown field `further`"), "{refused}");
}

#[test]
fn bodies_of_jobs_accept_no_further_field() {
    let whole = view();
    check_strict(&whole);
    check_strict(&whole.slots[0]);
    check_strict(whole.waits.as_ref().expect("it waits"));
    check_strict(whole.last_end.as_ref().expect("an end"));
    check_strict(&SubmittedJob { id: whole.id, array: Some(whole.id) });
    let (node, text) = ("node-1".parse().expect("a name"), "step 1".to_string());
    let line = JobLogLine { sequence: 1, attempt: 2, rank: 3, number: 6, node, dropped: 4, text };
    check_strict(&line);
    check_strict(&JobLogPage { epoch: 5, items: vec![line] });
}

#[test]
fn a_view_has_the_names_that_scripts_read() {
    let json = serde_json::to_value(view()).expect("JSON");
    assert_eq!(json["id"], "ab".repeat(32));
    assert_eq!(json["slots"][0]["ranks"], json!({"first": 2, "count": 2}));
    assert_eq!(json["last_end"]["ends"][0], json!({"rank": 0, "outcome": {"signalled": {"signal": 9}}}));
    assert_eq!((&json["waits"]["reason"], &json["parameters"]["steps"]), (&json!("behind"), &json!("100")));
}

#[test]
fn a_request_names_a_job_and_may_leave_out_the_rest() {
    let read = |json: Value| serde_json::from_value::<SubmitJobBody>(json);
    let least = read(json!({"job": "train"})).expect("a name suffices");
    assert_eq!((least.parameters.len(), least.priority, least.deadline_seconds), (0, None, None));
    let whole = json!({"job": "train", "parameters": {"steps": "9"}, "priority": 3, "deadline_seconds": 60});
    check_strict(&read(whole).expect("every field"));
    for wrong in [
        json!({}),
        json!({"job": "Not a name"}),
        json!({"job": "train", "command": ["sh"]}),
        json!({"job": "train", "parameters": {"steps": 9}}),
        json!({"job": "train", "parameters": {"; rm": "x"}}),
        json!({"job": "train", "priority": -1}),
        json!({"job": "train", "deadline_seconds": 1.5}),
    ] {
        assert!(read(wrong.clone()).is_err(), "{wrong}");
    }
}
