//! Tests of control replicas in one process.
//!
//! Some run on simulated disks and network, where tests inject faults; others run on real listeners, with
//! hostile unadmitted peers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod bootstrap;
mod circle;
mod clocks;
mod console;
mod drafts;
mod faults;
mod halts;
mod hostile;
mod jobs;
mod once;
mod outcomes;
mod pages;
mod projects;
mod stops;
mod usage;
mod wraps;

use std::time::Duration;

/// Timeout of any step of a test: generous, because machines are shared.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_LIMIT, work).await.expect("the test waited too long")
}
