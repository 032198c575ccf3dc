//! Status of a slot, written by its task and read by the reporting code.

use super::core::{OrderRefusal, RunningSlot, SlotKey};
use super::models::LoadedModel;
use protocol::agent::{SlotReport, SlotState};
use protocol::worker::WorkerMetrics;
use protocol::{Fence, Millis};
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
    /// Time since which the slot drains and takes no new requests.
    pub(super) draining_since: Option<Millis>,
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
        RunningSlot { fence, draining_since: self.lock().draining_since }
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
pub(super) fn refused_report(key: &SlotKey, fence: Fence, refusal: &OrderRefusal) -> SlotReport {
    plain_report(key, fence, SlotState::Refused, refusal.to_string())
}

fn shortened(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
