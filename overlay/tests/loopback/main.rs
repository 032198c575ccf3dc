//! The overlay over real sockets on loopback: what connects, what is refused, what ends when.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod common;
mod descriptors;
mod hostile;
mod http;
mod listen;
mod people;
mod reverse;
mod tls;
