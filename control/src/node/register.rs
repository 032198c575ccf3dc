//! Registration of models, and sharing of their keys with nodes that are admitted later.
//!
//! The key exists only in the importer's memory until one command registers the model together with wraps for
//! every member. If the importer is killed before that command, it leaves shards that garbage collection
//! removes. If it is killed afterwards, the model is registered and any member can share its key.

use crate::client::ClientError;
use crate::session::{MemberKeyFile, Session};
use anyhow::{Context as _, Result, anyhow};
use human_chain::CircleState;
use model_store::{EncryptionSecret, ModelKey, unwrap_key, wrap_key};
use protocol::api::{ModelWraps, Page, PutWraps, RegisterModel};
use protocol::governance::NodeAdmission;
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::{ModelName, Refusal, error_code};
use scheduler::limits::WRAPS_PER_COMMAND_MAX;
use serde::Serialize;

/// Maximum number of attempts to register a model while the circle keeps changing.
const ATTEMPTS_MAX: u32 = 3;

/// Returns an error if a name is taken, before anything is uploaded under it.
pub(super) async fn refuse_taken_name(session: &Session, name: &ModelName) -> Result<()> {
    let models: Page<ModelRecord> = session.client.get("/v1/models").await?;
    match models.items.iter().find(|record| record.name == *name) {
        None => Ok(()),
        Some(record) => {
            let message = format!(
                "model `{name}` is registered already (root {}); choose another name",
                record.root.short()
            );
            Err(Refusal::new(error_code::NAME_TAKEN, message).into())
        }
    }
}

/// Registers a model with its key wrapped to every member and every admitted node.
///
/// The members and nodes are those at the end of the upload, which may be an hour after its beginning.
pub(super) async fn register(session: &Session, key: &ModelKey, record: &ModelRecord) -> Result<()> {
    for _ in 1..ATTEMPTS_MAX {
        match register_once(session, key, record).await {
            Err(error) if is_refused(&error, error_code::NODE_NOT_ADMITTED) => {}
            outcome => return outcome,
        }
    }
    register_once(session, key, record).await
}

async fn register_once(session: &Session, key: &ModelKey, record: &ModelRecord) -> Result<()> {
    let session = Session::with_client(session.client.clone(), session.circle.id()).await?;
    let mut wraps = wrap_to_all(key, record, &session.circle)?;
    // Members come first, so any member can later share wraps that do not fit into this command.
    let rest = wraps.split_off(wraps.len().min(WRAPS_PER_COMMAND_MAX));
    let body = RegisterModel { record: record.clone(), wraps };
    let _: serde_json::Value = session.client.post("/v1/models", &body).await?;
    let path = format!("/v1/models/{}/wraps", record.root);
    for wraps in rest.chunks(WRAPS_PER_COMMAND_MAX) {
        let _: serde_json::Value = session.client.put(&path, &PutWraps { wraps: wraps.to_vec() }).await?;
    }
    Ok(())
}

fn is_refused(error: &anyhow::Error, code: protocol::ErrorCode) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Refused(problem)) if problem.code == code.as_str())
}

fn wrap_to_all(key: &ModelKey, record: &ModelRecord, circle: &CircleState) -> Result<Vec<KeyWrap>> {
    let members =
        circle.members().map(|member| (Recipient::Member(member.id.clone()), &member.keys.encryption));
    let nodes = circle.nodes().map(|node| (Recipient::Node(node.id), &node.encryption));
    let all = members.chain(nodes);
    all.map(|(recipient, to)| Ok(wrap_key(key, to, record.root, recipient)?)).collect()
}

/// Models whose keys a node holds now, and models whose keys no member holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SharedKeys {
    /// Models whose keys the node holds.
    pub models: Vec<ModelName>,
    /// Models without any holder of their key: they can only be forgotten and imported again.
    pub keyless: Vec<ModelName>,
}

impl SharedKeys {
    /// Returns a note for people about models without a key; none if there are no such models.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let names: Vec<&str> = self.keyless.iter().map(ModelName::as_str).collect();
        let first = names.first()?;
        let all = names.join(", ");
        Some(format!(
            "no member or node holds the key of {all}: run `quorate model forget {first}`, and import it \
             again under another name"
        ))
    }
}

/// Opens every model's key with a member's secret and wraps it to a node, admitted or about to be.
///
/// # Errors
/// Returns an error if a model's key was wrapped to others and never to this member.
pub async fn wrap_models_to(
    session: &Session,
    member: &MemberKeyFile,
    node: &NodeAdmission,
) -> Result<SharedKeys> {
    let public = member.secret.public().encryption;
    let secret =
        EncryptionSecret::from_parts(member.secret.x25519_secret(), member.secret.ml_kem_secret(), &public)?;
    let models: Page<ModelRecord> = session.client.get("/v1/models").await?;
    let mut shared = SharedKeys::default();
    for record in models.items {
        let path = format!("/v1/models/{}/wraps", record.root);
        let known: ModelWraps = session.client.get(&path).await?;
        let held_by = |recipient| known.wraps.iter().find(|wrap| wrap.recipient == recipient);
        if known.wraps.is_empty() {
            shared.keyless.push(record.name);
            continue;
        }
        if held_by(Recipient::Node(node.id)).is_none() {
            let wrap = held_by(Recipient::Member(member.member.clone())).ok_or_else(|| {
                anyhow!(
                    "the key of model `{}` was never wrapped to {}; another member must share it",
                    record.name,
                    member.member
                )
            })?;
            let key =
                unwrap_key(wrap, &secret).with_context(|| format!("open the key of `{}`", record.name))?;
            let wrap = wrap_key(&key, &node.encryption, record.root, Recipient::Node(node.id))?;
            match session.client.put(&path, &PutWraps { wraps: vec![wrap] }).await {
                Ok::<serde_json::Value, _>(_) => {}
                // Another member has stored the wrap first.
                Err(ClientError::Refused(problem)) if problem.code == error_code::WRAP_HELD.as_str() => {}
                Err(error) => return Err(error.into()),
            }
        }
        shared.models.push(record.name);
    }
    Ok(shared)
}

#[cfg(test)]
mod tests;
