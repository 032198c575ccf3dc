//! Agent of one node: reconciles desired and observed state, lists GPUs through NVML, and runs workers in
//! sandboxes.
//!
//! Start reading at [`agent`] (trust and reconciliation). Then read [`device`] (GPUs of the machine) and the
//! crate `sandbox` (containment of a worker, and its end even if the agent is dead). The interfaces to the
//! system are [`sandbox::Launcher`] and [`Device`], each with a real and a simulated implementation.

pub mod agent;
pub mod device;
pub mod simulated;

pub use device::Device;
