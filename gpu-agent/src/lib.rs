//! One node: desired against observed, giving actions; GPUs through NVML, sandboxed processes.
//!
//! Start reading at [`agent`] (what a node believes and does), then [`sandbox`] (how a worker is kept in, and
//! how it ends though its agent be dead) and [`device`] (what this machine can compute with). At the world's
//! edge stand [`Launcher`] and [`Device`], each with a real and a simulated implementation.

pub mod agent;
pub mod clock;
pub mod device;
pub mod files;
pub mod launcher;
mod rate_limiter;
pub mod sandbox;

pub use clock::Clock;
pub use device::Device;
pub use launcher::Launcher;
