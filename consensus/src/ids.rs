//! Newtypes for the numbers of the log, so that the compiler rejects an index in the place of a term.
//!
//! They are plain numbers on disk, on the wire and in the `raft` crate, and are converted where those begin.
//! The id of a replica is [`protocol::ReplicaId`]. Additions saturate: no log reaches the largest number.

use protocol::ReplicaId;
use std::fmt;

/// Defines a newtype over `u64`.
macro_rules! number {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        $visibility struct $name($visibility u64);

        impl $name {
            /// Returns the number that follows.
            #[must_use]
            $visibility const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Index of a log entry, beginning at 1; 0 precedes the first entry.
    pub LogIndex
);
number!(
    /// Raft term, beginning at 1; 0 precedes the first election.
    pub Term
);
number!(
    /// Number of times that a log has been opened: unique to each start of its replica.
    pub Incarnation
);
number!(
    /// Number of a batch for the disk, in ascending order.
    pub BatchNumber
);
number!(
    /// Number of a linearizable read among those of one replica.
    pub ReadId
);
number!(
    /// Number of a segment file; the first is 0.
    pub(crate) SegmentNumber
);
number!(
    /// Number of a log record, beginning at 1; 0 precedes the first record.
    pub(crate) RecordNumber
);

impl LogIndex {
    /// Returns the index `count` entries further.
    #[must_use]
    pub(crate) const fn plus(self, count: usize) -> Self {
        Self(self.0.saturating_add(count as u64))
    }

    /// Returns the index `count` entries before, at least 0.
    #[must_use]
    pub(crate) const fn minus(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count))
    }

    /// Returns the number of entries after `earlier` up to this one; 0 if `earlier` is not earlier.
    #[must_use]
    pub(crate) const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Returns the replica with this raft id, or `None` for 0, with which raft denotes no replica.
pub(crate) fn replica(raft_id: u64) -> Option<ReplicaId> {
    (raft_id != 0).then_some(ReplicaId(raft_id))
}

/// Returns the raft id of a replica, or 0 for none.
pub(crate) fn raft_id(replica: Option<ReplicaId>) -> u64 {
    replica.map_or(0, |id| id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_on_indices_saturates_at_both_ends() {
        let last = LogIndex(u64::MAX);
        assert_eq!((LogIndex(4).next(), last.next()), (LogIndex(5), last));
        assert_eq!((LogIndex(4).plus(3), last.plus(1)), (LogIndex(7), last));
        assert_eq!((LogIndex(4).minus(3), LogIndex(4).minus(5)), (LogIndex(1), LogIndex(0)));
        assert_eq!((LogIndex(9).since(LogIndex(4)), LogIndex(4).since(LogIndex(9))), (5, 0));
    }

    #[test]
    fn the_raft_id_zero_denotes_no_replica() {
        for (raw, replica_id) in [(0, None), (1, Some(ReplicaId(1))), (u64::MAX, Some(ReplicaId(u64::MAX)))] {
            assert_eq!(replica(raw), replica_id);
            assert_eq!(raft_id(replica_id), raw);
        }
    }

    #[test]
    fn a_number_is_displayed_without_its_type() {
        assert_eq!(
            format!("{} {} {:016x}", LogIndex(7), Term(2), SegmentNumber(255).0),
            "7 2 00000000000000ff"
        );
    }
}
