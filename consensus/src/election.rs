//! Election timeout as a pure function of its inputs.
//!
//! The raft library draws the timeout from thread-local randomness, its only source of entropy. The core
//! overwrites it after every call, so that a run is a function of its inputs. The campaign count is one of
//! them, because a failed pre-vote does not raise the term. Without it, two replicas with equal timeouts
//! would tie forever.

/// Returns the ticks until the next campaign, within `election_ticks .. 2 * election_ticks`.
pub(crate) fn timeout(seed: u64, id: u64, term: u64, campaigns: u64, election_ticks: usize) -> usize {
    assert!(election_ticks > 0, "an election timeout of zero ticks");
    let mut hasher = blake3::Hasher::new();
    for value in [seed, id, term, campaigns] {
        hasher.update(&value.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    let span = election_ticks as u64;
    (span + u64::from_le_bytes(first) % span) as usize
}

#[cfg(test)]
mod tests {
    use super::timeout;

    #[test]
    fn stays_within_one_and_two_election_timeouts_and_reaches_both_ends() {
        let all: Vec<usize> = (0..2000).map(|term| timeout(7, 1, term, 0, 10)).collect();
        assert_eq!(all.iter().min(), Some(&10));
        assert_eq!(all.iter().max(), Some(&19));
    }

    #[test]
    fn every_argument_counts() {
        let base: Vec<usize> = (0..64).map(|term| timeout(1, 1, term, 0, 1000)).collect();
        for (name, other) in [
            ("seed", (0..64).map(|term| timeout(2, 1, term, 0, 1000)).collect::<Vec<_>>()),
            ("id", (0..64).map(|term| timeout(1, 2, term, 0, 1000)).collect()),
            ("campaigns", (0..64).map(|term| timeout(1, 1, term, 1, 1000)).collect()),
        ] {
            assert_ne!(base, other, "{name}");
        }
        assert_eq!(base, (0..64).map(|term| timeout(1, 1, term, 0, 1000)).collect::<Vec<_>>());
    }
}
