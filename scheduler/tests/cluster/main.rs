//! Tests of the cluster state machine from outside. They are one binary, since each binary costs a link and a
//! copy of the test cluster in `common`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

mod access;
mod apply;
mod autonomy;
mod clocks;
mod comments;
mod format;
mod former_holders;
mod full_circle;
mod halts;
mod job_data;
mod job_life;
mod job_order;
mod job_places;
mod job_simulation;
mod jobs;
mod leases;
mod members;
mod models;
mod mutations;
mod passkeys;
mod placement;
mod preconditions;
mod priorities;
mod projects;
mod properties;
mod proposals;
mod questions;
mod remedies;
mod roll_outs;
mod scripts;
mod sync;
mod usage;
mod usage_counts;
mod usage_limits;
mod usage_meters;
