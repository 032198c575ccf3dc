//! What people change inside what is approved: models, key wraps, API keys, replicas, and nodes that ask.

use crate::cluster::{Cluster, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use crate::limits::{
    API_KEYS_MAX, MODELS_MAX, PENDING_BYTES_MAX, PENDING_NODES_MAX, PENDING_REFRESH_MS, PENDING_SILENT_MS,
    STORE_URL_BYTES_MAX, WRAPS_PER_COMMAND_MAX,
};
use protocol::agent::PendingNode;
use protocol::error_code::{
    CIRCLE_NOT_FOUNDED, COMMAND_INVALID, KEY_NOT_FOUND, LIMIT_REACHED, MODEL_NOT_FOUND, NAME_TAKEN,
    NODE_NOT_ADMITTED, SCALE_OUTSIDE_ENVELOPE, SERVICE_NOT_FOUND,
};
use protocol::gateway::ApiKey;
use protocol::governance::{Change, NodeAdmission};
use protocol::limits::{LABELS_MAX, NAME_BYTES_MAX};
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::{Millis, NodeId, ServiceName, TokenName};

/// Length of an ML-KEM-768 ciphertext in bytes (FIPS 203, table 3).
const ML_KEM_768_CIPHERTEXT_LENGTH: usize = 1088;
/// Length of a sealed model key: 32 bytes and AES-GCM's tag of 16.
const SEALED_KEY_LENGTH: usize = 48;

pub(super) fn register_model(
    cluster: &mut Cluster,
    actor: &Actor,
    record: &ModelRecord,
) -> Result<Reply, Refusal> {
    let known = cluster.models.get(&record.root);
    if known.is_none() && cluster.models.len() >= MODELS_MAX {
        return Err(Refusal::new(LIMIT_REACHED, format!("{MODELS_MAX} models are registered")));
    }
    let invalid = |message: String| Err(Refusal::new(COMMAND_INVALID, message));
    if record.stores.is_empty() || record.stores.len() != record.erasure.shards() {
        let (stores, shards) = (record.stores.len(), record.erasure.shards());
        return invalid(format!("model {} names {stores} stores for {shards} shards", record.name));
    }
    let texts = record.stores.iter().flat_map(|store| [store.url.len(), store.failure_domain.len()]);
    let longest = texts.max().unwrap_or(0);
    if longest > STORE_URL_BYTES_MAX {
        let name = &record.name;
        return invalid(format!(
            "model {name}: a store's url or failure domain is {longest} bytes; accepted: at most {STORE_URL_BYTES_MAX}"
        ));
    }
    let architecture = record.architecture.len();
    if architecture > NAME_BYTES_MAX {
        let name = &record.name;
        return invalid(format!(
            "model {name}: its architecture is {architecture} bytes; accepted: at most {NAME_BYTES_MAX}"
        ));
    }
    let subject = format!("model/{}", record.name);
    cluster.models.insert(record.root, record.clone());
    cluster.generation += 1;
    cluster.audit.record(cluster.now, &actor.to_string(), "register", &subject, &record.root.short());
    Ok(Reply::Done)
}

pub(super) fn put_wraps(cluster: &mut Cluster, actor: &Actor, wraps: &[KeyWrap]) -> Result<Reply, Refusal> {
    if wraps.is_empty() || wraps.len() > WRAPS_PER_COMMAND_MAX {
        let message =
            format!("{} wraps; accepted: 1 to {WRAPS_PER_COMMAND_MAX}; send the rest after", wraps.len());
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    for wrap in wraps {
        if !cluster.models.contains_key(&wrap.root) {
            let message = format!("no model {} is registered", wrap.root.short());
            return Err(Refusal::new(MODEL_NOT_FOUND, message));
        }
        if wrap.encapsulated.0.len() != ML_KEM_768_CIPHERTEXT_LENGTH
            || wrap.sealed.0.len() != SEALED_KEY_LENGTH
        {
            let (encapsulated, sealed) = (wrap.encapsulated.0.len(), wrap.sealed.0.len());
            let message = format!(
                "a wrap of {encapsulated} and {sealed} bytes; it has {ML_KEM_768_CIPHERTEXT_LENGTH} and {SEALED_KEY_LENGTH}"
            );
            return Err(Refusal::new(COMMAND_INVALID, message));
        }
        if !may_receive(cluster, &wrap.recipient) {
            let message = match &wrap.recipient {
                Recipient::Node(node) => format!("node {} is neither admitted nor asks to be", node.short()),
                Recipient::Member(member) => format!("`{member}` is not a member"),
            };
            return Err(Refusal::new(NODE_NOT_ADMITTED, message));
        }
    }
    for wrap in wraps {
        cluster.wraps.entry(wrap.root).or_default().insert(wrap.recipient.clone(), wrap.clone());
    }
    cluster.generation += 1;
    let detail = format!("{} wraps", wraps.len());
    let subject = format!("model/{}", wraps[0].root.short());
    cluster.audit.record(cluster.now, &actor.to_string(), "wrap", &subject, &detail);
    Ok(Reply::Done)
}

/// Members, admitted nodes, and nodes that wait for admission: an approval to admit a node finds its
/// wraps already there, so that its slots need no step by hand.
fn may_receive(cluster: &Cluster, recipient: &Recipient) -> bool {
    match recipient {
        Recipient::Member(id) => cluster.circle_state().is_some_and(|state| state.member(id).is_some()),
        Recipient::Node(id) => {
            cluster.node(id).is_some() || cluster.pending.contains_key(id) || is_proposed(cluster, *id)
        }
    }
}

fn is_proposed(cluster: &Cluster, id: NodeId) -> bool {
    let changes = cluster.open.values().map(|open| &open.proposal.change);
    changes.into_iter().any(|change| matches!(change, Change::AdmitNode(node) if node.id == id))
}

/// Forgets wraps for those who are neither in the circle nor ask to be.
pub(super) fn drop_strangers_wraps(cluster: &mut Cluster) {
    let strangers: Vec<(protocol::ModelRoot, Recipient)> = cluster
        .wraps
        .iter()
        .flat_map(|(root, wraps)| wraps.keys().map(|recipient| (*root, recipient.clone())))
        .filter(|(_, recipient)| !may_receive(cluster, recipient))
        .collect();
    for (root, recipient) in strangers {
        if let Some(wraps) = cluster.wraps.get_mut(&root) {
            wraps.remove(&recipient);
        }
    }
}

pub(super) fn create_key(cluster: &mut Cluster, actor: &Actor, key: &ApiKey) -> Result<Reply, Refusal> {
    if cluster.api_keys.len() >= API_KEYS_MAX {
        return Err(Refusal::new(LIMIT_REACHED, format!("{API_KEYS_MAX} API keys exist")));
    }
    let taken = cluster.api_keys.values().any(|other| other.hash == key.hash);
    if taken || cluster.api_keys.contains_key(&key.name) {
        return Err(Refusal::new(NAME_TAKEN, format!("an API key `{}` (or its text) exists", key.name)));
    }
    if key.requests_per_minute == Some(0) {
        return Err(Refusal::new(COMMAND_INVALID, "a key for 0 requests per minute is of no use; revoke it"));
    }
    cluster.api_keys.insert(key.name.clone(), key.clone());
    cluster.audit.record(cluster.now, &actor.to_string(), "create-key", &format!("key/{}", key.name), "");
    Ok(Reply::Done)
}

pub(super) fn revoke_key(cluster: &mut Cluster, actor: &Actor, name: &TokenName) -> Result<Reply, Refusal> {
    if cluster.api_keys.remove(name).is_none() {
        return Err(Refusal::new(KEY_NOT_FOUND, format!("there is no API key `{name}`")));
    }
    cluster.audit.record(cluster.now, &actor.to_string(), "revoke-key", &format!("key/{name}"), "");
    Ok(Reply::Done)
}

pub(super) fn scale(
    cluster: &mut Cluster,
    actor: &Actor,
    name: &ServiceName,
    replicas: u32,
) -> Result<Reply, Refusal> {
    let service = cluster.services.get_mut(name).filter(|service| service.phase == ServicePhase::Active);
    let Some(service) = service else {
        return Err(Refusal::new(SERVICE_NOT_FOUND, format!("no service `{name}` runs")));
    };
    let range = service.manifest.replicas;
    if !(range.min..=range.max).contains(&replicas) {
        let message = format!(
            "`{name}` may have {} to {} replicas, not {replicas}; more needs a new approval",
            range.min, range.max
        );
        return Err(Refusal::new(SCALE_OUTSIDE_ENVELOPE, message));
    }
    let before = std::mem::replace(&mut service.desired, replicas);
    cluster.generation += 1;
    let detail = format!("from {before} to {replicas}");
    cluster.audit.record(cluster.now, &actor.to_string(), "scale", &format!("service/{name}"), &detail);
    Ok(Reply::Done)
}

/// What [`enrol`] answers at `now` where it notes nothing; none where it would. Whoever carries commands to the
/// log asks this first: an unknown key may ask as often as it likes, and shall not write.
#[must_use]
pub fn enrol_answer(
    cluster: &Cluster,
    admission: &NodeAdmission,
    now: Millis,
) -> Option<Result<Reply, Refusal>> {
    let refuse = |code, message: String| Some(Err(Refusal::new(code, message)));
    if cluster.circle.is_none() {
        return refuse(CIRCLE_NOT_FOUNDED, "the circle is not founded yet".into());
    }
    if cluster.node(&admission.id).is_some() {
        return Some(Ok(Reply::Enrolled { admitted: true }));
    }
    let bytes = protocol::canonical::to_bytes(admission).len();
    let labels = admission.labels.len();
    if bytes > PENDING_BYTES_MAX || labels > LABELS_MAX {
        let message = format!(
            "node `{}` asks with {bytes} bytes and {labels} labels; accepted: at most {PENDING_BYTES_MAX} bytes, {LABELS_MAX} labels",
            admission.name
        );
        return refuse(COMMAND_INVALID, message);
    }
    let fresh = |p: &PendingNode| p.admission == *admission && p.last_seen.plus(PENDING_REFRESH_MS) > now;
    match cluster.pending.get(&admission.id) {
        Some(known) => fresh(known).then_some(Ok(Reply::Enrolled { admitted: false })),
        None if cluster.pending.len() >= PENDING_NODES_MAX && silent(cluster, now).is_none() => {
            let message = format!("{PENDING_NODES_MAX} nodes wait for admission; try again later");
            refuse(LIMIT_REACHED, message)
        }
        None => None,
    }
}

/// Of those who wait for admission, the one that has been silent longest, if it has for long.
fn silent(cluster: &Cluster, now: Millis) -> Option<NodeId> {
    let oldest = cluster.pending.values().min_by_key(|pending| pending.last_seen)?;
    (oldest.last_seen.plus(PENDING_SILENT_MS) <= now).then_some(oldest.id)
}

/// Notes that an unknown node asks. It grants nothing: a certificate admits, and anybody can ask, so all
/// here is bounded.
pub(super) fn enrol(cluster: &mut Cluster, admission: &NodeAdmission) -> Result<Reply, Refusal> {
    let now = cluster.now;
    if let Some(answer) = enrol_answer(cluster, admission, now) {
        return answer;
    }
    let known = cluster.pending.contains_key(&admission.id);
    if !known && cluster.pending.len() >= PENDING_NODES_MAX {
        // No event for it: strangers that push each other out shall not push out what members did.
        silent(cluster, now).map(|silent| cluster.pending.remove(&silent));
    } else if !known {
        let subject = format!("node/{}", admission.name);
        cluster.audit.record(now, "stranger", "enrol", &subject, &admission.id.short());
    }
    assert!(known || cluster.pending.len() < PENDING_NODES_MAX, "an answer was due instead");
    let pending = PendingNode { admission: admission.clone(), id: admission.id, last_seen: now };
    cluster.pending.insert(admission.id, pending);
    Ok(Reply::Enrolled { admitted: false })
}
