//! The control circuit: wiring, HTTP API, command line. Decisions live in the crates below; this one
//! opens sockets and files, asks the clock, and carries what they decide to whoever must know.
//!
//! Start reading at [`server`] (a control replica) and [`cli`] (what people type).

pub mod cli;
pub mod client;
pub mod context;
pub mod explain;
pub mod hub;
pub mod node;
pub mod server;
pub mod session;
#[cfg(test)]
mod testing;
pub mod up;
