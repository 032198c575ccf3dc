//! Pairs of user ids of sandboxes: the first of a pair and its successor belong to one sandbox.

use protocol::sandbox::SandboxIdentity;
use std::collections::BTreeSet;

/// User and group id of a worker inside its sandbox.
pub(crate) const WORKER_ID: u32 = 1;

/// Two consecutive user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UserIdPair {
    /// The lower id.
    first: u32,
}

impl UserIdPair {
    /// Returns the pair of a sandbox; none if it runs as the agent's own user.
    pub(crate) fn of(identity: SandboxIdentity) -> Option<Self> {
        match identity {
            SandboxIdentity::OwnIds { first } => Some(Self { first }),
            SandboxIdentity::SameUid => None,
        }
    }

    /// Returns the host's id of the worker.
    pub(crate) fn worker(self) -> u32 {
        self.first + WORKER_ID
    }

    /// Returns the identity of a sandbox with these ids.
    pub(crate) fn identity(self) -> SandboxIdentity {
        SandboxIdentity::OwnIds { first: self.first }
    }
}

/// Returns the lowest pair that is not in use, among `count` pairs from the id `first` on.
pub(crate) fn free_pair(first: u32, count: u32, in_use: &BTreeSet<UserIdPair>) -> Option<UserIdPair> {
    let pairs = (0..count).map_while(|pair| {
        let first = first.checked_add(pair.checked_mul(2)?)?;
        first.checked_add(1).map(|_| UserIdPair { first })
    });
    let free = pairs.into_iter().find(|pair| !in_use.contains(pair));
    debug_assert!(free.is_none_or(|pair| pair.first >= first), "a pair of the range");
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(firsts: &[u32]) -> BTreeSet<UserIdPair> {
        firsts.iter().map(|first| UserIdPair { first: *first }).collect()
    }

    #[test]
    fn the_lowest_free_pair_is_taken() {
        for (first, count, in_use, expected) in [
            (100, 3, &[][..], Some(100)),
            (100, 3, &[100], Some(102)),
            (100, 3, &[102], Some(100)),
            (100, 3, &[100, 104], Some(102)),
            (100, 3, &[100, 102, 104], None),
            (100, 0, &[], None),
            (u32::MAX - 2, 9, &[], Some(u32::MAX - 2)),
            (u32::MAX - 2, 9, &[u32::MAX - 2], None),
            (u32::MAX, 9, &[], None),
        ] {
            let free = free_pair(first, count, &pairs(in_use));
            assert_eq!(free, expected.map(|first| UserIdPair { first }), "{count} from {first}: {in_use:?}");
        }
    }

    #[test]
    fn pairs_never_overlap_until_they_are_exhausted() {
        let mut in_use = BTreeSet::new();
        while let Some(pair) = free_pair(100, 8, &in_use) {
            let ids = |pair: &UserIdPair| [pair.first, pair.first + 1];
            assert!(in_use.iter().all(|other| ids(other).iter().all(|id| !ids(&pair).contains(id))));
            assert!(in_use.insert(pair));
        }
        assert_eq!(in_use.len(), 8);
    }

    #[test]
    fn a_pair_is_that_of_its_identity() {
        assert_eq!(UserIdPair::of(SandboxIdentity::SameUid), None);
        let identity = SandboxIdentity::OwnIds { first: 7 };
        assert_eq!(UserIdPair::of(identity).map(UserIdPair::identity), Some(identity));
        assert_eq!(UserIdPair::of(identity).map(UserIdPair::worker), Some(8));
    }
}
