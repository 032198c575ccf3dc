//! Registration of models, and sharing of their keys with parties that lack them.
//!
//! The key exists only in the importer's memory until one command registers the model together with wraps for
//! every member. If the importer is killed before that command, it leaves shards that garbage collection
//! removes. If it is killed afterwards, the model is registered and any member can share its key.
//!
//! Each wrap is made for a key of the verified history and signed by the member that makes it. The
//! list of control decides only whom a client tries to serve: a party that the circle has not admitted gets
//! nothing.

use crate::client::ClientError;
use crate::member_key::MemberKey;
use crate::session::Session;
use anyhow::{Context as _, Result};
use human_chain::{
    ChainError, check_wrap, recipient_key, recipients, sign_complaint, sign_wrap, sign_wrap_request,
};
use model_store::{ModelKey, wrap_key};
use protocol::api::{LackingKey, MemberWraps, PutWraps, RegisterModel};
use protocol::model::{KeyWrap, ModelRecord, Recipient, SignedWrap, WrapComplaint, WrapRequest};
use protocol::{ErrorCode, ModelName, ModelRoot, Refusal, error_code};
use scheduler::limits::WRAPS_PER_COMMAND_MAX;
use serde::Serialize;
use std::collections::BTreeSet;

/// Maximum number of attempts to register a model while the circle keeps changing.
const ATTEMPTS_MAX: u32 = 3;
/// Maximum number of commands in which one call shares keys: a million wraps. A server that never has enough
/// cannot keep the client busy.
const ROUNDS_MAX: u32 = 8192;
/// Refusals of a wrap for a party or a key that the circle has replaced since.
const CIRCLE_CHANGED: [ErrorCode; 4] = [
    error_code::NODE_NOT_ADMITTED,
    error_code::NOT_A_MEMBER,
    error_code::WRAP_RECIPIENT_INVALID,
    error_code::SIGNATURE_INVALID,
];

/// Returns an error if a name is taken, before anything is uploaded under it.
pub(super) async fn refuse_taken_name(session: &Session, name: &ModelName) -> Result<()> {
    let models: Vec<ModelRecord> = session.client.list("/v1/models").await?;
    match models.iter().find(|record| record.name == *name) {
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

/// Registers a model with its key wrapped to every member and every admitted worker, each wrap signed by the
/// importing member.
///
/// The members and nodes are those at the end of the upload, which may be an hour after its beginning.
pub(super) async fn register(
    session: &Session,
    member: &MemberKey,
    key: &ModelKey,
    record: &ModelRecord,
) -> Result<()> {
    for _ in 1..ATTEMPTS_MAX {
        match register_once(session, member, key, record).await {
            Err(error) if CIRCLE_CHANGED.iter().any(|code| is_refused(&error, *code)) => {}
            outcome => return outcome,
        }
    }
    register_once(session, member, key, record).await
}

async fn register_once(
    session: &Session,
    member: &MemberKey,
    key: &ModelKey,
    record: &ModelRecord,
) -> Result<()> {
    // An older history names removed nodes and members: no key is wrapped over less than this session
    // verified.
    let session = session.refresh().await?;
    let all: Vec<Recipient> = recipients(&session.circle).map(|(recipient, _)| recipient).collect();
    let wrap = |to: &Recipient| make_wrap(&session, member, key, record.root, to);
    let mut wraps: Vec<SignedWrap> = all.iter().map(wrap).collect::<Result<_>>()?;
    // Members come first, so any member can later share wraps that do not fit into this command.
    let rest = wraps.split_off(wraps.len().min(WRAPS_PER_COMMAND_MAX));
    let body = RegisterModel { record: record.clone(), wraps };
    let _: serde_json::Value = session.client.post("/v1/models", &body).await?;
    for wraps in rest.chunks(WRAPS_PER_COMMAND_MAX) {
        put_wraps(&session, wraps.to_vec()).await?;
    }
    Ok(())
}

async fn put_wraps(session: &Session, wraps: Vec<SignedWrap>) -> Result<(), ClientError> {
    let _: serde_json::Value = session.client.put("/v1/wraps", &PutWraps { wraps }).await?;
    Ok(())
}

/// Wraps a key for a party of the verified history, and signs the wrap.
fn make_wrap(
    session: &Session,
    member: &MemberKey,
    key: &ModelKey,
    root: ModelRoot,
    recipient: &Recipient,
) -> Result<SignedWrap> {
    let to = recipient_key(&session.circle, recipient).map_err(Refusal::from)?;
    let wrap: KeyWrap = wrap_key(key, to, root, recipient.clone())?;
    Ok(sign_wrap(&member.signer, member.member.clone(), session.circle.id(), to, wrap)?)
}

fn is_refused(error: &anyhow::Error, code: protocol::ErrorCode) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Refused(problem)) if problem.code == code.as_str())
}

/// Outcome of sharing: the keys that were shared, and those that could not be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SharedKeys {
    /// Models whose keys were shared, with the parties that got them.
    pub shared: Vec<SharedKey>,
    /// Models whose key did not open for this member. Another member shares it again.
    pub closed: Vec<ModelName>,
    /// Models whose key no member holds: they can only be forgotten and imported again.
    pub keyless: Vec<ModelName>,
}

/// Model whose key was shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedKey {
    /// Name of the model.
    pub model: ModelName,
    /// Parties that got the key: `node NAME` or `member NAME`.
    pub with: Vec<String>,
}

impl SharedKeys {
    /// Returns a line for people per model that was shared.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |key: &SharedKey| format!("shared the key of {} with {}", key.model, key.with.join(", "));
        self.shared.iter().map(line).collect()
    }

    /// Returns notes for people about keys that could not be shared.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let names =
            |models: &[ModelName]| models.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ");
        let mut notes = Vec::new();
        if !self.closed.is_empty() {
            notes.push(format!(
                "your wrap of the key of {} does not open and was dropped; another member's next command \
                 makes a new one",
                names(&self.closed)
            ));
        }
        if let Some(first) = self.keyless.first() {
            notes.push(format!(
                "no member holds the key of {}: run `quorate model forget {first}`, and import it again \
                 under another name",
                names(&self.keyless)
            ));
        }
        notes
    }
}

/// Shares every model's key that this member holds with the members and nodes that lack it, and complains
/// about wraps that do not open.
///
/// # Errors
/// Returns an error if control does not answer or rejects a wrap.
pub async fn share_keys(session: &Session, member: &MemberKey) -> Result<SharedKeys> {
    // The admission that this command completed is not in the session's history yet.
    let session = session.refresh().await?;
    let request = WrapRequest { circle: session.circle.id(), member: member.member.clone() };
    let request = sign_wrap_request(&member.signer, request)?;
    let mut outcome = SharedKeys::default();
    let mut served: BTreeSet<(ModelRoot, Recipient)> = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let answer: MemberWraps = session.client.query("/v1/wraps/mine", &request).await?;
        outcome.keyless = answer.keyless;
        let (mut wraps, mut shared) = (Vec::new(), Vec::new());
        for lacking in &answer.lacking {
            let recipients = to_serve(&session, lacking, &served);
            if recipients.is_empty() || outcome.closed.contains(&lacking.model) {
                continue;
            }
            let Some(key) = open_own(&session, member, &lacking.wrap)? else {
                complain(&session, member, &lacking.wrap).await?;
                outcome.closed.push(lacking.model.clone());
                continue;
            };
            for to in &recipients {
                wraps.push(make_wrap(&session, member, &key, lacking.wrap.wrap.root, to)?);
            }
            let with = recipients.iter().map(|to| name_of(&session, to)).collect();
            shared.push(SharedKey { model: lacking.model.clone(), with });
        }
        if wraps.is_empty() {
            break;
        }
        let parties: Vec<_> =
            wraps.iter().map(|made| (made.wrap.root, made.wrap.recipient.clone())).collect();
        match put_wraps(&session, wraps).await {
            Ok(()) => {
                served.extend(parties);
                outcome.shared.extend(shared);
            }
            // Another member has stored one of the wraps first; the next answer leaves it out.
            Err(ClientError::Refused(problem)) if problem.code == error_code::WRAP_HELD.as_str() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcome)
}

/// Returns the parties that lack the key, belong to the verified circle, and were not served before.
fn to_serve(
    session: &Session,
    lacking: &LackingKey,
    served: &BTreeSet<(ModelRoot, Recipient)>,
) -> Vec<Recipient> {
    let root = lacking.wrap.wrap.root;
    let wanted = |to: &&Recipient| {
        recipient_key(&session.circle, to).is_ok() && !served.contains(&(root, (*to).clone()))
    };
    lacking.recipients.iter().filter(wanted).cloned().collect()
}

/// Opens a member's own wrap, if a member made it.
fn open_own(session: &Session, member: &MemberKey, signed: &SignedWrap) -> Result<Option<ModelKey>> {
    match check_wrap(&session.circle, signed) {
        // A maker who has left was a member when control took the wrap.
        Ok(()) | Err(ChainError::NotAMember(_)) => member.signer.open_wrap(&signed.wrap),
        Err(_) => Ok(None),
    }
}

fn name_of(session: &Session, recipient: &Recipient) -> String {
    match recipient {
        Recipient::Member(member) => format!("member {member}"),
        Recipient::Node(id) => match session.circle.node_by_id(*id) {
            Some(node) => format!("node {}", node.name),
            None => format!("node {}", id.short()),
        },
    }
}

/// Complains about the member's own wrap, which does not open.
async fn complain(session: &Session, member: &MemberKey, signed: &SignedWrap) -> Result<()> {
    let complaint = WrapComplaint {
        circle: session.circle.id(),
        root: signed.wrap.root,
        recipient: Recipient::Member(member.member.clone()),
        wrap: signed.digest(),
    };
    let complaint = sign_complaint(&member.signer, complaint)?;
    let answer: Result<serde_json::Value, ClientError> =
        session.client.post("/v1/wraps/complaints", &complaint).await;
    match answer {
        Err(ClientError::Refused(problem)) if problem.code == error_code::WRAP_NOT_HELD.as_str() => Ok(()),
        answer => answer.map(drop).context("complain about a wrap that does not open"),
    }
}

#[cfg(test)]
mod tests;
