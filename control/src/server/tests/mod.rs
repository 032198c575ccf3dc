//! Control replicas in one process: on simulated disks and network, where faults come on command; and on real
//! listeners, where strangers do what they can.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod begin;
mod circle;
mod faults;
mod hostile;
mod once;
mod outcomes;
mod stops;

use std::time::Duration;

/// How long anything may take before a test gives up: generous, because machines are shared.
const PATIENCE: Duration = Duration::from_secs(60);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the patience of the test is over")
}
