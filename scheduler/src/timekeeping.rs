//! Movement of the cluster's time: forward with a majority of the replicas' clocks, and back with them.
//!
//! One wrong clock moves nothing. A majority that is wrong is believed, since nothing distinguishes it from
//! the truth. Once it is right again, the leader's next tick sets the time back. Otherwise the time would
//! stand still, and nothing could be proposed, for as long as the clocks had been ahead.

use crate::clock::{ClockDeviation, ClockReadings, ClusterTime, MajorityTime, show_span};
use crate::cluster::{Cluster, HoldingPhase, ServicePhase};
use crate::usage::price_versions;
use protocol::ReplicaId;
use protocol::limits::CLOCK_GRACE_MS;
use std::collections::{BTreeMap, BTreeSet};

impl Cluster {
    /// Returns the cluster's time once a command with these readings is applied: the latest time that a
    /// majority of the replicas' clocks has reached.
    ///
    /// It never goes back here, and never falls behind what members have signed. Without the readings of a
    /// majority it stands still. Only an [`Action::Tick`](crate::Action::Tick) sets it back.
    #[must_use]
    pub fn time(&self, clocks: &ClockReadings) -> ClusterTime {
        let reached = self.majority_time(clocks).map(|majority| majority.reached).unwrap_or_default();
        let time = self.now.max(reached).max(self.signed_floor());
        debug_assert!(time >= self.now, "only a tick sets the time back");
        time
    }

    /// Returns the replicas whose clocks are wrong by these readings: far from a majority's. Such a replica
    /// may not lead.
    #[must_use]
    pub fn wrong_clocks(&self, clocks: &ClockReadings) -> BTreeMap<ReplicaId, ClockDeviation> {
        clocks.wrong(&self.clock_replicas(clocks))
    }

    pub(crate) fn majority_time(&self, clocks: &ClockReadings) -> Option<MajorityTime> {
        clocks.majority(&self.clock_replicas(clocks))
    }

    /// Returns the replicas whose clocks count. Before the circle is founded, those that are known do.
    fn clock_replicas(&self, clocks: &ClockReadings) -> BTreeSet<ReplicaId> {
        match self.circle_state() {
            Some(state) => state.control().iter().map(|replica| replica.id).collect(),
            None => clocks.replicas().collect(),
        }
    }

    /// Returns the earliest time that agrees with the circle's decisions: that of the latest signed one, less
    /// the tolerated error of its proposer's clock.
    pub(crate) fn signed_floor(&self) -> ClusterTime {
        let signed = self.circle.as_ref().map(|circle| circle.latest_created_at).unwrap_or_default();
        ClusterTime(protocol::Millis(signed.0.saturating_sub(CLOCK_GRACE_MS)))
    }

    /// Returns the time to which a tick with these readings sets the cluster back; none if it leaves it. That
    /// is the case if a majority's clocks are more than [`CLOCK_GRACE_MS`] behind it. A smaller difference
    /// passes without a correction.
    pub(crate) fn earlier_time(&self, clocks: &ClockReadings) -> Option<ClusterTime> {
        let earlier = self.majority_time(clocks)?.limit.max(self.signed_floor());
        (earlier.plus(CLOCK_GRACE_MS) < self.now).then_some(earlier)
    }

    /// Sets the time back, and with it every recorded time. A record of a later time than `to` counts
    /// as made then, and a deadline to come stays as far ahead as it was.
    pub(crate) fn set_back(&mut self, to: ClusterTime) {
        let from = self.now;
        debug_assert!(to < from, "a time is set back to an earlier one");
        let moved = |time: ClusterTime| match time <= from {
            true => time.min(to),
            false => to.plus(from.ms_until(time)),
        };
        let move_time = |time: &mut ClusterTime| *time = moved(*time);
        self.now = to;
        self.corrections += 1;
        // A plan that was made by the earlier time is stale.
        self.generation += 1;
        self.leadership.iter_mut().for_each(|leadership| move_time(&mut leadership.since));
        for service in self.services.values_mut() {
            service.avoid.values_mut().for_each(move_time);
            if let ServicePhase::Retiring { until } = &mut service.phase {
                move_time(until);
            }
            for slot in service.slots.values_mut() {
                move_time(&mut slot.since);
                slot.former_holders.iter_mut().for_each(|former| move_time(&mut former.until));
                slot.others_may_run_until.iter_mut().for_each(move_time);
                let phase = slot.holding.as_mut().map(|holding| &mut holding.phase);
                if let Some(HoldingPhase::Draining { until, .. }) = phase {
                    move_time(until);
                }
            }
        }
        for pending in self.pending.values_mut() {
            pending.last_seen = moved(ClusterTime(pending.last_seen)).0;
        }
        self.drafts.values_mut().for_each(|draft| move_time(&mut draft.submitted_at));
        for open in self.open.values_mut() {
            move_time(&mut open.submitted_at);
            open.decided_at.iter_mut().for_each(move_time);
        }
        self.jobs.move_times(moved);
        let versions = price_versions(self);
        self.usage.set_back(to, &versions);
        self.shares.set_back(to);
        self.closed.iter_mut().for_each(|closed| move_time(&mut closed.closed_at));
        self.outcomes.set_back(to);
        self.audit.set_back(to);
        debug_assert!(
            self.outcomes.last_at().max(self.audit.last_at()) <= to,
            "no record is of a later time"
        );
        let detail = format!("by {}: a majority of the clocks was ahead", show_span(to.ms_until(from)));
        self.audit.record(to, "scheduler", "set-back", "time", &detail);
    }
}
