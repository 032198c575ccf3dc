//! Subjects: what a change names, the value that is approved for it, and the action class of the change.

use protocol::access::AccessEnvelope;
use protocol::canonical::to_bytes;
use protocol::governance::{ActionClass, Change, Member, NodeAdmission, Policy};
use protocol::manifest::{Manifest, ModelChoice};
use protocol::project::ProjectTree;
use protocol::usage::Prices;
use protocol::{Digest, HaltId, MemberId, ModelName, NodeName, Passkey, ServiceName};
use std::collections::BTreeSet;

/// Subject name of members and policy.
pub(crate) const CIRCLE_SUBJECT: &str = "circle";
/// Subject name of the halts that the circle lifted. One subject for all of them: a vote to lift sees every
/// earlier one.
pub(crate) const HALTS_SUBJECT: &str = "halts";
/// Subject name of the bounds of access.
pub(crate) const ACCESS_SUBJECT: &str = "access";
/// Subject name of the prices.
pub(crate) const PRICES_SUBJECT: &str = "prices";
/// Subject name of the tree of projects.
pub(crate) const PROJECTS_SUBJECT: &str = "projects";
/// Digest domain of a subject's approved value.
const SUBJECT_DOMAIN: &str = "quorate/subject/v1";

/// Returns the action class of a change, which selects the required quorum.
#[must_use]
pub fn class_of(change: &Change) -> ActionClass {
    match change {
        Change::Deploy(_) | Change::Retire { .. } | Change::AdmitNode(_) | Change::RemoveNode { .. } => {
            ActionClass::Routine
        }
        Change::SetMembers { .. }
        | Change::SuspendMember { .. }
        | Change::ForgetModel { .. }
        | Change::SetAccess(_)
        | Change::SetPrices(_)
        | Change::SetProjects(_)
        | Change::Lift { .. } => ActionClass::Sensitive,
        Change::SetPasskeys { .. } => ActionClass::Personal,
    }
}

/// Returns the subject of a change: `service/NAME`, `node/NAME`, `model/NAME`, `halts`, `passkeys/MEMBER`,
/// `member/NAME`, `access`, `prices`, `projects` or `circle`.
#[must_use]
pub fn subject_of(change: &Change) -> String {
    match change {
        Change::Deploy(manifest) => service_subject(manifest.name()),
        Change::Retire { service, .. } => service_subject(service),
        Change::AdmitNode(node) => node_subject(&node.name),
        Change::RemoveNode { node } => node_subject(node),
        Change::ForgetModel { model, .. } => model_subject(&model.name),
        Change::Lift { .. } => HALTS_SUBJECT.to_string(),
        Change::SetMembers { .. } => CIRCLE_SUBJECT.to_string(),
        Change::SetPasskeys { member, .. } => passkeys_subject(member),
        Change::SuspendMember { member, .. } => member_subject(member),
        Change::SetAccess(_) => ACCESS_SUBJECT.to_string(),
        Change::SetPrices(_) => PRICES_SUBJECT.to_string(),
        Change::SetProjects(_) => PROJECTS_SUBJECT.to_string(),
    }
}

pub(crate) fn service_subject(name: &ServiceName) -> String {
    format!("service/{name}")
}

pub(crate) fn node_subject(name: &NodeName) -> String {
    format!("node/{name}")
}

pub(crate) fn model_subject(name: &ModelName) -> String {
    format!("model/{name}")
}

pub(crate) fn passkeys_subject(member: &MemberId) -> String {
    format!("passkeys/{member}")
}

pub(crate) fn member_subject(id: &MemberId) -> String {
    format!("member/{id}")
}

/// Returns the value of a suspended member's subject.
pub(crate) fn suspension_value(halts: &BTreeSet<Digest>) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(halts))
}

/// Returns the value of the bounds of access.
pub(crate) fn access_value(envelope: &AccessEnvelope) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(envelope))
}

/// Returns the value of the prices.
pub(crate) fn prices_value(prices: &Prices) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(prices))
}

/// Returns the value of the tree of projects.
pub(crate) fn projects_value(tree: &ProjectTree) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(tree))
}

/// Returns the value of a forgotten model's subject.
pub(crate) fn model_value(model: &ModelChoice) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(model))
}

pub(crate) fn passkeys_value(passkeys: &[Passkey]) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(passkeys))
}

pub(crate) fn manifest_value(manifest: &Manifest) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(manifest))
}

pub(crate) fn node_value(node: &NodeAdmission) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(node))
}

/// Returns the value of the lifted halts: all of their ids, sorted.
pub(crate) fn lifted_value<'a>(lifted: impl Iterator<Item = &'a HaltId>) -> Digest {
    let ids: Vec<&HaltId> = lifted.collect();
    debug_assert!(ids.is_sorted_by(|a, b| a < b), "a set of halts has one value");
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(&ids))
}

pub(crate) fn circle_value(members: &[&Member], policy: &Policy) -> Digest {
    debug_assert!(members.is_sorted_by(|a, b| a.id < b.id), "a set of members has one value");
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(&(members, policy)))
}
