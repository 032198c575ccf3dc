//! Tests of a job's bounds: one altered field at a time, each refused by name.

use super::*;
use crate::digest::Digest;
use crate::keys::{ByteString, PublicKey};
use crate::manifest::{Manifest, SubmitKey};
use crate::{ArtifactRoot, ModelRoot};

const JOB: &str = "kind = 'job'\nname = 'train'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
    command = ['/usr/bin/python3', 'train.py', '--steps={steps}', '{{literal}}']\nranks = 4\n\
    run_seconds_max = 3600\nresources = { cpu_millicores = 1000, memory = '1 GiB' }\n\
    models = [{ name = 'base', root = 'ROOT' }]\nsubmit = { members = true }\n\
    [parameters]\nsteps = { integer = { least = 1, most = 1000 }, default = '100' }\n";

fn job() -> JobManifest {
    let text = JOB.replace("ROOT", &"1".repeat(64));
    let Manifest::Job(job) = Manifest::from_toml(&text).expect("a sound manifest") else {
        panic!("kind = job reads as a job")
    };
    job
}

fn submit_key(length: usize) -> SubmitKey {
    SubmitKey { ed25519: PublicKey([1; 32]), ml_dsa: ByteString(vec![1; length]) }
}

#[test]
fn defaults_are_narrow() {
    let job = job();
    assert_eq!(
        (job.ranks, job.ranks_per_slot, job.slots),
        (4, 1, 4),
        "one gang at once, a node for each rank"
    );
    assert_eq!((job.priority, job.retries, job.checkpoints, job.grace_seconds), (0, 0, 0, 30));
    assert_eq!((job.autonomy_seconds, job.is_open()), (3600, false));
    assert!(job.budget.is_none() && job.valid_until.is_none() && job.submit.members);
}

type Edit = fn(&mut JobManifest);

fn outcome(edit: Edit) -> String {
    let mut job = job();
    edit(&mut job);
    Manifest::Job(job).check_bounds().map_or_else(|error| error.to_string(), |()| "ok".into())
}

#[test]
fn jobs_have_bounds_however_they_are_made() {
    let cases: [(&str, Edit); 24] = [
        ("ok", |_| {}),
        ("command is empty", |job| job.command = Some(vec![])),
        ("command is empty", |job| job.command = Some(vec![String::new()])),
        ("command holds a zero byte", |job| job.command.as_mut().expect("given").push("\0".into())),
        ("command has 257 entries", |job| job.command = Some(vec!["x".into(); 257])),
        ("command has 65537 bytes", |job| job.command = Some(vec!["x".repeat(65_536)])),
        ("command begins with a placeholder", |job| job.command = Some(vec!["{steps}".into()])),
        ("command[4] names `{lr}`, which is no parameter", |job| {
            job.command.as_mut().expect("given").push("{lr}".into());
        }),
        ("command[4] has a brace alone", |job| job.command.as_mut().expect("given").push("}".into())),
        ("parameters.steps stands nowhere", |job| job.command = Some(vec!["train".into()])),
        ("artifact.root is all zeros", |job| {
            job.artifact.as_mut().expect("given").root = ArtifactRoot(Digest([0; 32]));
        }),
        ("models[0].root is all zeros", |job| job.models[0].root = ModelRoot(Digest([0; 32]))),
        ("models[1].name is there twice", |job| job.models.push(job.models[0].clone())),
        ("ranks is 4097; accepted: 1 to 4096", |job| job.ranks = 4097),
        ("ranks_per_slot is 17; accepted: 1 to 16", |job| job.ranks_per_slot = 17),
        ("slots is 3; accepted: 4 or more", |job| job.slots = 3),
        ("resources.memory is 33554431 B", |job| job.resources.memory_bytes = (32 << 20) - 1),
        ("gpu_models is given, but no GPU", |job| job.gpu_models.push("NVIDIA H100".into())),
        ("placement.regions[0] is 64 bytes", |job| job.placement.regions.push("x".repeat(64))),
        ("environment.RANK is set by the node", |job| {
            job.environment.insert("RANK".into(), "0".into());
        }),
        ("environment.\"A=B\" is no name", |job| {
            job.environment.insert("A=B".into(), String::new());
        }),
        ("submit lets no party submit", |job| job.submit.members = false),
        ("submit.tokens names holders", |job| {
            job.submit.any_token = true;
            job.submit.tokens.insert("ci".parse().expect("a name"));
        }),
        ("submit.signers.ci.ml_dsa is no key of 1952 bytes", |job| {
            job.submit.signers.insert("ci".parse().expect("a name"), submit_key(1951));
        }),
    ];
    for (expected, edit) in cases {
        let found = outcome(edit);
        assert!(found.starts_with(expected), "{found}\nexpected {expected}");
    }
}

#[test]
fn an_open_job_needs_a_signer() {
    let cases: [(&str, Edit); 5] = [
        ("ok", |job| job.artifact = None),
        ("parameters are given, but an open command", |job| job.command = None),
        ("ok", |job| {
            job.command = None;
            job.parameters.clear();
        }),
        ("submit needs members or signers", |job| {
            job.artifact = None;
            (job.submit.members, job.submit.any_token) = (false, true);
        }),
        ("ok", |job| {
            job.artifact = None;
            job.submit.members = false;
            job.submit.signers.insert("ci".parse().expect("a name"), submit_key(1952));
        }),
    ];
    for (expected, edit) in cases {
        let found = outcome(edit);
        assert!(found.starts_with(expected), "{found}\nexpected {expected}");
    }
}

#[test]
fn a_part_is_open_only_if_the_manifest_says_so() {
    let text = JOB.replace("ROOT", &"1".repeat(64));
    let root = format!("artifact = {{ name = 'trainer', root = '{}' }}\n", "1".repeat(64));
    let without = text.replace(&root, "");
    let opened =
        |text: &str, open: &str| text.replace("ranks = 4\n", &format!("ranks = 4\nopen = [{open}]\n"));
    for (text, expected) in [
        (without.clone(), Err("artifact: missing field `artifact`")),
        (opened(&without, "'artifact'"), Ok(())),
        (opened(&text, "'artifact'"), Err("artifact: is given, although `open` names it")),
        (opened(&text, "'command'"), Err("command: is given, although `open` names it")),
        (text.replace("least", "lowest"), Err("parameters.steps.integer.lowest: unknown field")),
        (
            text.replace("integer = { least = 1, most = 1000 }, ", ""),
            Err("parameters.steps: needs exactly one"),
        ),
        (text.replace("'100'", "'0'"), Err("parameters.steps: has a default that is 0; accepted: 1 to 1000")),
    ] {
        let found = Manifest::from_toml(&text).map(|_| ()).map_err(|e| format!("{}: {}", e.field, e.message));
        match (found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{found}"),
            (found, expected) => panic!("{found:?}, not {expected:?}\n{text}"),
        }
    }
}
