//! Overlay tests over real sockets on loopback: admission, refusals, limits, and ends of connections.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod bare;
mod common;
mod descriptors;
mod hostile;
mod http;
mod listen;
mod people;
mod reverse;
mod tls;
