//! Ticket lifetimes, measured by this gateway's own clock.
//!
//! A ticket ends with its node's lease, which the node counts on its boot clock. The gateway cannot read that
//! clock, but differences between its values are meaningful. They state by how much one ticket outlives
//! another, regardless of the two machines' wall clocks. A worker's first ticket is valid for one lease from
//! its arrival. Each later one extends that by the difference that its node states, and never beyond one
//! lease from its own arrival. A replayed ticket, on this connection or on another, therefore gains nothing,
//! and a delayed one expires when its node intended.
//!
//! The wall clock bounds one thing only: the age of a ticket from a worker that this gateway does not know.
//! The two machines' clocks do not run at exactly the same speed either, so a small drift is allowed. Without
//! that, the fastest delivery of any ticket would count forever.

use super::ticket::TicketError;
use protocol::limits::{CLOCK_GRACE_MS, LEASE_MS};
use protocol::order::Ticket;
use protocol::{BootTime, Millis, PublicKey};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// Time for which a worker is remembered: until the wall clock alone rejects its tickets. It allows for the
/// largest tolerated skew, with the node's clock ahead and the gateway's behind.
const RETENTION: Duration = Duration::from_millis(2 * CLOCK_GRACE_MS + LEASE_MS);
/// Maximum workers remembered: four for each that this release was measured with. Beyond that the one that
/// expired first is evicted.
const WORKERS_MAX: usize = 4096;
/// Reciprocal of the drift allowed between two machines' clocks; the kernel slews by half of that drift.
const DRIFT_PARTS: u32 = 1000;

/// Recent tickets of workers.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    workers: Mutex<BTreeMap<PublicKey, Sighting>>,
}

/// The newest ticket of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sighting {
    lease_until: BootTime,
    lapses_at: Instant,
    seen_at: Instant,
}

impl Lifetimes {
    /// Returns the expiry of a ticket that arrived at `arrived_at`.
    ///
    /// # Errors
    /// [`TicketError::Expired`] and [`TicketError::Ahead`].
    pub(super) fn admit(
        &self,
        ticket: &Ticket,
        arrived_at: Instant,
        wall: Millis,
    ) -> Result<Instant, TicketError> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = workers.get(&ticket.worker).copied();
        if known.is_none() {
            check_clocks(ticket.expires_at, wall)?;
            workers.retain(|_, other| arrived_at.saturating_duration_since(other.seen_at) < RETENTION);
        }
        let until = ticket.lease_until_boottime_ms;
        let lapses_at = lapse(known, until, arrived_at);
        assert!(lapses_at <= arrived_at + LEASE, "no ticket outlives one lease from its arrival");
        if lapses_at <= arrived_at {
            let ago = arrived_at.duration_since(lapses_at);
            return Err(TicketError::Expired(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
        }
        if known.is_none_or(|known| until > known.lease_until) {
            if workers.len() >= WORKERS_MAX && known.is_none() {
                let first =
                    workers.iter().min_by_key(|(_, known)| known.lapses_at).map(|(worker, _)| *worker);
                if let Some(first) = first {
                    workers.remove(&first);
                }
            }
            let sighting = Sighting { lease_until: until, lapses_at, seen_at: arrived_at };
            workers.insert(ticket.worker, sighting);
        }
        Ok(lapses_at)
    }
}

/// Computes the expiry of a ticket that arrived at `arrived_at`, given the worker's earlier ticket, if any.
fn lapse(known: Option<Sighting>, until: BootTime, arrived_at: Instant) -> Instant {
    let fresh = arrived_at + LEASE;
    let Some(known) = known else { return fresh };
    let difference = Duration::from_millis(until.0.abs_diff(known.lease_until.0));
    if until < known.lease_until {
        return known.lapses_at.checked_sub(difference).map_or(arrived_at, |at| at.min(fresh));
    }
    // A difference beyond the range of the clock counts as one lease, like any larger one.
    let by_node = known.lapses_at.checked_add(difference + difference / DRIFT_PARTS);
    by_node.map_or(fresh, |at| at.min(fresh))
}

/// Checks that a ticket of an unknown worker may still be valid, within the tolerated skew of the wall
/// clocks.
fn check_clocks(expires_at: Millis, wall: Millis) -> Result<(), TicketError> {
    let late_ms = wall.0.saturating_sub(expires_at.0);
    let ahead_ms = expires_at.0.saturating_sub(wall.0.saturating_add(LEASE_MS));
    if late_ms > CLOCK_GRACE_MS {
        return Err(TicketError::Expired(late_ms));
    }
    if ahead_ms > CLOCK_GRACE_MS { Err(TicketError::Ahead(ahead_ms)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Fence, NodeId, SlotIndex};

    const WALL: Millis = Millis(1_800_000_000_000);
    const MINUTE_MS: i64 = 60_000;

    fn ticket(worker: u8, until_ms: u64, expires_at: Millis) -> Ticket {
        Ticket {
            service: "chat".parse().expect("a name"),
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            node: NodeId(PublicKey([1; 32])),
            worker: PublicKey([worker; 32]),
            gateway: PublicKey([2; 32]),
            expires_at,
            lease_until_boottime_ms: BootTime(until_ms),
        }
    }

    /// A gateway and a node with a skewed wall clock.
    struct Scene {
        lifetimes: Lifetimes,
        began: Instant,
        skew_ms: i64,
    }

    impl Scene {
        fn new(skew_ms: i64) -> Self {
            Self { lifetimes: Lifetimes::default(), began: Instant::now(), skew_ms }
        }

        /// Presents a ticket at one time that was issued at another; returns its remaining validity.
        fn show(&self, worker: u8, issued_ms: u64, shown_ms: u64) -> Result<u64, &'static str> {
            let lease_end_ms = issued_ms + LEASE_MS;
            let wall = Millis((WALL.0 + lease_end_ms).saturating_add_signed(self.skew_ms));
            let arrived_at = self.began + Duration::from_millis(shown_ms);
            let shown = ticket(worker, 77_000 + lease_end_ms, wall);
            let until = self.lifetimes.admit(&shown, arrived_at, WALL.plus(shown_ms));
            until.map(|until| (until - arrived_at).as_millis() as u64).map_err(|error| error.reason())
        }
    }

    #[test]
    fn minutes_of_skew_in_either_direction_change_nothing() {
        for skew_ms in [0, 1_600, -1_600, 4 * MINUTE_MS, -4 * MINUTE_MS] {
            let scene = Scene::new(skew_ms);
            assert_eq!(scene.show(9, 0, 0), Ok(3_000), "skew {skew_ms}");
            for at in (500..60_000).step_by(500) {
                assert_eq!(scene.show(9, at, at), Ok(3_000), "skew {skew_ms} at {at}");
            }
            assert_eq!(scene.show(9, 59_500, 62_499), Ok(1), "skew {skew_ms}: shown late, it lapses in time");
            assert_eq!(scene.show(9, 59_500, 62_500), Err("expired"), "skew {skew_ms}");
        }
    }

    #[test]
    fn clocks_beyond_the_tolerated_skew_are_rejected() {
        assert_eq!(Scene::new(-6 * MINUTE_MS).show(9, 0, 0), Err("expired"));
        assert_eq!(Scene::new(6 * MINUTE_MS).show(9, 0, 0), Err("ahead"));
    }

    #[test]
    fn a_replayed_ticket_never_extends_the_lifetime() {
        let scene = Scene::new(0);
        assert_eq!(scene.show(9, 0, 0), Ok(3_000));
        for at in (0..3_000).step_by(100) {
            assert_eq!(scene.show(9, 0, at), Ok(3_000 - at), "at {at}");
        }
        for at in [3_000, 3_001, 60_000, 299_000, 600_000, 903_000, 5_000_000] {
            assert_eq!(scene.show(9, 0, at), Err("expired"), "at {at}");
        }
    }

    #[test]
    fn delayed_tickets_expire_when_their_node_intended() {
        let scene = Scene::new(0);
        assert_eq!(scene.show(9, 0, 0), Ok(3_000));
        // Its node last received a lease at 10 s. The allowed drift is a thousandth.
        assert_eq!(scene.show(9, 5_000, 6_000), Ok(2_005));
        assert_eq!(scene.show(9, 10_000, 11_000), Ok(2_010));
        assert_eq!(scene.show(9, 7_000, 12_000), Err("expired"));
        assert_eq!(scene.show(9, 10_000, 13_020), Err("expired"));
    }

    #[test]
    fn one_slow_delivery_does_not_count_for_long() {
        let scene = Scene::new(0);
        assert_eq!(scene.show(9, 0, 2_000), Ok(3_000), "nobody can know that it took two seconds");
        assert_eq!(scene.show(9, 2_500, 2_500), Ok(3_000), "the next one says so");
        assert_eq!(scene.show(9, 0, 2_600), Ok(400));
        assert_eq!(scene.show(9, 2_500, 5_400), Ok(100));
    }

    #[test]
    fn clocks_of_unequal_speed_do_not_drift_apart() {
        // The node's boot clock loses half a second in a thousand for a day.
        let scene = Scene::new(0);
        for at in (0..86_400_000_u64).step_by(60_000) {
            let slow = at - at / 2_000;
            assert!(scene.show(9, slow, at).is_ok_and(|left| left > 2_900), "at {at}");
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_changes_nothing() {
        let mut scene = Scene::new(0);
        assert_eq!(scene.show(9, 0, 0), Ok(3_000));
        for (at, skew) in [(500, 60 * MINUTE_MS), (1_000, -60 * MINUTE_MS), (1_500, 0)] {
            scene.skew_ms = skew;
            assert_eq!(scene.show(9, at, at), Ok(3_000), "by {skew} ms");
        }
    }

    #[test]
    fn the_number_of_remembered_workers_is_bounded() {
        let scene = Scene::new(0);
        for number in 0..WORKERS_MAX as u64 + 100 {
            let mut shown = ticket(0, 80_000, WALL);
            shown.worker.0[..8].copy_from_slice(&number.to_le_bytes());
            let arrived_at = scene.began + Duration::from_millis(number);
            assert!(scene.lifetimes.admit(&shown, arrived_at, WALL).is_ok());
        }
        assert_eq!(scene.lifetimes.workers.lock().expect("whole").len(), WORKERS_MAX);
    }
}
