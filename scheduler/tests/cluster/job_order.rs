//! Jobs that follow others, and arrays.

use crate::common::*;
use crate::jobs::{job, report_all, request, state, submit};
use protocol::job::{ArrayTask, SignedSubmission, Submitter};
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::limits::ARRAY_TASKS_MAX;
use protocol::{Digest, JobId};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

const SUCCESS: RankOutcome = RankOutcome::Exited { code: 0 };
const FAILURE: RankOutcome = RankOutcome::Exited { code: 1 };

/// Returns two nodes with an approved job of one rank, of which each node has room for four.
fn world() -> World {
    let mut world = two_nodes();
    world.approve(job(1, 1000, "slots = 8\nretries = 0"));
    world
}

fn following(key: &str, after: &[JobId]) -> JobRequest {
    JobRequest { after: after.iter().copied().collect(), ..request(key) }
}

fn ask(world: &mut World, request: JobRequest) -> JobId {
    match world.apply(token("operator"), Action::RequestJob(Box::new(request))) {
        Reply::JobSubmitted { job } => job,
        other => panic!("not submitted: {other:?}"),
    }
}

fn refused(world: &World, request: JobRequest) -> &'static str {
    verdict(world, token("operator"), Action::RequestJob(Box::new(request)))
}

/// Lets everything that is placed run and end so, and plans again.
fn run(world: &mut World, outcome: RankOutcome) {
    world.execute();
    report_all(world, JobSlotState::Ready, None);
    world.execute();
    report_all(world, JobSlotState::Ended, Some(outcome));
    world.execute();
    world.job_reports = BTreeMap::new();
    world.heartbeat_all();
}

fn waits(world: &World, id: JobId) -> (String, String) {
    let waits = job_view(world.view(), id).and_then(|view| view.waits).expect("it waits");
    (waits.reason, waits.text)
}

#[test]
fn a_job_begins_after_all_that_it_follows_have_succeeded() {
    let mut world = world();
    let (one, two) = (submit(&mut world, "one"), submit(&mut world, "two"));
    let last = ask(&mut world, following("last", &[one, two]));
    world.execute();
    assert_eq!((state(&world, one), state(&world, last)), (JobState::Starting, JobState::Queued));
    let (reason, text) = waits(&world, last);
    let first = one.min(two).short();
    assert_eq!(
        (reason.as_str(), text),
        ("after", format!("it follows job {first}, which is starting, and 1 job more"))
    );
    run(&mut world, SUCCESS);
    assert_eq!((state(&world, one), state(&world, two)), (JobState::Succeeded, JobState::Succeeded));
    world.execute();
    assert_eq!(state(&world, last), JobState::Starting);
    // One that follows what has succeeded waits for nothing.
    let later = ask(&mut world, following("later", &[one]));
    world.execute();
    assert_eq!(state(&world, later), JobState::Starting);
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()).as_ref(), Ok(&world.cluster));
}

/// The attack is control that orders a job before those that it follows.
#[test]
fn a_plan_that_starts_a_job_before_those_that_it_follows_is_refused() {
    let mut world = world();
    let first = submit(&mut world, "first");
    let last = ask(&mut world, following("last", &[first]));
    let plan = world.plan();
    let early = |id: JobId| {
        let mut steps = plan.steps.clone();
        for step in &mut steps {
            if let Step::StartGang(gang) = step {
                gang.id = id;
            }
        }
        verdict(
            &world,
            Actor::Scheduler,
            Action::Execute { parent_generation: plan.parent_generation, steps },
        )
    };
    assert_eq!(early(last), "plan-stale");
    assert_eq!(early(first), "ok", "positive control");
}

#[test]
fn a_job_whose_predecessor_failed_waits_for_its_retry_and_says_so() {
    let mut world = world();
    let first = submit(&mut world, "first");
    let last = ask(&mut world, following("last", &[first]));
    run(&mut world, FAILURE);
    assert_eq!(state(&world, first), JobState::Failed);
    world.execute();
    assert!(world.execute().is_empty() && state(&world, last) == JobState::Queued, "nothing may start");
    let (reason, text) = waits(&world, last);
    let expected =
        format!("it follows job {}, which has failed; retry that job, or cancel this one", first.short());
    assert_eq!((reason.as_str(), text), ("after", expected));
    world.must(Action::RetryJob { id: first, from: None });
    run(&mut world, SUCCESS);
    world.execute();
    assert_eq!((state(&world, first), state(&world, last)), (JobState::Succeeded, JobState::Starting));
}

#[test]
fn a_job_follows_known_jobs_alone() {
    let world = world();
    let unknown = JobId(Digest::of(b"unknown"));
    assert_eq!(refused(&world, following("a", &[unknown])), "job-not-found");
    let many: Vec<JobId> = (0..33_u8).map(|number| JobId(Digest::of(&[number]))).collect();
    assert_eq!(refused(&world, following("a", &many)), "submission-mismatch");
}

/// A predecessor that is forgotten without success can never succeed: what follows it ends, and what follows
/// that in turn.
#[test]
fn jobs_end_when_one_that_they_follow_is_forgotten() {
    let mut world = world();
    let first = submit(&mut world, "first");
    let second = ask(&mut world, following("second", &[first]));
    let third = ask(&mut world, following("third", &[second]));
    world.must(Action::CancelJob { id: first });
    for number in 0..limits::JOBS_FINISHED_MAX {
        world.wait(1);
        let id = submit(&mut world, &format!("filler-{number}"));
        world.must(Action::CancelJob { id });
    }
    assert!(!world.cluster.jobs().jobs().contains_key(&first));
    let second_job = world.cluster.jobs().jobs()[&second].clone();
    assert_eq!(second_job.state, JobState::Failed);
    assert_eq!(second_job.last_end.expect("an end").cause, EndCause::Unfollowed(first));
    let retry = Action::RetryJob { id: second, from: None };
    assert_eq!(verdict(&world, Actor::Scheduler, retry), "job-not-found");
    assert_eq!(waits(&world, third).0, "after", "the second is known still");
}

#[test]
fn an_array_is_as_many_jobs_that_differ_in_their_index() {
    let mut world = world();
    let array = JobRequest { array: Some(5), ..request("array") };
    let first = ask(&mut world, array.clone());
    let tasks = |world: &World| {
        let jobs = job_views(world.view(), &JobSelection::default()).into_iter();
        let mut tasks: Vec<(u32, u32, JobId)> =
            jobs.filter_map(|job| job.array.map(|task| (task.index, task.count, job.id))).collect();
        tasks.sort_unstable();
        tasks
    };
    let made = tasks(&world);
    assert_eq!(
        made.iter().map(|task| (task.0, task.1)).collect::<Vec<_>>(),
        (0..5).map(|index| (index, 5)).collect::<Vec<_>>()
    );
    assert_eq!(made[0].2, first);
    world.wait(5_000);
    world.heartbeat_all();
    assert_eq!((ask(&mut world, array.clone()), tasks(&world)), (first, made), "the same request again");
    world.execute();
    let placed = world.cluster.jobs().jobs().values().filter(|job| job.state == JobState::Starting).count();
    assert_eq!(placed, 5, "tasks need nothing of each other");
    // One key is one request.
    for other in [request("array"), JobRequest { array: Some(6), ..array.clone() }] {
        assert_eq!(refused(&world, other), "idempotency-key-reused");
    }
    submit(&mut world, "one");
    assert_eq!(refused(&world, JobRequest { array: Some(2), ..request("one") }), "idempotency-key-reused");
}

#[test]
fn a_job_that_follows_an_array_waits_for_every_task() {
    let mut world = world();
    ask(&mut world, JobRequest { array: Some(8), ..request("array") });
    let submitter = Submitter::Token("operator".parse().expect("a name"));
    let array = array_id(&submitter, &Digest::of(b"array"));
    let last = ask(&mut world, following("last", &[array]));
    assert_eq!(world.cluster.jobs().jobs()[&last].awaits.len(), 8);
    world.execute();
    assert!(waits(&world, last).1.ends_with(", and 7 jobs more"), "{:?}", waits(&world, last));
    run(&mut world, SUCCESS);
    world.execute();
    assert_eq!(state(&world, last), JobState::Starting);
    // All that it named is known still: another may follow the same.
    assert_eq!(refused(&world, following("later", &[array])), "ok");
}

/// The attack is a submission that claims to be a task of an array that its submitter did not make.
#[test]
fn a_signed_submission_is_no_task_of_an_array() {
    let mut world = world();
    let id = submit(&mut world, "one");
    let mut signed = world.cluster.jobs().jobs()[&id].signed.clone();
    signed.submission.submitter = Submitter::Member(member("alice"));
    signed.submission.idempotency = Digest::of(b"other");
    let sent = |signed: &SignedSubmission| {
        verdict(&world, token("operator"), Action::SubmitJob(Box::new(signed.clone())))
    };
    assert_ne!(sent(&signed), "command-invalid", "positive control");
    signed.submission.array = Some(ArrayTask { array: id, index: 0, count: 1 });
    assert_eq!(sent(&signed), "command-invalid");
}

#[test]
fn an_array_is_taken_whole_or_not_at_all() {
    let mut world = world();
    for count in [0, ARRAY_TASKS_MAX + 1, u32::MAX] {
        let array = JobRequest { array: Some(count), ..request("array") };
        assert_eq!(refused(&world, array), "limit-reached", "{count} tasks");
    }
    let places = limits::JOBS_UNFINISHED_MAX as u32;
    let full = places / ARRAY_TASKS_MAX;
    for number in 0..full {
        ask(&mut world, JobRequest { array: Some(ARRAY_TASKS_MAX), ..request(&format!("array-{number}")) });
    }
    let left = places - full * ARRAY_TASKS_MAX;
    let before = world.cluster.jobs().jobs().len();
    assert_eq!(refused(&world, JobRequest { array: Some(left + 1), ..request("rest") }), "limit-reached");
    assert_eq!(world.cluster.jobs().jobs().len(), before, "no task of it was taken");
    ask(&mut world, JobRequest { array: Some(left), ..request("rest") });
    assert_eq!(world.cluster.jobs().jobs().len(), places as usize);
    let after: BTreeSet<JobId> = world.cluster.jobs().jobs().keys().take(1).copied().collect();
    assert_eq!(refused(&world, JobRequest { after, ..request("more") }), "limit-reached");
}
