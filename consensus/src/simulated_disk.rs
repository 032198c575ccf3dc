//! A disk in memory under the whole log: what is real is everything above the files.
//!
//! A disk outlives the processes that open it. [`SimulatedDisk::open`] is a start after the process before was
//! killed, [`SimulatedDisk::crash`] a power cut.

use crate::config::GroupId;
use crate::error::{LogError, StartError};
use crate::snapshot::Snapshot;
use crate::store::{Batch, LogStore, Recovered};
use crate::wal::files::SimulatedFiles;
use crate::wal::spares::Making;
use crate::wal::{Owner, WriteAheadLog};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a segment where a test does not say otherwise: the least that a configuration allows.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// A disk in memory with a log on it. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    files: SimulatedFiles,
    segment_bytes: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    log: Option<Arc<WriteAheadLog>>,
    /// Index of the last entry that was written, and of the last that was written and synced.
    written: u64,
    durable: u64,
    full: bool,
    out_of_space: bool,
    #[cfg(test)]
    recovered: crate::wal::recovery::Seen,
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedDisk").field("files", &self.files).finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::with(0, SEGMENT_BYTES)
    }

    /// An empty disk whose faults are drawn from `seed`, for a log with segments of so many bytes.
    #[must_use]
    pub fn with(seed: u64, segment_bytes: u64) -> Self {
        Self { files: SimulatedFiles::new(seed), segment_bytes, state: Arc::default() }
    }

    /// Reads the log back, as a restarted replica does. A process that had it open is killed before.
    ///
    /// # Panics
    /// When the log is refused: a finding of the simulation.
    #[must_use]
    pub fn open(&self) -> Recovered {
        self.try_open().expect("the simulated log is whole")
    }

    /// The same, where the disk may fail meanwhile.
    ///
    /// # Errors
    /// Returns the outcome that a start on a real disk would have.
    pub fn try_open(&self) -> Result<Recovered, StartError> {
        let mut state = self.lock();
        self.files.kill();
        state.log = None;
        // Whose log it is does not matter here: nobody puts another one in its place.
        let owner = Owner { group: GroupId([0; 32]), id: 1, voters: vec![1] };
        let directory = self.files.directory();
        let opened = WriteAheadLog::open_in(directory, owner, true, self.segment_bytes, Making::Inline);
        let (log, recovered, _seen) = opened?;
        let last = recovered.entries.last().map(|entry| entry.index);
        let snapshot = recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        state.written = last.unwrap_or(snapshot);
        state.durable = state.written;
        #[cfg(test)]
        {
            state.recovered = _seen;
        }
        state.log = Some(Arc::new(log));
        Ok(recovered)
    }

    /// Cuts the power: loses what was written and not synced, or parts of it.
    pub fn crash(&self) {
        let mut state = self.lock();
        self.files.crash();
        state.log = None;
        state.written = state.durable;
    }

    /// Makes every later write fail, as a dying disk does, or heals it.
    pub fn set_failing(&self, failing: bool) {
        self.files.set_failing(failing);
    }

    /// Says that the disk is nearly full, or no longer: there is room for what is under way, and no more.
    pub fn set_full(&self, full: bool) {
        self.files.set_full(full);
        self.lock().full = full;
    }

    /// Lets nothing more be written until there is space again.
    pub fn set_out_of_space(&self, out_of_space: bool) {
        self.files.set_full(out_of_space);
        self.lock().out_of_space = out_of_space;
    }

    /// Lets no snapshot be saved for want of space, or lets them again.
    pub fn set_snapshots_fail(&self, fail: bool) {
        self.files.set_snapshots_full(fail);
    }

    /// The highest index that a crash now would certainly leave in the log.
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.lock().durable
    }

    /// A disk of its own with the same files, which no process has open.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        let state = Arc::default();
        Self { files: self.files.copy(), segment_bytes: self.segment_bytes, state }
    }

    /// The files under the log.
    #[cfg(test)]
    pub(crate) fn files(&self) -> &SimulatedFiles {
        &self.files
    }

    /// What the last start came upon.
    #[cfg(test)]
    pub(crate) fn recovered(&self) -> crate::wal::recovery::Seen {
        self.lock().recovered
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log of the process that has it open.
    fn log(&self) -> Result<Arc<WriteAheadLog>, LogError> {
        let gone =
            || LogError::io("write", "simulated".as_ref(), std::io::Error::other("the process is gone"));
        self.lock().log.clone().ok_or_else(gone)
    }
}

impl LogStore for SimulatedDisk {
    fn write(&self, batches: &[Batch]) -> Result<(), LogError> {
        if self.lock().out_of_space {
            return Err(LogError::DiskFull { path: "simulated".into() });
        }
        self.log()?.write(batches)?;
        let mut state = self.lock();
        for batch in batches {
            let snapshot = batch.snapshot.as_ref().map(|snapshot| snapshot.index);
            let last = batch.entries.last().map(|entry| entry.index).or(snapshot);
            state.written = last.unwrap_or(state.written);
        }
        if batches.iter().any(|batch| batch.sync) {
            state.durable = state.written;
        }
        Ok(())
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), LogError> {
        self.log()?.save_snapshot(snapshot)
    }

    fn truncate(&self, through: u64) -> Result<(), LogError> {
        self.log()?.truncate(through)
    }

    fn nearly_full(&self) -> bool {
        let log = {
            let state = self.lock();
            if state.full || state.out_of_space {
                return true;
            }
            state.log.clone()
        };
        log.is_some_and(|log| log.nearly_full())
    }
}
