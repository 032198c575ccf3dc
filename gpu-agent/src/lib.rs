//! Agent of one node: reconciles desired and observed state, lists GPUs through NVML, and runs workers in
//! sandboxes.
//! Start reading at [`agent`] (trust and reconciliation). Then read [`sandbox`] (containment of a worker, and
//! its end even if the agent is dead) and [`device`] (GPUs of the machine). The interfaces to the system are
//! [`Launcher`] and [`Device`], each with a real and a simulated implementation.

pub mod agent;
pub mod clock;
pub mod device;
pub mod files;
pub mod launcher;
mod pacer;
pub mod sandbox;

pub use clock::Clock;
pub use device::Device;
pub use launcher::Launcher;
