//! Rules for a change of members and for a suspension, beside the rules of form.
//!
//! Each new set of keys is proven by its holder, and none of its keys was ever a member's. No rule falls in
//! the change in which a member leaves or loses its keys. Otherwise one change could remove the objectors and
//! let fewer decide. Members that are suspended count as absent.

use crate::quorum::{carries, describe_rule, least_approvals, satisfied};
use crate::{ChainError, CircleState, form, signature_holds};
use protocol::governance::{ActionClass, Change, MEMBER_KEYS_DOMAIN, Member, Policy, Quorum};
use protocol::keys::HybridSignature;
use protocol::limits::{MEMBER_PROOFS_MAX, STANDING_HALTS_MAX};
use protocol::{Digest, MemberId};
use std::collections::{BTreeMap, BTreeSet};
use std::slice;

/// Returns the proposed members with keys that they do not have in force: new members, and those whose keys
/// are replaced.
pub(crate) fn with_new_keys<'a>(
    state: &CircleState,
    members: &'a [Member],
) -> impl Iterator<Item = &'a Member> {
    members.iter().filter(|member| state.member(&member.id) != Some(*member))
}

/// Returns the members that a change gives keys that they do not have in force. Their ballots by these keys
/// count for the quorum of the proposed members.
#[must_use]
pub fn joining_members<'a>(state: &CircleState, change: &'a Change) -> Vec<&'a Member> {
    match change {
        Change::SetMembers { members, .. } => with_new_keys(state, members).collect(),
        _ => Vec::new(),
    }
}

/// Checks a change of members against the members in force.
pub(crate) fn check_members(
    state: &CircleState,
    members: &[Member],
    policy: &Policy,
    proofs: &BTreeMap<MemberId, HybridSignature>,
) -> Result<(), ChainError> {
    form::check_members(members, policy)?;
    if let Some(member) = members.iter().find(|member| state.is_former_member(&member.id)) {
        let reason = format!("the id `{}` belonged to a member who left; choose another", member.id);
        return Err(ChainError::invalid("members", reason));
    }
    let new: Vec<&Member> = with_new_keys(state, members).collect();
    if new.len() > MEMBER_PROOFS_MAX {
        let reason = format!(
            "{} members have new keys; accepted: at most {MEMBER_PROOFS_MAX} in one change; make several",
            new.len()
        );
        return Err(ChainError::invalid("members", reason));
    }
    new.iter().try_for_each(|member| check_keys_are_new(state, member))?;
    check_no_lowering(state, members, policy)?;
    let suspended: BTreeSet<&MemberId> =
        state.suspended().keys().filter(|id| new.iter().all(|member| member.id != **id)).collect();
    debug_assert!(suspended.iter().all(|id| state.member(id).is_some()), "only members are suspended");
    check_reachable(policy, members.iter().map(|member| &member.id), &suspended)?;
    check_proofs(&new, proofs)
}

/// Checks that no key of a new set is or was a member's. Such a set replaces all keys at once: a key that is
/// kept, or comes back under another id, could be the stolen one.
fn check_keys_are_new(state: &CircleState, member: &Member) -> Result<(), ChainError> {
    let in_force: BTreeSet<&[u8]> = state.members().flat_map(form::member_keys).collect();
    let known = |key: &[u8]| in_force.contains(key) || state.is_former_key(key);
    if form::member_keys(member).into_iter().any(known) {
        return Err(ChainError::MemberKeyReturns(member.id.clone()));
    }
    Ok(())
}

/// Checks that each new set of keys, and no other, has the proof of its holder.
fn check_proofs(new: &[&Member], proofs: &BTreeMap<MemberId, HybridSignature>) -> Result<(), ChainError> {
    if let Some(id) = proofs.keys().find(|id| new.iter().all(|member| member.id != **id)) {
        let reason = format!("there is a proof for `{id}`, whose keys are not new");
        return Err(ChainError::invalid("members", reason));
    }
    for member in new {
        let proof = proofs.get(&member.id);
        let holds = |proof| signature_holds(&member.keys, MEMBER_KEYS_DOMAIN, &member.key_claim(), proof);
        if !proof.is_some_and(holds) {
            return Err(ChainError::MemberKeysUnproven(member.id.clone()));
        }
    }
    debug_assert_eq!(new.len(), proofs.len(), "each new set of keys has one proof");
    Ok(())
}

/// Checks that no rule falls in a change that takes a vote from a member: one who leaves, or whose keys are
/// replaced.
fn check_no_lowering(state: &CircleState, members: &[Member], policy: &Policy) -> Result<(), ChainError> {
    let proposed: BTreeMap<&MemberId, &Member> = members.iter().map(|member| (&member.id, member)).collect();
    let is_kept = |member: &&Member| proposed.get(&member.id) == Some(member);
    let Some(leaves) = state.members().find(|member| !is_kept(member)) else { return Ok(()) };
    let kept: BTreeSet<MemberId> = state.members().filter(is_kept).map(|member| member.id.clone()).collect();
    debug_assert!(!kept.contains(&leaves.id), "a member that leaves is not kept");
    for class in [ActionClass::Routine, ActionClass::Sensitive] {
        let (old, new) = (state.quorum(class), rule(policy, class)?);
        let (counted, counts) = (state.policy().proposer_counts, policy.proposer_counts);
        let proposer_gains = counts && !counted;
        if !is_at_least(new, old, &kept) || least_approvals(new) < least_approvals(old) || proposer_gains {
            return Err(ChainError::PolicyLowered {
                class,
                member: leaves.id.clone(),
                from: describe_rule(old, counted),
                to: describe_rule(new, counts),
            });
        }
    }
    Ok(())
}

/// Returns the rule of a class in a policy that may not be in force.
pub(crate) fn rule(policy: &Policy, class: ActionClass) -> Result<&Quorum, ChainError> {
    let rule = policy.quorums.get(&class).or_else(|| policy.quorums.get(&ActionClass::Sensitive));
    rule.ok_or_else(|| ChainError::invalid("policy", "has no quorum for sensitive changes"))
}

/// Returns whether each group of these members that reaches `new` reaches `old` too.
///
/// The answer is safe, not exact: if it is true, no group of them reaches only `new`. Each part of the new
/// rule is paired with a part of the old one that it implies, no part twice. A part without a partner counts
/// as if it always held. For rules of one level, `m of n`, the answer is exact.
fn is_at_least(new: &Quorum, old: &Quorum, members: &BTreeSet<MemberId>) -> bool {
    if !satisfied(new, members) {
        return true;
    }
    if let (Quorum::Member(new), Quorum::Member(old)) = (new, old) {
        return new == old;
    }
    let ((required, parts), (old_required, old_parts)) = (parts_of(new), parts_of(old));
    let mut open: Vec<&Quorum> = old_parts.iter().collect();
    let mut unpaired = 0;
    for part in parts.iter().filter(|part| satisfied(part, members)) {
        match open.iter().position(|old| is_at_least(part, old, members)) {
            Some(at) => drop(open.remove(at)),
            None => unpaired += 1,
        }
    }
    debug_assert!(open.len() <= old_parts.len(), "no part is paired twice");
    required >= old_required + unpaired
}

/// Returns a rule as a threshold over parts; a member alone is `1 of (member)`.
fn parts_of(rule: &Quorum) -> (usize, &[Quorum]) {
    match rule {
        Quorum::Member(_) => (1, slice::from_ref(rule)),
        Quorum::Threshold { required, of } => (*required as usize, of),
    }
}

/// Checks that the members without those that are suspended reach each quorum of a policy.
fn check_reachable<'a>(
    policy: &Policy,
    members: impl Iterator<Item = &'a MemberId>,
    suspended: &BTreeSet<&MemberId>,
) -> Result<(), ChainError> {
    let active: BTreeSet<MemberId> = members.filter(|id| !suspended.contains(id)).cloned().collect();
    for (class, rule) in &policy.quorums {
        if !carries(rule, policy.proposer_counts, &active) {
            let reason = format!(
                "without the suspended members, the {class} quorum {} could not be reached",
                describe_rule(rule, policy.proposer_counts)
            );
            return Err(ChainError::invalid("suspension", reason));
        }
    }
    Ok(())
}

/// Checks that a member can be suspended: once, and only while the others reach every quorum.
pub(crate) fn check_suspension(
    state: &CircleState,
    member: &MemberId,
    halts: &BTreeSet<Digest>,
) -> Result<(), ChainError> {
    if state.member(member).is_none() {
        return Err(ChainError::NotAMember(member.clone()));
    }
    if state.is_suspended(member) {
        return Err(ChainError::MemberSuspended(member.clone()));
    }
    if halts.len() > STANDING_HALTS_MAX {
        let reason = format!("{} halts; accepted: at most {STANDING_HALTS_MAX}", halts.len());
        return Err(ChainError::invalid("suspension", reason));
    }
    let suspended: BTreeSet<&MemberId> = state.suspended().keys().chain([member]).collect();
    debug_assert_eq!(suspended.len(), state.suspended().len() + 1, "a suspension adds one member");
    check_reachable(state.policy(), state.members().map(|member| &member.id), &suspended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quorum::describe;
    use crate::testing::{PEOPLE, any_rule, groups, member_id};
    use proptest::prelude::*;

    fn flat(required: u32, people: &[&str]) -> Quorum {
        Quorum::Threshold {
            required,
            of: people.iter().map(|name| Quorum::Member(member_id(name))).collect(),
        }
    }

    /// Returns whether a group of these members reaches the new rule alone, by trying them all.
    fn lowers(new: &Quorum, old: &Quorum, members: &BTreeSet<MemberId>) -> bool {
        let mut of_them = groups().filter(|group| group.is_subset(members));
        of_them.any(|group| satisfied(new, &group) && !satisfied(old, &group))
    }

    fn chosen(bits: usize) -> BTreeSet<MemberId> {
        groups().nth(bits & ((1 << PEOPLE.len()) - 1)).expect("one of all")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_rule_that_is_taken_for_as_strict_is_lower(
            old in any_rule(),
            new in any_rule(),
            kept in any::<usize>(),
        ) {
            let kept = chosen(kept);
            if is_at_least(&new, &old, &kept) {
                prop_assert!(!lowers(&new, &old, &kept), "{} to {}", describe(&old), describe(&new));
            }
        }

        #[test]
        fn a_rule_is_as_strict_as_itself_for_any_members(rule in any_rule(), kept in any::<usize>()) {
            prop_assert!(is_at_least(&rule, &rule, &chosen(kept)), "{}", describe(&rule));
        }
    }

    #[test]
    fn for_plain_rules_the_comparison_is_exact() {
        let kept: BTreeSet<MemberId> = PEOPLE[..4].iter().map(|name| member_id(name)).collect();
        let (mut lower, mut not_lower) = (0, 0);
        for (old_people, new_people) in [(&PEOPLE[..5], &PEOPLE[..4]), (&PEOPLE[..4], &PEOPLE[..6])] {
            for old_required in 1..=old_people.len() as u32 {
                for required in 1..=new_people.len() as u32 {
                    let (old, new) = (flat(old_required, old_people), flat(required, new_people));
                    let expected = lowers(&new, &old, &kept);
                    let text = format!("{} to {}", describe(&old), describe(&new));
                    assert_eq!(!is_at_least(&new, &old, &kept), expected, "{text}");
                    *(if expected { &mut lower } else { &mut not_lower }) += 1;
                }
            }
        }
        assert!(lower > 5 && not_lower > 5, "{lower} and {not_lower}: both outcomes are met");
    }

    #[test]
    fn a_nested_rule_stays_as_strict_when_a_member_is_left_out_of_it() {
        let nested =
            |first: Quorum, second: Quorum| Quorum::Threshold { required: 2, of: vec![first, second] };
        let kept: BTreeSet<MemberId> = ["a", "b", "d", "e", "f"].iter().map(|name| member_id(name)).collect();
        let old = nested(flat(2, &["a", "b", "c"]), flat(2, &["d", "e", "f"]));
        for (new, expected) in [
            (nested(flat(2, &["a", "b"]), flat(2, &["d", "e", "f"])), true),
            (nested(flat(2, &["d", "e", "f"]), flat(2, &["a", "b"])), true),
            (nested(flat(1, &["a", "b"]), flat(2, &["d", "e", "f"])), false),
            (nested(flat(2, &["a", "b"]), flat(1, &["d", "e", "f"])), false),
            (
                Quorum::Threshold {
                    required: 1,
                    of: vec![nested(flat(2, &["a", "b"]), flat(3, &["d", "e", "f"]))],
                },
                false,
            ),
        ] {
            assert_eq!(is_at_least(&new, &old, &kept), expected, "{}", describe(&new));
            assert!(!expected || !lowers(&new, &old, &kept), "{}", describe(&new));
        }
    }
}
