//! Fuzz target of a job's parameters: any values give a command with the approved arguments, in which each
//! value stays where its placeholder was, or an error.
#![no_main]

use human_chain::derive_rank;
use libfuzzer_sys::fuzz_target;
use protocol::job::{JobSubmission, SlotRanks, Submitter};
use protocol::manifest::{JobManifest, Manifest};
use protocol::{CircleId, Digest, Millis, ParameterName};
use std::sync::LazyLock;

static JOB: LazyLock<JobManifest> = LazyLock::new(|| {
    let text = "kind = 'job'\nname = 'train'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
        command = ['/bin/train', '--a={a}', '{b}', '{c}{d}']\nranks = 1\nrun_seconds_max = 60\n\
        submit = { members = true }\nresources = { cpu_millicores = 1000, memory = '1 GiB' }\n\
        [parameters]\na = { integer = { least = -9, most = 1000 } }\n\
        b = { text = { length = 64, characters = 'printable' } }\n\
        c = { decimal = { least = '-0.5', most = '100.25' } }\nd = { choice = ['x', '{a}'] }\n";
    match Manifest::from_toml(&text.replace("ROOT", &"1".repeat(64))) {
        Ok(Manifest::Job(job)) => job,
        other => panic!("the sample is a sound job: {other:?}"),
    }
});

fuzz_target!(|values: (String, String, String, String)| {
    let (a, b, c, d) = &values;
    let named = |name: &str, value: &String| -> (ParameterName, String) {
        (name.parse().expect("a name"), value.clone())
    };
    let submission = JobSubmission {
        circle: CircleId(Digest([0; 32])),
        job: JOB.name.clone(),
        certificate: Digest([0; 32]),
        idempotency: Digest([0; 32]),
        parameters: [named("a", a), named("b", b), named("c", c), named("d", d)].into(),
        artifact: None,
        command: None,
        priority: 0,
        submitter: Submitter::Token("fuzz".parse().expect("a name")),
        issued_at: Millis(0),
        deadline: Millis(0),
        after: vec![],
        array: None,
    };
    if let Ok(rank) = derive_rank(&JOB, &submission, SlotRanks { first: 0, count: 1 }, 0, &[]) {
        let expected = ["/bin/train".to_string(), format!("--a={a}"), b.clone(), format!("{c}{d}")];
        assert_eq!(rank.arguments, expected);
        assert!(!b.starts_with('-') && b.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{b:?}");
    }
});
