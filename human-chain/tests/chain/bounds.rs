//! Tests that a manifest has the same bounds in both input forms: TOML that users write, and JSON that
//! programs propose. Each line of the table edits one field of the same manifest in both forms, and both must
//! give the same result.

use crate::support::{check, circle, proposal, try_propose};
use human_chain::verify;
use protocol::governance::Change;
use protocol::manifest::Manifest;
use serde_json::Value as Json;

const BASE: &str = "kind = 'service'\nname = 'chat'\ntask = 'generate'\nbatch_sequences_max = 32\n\
    autonomy_seconds = 3600\nexclusive = false\npriority = 50\ncontext_tokens_max = 4096\n\
    [model]\nname = 'm'\nroot = '1111111111111111111111111111111111111111111111111111111111111111'\n\
    [replicas]\nmin = 1\nmax = 3\n\
    [resources]\ncpu_millicores = 500\nmemory = '1 GiB'\ngpu_count = 1\ngpu_memory = '40 GiB'\n\
    [placement]\nregions = ['eu']\nnode_selector = { disk = 'ssd' }\n\
    [rollout]\nready_seconds = 0\nmax_unavailable = 1\nfailure_limit = 3\n";

/// `field in TOML | as TOML | field in JSON | as JSON | expected result`; `same` = as in TOML. `*N` repeats
/// the bracketed text before it N times.
const TABLE: &str = "
replicas.max | 0 | same | 0 | replicas.max is 0; accepted: 1 to 1024
replicas.max | 1024 | same | 1024 | approved
replicas.max | 1025 | same | 1025 | replicas.max is 1025; accepted: 1 to 1024
replicas.min | 4 | same | 4 | replicas.min is 4, more than replicas.max, which is 3
replicas.min | 0 | same | 0 | approved
model.root | '(0)*64' | same | '(0)*64' | model.root is all zeros; `quorate model list` shows roots
resources.cpu_millicores | 49 | same | 49 | resources.cpu_millicores is 49; accepted: 50 to 4096000
resources.cpu_millicores | 50 | same | 50 | approved
resources.cpu_millicores | 4096000 | same | 4096000 | approved
resources.cpu_millicores | 4096001 | same | 4096001 | \
    resources.cpu_millicores is 4096001; accepted: 50 to 4096000
resources.memory | '0' | memory_bytes | 0 | resources.memory is 0 B; accepted: 32 MiB to 64 TiB
resources.memory | '33554431' | memory_bytes | 33554431 | \
    resources.memory is 33554431 B; accepted: 32 MiB to 64 TiB
resources.memory | '32 MiB' | memory_bytes | 33554432 | approved
resources.memory | '64 TiB' | memory_bytes | 70368744177664 | approved
resources.memory | '65 TiB' | memory_bytes | 71468255805440 | \
    resources.memory is 65 TiB; accepted: 32 MiB to 64 TiB
resources.gpu_count | 64 | same | 64 | approved
resources.gpu_count | 65 | same | 65 | resources.gpu_count is 65; accepted: 0 to 64
resources.gpu_count | 0 | same | 0 | resources.gpu_memory is given, but no GPU is asked for
resources.gpu_share_percent | 50 | same | 50 | \
    resources.gpu_share_percent asks for a share of a GPU while resources.gpu_count asks for whole ones
resources.gpu_memory | '64 TiB' | gpu_memory_bytes | 70368744177664 | approved
batch_sequences_max | 0 | same | 0 | batch_sequences_max is 0; accepted: 1 to 1024
batch_sequences_max | 1024 | same | 1024 | approved
batch_sequences_max | 1025 | same | 1025 | batch_sequences_max is 1025; accepted: 1 to 1024
context_tokens_max | 0 | same | 0 | context_tokens_max is 0; accepted: 1 to 1048576
context_tokens_max | 1048576 | same | 1048576 | approved
context_tokens_max | 1048577 | same | 1048577 | context_tokens_max is 1048577; accepted: 1 to 1048576
autonomy_seconds | 2 | same | 2 | autonomy_seconds is 2; accepted: 3 to 2678400
autonomy_seconds | 3 | same | 3 | approved
autonomy_seconds | 2678400 | same | 2678400 | approved
autonomy_seconds | 2678401 | same | 2678401 | autonomy_seconds is 2678401; accepted: 3 to 2678400
priority | 0 | same | 0 | priority is 0; accepted: 1 to 100
priority | 100 | same | 100 | approved
priority | 101 | same | 101 | priority is 101; accepted: 1 to 100
rollout.ready_seconds | 3600 | same | 3600 | approved
rollout.ready_seconds | 3601 | same | 3601 | rollout.ready_seconds is 3601; accepted: 0 to 3600
rollout.max_unavailable | 0 | same | 0 | approved
rollout.max_unavailable | 1025 | same | 1025 | rollout.max_unavailable is 1025; accepted: 0 to 1024
rollout.failure_limit | 0 | same | 0 | rollout.failure_limit is 0; accepted: 1 to 100
exclusive | true | same | true | \
    autonomy_seconds is 3600, and the service is exclusive; accepted: 3, or exclusive = false
placement.regions | [('r',)*63 'r'] | same | [('r',)*63 'r'] | approved
placement.regions | [('r',)*64 'r'] | same | [('r',)*64 'r'] | \
    placement.regions has 65 entries; accepted: at most 64
placement.regions | ['eu', '(r)*63'] | same | ['eu', '(r)*63'] | approved
placement.regions | ['eu', '(r)*64'] | same | ['eu', '(r)*64'] | \
    placement.regions[1] is 64 bytes; accepted: at most 63
placement.node_selector | { disk = '(s)*64' } | same | { 'disk': '(s)*64' } | \
    placement.node_selector.disk is 64 bytes; accepted: at most 63
placement.node_selector | { (s)*64 = 'x' } | same | { '(s)*64': 'x' } | \
    placement.node_selector has a key that is 64 bytes; accepted: at most 63
";

/// Expands `(ab)*3` to `ababab`.
fn expand(text: &str) -> String {
    let Some((before, rest)) = text.split_once('(') else { return text.to_string() };
    let (repeated, rest) = rest.split_once(")*").expect("a count behind the brackets");
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let count = rest[..digits].parse().expect("a count");
    format!("{before}{}{}", repeated.repeat(count), expand(&rest[digits..]))
}

/// Returns the base with one field replaced, or added to its table if it is absent.
fn as_toml(field: &str, value: &str) -> String {
    let (table, key) = field.rsplit_once('.').unwrap_or(("", field));
    let header = format!("[{table}]");
    let (mut within, mut done, mut out) = (table.is_empty(), false, String::new());
    for line in BASE.lines() {
        if line.starts_with('[') {
            within = line == header;
        }
        if within && line.starts_with(&format!("{key} = ")) {
            done = true;
            out.push_str(&format!("{key} = {value}\n"));
        } else {
            out.push_str(&format!("{line}\n"));
        }
    }
    if done { out } else { out.replace(&header, &format!("{header}\n{key} = {value}")) }
}

fn as_json(field: &str, value: &str) -> Result<Manifest, String> {
    let base = Manifest::from_toml(BASE).expect("the base is sound");
    let mut json = serde_json::to_value(&base).expect("a manifest is JSON");
    let pointer = format!("/service/{}", field.replace('.', "/"));
    *json.pointer_mut(&pointer).unwrap_or_else(|| panic!("no {pointer}")) =
        serde_json::from_str::<Json>(&value.replace('\'', "\"")).expect("the table holds JSON");
    serde_json::from_value(json).map_err(|error| error.to_string())
}

#[test]
fn both_ways_in_have_the_same_bounds() {
    let state = circle();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let columns: Vec<&str> = line.split(" | ").collect();
        let [field, toml, json_field, json, expected] = columns[..] else { panic!("five columns: {line}") };
        let (toml, json) = (expand(toml), expand(json));
        let written = as_toml(field, &toml);
        let outcome = match Manifest::from_toml(&written) {
            Ok(_) => "approved".to_string(),
            Err(error) => {
                let named = written.lines().nth(error.line - 1).unwrap_or_default();
                assert!(named.contains(['=', '[']), "{line}: points at `{named}`");
                format!("{} {}", error.field, error.message)
            }
        };
        assert_eq!(outcome, expected, "as TOML: {line}");

        let table = field.rsplit_once('.').map_or(String::new(), |(table, _)| format!("{table}."));
        let json_field =
            if json_field == "same" { field.to_string() } else { format!("{table}{json_field}") };
        let manifest = as_json(&json_field, &json).unwrap_or_else(|error| panic!("as JSON: {line}: {error}"));
        let expected = if expected == "approved" {
            expected.into()
        } else {
            format!("governance-invalid: `chat`: {expected}")
        };
        check(line, try_propose(&state, Change::Deploy(Box::new(manifest))), &expected);
    }
}

/// Verification of a certificate applies the same bounds, even to a manifest that a careless proposer signed.
#[test]
fn a_signed_manifest_is_checked_against_the_same_bounds() {
    let state = circle();
    let base = Manifest::from_toml(BASE).expect("the base is sound");
    let mut careless = proposal(&state, Change::Deploy(Box::new(base)));
    let Change::Deploy(manifest) = &mut careless.change else { panic!("a deployment") };
    let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
    service.resources.memory_bytes = 1;
    let certificate = crate::support::approve(&careless, &["alice", "bob"]);
    check(
        "1 byte of memory",
        verify(&state, &certificate, crate::support::NOW),
        "governance-invalid: resources.memory",
    );
}

#[test]
fn the_table_edits_what_it_names() {
    assert_eq!(expand("['a', '(xy)*3']"), "['a', 'xyxyxy']");
    assert!(as_toml("replicas.min", "7").contains("[replicas]\nmin = 7\nmax = 3\n"));
    assert!(as_toml("resources.gpu_share_percent", "7").contains("[resources]\ngpu_share_percent = 7\n"));
    assert!(as_toml("batch_sequences_max", "7").contains("\nbatch_sequences_max = 7\nautonomy"));
    let Ok(Manifest::Service(service)) = as_json("replicas.min", "2") else { panic!("a service") };
    assert_eq!(service.replicas.min, 2);
}
