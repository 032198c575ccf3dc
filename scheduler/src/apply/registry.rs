//! Registry commands inside what is approved: models, key wraps, replica counts, and enrolment of nodes.
//!
//! A wrap carries its maker's signature, which is verified here, so that no access token can plant one. Only
//! members and admitted workers are recipients. A wrap that does not open for its recipient is dropped by
//! the recipient's signed complaint.

use super::known::{circle, not_founded};
use crate::clock::{ClockReadings, ClusterTime};
use crate::cluster::{Cluster, ServicePhase};
use crate::command::{Actor, Refusal, Reply};
use crate::limits::{
    MODELS_MAX, PENDING_BYTES_MAX, PENDING_NODES_MAX, PENDING_REFRESH_MS, PENDING_SILENT_MS,
    STORE_URL_BYTES_MAX, WRAPS_MAX, WRAPS_PER_COMMAND_MAX,
};
use human_chain::{CircleState, check_complaint, check_node, check_wrap, recipient_key, recipients_touched};
use protocol::agent::PendingNode;
use protocol::display::counted;
use protocol::error_code::{
    COMMAND_INVALID, LIMIT_REACHED, MODEL_FORGOTTEN, MODEL_IN_USE, MODEL_NAME_TAKEN, MODEL_NOT_FOUND,
    MODEL_RECORD_DIFFERS, NAME_TAKEN, SCALE_OUTSIDE_ENVELOPE, SERVICE_NOT_FOUND, WRAP_HELD, WRAP_NOT_HELD,
};
use protocol::governance::{Change, NodeAdmission};
use protocol::keys::EncryptionKey;
use protocol::limits::{LABELS_MAX, NAME_BYTES_MAX};
use protocol::manifest::ModelChoice;
use protocol::model::{KeyWrap, ModelRecord, Recipient, SignedComplaint, SignedWrap};
use protocol::{ModelRoot, NodeId, ServiceName};
use std::collections::BTreeMap;

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
    wraps: &[SignedWrap],
) -> Result<Reply, Refusal> {
    let known = is_registered(cluster, record)?;
    check_stores(record)?;
    if wraps.iter().any(|signed| signed.wrap.root != record.root) {
        return Err(Refusal::new(COMMAND_INVALID, "a wrap is of another model's key"));
    }
    check_wraps(cluster, wraps)?;
    if !wraps.iter().any(|signed| matches!(signed.wrap.recipient, Recipient::Member(_))) {
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
    let (subject, detail) = (
        format!("model/{}", record.name),
        format!("{}, {}", record.root.short(), counted(fresh as u64, "wrap")),
    );
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

/// Checks the stores of an item against its erasure code, and the lengths of its texts.
pub(super) fn check_stores(record: &ModelRecord) -> Result<(), Refusal> {
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

pub(super) fn put_wraps(
    cluster: &mut Cluster,
    actor: &Actor,
    wraps: &[SignedWrap],
) -> Result<Reply, Refusal> {
    if let Some(unknown) = wraps.iter().find(|signed| !cluster.models.contains_key(&signed.wrap.root)) {
        let message = format!("no model {} is registered", unknown.wrap.root.short());
        return Err(Refusal::new(MODEL_NOT_FOUND, message));
    }
    check_wraps(cluster, wraps)?;
    let fresh = keep_wraps(cluster, wraps);
    if fresh > 0 {
        cluster.generation += 1;
        let subject = format!("model/{}", wraps[0].wrap.root.short());
        cluster.audit.record(
            cluster.now,
            &actor.to_string(),
            "wrap",
            &subject,
            &counted(fresh as u64, "wrap"),
        );
    }
    Ok(Reply::Done)
}

/// Drops a wrap about which its recipient complains, so that a member can make another.
pub(super) fn drop_wrap(cluster: &mut Cluster, signed: &SignedComplaint) -> Result<Reply, Refusal> {
    let complaint = &signed.complaint;
    let held = cluster.wrap_of(&complaint.root, &complaint.recipient);
    let Some(held) = held.filter(|held| held.digest() == complaint.wrap) else {
        let message = format!("no wrap {} is held for the one who complains", complaint.wrap.short());
        return Err(Refusal::new(WRAP_NOT_HELD, message));
    };
    check_complaint(circle(cluster)?, signed)?;
    let detail = format!("does not open the key; made by member/{}", held.maker);
    let name = cluster.models.get(&complaint.root).map(|record| record.name.to_string()).unwrap_or_default();
    let actor = match &complaint.recipient {
        Recipient::Member(member) => Actor::Member(member.clone()).to_string(),
        Recipient::Node(node) => format!("node/{}", cluster.node_name(node)),
    };
    if let Some(wraps) = cluster.wraps.get_mut(&complaint.root) {
        wraps.remove(&complaint.recipient);
    }
    cluster.generation += 1;
    cluster.audit.record(cluster.now, &actor, "drop-wrap", &format!("model/{name}"), &detail);
    Ok(Reply::Done)
}

/// Checks new wraps. An existing wrap is not replaced: only its recipient knows whether it opens, and
/// complains if it does not. Signatures are verified last, because they cost most.
fn check_wraps(cluster: &Cluster, wraps: &[SignedWrap]) -> Result<(), Refusal> {
    if wraps.is_empty() || wraps.len() > WRAPS_PER_COMMAND_MAX {
        let message = format!(
            "{} wraps; accepted: 1 to {WRAPS_PER_COMMAND_MAX}; send the rest in another command",
            wraps.len()
        );
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let state = circle(cluster)?;
    let mut seen = BTreeMap::new();
    let mut fresh = 0;
    for signed in wraps {
        let wrap = &signed.wrap;
        check_wrap_lengths(wrap)?;
        recipient_key(state, &wrap.recipient)?;
        let held = cluster.wrap_of(&wrap.root, &wrap.recipient);
        let twin = seen.insert((wrap.root, &wrap.recipient), signed);
        if held.or(twin).is_some_and(|other| other != signed) {
            let name = match &wrap.recipient {
                Recipient::Node(node) => format!("node {}", cluster.node_name(node)),
                Recipient::Member(member) => format!("member `{member}`"),
            };
            return Err(Refusal::new(WRAP_HELD, format!("{name} holds another wrap of the model's key")));
        }
        fresh += usize::from(held.is_none());
    }
    let kept: usize = cluster.wraps.values().map(BTreeMap::len).sum();
    if kept + fresh > WRAPS_MAX {
        let message = format!("{kept} wraps are kept, at most {WRAPS_MAX}; forget models that are not used");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    wraps.iter().try_for_each(|signed| Ok(check_wrap(state, signed)?))
}

/// Checks the lengths of a wrap's ciphertexts.
pub(super) fn check_wrap_lengths(wrap: &KeyWrap) -> Result<(), Refusal> {
    let (encapsulated, sealed) = (wrap.encapsulated.0.len(), wrap.sealed.0.len());
    if (encapsulated, sealed) == (ML_KEM_768_CIPHERTEXT_LENGTH, SEALED_KEY_LENGTH) {
        return Ok(());
    }
    let message = format!(
        "a wrap of {encapsulated} and {sealed} bytes; \
         accepted: {ML_KEM_768_CIPHERTEXT_LENGTH} and {SEALED_KEY_LENGTH}"
    );
    Err(Refusal::new(COMMAND_INVALID, message))
}

/// Keeps the new wraps and returns their number.
fn keep_wraps(cluster: &mut Cluster, wraps: &[SignedWrap]) -> usize {
    debug_assert!((1..=WRAPS_PER_COMMAND_MAX).contains(&wraps.len()), "wraps were checked before");
    let mut keep = |signed: &SignedWrap| {
        let of_model = cluster.wraps.entry(signed.wrap.root).or_default();
        of_model.insert(signed.wrap.recipient.clone(), signed.clone()).is_none()
    };
    wraps.iter().filter(|signed| keep(signed)).count()
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

/// Recipients whose keys a change may replace or end, each with its key before the change, if it had one.
pub(super) type TouchedKeys = BTreeMap<Recipient, Option<EncryptionKey>>;

/// Returns the keys that a change may replace or end, for comparison after it.
pub(super) fn touched_keys(state: &CircleState, change: &Change) -> TouchedKeys {
    let with_key = |recipient: Recipient| {
        let key = recipient_key(state, &recipient).ok().cloned();
        (recipient, key)
    };
    recipients_touched(state, change).into_iter().map(with_key).collect()
}

/// Drops wraps for parties that are recipients no longer, and wraps to replaced keys.
pub(super) fn drop_useless_wraps(cluster: &mut Cluster, touched: &TouchedKeys) {
    let of_model = |root: &ModelRoot| cluster.models.contains_key(root);
    debug_assert!(cluster.wraps.keys().all(of_model), "wraps are forgotten with their model");
    let Some(state) = cluster.circle_state() else { return };
    let is_useless = |(recipient, before): &(&Recipient, &Option<EncryptionKey>)| {
        let now = recipient_key(state, recipient).ok();
        now.is_none() || before.as_ref().is_some_and(|before| now != Some(before))
    };
    let useless: Vec<&Recipient> =
        touched.iter().filter(is_useless).map(|(recipient, _)| recipient).collect();
    for wraps in cluster.wraps.values_mut() {
        for recipient in &useless {
            wraps.remove(*recipient);
        }
    }
    cluster.jobs.drop_data_wraps(|recipient| useless.contains(&recipient));
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

/// Returns the reply of [`enrol`] if it would record nothing at these readings; none if it would. The shell
/// calls this before it proposes the command: an unknown key may ask often, but must not write to the log
/// each time.
#[must_use]
pub fn enrol_answer(
    cluster: &Cluster,
    admission: &NodeAdmission,
    clocks: &ClockReadings,
) -> Option<Result<Reply, Refusal>> {
    answer_unrecorded(cluster, admission, cluster.time(clocks))
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
        return Some(Err(not_founded()));
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
    // An admission that is on the list was checked before.
    let known = cluster.pending.get(&admission.id);
    if known.is_none_or(|known| known.admission != *admission)
        && let Err(error) = check_node(admission)
    {
        return Some(Err(error.into()));
    }
    match known {
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
    let pending = PendingNode { admission: admission.clone(), id: admission.id, last_seen: now.0 };
    cluster.pending.insert(admission.id, pending);
    debug_assert!(cluster.pending.len() <= PENDING_NODES_MAX, "a full list evicts before it takes");
    Ok(Reply::Enrolled { admitted: false })
}
