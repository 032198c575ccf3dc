//! Properties of manifests as TOML: each field is read, and each mistake in a field is reported with its
//! code, its line, its path and the accepted values.

use crate::workloads::{self, EXPIRIES, FAILURES, ISOLATIONS, TASKS};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::ModelRoot;
use protocol::error_code::{self, ErrorCode};
use protocol::manifest::{
    Manifest, ModelChoice, Placement, ReplicaRange, Resources, RollOutRules, Runtime, ServiceManifest,
    parse_bytes,
};
use protocol::{Digest, Millis};
use serde_json::Value as Json;
use std::fmt::Write;

/// A service with every field.
const SERVICE: &str = r#"kind = "service"
name = "chat"
task = "generate"
runtime = "candle"
egress = []
spend_micro_units_per_hour = 2500000
valid_until = 2027-01-31T12:00:00Z
on_expiry = "drain"
context_tokens_max = 4096
batch_sequences_max = 64
autonomy_seconds = 600
exclusive = false
priority = 70
[model]
name = "llama"
root = "1111111111111111111111111111111111111111111111111111111111111111"
[replicas]
min = 0
max = 3
[resources]
cpu_millicores = 500
memory = "512 MiB"
gpu_share_percent = 25
gpu_memory = "10 GiB"
[placement]
regions = ["eu"]
isolation = "full"
[placement.node_selector]
disk = "ssd"
[rollout]
ready_seconds = 10
max_unavailable = 2
failure_limit = 5
on_failure = "return"
"#;

/// A job with every field that stands on a line of its own.
const JOB: &str = r#"kind = "job"
name = "train"
open = []
command = ["train.py"]
ranks = 4
ranks_per_slot = 16
slots = 1024
run_seconds_max = 3600
grace_seconds = 30
autonomy_seconds = 3600
valid_until = 2027-01-31T12:00:00Z
priority = 10
retries = 3
checkpoints = 2
egress = []
gpu_models = []
models = []
datasets = []
[artifact]
name = "trainer"
root = "2222222222222222222222222222222222222222222222222222222222222222"
[environment]
XLA_FLAGS = "--xla_x"
[resources]
cpu_millicores = 1000
memory = "1 GiB"
gpu_count = 1
[placement]
regions = []
[budget]
period_seconds = 86400
gpu_seconds = 3600
spend_micro_units = 1000000
[submit]
any_token = false
tokens = ["ci"]
members = false
"#;

/// A rollout with every field.
const EDGE: &str = r#"kind = "edge"
name = "detector"
sites = "ca-*"
waves_percent = [1, 10, 100]
rollback = "4444444444444444444444444444444444444444444444444444444444444444"
[model]
name = "detector"
root = "3333333333333333333333333333333333333333333333333333333333333333"
"#;

/// Fields that a manifest may leave out.
const OPTIONAL: [&str; 35] = [
    "runtime",
    "egress",
    "spend_micro_units_per_hour",
    "valid_until",
    "on_expiry",
    "context_tokens_max",
    "batch_sequences_max",
    "autonomy_seconds",
    "exclusive",
    "priority",
    "rollout.ready_seconds",
    "rollout.max_unavailable",
    "rollout.failure_limit",
    "rollout.on_failure",
    "resources.gpu_count",
    "resources.gpu_memory",
    "placement.regions",
    "placement.isolation",
    "placement.node_selector.disk",
    "rollback",
    "open",
    "ranks_per_slot",
    "slots",
    "grace_seconds",
    "retries",
    "checkpoints",
    "gpu_models",
    "models",
    "datasets",
    "environment.XLA_FLAGS",
    "budget.gpu_seconds",
    "budget.spend_micro_units",
    "submit.any_token",
    "submit.members",
    SUBMIT_TOKENS,
];

/// Field that another one needs.
const GPU_SHARE: &str = "resources.gpu_share_percent";
/// The one field by which the sample of a job lets a party submit.
const SUBMIT_TOKENS: &str = "submit.tokens";
/// Fields that are true or false.
const FLAGS: [&str; 3] = ["exclusive", "submit.any_token", "submit.members"];

/// Fields whose types the TOML parser can read from a table: enumerations and times.
const FROM_TABLES: [&str; 6] =
    ["task", "runtime", "on_expiry", "placement.isolation", "valid_until", "rollout.on_failure"];

/// A line `key = value` of a manifest.
struct Assignment {
    /// Index of the line, from 0.
    at: usize,
    path: String,
    key: &'static str,
}

fn assignments(text: &'static str) -> Vec<Assignment> {
    let (mut table, mut found) = ("", Vec::new());
    for (at, line) in text.lines().enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_end_matches(']');
        } else if let Some((key, _)) = line.split_once(" = ") {
            let path = if table.is_empty() { key.to_string() } else { format!("{table}.{key}") };
            found.push(Assignment { at, path, key });
        }
    }
    found
}

/// Returns the text with the line at this index replaced by these lines.
fn with_lines(text: &str, at: usize, lines: &[&str]) -> String {
    let mut all: Vec<&str> = text.lines().collect();
    all.splice(at..=at, lines.iter().copied());
    all.join("\n") + "\n"
}

/// Checks that the text is refused with this code on this line, counted from 0, for this field.
fn refused(text: &str, code: ErrorCode, at: usize, path: &str) -> String {
    let error = Manifest::from_toml(text).expect_err(path);
    let found = (error.code, error.line, error.field.as_str());
    assert_eq!(found, (code, at + 1, path), "{}\n{text}", error.message);
    assert_eq!(error.to_string(), format!("{code}: line {}, {path}: {}", at + 1, error.message));
    error.message
}

#[test]
fn a_missing_field_is_named_unless_it_is_optional() {
    for text in [SERVICE, JOB, EDGE] {
        assert!(Manifest::from_toml(text).is_ok(), "{text}");
        for Assignment { at, path, key } in assignments(text) {
            let without = with_lines(text, at, &[]);
            match Manifest::from_toml(&without) {
                Err(error) if error.message == format!("missing field `{key}`") => {
                    assert!(!OPTIONAL.contains(&path.as_str()), "{path} is optional");
                    assert_eq!((error.code, error.field), (error_code::MANIFEST_INVALID, path));
                }
                Err(error) => {
                    // Without its share of a GPU, a sample asks for GPU memory without a GPU.
                    let needed = [(GPU_SHARE, "resources.gpu_memory"), (SUBMIT_TOKENS, "submit")];
                    assert!(needed.contains(&(path.as_str(), error.field.as_str())), "{path}: {error}");
                }
                Ok(_) => assert!(OPTIONAL.contains(&path.as_str()), "{path} is not optional"),
            }
        }
    }
}

#[test]
fn a_value_of_another_type_is_reported_where_it_is() {
    for text in [SERVICE, JOB, EDGE] {
        for Assignment { at, path, key } in assignments(text) {
            let table = Some("{ a = 1 }").filter(|_| !FROM_TABLES.contains(&path.as_str()));
            let other = if FLAGS.contains(&path.as_str()) { "1" } else { "true" };
            for value in [other, "1.5"].into_iter().chain(table) {
                let changed = with_lines(text, at, &[&format!("{key} = {value}")]);
                let message = refused(&changed, error_code::MANIFEST_WRONG_TYPE, at, &path);
                assert!(message.starts_with("invalid type: "), "{path}: {message}");
            }
        }
    }
}

#[test]
fn an_unknown_field_is_reported_where_it_is() {
    for text in [SERVICE, JOB, EDGE] {
        for Assignment { at, path, key } in assignments(text) {
            let line = text.lines().nth(at).unwrap();
            let added = with_lines(text, at, &[line, "zzz = 1"]);
            let beside = format!("{}zzz", path.strip_suffix(key).unwrap());
            // A selector and an environment have no fixed keys; their values are texts.
            let is_free = path.starts_with("placement.node_selector") || path.starts_with("environment");
            let code =
                if is_free { error_code::MANIFEST_WRONG_TYPE } else { error_code::MANIFEST_UNKNOWN_FIELD };
            refused(&added, code, at + 1, &beside);
            let twice = with_lines(text, at, &[line, line]);
            assert_eq!(refused(&twice, error_code::MANIFEST_INVALID, at + 1, &path), "duplicate key");
        }
    }
}

/// Number of a manifest with its smallest and its largest value.
const BOUNDED: [(&str, &str, u64, u64); 20] = [
    (SERVICE, "autonomy_seconds", 3, 31 * 24 * 3600),
    (SERVICE, "context_tokens_max", 1, 1 << 20),
    (SERVICE, "batch_sequences_max", 1, 1024),
    (SERVICE, "priority", 1, 100),
    (SERVICE, "rollout.ready_seconds", 0, 3600),
    (SERVICE, "rollout.max_unavailable", 0, 1024),
    (SERVICE, "rollout.failure_limit", 1, 100),
    (SERVICE, "replicas.max", 1, 1024),
    (SERVICE, "resources.cpu_millicores", 50, 4_096_000),
    (SERVICE, "resources.gpu_share_percent", 1, 99),
    (JOB, "resources.gpu_count", 0, 64),
    (JOB, "ranks", 1, 4096),
    (JOB, "ranks_per_slot", 1, 16),
    (JOB, "slots", 1, 1024),
    (JOB, "run_seconds_max", 1, 31 * 24 * 3600),
    (JOB, "grace_seconds", 0, 3600),
    (JOB, "autonomy_seconds", 3, 31 * 24 * 3600),
    (JOB, "priority", 0, 100),
    (JOB, "retries", 0, 100),
    (JOB, "checkpoints", 0, 64),
];

/// Amounts of memory with their bounds in bytes.
const BOUNDED_AMOUNTS: [(&str, &str, u64, u64); 3] = [
    (SERVICE, "resources.memory", 32 << 20, 64 << 40),
    (SERVICE, "resources.gpu_memory", 1, 64 << 40),
    (JOB, "resources.memory", 32 << 20, 64 << 40),
];

/// Sets a field of a sample to a value and checks that exactly the values in range are accepted.
fn is_bounded(
    (text, path, min, max): (&'static str, &str, u64, u64),
    value: u64,
    written: &str,
) -> Result<(), TestCaseError> {
    let field = assignments(text).into_iter().find(|field| field.path == path).unwrap();
    let changed = with_lines(text, field.at, &[&format!("{} = {written}", field.key)]);
    let read = Manifest::from_toml(&changed);
    prop_assert_eq!(read.is_ok(), (min..=max).contains(&value), "{} = {}: {:?}", path, written, read);
    if read.is_err() {
        let message = refused(&changed, error_code::MANIFEST_INVALID, field.at, path);
        prop_assert!(message.contains("; accepted: "), "{}", message);
    }
    Ok(())
}

/// Returns numbers near the bounds of a field, and any others that fit its type.
fn near(min: u64, max: u64) -> impl Strategy<Value = u64> {
    let edges = vec![0, min.saturating_sub(1), min, min + 1, max - 1, max, max + 1];
    prop_oneof![prop::sample::select(edges), 0..=u64::from(u32::MAX)]
}

proptest! {
    #[test]
    fn each_number_has_exactly_its_bounds(
        (field, value) in prop::sample::select(BOUNDED.to_vec())
            .prop_flat_map(|field| (Just(field), near(field.2, field.3))),
    ) {
        is_bounded(field, value, &value.to_string())?;
    }

    #[test]
    fn each_amount_has_exactly_its_bounds(
        (field, value) in prop::sample::select(BOUNDED_AMOUNTS.to_vec())
            .prop_flat_map(|field| (Just(field), near(field.2, field.3))),
    ) {
        is_bounded(field, value, &format!("\"{value}\""))?;
    }

    /// A minimum is accepted up to the maximum.
    #[test]
    fn a_service_has_no_more_replicas_than_it_may(min in 0..1100_u32, max in 1..=1024_u32) {
        let text = SERVICE.replace("min = 0\nmax = 3", &format!("min = {min}\nmax = {max}"));
        prop_assert_eq!(Manifest::from_toml(&text).is_ok(), min <= max);
        if min > max {
            let message = refused(&text, error_code::MANIFEST_INVALID, 17, "replicas.min");
            prop_assert_eq!(message, format!("is {min}, more than replicas.max, which is {max}"));
        }
    }

    /// Names of variants are exact: no other text is read as one.
    #[test]
    fn a_variant_has_one_name(
        (field, text) in prop::sample::select(vec![
            ("task", "embed generate rerank"), ("runtime", "candle process"), ("on_expiry", "hold drain"),
            ("placement.isolation", "none same_uid full"), ("rollout.on_failure", "hold return"),
        ]),
        name in "[a-z_]{0,8}|Embed|FULL|sameUid|same-uid|drain ",
    ) {
        let field = assignments(SERVICE).into_iter().find(|known| known.path == field).unwrap();
        let changed = with_lines(SERVICE, field.at, &[&format!("{} = \"{name}\"", field.key)]);
        let known = text.split(' ').any(|known| known == name);
        match Manifest::from_toml(&changed) {
            Ok(_) => prop_assert!(known, "{} = {}", field.path, name),
            Err(error) if known => prop_assert_eq!(error.code, error_code::KIND_NOT_BUILT),
            Err(_) => {
                let message = refused(&changed, error_code::MANIFEST_INVALID, field.at, &field.path);
                prop_assert!(text.split(' ').all(|known| message.contains(known)), "{}", message);
            }
        }
    }

    /// An error points into its text, for any damage to it.
    #[test]
    fn an_error_points_into_its_text(at in 0..SERVICE.len(), length in 0..20_usize, with in ".{0,4}") {
        let mut text = SERVICE.to_string();
        text.replace_range(at..(at + length).min(SERVICE.len()), &with);
        let Err(error) = Manifest::from_toml(&text) else { return Ok(()) };
        let line = text.split('\n').nth(error.line - 1);
        let columns = line.map(|line| line.chars().count() + 1);
        prop_assert!(columns.is_some_and(|columns| (1..=columns).contains(&error.column)), "{}", error);
        prop_assert!(!error.field.is_empty() && !error.message.is_empty(), "{:?}", error);
    }

    /// Bounds name the field that they refuse, as TOML does.
    #[test]
    fn an_error_of_bounds_names_a_field(manifest in workloads::manifest()) {
        let Err(error) = manifest.check_bounds() else { return Ok(()) };
        let samples = [SERVICE, JOB, EDGE].map(assignments);
        let mut known = samples.iter().flatten().map(|field| field.path.as_str());
        let field = error.field.split('[').next().unwrap();
        let is_known = known.any(|path| field == path || path.starts_with(&format!("{field}.")));
        let is_free = ["placement.node_selector.", "environment.", "parameters", "submit.signers"];
        let is_free = is_free.iter().any(|path| field.starts_with(path));
        prop_assert!(is_known || is_free, "{}", error);
        prop_assert_eq!(error.to_string(), format!("{} {}", error.field, error.message));
    }
}

fn label() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{0,15}"
}

fn resources() -> impl Strategy<Value = Resources> {
    let gpus = prop_oneof![
        Just((0, 0, 0)),
        (1..=64_u32, 0..=64_u64 << 40).prop_map(|(count, memory)| (count, 0, memory)),
        (1..=99_u32, 0..=64_u64 << 40).prop_map(|(share, memory)| (0, share, memory)),
    ];
    (50..=4_096_000_u64, 32_u64 << 20..=64 << 40, gpus).prop_map(|(cpu_millicores, memory_bytes, gpus)| {
        let (gpu_count, gpu_share_percent, gpu_memory_bytes) = gpus;
        Resources { cpu_millicores, memory_bytes, gpu_count, gpu_share_percent, gpu_memory_bytes }
    })
}

/// Returns a service within its bounds.
fn sound() -> impl Strategy<Value = ServiceManifest> {
    let model = (crate::values::name(), any::<[u8; 31]>()).prop_map(|(name, rest)| {
        let root = [&rest[..], &[1]].concat().try_into().unwrap();
        ModelChoice { name, root: ModelRoot(Digest(root)) }
    });
    let replicas =
        (1..=1024_u32, any::<u32>()).prop_map(|(max, min)| ReplicaRange { min: min % (max + 1), max });
    let placement =
        (vec(label(), 0..4), btree_map(label(), label(), 0..4), prop::sample::select(&ISOLATIONS))
            .prop_map(|(regions, node_selector, isolation)| Placement { regions, node_selector, isolation });
    let seconds = option::of((0..253_402_300_800_u64).prop_map(|seconds| Millis(seconds * 1000)));
    let spend = option::of(0..=i64::MAX as u64);
    let workload = (crate::values::name(), model, prop::sample::select(&TASKS), replicas);
    let autonomy = prop_oneof![Just((3_u64, true)), (3..=2_678_400_u64).prop_map(|seconds| (seconds, false))];
    let rollout = (0..=3600_u32, 1..=1024_u32, 1..=100_u32, prop::sample::select(&FAILURES)).prop_map(
        |(ready_seconds, max_unavailable, failure_limit, on_failure)| RollOutRules {
            ready_seconds,
            max_unavailable,
            failure_limit,
            on_failure,
        },
    );
    let engine = (prop::sample::select(&EXPIRIES), option::of(1..=1_u32 << 20), 1..=1024_u32, autonomy);
    let engine = (engine, 1..=100_u32, rollout);
    (workload, resources(), placement, spend, seconds, engine).prop_map(
        |(workload, resources, placement, spend, valid_until, (engine, priority, rollout))| ServiceManifest {
            name: workload.0,
            model: workload.1,
            task: workload.2,
            runtime: Runtime::Candle,
            replicas: workload.3,
            resources,
            placement,
            egress: Vec::new(),
            spend_micro_units_per_hour: spend,
            valid_until,
            on_expiry: engine.0,
            autonomy_seconds: engine.3.0,
            exclusive: engine.3.1,
            priority,
            rollout,
            context_tokens_max: engine.1,
            batch_sequences_max: engine.2,
        },
    )
}

/// Returns a JSON string, which is a TOML string too, except for DEL.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// Writes a service as TOML. Absent options and defaults are left out.
fn to_toml(service: &ServiceManifest) -> String {
    let json = serde_json::to_value(service).unwrap();
    let mut out = "kind = \"service\"\n".to_string();
    let mut line = |key: &str, value: &Json| match value {
        Json::Null => {}
        value => writeln!(out, "{key} = {value}").unwrap(),
    };
    for key in ["name", "task", "on_expiry", "spend_micro_units_per_hour", "context_tokens_max"] {
        line(key, &json[key]);
    }
    for key in ["batch_sequences_max", "autonomy_seconds", "exclusive", "priority"] {
        line(key, &json[key]);
    }
    if let Some(until) = service.valid_until {
        writeln!(out, "valid_until = {}", date_text(until.0 / 1000)).unwrap();
    }
    let Resources { cpu_millicores, memory_bytes, gpu_count, gpu_share_percent, gpu_memory_bytes } =
        service.resources;
    writeln!(out, "model = {{ name = {}, root = {} }}", json["model"]["name"], json["model"]["root"])
        .unwrap();
    writeln!(out, "[replicas]\nmax = {}\nmin = {}", service.replicas.max, service.replicas.min).unwrap();
    writeln!(out, "[resources]\ncpu_millicores = {cpu_millicores}\nmemory = \"{memory_bytes} B\"").unwrap();
    for (key, value) in [("gpu_count", gpu_count), ("gpu_share_percent", gpu_share_percent)] {
        if value > 0 {
            writeln!(out, "{key} = {value}").unwrap();
        }
    }
    if gpu_memory_bytes > 0 {
        writeln!(out, "gpu_memory = \"{gpu_memory_bytes}\"").unwrap();
    }
    let regions: Vec<String> = service.placement.regions.iter().map(|region| quoted(region)).collect();
    let isolation = &json["placement"]["isolation"];
    writeln!(out, "[placement]\nregions = [{}]\nisolation = {isolation}", regions.join(",")).unwrap();
    writeln!(out, "[placement.node_selector]").unwrap();
    for (key, value) in &service.placement.node_selector {
        writeln!(out, "{} = {}", quoted(key), quoted(value)).unwrap();
    }
    writeln!(out, "[rollout]").unwrap();
    for key in ["ready_seconds", "max_unavailable", "failure_limit", "on_failure"] {
        writeln!(out, "{key} = {}", json["rollout"][key]).unwrap();
    }
    out
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: usize) -> u64 {
    [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1]
}

/// Returns a time as a date, by counting years and months one by one.
pub(crate) fn date_text(seconds: u64) -> String {
    let (mut days, mut year, mut month) = (seconds / 86_400, 1970, 1);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    while days >= days_of(year, month) {
        days -= days_of(year, month);
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

proptest! {
    /// A manifest within its bounds is read back from TOML, from JSON and from canonical form.
    #[test]
    fn a_written_manifest_is_read_back(service in sound()) {
        prop_assert_eq!(service.check_bounds(), Ok(()));
        let text = to_toml(&service);
        let expected = Manifest::Service(service);
        let read = Manifest::from_toml(&text);
        prop_assert_eq!(read.as_ref(), Ok(&expected), "{}", text);
        let Manifest::Service(service) = &expected else { unreachable!("a service was written") };
        prop_assert_eq!(expected.name(), &service.name);
    }

    /// A time is read with any offset from UTC.
    #[test]
    fn an_end_is_a_point_in_time(seconds in 86_400..253_402_214_400_u64, minutes in -1439..=1439_i64) {
        let local = date_text(seconds.checked_add_signed(minutes * 60).unwrap());
        let sign = if minutes < 0 { '-' } else { '+' };
        let (hours, rest) = (minutes.abs() / 60, minutes.abs() % 60);
        let written = format!("{}{sign}{hours:02}:{rest:02}", local.trim_end_matches('Z'));
        let text = SERVICE.replace("2027-01-31T12:00:00Z", &written);
        let Ok(Manifest::Service(service)) = Manifest::from_toml(&text) else {
            panic!("{written}: {:?}", Manifest::from_toml(&text));
        };
        prop_assert_eq!(service.valid_until, Some(Millis(seconds * 1000)), "{}", written);
    }

    /// Amounts in a manifest are read as amounts elsewhere.
    #[test]
    fn memory_is_an_amount(
        number in 0..1_u32 << 20,
        unit in prop::sample::select(vec!["", "B", "KiB", "MiB", "GB"]),
    ) {
        let amount = format!("{number} {unit}");
        let text = SERVICE.replace("512 MiB", &amount);
        match (parse_bytes(&amount), Manifest::from_toml(&text)) {
            (Ok(bytes), Ok(Manifest::Service(service))) => {
                prop_assert_eq!(service.resources.memory_bytes, bytes);
            }
            (Ok(bytes), Err(error)) => {
                prop_assert!(bytes < 32 << 20 && error.message.contains("32 MiB to 64 TiB"), "{}", error);
            }
            (Err(reason), Err(error)) => prop_assert_eq!(error.message, reason),
            (read, manifest) => panic!("{read:?}, {manifest:?}"),
        }
    }
}
