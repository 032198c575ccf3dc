//! The console as its visitors meet it: its routes in one process, and its pages in a real Chromium.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod attacks;
mod browser;
mod cdp;
mod halts;
mod jobs;
mod passkeys;
mod questions;
mod routes;
mod story;
mod world;
