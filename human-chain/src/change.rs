//! Changes: their subject, their action class, and their admissibility in the circle's state.

use crate::circle::CircleState;
use crate::{ChainError, form};
use protocol::canonical::to_bytes;
use protocol::governance::{ActionClass, Change, Member, NodeAdmission, Policy};
use protocol::manifest::{Manifest, ModelChoice};
use protocol::{Digest, ModelName, NodeName, ServiceName, limits};
use std::collections::BTreeSet;

/// Subject name of members and policy.
pub(crate) const CIRCLE_SUBJECT: &str = "circle";
/// Digest domain of a subject's approved value.
const SUBJECT_DOMAIN: &str = "quorate/subject/v1";
/// Maximum grace period of a retirement in seconds: a week. Requests do not run longer.
pub(crate) const GRACE_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Maximum grace period of a forgotten model in seconds: thirty days, as long as a proposal may be open.
pub(crate) const MODEL_GRACE_SECONDS_MAX: u32 = 30 * 24 * 3600;

/// Returns the action class of a change, which selects the required quorum.
#[must_use]
pub fn class_of(change: &Change) -> ActionClass {
    match change {
        Change::Deploy(_) | Change::Retire { .. } | Change::AdmitNode(_) | Change::RemoveNode { .. } => {
            ActionClass::Routine
        }
        Change::SetMembers { .. } | Change::ForgetModel { .. } => ActionClass::Sensitive,
    }
}

/// Returns the subject of a change: `service/NAME`, `node/NAME`, `model/NAME` or `circle`.
#[must_use]
pub fn subject_of(change: &Change) -> String {
    match change {
        Change::Deploy(manifest) => service_subject(manifest.name()),
        Change::Retire { service, .. } => service_subject(service),
        Change::AdmitNode(node) => node_subject(&node.name),
        Change::RemoveNode { node } => node_subject(node),
        Change::ForgetModel { model, .. } => model_subject(&model.name),
        Change::SetMembers { .. } => CIRCLE_SUBJECT.to_string(),
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

/// Returns the value of a forgotten model's subject.
pub(crate) fn model_value(model: &ModelChoice) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(model))
}

pub(crate) fn manifest_value(manifest: &Manifest) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(manifest))
}

pub(crate) fn node_value(node: &NodeAdmission) -> Digest {
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(node))
}

pub(crate) fn circle_value(members: &[&Member], policy: &Policy) -> Digest {
    debug_assert!(members.is_sorted_by(|a, b| a.id < b.id), "a set of members has one value");
    Digest::of_domain(SUBJECT_DOMAIN, &to_bytes(&(members, policy)))
}

/// Checks that this change may be proposed in the current state. Approval is checked elsewhere.
pub(crate) fn check_change(state: &CircleState, change: &Change) -> Result<(), ChainError> {
    match change {
        Change::Deploy(manifest) => check_model(state, &form::check_manifest(manifest)?.model),
        Change::Retire { service, grace_seconds } => {
            if state.service(service).is_none() {
                return Err(ChainError::invalid("retire", format!("service `{service}` does not run")));
            }
            if *grace_seconds > GRACE_SECONDS_MAX {
                let reason =
                    format!("{grace_seconds} s of grace; accepted: at most {GRACE_SECONDS_MAX} (a week)");
                return Err(ChainError::invalid("retire", reason));
            }
            Ok(())
        }
        Change::AdmitNode(node) => check_admission(state, node),
        Change::RemoveNode { node } if state.node(node).is_none() => {
            Err(ChainError::invalid("remove node", format!("there is no node `{node}`")))
        }
        Change::RemoveNode { .. } => Ok(()),
        Change::ForgetModel { model, grace_seconds } => check_forgetting(state, model, *grace_seconds),
        Change::SetMembers { members, policy } => {
            form::check_members(members, policy)?;
            check_foreign_keys(state, members)?;
            match members.iter().find(|member| state.is_former_member(&member.id)) {
                Some(member) => Err(ChainError::invalid(
                    "members",
                    format!("the id `{}` belonged to a member who left; choose another", member.id),
                )),
                None => Ok(()),
            }
        }
    }
}

/// Checks that a model is not forgotten, and that its name stands for no other root. The first approval of a
/// name binds it permanently.
fn check_model(state: &CircleState, model: &ModelChoice) -> Result<(), ChainError> {
    if state.forgotten(&model.root).is_some() {
        return Err(ChainError::ModelForgotten { name: model.name.clone(), root: model.root });
    }
    match state.model_root(&model.name).filter(|bound| *bound != model.root) {
        None => Ok(()),
        Some(bound) => Err(ChainError::ModelNameTaken { name: model.name.clone(), bound, asked: model.root }),
    }
}

/// Checks that a model can be forgotten: once, and only while no approved service names it.
fn check_forgetting(state: &CircleState, model: &ModelChoice, grace_seconds: u32) -> Result<(), ChainError> {
    check_model(state, model)?;
    if let Some(service) = state.services().find(|service| service.manifest.model.root == model.root) {
        let service = service.manifest.name.clone();
        return Err(ChainError::ModelInUse { name: model.name.clone(), service });
    }
    if grace_seconds > MODEL_GRACE_SECONDS_MAX {
        let reason =
            format!("{grace_seconds} s of grace; accepted: at most {MODEL_GRACE_SECONDS_MAX} (thirty days)");
        return Err(ChainError::invalid("forget model", reason));
    }
    Ok(())
}

/// Checks that no member has a key of a node or a control replica.
fn check_foreign_keys(state: &CircleState, members: &[Member]) -> Result<(), ChainError> {
    let nodes = state.nodes().flat_map(form::node_keys);
    let taken: BTreeSet<&[u8]> = nodes.chain(form::control_keys(state.control())).collect();
    let uses = |member: &&Member| form::member_keys(member).iter().any(|key| taken.contains(key));
    match members.iter().find(uses) {
        Some(member) => Err(ChainError::invalid("members", format!("`{}` uses a key in use", member.id))),
        None => Ok(()),
    }
}

/// Checks an admission. A key is of one party: no other node, gateway, control replica or member may have it.
fn check_admission(state: &CircleState, node: &NodeAdmission) -> Result<(), ChainError> {
    form::check_node(node)?;
    let keys: BTreeSet<&[u8]> = form::node_keys(node).collect();
    let within = keys.len() < form::node_keys(node).count();
    let others = state.nodes().filter(|other| other.name != node.name);
    let taken = others
        .flat_map(form::node_keys)
        .chain(form::control_keys(state.control()))
        .chain(state.members().flat_map(form::member_keys));
    if within || taken.into_iter().any(|key| keys.contains(key)) {
        return Err(ChainError::invalid("node", format!("`{}` uses a key in use", node.name)));
    }
    if state.node(&node.name).is_none() && state.nodes().count() >= limits::NODES_MAX {
        return Err(ChainError::invalid("node", format!("there are {} nodes already", limits::NODES_MAX)));
    }
    Ok(())
}
