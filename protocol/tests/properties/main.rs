//! Properties of the types of `protocol`: statements that hold for every value of a type, checked with
//! generated values. The tables in `cases/` pin examples; these tests state the rules behind them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod amounts;
mod decoders;
mod encoding;
mod governed;
mod manifests;
mod model_manifests;
mod names;
mod respelling;
mod shapes;
mod signing;
mod sizes;
mod stored;
mod values;
mod variants;
mod workloads;
