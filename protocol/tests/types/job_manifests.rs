//! Properties of a job's manifest as TOML: what is written is read back, field by field, and is within its
//! bounds; a part that is neither given nor open is named.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::keys::ByteString;
use protocol::manifest::{
    ArtifactChoice, Isolation, JobBudget, JobManifest, JobParameter, JobSubmitters, Manifest, ModelChoice,
    ParameterRule, Placement, Resources, SubmitKey, TextCharacters,
};
use protocol::{ArtifactRoot, Digest, Millis, ModelRoot, ParameterName, PublicKey};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Returns a digest that is not all zeros.
fn root() -> impl Strategy<Value = Digest> {
    any::<[u8; 31]>().prop_map(|rest| Digest([&rest[..], &[1]].concat().try_into().unwrap()))
}

fn model() -> impl Strategy<Value = ModelChoice> {
    (crate::values::name(), root()).prop_map(|(name, root)| ModelChoice { name, root: ModelRoot(root) })
}

/// Returns models of distinct names.
fn models() -> impl Strategy<Value = Vec<ModelChoice>> {
    vec(model(), 0..3).prop_map(|models| {
        let named: BTreeMap<_, _> = models.into_iter().map(|model| (model.name.clone(), model)).collect();
        named.into_values().collect()
    })
}

/// Returns a parameter with a default within its bounds, or none.
fn parameter() -> impl Strategy<Value = JobParameter> {
    let integer = (any::<i32>(), 0..1000_i64).prop_map(|(least, more)| {
        let least = i64::from(least);
        (ParameterRule::Integer { least, most: least + more }, least.to_string())
    });
    let decimal = (0..1000_u32, 1..1000_u32).prop_map(|(least, most)| {
        let (least, most) = (format!("-0.{least:03}"), format!("{most}.5"));
        let rule = ParameterRule::Decimal { least: least.parse().unwrap(), most: most.parse().unwrap() };
        (rule, most)
    });
    let choice = btree_set("[ -~]{1,6}", 1..4).prop_map(|words| {
        let words: Vec<String> = words.into_iter().collect();
        (ParameterRule::Choice(words.clone()), words[0].clone())
    });
    let characters =
        prop::sample::select(vec![TextCharacters::Word, TextCharacters::Path, TextCharacters::Printable]);
    let text = (1..=1024_u32, characters)
        .prop_map(|(length, characters)| (ParameterRule::Text { length, characters }, "a".to_string()));
    (prop_oneof![integer, decimal, choice, text], any::<bool>())
        .prop_map(|((rule, value), given)| JobParameter { rule, default: given.then_some(value) })
}

fn submitters() -> impl Strategy<Value = JobSubmitters> {
    let key = (crate::values::name(), any::<[u8; 32]>(), any::<u8>());
    let tokens = btree_set(crate::values::name(), 0..3);
    (any::<bool>(), tokens, vec(key, 0..2)).prop_map(|(any_token, tokens, keys)| {
        let key = |(name, ed25519, byte)| {
            let key = SubmitKey { ed25519: PublicKey(ed25519), ml_dsa: ByteString(vec![byte; 1952]) };
            (name, key)
        };
        let tokens = if any_token { Default::default() } else { tokens };
        JobSubmitters { any_token, tokens, members: true, signers: keys.into_iter().map(key).collect() }
    })
}

fn resources() -> impl Strategy<Value = Resources> {
    (50..=4_096_000_u64, 32_u64 << 20..=64 << 40, 1..=64_u32).prop_map(
        |(cpu_millicores, memory_bytes, gpu_count)| Resources {
            cpu_millicores,
            memory_bytes,
            gpu_count,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        },
    )
}

/// Returns a command in which each parameter has its placeholder.
fn command(parameters: &BTreeMap<ParameterName, JobParameter>) -> Vec<String> {
    let arguments = parameters.keys().map(|name| format!("--{name}={{{name}}} {{{{}}}}"));
    std::iter::once("/bin/run".to_string()).chain(arguments).collect()
}

/// Returns a job within its bounds, with or without each open part.
fn sound() -> impl Strategy<Value = JobManifest> {
    let artifact = (crate::values::name(), root())
        .prop_map(|(name, root)| ArtifactChoice { name, root: ArtifactRoot(root) });
    let parameters = btree_map(crate::values::name(), parameter(), 0..4);
    let named = (crate::values::name(), option::of(crate::values::name()));
    let program = (named, option::of(artifact), option::of(parameters));
    let inputs = (models(), models(), btree_map("[A-Z]{1,4}_X", "[ -~é]{0,8}", 0..3));
    let gang = (1..=1024_u32, 1..=16_u32, 0..100_u32, 0..=100_u32, 0..=64_u32, 0..=100_u32);
    let times = (1..=2_678_400_u64, 0..=3600_u64, 3..=2_678_400_u64, option::of(0..253_402_300_800_u64));
    let budget = (1..=31_622_400_u64, 0..=i64::MAX as u64, option::of(0..=i64::MAX as u64));
    let envelope = (resources(), vec("[ -~é]{0,8}", 0..3), option::of(budget), submitters());
    (program, inputs, gang, times, envelope).prop_map(|(program, inputs, gang, times, envelope)| {
        let (((name, project), artifact, parameters), (models, datasets, environment)) = (program, inputs);
        let (ranks, ranks_per_slot, more, priority, checkpoints, retries) = gang;
        let (resources, gpu_models, budget, submit) = envelope;
        JobManifest {
            name,
            project,
            artifact,
            command: parameters.as_ref().map(command),
            environment,
            parameters: parameters.unwrap_or_default(),
            models,
            datasets,
            ranks,
            ranks_per_slot,
            slots: (ranks.div_ceil(ranks_per_slot) + more).min(1024),
            resources,
            gpu_models,
            placement: Placement {
                regions: Vec::new(),
                node_selector: BTreeMap::new(),
                isolation: Isolation::Full,
            },
            egress: Vec::new(),
            priority,
            run_seconds_max: times.0,
            grace_seconds: times.1,
            autonomy_seconds: times.2,
            retries,
            checkpoints,
            budget: budget.map(|(period_seconds, gpu_seconds, spend_micro_units)| JobBudget {
                period_seconds,
                gpu_seconds: Some(gpu_seconds),
                spend_micro_units,
            }),
            submit,
            valid_until: times.3.map(|seconds| Millis(seconds * 1000)),
        }
    })
}

/// Returns a JSON string, which is a TOML string too, except for DEL.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn listed<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

fn inputs(models: &[ModelChoice]) -> String {
    let input = |model: &ModelChoice| format!("{{ name = \"{}\", root = \"{}\" }}", model.name, model.root);
    format!("[{}]", models.iter().map(input).collect::<Vec<_>>().join(", "))
}

fn rule(rule: &ParameterRule) -> String {
    match rule {
        ParameterRule::Integer { least, most } => format!("integer = {{ least = {least}, most = {most} }}"),
        ParameterRule::Decimal { least, most } => {
            format!("decimal = {{ least = \"{}\", most = \"{}\" }}", least.as_str(), most.as_str())
        }
        ParameterRule::Choice(words) => format!("choice = {}", listed(words)),
        ParameterRule::Text { length, characters } => {
            let characters = serde_json::to_value(characters).unwrap();
            format!("text = {{ length = {length}, characters = {characters} }}")
        }
    }
}

/// Writes the tables of a job, each after the fields at the top.
fn tables(job: &JobManifest) -> String {
    let mut out = format!("[resources]\ncpu_millicores = {}\n", job.resources.cpu_millicores);
    writeln!(out, "memory = \"{} B\"", job.resources.memory_bytes).unwrap();
    writeln!(out, "gpu_count = {}\n[placement]\nisolation = \"full\"", job.resources.gpu_count).unwrap();
    if let Some(ArtifactChoice { name, root }) = &job.artifact {
        writeln!(out, "[artifact]\nname = \"{name}\"\nroot = \"{root}\"").unwrap();
    }
    writeln!(out, "[environment]").unwrap();
    for (name, value) in &job.environment {
        writeln!(out, "{name} = {}", quoted(value)).unwrap();
    }
    writeln!(out, "[parameters]").unwrap();
    for (name, parameter) in &job.parameters {
        let default = parameter.default.as_ref().map(|value| format!(", default = {}", quoted(value)));
        let default = default.unwrap_or_default();
        writeln!(out, "\"{name}\" = {{ {}{default} }}", rule(&parameter.rule)).unwrap();
    }
    if let Some(JobBudget { period_seconds, gpu_seconds, spend_micro_units }) = &job.budget {
        writeln!(out, "[budget]\nperiod_seconds = {period_seconds}").unwrap();
        for (key, value) in [("gpu_seconds", gpu_seconds), ("spend_micro_units", spend_micro_units)] {
            if let Some(value) = value {
                writeln!(out, "{key} = {value}").unwrap();
            }
        }
    }
    let JobSubmitters { any_token, tokens, members, signers } = &job.submit;
    let holders: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    writeln!(out, "[submit]\nany_token = {any_token}\nmembers = {members}").unwrap();
    writeln!(out, "tokens = {}", listed(&holders)).unwrap();
    for (name, SubmitKey { ed25519, ml_dsa }) in signers {
        writeln!(out, "[submit.signers.\"{name}\"]\ned25519 = \"{ed25519}\"").unwrap();
        writeln!(out, "ml_dsa = \"{}\"", hex::encode(&ml_dsa.0)).unwrap();
    }
    out
}

/// Writes a job as TOML, with its defaults.
fn to_toml(job: &JobManifest) -> String {
    let mut out = format!("kind = \"job\"\nname = \"{}\"\n", job.name);
    if let Some(project) = &job.project {
        writeln!(out, "project = \"{project}\"").unwrap();
    }
    let open = [("artifact", job.artifact.is_none()), ("command", job.command.is_none())];
    let open: Vec<String> = open.iter().filter(|(_, open)| *open).map(|(part, _)| part.to_string()).collect();
    writeln!(out, "open = {}", listed(&open)).unwrap();
    if let Some(command) = &job.command {
        writeln!(out, "command = {}", listed(command)).unwrap();
    }
    writeln!(out, "models = {}\ndatasets = {}", inputs(&job.models), inputs(&job.datasets)).unwrap();
    writeln!(out, "gpu_models = {}", listed(&job.gpu_models)).unwrap();
    for (key, value) in [
        ("ranks", u64::from(job.ranks)),
        ("ranks_per_slot", u64::from(job.ranks_per_slot)),
        ("slots", u64::from(job.slots)),
        ("priority", u64::from(job.priority)),
        ("run_seconds_max", job.run_seconds_max),
        ("grace_seconds", job.grace_seconds),
        ("autonomy_seconds", job.autonomy_seconds),
        ("retries", u64::from(job.retries)),
        ("checkpoints", u64::from(job.checkpoints)),
    ] {
        writeln!(out, "{key} = {value}").unwrap();
    }
    if let Some(until) = job.valid_until {
        writeln!(out, "valid_until = {}", crate::manifests::date_text(until.0 / 1000)).unwrap();
    }
    out + &tables(job)
}

proptest! {
    #[test]
    fn a_written_job_is_read_back(job in sound()) {
        prop_assert_eq!(job.check_bounds(), Ok(()));
        let text = to_toml(&job);
        let expected = Manifest::Job(job);
        let read = Manifest::from_toml(&text);
        prop_assert_eq!(read.as_ref(), Ok(&expected), "{}", text);
    }

    /// A part that was deleted from a manifest is missed, and opens nothing.
    #[test]
    fn a_deleted_part_opens_nothing(job in sound()) {
        let text = to_toml(&job);
        let closed: Vec<&str> = text.lines().filter(|line| !line.starts_with("open = ")).collect();
        let read = Manifest::from_toml(&(closed.join("\n") + "\n"));
        prop_assert_eq!(read.is_ok(), !job.is_open());
        if let Err(error) = read {
            let missing = if job.artifact.is_none() { "artifact" } else { "command" };
            prop_assert_eq!(error.message, format!("missing field `{missing}`"));
        }
    }
}
