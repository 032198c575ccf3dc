//! Simulated disk: the real write-ahead log on in-memory files.
//!
//! A disk outlives the processes that open it. [`SimulatedDisk::open`] simulates a start after the previous
//! process was killed, [`SimulatedDisk::crash`] a power failure.

use crate::config::GroupId;
use crate::error::{LogError, StartError};
use crate::ids::LogIndex;
use crate::snapshot::Snapshot;
use crate::store::{Batch, LogStore, Recovered};
use crate::wal::files::SimulatedFiles;
use crate::wal::spares::Making;
use crate::wal::{Owner, WriteAheadLog};
use protocol::ReplicaId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Default size of a segment, in bytes: the smallest that a configuration allows.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// An in-memory disk with a log on it. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    files: SimulatedFiles,
    segment_bytes: u64,
    state: Arc<Mutex<DiskState>>,
}

#[derive(Default)]
struct DiskState {
    log: Option<Arc<WriteAheadLog>>,
    /// Index of the last entry that was written, and of the last one that was written and synced.
    written: LogIndex,
    durable: LogIndex,
    full: bool,
    out_of_space: bool,
    #[cfg(test)]
    recovered: crate::wal::recovery::RecoveryFindings,
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
    /// Creates an empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::with(0, SEGMENT_BYTES)
    }

    /// Creates an empty disk whose faults are drawn from `seed`, for a log with segments of this size.
    #[must_use]
    pub fn with(seed: u64, segment_bytes: u64) -> Self {
        Self { files: SimulatedFiles::new(seed), segment_bytes, state: Arc::default() }
    }

    /// Recovers the log, as a restarted replica does. A process that had it open is killed first.
    ///
    /// # Panics
    /// Panics if the log is rejected, which is a finding of the simulation.
    #[must_use]
    pub fn open(&self) -> Recovered {
        self.try_open().expect("the simulated log is whole")
    }

    /// Recovers the log from a disk that may fail.
    ///
    /// # Errors
    /// Returns the error that a start on a real disk would return.
    pub fn try_open(&self) -> Result<Recovered, StartError> {
        let mut state = self.lock();
        self.files.kill();
        state.log = None;
        // The owner is arbitrary, because a simulated disk never holds the log of another one.
        let owner = Owner { group: GroupId([0; 32]), id: ReplicaId(1), voters: vec![ReplicaId(1)] };
        let directory = self.files.directory();
        let opened = WriteAheadLog::open_in(directory, owner, true, self.segment_bytes, Making::Inline);
        let (log, recovered, _seen) = opened?;
        let last = recovered.entries.last().map(|entry| entry.index);
        let snapshot = recovered.snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
        state.written = last.unwrap_or(snapshot);
        state.durable = state.written;
        #[cfg(test)]
        {
            state.recovered = _seen;
        }
        state.log = Some(Arc::new(log));
        Ok(recovered)
    }

    /// Cuts the power: unsynced writes are lost, wholly or in part.
    pub fn crash(&self) {
        let mut state = self.lock();
        self.files.crash();
        state.log = None;
        state.written = state.durable;
    }

    /// Makes every later write fail, as a dying disk does, or repairs the disk.
    pub fn set_failing(&self, failing: bool) {
        self.files.set_failing(failing);
    }

    /// Sets whether the disk is nearly full: it has room for pending work, and no more.
    pub fn set_full(&self, full: bool) {
        self.files.set_full(full);
        self.lock().full = full;
    }

    /// Sets whether every write fails for lack of space.
    pub fn set_out_of_space(&self, out_of_space: bool) {
        self.files.set_full(out_of_space);
        self.lock().out_of_space = out_of_space;
    }

    /// Sets whether saving a snapshot fails for lack of space.
    pub fn set_snapshots_fail(&self, fail: bool) {
        self.files.set_snapshots_full(fail);
    }

    /// Returns the highest index that would certainly survive a crash now.
    #[must_use]
    pub fn durable_index(&self) -> LogIndex {
        self.lock().durable
    }

    /// Returns an independent disk with the same files, opened by no process.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        let state = Arc::default();
        Self { files: self.files.copy(), segment_bytes: self.segment_bytes, state }
    }

    /// Returns the files under the log.
    #[cfg(test)]
    pub(crate) fn files(&self) -> &SimulatedFiles {
        &self.files
    }

    /// Returns the findings of the last recovery.
    #[cfg(test)]
    pub(crate) fn recovered(&self) -> crate::wal::recovery::RecoveryFindings {
        self.lock().recovered
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the log of the process that has it open.
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

    fn truncate(&self, through: LogIndex) -> Result<(), LogError> {
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
