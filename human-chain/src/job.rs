//! Jobs: verification of submissions and orders, and derivation of the command of each rank.
//!
//! Nothing that control says becomes part of a command. The program, its arguments, environment and mounts
//! follow from the approved manifest and the submission; the order adds ranks and GPUs, within the manifest.
//! A checkpoint counts by the statement of the node that made it.

mod data;
mod gang;
mod order;
mod rank;
mod submission;

pub use data::{check_checkpoint, check_job_data, data_recipients};
pub use gang::{GangMembers, GangSlot, check_gang, check_meeting};
pub use order::{JobGrant, check_job_order};
pub use rank::{MASTER_PORT, RankCommand, RankInput, derive_rank, rank_host};
pub use submission::check_submission;
