//! A request that finds no worker is held for a moment: its worker has just died, and the slot is being
//! placed somewhere else. Whoever holds requests holds their bytes, so there is a bound on those.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use protocol::error_code as code;
use tokio::sync::Semaphore;

use super::Gateway;
use super::pool::Place;
use super::public::Wanted;
use super::table::Table;
use crate::openai::ApiError;

/// How long a request waits for a worker. A dead node's slots lapse after its lease of 3 s and are loaded elsewhere
/// in a second or two; a client told to come back would do so no later.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of held requests in all: a thousand prompts of the usual size several times over, and no more memory than
/// a small gateway can spare.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the smallest request is counted as: its connection, headers and future.
const REQUEST_BYTES_MIN: usize = 16 * 1024;

/// Room for requests that wait for a worker.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    bytes: Semaphore,
    patience: Duration,
}

impl WaitingRoom {
    pub(super) fn new(patience: Duration) -> Self {
        Self { bytes: Semaphore::new(HELD_BYTES_MAX), patience }
    }

    /// Until when a request that comes now may wait.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.patience
    }
}

impl Gateway {
    /// The table in force; a gateway that has just started waits for its agent to say who may ask and who answers.
    ///
    /// # Errors
    /// 503 when the agent says nothing for too long.
    pub(super) async fn table(&self) -> Result<Arc<Table>, ApiError> {
        let mut tables = self.table.subscribe();
        let pushed = tables.wait_for(|table| table.version() > 0);
        match tokio::time::timeout(self.waiting_room.patience, pushed).await {
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

    /// A worker as soon as there is one; none after the deadline, or when too much waits already.
    ///
    /// # Errors
    /// As [`Self::place_now`].
    pub(super) async fn place_soon(
        &self,
        wanted: &Wanted,
        body_bytes: usize,
        tried: &[u64],
        until: Instant,
    ) -> Result<Option<Place>, ApiError> {
        let bytes = u32::try_from(body_bytes.max(REQUEST_BYTES_MIN)).unwrap_or(u32::MAX);
        let Ok(_held) = self.waiting_room.bytes.try_acquire_many(bytes) else { return Ok(None) };
        self.metrics.held(wanted.model.as_str());
        let mut tables = self.table.subscribe();
        let deadline = tokio::time::sleep_until(until.into());
        tokio::pin!(deadline);
        loop {
            // Listening begins before looking, so that nobody slips in between.
            let arrival = self.pool.arrival();
            tokio::pin!(arrival);
            arrival.as_mut().enable();
            tables.mark_unchanged();
            if let Some(place) = self.place_now(wanted, tried)? {
                return Ok(Some(place));
            }
            tokio::select! {
                () = arrival => {}
                // The sender is this gateway's own and does not close.
                _ = tables.changed() => {}
                () = &mut deadline => return Ok(None),
            }
        }
    }
}
