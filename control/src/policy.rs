//! Policy of a new circle, and a policy that follows a change of members.

use protocol::error_code::GOVERNANCE_INVALID;
use protocol::governance::{ActionClass, Member, Policy, Quorum};
use protocol::{MemberId, Refusal};

/// Waiting time of a change of members in a new circle, in seconds: a day, in which each member reads its
/// mail once.
pub const VETO_SECONDS: u32 = 24 * 3600;

/// Returns a policy with the same quorum, `required` of all members, for every class of action.
#[must_use]
pub fn simple_policy(members: &[Member], required: u32) -> Policy {
    let of = members.iter().map(|member| Quorum::Member(member.id.clone())).collect();
    let quorum = Quorum::Threshold { required, of };
    let classes = [ActionClass::Routine, ActionClass::Sensitive];
    let quorums = classes.into_iter().map(|class| (class, quorum.clone())).collect();
    Policy { quorums, passkeys: None, veto_seconds: VETO_SECONDS, proposer_counts: true }
}

/// Returns a policy without these members and with those, for a change of members. Members who leave are
/// taken out of each rule, whose numbers stay; new members join each rule of one level. A number that is half
/// of the members or less rises to a majority. `required` sets the number of each rule of one level.
///
/// # Errors
/// Returns an error when a rule cannot follow. It is nested and members join, or it would need more approvals
/// than it has parts.
pub fn adapted_policy(
    policy: &Policy,
    leaving: &[MemberId],
    joining: &[MemberId],
    required: Option<u32>,
) -> Result<Policy, Refusal> {
    let adapt = |(class, rule): (&ActionClass, &Quorum)| {
        let rule = adapted_rule(rule, leaving, joining, required).map_err(|reason| {
            Refusal::new(GOVERNANCE_INVALID, format!("the rule for {class} changes {reason}"))
        })?;
        Ok((*class, rule))
    };
    let quorums = policy.quorums.iter().map(adapt).collect::<Result<_, Refusal>>()?;
    Ok(Policy { quorums, ..policy.clone() })
}

fn adapted_rule(
    rule: &Quorum,
    leaving: &[MemberId],
    joining: &[MemberId],
    required: Option<u32>,
) -> Result<Quorum, String> {
    const FILE: &str = "give the new policy with --policy FILE";
    let Some(rest) = without(rule, leaving) else {
        return Err(format!("names no member that stays; {FILE}"));
    };
    let is_plain = |of: &[Quorum]| of.iter().all(|part| matches!(part, Quorum::Member(_)));
    let (number, mut of) = match rest {
        Quorum::Threshold { required, of } if is_plain(&of) => (required, of),
        Quorum::Member(member) => (1, vec![Quorum::Member(member)]),
        nested if joining.is_empty() && required.is_none() => return check_reachable(nested, FILE),
        _ => return Err(format!("is nested; {FILE}")),
    };
    of.extend(joining.iter().cloned().map(Quorum::Member));
    let majority = u32::try_from(of.len() / 2 + 1).unwrap_or(u32::MAX);
    let required = required.unwrap_or(if joining.is_empty() { number } else { number.max(majority) });
    check_reachable(Quorum::Threshold { required, of }, FILE)
}

fn check_reachable(rule: Quorum, remedy: &str) -> Result<Quorum, String> {
    fn holds(rule: &Quorum) -> bool {
        match rule {
            Quorum::Member(_) => true,
            Quorum::Threshold { required, of } => *required as usize <= of.len() && of.iter().all(holds),
        }
    }
    match holds(&rule) {
        true => Ok(rule),
        false => Err(format!(
            "would be `{}`, which cannot be reached; lower it first in a change of its own, or {remedy}",
            human_chain::describe(&rule)
        )),
    }
}

/// Returns a rule without these members; none if no part of it is left.
fn without(rule: &Quorum, leaving: &[MemberId]) -> Option<Quorum> {
    match rule {
        Quorum::Member(member) => (!leaving.contains(member)).then(|| rule.clone()),
        Quorum::Threshold { required, of } => {
            let of: Vec<Quorum> = of.iter().filter_map(|part| without(part, leaving)).collect();
            (!of.is_empty()).then_some(Quorum::Threshold { required: *required, of })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> MemberId {
        name.parse().expect("a name")
    }

    fn rule(required: u32, names: &str) -> Quorum {
        let of = names.split(' ').map(|name| Quorum::Member(member(name))).collect();
        Quorum::Threshold { required, of }
    }

    fn both(first: Quorum, second: Quorum) -> Quorum {
        Quorum::Threshold { required: 2, of: vec![first, second] }
    }

    #[test]
    fn rules_follow_the_members() {
        let nested = both(rule(2, "alice bob carol"), rule(1, "dave erin"));
        for (before, leaving, joining, required, expected) in [
            (rule(2, "alice bob carol"), "", "dave", None, "3 of (alice, bob, carol, dave)"),
            (rule(2, "alice bob carol"), "carol", "dave", None, "2 of (alice, bob, dave)"),
            (rule(2, "alice bob carol"), "carol", "", None, "2 of (alice, bob)"),
            (rule(3, "alice bob carol"), "", "dave erin", None, "3 of (alice, bob, carol, dave, erin)"),
            (rule(3, "alice bob carol"), "", "", Some(2), "2 of (alice, bob, carol)"),
            (rule(3, "alice bob carol"), "carol", "", None, "cannot be reached; lower it first"),
            (rule(1, "alice"), "", "bob", None, "2 of (alice, bob)"),
            (rule(1, "alice"), "alice", "", None, "names no member that stays"),
            (nested.clone(), "carol erin", "", None, "2 of (2 of (alice, bob), 1 of (dave))"),
            (nested.clone(), "", "frank", None, "is nested; give the new policy with --policy FILE"),
            (nested, "", "", Some(2), "is nested"),
        ] {
            let quorums = [(ActionClass::Sensitive, before)].into();
            let names = |text: &str| text.split_whitespace().map(member).collect::<Vec<_>>();
            let policy = Policy { quorums, passkeys: None, veto_seconds: 7, proposer_counts: true };
            let adapted = adapted_policy(&policy, &names(leaving), &names(joining), required);
            let found = match adapted {
                Ok(policy) => {
                    assert_eq!(policy.veto_seconds, 7);
                    human_chain::describe(&policy.quorums[&ActionClass::Sensitive])
                }
                Err(refusal) => refusal.message,
            };
            assert!(found.contains(expected), "expected {expected}, found {found}");
        }
    }
}
