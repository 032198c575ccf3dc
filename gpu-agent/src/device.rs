//! GPUs of this machine. There are two implementations: those that the driver reports ([`Nvml`]) and
//! simulated ones ([`Simulated`]), which are labelled in every listing.

mod nvml;
mod simulated;

pub use nvml::Nvml;
pub use simulated::{Simulated, SimulatedError};

use protocol::agent::Gpu;
use std::path::PathBuf;

/// GPUs of a node.
pub trait Device: Send + Sync {
    /// Returns the current GPUs by ascending index; none is a valid answer. May take milliseconds.
    fn list(&self) -> Vec<Gpu>;

    /// Returns the device nodes that a worker needs to compute on these GPUs; none for simulated ones, which
    /// compute nothing.
    fn nodes(&self, indices: &[u32]) -> Vec<PathBuf>;
}

/// Returns the node's GPUs: simulated ones if `simulate` is given (`--simulate-gpus 8xH100`), else the
/// driver's.
///
/// # Errors
/// If the description of simulated GPUs cannot be parsed.
pub fn open(simulate: Option<&str>) -> Result<Box<dyn Device>, SimulatedError> {
    Ok(match simulate {
        Some(text) => Box::new(text.parse::<Simulated>()?),
        None => {
            let driver = Nvml::open();
            if let Some(reason) = driver.unavailable() {
                tracing::info!(reason, "this node has no GPU that the driver's library (NVML) reports");
            }
            Box::new(driver)
        }
    })
}
