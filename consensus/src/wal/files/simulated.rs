//! Simulated directory: an in-memory file system with the worst behaviour that a real one may show.
//!
//! Unsynced bytes are lost at a power failure, sector by sector: each sector may be found in any state that
//! it went through. Created, renamed and removed names are lost as well, each independently, until the
//! directory is synced. A disk may be full, refuse to write, or fail to sync. After a failed sync the system
//! forgets that anything is left to write, but still shows it, as Linux does.
//!
//! [`SimulatedFiles::kill`] ends a process and keeps its writes; [`SimulatedFiles::crash`] ends the machine.
//! After either, open files and locks are dead: a process that has ended writes nothing.

use super::{Directory, File};
use crate::dice::Dice;
use crate::error::LogError;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Smallest unit that a disk writes as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

/// File system of one directory. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedFiles {
    state: Arc<Mutex<FileSystemState>>,
}

#[derive(Debug, Clone)]
struct FileSystemState {
    dice: Dice,
    /// Names as processes see them, and as a power failure would leave them if all of `changes` were lost.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since the last sync of the directory, in order.
    changes: Vec<NameChange>,
    files: BTreeMap<u64, FileContent>,
    files_made: u64,
    /// Number of the process that is alive.
    process: u64,
    locked: bool,
    /// Whether the power was cut, and the machine has not been started again.
    dark: bool,
    faults: Faults,
    seen: DiskEventCounts,
}

/// Faults of the disk.
#[derive(Debug, Default, Clone, Copy)]
struct Faults {
    /// Every change fails.
    failing: bool,
    /// No file grows.
    full: bool,
    /// No snapshot grows.
    snapshots_full: bool,
    next_sync_fails: bool,
    /// Number of changes after which the power is cut.
    power: Option<u64>,
}

/// Counts of events, as proof that a simulation covered them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskEventCounts {
    /// Power failures that left a write in part.
    pub(crate) torn: u64,
    /// Power failures that lost a change of names.
    pub(crate) names_lost: u64,
    pub(crate) syncs_failed: u64,
    pub(crate) segments_removed: u64,
    /// Power failures in the middle of a change.
    pub(crate) power_cut_within: u64,
    /// Writes that found the disk full.
    pub(crate) found_full: u64,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(String, u64),
    /// From, to, and the file: even if all other changes are lost, the new name is this file's.
    Rename(String, String, u64),
    Remove(String),
}

#[derive(Debug, Default, Clone)]
struct FileContent {
    /// Content as processes see it.
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    dirty: Vec<(usize, Vec<u8>)>,
}

/// An open file of one process.
struct SimulatedFile {
    state: Arc<Mutex<FileSystemState>>,
    process: u64,
    number: u64,
    is_snapshot: bool,
}

/// The directory as one process sees it.
#[derive(Debug)]
struct Process {
    state: Arc<Mutex<FileSystemState>>,
    number: u64,
}

struct Lock {
    state: Arc<Mutex<FileSystemState>>,
    process: u64,
}

impl SimulatedFiles {
    /// Creates an empty directory whose faults are drawn from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let state = FileSystemState {
            dice: Dice(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            files: BTreeMap::new(),
            files_made: 0,
            process: 0,
            locked: false,
            dark: false,
            faults: Faults::default(),
            seen: DiskEventCounts::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Returns the directory for a process that starts now.
    pub(crate) fn directory(&self) -> Arc<dyn Directory> {
        let number = lock(&self.state).process;
        Arc::new(Process { state: self.state.clone(), number })
    }

    /// Kills the process: its writes remain, synced or not.
    pub(crate) fn kill(&self) {
        let mut state = lock(&self.state);
        state.process += 1;
        state.locked = false;
    }

    /// Cuts the power: unsynced writes remain, remain in part, or are lost.
    pub(crate) fn crash(&self) {
        self.kill();
        lock(&self.state).lose();
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        lock(&self.state).faults.failing = failing;
    }

    pub(crate) fn set_full(&self, full: bool) {
        lock(&self.state).faults.full = full;
    }

    pub(crate) fn set_snapshots_full(&self, full: bool) {
        lock(&self.state).faults.snapshots_full = full;
    }

    /// Makes the next sync of a file fail.
    #[cfg(test)]
    pub(crate) fn fail_next_sync(&self) {
        lock(&self.state).faults.next_sync_fails = true;
    }

    /// Cuts the power in the middle of the change that follows `changes` more. From then on every change
    /// fails, until [`SimulatedFiles::crash`] decides what is left.
    #[cfg(test)]
    pub(crate) fn cut_power_after(&self, changes: u64) {
        lock(&self.state).faults.power = Some(changes);
    }

    #[cfg(test)]
    pub(crate) fn seen(&self) -> DiskEventCounts {
        lock(&self.state).seen
    }

    /// Returns an independent copy of the files, without the open ones.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        Self { state: Arc::new(Mutex::new(lock(&self.state).clone())) }
    }

    /// Flips a byte of the newest snapshot without the log's knowledge, and returns whether there is one.
    #[cfg(test)]
    pub(crate) fn flip_newest_snapshot(&self, offset: usize) -> bool {
        let mut state = lock(&self.state);
        let newest = state.names.iter().rfind(|(name, _)| name.ends_with(".snap")).map(|(_, number)| *number);
        let Some(content) = newest.and_then(|number| state.files.get_mut(&number)) else { return false };
        let at = offset % content.cached.len();
        content.cached[at] ^= 1;
        content.durable.clone_from(&content.cached);
        true
    }
}

fn lock(state: &Mutex<FileSystemState>) -> MutexGuard<'_, FileSystemState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileSystemState {
    fn alive(&self, process: u64) -> io::Result<()> {
        let dead = || io::Error::other("the process is gone");
        (process == self.process).then_some(()).ok_or_else(dead)
    }

    /// Counts a change. Fails if the power was cut in the middle of it, or if the disk is broken.
    fn change(&mut self) -> io::Result<()> {
        if self.faults.failing {
            return Err(io::Error::other("simulated failure"));
        }
        match &mut self.faults.power {
            Some(0) => {
                self.seen.power_cut_within += u64::from(!std::mem::replace(&mut self.dark, true));
                Err(io::Error::other("simulated power cut"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
        match change {
            NameChange::Create(name, number) => drop(names.insert(name.clone(), *number)),
            NameChange::Rename(from, to, number) => {
                if names.get(from) == Some(number) {
                    names.remove(from);
                }
                names.insert(to.clone(), *number);
            }
            NameChange::Remove(name) => drop(names.remove(name)),
        }
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        if let NameChange::Remove(name) = &change
            && self.names.contains_key(name)
            && name.starts_with("segment-")
        {
            self.seen.segments_removed += 1;
        }
        Self::apply(&mut self.names, &change);
        self.changes.push(change);
        // Counted after the change: if the power is cut in the middle of it, it may or may not survive.
        self.change()
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.change()?;
        for change in std::mem::take(&mut self.changes) {
            Self::apply(&mut self.durable_names, &change);
        }
        let (names, durable) = (&self.names, &self.durable_names);
        let named: Vec<u64> = names.values().chain(durable.values()).copied().collect();
        self.files.retain(|number, _| named.contains(number));
        Ok(())
    }

    fn write(&mut self, number: u64, bytes: &[u8], offset: u64, is_snapshot: bool) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + bytes.len();
        let content = self.files.get_mut(&number).ok_or(ErrorKind::NotFound)?;
        let grows = end > content.cached.len();
        if grows && (self.faults.full || (is_snapshot && self.faults.snapshots_full)) {
            self.seen.found_full += 1;
            return Err(ErrorKind::StorageFull.into());
        }
        if self.faults.failing {
            return Err(io::Error::other("simulated failure"));
        }
        if grows {
            content.cached.resize(end, 0);
        }
        content.cached[offset..end].copy_from_slice(bytes);
        content.dirty.push((offset, bytes.to_vec()));
        self.change()
    }

    fn sync_file(&mut self, number: u64) -> io::Result<()> {
        self.change()?;
        let failed = std::mem::take(&mut self.faults.next_sync_fails);
        let content = self.files.get_mut(&number).ok_or(ErrorKind::NotFound)?;
        if failed {
            // Some of the data was written. The rest is forgotten: no later sync writes it.
            self.seen.syncs_failed += 1;
            content.lose(&mut self.dice);
            return Err(io::Error::other("simulated failure of a sync"));
        }
        for (offset, bytes) in std::mem::take(&mut content.dirty) {
            put(&mut content.durable, offset, &bytes);
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.faults.power = None;
        self.dark = false;
        self.faults.next_sync_fails = false;
        let mut torn = false;
        for content in self.files.values_mut() {
            torn |= content.lose(&mut self.dice);
            content.cached.clone_from(&content.durable);
        }
        self.seen.torn += u64::from(torn);
        let mut lost = false;
        for change in std::mem::take(&mut self.changes) {
            let came = self.dice.roll(2) == 0;
            lost |= !came;
            if came {
                Self::apply(&mut self.durable_names, &change);
            }
        }
        self.seen.names_lost += u64::from(lost);
        self.names.clone_from(&self.durable_names);
        let names = &self.names;
        self.files.retain(|number, _| names.values().any(|named| named == number));
    }
}

impl FileContent {
    /// Writes some of the unsynced data to the disk, sector by sector, and forgets the rest. Returns whether
    /// any write survived in part.
    fn lose(&mut self, dice: &mut Dice) -> bool {
        let mut by_sector: BTreeMap<usize, Vec<(usize, &[u8])>> = BTreeMap::new();
        for (offset, bytes) in &self.dirty {
            let mut at = *offset;
            while at < offset + bytes.len() {
                let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(offset + bytes.len());
                let part = &bytes[at - offset..end - offset];
                by_sector.entry(at / SECTOR_BYTES).or_default().push((at, part));
                at = end;
            }
        }
        let (mut came, mut lost) = (false, false);
        for parts in by_sector.into_values() {
            let arrived = dice.roll(parts.len() as u64 + 1) as usize;
            came |= arrived > 0;
            lost |= arrived < parts.len();
            for (at, part) in &parts[..arrived] {
                put(&mut self.durable, *at, part);
            }
        }
        self.dirty.clear();
        came && lost
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Process {
    /// Operates on the directory on behalf of a process that must be alive.
    fn with<T>(
        &self,
        action: &'static str,
        name: &str,
        operate: impl FnOnce(&mut FileSystemState) -> io::Result<T>,
    ) -> Result<T, LogError> {
        let mut state = lock(&self.state);
        let outcome = state.alive(self.number).and_then(|()| operate(&mut state));
        outcome.map_err(|error| LogError::io(action, &self.file(name), error))
    }

    fn opened(&self, name: &str, number: u64) -> Box<dyn File> {
        let (state, process) = (self.state.clone(), self.number);
        Box::new(SimulatedFile { state, process, number, is_snapshot: name.starts_with("snapshot-") })
    }
}

impl Directory for Process {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn lock(&self) -> Result<Box<dyn Send + Sync>, LogError> {
        let taken = self.with("lock", "lock", |state| Ok(std::mem::replace(&mut state.locked, true)))?;
        if taken {
            return Err(LogError::InUse { path: self.path().to_path_buf() });
        }
        Ok(Box::new(Lock { state: self.state.clone(), process: self.number }))
    }

    fn list(&self) -> Result<Vec<String>, LogError> {
        self.with("list", "", |state| Ok(state.names.keys().cloned().collect()))
    }

    fn create(&self, name: &str) -> Result<Box<dyn File>, LogError> {
        let number = self.with("create", name, |state| {
            state.files_made += 1;
            let number = state.files_made;
            state.files.insert(number, FileContent::default());
            state.change_names(NameChange::Create(name.to_owned(), number))?;
            Ok(number)
        })?;
        Ok(self.opened(name, number))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn File>>, LogError> {
        let number = self.with("open", name, |state| Ok(state.names.get(name).copied()))?;
        Ok(number.map(|number| self.opened(name, number)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LogError> {
        self.with("rename", from, |state| {
            let number = *state.names.get(from).ok_or(ErrorKind::NotFound)?;
            state.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), number))
        })
    }

    fn remove(&self, name: &str) -> Result<(), LogError> {
        self.with("remove", name, |state| {
            let there = state.names.contains_key(name);
            if there { state.change_names(NameChange::Remove(name.to_owned())) } else { Ok(()) }
        })
    }

    fn sync(&self) -> Result<(), LogError> {
        self.with("sync", "", FileSystemState::sync_names)
    }
}

impl SimulatedFile {
    fn with<T>(&self, operate: impl FnOnce(&mut FileSystemState) -> io::Result<T>) -> io::Result<T> {
        let mut state = lock(&self.state);
        state.alive(self.process)?;
        operate(&mut state)
    }

    fn content<T>(&self, look: impl FnOnce(&FileContent) -> T) -> io::Result<T> {
        self.with(|state| Ok(look(state.files.get(&self.number).ok_or(ErrorKind::NotFound)?)))
    }
}

impl File for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        self.content(|content| content.cached.len() as u64)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        self.content(|content| content.cached.clone())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state| state.write(self.number, bytes, offset, self.is_snapshot))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| state.sync_file(self.number))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if state.process == self.process {
            state.locked = false;
        }
    }
}

#[cfg(test)]
mod tests;
