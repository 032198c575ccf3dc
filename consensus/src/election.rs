//! Election timeout as a pure function of its inputs.
//!
//! The raft library draws the timeout from thread-local randomness, its only source of entropy. The core
//! overwrites it after every call, so that a run is a function of its inputs. The campaign count is one of
//! them, because a failed pre-vote does not raise the term. Without it, two replicas with equal timeouts
//! would tie forever.

use crate::ids::Term;
use protocol::ReplicaId;

/// Inputs of an election timeout, beside its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidacy {
    pub(crate) seed: u64,
    pub(crate) id: ReplicaId,
    pub(crate) term: Term,
    /// Number of campaigns since the replica started.
    pub(crate) campaigns: u64,
}

/// Returns the ticks until the next campaign, within `election_ticks .. 2 * election_ticks`.
pub(crate) fn timeout(candidacy: Candidacy, election_ticks: usize) -> usize {
    assert!(election_ticks > 0, "an election timeout of zero ticks");
    let Candidacy { seed, id, term, campaigns } = candidacy;
    let mut hasher = blake3::Hasher::new();
    for value in [seed, id.0, term.0, campaigns] {
        hasher.update(&value.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    let span = election_ticks as u64;
    let ticks = (span + u64::from_le_bytes(first) % span) as usize;
    assert!((election_ticks..2 * election_ticks).contains(&ticks), "a timeout of {ticks} ticks");
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the timeouts of 2000 successive terms.
    fn timeouts(seed: u64, id: u64, campaigns: u64, election_ticks: usize) -> Vec<usize> {
        let candidacy = |term| Candidacy { seed, id: ReplicaId(id), term: Term(term), campaigns };
        (0..2000).map(|term| timeout(candidacy(term), election_ticks)).collect()
    }

    #[test]
    fn stays_within_one_and_two_election_timeouts_and_reaches_both_ends() {
        let all = timeouts(7, 1, 0, 10);
        assert_eq!(all.iter().min(), Some(&10));
        assert_eq!(all.iter().max(), Some(&19));
    }

    #[test]
    fn every_argument_counts() {
        let base = timeouts(1, 1, 0, 1000);
        for (name, other) in [
            ("seed", timeouts(2, 1, 0, 1000)),
            ("id", timeouts(1, 2, 0, 1000)),
            ("campaigns", timeouts(1, 1, 1, 1000)),
        ] {
            assert_ne!(base, other, "{name}");
        }
        assert_eq!(base, timeouts(1, 1, 0, 1000));
    }
}
