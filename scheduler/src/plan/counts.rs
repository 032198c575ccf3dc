//! Counts that nodes have stated and no replica has counted: planned before slots are released, and when they
//! are old.

use super::Planner;
use crate::command::Step;
use crate::limits::COUNT_INTERVAL_MS;
use crate::usage::{Meter, MeterName, raised};

impl Planner<'_> {
    /// Counts what nodes have stated of slots that end, and of those whose last counts are old.
    pub(super) fn count_usage(&mut self) {
        for step in self.due_counts() {
            let Step::CountUsage(signed) = &step else { continue };
            let label = format!("{}/{}", signed.usage.envelope, signed.usage.slot);
            self.take(step, label, "its node counted more".to_string());
        }
    }

    fn due_counts(&self) -> Vec<Step> {
        let (cluster, observed, now) = (self.view.cluster, self.view.observed, self.draft.now);
        let is_due = |name: &MeterName, meter: &Meter| {
            let is_old = meter.counted_at.plus(COUNT_INTERVAL_MS) <= now;
            is_old || observed.has_ended(&meter.node, &name.envelope, name.slot, name.fence)
        };
        let meters = cluster.usage.meters.iter().filter(|(name, _)| name.stored.is_none());
        let stated = meters.filter(|(name, meter)| is_due(name, meter)).filter_map(|(name, meter)| {
            let signed = observed.usage(&meter.node, &name.envelope, name.slot)?;
            // A step that replicas refuse would stop the whole plan.
            raised(cluster, signed, now).ok()?;
            Some(Step::CountUsage(Box::new(signed.clone())))
        });
        stated.collect()
    }
}
