//! One node: desired against observed, giving actions; GPUs through NVML, sandboxed processes.
//!
//! Start reading at [`sandbox`] (how a worker is kept in, and how it ends though its agent be dead) and
//! [`device`] (what this machine can compute with).

pub mod device;
pub mod sandbox;
