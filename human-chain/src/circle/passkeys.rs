//! Passkeys in a circle's state: each member's own, the changes of them, and the counters of their uses.
//!
//! A member's signature puts a passkey into the chain, and only a hybrid one does. Passkeys leave with their
//! member, and with the keys that vouched for them.
//!
//! A counter detects a copied authenticator; it is no authority. Certificates need not be decided in the
//! order in which their ballots were signed, so a use is compared only with uses that were signed before it.

use super::CircleState;
use crate::member::former_key;
use crate::passkey::{
    PasskeyCount, PasskeyUse, ballot_challenge, check_assertion, check_passkey, comment_challenge,
    counter_of, halt_challenge, key_bytes,
};
use crate::subject::{class_of, passkeys_subject, passkeys_value};
use crate::{ChainError, form};
use protocol::comment::Comment;
use protocol::governance::{ActionClass, Ballot, BallotSignature, Change, Member, Quorum, SignedBallot};
use protocol::halt::Halt;
use protocol::keys::ByteString;
use protocol::limits::PASSKEYS_MAX;
use protocol::{MemberId, Millis, Passkey, PasskeyAssertion};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Passkeys of a member, and the highest counter of each that was used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberPasskeys {
    pub(super) passkeys: Vec<Passkey>,
    pub(super) counters: BTreeMap<ByteString, PasskeyCount>,
}

impl CircleState {
    /// Returns the passkeys of a member.
    #[must_use]
    pub fn passkeys(&self, member: &MemberId) -> &[Passkey] {
        self.passkeys.get(member).map_or(&[], |held| &held.passkeys)
    }

    /// Returns whether ballots by passkey count towards the quorum of this change, beside a hybrid one.
    #[must_use]
    pub fn passkeys_count(&self, change: &Change) -> bool {
        let policy = self.policy.passkeys.as_ref();
        class_of(change) == ActionClass::Routine && policy.is_some_and(|passkeys| passkeys.routine)
    }

    /// Returns the quorum that this change needs: that of its class, or the member whose own it is.
    #[must_use]
    pub fn quorum_of(&self, change: &Change) -> Cow<'_, Quorum> {
        match change {
            Change::SetPasskeys { member, .. } => Cow::Owned(Quorum::Member(member.clone())),
            _ => Cow::Borrowed(self.quorum(class_of(change))),
        }
    }

    /// Returns whether the ballot of the proposer counts towards the quorum of this change. A member's own
    /// decision has no other ballot.
    #[must_use]
    pub fn proposer_counts(&self, change: &Change) -> bool {
        self.policy.proposer_counts || class_of(change) == ActionClass::Personal
    }

    /// Returns the rule that this change needs, in words.
    #[must_use]
    pub fn rule_text(&self, change: &Change) -> String {
        crate::quorum::describe_rule(&self.quorum_of(change), self.proposer_counts(change))
    }

    /// Returns whether a ballot by keys in force, once accepted, still stands after later decisions in the
    /// same epoch. Its member is not suspended. If it is by passkey, that is still its member's, and was not
    /// used with a higher counter in a ballot signed before.
    #[must_use]
    pub fn ballot_stands(&self, signed: &SignedBallot) -> bool {
        let Ballot { member, issued_at, .. } = &signed.ballot;
        if self.active_member(member).is_err() {
            return false;
        }
        let BallotSignature::Passkey(assertion) = &signed.signature else { return true };
        let last = self.last_counter(member, &assertion.credential, *issued_at);
        let counter = counter_of(assertion);
        self.passkey(member, assertion).is_ok() && (counter > last || (counter, last) == (0, 0))
    }

    /// Checks the signature of a ballot by passkey, and that such ballots count for the change.
    pub(crate) fn check_passkey_ballot(
        &self,
        change: &Change,
        ballot: &Ballot,
        assertion: &PasskeyAssertion,
    ) -> Result<(), ChainError> {
        let member = &ballot.member;
        let policy = self.policy.passkeys.as_ref().filter(|_| self.passkeys_count(change));
        let Some(policy) = policy else {
            let class = class_of(change);
            return Err(ChainError::PasskeyNotCounted { member: member.clone(), class });
        };
        debug_assert_eq!(class_of(change), ActionClass::Routine, "no other class counts passkeys");
        let passkey = self.passkey(member, assertion)?;
        let last = self.last_counter(member, &assertion.credential, ballot.issued_at);
        check_assertion(policy, passkey, &ballot_challenge(ballot).0, assertion, last)?;
        Ok(())
    }

    /// Checks the signature of a halt by passkey. It needs no policy but that the circle has passkeys at all:
    /// a halt only stops work.
    pub(crate) fn check_passkey_halt(
        &self,
        halt: &Halt,
        assertion: &PasskeyAssertion,
    ) -> Result<(), ChainError> {
        let member = &halt.member;
        let unknown = || ChainError::PasskeyUnknown(member.clone());
        let policy = self.policy.passkeys.as_ref().ok_or_else(unknown)?;
        let passkey = self.passkey(member, assertion)?;
        let last = self.last_counter(member, &assertion.credential, halt.issued_at);
        check_assertion(policy, passkey, &halt_challenge(halt).0, assertion, last)?;
        debug_assert_eq!(passkey.credential, assertion.credential, "its own passkey signed it");
        Ok(())
    }

    /// Checks the signature of a comment by passkey. It needs no policy but that the circle has passkeys at
    /// all: a comment counts for nothing.
    pub(crate) fn check_passkey_comment(
        &self,
        comment: &Comment,
        assertion: &PasskeyAssertion,
    ) -> Result<(), ChainError> {
        let member = &comment.member;
        let unknown = || ChainError::PasskeyUnknown(member.clone());
        let policy = self.policy.passkeys.as_ref().ok_or_else(unknown)?;
        let passkey = self.passkey(member, assertion)?;
        let last = self.last_counter(member, &assertion.credential, comment.issued_at);
        check_assertion(policy, passkey, &comment_challenge(comment).0, assertion, last)?;
        debug_assert_eq!(passkey.credential, assertion.credential, "its own passkey signed it");
        Ok(())
    }

    fn passkey(&self, member: &MemberId, assertion: &PasskeyAssertion) -> Result<&Passkey, ChainError> {
        let found = self.passkeys(member).iter().find(|passkey| passkey.credential == assertion.credential);
        found.ok_or_else(|| ChainError::PasskeyUnknown(member.clone()))
    }

    /// Returns the counter that a use at this time must exceed; 0 if no use was signed before it.
    fn last_counter(&self, member: &MemberId, credential: &ByteString, signed_at: Millis) -> u32 {
        let count = self.passkeys.get(member).and_then(|held| held.counters.get(credential));
        count.filter(|last| last.signed_at < signed_at).map_or(0, |last| last.counter)
    }

    /// Returns the keys of all passkeys. No other party of the circle may have any of them.
    pub(crate) fn passkey_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.passkeys.values().flat_map(|held| &held.passkeys).map(|passkey| key_bytes(&passkey.key))
    }

    /// Checks that a member may have exactly these passkeys: in the form of passkeys, and of no other party,
    /// now or before. A passkey that was dropped may return to its own member.
    pub(crate) fn check_passkeys(&self, member: &MemberId, passkeys: &[Passkey]) -> Result<(), ChainError> {
        let refuse = |reason: String| Err(ChainError::invalid("passkeys", reason));
        if self.member(member).is_none() {
            return Err(ChainError::NotAMember(member.clone()));
        }
        if self.policy.passkeys.is_none() && !passkeys.is_empty() {
            return refuse("the circle's policy has none; propose a policy that names a domain".into());
        }
        check_list(passkeys)?;
        // An open ballot stands as long as its credential does, so the key of a credential stays.
        let present = self.passkeys(member);
        let is_exchanged = |passkey: &&Passkey| {
            present.iter().any(|own| own.credential == passkey.credential && own.key != passkey.key)
        };
        if let Some(passkey) = passkeys.iter().find(is_exchanged) {
            let label = passkey.label.escape_debug();
            return refuse(format!("`{label}` has another key than before; drop it first"));
        }
        let others = self.passkeys.iter().filter(|(other, _)| *other != member);
        let others: Vec<&Passkey> = others.flat_map(|(_, held)| &held.passkeys).collect();
        let credentials: BTreeSet<&ByteString> = others.iter().map(|passkey| &passkey.credential).collect();
        let taken: BTreeSet<&[u8]> = others
            .iter()
            .map(|passkey| key_bytes(&passkey.key))
            .chain(self.members().flat_map(form::member_keys))
            .chain(form::control_keys(self.control()))
            .collect();
        let is_taken = |passkey: &&Passkey| {
            let key = key_bytes(&passkey.key);
            let is_foreign = taken.contains(key)
                || self.node_with_key(key).is_some()
                || self.is_foreign_former_key(member, key);
            credentials.contains(&passkey.credential) || is_foreign
        };
        match passkeys.iter().find(is_taken) {
            Some(passkey) => refuse(format!("`{}` is in use elsewhere", passkey.label.escape_debug())),
            None => Ok(()),
        }
    }

    pub(super) fn apply_passkeys(&mut self, member: MemberId, passkeys: Vec<Passkey>) {
        self.bump(passkeys_subject(&member), Some(passkeys_value(&passkeys)));
        let before = self.passkeys.get(&member).map_or_else(Vec::new, |held| held.passkeys.clone());
        self.give_up_passkeys(&member, &before);
        for passkey in &passkeys {
            self.former_passkeys.remove(&former_key(key_bytes(&passkey.key)));
        }
        let held = self.passkeys.entry(member).or_default();
        held.counters.retain(|credential, _| passkeys.iter().any(|kept| kept.credential == *credential));
        held.passkeys = passkeys;
        debug_assert!(held.counters.len() <= held.passkeys.len(), "a count is of a passkey");
    }

    /// Records that a member gives up these passkeys.
    fn give_up_passkeys(&mut self, member: &MemberId, passkeys: &[Passkey]) {
        let keys = passkeys.iter().map(|passkey| former_key(key_bytes(&passkey.key)));
        self.former_passkeys.extend(keys.map(|key| (key, member.clone())));
    }

    /// Removes the passkeys of members that left, or whose signing keys are others than before.
    pub(super) fn drop_unvouched_passkeys(&mut self, before: &BTreeMap<MemberId, Member>) {
        let signing = |member: &Member| (member.keys.ed25519, member.keys.ml_dsa.clone());
        let now = &self.members;
        let vouched = |id: &MemberId| now.get(id).map(signing) == before.get(id).map(signing);
        let dropped: Vec<MemberId> = self.passkeys.keys().filter(|id| !vouched(id)).cloned().collect();
        for id in dropped {
            if let Some(held) = self.passkeys.remove(&id) {
                self.give_up_passkeys(&id, &held.passkeys);
            }
            if let Some((_, value)) = self.subjects.get_mut(&passkeys_subject(&id)) {
                *value = None;
            }
        }
        debug_assert!(self.passkeys.keys().all(|id| self.member(id).is_some()), "only members have passkeys");
    }

    /// Keeps the counters of the passkeys that a certificate's ballots used. A passkey may have been dropped
    /// since the certificate was verified: nothing counts by it any more.
    pub(super) fn record_uses(&mut self, uses: &[PasskeyUse]) {
        for PasskeyUse { member, credential, count } in uses {
            let Some(held) = self.passkeys.get_mut(member) else { continue };
            if !held.passkeys.iter().any(|passkey| passkey.credential == *credential) {
                continue;
            }
            let kept = held.counters.entry(credential.clone()).or_insert(*count);
            kept.counter = kept.counter.max(count.counter);
            kept.signed_at = kept.signed_at.max(count.signed_at);
            let is_covered = kept.counter >= count.counter && kept.signed_at >= count.signed_at;
            debug_assert!(is_covered, "a count covers each use");
        }
    }
}

/// Checks a member's list of passkeys alone: no more than there may be, and no two alike.
pub(super) fn check_list(passkeys: &[Passkey]) -> Result<(), ChainError> {
    let refuse = |reason: String| Err(ChainError::invalid("passkeys", reason));
    if passkeys.len() > PASSKEYS_MAX {
        return refuse(format!("{} passkeys; accepted: at most {PASSKEYS_MAX}", passkeys.len()));
    }
    let (mut credentials, mut keys, mut labels) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for passkey in passkeys {
        check_passkey(passkey)?;
        let label = passkey.label.escape_debug();
        if !labels.insert(&passkey.label) {
            return refuse(format!("two have the label `{label}`"));
        }
        if !credentials.insert(&passkey.credential) || !keys.insert(key_bytes(&passkey.key)) {
            return refuse(format!("`{label}` stands in the list twice"));
        }
    }
    debug_assert_eq!(labels.len(), passkeys.len(), "each passkey has a label of its own");
    debug_assert_eq!(credentials.len(), keys.len(), "each passkey has an id and a key of its own");
    Ok(())
}
