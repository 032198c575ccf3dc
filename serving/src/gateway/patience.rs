//! A request that finds no worker is held for a moment: its worker has just died, and the slot is being
//! placed somewhere else. Its bytes are counted by the gateway's memory budget, as those of all requests are.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use protocol::error_code as code;
use tokio::time::Instant;

use super::Gateway;
use super::pool::{Place, Suspect};
use super::public::Wanted;
use super::table::Table;
use crate::openai::ApiError;

/// How long a request waits for a worker. A dead node's slots lapse after its lease of 3 s and are loaded elsewhere
/// in a second or two; a client told to come back would do so no later.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How many times as long a suspect waits to run alone: after an ordinary death those that ran on the worker wait
/// for one another, and each takes as long as its answer takes to begin.
const SUSPECT_PATIENCE_FACTOR: u32 = 6;

impl Gateway {
    /// The table in force; a gateway that has just started waits for its agent to say who may ask and who answers.
    ///
    /// # Errors
    /// 503 when the agent says nothing for too long.
    pub(super) async fn table(&self) -> Result<Arc<Table>, ApiError> {
        let mut tables = self.table.subscribe();
        let pushed = tables.wait_for(|table| table.version() > 0);
        match tokio::time::timeout(self.patience, pushed).await {
            Ok(Ok(table)) => Ok(table.clone()),
            // The sender is this gateway's own and does not close.
            Ok(Err(_)) | Err(_) => {
                let message = "this gateway does not know yet who serves what";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::NO_WORKER, message).retry_after(1))
            }
        }
    }

    /// A worker now, if there is one.
    ///
    /// # Errors
    /// The model is no longer served: it may have been retired while the request waited.
    pub(super) fn place_now(&self, wanted: &Wanted, tried: &[u64]) -> Result<Option<Place>, ApiError> {
        let table = self.table.borrow().clone();
        let services = wanted.services(&table)?;
        Ok(self.pool.choose(&services, &table, tried))
    }

    /// A worker as soon as there is one; none after the deadline.
    ///
    /// # Errors
    /// As [`Self::place_now`].
    pub(super) async fn place_soon(
        &self,
        wanted: &Wanted,
        tried: &[u64],
        until: Instant,
    ) -> Result<Option<Place>, ApiError> {
        self.metrics.held(wanted.model.as_str());
        self.place_by(until, || self.place_now(wanted, tried)).await
    }

    /// A worker that is this suspect's alone; none when no worker becomes idle for long.
    ///
    /// # Errors
    /// As [`Self::place_now`].
    pub(super) async fn place_alone(
        &self,
        wanted: &Wanted,
        tried: &[u64],
        suspect: &Suspect<'_>,
    ) -> Result<Option<Place>, ApiError> {
        let came_at = Instant::now();
        let choose = |is_pressed: bool| {
            let table = self.table.borrow().clone();
            let services = wanted.services(&table)?;
            Ok(self.pool.choose_alone(&services, &table, tried, suspect, is_pressed))
        };
        // A worker that replaces the lost one comes idle; only after that others are kept from the last one.
        if let Some(place) = self.place_by(came_at + self.patience / 2, || choose(false)).await? {
            return Ok(Some(place));
        }
        self.place_by(came_at + self.patience * SUSPECT_PATIENCE_FACTOR, || choose(true)).await
    }

    /// What `choose` finds, as soon as it finds something; none after the deadline.
    async fn place_by(
        &self,
        until: Instant,
        choose: impl Fn() -> Result<Option<Place>, ApiError>,
    ) -> Result<Option<Place>, ApiError> {
        let mut tables = self.table.subscribe();
        let deadline = tokio::time::sleep_until(until);
        tokio::pin!(deadline);
        loop {
            // Listening begins before looking, so that nobody slips in between.
            let vacancy = self.pool.vacancy();
            tokio::pin!(vacancy);
            vacancy.as_mut().enable();
            tables.mark_unchanged();
            if let Some(place) = choose()? {
                return Ok(Some(place));
            }
            tokio::select! {
                () = vacancy => {}
                // The sender is this gateway's own and does not close.
                _ = tables.changed() => {}
                () = &mut deadline => return Ok(None),
            }
        }
    }
}
