//! Waiting for a worker: a request without one is held for a limited time, because a dead worker's slot is
//! being placed elsewhere. Its bytes are charged to the gateway's memory budget, like those of all requests.

use super::Gateway;
use super::pool::{RequestPermit, Suspect};
use super::table::Table;
use super::target::InferenceTarget;
use crate::openai::ApiError;
use http::StatusCode;
use protocol::Digest;
use protocol::error_code as code;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time for which a request waits for a worker. A dead node's slots expire after its lease of 3 s and are
/// loaded elsewhere in a second or two. A client that retries would do so no earlier.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// Factor on the time for which a suspect waits to run alone. After an ordinary death the requests of the
/// worker wait for one another, and each takes until its answer begins.
const SUSPECT_HOLD_FACTOR: u32 = 6;

impl Gateway {
    /// Returns the table in force; a gateway that has just started waits for its agent to push one.
    ///
    /// # Errors
    /// 503 when the agent pushes no table in time.
    pub(super) async fn table(&self) -> Result<Arc<Table>, ApiError> {
        let mut tables = self.table.subscribe();
        let pushed = tables.wait_for(|table| table.version() > 0);
        match tokio::time::timeout(self.hold_timeout, pushed).await {
            Ok(Ok(table)) => Ok(table.clone()),
            // The sender belongs to this gateway and does not close.
            Ok(Err(_)) | Err(_) => {
                let message = "this gateway has not received its route table yet";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::NO_WORKER, message).retry_after(1))
            }
        }
    }

    /// Returns a worker if one is available now.
    ///
    /// # Errors
    /// The model is no longer served: it may have been retired while the request waited.
    pub(super) fn try_pick_worker(
        &self,
        wanted: &InferenceTarget,
        tried: &[u64],
    ) -> Result<Option<RequestPermit>, ApiError> {
        let table = self.table.borrow().clone();
        let services = wanted.services(&table)?;
        Ok(self.pool.choose(&services, &table, tried, None))
    }

    /// Waits for a worker; returns `None` after the deadline.
    ///
    /// # Errors
    /// As [`Self::try_pick_worker`].
    pub(super) async fn wait_for_worker(
        &self,
        wanted: &InferenceTarget,
        tried: &[u64],
        until: Instant,
    ) -> Result<Option<RequestPermit>, ApiError> {
        self.metrics.held(wanted.model.as_str());
        self.pick_by(until, || self.try_pick_worker(wanted, tried)).await
    }

    /// Waits for a worker of this class, to continue a stream; returns `None` after the deadline.
    ///
    /// # Errors
    /// As [`Self::try_pick_worker`].
    pub(super) async fn wait_for_class(
        &self,
        wanted: &InferenceTarget,
        tried: &[u64],
        class: Digest,
        until: Instant,
    ) -> Result<Option<RequestPermit>, ApiError> {
        let choose = || {
            let table = self.table.borrow().clone();
            let services = wanted.services(&table)?;
            Ok(self.pool.choose(&services, &table, tried, Some(class)))
        };
        self.pick_by(until, choose).await
    }

    /// Waits for a worker reserved for this suspect; returns `None` when no worker becomes idle in time.
    ///
    /// # Errors
    /// As [`Self::try_pick_worker`].
    pub(super) async fn wait_for_idle_worker(
        &self,
        wanted: &InferenceTarget,
        tried: &[u64],
        suspect: &Suspect<'_>,
    ) -> Result<Option<RequestPermit>, ApiError> {
        let arrived_at = Instant::now();
        let choose = |is_pressed: bool| {
            let table = self.table.borrow().clone();
            let services = wanted.services(&table)?;
            Ok(self.pool.choose_alone(&services, &table, tried, suspect, is_pressed))
        };
        // A worker that replaces the lost one is idle at first; only after that is the last open worker
        // reserved.
        if let Some(permit) = self.pick_by(arrived_at + self.hold_timeout / 2, || choose(false)).await? {
            return Ok(Some(permit));
        }
        self.pick_by(arrived_at + self.hold_timeout * SUSPECT_HOLD_FACTOR, || choose(true)).await
    }

    /// Retries `choose` until it succeeds; returns `None` after the deadline.
    async fn pick_by(
        &self,
        until: Instant,
        choose: impl Fn() -> Result<Option<RequestPermit>, ApiError>,
    ) -> Result<Option<RequestPermit>, ApiError> {
        let mut tables = self.table.subscribe();
        let deadline = tokio::time::sleep_until(until);
        tokio::pin!(deadline);
        loop {
            // The waiter registers before the check, so that no vacancy in between is missed.
            let vacancy = self.pool.vacancy();
            tokio::pin!(vacancy);
            vacancy.as_mut().enable();
            tables.mark_unchanged();
            if let Some(permit) = choose()? {
                return Ok(Some(permit));
            }
            tokio::select! {
                () = vacancy => {}
                // The sender belongs to this gateway and does not close.
                _ = tables.changed() => {}
                () = &mut deadline => return Ok(None),
            }
        }
    }
}
