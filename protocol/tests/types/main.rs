//! Tests of the types of `protocol` from outside: tables in `cases/` pin examples, and properties state the
//! rules behind them for generated values. They are one binary, since a copy of each type's decoder is
//! compiled into each binary.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod amounts;
mod decoders;
mod encoding;
mod governed;
mod job_bodies;
mod job_manifests;
mod manifests;
mod model_manifests;
mod names;
mod respelling;
mod shapes;
mod signatures;
mod signing;
mod sizes;
mod stored;
mod tables;
mod usage;
mod values;
mod variants;
mod wire;
mod workloads;
