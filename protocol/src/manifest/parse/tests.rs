//! Tests of manifest parsing: valid manifests and common mistakes.

use super::*;
use proptest::prelude::*;

const GOOD: &str = r#"kind = "service"
name = "minilm"
task = "embed"

[model]
name = "minilm"
root = "1111111111111111111111111111111111111111111111111111111111111111"

[replicas]
min = 1
max = 3

[resources]
cpu_millicores = 500
memory = "512 MiB"
"#;

fn check(text: &str, expected: &str) {
    let found = match Manifest::from_toml(text) {
        Ok(_) => "ok".to_string(),
        Err(e) => format!("{} {}:{} {}: {}", e.code, e.line, e.column, e.field, e.message),
    };
    assert_eq!(found, expected, "{text}");
}

fn with(line: &str, replacement: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    GOOD.replace(line, replacement)
}

#[test]
fn the_smallest_service_is_read_with_its_defaults() {
    let Manifest::Service(service) = Manifest::from_toml(GOOD).expect("valid") else {
        panic!("kind = service reads as a service");
    };
    assert_eq!(service.replicas, ReplicaRange { min: 1, max: 3 });
    assert_eq!(service.resources.memory_bytes, 512 << 20);
    assert_eq!(service.runtime, Runtime::Candle);
    assert_eq!(service.batch_sequences_max, 32);
    assert_eq!(service.on_expiry, OnExpiry::Hold);
    assert_eq!((service.autonomy_seconds, service.autonomy_ms()), (86_400, 86_400_000));
    assert!(!service.exclusive);
    assert_eq!((service.priority, service.rollout), (50, RollOutRules::default()));
    assert!(!service.may_return(), "nothing earlier runs again unless the manifest says so");
}

#[test]
fn a_roll_out_that_may_take_nothing_away_has_a_slot_beside_the_wanted_ones() {
    let outcome = |min: u32, rollout: &str| {
        let text = with("min = 1", &format!("min = {min}")) + &format!("[rollout]\n{rollout}\n");
        Manifest::from_toml(&text).map_err(|error| format!("{}: {}", error.field, error.message))
    };
    assert!(outcome(1, "max_unavailable = 0").is_ok());
    assert!(outcome(3, "max_unavailable = 1").is_ok());
    let expected = "rollout.max_unavailable: is 0, and each of the 3 slots is always in use; accepted: 1 or \
                    more, or replicas.max above replicas.min";
    assert_eq!(outcome(3, "max_unavailable = 0").map(drop), Err(expected.into()));
}

#[test]
fn an_exclusive_service_has_the_autonomy_of_one_lease() {
    let autonomy = |lines: &str| {
        let text = with("kind = \"service\"\n", &format!("kind = \"service\"\n{lines}"));
        match Manifest::from_toml(&text) {
            Ok(Manifest::Service(service)) => Ok((service.autonomy_seconds, service.exclusive)),
            Ok(_) => panic!("kind = service reads as a service"),
            Err(error) => Err(format!("{} {}: {}", error.line, error.field, error.message)),
        }
    };
    for (lines, expected) in [
        ("", Ok((86_400, false))),
        ("exclusive = true\n", Ok((3, true))),
        ("exclusive = true\nautonomy_seconds = 3\n", Ok((3, true))),
        ("exclusive = false\nautonomy_seconds = 3\n", Ok((3, false))),
        ("autonomy_seconds = 2678400\n", Ok((2_678_400, false))),
        (
            "autonomy_seconds = 4\nexclusive = true\n",
            Err("2 autonomy_seconds: is 4, and the service is exclusive; accepted: 3, or exclusive = false"),
        ),
        ("autonomy_seconds = 2\n", Err("2 autonomy_seconds: is 2; accepted: 3 to 2678400")),
        ("autonomy_seconds = 2678401\n", Err("2 autonomy_seconds: is 2678401; accepted: 3 to 2678400")),
    ] {
        assert_eq!(autonomy(lines), expected.map_err(str::to_string), "{lines}");
    }
}

#[test]
fn errors_name_line_and_field() {
    check(GOOD, "ok");
    check(
        &with("min = 1", "min = 4"),
        "manifest-invalid 10:7 replicas.min: is 4, more than replicas.max, which is 3",
    );
    check(&with("max = 3", "max = 0"), "manifest-invalid 11:7 replicas.max: is 0; accepted: 1 to 1024");
    check(
        &with("min = 1", "min = \"one\""),
        "manifest-wrong-type 10:7 replicas.min: invalid type: string \"one\", expected u32",
    );
    check(
        &with("min = 1", "minimum = 1"),
        "manifest-unknown-field 10:1 replicas.minimum: unknown field `minimum`, expected `min` or `max`",
    );
    check(
        &with("cpu_millicores = 500", "cpu_millicores = 0"),
        "manifest-invalid 14:18 resources.cpu_millicores: is 0; accepted: 50 to 4096000",
    );
    check(
        &with("512 MiB", "512 MB"),
        "manifest-invalid 15:10 resources.memory: `512 MB`: use KiB, MiB, GiB or TiB (powers of 1024)",
    );
    check(
        &with("512 MiB", "1000 TiB"),
        "manifest-invalid 15:10 resources.memory: is 1000 TiB; accepted: 32 MiB to 64 TiB",
    );
    check(
        &with("\"service\"", "\"daemon\""),
        "manifest-invalid 1:8 kind: `daemon` is not a kind; known: service, job, edge",
    );
}

#[test]
fn unsupported_features_have_their_own_codes() {
    let egress = with("task = \"embed\"", "task = \"embed\"\negress = [\"example.org\"]");
    let error = Manifest::from_toml(&egress).expect_err("egress");
    assert_eq!((error.code, error.line), (error_code::EGRESS_NOT_BUILT, 4));
    let process = with("task = \"embed\"", "task = \"embed\"\nruntime = \"process\"");
    let error = Manifest::from_toml(&process).expect_err("process");
    assert_eq!((error.code, error.line), (error_code::KIND_NOT_BUILT, 4));
}

#[test]
fn gpu_requests_must_make_sense() {
    let with_gpu = |lines: &str| with("cpu_millicores = 500", &format!("cpu_millicores = 500\n{lines}"));
    for good in ["gpu_count = 8", "gpu_share_percent = 25", "gpu_count = 1\ngpu_memory = \"40 GiB\""] {
        check(&with_gpu(good), "ok");
    }
    for bad in [
        "gpu_count = 65",
        "gpu_share_percent = 100",
        "gpu_share_percent = 0",
        "gpu_count = 1\ngpu_share_percent = 50",
        "gpu_memory = \"40 GiB\"",
    ] {
        assert!(Manifest::from_toml(&with_gpu(bad)).is_err(), "{bad}");
    }
}

#[test]
fn times_need_an_offset() {
    let until = |text: &str| with("task = \"embed\"", &format!("task = \"embed\"\nvalid_until = {text}"));
    for (text, expected) in [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2000-03-01T00:00:00Z", Some(951_868_800_000)),
        ("2027-01-31T12:00:00Z", Some(1_801_396_800_000)),
        ("2027-01-31T13:00:00+01:00", Some(1_801_396_800_000)),
        ("2000-02-29T00:00:00Z", Some(951_782_400_000)),
        ("9999-12-31T23:59:59-23:59", Some(253_402_387_139_000)),
        ("0000-01-01T00:00:00Z", None),
        ("2027-02-29T00:00:00Z", None),
        ("2027-04-31T00:00:00Z", None),
        ("2027-01-31T12:00:00", None),
        ("2027-01-31", None),
        ("1969-12-31T00:00:00Z", None),
    ] {
        let found = Manifest::from_toml(&until(text)).ok().map(|manifest| match manifest {
            Manifest::Service(service) => service.valid_until.map_or(0, |at| at.0),
            _ => unreachable!("kind = service"),
        });
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn jobs_and_rollouts_are_read_and_checked() {
    let root = "1".repeat(64);
    let job = format!(
        "kind = \"job\"\nname = \"train\"\nsubmit.members = true\ncommand = [\"train.py\"]\nranks = 4\n\
         run_seconds_max = 3600\nartifact = {{ name = \"trainer\", root = \"{root}\" }}\n\
         [resources]\ncpu_millicores = 1000\nmemory = \"1 GiB\"\n"
    );
    check(&job, "ok");
    check(
        &job.replace("[\"train.py\"]", "[]"),
        "manifest-invalid 4:11 command: is empty; name the entry point",
    );
    let edge = format!(
        "kind = \"edge\"\nname = \"detector\"\nsites = \"ca-*\"\nwaves_percent = [1, 10, 100]\n\
         [model]\nname = \"detector\"\nroot = \"{root}\"\n"
    );
    check(&edge, "ok");
    check(
        &edge.replace("[1, 10, 100]", "[10, 1, 100]"),
        "manifest-invalid 4:17 waves_percent: must rise and end at 100",
    );
    check(
        &edge.replace("[1, 10, 100]", "[]"),
        "manifest-invalid 4:17 waves_percent: must rise and end at 100",
    );
}

#[test]
fn a_manifest_too_long_is_not_parsed() {
    let long = format!("{GOOD}#{}", "x".repeat(limits::MANIFEST_BYTES_MAX));
    let error = Manifest::from_toml(&long).expect_err("too long");
    assert_eq!((error.line, error.field.as_str()), (1, "manifest"));
}

#[test]
fn the_longest_manifest_can_be_proposed() {
    let root = "1".repeat(64);
    let edge = |sites: &str| {
        format!(
            "kind = \"edge\"\nname = \"detector\"\nsites = \"{sites}\"\nwaves_percent = [100]\n\
             [model]\nname = \"detector\"\nroot = \"{root}\"\n"
        )
    };
    // The one text of any length: every other list and text of a manifest has a bound of its own.
    let count = limits::MANIFEST_BYTES_MAX - edge("").len();
    let longest = edge(&"x".repeat(count));
    let manifest = Manifest::from_toml(&longest).expect("within the limit");
    let bytes = to_bytes(&manifest);
    assert!(longest.len() == limits::MANIFEST_BYTES_MAX && bytes.len() > count);
    assert!(bytes.len() < limits::PROPOSAL_BYTES_MAX / 2, "{} bytes", bytes.len());
}

proptest! {
    #[test]
    fn any_text_ends_in_a_manifest_or_an_error(text in ".{0,200}") {
        let _ = Manifest::from_toml(&text);
    }

    #[test]
    fn a_damaged_manifest_never_panics(at in 0usize..GOOD.len(), byte in 0u8..128) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes[at] = byte;
        let text = String::from_utf8(bytes).expect("ASCII");
        let _ = Manifest::from_toml(&text);
    }

    #[test]
    fn a_manifest_survives_canonical_form(min in 0u32..10, more in 1u32..10, cpu in 50u64..100_000) {
        let text = with("min = 1\nmax = 3", &format!("min = {min}\nmax = {}", min + more))
            .replace("cpu_millicores = 500", &format!("cpu_millicores = {cpu}"));
        let manifest = Manifest::from_toml(&text).expect("valid");
        let bytes = to_bytes(&manifest);
        prop_assert_eq!(crate::canonical::from_bytes::<Manifest>(&bytes, 65_536), Ok(manifest));
    }
}
