//! Registry commands inside what is approved: models, key wraps, API keys, replica counts, and enrolment of
//! nodes.

use crate::clock::{ClusterTime, WallTime};
use crate::cluster::{Cluster, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use crate::limits::{
    API_KEYS_MAX, MODELS_MAX, PENDING_BYTES_MAX, PENDING_NODES_MAX, PENDING_REFRESH_MS, PENDING_SILENT_MS,
    STORE_URL_BYTES_MAX, WRAPS_PER_COMMAND_MAX,
};
use protocol::agent::PendingNode;
use protocol::error_code::{
    CIRCLE_NOT_FOUNDED, COMMAND_INVALID, KEY_NOT_FOUND, LIMIT_REACHED, MODEL_FORGOTTEN, MODEL_IN_USE,
    MODEL_NAME_TAKEN, MODEL_NOT_FOUND, MODEL_RECORD_DIFFERS, NAME_TAKEN, NODE_NOT_ADMITTED,
    SCALE_OUTSIDE_ENVELOPE, SERVICE_NOT_FOUND, WRAP_HELD,
};
use protocol::gateway::ApiKey;
use protocol::governance::{Change, NodeAdmission};
use protocol::keys::EncryptionKey;
use protocol::limits::{LABELS_MAX, NAME_BYTES_MAX};
use protocol::manifest::ModelChoice;
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::{ModelRoot, NodeId, ServiceName, TokenName};
use std::collections::{BTreeMap, BTreeSet};

/// Length of an ML-KEM-768 ciphertext in bytes (FIPS 203, table 3).
const ML_KEM_768_CIPHERTEXT_LENGTH: usize = 1088;
/// Length of a sealed model key: 32 bytes and AES-GCM's tag of 16.
const SEALED_KEY_LENGTH: usize = 48;

/// Registers a model together with its key. The importer may crash at any moment: a registered model always
/// has a member who holds its key. The same command again changes nothing.
pub(super) fn register_model(
    cluster: &mut Cluster,
    actor: &Actor,
    record: &ModelRecord,
    wraps: &[KeyWrap],
) -> Result<Reply, Refusal> {
    let known = is_registered(cluster, record)?;
    check_record(record)?;
    if wraps.iter().any(|wrap| wrap.root != record.root) {
        return Err(Refusal::new(COMMAND_INVALID, "a wrap is of another model's key"));
    }
    check_wraps(cluster, wraps)?;
    if !wraps.iter().any(|wrap| matches!(wrap.recipient, Recipient::Member(_))) {
        let message =
            format!("the key of model `{}` is wrapped to no member who could share it", record.name);
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let fresh = keep_wraps(cluster, wraps);
    if known && fresh == 0 {
        return Ok(Reply::Done);
    }
    cluster.models.insert(record.root, record.clone());
    cluster.generation += 1;
    let (subject, detail) =
        (format!("model/{}", record.name), format!("{}, {fresh} wraps", record.root.short()));
    cluster.audit.record(cluster.now, &actor.to_string(), "register", &subject, &detail);
    Ok(Reply::Done)
}

/// Returns whether exactly this record is registered. A token may add models; it cannot change one, and
/// cannot take a name that is in use.
fn is_registered(cluster: &Cluster, record: &ModelRecord) -> Result<bool, Refusal> {
    let state = cluster.circle_state();
    if state.is_some_and(|state| state.forgotten(&record.root).is_some()) {
        let message = format!("the circle decided to forget model `{}`; import it anew", record.name);
        return Err(Refusal::new(MODEL_FORGOTTEN, message));
    }
    if let Some(known) = cluster.models.get(&record.root) {
        if known == record {
            return Ok(true);
        }
        let message = format!("the model is registered as `{}`, and differently", known.name);
        return Err(Refusal::new(MODEL_RECORD_DIFFERS, message));
    }
    if cluster.models.values().any(|other| other.name == record.name) {
        return Err(Refusal::new(NAME_TAKEN, format!("another model is called `{}`", record.name)));
    }
    if let Some(bound) = state.and_then(|state| state.model_root(&record.name))
        && bound != record.root
    {
        let message = format!(
            "the name `{}` stands for root {} for ever; choose another name",
            record.name,
            bound.short()
        );
        return Err(Refusal::new(MODEL_NAME_TAKEN, message));
    }
    if cluster.models.len() >= MODELS_MAX {
        return Err(Refusal::new(LIMIT_REACHED, format!("{MODELS_MAX} models are registered")));
    }
    Ok(false)
}

fn check_record(record: &ModelRecord) -> Result<(), Refusal> {
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
            "model {name}: a store's url or failure domain is {longest} bytes; \
             accepted: at most {STORE_URL_BYTES_MAX}"
        ));
    }
    let architecture = record.architecture.len();
    if architecture > NAME_BYTES_MAX {
        let name = &record.name;
        return invalid(format!(
            "model {name}: its architecture is {architecture} bytes; accepted: at most {NAME_BYTES_MAX}"
        ));
    }
    Ok(())
}

pub(super) fn put_wraps(cluster: &mut Cluster, actor: &Actor, wraps: &[KeyWrap]) -> Result<Reply, Refusal> {
    if let Some(wrap) = wraps.iter().find(|wrap| !cluster.models.contains_key(&wrap.root)) {
        let message = format!("no model {} is registered", wrap.root.short());
        return Err(Refusal::new(MODEL_NOT_FOUND, message));
    }
    check_wraps(cluster, wraps)?;
    let fresh = keep_wraps(cluster, wraps);
    if fresh > 0 {
        cluster.generation += 1;
        let subject = format!("model/{}", wraps[0].root.short());
        cluster.audit.record(cluster.now, &actor.to_string(), "wrap", &subject, &format!("{fresh} wraps"));
    }
    Ok(Reply::Done)
}

/// Checks new wraps. An existing wrap opens for its recipient, since wraps to replaced keys are dropped.
/// Another one could therefore only lock the recipient out.
fn check_wraps(cluster: &Cluster, wraps: &[KeyWrap]) -> Result<(), Refusal> {
    if wraps.is_empty() || wraps.len() > WRAPS_PER_COMMAND_MAX {
        let message = format!(
            "{} wraps; accepted: 1 to {WRAPS_PER_COMMAND_MAX}; send the rest in another command",
            wraps.len()
        );
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let mut seen = BTreeMap::new();
    for wrap in wraps {
        if wrap.encapsulated.0.len() != ML_KEM_768_CIPHERTEXT_LENGTH
            || wrap.sealed.0.len() != SEALED_KEY_LENGTH
        {
            let (encapsulated, sealed) = (wrap.encapsulated.0.len(), wrap.sealed.0.len());
            let message = format!(
                "a wrap of {encapsulated} and {sealed} bytes; \
                 accepted: {ML_KEM_768_CIPHERTEXT_LENGTH} and {SEALED_KEY_LENGTH}"
            );
            return Err(Refusal::new(COMMAND_INVALID, message));
        }
        let name = match &wrap.recipient {
            Recipient::Node(node) => format!("node {}", node.short()),
            Recipient::Member(member) => format!("member `{member}`"),
        };
        if key_of(cluster, &wrap.recipient).is_none() {
            let message = format!("{name} is neither in the circle nor pending");
            return Err(Refusal::new(NODE_NOT_ADMITTED, message));
        }
        let held = cluster.wraps.get(&wrap.root).and_then(|wraps| wraps.get(&wrap.recipient));
        let twin = seen.insert((wrap.root, &wrap.recipient), wrap);
        if held.or(twin).is_some_and(|other| other != wrap) {
            return Err(Refusal::new(WRAP_HELD, format!("{name} holds another wrap of the model's key")));
        }
    }
    Ok(())
}

/// Keeps the new wraps and returns their number.
fn keep_wraps(cluster: &mut Cluster, wraps: &[KeyWrap]) -> usize {
    debug_assert!((1..=WRAPS_PER_COMMAND_MAX).contains(&wraps.len()), "wraps were checked before");
    let mut keep = |wrap: &KeyWrap| {
        let of_model = cluster.wraps.entry(wrap.root).or_default();
        of_model.insert(wrap.recipient.clone(), wrap.clone()).is_none()
    };
    wraps.iter().filter(|wrap| keep(wrap)).count()
}

/// Checks a proposal to forget a model against the registry: it names a registered model as it is registered,
/// and no slot runs on it.
pub(super) fn check_forgetting(cluster: &Cluster, model: &ModelChoice) -> Result<(), Refusal> {
    let same = |record: &&ModelRecord| record.root == model.root || record.name == model.name;
    if let Some(record) = cluster.models.values().find(same)
        && (record.root, &record.name) != (model.root, &model.name)
    {
        let (root, registered) = (model.root.short(), record.root.short());
        let message = format!(
            "`{}` (root {registered}) is registered, not `{}` (root {root})",
            record.name, model.name
        );
        return Err(Refusal::new(MODEL_RECORD_DIFFERS, message));
    }
    match user_of(cluster, &model.root) {
        Some(service) => {
            let message = format!("slots of service `{service}` still run model `{}`", model.name);
            Err(Refusal::new(MODEL_IN_USE, message))
        }
        None => Ok(()),
    }
}

/// Returns a service that is approved to run a model, or whose last slots still run it.
fn user_of<'a>(cluster: &'a Cluster, root: &ModelRoot) -> Option<&'a ServiceName> {
    let user = cluster.manifests.values().find(|manifest| manifest.model.root == *root);
    user.map(|manifest| &manifest.name)
}

/// Returns the registered models that the circle decided to forget, whose grace period is over at `now`.
pub(super) fn models_to_forget(cluster: &Cluster, now: ClusterTime) -> impl Iterator<Item = ModelRoot> {
    let is_over = move |root: &&ModelRoot| {
        let forgotten = cluster.circle_state().and_then(|state| state.forgotten(root));
        let is_over = forgotten.is_some_and(|forgotten| ClusterTime(forgotten.ends_at()) <= now);
        is_over && user_of(cluster, root).is_none()
    };
    cluster.models.keys().filter(is_over).copied()
}

/// Removes models from the registry permanently, by decision of the circle alone: their keys are lost with
/// their wraps. Their objects remain in the stores until garbage collection removes them.
pub(super) fn forget_models(cluster: &mut Cluster) {
    let over: Vec<ModelRoot> = models_to_forget(cluster, cluster.now).collect();
    for root in over {
        cluster.wraps.remove(&root);
        if let Some(record) = cluster.models.remove(&root) {
            let subject = format!("model/{}", record.name);
            cluster.audit.record(cluster.now, "circle", "forget", &subject, &root.short());
        }
        cluster.generation += 1;
    }
}

/// Returns the key for which a wrap for this recipient must be made. The recipient is a member, an admitted
/// node, or a node that asks for admission or is proposed. Wraps can thus exist before a node is admitted,
/// and its slots need no manual step.
fn key_of<'a>(cluster: &'a Cluster, recipient: &Recipient) -> Option<&'a EncryptionKey> {
    match recipient {
        Recipient::Member(id) => Some(&cluster.circle_state()?.member(id)?.keys.encryption),
        Recipient::Node(id) => {
            let asks = || cluster.pending.get(id).map(|pending| &pending.admission);
            let admission = cluster.node(id).or_else(asks).or_else(|| proposed(cluster, *id))?;
            Some(&admission.encryption)
        }
    }
}

fn proposed(cluster: &Cluster, id: NodeId) -> Option<&NodeAdmission> {
    cluster.open.values().find_map(|open| match &open.proposal.change {
        Change::AdmitNode(node) if node.id == id => Some(node.as_ref()),
        _ => None,
    })
}

/// Returns the current keys of all recipients of wraps, for comparison after a change.
pub(super) fn recipient_keys(cluster: &Cluster) -> BTreeMap<Recipient, EncryptionKey> {
    let recipients: BTreeSet<&Recipient> = cluster.wraps.values().flat_map(BTreeMap::keys).collect();
    let key = |recipient: &Recipient| Some((recipient.clone(), key_of(cluster, recipient)?.clone()));
    recipients.into_iter().filter_map(key).collect()
}

/// Drops wraps for recipients that are neither in the circle nor candidates, and wraps to replaced keys.
pub(super) fn drop_useless_wraps(cluster: &mut Cluster, before: &BTreeMap<Recipient, EncryptionKey>) {
    let of_model = |root: &ModelRoot| cluster.models.contains_key(root);
    debug_assert!(cluster.wraps.keys().all(of_model), "wraps are forgotten with their model");
    let after = recipient_keys(cluster);
    let opens = |recipient: &Recipient| {
        let key = after.get(recipient);
        key.is_some() && before.get(recipient).is_none_or(|before| key == Some(before))
    };
    for wraps in cluster.wraps.values_mut() {
        wraps.retain(|recipient, _| opens(recipient));
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
    debug_assert!((range.min..=range.max).contains(&before), "replicas are wanted inside the envelope");
    cluster.generation += 1;
    let detail = format!("from {before} to {replicas}");
    cluster.audit.record(cluster.now, &actor.to_string(), "scale", &format!("service/{name}"), &detail);
    Ok(Reply::Done)
}

/// Returns the reply of [`enrol`] if it would record nothing at `now`; none if it would. The shell calls this
/// before it proposes the command: an unknown key may ask often, but must not write to the log each time.
#[must_use]
pub fn enrol_answer(
    cluster: &Cluster,
    admission: &NodeAdmission,
    now: WallTime,
) -> Option<Result<Reply, Refusal>> {
    answer_unrecorded(cluster, admission, cluster.time(now))
}

/// Returns the reply to a request for admission that changes nothing in the state; none if it changes some.
fn answer_unrecorded(
    cluster: &Cluster,
    admission: &NodeAdmission,
    now: ClusterTime,
) -> Option<Result<Reply, Refusal>> {
    debug_assert!(now >= cluster.now, "an answer is never of the past");
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
            "node `{}` requests admission with {bytes} bytes and {labels} labels; \
             accepted: at most {PENDING_BYTES_MAX} bytes, {LABELS_MAX} labels",
            admission.name
        );
        return refuse(COMMAND_INVALID, message);
    }
    let fresh = |known: &PendingNode| {
        known.admission == *admission && ClusterTime(known.last_seen).plus(PENDING_REFRESH_MS) > now
    };
    match cluster.pending.get(&admission.id) {
        Some(known) => fresh(known).then_some(Ok(Reply::Enrolled { admitted: false })),
        None if cluster.pending.len() >= PENDING_NODES_MAX && silent(cluster, now).is_none() => {
            Some(Err(too_many_pending()))
        }
        None => None,
    }
}

fn too_many_pending() -> Refusal {
    Refusal::new(LIMIT_REACHED, format!("{PENDING_NODES_MAX} nodes wait for admission; try again later"))
}

/// Returns the pending node that has been silent longest, if for at least [`PENDING_SILENT_MS`].
fn silent(cluster: &Cluster, now: ClusterTime) -> Option<NodeId> {
    let oldest = cluster.pending.values().min_by_key(|pending| pending.last_seen)?;
    debug_assert!(ClusterTime(oldest.last_seen) <= now, "no node has asked in the future");
    (ClusterTime(oldest.last_seen).plus(PENDING_SILENT_MS) <= now).then_some(oldest.id)
}

/// Records that an unknown node asks for admission. It grants nothing, since only a certificate admits. Any
/// client may ask, so everything here is bounded.
pub(super) fn enrol(cluster: &mut Cluster, admission: &NodeAdmission) -> Result<Reply, Refusal> {
    let now = cluster.now;
    if let Some(answer) = answer_unrecorded(cluster, admission, now) {
        return answer;
    }
    let known = cluster.pending.contains_key(&admission.id);
    if !known && cluster.pending.len() >= PENDING_NODES_MAX {
        // No audit event: unadmitted nodes that evict each other must not evict the events of members.
        let evicted = silent(cluster, now).ok_or_else(too_many_pending)?;
        cluster.pending.remove(&evicted);
    } else if !known {
        let subject = format!("node/{}", admission.name);
        cluster.audit.record(now, "stranger", "enrol", &subject, &admission.id.short());
    }
    let keys_before = recipient_keys(cluster);
    let pending = PendingNode { admission: admission.clone(), id: admission.id, last_seen: now.0 };
    cluster.pending.insert(admission.id, pending);
    debug_assert!(cluster.pending.len() <= PENDING_NODES_MAX, "a full list evicts before it takes");
    drop_useless_wraps(cluster, &keys_before);
    Ok(Reply::Enrolled { admitted: false })
}
