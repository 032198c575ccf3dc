//! Tests of a whole agent against a simulated control, with real connections, real sandboxes, real stores,
//! and a well-behaved worker.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../../src/agent/core/testing.rs"]
#[allow(dead_code)]
mod circle;
mod control;
mod data;
mod node;
mod program;

mod following;
mod gangs;
mod halts;
mod services;
mod serving;
