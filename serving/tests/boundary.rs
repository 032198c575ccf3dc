//! Isolation tests: the AI circuit has no path to the control circuit, no dependency edge and no secret in
//! its inputs.

use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService};
use protocol::manifest::Task;
use protocol::model::ModelFile;
use protocol::worker::{SegmentRange, WorkerManifest};
use protocol::{Digest, Fence, ModelRoot, NodeId, PublicKey, SlotIndex};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that reach storage, other hosts or nodes' secrets; none may be linked.
const FOREIGN: &[&str] = &["object_store", "reqwest", "raft", "redb", "nvml-wrapper", "landlock"];

/// Names of types that hold or decrypt secrets.
const SECRETS: &[&str] = &[
    "KeyWrap",
    "unwrap_key",
    "wrap_key",
    "EncryptionKey",
    "MemberKeys",
    "HybridSignature",
    "SigningKey",
    "SECRET_ACCESS_KEY",
];

/// Returns all crates that `serving` links on this machine, directly or not, except for tests.
fn linked() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "serving",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("text");
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn of_our_crates_protocol_and_overlay_alone_are_linked() {
    let linked = linked();
    let ours = [
        "protocol",
        "overlay",
        "host",
        "human-chain",
        "consensus",
        "scheduler",
        "model-store",
        "sandbox",
        "gpu-agent",
        "control",
        "serving",
    ];
    let found: Vec<_> = ours.into_iter().filter(|name| linked.contains(*name)).collect();
    assert_eq!(found, ["protocol", "overlay", "serving"]);
    let foreign: Vec<_> = FOREIGN.iter().filter(|name| linked.contains(**name)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(linked.len() > 50, "the walk has seen the whole tree");
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_source_names_a_type_that_holds_a_secret() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 20);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        for secret in SECRETS {
            assert!(!text.contains(secret), "{} names {secret}", file.display());
        }
    }
}

/// Collects every field name in a value.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                found.insert(name.clone());
                fields(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
        _ => {}
    }
}

/// Names of all fields that the AI circuit is given. A new field gives it new data: review it, then add it.
const FIELDS: [&str; 28] = [
    "api_keys",
    "batch_sequences_max",
    "context_tokens_max",
    "count",
    "draining",
    "fence",
    "files",
    "gpu_memory_bytes",
    "gpus",
    "hash",
    "length",
    "map_bytes",
    "memory_bytes",
    "model",
    "name",
    "node",
    "offset",
    "path",
    "requests_per_minute",
    "root",
    "routes",
    "segments",
    "service",
    "services",
    "slot",
    "task",
    "threads",
    "version",
];

#[test]
fn inputs_of_workers_and_gateways_hold_no_secret() {
    let worker = WorkerManifest {
        service: "chat".parse().expect("a name"),
        slot: SlotIndex(0),
        fence: Fence::new(1, 1),
        task: Task::Generate,
        root: ModelRoot(Digest::of(b"model")),
        files: vec![ModelFile { path: "config.json".to_owned(), offset: 0, length: 1 }],
        segments: vec![SegmentRange { offset: 0, length: 1 }],
        map_bytes: 1,
        context_tokens_max: None,
        batch_sequences_max: 1,
        threads: 1,
        memory_bytes: 1 << 30,
        gpus: Vec::new(),
        gpu_memory_bytes: None,
    };
    let service = RoutedService {
        service: "chat".parse().expect("a name"),
        model: "tiny".parse().expect("a name"),
        task: Task::Generate,
        routes: vec![Route {
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            node: NodeId(PublicKey([1; 32])),
            draining: false,
        }],
    };
    let key = ApiKey {
        name: "app".parse().expect("a name"),
        hash: Digest::of(b"text"),
        services: None,
        requests_per_minute: None,
    };
    let table = RouteTable { version: 1, services: vec![service], api_keys: vec![key] };
    let mut found = BTreeSet::new();
    fields(&serde_json::to_value(&worker).expect("JSON"), &mut found);
    fields(&serde_json::to_value(&table).expect("JSON"), &mut found);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), FIELDS);
}
