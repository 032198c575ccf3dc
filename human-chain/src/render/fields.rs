//! Flattening of a proposal into named fields, in the order of the types.
//!
//! Structures are destructured with all their fields named, so that a field added to a type does not compile
//! until it is rendered here. Long keys are represented by their digest.

use super::escape::{quoted, show_bytes, show_duration, show_time};
use super::{
    RENDERER_VERSION, access as access_texts, halts as halt_texts, job as job_texts, passkey_words, prices,
    projects,
};
use crate::quorum::describe;
use protocol::canonical::to_bytes;
use protocol::display::counted;
use protocol::governance::{
    ActionClass, Change, GatewayEndpoint, Member, NodeAdmission, NodeRole, Policy, Proposal, StorageEndpoint,
    SubjectVersion,
};
use protocol::keys::{ByteString, EncryptionKey, MemberKeys};
use protocol::limits::PRIORITY_MAX;
use protocol::manifest::{
    EdgeManifest, Isolation, Manifest, ModelChoice, OnExpiry, OnFailure, Placement, Resources, RollOutRules,
    Runtime, ServiceManifest, Task,
};
use protocol::{Digest, MemberId, Millis, Passkey, PasskeyKey, PasskeyPolicy, StoreName};
use std::collections::{BTreeMap, BTreeSet};

/// Names and values. A name occurs once, except for lists, whose entries are numbered.
pub(super) type FieldTexts = Vec<(String, String)>;

/// Text for an absent optional value. Quoted texts cannot look like it.
pub(super) const NONE: &str = "none";
/// Texts for the rule whether ballots by passkey count.
const COUNT: &str = "count, beside one or more signed with a member's key";
const DO_NOT_COUNT: &str = "do not count";
/// Texts for the rule whether the ballot of a proposal's proposer counts.
const COUNTS: &str = "counts";
const DOES_NOT_COUNT: &str = "does not count: one more member must sign";

pub(super) fn of_proposal(proposal: &Proposal) -> FieldTexts {
    let Proposal {
        circle,
        epoch,
        history,
        subjects,
        change,
        passkeys_count,
        reason,
        created_at,
        expires_at,
        nonce,
    } = proposal;
    let mut fields = vec![
        ("proposal".to_string(), proposal.id().to_string()),
        ("rendering version".into(), RENDERER_VERSION.to_string()),
        ("circle".into(), circle.to_string()),
        ("epoch".into(), epoch.to_string()),
        ("history".into(), format!("{} decisions, root {}", history.size, history.root)),
        ("created at".into(), show_time(*created_at)),
        ("expires at".into(), show_time(*expires_at)),
        ("votes by passkey".into(), if *passkeys_count { COUNT.into() } else { DO_NOT_COUNT.into() }),
        ("reason".into(), quoted(reason)),
        ("nonce".into(), nonce.to_string()),
    ];
    for SubjectVersion { subject, version, value } in subjects {
        fields.push(("changes".into(), quoted(subject)));
        fields.push(("changes.version".into(), version.to_string()));
        fields.push(("changes.present value".into(), optional(value.as_ref(), Digest::to_string)));
    }
    fields.extend(of_change(change));
    fields
}

pub(super) fn of_change(change: &Change) -> FieldTexts {
    match change {
        Change::Deploy(manifest) => of_manifest(manifest),
        Change::Retire { service, grace_seconds } => vec![
            ("retire.service".into(), service.to_string()),
            ("retire.grace".into(), show_duration(u64::from(*grace_seconds))),
        ],
        Change::AdmitNode(node) => of_node(node),
        Change::RemoveNode { node } => vec![("remove.node".into(), node.to_string())],
        Change::ForgetModel { model, grace_seconds } => {
            let mut fields = of_model(model);
            fields.push(("forget.grace".into(), show_duration(u64::from(*grace_seconds))));
            fields
        }
        Change::Lift { halts } => halt_texts::fields(halts),
        Change::SetMembers { members, policy, proofs } => {
            let mut fields = of_members(members, policy);
            // Verification requires that each proof holds; they are shown so that no two changes look alike.
            let proof =
                |(id, proof)| (format!("member.{id}.proof"), Digest::of(&to_bytes(proof)).to_string());
            fields.extend(proofs.iter().map(proof));
            fields
        }
        Change::SuspendMember { member, halts } => of_suspension(member, halts),
        Change::SetPasskeys { member, passkeys } => of_passkeys(member, passkeys),
        Change::SetAccess(envelope) => access_texts::fields(envelope),
        Change::SetPrices(asked) => prices::fields(asked),
        Change::SetProjects(tree) => projects::fields(tree),
    }
}

/// Returns the fields of a model that is to be forgotten.
pub(super) fn of_model(model: &ModelChoice) -> FieldTexts {
    let mut fields = FieldTexts::new();
    push_model(&mut fields, "forget", model);
    fields
}

/// Returns the fields of a suspended member.
pub(super) fn of_suspension(member: &MemberId, halts: &BTreeSet<Digest>) -> FieldTexts {
    let mut fields = vec![("suspend.member".to_string(), member.to_string())];
    fields.extend(halts.iter().map(|halt| ("suspend.standing halt".into(), halt.to_string())));
    debug_assert_eq!(fields.len(), halts.len() + 1, "each halt is shown");
    fields
}

pub(super) fn of_members<'a>(members: impl IntoIterator<Item = &'a Member>, policy: &Policy) -> FieldTexts {
    let Policy { quorums, passkeys, veto_seconds, proposer_counts } = policy;
    let mut fields: FieldTexts = quorums
        .iter()
        .map(|(class, quorum)| (format!("quorum.{}", class_name(*class)), describe(quorum)))
        .collect();
    match passkeys {
        None => fields.push(("passkeys".into(), NONE.into())),
        Some(PasskeyPolicy { rp_id, origins, routine }) => {
            let origins: Vec<String> = origins.iter().cloned().collect();
            let rule = if *routine { COUNT } else { DO_NOT_COUNT };
            fields.push(("passkeys.domain".into(), quoted(rp_id)));
            fields.push(("passkeys.pages".into(), list(&origins)));
            fields.push(("passkeys.votes on routine changes".into(), rule.into()));
        }
    }
    let rule = if *proposer_counts { COUNTS } else { DOES_NOT_COUNT };
    fields.push(("proposer's own vote".into(), rule.into()));
    fields.push(("veto.waiting time".into(), show_duration(u64::from(*veto_seconds))));
    for Member { id, keys } in members {
        let MemberKeys { ed25519, ml_dsa, encryption } = keys;
        fields.push((format!("member.{id}.ed25519"), ed25519.to_string()));
        fields.push((format!("member.{id}.ml-dsa-65"), key_digest(ml_dsa)));
        push_encryption(&mut fields, &format!("member.{id}"), encryption);
    }
    fields
}

pub(super) fn of_passkeys(member: &MemberId, passkeys: &[Passkey]) -> FieldTexts {
    let mut fields = vec![("passkeys.member".to_string(), member.to_string())];
    if passkeys.is_empty() {
        fields.push(("passkeys".into(), NONE.into()));
    }
    for passkey in passkeys {
        let Passkey { credential, key, label } = passkey;
        let prefix = format!("passkey {}", quoted(label));
        fields.push((format!("{prefix}.words"), passkey_words(passkey).join(" ")));
        fields.push((format!("{prefix}.credential"), key_digest(credential)));
        let key = match key {
            PasskeyKey::Es256 { x, y } => format!("ES256 {x} {y}"),
            PasskeyKey::EdDsa(key) => format!("EdDSA {key}"),
        };
        fields.push((format!("{prefix}.key"), key));
    }
    fields
}

pub(super) fn of_node(node: &NodeAdmission) -> FieldTexts {
    let NodeAdmission { name, id, encryption, roles, region, labels, owner, storage, gateway, proof } = node;
    let roles: Vec<&str> = roles.iter().map(|given| role(*given)).collect();
    let mut fields = vec![
        ("node.name".to_string(), name.to_string()),
        ("node.key".into(), id.to_string()),
        ("node.roles".into(), roles.join(", ")),
        ("node.region".into(), quoted(region)),
        ("node.labels".into(), labels_text(labels)),
        ("node.owner".into(), owner.as_ref().map_or_else(|| NONE.to_string(), ToString::to_string)),
    ];
    match storage {
        None => fields.push(("node.storage".into(), NONE.into())),
        Some(StorageEndpoint { address, stores }) => {
            let stores: Vec<&str> = stores.iter().map(StoreName::as_str).collect();
            fields.push(("node.storage.address".into(), quoted(address)));
            fields.push(("node.storage.stores".into(), stores.join(", ")));
        }
    }
    match gateway {
        None => fields.push(("node.gateway".into(), NONE.into())),
        Some(GatewayEndpoint { key, address, api }) => {
            fields.push(("node.gateway.key".into(), key.to_string()));
            fields.push(("node.gateway.address".into(), quoted(address)));
            fields.push(("node.gateway.api".into(), quoted(api)));
        }
    }
    push_encryption(&mut fields, "node", encryption);
    // Verification requires that the proof holds; it is shown so that no two admissions look alike.
    fields.push(("node.proof".into(), Digest::of(proof.as_bytes()).to_string()));
    fields
}

pub(super) fn of_manifest(manifest: &Manifest) -> FieldTexts {
    match manifest {
        Manifest::Service(service) => of_service(service),
        Manifest::Job(job) => job_texts::fields(job),
        Manifest::Edge(edge) => of_edge(edge),
    }
}

fn of_service(service: &ServiceManifest) -> FieldTexts {
    let ServiceManifest {
        name,
        model,
        task,
        runtime,
        replicas,
        resources,
        placement,
        egress,
        spend_micro_units_per_hour,
        valid_until,
        on_expiry,
        autonomy_seconds,
        exclusive,
        priority,
        rollout,
        context_tokens_max,
        batch_sequences_max,
    } = service;
    let mut fields = vec![("service.name".to_string(), name.to_string())];
    push_model(&mut fields, "service", model);
    fields.push(("service.task".into(), task_name(*task).into()));
    fields.push(("service.runtime".into(), runtime_name(*runtime).into()));
    fields.push(("service.replicas.min".into(), replicas.min.to_string()));
    fields.push(("service.replicas.max".into(), replicas.max.to_string()));
    push_resources(&mut fields, "service", resources);
    push_placement(&mut fields, "service", placement);
    fields.push(("service.egress".into(), list(egress)));
    let spend = optional(spend_micro_units_per_hour.as_ref(), |units| format!("{units} millionths per hour"));
    fields.push(("service.spend at most".into(), spend));
    let until = optional(valid_until.as_ref(), |time: &Millis| show_time(*time));
    fields.push(("service.valid until".into(), until));
    fields.push(("service.on expiry".into(), expiry_name(*on_expiry).into()));
    let autonomy = format!("{} without the control plane", show_duration(*autonomy_seconds));
    fields.push(("service.autonomy".into(), autonomy));
    fields.push(("service.exclusive".into(), exclusive_name(*exclusive).into()));
    fields.push(("service.priority".into(), format!("{priority} of {PRIORITY_MAX}")));
    push_rollout(&mut fields, rollout);
    let context = optional(context_tokens_max.as_ref(), u32::to_string);
    fields.push(("service.context tokens at most".into(), context));
    fields.push(("service.sequences per step at most".into(), batch_sequences_max.to_string()));
    fields
}

fn push_rollout(fields: &mut FieldTexts, rollout: &RollOutRules) {
    let RollOutRules { ready_seconds, max_unavailable, failure_limit, on_failure } = rollout;
    let ready = show_duration(u64::from(*ready_seconds));
    fields.push(("service.roll-out.available after".into(), ready));
    fields.push(("service.roll-out.taken at once".into(), max_unavailable.to_string()));
    fields.push(("service.roll-out.failed starts".into(), failure_limit.to_string()));
    fields.push(("service.roll-out.on failure".into(), failure_name(*on_failure).into()));
}

fn of_edge(edge: &EdgeManifest) -> FieldTexts {
    let EdgeManifest { name, model, sites, waves_percent, rollback } = edge;
    let mut fields = vec![("edge.name".to_string(), name.to_string())];
    push_model(&mut fields, "edge", model);
    let waves: Vec<String> = waves_percent.iter().map(|percent| format!("{percent} %")).collect();
    fields.push(("edge.sites".into(), quoted(sites)));
    fields.push(("edge.waves".into(), if waves.is_empty() { NONE.into() } else { waves.join(", ") }));
    fields.push(("edge.rollback".into(), optional(rollback.as_ref(), |root| root.to_string())));
    fields
}

fn push_model(fields: &mut FieldTexts, prefix: &str, model: &ModelChoice) {
    let ModelChoice { name, root } = model;
    fields.push((format!("{prefix}.model.name"), name.to_string()));
    fields.push((format!("{prefix}.model.root"), root.to_string()));
}

pub(super) fn push_resources(fields: &mut FieldTexts, prefix: &str, resources: &Resources) {
    let Resources { cpu_millicores, memory_bytes, gpu_count, gpu_share_percent, gpu_memory_bytes } =
        resources;
    fields.push((format!("{prefix}.cpu"), format!("{cpu_millicores} millicores")));
    fields.push((format!("{prefix}.memory"), show_bytes(*memory_bytes)));
    fields.push((format!("{prefix}.gpus"), counted(u64::from(*gpu_count), "whole GPU")));
    fields.push((format!("{prefix}.gpu share"), format!("{gpu_share_percent} %")));
    fields.push((format!("{prefix}.gpu memory"), show_bytes(*gpu_memory_bytes)));
}

pub(super) fn push_placement(fields: &mut FieldTexts, prefix: &str, placement: &Placement) {
    let Placement { regions, node_selector, isolation } = placement;
    let regions = if regions.is_empty() { "any".to_string() } else { list(regions) };
    fields.push((format!("{prefix}.regions"), regions));
    fields.push((format!("{prefix}.node labels"), labels_text(node_selector)));
    fields.push((format!("{prefix}.isolation at least"), isolation_name(*isolation).into()));
}

fn push_encryption(fields: &mut FieldTexts, prefix: &str, key: &EncryptionKey) {
    let EncryptionKey { x25519, ml_kem } = key;
    fields.push((format!("{prefix}.x25519"), x25519.to_string()));
    fields.push((format!("{prefix}.ml-kem-768"), key_digest(ml_kem)));
}

pub(super) fn key_digest(key: &ByteString) -> String {
    format!("{} (digest of {} bytes)", Digest::of(&key.0), key.0.len())
}

pub(super) fn labels_text(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> =
        labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), quoted(value))).collect();
    if pairs.is_empty() { NONE.into() } else { pairs.join(", ") }
}

pub(super) fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    if texts.is_empty() { NONE.into() } else { texts.join(", ") }
}

pub(super) fn optional<T>(value: Option<&T>, show: impl Fn(&T) -> String) -> String {
    let text = value.map_or_else(|| NONE.to_string(), show);
    debug_assert_eq!(value.is_none(), text == NONE, "no value that is there looks absent");
    text
}

fn class_name(class: ActionClass) -> &'static str {
    match class {
        ActionClass::Routine => "routine",
        ActionClass::Sensitive => "sensitive",
        ActionClass::Personal => "personal",
    }
}

pub(super) fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Storage => "storage",
        NodeRole::Gateway => "gateway",
    }
}

fn task_name(task: Task) -> &'static str {
    match task {
        Task::Embed => "embed",
        Task::Generate => "generate",
        Task::Rerank => "rerank",
    }
}

fn runtime_name(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Candle => "candle",
        Runtime::Process => "process",
    }
}

fn expiry_name(on_expiry: OnExpiry) -> &'static str {
    match on_expiry {
        OnExpiry::Hold => "hold: what runs continues, nothing new starts",
        OnExpiry::Drain => "drain: what runs finishes and ends",
    }
}

fn failure_name(on_failure: OnFailure) -> &'static str {
    match on_failure {
        OnFailure::Hold => "hold: nothing earlier runs again without a vote",
        OnFailure::Return => "return: the present value may run again without a vote",
    }
}

fn exclusive_name(exclusive: bool) -> &'static str {
    if exclusive {
        "yes: no slot lives on two nodes"
    } else {
        "no: a slot may live on each node that held it, for as long as the autonomy"
    }
}

fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::None => "none",
        Isolation::SameUid => "same user id",
        Isolation::Full => "full",
    }
}
