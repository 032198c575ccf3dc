//! The scheduler's three times, each a type of its own so that none is taken for another.
//!
//! The wire and the disk have one time, [`Millis`]; the conversion is explicit wherever a value enters or
//! leaves.

use crate::limits::{CLOCK_BOUND_MS, CLOCK_READINGS_MAX};
use protocol::display::counted;
use protocol::{Millis, ReplicaId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

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
    /// Time by the leader's own clock, which never jumps. Leases are judged by it alone, and nothing else is.
    LeaderTime
);
time!(
    /// Time of the replicated state, which a majority of the replicas' wall clocks has reached. Deadlines are
    /// judged by it, leases never. [`Cluster::time`](crate::Cluster::time) states how it moves.
    ClusterTime
);
time!(
    /// Reading of one replica's wall clock, which may be wrong.
    WallTime
);

/// Wall clocks of the control replicas at one moment, as one of them knows them. Every command carries those
/// that its proposer knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<ReplicaId, WallTime>", into = "BTreeMap<ReplicaId, WallTime>")]
pub struct ClockReadings(BTreeMap<ReplicaId, WallTime>);

impl From<ClockReadings> for BTreeMap<ReplicaId, WallTime> {
    fn from(readings: ClockReadings) -> Self {
        readings.0
    }
}

impl TryFrom<BTreeMap<ReplicaId, WallTime>> for ClockReadings {
    type Error = &'static str;

    fn try_from(readings: BTreeMap<ReplicaId, WallTime>) -> Result<Self, Self::Error> {
        match readings.len() <= CLOCK_READINGS_MAX {
            true => Ok(Self(readings)),
            false => Err("more clocks are read than there are replicas"),
        }
    }
}

impl FromIterator<(ReplicaId, WallTime)> for ClockReadings {
    /// Collects readings; those beyond the limit are left out.
    fn from_iter<I: IntoIterator<Item = (ReplicaId, WallTime)>>(readings: I) -> Self {
        Self(readings.into_iter().take(CLOCK_READINGS_MAX).collect())
    }
}

/// Bounds on which a majority of the replicas' clocks agrees. With every clock of an odd number known, both
/// are their median.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MajorityTime {
    /// Latest time that a majority's clocks have reached.
    pub(crate) reached: ClusterTime,
    /// Earliest time that a majority's clocks have not passed.
    pub(crate) limit: ClusterTime,
}

impl ClockReadings {
    /// Returns the replicas whose clocks are known.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = ReplicaId> {
        self.0.keys().copied()
    }

    /// Returns the time of a majority of these replicas; none if the clocks of fewer are known. Readings of
    /// other replicas do not count.
    #[must_use]
    pub(crate) fn majority(&self, replicas: &BTreeSet<ReplicaId>) -> Option<MajorityTime> {
        let read = self.0.iter().filter(|(id, _)| replicas.contains(id));
        let mut times: Vec<ClusterTime> = read.map(|(_, wall)| ClusterTime(wall.0)).collect();
        times.sort_unstable();
        let majority = replicas.len() / 2 + 1;
        let limit = *times.get(majority - 1)?;
        let reached = *times.get(times.len() - majority)?;
        debug_assert!(reached <= limit, "two majorities share a replica");
        Some(MajorityTime { reached, limit })
    }

    /// Returns the replicas whose clocks are wrong: further than [`CLOCK_BOUND_MS`] from a majority's.
    #[must_use]
    pub(crate) fn wrong(&self, replicas: &BTreeSet<ReplicaId>) -> BTreeMap<ReplicaId, ClockDeviation> {
        let Some(MajorityTime { reached, limit }) = self.majority(replicas) else { return BTreeMap::new() };
        let deviation = |wall: &WallTime| {
            let wall = ClusterTime(wall.0);
            let (ahead, behind) = (limit.ms_until(wall), wall.ms_until(reached));
            let ms = ahead.max(behind);
            (ms > CLOCK_BOUND_MS).then_some(ClockDeviation { ahead: ahead > 0, ms })
        };
        let read = self.0.iter().filter(|(id, _)| replicas.contains(id));
        let wrong: BTreeMap<_, _> = read.filter_map(|(id, wall)| Some((*id, deviation(wall)?))).collect();
        debug_assert!(wrong.len() < replicas.len(), "the clocks in the middle are right");
        wrong
    }
}

/// Distance of a replica's clock from those of a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockDeviation {
    ahead: bool,
    ms: u64,
}

impl fmt::Display for ClockDeviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", show_span(self.ms), if self.ahead { "ahead" } else { "behind" })
    }
}

/// Returns a span of time in its largest whole unit.
#[must_use]
pub(crate) fn show_span(ms: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute")];
    let unit = UNITS.into_iter().find(|(length, _)| ms >= 2 * length);
    let (length, noun) = unit.unwrap_or((1000, "second"));
    debug_assert!(length == 1000 || ms / length >= 2, "no unit is larger than half of the span");
    counted(ms / length, noun)
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

    const DAY: u64 = 86_400_000;
    const NOW: u64 = 1_000 * DAY;

    fn circle(count: u64) -> BTreeSet<ReplicaId> {
        (1..=count).map(ReplicaId).collect()
    }

    /// Returns readings of the replicas 1, 2 and so on; a replica without one did not answer.
    fn read(clocks: &[Option<u64>]) -> ClockReadings {
        let reading = |(id, clock): (u64, &Option<u64>)| Some((ReplicaId(id), WallTime(Millis((*clock)?))));
        (1..).zip(clocks).filter_map(reading).collect()
    }

    #[test]
    fn a_majority_bounds_the_time_from_both_sides() {
        let (right, ahead, behind) = (Some(NOW), Some(NOW + 30 * DAY), Some(NOW - 400 * DAY));
        for (name, clocks, expected) in [
            ("all agree", vec![right, right, right], Some((NOW, NOW))),
            ("one ahead", vec![right, ahead, right], Some((NOW, NOW))),
            ("one behind", vec![behind, right, right], Some((NOW, NOW))),
            ("one each way", vec![behind, ahead, right], Some((NOW, NOW))),
            ("a majority is believed", vec![ahead, ahead, right], Some((NOW + 30 * DAY, NOW + 30 * DAY))),
            ("one is unknown", vec![right, None, right], Some((NOW, NOW))),
            ("two that differ", vec![right, None, ahead], Some((NOW, NOW + 30 * DAY))),
            ("a minority", vec![None, None, ahead], None),
            ("nobody", vec![None, None, None], None),
            ("alone", vec![ahead], Some((NOW + 30 * DAY, NOW + 30 * DAY))),
            ("two of two", vec![right, ahead], Some((NOW, NOW + 30 * DAY))),
            ("one of two", vec![right, None], None),
            ("five", vec![ahead, right, ahead, right, right], Some((NOW, NOW))),
        ] {
            let time = read(&clocks).majority(&circle(clocks.len() as u64));
            let bounds = time.map(|time| (time.reached.0.0, time.limit.0.0));
            assert_eq!(bounds, expected, "{name}");
        }
        assert_eq!(read(&[right, right, right]).majority(&circle(0)), None);
        let strangers = read(&[None, None, None, ahead, ahead, ahead]);
        assert_eq!(strangers.majority(&circle(3)), None, "other replicas do not count");
    }

    #[test]
    fn a_clock_is_wrong_beyond_its_bound_from_a_majority() {
        let wrong = |clocks: &[Option<u64>]| -> Vec<String> {
            let wrong = read(clocks).wrong(&circle(clocks.len() as u64));
            wrong.iter().map(|(id, by)| format!("{id} {by}")).collect()
        };
        let (right, near) = (Some(NOW), Some(NOW + CLOCK_BOUND_MS));
        assert_eq!(wrong(&[right, right, near]), [""; 0]);
        assert_eq!(wrong(&[right, right, Some(NOW + CLOCK_BOUND_MS + 1)]), ["3 30 seconds ahead"]);
        assert_eq!(wrong(&[Some(NOW - CLOCK_BOUND_MS - 1), right, right]), ["1 30 seconds behind"]);
        assert_eq!(wrong(&[right, Some(NOW + 30 * DAY), right]), ["2 30 days ahead"]);
        assert_eq!(
            wrong(&[Some(0), Some(NOW + 3_600_000), right]),
            ["1 1000 days behind", "2 60 minutes ahead"]
        );
        assert_eq!(wrong(&[right, None, Some(NOW + DAY)]), [""; 0], "two that differ: neither is a majority");
        assert_eq!(wrong(&[Some(NOW + 30 * DAY)]), [""; 0], "alone it is the majority");
        assert_eq!(show_span(1_000), "1 second");
    }

    #[test]
    fn readings_are_bounded() {
        let many = |count: u64| {
            (1..=count).map(|id| (ReplicaId(id), WallTime(Millis(id)))).collect::<BTreeMap<_, _>>()
        };
        let most = CLOCK_READINGS_MAX as u64;
        assert_eq!(ClockReadings::try_from(many(most)).map(BTreeMap::from), Ok(many(most)));
        assert!(ClockReadings::try_from(many(most + 1)).is_err());
        let taken: ClockReadings = many(most + 1).into_iter().collect();
        assert_eq!(BTreeMap::from(taken), many(most));
    }
}
