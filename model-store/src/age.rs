//! Ages of objects: the longest pause of a running import, and the least age of objects that garbage
//! collection removes.

use std::time::Duration;

/// Longest time between two writes of an import, and between its last write and its registration. A group of
/// objects takes minutes over a slow uplink; the rest allows for machines that were put to sleep.
pub const IMPORT_SILENCE_MAX: Duration = Duration::from_secs(30 * 60);
/// Minimum age of objects that are removed: twice the silence, because the clocks of stores differ.
pub const SWEEP_AGE_MIN: Duration = Duration::from_secs(60 * 60);
const _: () = assert!(SWEEP_AGE_MIN.as_secs() >= 2 * IMPORT_SILENCE_MAX.as_secs());
