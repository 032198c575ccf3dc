//! Tests of derivation: what a rank is given follows from the manifest and the parameters, and nothing else.

use super::*;
use proptest::prelude::*;
use protocol::job::Submitter;
use protocol::manifest::Manifest;
use protocol::{CircleId, Digest, JobId, Millis};

const JOB: &str = "kind = 'job'\nname = 'train'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
    command = ['/bin/train', '--steps={steps}', '{text}', 'fixed']\nranks = 4\nranks_per_slot = 2\n\
    run_seconds_max = 60\nsubmit = { members = true }\n\
    resources = { cpu_millicores = 1000, memory = '1 GiB' }\n\
    models = [{ name = 'base', root = 'ROOT' }]\ndatasets = [{ name = 'corpus', root = 'ROOT' }]\n\
    [environment]\nXLA_FLAGS = '-x'\n\
    [parameters]\nsteps = { integer = { least = 1, most = 1000 }, default = '100' }\n\
    text = { text = { length = 64, characters = 'printable' } }\n";

fn job() -> JobManifest {
    let text = JOB.replace("ROOT", &"1".repeat(64));
    let Manifest::Job(job) = Manifest::from_toml(&text).expect("a sound manifest") else { panic!("a job") };
    job
}

fn submission(parameters: &[(&str, &str)]) -> JobSubmission {
    let named = |(name, value): &(&str, &str)| -> (ParameterName, String) {
        (name.parse().expect("a name"), value.to_string())
    };
    JobSubmission {
        circle: CircleId(Digest([0; 32])),
        job: job().name,
        certificate: Digest([0; 32]),
        idempotency: Digest([0; 32]),
        parameters: parameters.iter().map(named).collect(),
        artifact: None,
        command: None,
        priority: 0,
        submitter: Submitter::Token("ci".parse().expect("a name")),
        issued_at: Millis(0),
        deadline: Millis(1),
        after: vec![],
        array: None,
    }
}

const SECOND: SlotRanks = SlotRanks { first: 2, count: 2 };

#[test]
fn a_rank_is_given_its_place_its_parameters_and_its_inputs() {
    let submission = submission(&[("text", "$(id); {steps} && --rm")]);
    let gpus = ["GPU-1".to_string(), "GPU-2".to_string()];
    let rank = derive_rank(&job(), &submission, SECOND, 3, &gpus).expect("a sound submission");
    assert_eq!(rank.arguments, ["/bin/train", "--steps=100", "$(id); {steps} && --rm", "fixed"]);
    let environment: Vec<String> =
        rank.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let expected = [
        "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2",
        "LOCAL_RANK=1",
        "LOCAL_WORLD_SIZE=2",
        "MASTER_ADDR=rank-0",
        "MASTER_PORT=29500",
        "RANK=3",
        "WORLD_SIZE=4",
        "XLA_FLAGS=-x",
    ];
    assert_eq!(environment, expected);
    let paths: Vec<&str> = rank.inputs.iter().map(|input| input.path.as_str()).collect();
    assert_eq!(paths, ["/models/base", "/datasets/corpus"]);
    assert_eq!(Some(rank.artifact), job().artifact);
}

#[test]
fn a_task_of_an_array_finds_its_index_and_a_job_of_its_own_none() {
    let array = JobId(Digest([7; 32]));
    let variables = |array: Option<ArrayTask>| {
        let submission = JobSubmission { array, ..submission(&[("text", "x")]) };
        let rank = derive_rank(&job(), &submission, SECOND, 3, &[]).expect("a sound submission");
        let of_array = rank.environment.into_iter().filter(|(name, _)| name.starts_with("JOB_ARRAY"));
        of_array.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let task = ArrayTask { array, index: 3, count: 8 };
    assert_eq!(variables(Some(task)), ["JOB_ARRAY_COUNT=8", "JOB_ARRAY_INDEX=3"]);
    assert_eq!(variables(None), [""; 0]);
}

#[test]
fn parameters_have_their_bounds_and_their_codes() {
    let text = ("text", "x");
    for (parameters, expected) in [
        (&[text, ("steps", "1")][..], "ok"),
        (&[text, ("steps", "1000")], "ok"),
        (&[text, ("steps", "1001")], "parameter-out-of-bounds"),
        (&[text, ("steps", "1 --rm")], "parameter-out-of-bounds"),
        (&[("text", "--rm")], "parameter-out-of-bounds"),
        (&[("text", "a\nb")], "parameter-out-of-bounds"),
        (&[text, ("other", "1")], "parameter-unknown"),
        (&[("steps", "1")], "parameter-missing"),
    ] {
        let derived = derive_rank(&job(), &submission(parameters), SECOND, 2, &[]);
        let found = derived.map_or_else(|error| error.code().as_str(), |_| "ok");
        assert_eq!(found, expected, "{parameters:?}");
    }
}

#[test]
fn a_rank_is_one_of_its_slot_and_of_its_gang() {
    let submission = submission(&[("text", "x")]);
    for (first, count, rank, sound) in [
        (0, 1, 0, true),
        (2, 2, 3, true),
        (2, 2, 1, false),
        (2, 2, 4, false),
        (3, 2, 3, false),
        (0, 3, 0, false),
        (0, 0, 0, false),
        (u32::MAX, 2, u32::MAX, false),
    ] {
        let derived = derive_rank(&job(), &submission, SlotRanks { first, count }, rank, &[]);
        assert_eq!(derived.is_ok(), sound, "rank {rank} of {first} and {count} more");
    }
}

proptest! {
    /// No text makes another number of arguments, or alters one beside its own.
    #[test]
    fn no_value_reaches_beyond_its_argument(value in "[ -~]{1,64}") {
        let derived = derive_rank(&job(), &submission(&[("text", value.as_str())]), SECOND, 2, &[]);
        prop_assert_eq!(derived.is_ok(), !value.starts_with('-'));
        if let Ok(rank) = derived {
            prop_assert_eq!(rank.arguments, ["/bin/train", "--steps=100", value.as_str(), "fixed"]);
        }
    }
}
