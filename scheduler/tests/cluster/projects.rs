//! Projects in the cluster: quotas, borrowing and reclaim, turns by share, the reasons of what waits, and
//! what a vote changes.

use crate::common::*;
use crate::jobs::{listening_node, report, request, state};
use protocol::governance::Change;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::manifest::Manifest;
use protocol::project::{Project, ProjectQuota, ProjectTree};
use protocol::{JobId, Millis};
use scheduler::*;

/// Returns two nodes of 4 cores each, with these projects: name, cores of the quota, cores to borrow.
fn world(projects: &[(&str, u64, Option<u64>)]) -> World {
    let mut world = World::new(&[listening_node(), node("node-2", 4000, 4096)]);
    world.approve(vote(projects));
    world
}

fn quota(cores: u64) -> ProjectQuota {
    ProjectQuota { cpu_millicores: cores * 1000, memory_bytes: cores << 30, gpus: 0 }
}

pub(crate) fn vote(projects: &[(&str, u64, Option<u64>)]) -> Change {
    let project = |(name, cores, borrow): &(&str, u64, Option<u64>)| Project {
        name: name.parse().expect("a name"),
        parent: None,
        weight: 1,
        quota: quota(*cores),
        borrow: borrow.map(quota),
    };
    let projects = projects.iter().map(project).collect();
    Change::SetProjects(Box::new(ProjectTree { half_life_seconds: 3600, own_weight: 1, projects }))
}

/// Returns a job of a project with this many ranks of a core and a gibibyte each.
fn job(name: &str, project: Option<&str>, ranks: u32) -> Change {
    let project = project.map(|project| format!("project = '{project}'\n")).unwrap_or_default();
    let text = format!(
        "kind = 'job'\nname = '{name}'\n{project}artifact = {{ name = 'trainer', root = '{}' }}\n\
         command = ['/bin/train']\nranks = {ranks}\nranks_per_slot = 4\nslots = 16\nrun_seconds_max = 600\n\
         grace_seconds = 10\nsubmit = {{ any_token = true }}\npriority = 5\n\
         resources = {{ cpu_millicores = 1000, memory = '1 GiB' }}\n",
        "1".repeat(64)
    );
    Change::Deploy(Box::new(Manifest::from_toml(&text).expect("a sound manifest")))
}

fn ask(world: &mut World, name: &str, key: &str, priority: u32) -> Reply {
    let asked = JobRequest { job: service_name(name), priority: Some(priority), ..request(key) };
    world.apply(token("operator"), Action::RequestJob(Box::new(asked)))
}

fn submit(world: &mut World, name: &str, key: &str) -> JobId {
    match ask(world, name, key, 5) {
        Reply::JobSubmitted { job } => job,
        other => panic!("not submitted: {other:?}"),
    }
}

fn waits(world: &World, id: JobId) -> (String, String) {
    let waits = job_view(world.view(), id).and_then(|view| view.waits).expect("it waits");
    (waits.reason, waits.text)
}

/// Lets every node report its slots in this state, and executes the next plan.
fn turn(world: &mut World, slots: JobSlotState, end: Option<RankOutcome>) {
    ["node-1", "node-2"].iter().for_each(|name| report(world, name, slots, end));
    world.execute();
}

#[test]
fn a_project_borrows_up_to_its_limit_and_the_reason_names_the_smallest_change() {
    let mut world = world(&[("a", 2, Some(1)), ("b", 6, None)]);
    world.approve(job("one", Some("a"), 1));
    let ids = ["1", "2", "3", "4"].map(|key| submit(&mut world, "one", key));
    world.execute();
    let placed = ids.iter().filter(|id| state(&world, **id).is_placed()).count();
    assert_eq!(placed, 3, "its quota of two, and one that it borrows");
    let waiting = ids.iter().find(|id| !state(&world, **id).is_placed()).expect("one waits");
    let (reason, text) = waits(&world, *waiting);
    assert_eq!(reason, "quota");
    let expected = "project `a` would hold 4000 millicores, and may hold 3000 millicores: its quota of 2000 \
                    millicores, and 1000 millicores that it may borrow; smallest change: vote \
                    `borrow.cpu_millicores = 2000` for `a`, or wait until gangs of it end";
    assert_eq!(text, expected);
    world.approve(vote(&[("a", 2, Some(2)), ("b", 6, None)]));
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, *waiting).is_placed(), "the change that was named suffices");
}

/// A plan that was made before a vote, or by a hostile leader, passes no quota: `apply` checks it again.
#[test]
fn attack_no_plan_passes_a_quota() {
    let mut world = world(&[("a", 2, Some(1)), ("b", 6, None)]);
    world.approve(job("one", Some("a"), 3));
    let id = submit(&mut world, "one", "1");
    let plan = world.plan();
    let steps = plan.steps;
    assert!(steps.iter().any(|step| matches!(step, Step::StartGang(_))), "the control");
    world.approve(vote(&[("a", 2, Some(0)), ("b", 6, None)]));
    let action = Action::Execute { parent_generation: world.cluster.generation(), steps };
    assert_eq!(verdict(&world, Actor::Scheduler, action), "plan-stale");
    world.heartbeat_all();
    world.execute();
    assert!(!state(&world, id).is_placed());
    assert_eq!(waits(&world, id).0, "quota");
}

#[test]
fn a_gang_that_its_project_never_holds_is_refused_at_once() {
    let mut world = world(&[("a", 2, Some(1)), ("b", 5, None)]);
    world.approve(job("wide", Some("a"), 4));
    let Reply::Refused { code, message } = ask(&mut world, "wide", "1", 5) else { panic!("it was taken") };
    let expected = "the gang of job wide never fits: project `a` may hold 3000 millicores in all, and the \
                    gang takes 4000 millicores; smallest change: vote `borrow.cpu_millicores = 2000` for `a`";
    assert_eq!((code.as_str(), message.as_str()), ("job-never-fits", expected));
    let Change::Deploy(manifest) = job("wide", Some("a"), 4) else { panic!("a manifest") };
    let tried = dry_run(world.view(), &manifest).expect("it can be proposed");
    assert_eq!(tried.waiting, [expected], "the dry run says so before the vote");
    world.approve(vote(&[("a", 2, Some(2)), ("b", 5, None)]));
    assert!(matches!(ask(&mut world, "wide", "1", 5), Reply::JobSubmitted { .. }), "the change suffices");
}

/// Attack: a job names a project of others, or one that there is not.
#[test]
fn attack_a_job_of_an_unknown_project_is_refused_and_waits_once_its_project_is_dropped() {
    let mut world = world(&[("a", 2, None), ("b", 6, None)]);
    let Change::Deploy(manifest) = job("one", Some("ghost"), 1) else { panic!("a manifest") };
    let refused = dry_run(world.view(), &manifest).expect_err("no such project");
    assert_eq!(refused.code.as_str(), "project-unknown");
    world.approve(job("one", Some("a"), 1));
    let id = submit(&mut world, "one", "1");
    world.approve(vote(&[("b", 6, None)]));
    world.heartbeat_all();
    assert!(world.execute().is_empty(), "its project is gone");
    let (reason, text) = waits(&world, id);
    assert_eq!(reason, "project");
    assert!(text.contains("`a` is not in force; smallest change: vote the project"), "{text}");
    let Reply::Refused { code, .. } = ask(&mut world, "one", "2", 5) else { panic!("it was taken") };
    assert_eq!(code.as_str(), "project-unknown");
    world.approve(vote(&[("a", 2, None), ("b", 6, None)]));
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, id).is_placed(), "a vote brings it back");
}

/// The owner gets its quota back: borrowers end with their grace, the latest first, and wait again.
#[test]
fn a_project_reclaims_its_quota_from_borrowers_with_their_grace() {
    let mut world = world(&[("a", 4, None), ("b", 4, None)]);
    world.approve(job("ours", Some("a"), 4));
    world.approve(job("theirs", Some("b"), 4));
    let first = submit(&mut world, "ours", "1");
    world.execute();
    world.pass(1000);
    let second = submit(&mut world, "ours", "2");
    world.execute();
    turn(&mut world, JobSlotState::Ready, None);
    turn(&mut world, JobSlotState::Running, None);
    assert_eq!((state(&world, first), state(&world, second)), (JobState::Running, JobState::Running));
    let owner = submit(&mut world, "theirs", "3");
    world.execute();
    let (reason, text) = waits(&world, owner);
    assert_eq!(reason, "reclaim");
    let by = human_chain::show_time(Millis(world.now.0 + 10_000));
    assert_eq!(text, format!("project `b` is within its quota: gangs that borrow make room for it by {by}"));
    assert_eq!((state(&world, first), state(&world, second)), (JobState::Running, JobState::Queued));
    let end = world.cluster.jobs().jobs()[&second].last_end.clone().expect("an end");
    assert!(matches!(&end.cause, EndCause::Preempted(text) if text.contains("project `a` borrowed")));
    // The victim waits, and its room is kept for the owner for as long as its node has not ended it.
    for _ in 0..3 {
        world.heartbeat_all();
        world.execute();
        assert_eq!((state(&world, owner), state(&world, second)), (JobState::Queued, JobState::Queued));
    }
    world.job_reports.remove(&node_id("node-2"));
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, owner).is_placed(), "{:?}", waits(&world, owner));
    turn(&mut world, JobSlotState::Ready, None);
    turn(&mut world, JobSlotState::Running, None);
    for _ in 0..3 {
        world.execute();
        assert_eq!((state(&world, owner), state(&world, second)), (JobState::Running, JobState::Queued));
    }
}

/// A new leader knows of no node yet: it preempts nothing, since there may be room.
#[test]
fn a_leader_that_does_not_know_every_node_reclaims_nothing() {
    let mut world = world(&[("a", 4, None), ("b", 4, None)]);
    world.approve(job("ours", Some("a"), 4));
    world.approve(job("theirs", Some("b"), 4));
    let ours = ["1", "2"].map(|key| submit(&mut world, "ours", key));
    world.execute();
    turn(&mut world, JobSlotState::Ready, None);
    turn(&mut world, JobSlotState::Running, None);
    world.lead(2);
    world.heartbeat("node-1");
    submit(&mut world, "theirs", "3");
    world.execute();
    assert!(ours.iter().all(|id| state(&world, *id) == JobState::Running), "one node is unknown");
    world.heartbeat("node-2");
    world.execute();
    let ended = ours.iter().filter(|id| state(&world, **id) == JobState::Queued).count();
    assert_eq!(ended, 1, "the control: one of them borrows");
}

/// A service takes the room of borrowers before that of gangs within their quota, though these began later.
#[test]
fn a_service_ends_borrowers_first() {
    for (project, expected) in [(Some("a"), [true, false]), (None, [false, true])] {
        let mut world = world(&[("a", 4, None)]);
        world.share_model("minilm", 90 << 20);
        world.approve(job("early", None, 3));
        world.approve(job("late", project, 3));
        let early = submit(&mut world, "early", "1");
        world.execute();
        turn(&mut world, JobSlotState::Ready, None);
        world.pass(1000);
        let late = submit(&mut world, "late", "2");
        world.execute();
        turn(&mut world, JobSlotState::Ready, None);
        turn(&mut world, JobSlotState::Running, None);
        assert!([early, late].iter().all(|id| state(&world, *id) == JobState::Running));
        world.approve(deploy(manifest("embed", 1, 1, 2000, 256)));
        world.heartbeat_all();
        world.execute();
        let preempted = [early, late].map(|id| state(&world, id) == JobState::Queued);
        assert_eq!(preempted, expected, "the later one is of {project:?}");
    }
}

#[test]
fn turns_go_to_the_project_that_used_least_and_the_reason_names_a_weight() {
    let mut world = world(&[("a", 0, None), ("b", 0, None)]);
    world.approve(job("ours", Some("a"), 4));
    world.approve(job("theirs", Some("b"), 4));
    let used = ["1", "2"].map(|key| submit(&mut world, "ours", key));
    world.execute();
    turn(&mut world, JobSlotState::Ready, None);
    turn(&mut world, JobSlotState::Running, None);
    world.pass(300_000);
    let first = submit(&mut world, "ours", "3");
    world.pass(1000);
    let early = submit(&mut world, "ours", "5");
    world.pass(1000);
    let late = submit(&mut world, "theirs", "4");
    let code = Some(RankOutcome::Exited { code: 0 });
    report(&mut world, "node-1", JobSlotState::Ended, code);
    report(&mut world, "node-2", JobSlotState::Running, None);
    world.execute();
    world.job_reports.remove(&node_id("node-1"));
    world.heartbeat_all();
    let plan = world.execute();
    assert_eq!(used.iter().filter(|id| state(&world, **id) == JobState::Succeeded).count(), 1);
    assert!(state(&world, late).is_placed(), "its project used nothing: {:?}", waits(&world, late));
    let reason_of = |id| plan.waiting_jobs.iter().find(|one| one.id == id).expect("it waits");
    assert_eq!(reason_of(first).reason, "reserved", "the next turn is its own");
    let WaitingJob { reason, text, .. } = reason_of(early);
    assert_eq!(*reason, "fair_share", "by time alone it would come first: {text}");
    assert!(text.starts_with("other projects have used less of their share than `a`"), "{text}");
}

#[test]
fn without_projects_priority_and_time_decide_alone() {
    let mut world = World::new(&[listening_node(), node("node-2", 4000, 4096)]);
    world.approve(job("one", None, 4));
    let ids = ["1", "2", "3"].map(|key| {
        world.pass(1000);
        submit(&mut world, "one", key)
    });
    assert!(matches!(ask(&mut world, "one", "4", 4), Reply::JobSubmitted { .. }));
    world.execute();
    assert_eq!(ids.map(|id| state(&world, id).is_placed()), [true, true, false]);
    assert_eq!(waits(&world, ids[2]).0, "reserved");
    assert_eq!(world.cluster.shares(), &ShareBook::default(), "nothing is counted without projects");
    assert_eq!(world.cluster.check_invariants(), Ok(()));
}

/// Shares are part of the state: equal logs give equal bytes, and a snapshot has them.
#[test]
fn shares_are_replicated_and_kept_in_snapshots() {
    let mut world = world(&[("a", 4, None), ("b", 4, None)]);
    world.approve(job("ours", Some("a"), 4));
    submit(&mut world, "ours", "1");
    world.execute();
    let before = world.cluster.digest();
    turn(&mut world, JobSlotState::Ready, None);
    world.pass(3_600_000);
    world.execute();
    turn(&mut world, JobSlotState::Running, None);
    assert_ne!(world.cluster.digest(), before);
    assert_eq!(world.cluster.check_invariants(), Ok(()));
    let read = Cluster::from_snapshot(&world.cluster.to_snapshot()).expect("a snapshot");
    assert_eq!((read.digest(), read.shares()), (world.cluster.digest(), world.cluster.shares()));
}

#[test]
fn the_list_shows_what_each_project_holds_borrows_and_held() {
    let mut world = world(&[("a", 2, None), ("b", 6, None)]);
    world.approve(job("ours", Some("a"), 4));
    world.approve(job("any", None, 1));
    submit(&mut world, "ours", "1");
    submit(&mut world, "ours", "2");
    submit(&mut world, "any", "3");
    world.execute();
    turn(&mut world, JobSlotState::Ready, None);
    turn(&mut world, JobSlotState::Running, None);
    world.pass(500_000);
    let list = project_list(world.view());
    assert_eq!((list.half_life_seconds, list.offered.cpu_millicores), (3600, 8000));
    let [root, a, b] = &list.items[..] else { panic!("{list:?}") };
    assert_eq!([root, a, b].map(|row| row.name.as_str()), ["default", "a", "b"]);
    assert_eq!((root.quota, a.quota.map(|quota| quota.cpu_millicores)), (None, Some(2000)));
    let cores = |row: &protocol::project::ProjectView| {
        (row.held.cpu_millicores, row.borrowed.cpu_millicores, row.placed, row.waiting)
    };
    assert_eq!((cores(a), cores(b)), ((4000, 2000, 1, 1), (0, 0, 0, 0)), "{list:?}");
    assert_eq!(cores(root), (1000, 1000, 1, 0), "without a quota, all is borrowed");
    assert!(a.average.cpu_millicores.abs_diff(367) <= 10, "500 s of a half-life of 3600 s: {a:?}");
    assert!((500_000..600_000).contains(&a.share_millionths) && b.share_millionths == 0, "{list:?}");
}
