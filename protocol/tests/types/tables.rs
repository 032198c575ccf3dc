//! Table-driven tests of text and bytes from outside: manifests, names, amounts, codes, limits, and CBOR from
//! untrusted peers. Each table is a text file in `cases/`; `REFRESH_GOLDEN=1 cargo test -p protocol` rewrites
//! its answers.

use protocol::canonical::{CanonicalError, from_bytes};
use protocol::governance::{Quorum, SubjectVersion};
use protocol::manifest::{Manifest, format_bytes, parse_bytes};
use protocol::{CircleId, Digest, ErrorCode, NodeId, ServiceName, Signature, error_code, limits};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Computes a table again and compares it with the file, or rewrites the file.
fn check(file: &str, compute: impl Fn(&str) -> String) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file);
    let written = std::fs::read_to_string(&path).unwrap();
    let computed = compute(&written);
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        let mut out = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        std::io::Write::write_all(&mut out, computed.as_bytes()).unwrap();
        return;
    }
    for (at, (computed, written)) in computed.lines().zip(written.lines()).enumerate() {
        assert_eq!(computed, written, "{file}:{}; if meant: REFRESH_GOLDEN=1 cargo test -p protocol", at + 1);
    }
    let hint = "if meant: REFRESH_GOLDEN=1 cargo test -p protocol";
    assert_eq!(computed.len(), written.len(), "{file} has another length; {hint}");
}

/// Checks a table of lines `input | answer`, where `answer` computes the second column.
fn check_lines(file: &str, answer: impl Fn(&str) -> String) {
    check(file, |text| {
        let mut computed = String::new();
        for line in text.lines() {
            match line.split_once(" | ") {
                Some((input, _)) if !line.starts_with('#') => {
                    writeln!(computed, "{input} | {}", answer(input)).unwrap()
                }
                _ => writeln!(computed, "{line}").unwrap(),
            }
        }
        computed
    });
}

/// Applies edits to a base manifest: `- line` removes a line, `@ line` moves behind one, `+ line` inserts
/// one.
fn edited(base: &str, edits: &[&str]) -> String {
    let mut lines: Vec<String> = base.lines().map(str::to_string).collect();
    let mut at = lines.len();
    for edit in edits {
        let (verb, line) = edit.split_at(2);
        let position = lines.iter().position(|known| known == line);
        match verb {
            "- " => {
                at = position.unwrap_or_else(|| panic!("no line `{line}`"));
                lines.remove(at);
            }
            "@ " => at = position.unwrap_or_else(|| panic!("no line `{line}`")) + 1,
            "+ " => {
                lines.insert(at, line.to_string());
                at += 1;
            }
            other => panic!("no such edit: {other}"),
        }
    }
    lines.join("\n") + "\n"
}

fn leaves(json: &Json, path: &str, out: &mut BTreeMap<String, String>) {
    match json {
        Json::Object(fields) => {
            for (key, value) in fields {
                leaves(value, &format!("{path}.{key}"), out);
            }
        }
        plain => drop(out.insert(path.trim_start_matches('.').to_string(), plain.to_string())),
    }
}

fn leaves_of(manifest: &Manifest) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    leaves(&serde_json::to_value(manifest).unwrap(), "", &mut out);
    out
}

#[test]
fn manifests_are_read_or_refused_with_their_line() {
    check("manifests.txt", |text| {
        let (mut computed, mut base) = (String::new(), String::new());
        for block in text.split("\n\n") {
            let lines: Vec<&str> = block.lines().collect();
            if lines.first().is_some_and(|head| head.starts_with("== ")) {
                base = lines[1..].iter().map(|line| format!("{line}\n")).collect();
                base = base.replace("~\n", "\n");
                assert!(Manifest::from_toml(&base).is_ok(), "{base}");
                write!(computed, "{}\n\n", block.trim_end()).unwrap();
                continue;
            }
            let is_edit = |line: &&&str| ["- ", "+ ", "@ "].iter().any(|verb| line.starts_with(verb));
            let edits: Vec<&str> = lines.iter().filter(is_edit).copied().collect();
            for line in lines.iter().filter(|line| !line.starts_with("->") && !line.starts_with("   ")) {
                writeln!(computed, "{line}").unwrap();
            }
            if lines.first().is_some_and(|head| head.starts_with("= ")) {
                computed.push_str(&verdict(&base, &edits));
            }
            computed.push('\n');
        }
        computed.trim_end().to_string() + "\n"
    });
}

fn verdict(base: &str, edits: &[&str]) -> String {
    match Manifest::from_toml(&edited(base, edits)) {
        Err(e) => {
            format!("-> {} {}:{} {}: {}\n", e.code, e.line, e.column, e.field, e.message.replace('\n', " "))
        }
        Ok(manifest) => {
            let before = leaves_of(&Manifest::from_toml(base).unwrap());
            let changed =
                leaves_of(&manifest).into_iter().filter(|(path, value)| before.get(path) != Some(value));
            let lines = changed.map(|(path, value)| format!("   {path} = {value}\n"));
            format!("-> ok\n{}", lines.collect::<String>())
        }
    }
}

#[test]
fn names_are_narrow_and_say_why() {
    check_lines("names.txt", |text| {
        let text: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        text.parse::<ServiceName>()
            .map_or_else(|reason| reason, |name| format!("ok, {}", name.as_str().len()))
    });
}

#[test]
fn ids_have_one_spelling() {
    check_lines("ids.txt", |text| {
        let (kind, text) = text.split_once(' ').unwrap();
        let text = text.replace("<64>", &"0a".repeat(32)).replace("<128>", &"0b".repeat(64));
        let text = text.trim_matches('\'');
        fn outcome<T: std::fmt::Display>(read: Result<T, String>, text: &str) -> String {
            read.map_or_else(
                |reason| reason,
                |id| if id.to_string() == text { "ok".into() } else { "altered".into() },
            )
        }
        match kind {
            "digest" => outcome(text.parse::<Digest>(), text),
            "circle" => outcome(text.parse::<CircleId>(), text),
            "node" => outcome(text.parse::<NodeId>(), text),
            "signature" => outcome(text.parse::<Signature>(), text),
            other => panic!("no such kind: {other}"),
        }
    });
}

#[test]
fn amounts_are_read_and_written_in_powers_of_1024() {
    check_lines("amounts.txt", |text| {
        let text = text.trim_matches('\'');
        parse_bytes(text).map_or_else(|reason| reason, |bytes| format!("{bytes} | {}", format_bytes(bytes)))
    });
}

#[test]
fn paths_of_a_model_stay_inside_it() {
    check_lines("paths.txt", |text| {
        let path: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        if protocol::model::is_safe_path(&path) { "safe".into() } else { "refused".into() }
    });
}

/// Scripts depend on the codes: a release may add a code, but not remove or change one.
#[test]
fn codes_are_stable() {
    let codes = |_: &str| {
        let mut codes: Vec<&str> = error_code::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.join("\n") + "\n"
    };
    check("codes.txt", codes);
    for code in error_code::ALL {
        assert_eq!(serde_json::from_value::<ErrorCode>(Json::from(code.as_str())).unwrap(), *code);
    }
    for wrong in ["", "Plan-Stale", "plan_stale", "plan-stale ", "no-such-code"] {
        assert!(serde_json::from_value::<ErrorCode>(Json::from(wrong)).is_err(), "{wrong}");
    }
}

/// Two releases must have the same limits, or a message of one is too long for the other.
#[test]
fn limits_are_stable() {
    let all: [(&str, u64); 56] = [
        ("name bytes", limits::NAME_BYTES_MAX as u64),
        ("manifest bytes", limits::MANIFEST_BYTES_MAX as u64),
        ("proposal bytes", limits::PROPOSAL_BYTES_MAX as u64),
        ("members", limits::MEMBERS_MAX as u64),
        ("certificate bytes", limits::CERTIFICATE_BYTES_MAX as u64),
        ("member bytes", limits::MEMBER_BYTES_MAX as u64),
        ("quorum depth", limits::QUORUM_DEPTH_MAX as u64),
        ("quorum member bytes", limits::QUORUM_MEMBER_BYTES_MAX as u64),
        ("roster bytes", limits::ROSTER_BYTES_MAX as u64),
        ("proposal frame bytes", limits::PROPOSAL_FRAME_BYTES_MAX as u64),
        ("ballot bytes", limits::BALLOT_BYTES_MAX as u64),
        ("ballot reason bytes", limits::BALLOT_REASON_BYTES_MAX as u64),
        ("member proofs", limits::MEMBER_PROOFS_MAX as u64),
        ("member proof bytes", limits::MEMBER_PROOF_BYTES_MAX as u64),
        ("ballots", limits::BALLOTS_MAX as u64),
        ("standing halts", limits::STANDING_HALTS_MAX as u64),
        ("bundle bytes", limits::BUNDLE_BYTES_MAX as u64),
        ("passkeys", limits::PASSKEYS_MAX as u64),
        ("credential bytes", limits::PASSKEY_CREDENTIAL_BYTES_MAX as u64),
        ("authenticator data bytes", limits::PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX as u64),
        ("client data bytes", limits::PASSKEY_CLIENT_DATA_BYTES_MAX as u64),
        ("passkey signature bytes", limits::PASSKEY_SIGNATURE_BYTES_MAX as u64),
        ("passkey origins", limits::PASSKEY_ORIGINS_MAX as u64),
        ("origin bytes", limits::ORIGIN_BYTES_MAX as u64),
        ("JSON bytes per canonical byte", limits::JSON_BYTES_PER_CANONICAL_BYTE as u64),
        ("labels", limits::LABELS_MAX as u64),
        ("label bytes", limits::LABEL_BYTES_MAX as u64),
        ("genesis bytes", limits::GENESIS_BYTES_MAX as u64),
        ("slots", u64::from(limits::SLOTS_MAX)),
        ("routed services", limits::ROUTED_SERVICES_MAX as u64),
        ("nodes", limits::NODES_MAX as u64),
        ("open proposals", limits::PROPOSALS_OPEN_MAX as u64),
        ("reason bytes", limits::REASON_BYTES_MAX as u64),
        ("API body bytes", limits::API_BODY_BYTES_MAX as u64),
        ("inference body bytes", limits::INFERENCE_BODY_BYTES_MAX as u64),
        ("sync bytes", limits::SYNC_BYTES_MAX as u64),
        ("history page bytes", limits::HISTORY_PAGE_BYTES_MAX as u64),
        ("frame bytes", limits::FRAME_BYTES_MAX as u64),
        ("metrics line bytes", limits::METRICS_LINE_BYTES_MAX as u64),
        ("model manifest bytes", limits::MODEL_MANIFEST_BYTES_MAX as u64),
        ("segment bytes", limits::SEGMENT_BYTES_MAX as u64),
        ("lease ms", limits::LEASE_MS),
        ("autonomy seconds at least", limits::AUTONOMY_SECONDS_MIN),
        ("autonomy seconds by default", limits::AUTONOMY_SECONDS_DEFAULT),
        ("autonomy seconds at most", limits::AUTONOMY_SECONDS_MAX),
        ("job autonomy seconds by default", limits::JOB_AUTONOMY_SECONDS_DEFAULT),
        ("entries of a list of a job", limits::JOB_LIST_MAX as u64),
        ("submit keys", limits::SUBMIT_KEYS_MAX as u64),
        ("parameter bytes", limits::PARAMETER_BYTES_MAX as u64),
        ("submission seconds", limits::SUBMISSION_SECONDS_MAX),
        ("submission bytes", limits::SUBMISSION_BYTES_MAX as u64),
        ("sync interval ms", limits::SYNC_INTERVAL_MS),
        ("sync interval of an idle node ms", limits::SYNC_INTERVAL_IDLE_MS),
        ("poll wait ms", u64::from(limits::POLL_WAIT_MS_MAX)),
        ("clock grace ms", limits::CLOCK_GRACE_MS),
        ("bundle version", u64::from(protocol::governance::BUNDLE_VERSION)),
    ];
    check("limits.txt", |_| all.iter().map(|(name, value)| format!("{name} | {value}\n")).collect());
}

/// A domain names a purpose: a signature for one must be invalid for any other.
#[test]
fn domains_are_stable_and_distinct() {
    use protocol::{agent, agent_state, comment, governance, halt, job, job_data, model, order, passkey};
    let mut domains = vec![
        passkey::PASSKEY_BALLOT_DOMAIN,
        passkey::PASSKEY_HALT_DOMAIN,
        passkey::PASSKEY_COMMENT_DOMAIN,
        comment::COMMENT_DOMAIN,
        passkey::PASSKEY_REGISTRATION_DOMAIN,
        passkey::PASSKEY_DOMAIN,
        governance::GENESIS_DOMAIN,
        governance::PROPOSAL_DOMAIN,
        governance::RENDERING_DOMAIN,
        governance::GENESIS_RENDERING_DOMAIN,
        governance::BALLOT_DOMAIN,
        governance::WITHDRAWAL_DOMAIN,
        governance::CERTIFICATE_DOMAIN,
        governance::MEMBER_KEYS_DOMAIN,
        order::ORDER_DOMAIN,
        order::TICKET_DOMAIN,
        job::SUBMISSION_DOMAIN,
        job::ARRAY_TASK_DOMAIN,
        job::JOB_ORDER_DOMAIN,
        job_data::JOB_DATA_DOMAIN,
        job_data::JOB_DATA_WRAPS_DOMAIN,
        model::MODEL_DOMAIN,
        agent::DESIRED_DOMAIN,
        agent_state::ORDER_BOOK_DOMAIN,
        halt::HALT_DOMAIN,
        halt::HALT_BOOK_DOMAIN,
        agent_state::LAST_ANSWER_DOMAIN,
    ];
    domains.sort_unstable();
    let digests: std::collections::BTreeSet<_> = domains.iter().map(|d| Digest::of_domain(d, b"x")).collect();
    assert_eq!(digests.len(), domains.len(), "no two purposes share a digest");
    let line = |domain: &&str| format!("{domain} | {}\n", Digest::of_domain(domain, b"x"));
    check("domains.txt", |_| domains.iter().map(line).collect());
}

#[test]
fn untrusted_bytes_have_one_reading_or_none() {
    check_lines("cbor.txt", |text| {
        let (kind, bytes) = text.split_once(' ').unwrap();
        let bytes = hex::decode(bytes.replace(['_', '\''], "")).unwrap();
        match kind {
            "text" => reading(from_bytes::<String>(&bytes, 64)),
            "number" => reading(from_bytes::<u64>(&bytes, 64)),
            "maybe" => reading(from_bytes::<Option<u64>>(&bytes, 64)),
            "list" => reading(from_bytes::<Vec<u64>>(&bytes, 64)),
            "set" => reading(from_bytes::<std::collections::BTreeSet<String>>(&bytes, 64)),
            "map" => reading(from_bytes::<BTreeMap<String, u64>>(&bytes, 64)),
            "subject" => reading(from_bytes::<SubjectVersion>(&bytes, 64)),
            "quorum" => reading(from_bytes::<Quorum>(&bytes, 64)),
            other => panic!("no such kind: {other}"),
        }
    });
}

fn reading<T: std::fmt::Debug>(read: Result<T, CanonicalError>) -> String {
    match read {
        Ok(value) => format!("{value:?}"),
        Err(CanonicalError::TooLong { actual, limit }) => format!("too long: {actual} of {limit}"),
        Err(CanonicalError::NotCanonical) => "not canonical".into(),
        Err(CanonicalError::Forbidden(what)) => format!("forbidden: {what}"),
        Err(CanonicalError::Invalid(_)) => "invalid".into(),
        Err(CanonicalError::Costly) => "costly".into(),
    }
}
