//! This machine: durable files, directory locks, clocks, randomness and child processes.
//!
//! Everything here touches the operating system, so no pure crate depends on it. It knows nothing of
//! services, nodes or models; of `protocol` it takes the types of times alone.

pub mod children;
pub mod clock;
pub mod files;
mod lock;
pub mod random;

pub use clock::{Clock, boot_time, wall_clock};
pub use lock::DirectoryLock;
