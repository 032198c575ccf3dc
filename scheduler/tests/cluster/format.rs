//! Tests of the persistent formats of this crate: entries of the log, recorded replies, and snapshots.
//!
//! `format/log.txt` holds the shape of each, field by field, and the size and digest of its bytes.
//! `format/snapshot.cbor` is a snapshot as it was once written. `REFRESH_GOLDEN=1 cargo test -p scheduler`
//! writes them again, and the seeds of the fuzzer.
//!
//! A digest that changes is a log that an earlier build cannot read, or the other way round. It needs a
//! version, and a breaking line in the changelog.

use crate::common::World;
use crate::common::samples::{commands, running, tree};
use ciborium::value::Value as Cbor;
use protocol::api::ProposalState;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::error_code::PLAN_STALE;
use protocol::{CircleId, Digest, ProposalId};
use scheduler::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format").join(name)
}

fn refreshes() -> bool {
    std::env::var_os("REFRESH_GOLDEN").is_some()
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}

/// Returns each field's path and type, once: elements of lists and of maps with free keys share a line.
fn shape(value: &Cbor) -> BTreeSet<String> {
    fn walk(value: &Cbor, path: &str, out: &mut BTreeSet<String>) {
        let kind = match value {
            Cbor::Integer(_) => "integer",
            Cbor::Bytes(_) => "bytes",
            Cbor::Text(_) => "text",
            Cbor::Bool(_) => "truth",
            Cbor::Null => "nothing",
            Cbor::Array(items) => {
                items.iter().for_each(|item| walk(item, &format!("{path}[]"), out));
                "list"
            }
            Cbor::Map(entries) => {
                for (key, value) in entries {
                    // Names of fields are shown as they are; keys that are data are shown by type.
                    match key.as_text().filter(|_| !HAS_FREE_KEYS.iter().any(|end| path.ends_with(end))) {
                        Some(name) => walk(value, &format!("{path}.{name}"), out),
                        None => walk(value, &format!("{path}{{}}"), out),
                    }
                }
                "map"
            }
            other => panic!("canonical form has no {other:?}"),
        };
        out.insert(format!("{path}: {kind}"));
    }
    let mut out = BTreeSet::new();
    walk(value, "", &mut out);
    out
}

/// Paths of the maps whose keys are data.
const HAS_FREE_KEYS: [&str; 7] =
    [".services", ".labels", ".node_selector", ".signatures", ".ballots", ".wraps{}", ".usage.periods"];

/// Replaces signatures, and digests that cover one, by as many equal bytes: ML-DSA draws randomness for each.
/// The root of a history covers certificates, and so does the id of a proposal that names it.
fn without_signatures(value: &mut Cbor) {
    match value {
        Cbor::Map(entries) => {
            for (key, value) in entries {
                match key.as_text() {
                    Some("signature" | "signatures" | "certificate" | "history") => blank(value),
                    Some("proposal" | "rendering" | "wrap") if value.is_bytes() => blank(value),
                    _ => without_signatures(value),
                }
            }
        }
        Cbor::Array(items) => items.iter_mut().for_each(without_signatures),
        _ => {}
    }
}

fn blank(value: &mut Cbor) {
    match value {
        Cbor::Bytes(bytes) => bytes.fill(7),
        Cbor::Map(entries) => entries.iter_mut().for_each(|(_, value)| blank(value)),
        _ => {}
    }
}

fn append(out: &mut String, name: &str, mut value: Cbor) {
    let shape = shape(&value).into_iter().collect::<Vec<_>>().join("\n");
    without_signatures(&mut value);
    let bytes = to_bytes(&value);
    writeln!(out, "= {name}\n{shape}\n-> {} bytes, {}\n", bytes.len(), Digest::of(&bytes)).unwrap();
}

/// Returns the state after the sample plan: a replica moves, a slot ends, a node is avoided.
fn after_the_plan(world: &World) -> Cluster {
    let mut cluster = world.cluster.clone();
    let (_, plan) = commands(world).into_iter().find(|(name, _)| *name == "execute").unwrap();
    assert!(matches!(apply(&mut cluster, 1000, &plan), Reply::Executed { .. }));
    cluster
}

/// Returns the state in which a node that lapsed may still run its slots.
fn after_a_lapse(world: &World) -> Cluster {
    let mut cluster = world.cluster.clone();
    let (_, mut plan) = commands(world).into_iter().find(|(name, _)| *name == "execute").unwrap();
    let Action::Execute { steps, .. } = &mut plan.action else { panic!("a plan") };
    steps.truncate(1);
    assert!(matches!(apply(&mut cluster, 1000, &plan), Reply::Executed { .. }));
    cluster
}

/// Returns the fields that these states have together.
fn state_shape(states: &[&Cluster]) -> BTreeSet<String> {
    states.iter().flat_map(|state| shape(&tree(state))).collect()
}

/// Returns a reply of every kind.
fn replies() -> Vec<(&'static str, Reply)> {
    let mut world = running();
    let orders = world.cluster.holdings().map(|(_, _, holding)| holding.order.clone()).collect();
    let executed = Reply::Executed { generation: 7, orders };
    let (proposal, certificate) = (ProposalId(Digest::of(b"p")), Some(Digest::of(b"c")));
    let founded = Reply::Founded { circle: CircleId(Digest::of(b"circle")) };
    let counted =
        |state, certificate| Reply::Counted { proposal: ProposalId(Digest::of(b"p")), state, certificate };
    let done = world.must(Action::Tick);
    vec![
        ("done", done),
        ("founded", founded),
        ("submitted", Reply::Submitted { proposal }),
        ("counted-open", counted(ProposalState::Open, None)),
        ("counted-waiting", counted(ProposalState::Waiting, None)),
        ("counted-approved", counted(ProposalState::Approved, certificate)),
        ("counted-rejected", counted(ProposalState::Rejected, None)),
        ("counted-draft", counted(ProposalState::Draft, None)),
        ("counted-withdrawn", counted(ProposalState::Withdrawn, None)),
        ("counted-void", counted(ProposalState::Void, None)),
        ("executed", executed),
        ("leads", Reply::Leads { generation: 8 }),
        ("enrolled", Reply::Enrolled { admitted: true }),
        ("refused", Reply::Refused { code: PLAN_STALE, message: "why".into() }),
    ]
}

/// Returns the kinds of a type's values in the samples, by the name that stands for each on the wire.
fn kinds<'a>(trees: impl Iterator<Item = &'a Cbor>) -> BTreeSet<String> {
    let word = |tree: &Cbor| match tree {
        Cbor::Text(word) => word.clone(),
        Cbor::Map(entries) => entries[0].0.as_text().unwrap().to_string(),
        other => panic!("no kind of anything: {other:?}"),
    };
    trees.map(word).collect()
}

fn field<'a>(tree: &'a Cbor, name: &str) -> &'a Cbor {
    let entries = tree.as_map().unwrap();
    &entries.iter().find(|(key, _)| key.as_text() == Some(name)).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn every_kind_of_entry_answer_and_state_has_the_bytes_it_had() {
    let world = running();
    let commands = commands(&world);
    let mut current = String::from(
        "# The shape and the bytes of everything that the scheduler writes to a disk. See format.rs.\n\n",
    );
    for (name, command) in &commands {
        assert_eq!(
            from_bytes::<Command>(&to_bytes(command), limits::COMMAND_BYTES_MAX).as_ref(),
            Ok(command)
        );
        append(&mut current, &format!("command/{name}"), tree(command));
    }
    for (name, reply) in replies() {
        assert_eq!(from_bytes::<Reply>(&to_bytes(&reply), 1 << 20).as_ref(), Ok(&reply));
        append(&mut current, &format!("reply/{name}"), tree(&reply));
    }
    // Certificates are named by digests that cover signatures, so only the shape of a state is the same each
    // time.
    let shape = state_shape(&[&world.cluster, &after_a_lapse(&world), &after_the_plan(&world)]);
    writeln!(current, "= snapshot\n{}", shape.into_iter().collect::<Vec<_>>().join("\n")).unwrap();
    if refreshes() {
        write(&path("log.txt"), current.as_bytes());
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/command");
        commands.iter().for_each(|(name, command)| write(&seeds.join(name), &to_bytes(command)));
    }
    let written = std::fs::read_to_string(path("log.txt")).unwrap();
    for (at, (current, written)) in current.lines().zip(written.lines()).enumerate() {
        assert_eq!(current, written, "log.txt:{}: another format of what is on disks", at + 1);
    }
    assert_eq!(current.lines().count(), written.lines().count(), "log.txt has another length");
}

#[test]
fn the_samples_hold_every_kind_of_action_actor_step_and_phase() {
    let world = running();
    let trees: Vec<Cbor> = commands(&world).iter().map(|(_, command)| tree(command)).collect();
    let expected = |words: &str| words.split(' ').map(str::to_string).collect::<BTreeSet<String>>();
    // A new kind without a sample here fails to compile or is missing from this list.
    let actions = "lead found submit_proposal draft_deployment open_proposal withdraw cast_ballot \
        put_comment register_model put_wraps drop_wrap \
        grant_access revoke_access scale roll_back execute enrol tick";
    assert_eq!(kinds(trees.iter().map(|tree| field(tree, "action"))), expected(actions));
    assert_eq!(kinds(trees.iter().map(|tree| field(tree, "actor"))), expected("member token scheduler"));
    let commands = commands(&world);
    for (_, command) in &commands {
        let (Action::Lead { .. }
        | Action::Found(_)
        | Action::SubmitProposal(_)
        | Action::DraftDeployment { .. }
        | Action::OpenProposal { .. }
        | Action::Withdraw { .. }
        | Action::CastBallot(_)
        | Action::RegisterModel { .. }
        | Action::PutWraps(_)
        | Action::PutComment(_)
        | Action::DropWrap(_)
        | Action::GrantAccess(_)
        | Action::RevokeAccess(_)
        | Action::Scale { .. }
        | Action::RollBack { .. }
        | Action::RequestJob(_)
        | Action::SubmitJob(_)
        | Action::CancelJob { .. }
        | Action::RetryJob { .. }
        | Action::RegisterJobData(_)
        | Action::Execute { .. }
        | Action::Enrol(_)
        | Action::Tick) = &command.action;
        let (Actor::Member(_) | Actor::Token(_) | Actor::Scheduler) = &command.actor;
    }
    let plan = commands.iter().find_map(|(_, command)| match &command.action {
        Action::Execute { steps, .. } => Some(steps.clone()),
        _ => None,
    });
    let steps: Vec<Cbor> = plan.unwrap().iter().map(tree).collect();
    let every = expected("lapse resume release release_former drain end order fail_start end_roll_out");
    assert_eq!(kinds(steps.iter()), every);
    let after = after_the_plan(&world);
    let holdings = world.cluster.holdings().chain(after.holdings());
    let phases: Vec<Cbor> = holdings.map(|(_, _, holding)| tree(&holding.phase)).collect();
    assert_eq!(kinds(phases.iter()), expected("running draining lapsing silent"));
}

#[test]
fn a_snapshot_of_before_is_read_and_written_as_it_was() {
    if refreshes() {
        return write(&path("snapshot.cbor"), &after_the_plan(&running()).to_snapshot());
    }
    let bytes = include_bytes!("../format/snapshot.cbor");
    let then = Cluster::from_snapshot(bytes).expect("what was written once is read for ever");
    assert!(then.to_snapshot() == *bytes, "and written again as it was");
    let now = after_the_plan(&running());
    assert_eq!(then.circle_id(), now.circle_id());
    assert_eq!(then.generation(), now.generation());
    assert_eq!(then.services().keys().collect::<Vec<_>>(), now.services().keys().collect::<Vec<_>>());
    assert_eq!(then.governance_chain().len(), now.governance_chain().len());
    assert_eq!(state_shape(&[&then]), state_shape(&[&now]), "what is written today has the same fields");
}
