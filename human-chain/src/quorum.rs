//! Quorum rules: evaluation over a set of members, and checks of a rule's form.
//!
//! A rule names each member at most once. A member named twice would count twice (`2 of (alice, alice)`), so
//! such a rule is rejected.

use crate::ChainError;
use protocol::MemberId;
use protocol::governance::Quorum;
use protocol::limits::QUORUM_DEPTH_MAX;
use std::collections::BTreeSet;

/// Checks that the members who approved reach the quorum.
#[must_use]
pub fn satisfied(quorum: &Quorum, approvals: &BTreeSet<MemberId>) -> bool {
    match quorum {
        Quorum::Member(member) => approvals.contains(member),
        Quorum::Threshold { required, of } => {
            debug_assert!(*required > 0, "a rule that nobody has to approve is refused where it enters");
            of.iter().filter(|part| satisfied(part, approvals)).count() >= *required as usize
        }
    }
}

/// Returns whether these members carry a change. If the proposer's ballot does not count, they must reach the
/// quorum without one of them.
///
/// The proposer is not named: a group that reaches the quorum without one of its own could have had that
/// member propose.
#[must_use]
pub fn carries(quorum: &Quorum, proposer_counts: bool, approvals: &BTreeSet<MemberId>) -> bool {
    if proposer_counts {
        return satisfied(quorum, approvals);
    }
    approvals.iter().any(|proposer| satisfied(quorum, &without(approvals, proposer)))
}

fn without(members: &BTreeSet<MemberId>, one: &MemberId) -> BTreeSet<MemberId> {
    members.iter().filter(|member| *member != one).cloned().collect()
}

/// Returns the minimum number of members that reach the quorum.
#[must_use]
pub fn least_approvals(quorum: &Quorum) -> usize {
    match quorum {
        Quorum::Member(_) => 1,
        Quorum::Threshold { required, of } => {
            debug_assert!(*required as usize <= of.len(), "a checked rule can be reached");
            let mut parts: Vec<usize> = of.iter().map(least_approvals).collect();
            parts.sort_unstable();
            parts.iter().take(*required as usize).sum()
        }
    }
}

/// Returns the minimum number of further approvals that reach the quorum, given the approvals so far and the
/// members who may still approve. Returns none when even all of those do not suffice.
#[must_use]
pub fn approvals_lacking(
    quorum: &Quorum,
    approved: &BTreeSet<MemberId>,
    open: &BTreeSet<MemberId>,
) -> Option<usize> {
    match quorum {
        Quorum::Member(member) if approved.contains(member) => Some(0),
        Quorum::Member(member) => open.contains(member).then_some(1),
        Quorum::Threshold { required, of } => {
            let lacking = |part| approvals_lacking(part, approved, open);
            let mut parts: Vec<usize> = of.iter().filter_map(lacking).collect();
            parts.sort_unstable();
            let required = *required as usize;
            debug_assert!(required <= of.len(), "a checked rule can be reached");
            (parts.len() >= required).then(|| parts.iter().take(required).sum())
        }
    }
}

/// Returns what [`approvals_lacking`] does, for a change that [`carries`] decides.
#[must_use]
pub fn approvals_to_carry(
    quorum: &Quorum,
    proposer_counts: bool,
    approved: &BTreeSet<MemberId>,
    open: &BTreeSet<MemberId>,
) -> Option<usize> {
    if proposer_counts {
        return approvals_lacking(quorum, approved, open);
    }
    let beside = |proposer: &MemberId| {
        let others = approvals_lacking(quorum, &without(approved, proposer), &without(open, proposer))?;
        Some(others + usize::from(!approved.contains(proposer)))
    };
    approved.union(open).filter_map(beside).min()
}

/// Returns the rule in words, and that the ballot of the proposer does not count if so.
#[must_use]
pub fn describe_rule(quorum: &Quorum, proposer_counts: bool) -> String {
    let besides = if proposer_counts { "" } else { " besides the proposer" };
    format!("{}{besides}", describe(quorum))
}

/// Checks that the rule names this member. The approval of any other member does not count.
#[must_use]
pub fn names(quorum: &Quorum, member: &MemberId) -> bool {
    match quorum {
        Quorum::Member(named) => named == member,
        Quorum::Threshold { of, .. } => of.iter().any(|part| names(part, member)),
    }
}

/// Returns the rule in its text form: `2 of (alice, bob, 1 of (carol, dave))`.
#[must_use]
pub fn describe(quorum: &Quorum) -> String {
    match quorum {
        Quorum::Member(member) => member.to_string(),
        Quorum::Threshold { required, of } => {
            let parts: Vec<String> = of.iter().map(describe).collect();
            format!("{required} of ({})", parts.join(", "))
        }
    }
}

/// Checks that a rule names only members, each at most once, and that each threshold is at least one and
/// reachable. In a circle of two or more, no single member may decide. No two disjoint groups may both
/// decide, which for a plain `m of n` means m > n/2.
pub(crate) fn check(quorum: &Quorum, members: &BTreeSet<&MemberId>) -> Result<(), ChainError> {
    let mut named = BTreeSet::new();
    check_parts(quorum, members, &mut named, QUORUM_DEPTH_MAX)?;
    debug_assert!(least_approvals(quorum) <= members.len(), "all members together reach a sound rule");
    let refuse =
        |reason: &str| Err(ChainError::invalid("policy", format!("`{}` {reason}", describe(quorum))));
    if members.len() >= 2 && least_approvals(quorum) < 2 {
        return refuse("lets one member decide alone");
    }
    if disjoint_groups_reach(quorum) {
        return refuse("can be reached by two groups that share nobody; ask for more than half");
    }
    Ok(())
}

fn check_parts<'a>(
    quorum: &'a Quorum,
    members: &BTreeSet<&MemberId>,
    named: &mut BTreeSet<&'a MemberId>,
    depth: usize,
) -> Result<(), ChainError> {
    let refuse = |reason: String| Err(ChainError::invalid("policy", reason));
    match quorum {
        Quorum::Member(member) if !members.contains(member) => {
            refuse(format!("names `{member}`, who is not a member"))
        }
        Quorum::Member(member) if !named.insert(member) => {
            refuse(format!("names `{member}` twice in one rule, which would count one person twice"))
        }
        Quorum::Member(_) => Ok(()),
        Quorum::Threshold { .. } if depth == 0 => refuse(format!("is nested deeper than {QUORUM_DEPTH_MAX}")),
        Quorum::Threshold { required, of } => {
            if *required == 0 || *required as usize > of.len() {
                return refuse(format!("asks for {required} of {}", of.len()));
            }
            of.iter().try_for_each(|part| check_parts(part, members, named, depth - 1))
        }
    }
}

/// Checks whether two groups without a common member can both reach the quorum. The result is exact, because
/// no member is named twice. Each part is then reached by both groups, or can be given to either.
fn disjoint_groups_reach(quorum: &Quorum) -> bool {
    match quorum {
        Quorum::Member(_) => false,
        Quorum::Threshold { required, of } => {
            debug_assert!((1..=of.len()).contains(&(*required as usize)), "a checked rule can be reached");
            let both = of.iter().filter(|part| disjoint_groups_reach(part)).count();
            let lacking = (*required as usize).saturating_sub(both);
            of.len() - both >= 2 * lacking
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PEOPLE, any_rule, groups, member_id as id};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_fewest_approvals_are_the_fewest(rule in any_rule()) {
            let fewest = groups().filter(|group| satisfied(&rule, group)).map(|group| group.len()).min();
            prop_assert_eq!(fewest, Some(least_approvals(&rule)));
        }

        #[test]
        fn the_fewest_further_approvals_are_the_fewest(
            rule in any_rule(),
            approved in 0..1usize << PEOPLE.len(),
            rejected in 0..1usize << PEOPLE.len(),
        ) {
            let group = |bits: usize| groups().nth(bits & ((1 << PEOPLE.len()) - 1)).expect("one of all");
            let (approved, open) = (group(approved), group(!approved & !rejected));
            let further = groups().filter(|more| more.is_subset(&open));
            let reached = further.filter(|more| satisfied(&rule, &approved.union(more).cloned().collect()));
            let fewest = reached.map(|more| more.len()).min();
            prop_assert_eq!(approvals_lacking(&rule, &approved, &open), fewest, "{}", describe(&rule));
            for name in PEOPLE {
                let alone = BTreeSet::from([id(name)]);
                let counts = groups().any(|rest| {
                    satisfied(&rule, &rest.union(&alone).cloned().collect()) && !satisfied(&rule, &rest)
                });
                prop_assert_eq!(names(&rule, &id(name)), counts, "{} and {}", describe(&rule), name);
            }
        }

        #[test]
        fn disjoint_groups_are_found_exactly(rule in any_rule()) {
            let everyone: BTreeSet<MemberId> = PEOPLE.iter().map(|name| id(name)).collect();
            // More approvals never hurt, so the rest of the circle is the best second group.
            let found = groups().any(|group| {
                let rest = everyone.difference(&group).cloned().collect();
                satisfied(&rule, &group) && satisfied(&rule, &rest)
            });
            prop_assert_eq!(disjoint_groups_reach(&rule), found, "{}", describe(&rule));
        }

        #[test]
        fn one_more_approval_never_hurts(rule in any_rule(), extra in prop::sample::select(PEOPLE.to_vec())) {
            for group in groups().filter(|group| satisfied(&rule, group)) {
                let mut more = group;
                more.insert(id(extra));
                prop_assert!(satisfied(&rule, &more));
            }
        }
    }

    #[test]
    fn for_a_plain_rule_the_floor_is_more_than_half() {
        for n in 2..=9u32 {
            for required in 1..=n {
                let of = (0..n).map(|at| Quorum::Member(id(&format!("m{at}")))).collect();
                let rule = Quorum::Threshold { required, of };
                assert_eq!(disjoint_groups_reach(&rule), 2 * required <= n, "{required} of {n}");
            }
        }
    }
}
