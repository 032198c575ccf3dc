//! Time by which a node judges approvals.
//!
//! A wall clock can be wrong, and a single control replica can lie. The time of this module stays within the
//! clocks of a majority of the control replicas, as far as they are known, and never falls behind what the
//! circle signed. The boot clock, which cannot be set, carries a known time forward. Nothing here outlives
//! its cause: once the clocks are right, so is this time.

use human_chain::class_of;
use protocol::governance::{ActionClass, Certificate};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{BootTime, Millis};

/// Reading of a wall clock, with the boot clock of this node at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClockSample {
    wall: Millis,
    at: BootTime,
}

impl ClockSample {
    /// Returns the time that the clock shows at `boot`, if it was not set since.
    fn at(self, boot: BootTime) -> Millis {
        let now = self.wall.plus(boot.since(self.at));
        debug_assert!(now >= self.wall, "a clock that is not set never falls");
        now
    }
}

/// Clocks that a node knows besides its own.
#[derive(Debug, Clone)]
pub struct TrustedTime {
    /// Latest sample of each control replica's clock.
    replicas: Vec<Option<ClockSample>>,
    /// Latest moment at which this node's clock was within those of a majority.
    agreed: Option<ClockSample>,
    /// True once each replica was asked, whether or not it answered.
    asked: bool,
}

impl TrustedTime {
    /// Returns the state of a node that has asked none of these control replicas yet.
    #[must_use]
    pub fn new(replicas: usize) -> Self {
        debug_assert!(replicas > 0, "a circle has a control replica");
        Self { replicas: vec![None; replicas], agreed: None, asked: false }
    }

    /// Records the clock of a replica, which this node asked at `asked_at`.
    pub fn record(&mut self, replica: usize, wall: Millis, asked_at: BootTime) {
        if let Some(sample) = self.replicas.get_mut(replica) {
            *sample = Some(ClockSample { wall, at: asked_at });
        }
    }

    /// Records that each replica was asked for its clock.
    pub fn record_round(&mut self) {
        self.asked = true;
    }

    /// Returns whether all that can be known soon is known. Before that, nothing should be judged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.asked || self.known_clocks() >= self.majority()
    }

    /// Returns the current time, given this node's clocks and the latest time that the circle signed.
    ///
    /// A wall clock outside the clocks of a majority does not count: the time at which it last was within
    /// them, carried forward by the boot clock, does, or else the nearest time that a majority vouches for.
    pub fn now(&mut self, wall: Millis, boot: BootTime, signed: Millis) -> Millis {
        let now = match self.majority_clocks(boot) {
            None => wall,
            Some((earliest, latest)) if (earliest..=latest).contains(&wall) => {
                self.agreed = Some(ClockSample { wall, at: boot });
                wall
            }
            Some((earliest, latest)) => {
                self.agreed.map_or_else(|| wall.clamp(earliest, latest), |agreed| agreed.at(boot))
            }
        };
        let now = now.max(signed);
        debug_assert!(now >= signed, "time never falls behind what is signed");
        now
    }

    /// Returns this node's clock if a majority of the replicas confirms it, or if no majority answers. A
    /// recorded time after it was recorded by a wrong clock.
    #[must_use]
    pub fn confirmed(&self, wall: Millis, boot: BootTime) -> Option<Millis> {
        match self.majority_clocks(boot) {
            Some((earliest, latest)) => (earliest..=latest).contains(&wall).then_some(wall),
            None => self.asked.then_some(wall),
        }
    }

    /// Returns the earliest and the latest time that a majority of the replicas vouches for: at least a
    /// majority has reached the first, and no majority is behind the second. None if too few are known.
    fn majority_clocks(&self, boot: BootTime) -> Option<(Millis, Millis)> {
        let mut clocks: Vec<Millis> = self.replicas.iter().flatten().map(|sample| sample.at(boot)).collect();
        clocks.sort_unstable();
        let majority = self.majority();
        let latest = *clocks.get(majority.checked_sub(1)?)?;
        let earliest = *clocks.get(clocks.len().checked_sub(majority)?)?;
        debug_assert!(earliest <= latest, "what a majority has reached is not ahead of a majority");
        Some((Millis(earliest.0.saturating_sub(CLOCK_GRACE_MS)), latest.plus(CLOCK_GRACE_MS)))
    }

    fn known_clocks(&self) -> usize {
        self.replicas.iter().flatten().count()
    }

    fn majority(&self) -> usize {
        let majority = self.replicas.len() / 2 + 1;
        debug_assert!(2 * majority > self.replicas.len(), "two majorities share a replica");
        majority
    }
}

/// Returns the time by which half of a certificate's members had signed it. A single member with a wrong
/// clock moves it no further than to another member's time, unless one ballot is the quorum. A personal
/// decision, which its member signs alone, moves no time.
#[must_use]
pub fn signed_at(certificate: &Certificate) -> Millis {
    if class_of(&certificate.proposal.change) == ActionClass::Personal {
        return Millis::default();
    }
    let mut times: Vec<Millis> = certificate.ballots.iter().map(|signed| signed.ballot.issued_at).collect();
    times.sort_unstable();
    let lower_median = times.len().saturating_sub(1) / 2;
    times.get(lower_median).copied().unwrap_or_default()
}

#[allow(clippy::unwrap_used)]
#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, TestCircle, service};
    use super::*;
    use proptest::prelude::*;
    use protocol::{Digest, ModelRoot};

    const DAY_MS: u64 = 24 * 3600 * 1000;
    const BOOTED: BootTime = BootTime(1_000);

    /// Returns the time of a node that knows these clocks of three replicas.
    fn known(clocks: &[Option<Millis>; 3]) -> TrustedTime {
        let mut time = TrustedTime::new(3);
        for (replica, clock) in clocks.iter().enumerate() {
            if let Some(clock) = clock {
                time.record(replica, *clock, BOOTED);
            }
        }
        time.record_round();
        time
    }

    fn ago(days: u64) -> Millis {
        Millis(NOW.0 - days * DAY_MS)
    }

    fn ahead(days: u64) -> Millis {
        NOW.plus(days * DAY_MS)
    }

    #[test]
    fn a_wall_clock_counts_within_the_clocks_of_a_majority() {
        let (now, grace) = (Some(NOW), CLOCK_GRACE_MS);
        let early = Millis(NOW.0 - grace);
        for (what, clocks, wall, expected) in [
            ("no replica is known", [None, None, None], ago(400), ago(400)),
            ("one of three is no majority", [now, None, None], ago(400), ago(400)),
            ("right", [now, now, now], NOW, NOW),
            ("a little ahead", [now, now, now], NOW.plus(grace), NOW.plus(grace)),
            ("a little behind", [now, now, now], early, early),
            ("ten years ahead", [now, now, now], ahead(3650), NOW.plus(grace)),
            ("400 days slow", [now, now, now], ago(400), early),
            ("two known", [now, None, now], ago(400), early),
            ("one replica ahead", [now, Some(ahead(30)), now], NOW, NOW),
            ("one replica behind", [now, Some(ago(30)), now], NOW, NOW),
            ("both ahead", [now, Some(ahead(30)), now], ahead(30), NOW.plus(grace)),
            ("both behind", [Some(ago(30)), now, now], ago(30), early),
            ("one silent, one ahead", [None, Some(ahead(30)), now], NOW, NOW),
            ("one silent, one behind", [None, Some(ago(30)), now], NOW, NOW),
            ("a majority leads elsewhere", [Some(ago(3)), Some(ago(3)), now], NOW, ago(3).plus(grace)),
            ("the end of time", [Some(Millis(u64::MAX)), now, now], Millis(u64::MAX), NOW.plus(grace)),
            ("its beginning", [Some(Millis(0)), now, now], Millis(0), early),
        ] {
            assert_eq!(known(&clocks).now(wall, BOOTED, Millis(0)), expected, "{what}");
        }
    }

    #[test]
    fn the_time_of_agreement_outlasts_clocks_that_part() {
        let mut time = known(&[Some(NOW), Some(NOW), Some(NOW)]);
        assert_eq!(time.now(NOW, BOOTED, Millis(0)), NOW);
        // The wall clock leaps; then all replicas hold the time back, which only a hostile majority does.
        let (boot, day) = (BOOTED.plus(DAY_MS), NOW.plus(DAY_MS));
        assert_eq!(time.now(ahead(3650), boot, Millis(0)), day);
        for replica in 0..3 {
            time.record(replica, NOW, boot);
        }
        assert_eq!(time.now(day, boot, Millis(0)), day, "a clock that went on as before is right");
        assert_eq!(time.confirmed(day, boot), None, "but the majority does not confirm it");
        // The positive control: without that agreement the replicas decide.
        assert_eq!(known(&[Some(NOW); 3]).now(day, BOOTED, Millis(0)), NOW.plus(CLOCK_GRACE_MS));
        // Both clocks meet elsewhere: they were corrected.
        assert_eq!(time.now(NOW, boot, Millis(0)), NOW);
        assert_eq!(
            time.now(ahead(3650), boot.plus(7), Millis(0)),
            NOW.plus(7),
            "and that counts from then on"
        );
    }

    #[test]
    fn time_never_falls_behind_what_is_signed() {
        let slow = [Some(ago(400)); 3];
        assert_eq!(known(&slow).now(ago(400), BOOTED, ago(1)), ago(1));
        assert_eq!(known(&slow).now(ago(400), BOOTED, Millis(0)), ago(400), "the positive control");
        assert_eq!(known(&[Some(NOW); 3]).now(NOW, BOOTED, ago(1)), NOW);
    }

    #[test]
    fn a_time_is_confirmed_by_a_majority_or_for_lack_of_answers() {
        let now = Some(NOW);
        for (what, clocks, wall, expected) in [
            ("agreement", [now, now, None], NOW, now),
            ("a leap", [now, now, None], ahead(3650), None),
            ("a slow clock", [now, now, None], ago(400), None),
            ("a majority of liars", [Some(ago(9)), Some(ago(9)), now], NOW, None),
            ("no majority answers", [now, None, None], ago(400), Some(ago(400))),
        ] {
            assert_eq!(known(&clocks).confirmed(wall, BOOTED), expected, "{what}");
        }
        let mut time = TrustedTime::new(3);
        time.record(0, NOW, BOOTED);
        assert_eq!((time.confirmed(NOW, BOOTED), time.is_settled()), (None, false), "still being asked");
        time.record(2, NOW, BOOTED);
        assert!(time.is_settled(), "a majority answered");
        time.record(7, NOW, BOOTED);
        assert_eq!(time.known_clocks(), 2, "no such replica");
    }

    #[test]
    fn one_members_clock_does_not_move_what_is_signed() {
        let world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
        let manifest = service("chat", ModelRoot(Digest::of(b"model")), 4);
        let change =
            protocol::governance::Change::Deploy(Box::new(protocol::manifest::Manifest::Service(manifest)));
        let mut certificate = world.certify(change).certificate;
        let ballot = certificate.ballots[0].clone();
        for (days, expected) in [
            (vec![], Millis(0)),
            (vec![0], NOW),
            (vec![0, 3650], NOW),
            (vec![3650, 0], NOW),
            (vec![0, 1, 3650], ahead(1)),
            (vec![0, 0, 1, 3650, 3650], ahead(1)),
        ] {
            let at = |days: &u64| {
                let mut signed = ballot.clone();
                signed.ballot.issued_at = ahead(*days);
                signed
            };
            certificate.ballots = days.iter().map(at).collect();
            assert_eq!(signed_at(&certificate), expected, "{days:?}");
        }
        // Attack: a member decides about its own passkeys, alone, ten years ahead.
        certificate.ballots.truncate(1);
        certificate.ballots[0].ballot.issued_at = ahead(3650);
        assert_eq!(
            signed_at(&certificate),
            ahead(3650),
            "positive control: of another class, it would count"
        );
        let member = ballot.ballot.member;
        certificate.proposal.change = protocol::governance::Change::SetPasskeys { member, passkeys: vec![] };
        assert_eq!(signed_at(&certificate), Millis(0));
    }

    proptest! {
        #[test]
        fn no_clock_of_a_minority_moves_time(
            honest in prop::collection::vec(0_u64..CLOCK_GRACE_MS, 3),
            hostile in prop::collection::vec(any::<u64>(), 2),
            wall in any::<u64>(),
            silent in prop::option::of(0_usize..5),
        ) {
            let mut time = TrustedTime::new(5);
            let clocks = honest.iter().map(|ms| NOW.plus(*ms)).chain(hostile.into_iter().map(Millis));
            for (replica, clock) in clocks.enumerate().filter(|(replica, _)| Some(*replica) != silent) {
                time.record(replica, clock, BOOTED);
            }
            if silent.is_none() {
                let now = time.now(Millis(wall), BOOTED, Millis(0));
                prop_assert!((NOW.0 - CLOCK_GRACE_MS..=NOW.0 + 2 * CLOCK_GRACE_MS).contains(&now.0), "{now}");
            }
            // A clock that is right counts, whichever replica is silent.
            prop_assert_eq!(time.now(NOW, BOOTED, Millis(0)), NOW);
        }
    }
}
