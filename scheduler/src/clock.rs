//! The scheduler's three times, each a type of its own so that none is taken for another.
//!
//! The wire and the disk have one time, [`Millis`]; the conversion is explicit wherever a value enters or
//! leaves.

use protocol::Millis;
use serde::{Deserialize, Serialize};

/// Defines a time; its serialized form is that of [`Millis`].
macro_rules! time {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Millis);

        impl $name {
            /// Returns this time plus `milliseconds`, saturating.
            #[must_use]
            pub fn plus(self, milliseconds: u64) -> Self {
                Self(self.0.plus(milliseconds))
            }

            /// Returns the milliseconds from this time to a later one; zero if that one has passed.
            #[must_use]
            pub fn ms_until(self, later: Self) -> u64 {
                later.0.0.saturating_sub(self.0.0)
            }
        }
    };
}

time!(
    /// Time by the leader's own clock, which never jumps. Leases are judged by it alone.
    LeaderTime
);
time!(
    /// Time of the replicated state: the latest that any applied command carried. It never goes back.
    /// Deadlines are judged by it, leases never: any replica's clock may have set it.
    ClusterTime
);
time!(
    /// Wall-clock time at which a replica proposes a command; clocks of replicas differ.
    WallTime
);

/// The leader stamps its commands by the clock by which it judges leases. No other time becomes a leader's.
impl From<LeaderTime> for WallTime {
    fn from(time: LeaderTime) -> Self {
        Self(time.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::canonical::to_bytes;

    #[test]
    fn a_time_is_written_like_milliseconds() {
        for number in [0, 1, 1_700_000_000_000, u64::MAX] {
            let millis = Millis(number);
            assert_eq!(to_bytes(&LeaderTime(millis)), to_bytes(&millis));
            assert_eq!(to_bytes(&ClusterTime(millis)), to_bytes(&millis));
            assert_eq!(to_bytes(&WallTime(millis)), to_bytes(&millis));
        }
    }

    #[test]
    fn sums_and_differences_saturate() {
        let time = |number| ClusterTime(Millis(number));
        assert_eq!(time(5).plus(7), time(12));
        assert_eq!(time(5).plus(u64::MAX), time(u64::MAX));
        assert_eq!(time(5).ms_until(time(12)), 7);
        assert_eq!(time(12).ms_until(time(5)), 0);
    }
}
