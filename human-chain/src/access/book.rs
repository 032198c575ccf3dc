//! Access book: the grants and revocations that a party has taken, in the order of their arrival.
//!
//! A revocation never loses to its grant, whichever arrives first, and is kept until the grant would have
//! expired. An entry that no longer stands is removed and does not return.

use super::{VerifiedGrant, VerifiedRevocation, check_grant_stands};
use crate::{ChainError, CircleState};
use protocol::access::{
    ACCESS_BOOK_VERSION, ACCESS_PAGE_MAX, AccessBookRecord, AccessGrant, AccessRecord, GRANTS_MAX,
    GRANTS_PER_HOLDER_MAX, GrantedAccess, REVOCATIONS_MAX, SignedGrant, SignedRevocation,
};
use protocol::gateway::ApiKey;
use protocol::{CircleId, Digest, GrantId, Millis, TokenName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Grants and revocations of one party.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessBook {
    grants: BTreeMap<GrantId, SignedGrant>,
    revocations: BTreeMap<GrantId, SignedRevocation>,
    /// Grants and revocations by the number of their arrival, from 1; a number is never used again.
    arrivals: BTreeMap<u64, GrantId>,
    last: u64,
}

/// Grant of a secret, as a book knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundGrant<'a> {
    /// Grant that was not revoked. It may have expired.
    Granted(&'a AccessGrant),
    /// Grant that was revoked.
    Revoked(&'a AccessGrant),
}

impl AccessBook {
    /// Takes a verified grant. Returns false if it is in the book already.
    ///
    /// # Errors
    /// Returns an error when the grant was revoked, or the book is full.
    pub fn accept(&mut self, verified: VerifiedGrant) -> Result<bool, ChainError> {
        let VerifiedGrant { id, signed } = verified;
        if self.revocations.contains_key(&id) {
            return Err(ChainError::GrantRevoked(id));
        }
        if self.grants.contains_key(&id) {
            return Ok(false);
        }
        if self.grants.len() >= GRANTS_MAX {
            return Err(ChainError::TooManyGrants { what: "grants", most: GRANTS_MAX as u64 });
        }
        self.arrive(id);
        self.grants.insert(id, signed);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(true)
    }

    /// Takes a verified revocation, and ends its grant. Returns false if it is in the book already.
    ///
    /// # Errors
    /// Returns an error when the book holds as many revocations as it may.
    pub fn revoke(&mut self, verified: VerifiedRevocation) -> Result<bool, ChainError> {
        let VerifiedRevocation { id, signed } = verified;
        if self.revocations.contains_key(&id) {
            return Ok(false);
        }
        if self.revocations.len() >= REVOCATIONS_MAX {
            return Err(ChainError::TooManyGrants { what: "revocations", most: REVOCATIONS_MAX as u64 });
        }
        self.grants.remove(&id);
        self.arrivals.retain(|_, arrived| *arrived != id);
        self.arrive(id);
        self.revocations.insert(id, signed);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(true)
    }

    fn arrive(&mut self, id: GrantId) {
        self.last += 1;
        let earlier = self.arrivals.insert(self.last, id);
        debug_assert_eq!(earlier, None, "a number is used once");
    }

    /// Returns whether the book has the grant of this id.
    #[must_use]
    pub fn contains(&self, id: &GrantId) -> bool {
        self.grants.contains_key(id)
    }

    /// Returns whether the grant of this id was revoked.
    #[must_use]
    pub fn is_revoked(&self, id: &GrantId) -> bool {
        self.revocations.contains_key(id)
    }

    /// Returns whether more than half of the places for grants, or of those for revocations, are taken.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.grants.len() > GRANTS_MAX / 2 || self.revocations.len() > REVOCATIONS_MAX / 2
    }

    /// Removes the grants that stand no longer, and the revocations of grants that have expired. Returns true
    /// if there were any.
    pub fn prune(&mut self, state: &CircleState, now: Millis) -> bool {
        let before = self.arrivals.len();
        self.grants.retain(|_, signed| check_grant_stands(state, &signed.grant, now).is_ok());
        self.revocations.retain(|_, signed| signed.revocation.grant.expires_at > now);
        let (grants, revocations) = (&self.grants, &self.revocations);
        self.arrivals.retain(|_, id| grants.contains_key(id) || revocations.contains_key(id));
        debug_assert_eq!(self.check_invariants(), Ok(()));
        self.arrivals.len() < before
    }

    /// Returns whether [`Self::prune`] would remove something at this time by expiry alone.
    #[must_use]
    pub fn is_anything_over(&self, now: Millis) -> bool {
        self.grants.values().any(|signed| signed.grant.expires_at <= now)
            || self.revocations.values().any(|signed| signed.revocation.grant.expires_at <= now)
    }

    /// Returns the grants that stand, by id.
    pub fn standing<'a>(
        &'a self,
        state: &'a CircleState,
        now: Millis,
    ) -> impl Iterator<Item = (&'a GrantId, &'a SignedGrant)> {
        self.grants.iter().filter(move |(_, signed)| check_grant_stands(state, &signed.grant, now).is_ok())
    }

    /// Returns the grant of a secret with this digest, revoked or not. The digest is that of a text with 256
    /// random bits, so an ordinary comparison reveals nothing to an attacker.
    #[must_use]
    pub fn find(&self, secret: &Digest) -> Option<FoundGrant<'_>> {
        let granted = self.grants.values().map(|signed| &signed.grant);
        let revoked = self.revocations.values().map(|signed| &signed.revocation.grant);
        let granted = granted.map(FoundGrant::Granted);
        granted.chain(revoked.map(FoundGrant::Revoked)).find(|found| found.grant().secret == *secret)
    }

    /// Returns the inference keys that stand, by the name of their holder: of the grants to one holder the
    /// latest two, and at most as many keys as the envelope in force allows, the oldest first. Without room
    /// for both keys of a holder, the later one counts.
    #[must_use]
    pub fn keys(&self, state: &CircleState, now: Millis) -> Vec<ApiKey> {
        let mut standing: Vec<&AccessGrant> = self.standing(state, now).map(|(_, one)| &one.grant).collect();
        standing.sort_by_key(|grant| grant.issued_at);
        let mut keys: BTreeMap<&TokenName, VecDeque<ApiKey>> = BTreeMap::new();
        let (mut count, most) = (0, state.access().keys_max as usize);
        for grant in standing {
            let GrantedAccess::Key { services, requests_per_minute } = &grant.access else { continue };
            let held = keys.entry(&grant.holder).or_default();
            if held.len() >= GRANTS_PER_HOLDER_MAX || count >= most {
                if held.pop_front().is_none() {
                    continue;
                }
                count -= 1;
            }
            held.push_back(ApiKey {
                name: grant.holder.clone(),
                hash: grant.secret,
                services: services.clone(),
                requests_per_minute: *requests_per_minute,
            });
            count += 1;
        }
        debug_assert!(count <= most, "the envelope bounds the keys");
        keys.into_values().flatten().collect()
    }

    /// Returns the records that arrived after this number, as many as one answer holds, and the number of the
    /// last one.
    #[must_use]
    pub fn after(&self, number: u64) -> (u64, Vec<AccessRecord>) {
        let record = |id: &GrantId| match self.revocations.get(id) {
            Some(signed) => Some(AccessRecord::Revocation(signed.clone())),
            None => self.grants.get(id).cloned().map(AccessRecord::Grant),
        };
        let later = self.arrivals.range(number.saturating_add(1)..).take(ACCESS_PAGE_MAX);
        let (numbers, records): (Vec<u64>, Vec<AccessRecord>) =
            later.filter_map(|(number, id)| Some((*number, record(id)?))).unzip();
        debug_assert!(records.len() <= ACCESS_PAGE_MAX, "an answer has its size");
        (numbers.last().copied().unwrap_or(number), records)
    }

    /// Returns the number of the last arrival.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the record to persist.
    #[must_use]
    pub fn to_record(&self, circle: CircleId) -> AccessBookRecord {
        AccessBookRecord {
            version: ACCESS_BOOK_VERSION,
            circle,
            grants: self.grants.values().cloned().collect(),
            revocations: self.revocations.values().cloned().collect(),
        }
    }

    /// Restores a book from this party's own record. Each signature in it was verified when it was taken.
    #[must_use]
    pub fn from_record(record: AccessBookRecord) -> Self {
        let mut book = Self::default();
        for signed in record.revocations {
            let id = signed.revocation.grant.id();
            book.arrive(id);
            book.revocations.insert(id, signed);
        }
        for signed in record.grants {
            let id = signed.grant.id();
            if !book.revocations.contains_key(&id) {
                book.arrive(id);
                book.grants.insert(id, signed);
            }
        }
        debug_assert_eq!(book.check_invariants(), Ok(()));
        book
    }

    /// Checks that each record has one arrival, not after the last, that no revoked grant is left, and that
    /// each is known by its own id.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub fn check_invariants(&self) -> Result<(), String> {
        let count = self.grants.len() + self.revocations.len();
        if self.arrivals.len() != count {
            return Err(format!("{} arrivals of {count} grants and revocations", self.arrivals.len()));
        }
        if let Some(id) = self.arrivals.values().find(|id| !self.contains(id) && !self.is_revoked(id)) {
            return Err(format!("grant {id} arrived, and is not in the book"));
        }
        if let Some(id) = self.grants.keys().find(|id| self.is_revoked(id)) {
            return Err(format!("grant {id} was revoked, and is in the book"));
        }
        let granted = self.grants.iter().map(|(id, signed)| (id, &signed.grant));
        let revoked = self.revocations.iter().map(|(id, signed)| (id, &signed.revocation.grant));
        if let Some((id, grant)) = granted.chain(revoked).find(|(id, grant)| **id != grant.id()) {
            return Err(format!("grant {} is kept as {id}", grant.id()));
        }
        match self.arrivals.last_key_value().filter(|(number, _)| **number > self.last) {
            Some((number, _)) => Err(format!("arrival {number} is after the last, {}", self.last)),
            None => Ok(()),
        }
    }
}

impl<'a> FoundGrant<'a> {
    /// Returns the grant, revoked or not.
    #[must_use]
    pub fn grant(&self) -> &'a AccessGrant {
        match self {
            Self::Granted(grant) | Self::Revoked(grant) => grant,
        }
    }
}
