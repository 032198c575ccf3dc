//! Status of a slot, written by its task and read by the reporting code.

use super::core::{Refusal, RunningSlot, SlotKey};
use super::models::LoadedModel;
use super::usage::SlotCounter;
use protocol::agent::{SlotReport, SlotState};
use protocol::worker::WorkerMetrics;
use protocol::{BootTime, Fence, Millis};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Longest detail in a report, in bytes.
const DETAIL_BYTES_MAX: usize = 1024;

/// Status of a slot.
#[derive(Debug)]
pub(super) struct SlotStatus {
    pub(super) state: SlotState,
    pub(super) detail: String,
    /// Number of times that loading, starting or serving failed and was retried.
    pub(super) restarts: u32,
    /// Latest metrics of the worker.
    pub(super) metrics: Option<WorkerMetrics>,
    /// Counts of all workers under this order.
    pub(super) counter: SlotCounter,
    /// Time since which the slot drains and takes no new requests, by the wall clock and the boot clock.
    pub(super) draining_since: Option<(Millis, BootTime)>,
    /// Limits that are not enforced on the sandbox.
    pub(super) not_enforced: Vec<String>,
    /// Time since which the worker answers requests, in this attempt.
    pub(super) ready_since: Option<Instant>,
    /// The slot's model, once in memory; none after an agent's restart, because a new agent cannot see the
    /// old copy.
    pub(super) model: Option<Arc<LoadedModel>>,
}

impl Default for SlotStatus {
    fn default() -> Self {
        Self {
            state: SlotState::Loading,
            detail: String::new(),
            restarts: 0,
            metrics: None,
            counter: SlotCounter::default(),
            draining_since: None,
            not_enforced: Vec::new(),
            ready_since: None,
            model: None,
        }
    }
}

/// A status shared by a slot's task and the agent.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedStatus(Arc<Mutex<SlotStatus>>);

impl SharedStatus {
    /// Locks the status for reading or writing.
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets state and detail. Returns true if either changed.
    pub(super) fn set(&self, state: SlotState, detail: impl Into<String>) -> bool {
        let mut status = self.lock();
        let detail = shortened(detail.into());
        let changed = status.state != state || status.detail != detail;
        (status.state, status.detail) = (state, detail);
        if state == SlotState::Ready {
            status.ready_since.get_or_insert_with(Instant::now);
        }
        changed
    }

    /// Returns the report for control.
    pub(super) fn report(&self, key: &SlotKey, fence: Fence) -> SlotReport {
        let status = self.lock();
        let model = status.model.as_ref();
        SlotReport {
            service: key.service.clone(),
            slot: key.slot,
            fence,
            state: status.state,
            detail: status.detail.clone(),
            segments_verified: model.map_or(0, |model| model.segments_verified()),
            segments_total: model.map_or(0, |model| model.segments_total()),
            restarts: status.restarts,
            metrics: status.metrics.clone(),
        }
    }

    /// Returns the slot's input to a reconciliation.
    pub(super) fn running(&self, fence: Fence) -> RunningSlot {
        let since = self.lock().draining_since;
        RunningSlot { fence, draining_since: since.map(|(_, boot)| boot), gives_way: false }
    }
}

/// Returns a report of a slot in which nothing runs.
pub(super) fn plain_report(
    key: &SlotKey,
    fence: Fence,
    state: SlotState,
    detail: impl Into<String>,
) -> SlotReport {
    SlotReport {
        service: key.service.clone(),
        slot: key.slot,
        fence,
        state,
        detail: shortened(detail.into()),
        segments_verified: 0,
        segments_total: 0,
        restarts: 0,
        metrics: None,
    }
}

/// Returns a report of a refused order; its detail begins with the code.
pub(super) fn refused_report(key: &SlotKey, fence: Fence, refusal: &Refusal) -> SlotReport {
    plain_report(key, fence, SlotState::Refused, refusal.to_string())
}

fn shortened(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::{SlotIndex, error_code};
    use std::time::Duration;

    fn key() -> SlotKey {
        SlotKey { service: "chat".parse().expect("a name"), slot: SlotIndex(3) }
    }

    #[test]
    fn only_a_change_of_state_or_detail_is_news() {
        let status = SharedStatus::default();
        for (state, detail, changed) in [
            (SlotState::Loading, "", false),
            (SlotState::Loading, "a store is slow", true),
            (SlotState::Loading, "a store is slow", false),
            (SlotState::Starting, "a store is slow", true),
            (SlotState::Starting, "", true),
            (SlotState::Starting, "", false),
        ] {
            assert_eq!(status.set(state, detail), changed, "{state:?} {detail}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_ready_since_it_first_was() {
        let status = SharedStatus::default();
        status.set(SlotState::Starting, "");
        assert_eq!(status.lock().ready_since, None);
        status.set(SlotState::Ready, "");
        let first = status.lock().ready_since;
        assert_eq!(first, Some(Instant::now()));
        tokio::time::advance(Duration::from_secs(9)).await;
        status.set(SlotState::Draining, "");
        status.set(SlotState::Ready, "");
        assert_eq!(status.lock().ready_since, first);
    }

    #[test]
    fn a_report_repeats_the_status() {
        let status = SharedStatus::default();
        status.set(SlotState::Failed, "no store answers");
        status.lock().restarts = 4;
        status.lock().metrics = Some(WorkerMetrics { requests_total: 9, ..WorkerMetrics::default() });
        let report = status.report(&key(), Fence::new(1, 7));
        let plain = plain_report(&key(), Fence::new(1, 7), SlotState::Failed, "no store answers");
        assert_eq!(report, SlotReport { restarts: 4, metrics: report.metrics.clone(), ..plain });
        assert_eq!(report.metrics.map(|metrics| metrics.requests_total), Some(9));
    }

    #[test]
    fn a_reconciliation_sees_the_fence_and_since_when_a_slot_drains() {
        let status = SharedStatus::default();
        assert_eq!(
            status.running(Fence::new(1, 7)),
            RunningSlot { fence: Fence::new(1, 7), draining_since: None, gives_way: false }
        );
        status.lock().draining_since = Some((Millis(3), BootTime(5)));
        assert_eq!(status.clone().running(Fence::new(1, 7)).draining_since, Some(BootTime(5)));
    }

    #[test]
    fn a_refusal_is_reported_by_its_code() {
        let refusal = Refusal::new(error_code::ORDER_REPLAYED, "x".repeat(2 * DETAIL_BYTES_MAX));
        let report = refused_report(&key(), Fence::new(1, 7), &refusal);
        assert_eq!((report.state, report.fence), (SlotState::Refused, Fence::new(1, 7)));
        assert!(report.detail.starts_with("order-replayed: x"), "{}", report.detail);
        assert_eq!(report.detail.len(), DETAIL_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn a_detail_is_cut_between_characters(
            characters in prop::collection::vec(prop::sample::select(vec!['a', 'é', '漢', '🦀']), 0..1200),
        ) {
            let text: String = characters.into_iter().collect();
            let short = shortened(text.clone());
            prop_assert!(text.starts_with(&short) && short.len() <= DETAIL_BYTES_MAX);
            prop_assert!(short == text || short.len() > DETAIL_BYTES_MAX - 4, "no more than needed is cut");
        }
    }
}
