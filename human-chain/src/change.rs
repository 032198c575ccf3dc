//! Changes: their admissibility in the circle's state.

use crate::circle::{ApprovedService, CircleState, inputs};
use crate::{ChainError, access, form, halt, membership, projects};
use protocol::governance::{Change, Member, NodeAdmission};
use protocol::limits;
use protocol::manifest::{Manifest, ModelChoice};
use protocol::usage::{PRICE_MICRO_UNITS_MAX, Prices};
use std::collections::BTreeSet;

/// Maximum grace period of a retirement in seconds: a week. Requests do not run longer.
pub(crate) const GRACE_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Maximum grace period of a forgotten model in seconds: thirty days, as long as a proposal may be open.
pub(crate) const MODEL_GRACE_SECONDS_MAX: u32 = 30 * 24 * 3600;

/// Checks that this change may be proposed in the current state. Approval is checked elsewhere.
pub(crate) fn check_change(state: &CircleState, change: &Change) -> Result<(), ChainError> {
    match change {
        Change::Deploy(manifest) => check_deployment(state, manifest),
        Change::Retire { service, grace_seconds } => {
            if state.service(service).is_none() && state.job(service).is_none() {
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
        Change::Lift { halts } => halt::check_lift(state, halts),
        Change::SetMembers { members, policy, proofs } => {
            check_foreign_keys(state, members)?;
            membership::check_members(state, members, policy, proofs)
        }
        Change::SetPasskeys { member, passkeys } => state.check_passkeys(member, passkeys),
        Change::SuspendMember { member, halts } => membership::check_suspension(state, member, halts),
        Change::SetAccess(envelope) => {
            access::check_envelope(envelope, &state.members().map(|member| &member.id).collect())
        }
        Change::SetPrices(prices) => check_prices(prices),
        Change::SetProjects(tree) => projects::check_projects(tree),
    }
}

/// Checks the form of a manifest, that its name stands for no workload of another kind, and its models.
fn check_deployment(state: &CircleState, manifest: &Manifest) -> Result<(), ChainError> {
    form::check_manifest(manifest)?;
    let name = manifest.name();
    let refuse = |reason: String| Err(ChainError::invalid("deploy", reason));
    match manifest {
        Manifest::Service(_) if state.job(name).is_some() => {
            refuse(format!("`{name}` is a job in force; retire it first, or choose another name"))
        }
        Manifest::Job(_) if state.service(name).is_some() => {
            refuse(format!("`{name}` is a service in force; retire it first, or choose another name"))
        }
        Manifest::Service(service) => check_model(state, &service.model),
        Manifest::Job(job) => {
            projects::check_known(state.projects(), job)?;
            let twice = |model: &&ModelChoice| {
                job.datasets.iter().any(|other| other.name == model.name && other.root != model.root)
            };
            if let Some(model) = job.models.iter().find(twice) {
                return refuse(format!("`{}` stands for two roots", model.name));
            }
            inputs(job).try_for_each(|input| check_model(state, input))
        }
        Manifest::Edge(_) => Ok(()),
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

/// Checks that a model can be forgotten: once, and only while no approved service names it, nor may return to
/// an approval that does.
fn check_forgetting(state: &CircleState, model: &ModelChoice, grace_seconds: u32) -> Result<(), ChainError> {
    check_model(state, model)?;
    let names = |service: &ApprovedService| service.manifests().any(|used| used.model.root == model.root);
    if let Some(service) = state.services().find(|service| names(service)) {
        let service = service.manifest.name.clone();
        return Err(ChainError::ModelInUse { name: model.name.clone(), service });
    }
    if let Some(job) = state.job_that_uses(model) {
        let service = job.manifest.name.clone();
        return Err(ChainError::ModelInUse { name: model.name.clone(), service });
    }
    if grace_seconds > MODEL_GRACE_SECONDS_MAX {
        let reason =
            format!("{grace_seconds} s of grace; accepted: at most {MODEL_GRACE_SECONDS_MAX} (thirty days)");
        return Err(ChainError::invalid("forget model", reason));
    }
    Ok(())
}

/// Checks that each price is within its bound.
pub(crate) fn check_prices(prices: &Prices) -> Result<(), ChainError> {
    let too_high = prices.named().into_iter().find(|(_, price)| *price > PRICE_MICRO_UNITS_MAX);
    let Some((name, price)) = too_high else { return Ok(()) };
    let reason = format!(
        "{price} millionths for the price `{name}`; accepted: at most {PRICE_MICRO_UNITS_MAX} for each"
    );
    Err(ChainError::invalid("prices", reason))
}

/// Checks that no member has a key of a node, a control replica or a passkey.
fn check_foreign_keys(state: &CircleState, members: &[Member]) -> Result<(), ChainError> {
    let taken: BTreeSet<&[u8]> = form::control_keys(state.control()).chain(state.passkey_keys()).collect();
    let is_taken = |key: &[u8]| taken.contains(key) || state.node_with_key(key).is_some();
    let uses = |member: &&Member| form::member_keys(member).into_iter().any(is_taken);
    match members.iter().find(uses) {
        Some(member) => Err(ChainError::invalid("members", format!("`{}` uses a key in use", member.id))),
        None => Ok(()),
    }
}

/// Checks an admission. A key is of one party: no other node, gateway, control replica, member or passkey may
/// have it.
fn check_admission(state: &CircleState, node: &NodeAdmission) -> Result<(), ChainError> {
    form::check_node(node)?;
    let keys: BTreeSet<&[u8]> = form::node_keys(node).collect();
    let within = keys.len() < form::node_keys(node).count();
    let is_of_other_node =
        |key: &&[u8]| state.node_with_key(key).is_some_and(|holder| holder.name != node.name);
    let mut taken = form::control_keys(state.control())
        .chain(state.members().flat_map(form::member_keys))
        .chain(state.passkey_keys());
    let was_given_up = keys.iter().any(|key| state.is_former_key(key));
    if within || was_given_up || keys.iter().any(is_of_other_node) || taken.any(|key| keys.contains(key)) {
        return Err(ChainError::invalid("node", format!("`{}` uses a key in use", node.name)));
    }
    if state.node(&node.name).is_none() && state.node_count() >= limits::NODES_MAX {
        return Err(ChainError::invalid("node", format!("there are {} nodes already", limits::NODES_MAX)));
    }
    Ok(())
}
