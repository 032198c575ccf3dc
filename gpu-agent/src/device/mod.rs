//! What this machine can compute with besides its CPU. Two implementations: what the driver says
//! ([`Nvml`]) and what a rehearsal pretends ([`Simulated`]), which is labelled wherever it is listed.

mod nvml;
mod simulated;

pub use nvml::Nvml;
pub use simulated::{Simulated, SimulatedError};

use protocol::agent::Gpu;
use std::path::PathBuf;

/// The GPUs of a node.
pub trait Device: Send + Sync {
    /// What is there now, by rising index. No GPU is a normal answer. May take milliseconds.
    fn list(&self) -> Vec<Gpu>;

    /// Device nodes that a worker needs to compute on the GPUs of these indices; none for simulated ones,
    /// which compute nothing.
    fn nodes(&self, indices: &[u32]) -> Vec<PathBuf>;
}

/// The node's GPUs: `simulate` as in `--simulate-gpus 8xH100`, or what the driver says.
///
/// # Errors
/// When the description of simulated GPUs is not understood.
pub fn open(simulate: Option<&str>) -> Result<Box<dyn Device>, SimulatedError> {
    Ok(match simulate {
        Some(text) => Box::new(text.parse::<Simulated>()?),
        None => Box::new(Nvml::open()),
    })
}
