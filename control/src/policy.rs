//! Policy of a new circle.

use protocol::governance::{ActionClass, Member, Policy, Quorum};

/// Returns a policy with the same quorum, `required` of all members, for every class of action.
#[must_use]
pub fn simple_policy(members: &[Member], required: u32) -> Policy {
    let of = members.iter().map(|member| Quorum::Member(member.id.clone())).collect();
    let quorum = Quorum::Threshold { required, of };
    let classes = [ActionClass::Routine, ActionClass::Sensitive];
    Policy { quorums: classes.into_iter().map(|class| (class, quorum.clone())).collect() }
}
