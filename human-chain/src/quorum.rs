//! Quorum rules: whether a set of members reaches one, and whether a rule is sane.
//!
//! May surprise: a rule names each member at most once. A member named twice would count twice
//! (`2 of (alice, alice)`), so such a rule is no rule.

use crate::ChainError;
use protocol::MemberId;
use protocol::governance::Quorum;
use std::collections::BTreeSet;

/// Deepest nesting: `k of (k of (...))`; people cannot read deeper rules.
const DEPTH_MAX: usize = 6;

/// Whether the members who approved reach the quorum.
#[must_use]
pub fn satisfied(quorum: &Quorum, approvals: &BTreeSet<MemberId>) -> bool {
    match quorum {
        Quorum::Member(member) => approvals.contains(member),
        Quorum::Threshold { required, of } => {
            of.iter().filter(|part| satisfied(part, approvals)).count() >= *required as usize
        }
    }
}

/// The fewest members that reach it.
#[must_use]
pub fn least_approvals(quorum: &Quorum) -> usize {
    match quorum {
        Quorum::Member(_) => 1,
        Quorum::Threshold { required, of } => {
            let mut parts: Vec<usize> = of.iter().map(least_approvals).collect();
            parts.sort_unstable();
            parts.iter().take(*required as usize).sum()
        }
    }
}

/// The rule as people write it: `2 of (alice, bob, 1 of (carol, dave))`.
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

/// Checks that a rule names members only, each at most once; that each threshold can be reached and is
/// at least one; that a circle of two or more never lets one member decide; and that no two disjoint
/// groups can both decide, which for a plain `m of n` says m > n/2.
pub(crate) fn check(quorum: &Quorum, members: &BTreeSet<&MemberId>) -> Result<(), ChainError> {
    let mut named = BTreeSet::new();
    check_parts(quorum, members, &mut named, DEPTH_MAX)?;
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
        Quorum::Threshold { .. } if depth == 0 => refuse(format!("is nested deeper than {DEPTH_MAX}")),
        Quorum::Threshold { required, of } => {
            if *required == 0 || *required as usize > of.len() {
                return refuse(format!("asks for {required} of {}", of.len()));
            }
            of.iter().try_for_each(|part| check_parts(part, members, named, depth - 1))
        }
    }
}

/// Whether two groups without a common member can both reach it. Exact, because no member is named
/// twice: each part is then reached by both groups, or can be given to either.
fn disjoint_groups_reach(quorum: &Quorum) -> bool {
    match quorum {
        Quorum::Member(_) => false,
        Quorum::Threshold { required, of } => {
            let both = of.iter().filter(|part| disjoint_groups_reach(part)).count();
            let lacking = (*required as usize).saturating_sub(both);
            of.len() - both >= 2 * lacking
        }
    }
}
