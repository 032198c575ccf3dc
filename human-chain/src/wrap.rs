//! Wraps of model keys: the parties that may receive one, the signature of its maker, and the complaint of
//! its recipient.
//!
//! A wrap is verified by the state machine before it is kept and by its recipient before it is used. Nothing
//! here opens one: only the holder of the recipient's secret can.

use crate::{ChainError, CircleState, MemberSigner, Statement, signature_holds};
use protocol::canonical::to_bytes;
use protocol::governance::{Change, NodeAdmission, NodeRole};
use protocol::keys::{EncryptionKey, HybridSignature};
use protocol::model::{
    KeyWrap, Recipient, RecipientSignature, SignedComplaint, SignedWrap, SignedWrapRequest,
    WRAP_COMPLAINT_DOMAIN, WRAP_DOMAIN, WRAP_REQUEST_DOMAIN, WrapComplaint, WrapRequest,
};
use protocol::{CircleId, MemberId};
use std::collections::BTreeSet;

/// Returns whether a node gets model keys. Only workers open models: a gateway and a store need no key.
fn receives_keys(node: &NodeAdmission) -> bool {
    node.roles.contains(&NodeRole::Worker)
}

/// Returns every party that may hold a model's key, with the key to wrap it to: the members first. A
/// suspended member is none: the thief of its keys would get the model's.
pub fn recipients(state: &CircleState) -> impl Iterator<Item = (Recipient, &EncryptionKey)> {
    debug_assert!(state.members().next().is_some(), "a circle has a member, and so a recipient");
    let active = state.members().filter(|member| !state.is_suspended(&member.id));
    let members = active.map(|member| (Recipient::Member(member.id.clone()), &member.keys.encryption));
    let nodes = state.nodes().filter(|node| receives_keys(node));
    members.chain(nodes.map(|node| (Recipient::Node(node.id), &node.encryption)))
}

/// Returns the key that wraps for this recipient are made for.
///
/// # Errors
/// Returns an error when the recipient is neither a member that is not suspended nor an admitted worker. A
/// node that waits for admission is no recipient: its key is a claim until the circle has voted.
pub fn recipient_key<'a>(
    state: &'a CircleState,
    recipient: &Recipient,
) -> Result<&'a EncryptionKey, ChainError> {
    match recipient {
        Recipient::Member(id) => Ok(&state.active_member(id)?.keys.encryption),
        Recipient::Node(id) => {
            let node = state.node_by_id(*id).ok_or(ChainError::NodeNotAdmitted(*id))?;
            if receives_keys(node) {
                Ok(&node.encryption)
            } else {
                Err(ChainError::NotARecipient(node.name.clone()))
            }
        }
    }
}

/// Returns the recipients whose keys a change may replace or end. Every other recipient has the same key
/// before and after it, so that wraps to thousands of nodes need no look at each decision.
#[must_use]
pub fn recipients_touched(state: &CircleState, change: &Change) -> BTreeSet<Recipient> {
    match change {
        Change::AdmitNode(admission) => {
            let replaced = state.node(&admission.name).map(|node| node.id);
            replaced.into_iter().chain([admission.id]).map(Recipient::Node).collect()
        }
        Change::RemoveNode { node } => {
            state.node(node).into_iter().map(|node| Recipient::Node(node.id)).collect()
        }
        Change::SetMembers { .. } => {
            state.members().map(|member| Recipient::Member(member.id.clone())).collect()
        }
        Change::SuspendMember { member, .. } => {
            debug_assert!(state.member(member).is_some(), "only members are suspended");
            BTreeSet::from([Recipient::Member(member.clone())])
        }
        Change::Deploy(_)
        | Change::Retire { .. }
        | Change::ForgetModel { .. }
        | Change::Lift { .. }
        | Change::SetPasskeys { .. }
        | Change::SetAccess(_)
        | Change::SetPrices(_)
        | Change::SetProjects(_) => BTreeSet::new(),
    }
}

/// Signs a wrap with the keys of the member that made it for the key `to`.
pub fn sign_wrap<S: MemberSigner>(
    signer: &S,
    maker: MemberId,
    circle: CircleId,
    to: &EncryptionKey,
    wrap: KeyWrap,
) -> S::Signed<SignedWrap> {
    debug_assert!(!wrap.sealed.0.is_empty(), "a wrap holds a key");
    let summary = format!("Give the key of the model {} to {}.", wrap.root, name_of(&wrap.recipient));
    let statement = Statement::new(WRAP_DOMAIN, wrap.statement(circle, &maker, to), summary);
    signer.sign_statement(&statement, |signature| SignedWrap { wrap, maker, signature })
}

fn name_of(recipient: &Recipient) -> String {
    match recipient {
        Recipient::Member(member) => format!("the member {member}"),
        Recipient::Node(node) => format!("the node with the key {node}"),
    }
}

/// Verifies a wrap: a member of this circle signed it for the key that its recipient has now.
///
/// # Errors
/// Returns an error when the recipient or the maker does not belong to the circle, or the signature does not
/// hold.
pub fn check_wrap(state: &CircleState, signed: &SignedWrap) -> Result<(), ChainError> {
    let to = recipient_key(state, &signed.wrap.recipient)?;
    let maker = state.active_member(&signed.maker)?;
    let statement = signed.wrap.statement(state.id(), &signed.maker, to);
    if signature_holds(&maker.keys, WRAP_DOMAIN, &statement, &signed.signature) {
        Ok(())
    } else {
        Err(ChainError::SignatureInvalid(signed.maker.clone()))
    }
}

/// Signs a member's complaint about a wrap that its secret does not open.
pub fn sign_complaint<S: MemberSigner>(signer: &S, complaint: WrapComplaint) -> S::Signed<SignedComplaint> {
    let WrapComplaint { root, wrap, .. } = &complaint;
    let summary = format!("The wrap {wrap} of the key of the model {root} does not open for me.");
    let statement = Statement::new(WRAP_COMPLAINT_DOMAIN, to_bytes(&complaint), summary);
    signer.sign_statement(&statement, |signature| {
        let signature = RecipientSignature::Member(signature);
        SignedComplaint { complaint, signature }
    })
}

/// Verifies a complaint: the recipient that it names belongs to this circle and signed it.
///
/// # Errors
/// Returns an error when the complaint is of another circle, or the recipient is unknown or has not signed
/// it.
pub fn check_complaint(state: &CircleState, signed: &SignedComplaint) -> Result<(), ChainError> {
    let complaint = &signed.complaint;
    if complaint.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: complaint.circle });
    }
    match (&complaint.recipient, &signed.signature) {
        (Recipient::Member(id), RecipientSignature::Member(signature)) => {
            check_member_signature(state, id, WRAP_COMPLAINT_DOMAIN, &to_bytes(complaint), signature)
        }
        (Recipient::Member(id), RecipientSignature::Node(_)) => Err(ChainError::SignatureInvalid(id.clone())),
        (Recipient::Node(id), signature) => {
            let node = state.node_by_id(*id).ok_or(ChainError::NodeNotAdmitted(*id))?;
            match signature {
                RecipientSignature::Node(signature)
                    if node.id.0.verifies(WRAP_COMPLAINT_DOMAIN, &to_bytes(complaint), signature) =>
                {
                    Ok(())
                }
                _ => Err(ChainError::NodeSignatureInvalid(*id)),
            }
        }
    }
}

/// Signs a member's request for its own wraps.
pub fn sign_wrap_request<S: MemberSigner>(signer: &S, request: WrapRequest) -> S::Signed<SignedWrapRequest> {
    let summary =
        format!("List the model keys wrapped to {}, and the parties that lack them.", request.member);
    let statement = Statement::new(WRAP_REQUEST_DOMAIN, to_bytes(&request), summary);
    signer.sign_statement(&statement, |signature| SignedWrapRequest { request, signature })
}

/// Verifies a request: the member that it names belongs to this circle and signed it.
///
/// # Errors
/// Returns an error when the request is of another circle, or its member is none or has not signed it.
pub fn check_wrap_request(state: &CircleState, signed: &SignedWrapRequest) -> Result<(), ChainError> {
    let request = &signed.request;
    if request.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: request.circle });
    }
    check_member_signature(state, &request.member, WRAP_REQUEST_DOMAIN, &to_bytes(request), &signed.signature)
}

fn check_member_signature(
    state: &CircleState,
    id: &MemberId,
    domain: &str,
    bytes: &[u8],
    signature: &HybridSignature,
) -> Result<(), ChainError> {
    let member = state.active_member(id)?;
    if signature_holds(&member.keys, domain, bytes, signature) {
        Ok(())
    } else {
        Err(ChainError::SignatureInvalid(id.clone()))
    }
}
