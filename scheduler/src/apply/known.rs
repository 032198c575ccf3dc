//! Look-ups that commands begin with, and the refusals of what is not known.

use crate::cluster::Cluster;
use crate::command::Refusal;
use human_chain::{CircleState, show_time};
use protocol::ProposalId;
use protocol::api::ProposalState;
use protocol::error_code::{CIRCLE_NOT_FOUNDED, PROPOSAL_EXPIRED, PROPOSAL_NOT_FOUND, PROPOSAL_STALE};

/// Returns the circle's state.
pub(super) fn circle(cluster: &Cluster) -> Result<&CircleState, Refusal> {
    cluster.circle_state().ok_or_else(not_founded)
}

pub(super) fn not_founded() -> Refusal {
    Refusal::new(CIRCLE_NOT_FOUNDED, "the circle is not founded yet")
}

/// Returns the refusal of an act on a proposal that is not open any more, or never was.
pub(super) fn not_open(cluster: &Cluster, id: ProposalId) -> Refusal {
    debug_assert!(!cluster.open.contains_key(&id), "an open proposal is refused for another cause");
    let closed = cluster.closed.iter().rev().find(|closed| closed.proposal.id() == id);
    match closed.map(|closed| (closed.state, show_time(closed.closed_at.0))) {
        Some((ProposalState::Expired, at)) => {
            Refusal::new(PROPOSAL_EXPIRED, format!("the proposal expired at {at}; propose it again"))
        }
        Some((ProposalState::Stale, at)) => {
            let message = format!("its subject was changed at {at}; propose it again");
            Refusal::new(PROPOSAL_STALE, message)
        }
        Some((ProposalState::Withdrawn, at)) => {
            Refusal::new(PROPOSAL_NOT_FOUND, format!("the proposal was withdrawn at {at}; make a new one"))
        }
        Some((ProposalState::Void, at)) => {
            let message = format!("its proposer was suspended at {at}; make a new one");
            Refusal::new(PROPOSAL_NOT_FOUND, message)
        }
        Some((_, at)) => Refusal::new(PROPOSAL_NOT_FOUND, format!("the proposal was decided at {at}")),
        None if cluster.burned.contains_key(&id) => {
            let message =
                "the proposal was rejected or withdrawn, or its proposer was suspended; make a new one";
            Refusal::new(PROPOSAL_NOT_FOUND, message)
        }
        None => Refusal::new(PROPOSAL_NOT_FOUND, format!("no open proposal {id}")),
    }
}
