//! The control crate: wiring, HTTP API and command line.
//!
//! Decisions are made in the crates below. This crate opens sockets and files, reads the clock, and delivers
//! the decisions to nodes, replicas and clients.
//!
//! Start reading at [`server`] (a control replica) and [`cli`] (the command line).
// The macros of the standard library panic when a reader closes its pipe: use `print`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod artifact;
pub mod cli;
pub mod client;
pub mod context;
pub mod explain;
pub mod grant;
pub mod head;
pub mod history;
pub mod hub;
pub mod member_key;
pub mod node;
pub mod policy;
pub mod print;
pub mod reviewed;
pub mod server;
pub mod session;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod up;
