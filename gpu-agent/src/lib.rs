//! One node: desired against observed, giving actions; GPUs through NVML, sandboxed processes.
//!
//! Start reading at [`agent`] (what a node believes and does), then [`sandbox`] (how a worker is kept in, and
//! how it ends though its agent be dead) and [`device`] (what this machine can compute with).

pub mod agent;
pub mod device;
pub mod files;
pub mod sandbox;
