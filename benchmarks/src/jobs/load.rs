//! Load that every side of the benchmark gets.

/// Jobs that run at once.
pub(super) const AT_ONCE: u32 = 16;
/// Program of the small jobs: its lines are the numbers from 1 to its argument.
pub(super) const PROGRAM: &str = "/usr/bin/seq";
