//! The two deadlines of a node's slots.
//!
//! The *liveness lease* is between a sandbox and its agent: the main loop renews it while it runs, so that
//! nothing outlives an agent that died or hangs. The *autonomy* of an order is between the node and control:
//! it counts from the last answer, and the liveness lease of a slot is never renewed beyond it. An exclusive
//! slot has the lease that control granted with that answer, and nothing else.

use host::Clock;
use protocol::manifest::{JobManifest, ServiceManifest};
use protocol::{BootTime, Millis};

/// Times from which the deadline of each slot follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lease {
    /// End of the liveness lease: the agent's main loop ran less than one lease before it.
    alive_until: BootTime,
    /// Boot clock at the request of control's last answer; none before the first.
    heard_at: Option<BootTime>,
    /// End of the lease that control granted with its answers; the start of the machine before the first.
    granted_until: BootTime,
}

impl Lease {
    /// Returns the state of an agent that was restarted: control answered its predecessor, and granted
    /// nothing to this one.
    pub(super) fn resumed(heard_at: Option<BootTime>) -> Self {
        Self { heard_at, ..Self::default() }
    }

    /// Records that the main loop runs. Returns true if a slot's deadline may have changed.
    pub(super) fn renew(&mut self, now: BootTime, lease_ms: u64) -> bool {
        let alive_until = now.plus(lease_ms).max(self.alive_until);
        let later = alive_until.since(self.alive_until);
        // Answers of control renew the lease too; a renewal right after one only costs messages.
        if later < lease_ms / 10 {
            return false;
        }
        self.alive_until = alive_until;
        self.heard_at.is_some()
    }

    /// Records an answer of control that was requested at `asked_at`, with the lease that it grants. Returns
    /// true if it is news.
    pub(super) fn hear(&mut self, asked_at: BootTime, granted_ms: u64, now: BootTime, lease_ms: u64) -> bool {
        let before = *self;
        self.heard_at = self.heard_at.max(Some(asked_at));
        self.granted_until = self.granted_until.max(asked_at.plus(granted_ms.min(lease_ms)));
        self.alive_until = self.alive_until.max(now.plus(lease_ms));
        debug_assert!(self.granted_until >= before.granted_until, "no answer takes a lease back");
        *self != before
    }

    /// Returns the time until which a slot of this service may run, as far as is known now.
    pub(super) fn until(self, service: &ServiceManifest) -> BootTime {
        let autonomy_until = self.autonomy_until(service);
        if service.exclusive { autonomy_until } else { self.alive_until.min(autonomy_until) }
    }

    /// Returns the time until which control's last answer lets a slot of this service run, while the agent
    /// lives.
    pub(super) fn autonomy_until(self, service: &ServiceManifest) -> BootTime {
        if service.exclusive {
            return self.granted_until;
        }
        self.heard_at.map_or(BootTime(0), |at| at.plus(service.autonomy_ms()))
    }

    /// Returns the time until which a slot of this job may run, as far as is known now: its envelope's
    /// autonomy, while the agent lives.
    pub(super) fn until_job(self, job: &JobManifest) -> BootTime {
        let autonomy_ms = job.autonomy_seconds.saturating_mul(1000);
        self.alive_until.min(self.heard_at.map_or(BootTime(0), |at| at.plus(autonomy_ms)))
    }

    /// Returns whether a slot of this service may run now.
    pub(super) fn holds(self, service: &ServiceManifest, clock: &Clock) -> bool {
        clock.boot() < self.until(service)
    }

    /// Returns the end of a slot's lease by the wall clock, for tickets.
    pub(super) fn expires_at(self, service: &ServiceManifest, clock: &Clock) -> Millis {
        clock.wall().plus(self.until(service).since(clock.boot()))
    }

    /// Returns the end of the lease that control granted.
    pub(super) fn granted_until(self) -> BootTime {
        self.granted_until
    }

    /// Returns the milliseconds since control's last answer was asked for; since the start of the machine
    /// before the first.
    pub(super) fn silent_ms(self, now: BootTime) -> u64 {
        now.since(self.heard_at.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::core::testing::service;
    use super::*;
    use protocol::limits::LEASE_MS;
    use protocol::{Digest, ModelRoot};
    use std::time::Duration;

    fn manifest(autonomy_seconds: u64, exclusive: bool) -> ServiceManifest {
        let manifest = service("chat", ModelRoot(Digest::of(b"model")), 4);
        ServiceManifest { autonomy_seconds, exclusive, ..manifest }
    }

    fn heard(at: u64) -> Lease {
        let mut lease = Lease::default();
        assert!(lease.hear(BootTime(at), LEASE_MS, BootTime(at + 100), LEASE_MS));
        lease
    }

    #[test]
    fn the_earlier_of_the_two_deadlines_counts() {
        let mut lease = heard(5_000);
        let (day, short, alone) = (manifest(86_400, false), manifest(10, false), manifest(3, true));
        for (now, [by_day, by_short, by_alone]) in [
            (5_500, [8_500, 8_500, 8_000]),
            (6_000, [9_000, 9_000, 8_000]),
            (12_000, [15_000, 15_000, 8_000]),
            (12_500, [15_500, 15_000, 8_000]),
            (90_000_000, [86_405_000, 15_000, 8_000]),
        ] {
            assert!(lease.renew(BootTime(now), LEASE_MS), "at {now}");
            let until = [&day, &short, &alone].map(|service| lease.until(service).0);
            assert_eq!(until, [by_day, by_short, by_alone], "at {now}");
        }
        assert!(lease.hear(BootTime(90_000_000), LEASE_MS, BootTime(90_000_050), LEASE_MS));
        assert_eq!([&day, &alone].map(|service| lease.until(service).0), [90_003_050, 90_003_000]);
    }

    #[test]
    fn an_agent_that_hangs_renews_nothing() {
        let lease = heard(5_000);
        assert_eq!(lease.until(&manifest(86_400, false)), BootTime(5_100 + LEASE_MS));
        let mut late = lease;
        assert!(
            !late.hear(BootTime(4_000), 1, BootTime(4_100), LEASE_MS),
            "an answer that came late is no news"
        );
        assert_eq!(late, lease);
    }

    #[test]
    fn renewals_right_after_an_answer_wake_no_slot() {
        let mut lease = heard(5_000);
        assert!(!lease.renew(BootTime(5_200), LEASE_MS));
        assert!(lease.renew(BootTime(5_600), LEASE_MS));
        assert!(
            !Lease::default().renew(BootTime(5_600), LEASE_MS),
            "nothing may run before the first answer"
        );
    }

    #[test]
    fn a_restarted_agent_goes_on_from_the_last_answer_and_grants_itself_nothing() {
        let mut lease = Lease::resumed(Some(BootTime(5_000)));
        assert!(lease.renew(BootTime(9_000), LEASE_MS));
        assert_eq!(lease.until(&manifest(86_400, false)), BootTime(12_000));
        assert_eq!(lease.until(&manifest(5, false)), BootTime(10_000));
        assert_eq!(lease.until(&manifest(3, true)), BootTime(0), "exclusive work waits for control");
        assert_eq!((lease.silent_ms(BootTime(9_000)), Lease::default().silent_ms(BootTime(7))), (4_000, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_holds_until_its_end_however_the_wall_clock_is_set() {
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let (lease, service) = (heard(5_000), manifest(3, true));
        assert!(lease.holds(&service, &clock));
        clock.step_wall(3_600_000);
        assert!(lease.holds(&service, &clock));
        tokio::time::advance(Duration::from_millis(2_999)).await;
        assert!(lease.holds(&service, &clock));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!lease.holds(&service, &clock), "its end is no longer part of it");
        clock.step_wall(-7_200_000);
        assert!(!lease.holds(&service, &clock));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_expires_with_the_lease_by_the_wall_clock_of_now() {
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let (lease, service) = (heard(5_000), manifest(3, true));
        assert_eq!(lease.expires_at(&service, &clock), Millis(1_003_000));
        clock.step_wall(-500_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lease.expires_at(&service, &clock), Millis(503_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(lease.expires_at(&service, &clock), clock.wall(), "one that has ended expires at once");
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_of_control_there_is_no_lease() {
        let clock = Clock::of_runtime(BootTime(0), Millis(0));
        for exclusive in [false, true] {
            assert!(!Lease::default().holds(&manifest(3, exclusive), &clock));
        }
    }
}
