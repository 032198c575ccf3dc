//! Slots of jobs on this node: their artifact, checkpoint, sandbox, output, data and end.
//!
//! ```text
//! order verified, on disk --> artifact and checkpoint checked --> ready --> start of control --> ranks
//!                              logs stored <-- report <-- outputs stored <-- ends <--'
//! ```
//!
//! Nothing of a job outlives its agent: the liveness lease ends its sandbox, and the next agent reports it as
//! lost.

pub(super) mod areas;
mod data;
mod etc;
mod file;
mod inputs;
mod keeper;
pub(super) mod lines;
mod network;
mod output;
mod rank_log;
mod slot;
pub(super) mod slot_logs;
pub(super) mod trees;
mod watch;

pub(super) use file::JobFile;
pub(super) use slot::{JobSlotCommand, JobSlotEnded, JobSlotHandle, SlotSources, spawn};

use super::core::{JobOrderBook, SlotKey};
use protocol::job_report::JobSlotReport;
use std::collections::BTreeMap;
use tokio::task::JoinSet;

/// Slots of jobs, as the main loop holds them.
pub(super) struct JobSlots {
    pub(super) file: JobFile,
    pub(super) book: JobOrderBook,
    /// Slots that are prepared or run.
    pub(super) slots: BTreeMap<SlotKey, JobSlotHandle>,
    pub(super) tasks: JoinSet<JobSlotEnded>,
    /// Reports of refused orders.
    pub(super) refused: BTreeMap<SlotKey, JobSlotReport>,
}

impl JobSlots {
    /// Returns the slots of a node that runs none, with its book.
    pub(super) fn new(file: JobFile, book: JobOrderBook) -> Self {
        let (slots, refused) = (BTreeMap::new(), BTreeMap::new());
        Self { file, book, slots, tasks: JoinSet::new(), refused }
    }
}
