//! Difference between a proposal and the running state. It is shown beside the rendering and is not signed,
//! since the state can change while members read.

use super::fields::{self, FieldTexts};
use super::{access, prices, projects};
use crate::CircleState;
use crate::subject::subject_of;
use protocol::governance::{Change, Proposal};

/// Returns one line per field that differs: `+ field value` is new, `- field value` is removed, `~ field old
/// -> new` is changed. The first line warns when the proposal was made for another state than this one.
#[must_use]
pub fn render_difference(state: &CircleState, proposal: &Proposal) -> String {
    let change = &proposal.change;
    let (old, new) = match change {
        Change::Deploy(manifest) => (running(state, change), fields::of_manifest(manifest)),
        Change::AdmitNode(node) => (running(state, change), fields::of_node(node)),
        Change::Retire { .. } | Change::RemoveNode { .. } | Change::ForgetModel { .. } => {
            (running(state, change), FieldTexts::new())
        }
        Change::Lift { .. } => (FieldTexts::new(), fields::of_change(change)),
        Change::SetMembers { members, policy, .. } => {
            (running(state, change), fields::of_members(members, policy))
        }
        Change::SetPasskeys { member, passkeys } => {
            (running(state, change), fields::of_passkeys(member, passkeys))
        }
        Change::SuspendMember { member, halts } => {
            (running(state, change), fields::of_suspension(member, halts))
        }
        Change::SetAccess(envelope) => (running(state, change), access::fields(envelope)),
        Change::SetPrices(asked) => (running(state, change), prices::compared(&state.prices().prices, asked)),
        Change::SetProjects(tree) => (running(state, change), projects::fields(tree)),
    };
    let mut text = String::new();
    let subject = state.subject(&subject_of(change));
    if proposal.circle != state.id()
        || proposal.epoch != state.epoch()
        || proposal.subjects.as_slice() != [subject]
    {
        text.push_str("! this proposal was made for another state of the circle and can no longer pass\n");
    }
    for (name, value) in &old {
        match find(&new, name) {
            None => text.push_str(&format!("- {name}: {value}\n")),
            Some(after) if after != value => text.push_str(&format!("~ {name}: {value} -> {after}\n")),
            Some(_) => {}
        }
    }
    for (name, value) in new.iter().filter(|(name, _)| find(&old, name).is_none()) {
        text.push_str(&format!("+ {name}: {value}\n"));
    }
    if text.is_empty() {
        text.push_str("changes nothing\n");
    }
    debug_assert!(text.ends_with('\n'), "each difference is a line");
    text
}

/// Returns the fields of the subject's running state.
fn running(state: &CircleState, change: &Change) -> FieldTexts {
    let service = |name| state.manifest(name).as_ref().map(fields::of_manifest).unwrap_or_default();
    let node = |name| state.node(name).map(fields::of_node).unwrap_or_default();
    match change {
        Change::Deploy(manifest) => service(manifest.name()),
        Change::Retire { service: name, .. } => service(name),
        Change::AdmitNode(admission) => node(&admission.name),
        Change::RemoveNode { node: name } => node(name),
        Change::ForgetModel { model, .. } => match state.forgotten(&model.root) {
            Some(_) => FieldTexts::new(),
            None => fields::of_model(model),
        },
        // Halts are no part of the circle's state: they stand beside it until they are lifted.
        Change::Lift { .. } => FieldTexts::new(),
        Change::SetMembers { .. } => fields::of_members(state.members(), state.policy()),
        Change::SetPasskeys { member, .. } => fields::of_passkeys(member, state.passkeys(member)),
        Change::SuspendMember { member, .. } => match state.suspended().get(member) {
            Some(halts) => fields::of_suspension(member, halts),
            None => FieldTexts::new(),
        },
        Change::SetAccess(_) => access::fields(state.access()),
        Change::SetPrices(_) => prices::fields(&state.prices().prices),
        Change::SetProjects(_) if !state.has_projects() => FieldTexts::new(),
        Change::SetProjects(_) => projects::fields(state.projects()),
    }
}

fn find<'a>(fields: &'a FieldTexts, name: &str) -> Option<&'a str> {
    fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}
