//! Tests of votes on projects: their form, their rule, what a member reads, and the jobs that name them.

use crate::jobs::BOTH;
use crate::samples::{full_job, projects};
use crate::support::{NOW, approve, check, circle, enact, name, policy, proposal, set_members, try_propose};
use human_chain::{CircleState, class_of, render, render_difference, subject_of, verify};
use proptest::prelude::*;
use protocol::governance::{ActionClass, Change};
use protocol::manifest::{JobManifest, Manifest};
use protocol::project::{
    HALF_LIFE_SECONDS_MAX, PROJECT_DEPTH_MAX, PROJECT_GPUS_MAX, PROJECT_MEMORY_BYTES_MAX,
    PROJECT_MILLICORES_MAX, PROJECT_WEIGHT_MAX, PROJECTS_MAX, Project, ProjectQuota, ProjectTree,
};

fn set(tree: ProjectTree) -> Change {
    Change::SetProjects(Box::new(tree))
}

fn job(project: Option<&str>) -> Change {
    let project = project.map(name);
    Change::Deploy(Box::new(Manifest::Job(JobManifest { project, ..full_job() })))
}

/// Returns a tree of these projects, each with its parent, without quotas.
fn tree_of(parents: &[(&str, Option<&str>)]) -> ProjectTree {
    let project = |(own, parent): &(&str, Option<&str>)| Project {
        name: name(own),
        parent: parent.map(name),
        weight: 1,
        quota: ProjectQuota::default(),
        borrow: None,
    };
    ProjectTree { projects: parents.iter().map(project).collect(), ..projects() }
}

type Edit = fn(&mut ProjectTree);

/// Rules about the tree as a whole, its weights and its order.
fn wrong_lists() -> Vec<(&'static str, Edit)> {
    vec![
        ("approved", |_| {}),
        ("approved", |tree| tree.projects.clear()),
        ("approved", |tree| tree.half_life_seconds = HALF_LIFE_SECONDS_MAX),
        ("projects-invalid: the half-life is 299 s; accepted: 300 to 7776000", |tree| {
            tree.half_life_seconds = 299;
        }),
        ("projects-invalid: the half-life is 7776001 s", |tree| {
            tree.half_life_seconds = HALF_LIFE_SECONDS_MAX + 1;
        }),
        ("projects-invalid: the weight of jobs of a project itself is 0; accepted: 1 to 10000", |tree| {
            tree.own_weight = 0;
        }),
        ("projects-invalid: the weight of `research` is 0", |tree| tree.projects[1].weight = 0),
        ("projects-invalid: the weight of `research` is 10001", |tree| {
            tree.projects[1].weight = PROJECT_WEIGHT_MAX + 1;
        }),
        ("approved", |tree| tree.projects[1].weight = PROJECT_WEIGHT_MAX),
        ("projects-invalid: `research` is named twice", |tree| {
            tree.projects.insert(1, tree.projects[1].clone());
        }),
        ("projects-invalid: `research` comes after `vision`; accepted: sorted by name", |tree| {
            tree.projects.swap(1, 2);
        }),
    ]
}

/// Rules about parents, depth and quotas.
fn wrong_trees() -> Vec<(&'static str, Edit)> {
    vec![
        ("projects-invalid: `default` is the root", |tree| tree.projects[0].name = name("default")),
        ("projects-invalid: `vision` names the root as its parent", |tree| {
            tree.projects[2].parent = Some(name("default"));
        }),
        ("projects-invalid: the parent of `vision` is `ghost`, which is no project", |tree| {
            tree.projects[2].parent = Some(name("ghost"));
        }),
        ("projects-invalid: `vision` belongs to itself, by way of its parent", |tree| {
            tree.projects[2].parent = Some(name("vision"));
        }),
        ("projects-invalid: `research` belongs to itself", |tree| {
            tree.projects[1].parent = Some(name("vision"));
        }),
        ("projects-invalid: `a` belongs to projects that belong to each other", |tree| {
            *tree = tree_of(&[("a", Some("b")), ("b", Some("c")), ("c", Some("b"))]);
        }),
        ("approved", |tree| {
            *tree = tree_of(&[("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("c"))]);
            assert_eq!(tree.projects.len(), PROJECT_DEPTH_MAX);
        }),
        ("projects-invalid: `e` is deeper than 4 projects below the root", |tree| {
            let (d, e) = (("d", Some("c")), ("e", Some("d")));
            *tree = tree_of(&[("a", None), ("b", Some("a")), ("c", Some("b")), d, e]);
        }),
        ("projects-invalid: the quota of `research` is 1000000001 millicores", |tree| {
            tree.projects[1].quota.cpu_millicores = PROJECT_MILLICORES_MAX + 1;
        }),
        ("projects-invalid: the quota of `research` is 1125899906842625 bytes of memory", |tree| {
            tree.projects[1].quota.memory_bytes = PROJECT_MEMORY_BYTES_MAX + 1;
        }),
        ("projects-invalid: the limit of what `vision` borrows is 80001 GPUs", |tree| {
            let borrow = tree.projects[2].borrow.as_mut().expect("given");
            borrow.gpus = PROJECT_GPUS_MAX + 1;
        }),
        (
            "projects-invalid: the projects of `research` have 17 GPUs together, and its own quota is 16",
            |tree| {
                tree.projects[2].quota.gpus = 17;
            },
        ),
        ("projects-invalid: 257 of them; accepted: at most 256", |tree| {
            let project =
                |at: usize| Project { name: name(&format!("p{at:03}")), ..tree.projects[0].clone() };
            tree.projects = (0..=PROJECTS_MAX).map(project).collect();
        }),
    ]
}

/// Every rule of form, in a proposal and in a certificate that careless members signed.
#[test]
fn projects_are_a_tree_within_its_bounds() {
    let state = circle();
    for (expected, edit) in wrong_lists().into_iter().chain(wrong_trees()) {
        let mut tree = projects();
        edit(&mut tree);
        check(expected, try_propose(&state, set(tree.clone())), expected);
        let mut signed = proposal(&state, set(projects()));
        signed.change = set(tree);
        check(expected, verify(&state, &approve(&signed, &BOTH), NOW), expected);
    }
}

/// Projects take the rule of sensitive changes: the quorum of routine ones divides nothing.
#[test]
fn attack_the_routine_quorum_sets_no_projects() {
    let mut state = circle();
    let members = state.members().cloned().collect();
    let stricter = policy("2 of (alice, bob, carol)", "3 of (alice, bob, carol)");
    let change = set_members(&state, members, stricter);
    enact(&mut state, change, &["alice", "bob", "carol"]);
    let change = set(projects());
    assert_eq!((class_of(&change), subject_of(&change).as_str()), (ActionClass::Sensitive, "projects"));
    let asked = proposal(&state, change);
    check("two", verify(&state, &approve(&asked, &["alice", "bob"]), NOW), "quorum-not-reached");
    check("all", verify(&state, &approve(&asked, &["alice", "bob", "carol"]), NOW), "approved");
    assert_eq!((state.has_projects(), state.projects()), (false, &ProjectTree::default()));
}

/// Two siblings whose quotas fit alone and not together, in each resource.
#[test]
fn the_quotas_of_siblings_fit_together_or_not_at_all() {
    let state = circle();
    for (cores, gibibytes, gpus, expected) in [
        (48_000, 384, 12, "approved"),
        (48_001, 384, 12, "projects-invalid: have 64001 millicores together, and its own quota is 64000"),
        (48_000, 385, 12, "projects-invalid: bytes of memory together"),
        (48_000, 384, 13, "projects-invalid: have 17 GPUs together, and its own quota is 16"),
    ] {
        let mut tree = projects();
        let quota = ProjectQuota { cpu_millicores: cores, memory_bytes: gibibytes << 30, gpus };
        let speech = Project { name: name("speech"), quota, ..tree.projects[2].clone() };
        tree.projects.insert(2, speech);
        check(expected, try_propose(&state, set(tree)), expected);
    }
}

/// Attack: a vote that saw other projects than those in force, or one that comes again.
#[test]
fn attack_a_vote_on_other_projects_is_stale() {
    let mut state = circle();
    let beside = proposal(&state, set(tree_of(&[("a", None)])));
    check("the control", verify(&state, &approve(&beside, &BOTH), NOW), "approved");
    let first = enact(&mut state, set(projects()), &BOTH);
    check("beside", verify(&state, &approve(&beside, &BOTH), NOW), "proposal-stale: projects");
    check("again", verify(&state, &first, NOW), "proposal-stale: projects");
    let kept = CircleState::from_kept_bytes(&state.to_kept_bytes(), state.id()).expect("a sound state");
    assert_eq!(kept.projects(), &projects(), "a kept state has its projects");
}

/// A job is approved for a project that was voted, and for no other.
#[test]
fn attack_a_job_of_an_unknown_project_is_refused() {
    let mut state = circle();
    check("no project", try_propose(&state, job(None)), "approved");
    check("before", try_propose(&state, job(Some("vision"))), "project-unknown: `vision`");
    let early = proposal(&state, job(None));
    let mut forged = early;
    forged.change = job(Some("vision"));
    check("certified", verify(&state, &approve(&forged, &BOTH), NOW), "project-unknown: `vision`");
    enact(&mut state, set(projects()), &BOTH);
    check("after", try_propose(&state, job(Some("vision"))), "approved");
    check("another", try_propose(&state, job(Some("ghost"))), "project-unknown: smallest change: vote");
    enact(&mut state, job(Some("vision")), &BOTH);
    enact(&mut state, set(tree_of(&[])), &BOTH);
    assert_eq!(state.check_invariants(), Ok(()), "a job outlives its project, and waits");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Trees that differ in one amount are read differently.
    #[test]
    fn different_projects_have_different_texts(
        at in 0..3_usize, field in 0..5_usize, amount in 1..1_u32 << 13,
    ) {
        let state = circle();
        let shown = |amount: u32| {
            let mut tree = projects();
            let project = &mut tree.projects[at];
            match field {
                0 => project.weight = amount,
                1 => project.quota.cpu_millicores = u64::from(amount),
                2 => project.quota.memory_bytes = u64::from(amount),
                3 => project.quota.gpus = amount,
                _ => project.borrow = Some(ProjectQuota { gpus: amount, ..ProjectQuota::default() }),
            }
            let asked = proposal(&state, set(projects()));
            let asked = protocol::governance::Proposal { change: set(tree), ..asked };
            (render(&asked).text, render_difference(&state, &asked))
        };
        let (one, next) = (shown(amount), shown(amount + 1));
        prop_assert!(one.0 != next.0 && one.1 != next.1, "{}", one.1);
    }
}
