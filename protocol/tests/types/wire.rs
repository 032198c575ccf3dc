//! Tests of the wire format: every type has exactly one form, and every other form is rejected.
//!
//! `cases/wire.txt` holds a value of each type in JSON. Each value must survive a round trip through JSON,
//! and its canonical bytes must have the digest that follows it. All values that differ by one field removed,
//! added or of another type must be rejected. `REFRESH_GOLDEN=1 cargo test -p protocol` rewrites the digests.
//! A changed digest means a changed format on disks and wires, and needs a new version.

use ciborium::value::Value as Cbor;
use protocol::canonical::{CanonicalError, from_bytes, to_bytes};
use protocol::limits::JSON_BYTES_PER_CANONICAL_BYTE;
use protocol::{
    Digest, access, agent, agent_state, api, artifact, comment, gang, gateway, governance, halt, job,
    job_data, job_report, keys, manifest, model, order, passkey, sandbox, slot_usage, usage, worker,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write};

const LIMIT: usize = 1 << 20;
/// Maps with user-chosen keys: removing an entry yields another legal value.
const FREE_MAPS: [&str; 8] =
    ["labels", "node_selector", "environment", "quorums", "signatures", "proofs", "parameters", "signers"];
/// Byte strings whose length `human-chain` and `model-store` check.
const FREE_LENGTHS: [&str; 9] = [
    "localtime",
    "ml_dsa",
    "ml_kem",
    "encapsulated",
    "sealed",
    "credential",
    "authenticator_data",
    "client_data",
    ASSERTED,
];
/// Signature of a passkey, in this test: other fields of the name `signature` have one length.
const ASSERTED: &str = "signature of a passkey";
/// Optional booleans.
const OPTIONAL_FLAGS: [&str; 1] = ["answers"];
/// Lists that a value may lack.
const OPTIONAL_LISTS: [&str; 1] = ["command"];
/// Numbers that may be negative.
const SIGNED: [&str; 6] = ["status", "signal", "exit", "least", "most", "code"];
/// Sets: exactly one order of their elements is canonical.
const SETS: [&str; 6] = ["roles", "scopes", "origins", "halts", "grantors", "tokens"];

macro_rules! kinds {
    ($($name:literal => $kind:ty),* $(,)?) => {
        /// All types that cross a wire or are stored on disk.
        const KINDS: &[&str] = &[$($name),*];

        fn examine(kind: &str, json: &Json) -> Vec<u8> {
            match kind {
                $($name => examine_as::<$kind>(kind, json),)*
                other => panic!("no such kind: {other}"),
            }
        }
    };
}

kinds! {
    "Gpu" => agent::Gpu,
    "NodeResources" => agent::NodeResources,
    "SlotReport" => agent::SlotReport,
    "RankOutcome" => job_report::RankOutcome,
    "RankEnd" => job_report::RankEnd,
    "JobSlotReport" => job_report::JobSlotReport,
    "RankLine" => job_report::RankLine,
    "ArtifactSource" => job_report::ArtifactSource,
    "JobDataKind" => job_data::JobDataKind,
    "JobData" => job_data::JobData,
    "SignedJobData" => job_data::SignedJobData,
    "RegisterJobData" => job_data::RegisterJobData,
    "JobDataAnswer" => job_data::JobDataAnswer,
    "JobDataSource" => job_data::JobDataSource,
    "JobDataView" => job_data::JobDataView,
    "MemberJobData" => job_data::MemberJobData,
    "SlotUsage" => slot_usage::SlotUsage,
    "Prices" => usage::Prices,
    "UsageAmounts" => usage::UsageAmounts,
    "UsageEntry" => usage::UsageEntry,
    "UsageTotal" => usage::UsageTotal,
    "UsageExportHeader" => usage::UsageExportHeader,
    "SignedSlotUsage" => slot_usage::SignedSlotUsage,
    "JobAssignment" => job_report::JobAssignment,
    "GangMeeting" => gang::GangMeeting,
    "GangHello" => gang::GangHello,
    "GangAnswer" => gang::GangAnswer,
    "SyncRequest" => agent::SyncRequest,
    "WorkerLine" => agent::WorkerLine,
    "Assignment" => agent::Assignment,
    "Desired" => agent::Desired,
    "SyncResponse" => agent::SyncResponse,
    "NotLeader" => agent::NotLeader,
    "ClockReading" => agent::ClockReading,
    "EnrolRequest" => agent::EnrolRequest,
    "EnrolResponse" => agent::EnrolResponse,
    "PendingNode" => agent::PendingNode,
    "LastAnswerRecord" => agent_state::LastAnswerRecord,
    "OrderBookRecord" => agent_state::OrderBookRecord,
    "JobBookRecord" => agent_state::JobBookRecord,
    "SlotFence" => agent_state::SlotFence,
    "HeldOrder" => agent_state::HeldOrder,
    "HandOrder" => agent_state::HandOrder,
    "Verdict" => agent_state::Verdict,
    "AdminRequest" => agent_state::AdminRequest,
    "HaltScope" => halt::HaltScope,
    "Halt" => halt::Halt,
    "HaltSignature" => halt::HaltSignature,
    "SignedHalt" => halt::SignedHalt,
    "Comment" => comment::Comment,
    "CommentSignature" => comment::CommentSignature,
    "SignedComment" => comment::SignedComment,
    "HaltBookRecord" => halt::HaltBookRecord,
    "HaltsRequest" => halt::HaltsRequest,
    "HaltsAnswer" => halt::HaltsAnswer,
    "HaltReceipt" => halt::HaltReceipt,
    "HaltedSlot" => halt::HaltedSlot,
    "Problem" => api::Problem,
    "History" => api::History,
    "HistoryPage" => api::HistoryPage,
    "SubmitProposal" => api::SubmitProposal,
    "WithdrawProposal" => api::WithdrawProposal,
    "DeploymentDraft" => api::DeploymentDraft,
    "ProposalView" => api::ProposalView,
    "Page" => api::Page<api::AuditEvent>,
    "DryRunRequest" => api::DryRunRequest,
    "DryRun" => api::DryRun,
    "RollOutView" => api::RollOutView,
    "ServiceView" => api::ServiceView,
    "SlotView" => api::SlotView,
    "ScaleRequest" => api::ScaleRequest,
    "RollbackRequest" => api::RollbackRequest,
    "NodeView" => api::NodeView,
    "RegisterModel" => api::RegisterModel,
    "PutWraps" => api::PutWraps,
    "AuditEvent" => api::AuditEvent,
    "Status" => api::Status,
    "ReplicaView" => api::ReplicaView,
    "PeerView" => api::PeerView,
    "Finding" => api::Finding,
    "Why" => api::Why,
    "LogLine" => api::LogLine,
    "LogPage" => api::LogPage,
    "MemberWraps" => api::MemberWraps,
    "LackingKey" => api::LackingKey,
    "Route" => gateway::Route,
    "RoutedService" => gateway::RoutedService,
    "ApiKey" => gateway::ApiKey,
    "RouteTable" => gateway::RouteTable,
    "TableAccepted" => gateway::TableAccepted,
    "Member" => governance::Member,
    "ProvenMember" => governance::ProvenMember,
    "Quorum" => governance::Quorum,
    "Policy" => governance::Policy,
    "ControlReplica" => governance::ControlReplica,
    "NodeAdmission" => governance::NodeAdmission,
    "GatewayEndpoint" => governance::GatewayEndpoint,
    "StorageEndpoint" => governance::StorageEndpoint,
    "AccessEnvelope" => access::AccessEnvelope,
    "GrantedAccess" => access::GrantedAccess,
    "AccessGrant" => access::AccessGrant,
    "SignedGrant" => access::SignedGrant,
    "AccessRevocation" => access::AccessRevocation,
    "SignedRevocation" => access::SignedRevocation,
    "AccessRecord" => access::AccessRecord,
    "AccessRequest" => access::AccessRequest,
    "AccessAnswer" => access::AccessAnswer,
    "AccessBookRecord" => access::AccessBookRecord,
    "Genesis" => governance::Genesis,
    "SignedGenesis" => governance::SignedGenesis,
    "Change" => governance::Change,
    "SubjectVersion" => governance::SubjectVersion,
    "Proposal" => governance::Proposal,
    "Ballot" => governance::Ballot,
    "SignedBallot" => governance::SignedBallot,
    "Withdrawal" => governance::Withdrawal,
    "SignedWithdrawal" => governance::SignedWithdrawal,
    "Certificate" => governance::Certificate,
    "Bundle" => governance::Bundle,
    "LogEvidence" => governance::LogEvidence,
    "PasskeyKey" => passkey::PasskeyKey,
    "Passkey" => passkey::Passkey,
    "PasskeyAssertion" => passkey::PasskeyAssertion,
    "PasskeyRegistration" => passkey::PasskeyRegistration,
    "PasskeyPolicy" => passkey::PasskeyPolicy,
    "BallotSignature" => governance::BallotSignature,
    "EncryptionKey" => keys::EncryptionKey,
    "MemberKeys" => keys::MemberKeys,
    "HybridSignature" => keys::HybridSignature,
    "Manifest" => manifest::Manifest,
    "ErasureCode" => model::ErasureCode,
    "ModelFile" => model::ModelFile,
    "Segment" => model::Segment,
    "StoredKind" => model::StoredKind,
    "ArtifactStart" => artifact::ArtifactStart,
    "EntryKind" => artifact::EntryKind,
    "ArtifactEntry" => artifact::ArtifactEntry,
    "ArtifactIndex" => artifact::ArtifactIndex,
    "ModelManifest" => model::ModelManifest,
    "StoreReference" => model::StoreReference,
    "ModelRecord" => model::ModelRecord,
    "Recipient" => model::Recipient,
    "KeyWrap" => model::KeyWrap,
    "SignedWrap" => model::SignedWrap,
    "WrapComplaint" => model::WrapComplaint,
    "SignedComplaint" => model::SignedComplaint,
    "RecipientSignature" => model::RecipientSignature,
    "WrapRequest" => model::WrapRequest,
    "SignedWrapRequest" => model::SignedWrapRequest,
    "SlotOrder" => order::SlotOrder,
    "SignedOrder" => order::SignedOrder,
    "Submitter" => job::Submitter,
    "JobSubmission" => job::JobSubmission,
    "SignedSubmission" => job::SignedSubmission,
    "JobOrder" => job::JobOrder,
    "SignedJobOrder" => job::SignedJobOrder,
    "Ticket" => order::Ticket,
    "SignedTicket" => order::SignedTicket,
    "SandboxIdentity" => sandbox::SandboxIdentity,
    "SandboxLimits" => sandbox::SandboxLimits,
    "GroupWrite" => sandbox::GroupWrite,
    "SandboxGroups" => sandbox::SandboxGroups,
    "EngineProfile" => sandbox::EngineProfile,
    "RankProgram" => sandbox::RankProgram,
    "InputMount" => sandbox::InputMount,
    "DiskArea" => sandbox::DiskArea,
    "WritableAreas" => sandbox::WritableAreas,
    "EtcFiles" => sandbox::EtcFiles,
    "GangDevice" => sandbox::GangDevice,
    "ProcessProfile" => sandbox::ProcessProfile,
    "SandboxProfile" => sandbox::SandboxProfile,
    "SandboxSpec" => sandbox::SandboxSpec,
    "SandboxReport" => sandbox::SandboxReport,
    "SandboxGo" => sandbox::SandboxGo,
    "SandboxRecord" => sandbox::SandboxRecord,
    "SandboxExit" => sandbox::SandboxExit,
    "SegmentRange" => worker::SegmentRange,
    "WorkerManifest" => worker::WorkerManifest,
    "ToWorker" => worker::ToWorker,
    "FromWorker" => worker::FromWorker,
    "InitRequest" => worker::InitRequest,
    "InitReply" => worker::InitReply,
    "WorkerMetrics" => worker::WorkerMetrics,
    "WorkerLoad" => worker::WorkerLoad,
}

/// Parses the JSON as this type and, after every check, returns its canonical bytes.
fn examine_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: &str, json: &Json) -> Vec<u8> {
    let value: T =
        serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{kind}: {error}: {json}"));
    assert_eq!(&serde_json::to_value(&value).unwrap(), json, "{kind} writes the JSON that it read");
    let bytes = to_bytes(&value);
    assert_eq!(from_bytes::<T>(&bytes, LIMIT).as_ref(), Ok(&value), "{kind} survives");
    let short = CanonicalError::TooLong { actual: bytes.len(), limit: bytes.len() - 1 };
    assert_eq!(from_bytes::<T>(&bytes, bytes.len() - 1), Err(short), "{kind} is not parsed beyond its limit");
    let text = serde_json::to_vec(&value).unwrap().len();
    assert!(text <= bytes.len() * JSON_BYTES_PER_CANONICAL_BYTE, "{kind} is {text} bytes of JSON");
    let cbor: Cbor = ciborium::from_reader(bytes.as_slice()).unwrap();
    let altered = alterations(&cbor, "");
    for (what, cbor) in &altered {
        let mut other = Vec::new();
        ciborium::into_writer(cbor, &mut other).unwrap();
        let read = from_bytes::<T>(&other, LIMIT);
        assert!(read.is_err(), "{kind} with {what} is read as {read:?}");
    }
    let mut unknown = json.clone();
    if let Some(fields) = unknown.as_object_mut() {
        fields.insert("zzz".into(), Json::Null);
        assert!(serde_json::from_value::<T>(unknown).is_err(), "{kind} takes a field that it does not know");
    }
    bytes
}

/// Returns all values that differ from this one in one position and must be rejected. `field` is the
/// position's name.
fn alterations(value: &Cbor, field: &str) -> Vec<(String, Cbor)> {
    let retyped = |cbor: Cbor| vec![(format!("{field} as {cbor:?}"), cbor)];
    match value {
        Cbor::Map(entries) => alter_map(entries, field),
        Cbor::Array(items) => alter_array(items, field),
        Cbor::Integer(_) if SIGNED.contains(&field) => retyped(Cbor::Text("1".into())),
        Cbor::Integer(_) => {
            [retyped(Cbor::Text("1".into())), retyped(Cbor::Integer((-1).into())), retyped(Cbor::Float(1.0))]
                .concat()
        }
        Cbor::Bytes(bytes) if FREE_LENGTHS.contains(&field) => retyped(Cbor::Text(hex::encode(bytes))),
        Cbor::Bytes(bytes) => {
            let longer = [bytes.as_slice(), &[0]].concat();
            let shorter = bytes[1..].to_vec();
            [
                retyped(Cbor::Text(hex::encode(bytes))),
                retyped(Cbor::Bytes(longer)),
                retyped(Cbor::Bytes(shorter)),
            ]
            .concat()
        }
        Cbor::Text(_) => [retyped(Cbor::Integer(1.into())), retyped(Cbor::Bool(true))].concat(),
        Cbor::Bool(_) if OPTIONAL_FLAGS.contains(&field) => retyped(Cbor::Integer(1.into())),
        Cbor::Null if OPTIONAL_FLAGS.contains(&field) => retyped(Cbor::Float(0.0)),
        Cbor::Bool(_) => [retyped(Cbor::Integer(1.into())), retyped(Cbor::Null)].concat(),
        Cbor::Null => [retyped(Cbor::Bool(false)), retyped(Cbor::Float(0.0))].concat(),
        other => panic!("canonical form has no {other:?}"),
    }
}

fn alter_map(entries: &[(Cbor, Cbor)], field: &str) -> Vec<(String, Cbor)> {
    let name = |key: &Cbor| key.as_text().unwrap_or_default().to_string();
    let mut altered = Vec::new();
    let mut longer = entries.to_vec();
    longer.push((Cbor::Text("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz".into()), Cbor::Null));
    altered.push((format!("a field that {field} does not have"), Cbor::Map(longer)));
    for (at, (key, value)) in entries.iter().enumerate() {
        let mut without = entries.to_vec();
        without.remove(at);
        if !FREE_MAPS.contains(&field) {
            altered.push((format!("no {}", name(key)), Cbor::Map(without)));
        }
        let mut twice = entries.to_vec();
        twice.insert(at, entries[at].clone());
        altered.push((format!("{} twice", name(key)), Cbor::Map(twice)));
        let asserted = name(key) == "signature" && entries.iter().any(|(key, _)| name(key) == "client_data");
        let field = if asserted { ASSERTED.to_string() } else { name(key) };
        for (what, other) in alterations(value, &field) {
            let mut with = entries.to_vec();
            with[at].1 = other;
            altered.push((what, Cbor::Map(with)));
        }
    }
    altered
}

fn alter_array(items: &[Cbor], field: &str) -> Vec<(String, Cbor)> {
    let mut altered = vec![(format!("{field} as a flag"), Cbor::Bool(true))];
    if !OPTIONAL_LISTS.contains(&field) {
        altered.push((format!("{field} as null"), Cbor::Null));
    }
    if SETS.contains(&field) && items.len() > 1 {
        altered.push((format!("{field} unsorted"), Cbor::Array(items.iter().rev().cloned().collect())));
        altered.push((format!("{field} doubled"), Cbor::Array([items, items].concat())));
    }
    for (at, item) in items.iter().enumerate() {
        for (what, other) in alterations(item, field) {
            let mut with = items.to_vec();
            with[at] = other;
            altered.push((format!("{what} at {at}"), Cbor::Array(with)));
        }
    }
    altered
}

/// Expands `"@Name"` to an earlier case, and `"07x32"` to 32 bytes of 7.
fn expand(json: Json, known: &BTreeMap<String, Json>) -> Json {
    match json {
        Json::String(text) => match (text.strip_prefix('@'), text.split_once('x')) {
            (Some(name), _) => known.get(name).unwrap_or_else(|| panic!("no case {name} yet")).clone(),
            (_, Some((byte, count))) if byte.len() == 2 && count.parse::<usize>().is_ok() => {
                Json::String(byte.repeat(count.parse().unwrap()))
            }
            _ => Json::String(text),
        },
        Json::Array(items) => items.into_iter().map(|item| expand(item, known)).collect(),
        Json::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let key = if key.contains('x') {
                    expand(Json::String(key), known).as_str().unwrap().into()
                } else {
                    key
                };
                (key, expand(value, known))
            })
            .collect(),
        plain => plain,
    }
}

/// Compares the seed of the fuzz target `canonical` that is made from this case, if there is one, with the
/// case's bytes; writes it with the digests.
#[expect(clippy::disallowed_methods, reason = "the seeds are files of bytes")]
fn check_seed(name: &str, bytes: &[u8]) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/canonical");
    let path = folder.join(name.replace('/', "-"));
    if !path.exists() {
        return;
    }
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "{} is a seed of another format", path.display());
}

#[test]
fn every_type_has_one_form_and_no_other_is_taken_for_it() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/wire.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut known: BTreeMap<String, Json> = BTreeMap::new();
    let mut fresh = String::new();
    for case in text.split_inclusive("\n\n") {
        let (head, body) = case.split_once('\n').unwrap();
        let Some(name) = head.strip_prefix("= ") else {
            fresh.push_str(case);
            continue;
        };
        let body: String = body.lines().filter(|line| !line.starts_with("->")).collect::<Vec<_>>().join("\n");
        let body = body.trim_end();
        let json: Json = serde_json::from_str(body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let json = expand(json, &known);
        let kind = name.split('/').next().unwrap();
        let bytes = examine(kind, &json);
        check_seed(name, &bytes);
        known.insert(name.to_string(), json);
        writeln!(fresh, "{head}\n{body}\n-> {} bytes, {}\n", bytes.len(), Digest::of(&bytes)).unwrap();
    }
    let missing: Vec<_> =
        KINDS.iter().filter(|kind| !known.keys().any(|name| name.split('/').next() == Some(kind))).collect();
    assert!(missing.is_empty(), "no case of {missing:?}");
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, fresh.as_bytes()).unwrap();
    }
    let (fresh, text) = (fresh.trim_end(), text.trim_end());
    let changed = fresh.lines().zip(text.lines()).find(|(fresh, text)| fresh != text);
    assert!(std::env::var_os("REFRESH_GOLDEN").is_some() || fresh == text, "other bytes: {changed:?}");
}
