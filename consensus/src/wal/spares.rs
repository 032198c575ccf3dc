//! Files allocated and zeroed ahead, so that the log never waits for space while somebody waits for it.
//!
//! One thread keeps one spare ready. A full disk is met here, early: the log still has the rest of its
//! segment, and the replica stops taking proposals until a spare could be made. Who needs a spare while there
//! is none waits for that thread's next try, so that two makers never take the last space from each other.

use super::segment;
use super::sync_directory;
use crate::error::{LogError, StartError};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long to wait before trying again after the disk was full, if nobody asks sooner.
const RETRY: Duration = Duration::from_millis(500);

/// A zeroed file that is not part of the log yet.
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) bytes: u64,
}

impl Spare {
    /// Gives the space back.
    pub(super) fn discard(self) {
        // The next start removes what is left over.
        let _ = fs::remove_file(&self.path);
    }
}

/// The one spare, and the thread that replaces it.
pub(super) struct Spares {
    directory: PathBuf,
    segment_bytes: u64,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    full: AtomicBool,
    #[cfg(test)]
    simulate_full: AtomicBool,
}

#[derive(Default)]
struct State {
    ready: Option<Spare>,
    stop: bool,
    /// Somebody waits: try now.
    wanted: bool,
    /// Why the last try failed, for whoever waited for it.
    error: Option<LogError>,
    made: u64,
}

impl Spares {
    /// Removes spares of an earlier run (a crash may have left them half zeroed) and starts the thread.
    pub(super) fn start(directory: PathBuf, segment_bytes: u64) -> Result<Self, StartError> {
        let listed = |error| LogError::io("list", &directory, error);
        for entry in fs::read_dir(&directory).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-")) {
                fs::remove_file(&path).map_err(|error| LogError::io("remove", &path, error))?;
            }
        }
        let shared = Arc::new(Shared::default());
        let (theirs, place) = (shared.clone(), directory.clone());
        let thread = std::thread::Builder::new()
            .name("log-spares".into())
            .spawn(move || keep_ready(&theirs, &place, segment_bytes))
            .map_err(StartError::Thread)?;
        Ok(Self { directory, segment_bytes, shared, thread: Some(thread) })
    }

    /// A zeroed file of at least `bytes`: the spare, or a larger one made now.
    pub(super) fn take(&self, bytes: u64) -> Result<Spare, LogError> {
        let mut state = self.shared.lock();
        if bytes > self.segment_bytes {
            state.made += 1;
            let number = state.made;
            drop(state);
            return self.shared.make(&self.directory, number, bytes);
        }
        state.error = None;
        loop {
            let ready = state.ready.take();
            state.wanted = ready.is_none();
            self.shared.changed.notify_all();
            if let Some(spare) = ready {
                return Ok(spare);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = state.error.take() {
                state.wanted = false;
                return Err(error);
            }
        }
    }

    /// Gives up a segment's file. Its bytes are old records; a spare must be zeros, so it is removed.
    pub(super) fn recycle(&self, path: &Path) -> Result<(), LogError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io("remove", path, error));
            }
            _ => sync_directory(&self.directory)?,
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    pub(super) fn disk_full(&self) -> bool {
        self.shared.full.load(Ordering::Relaxed)
    }

    /// Makes every later allocation fail as on a full disk, or succeed again.
    #[cfg(test)]
    pub(super) fn simulate_full(&self, full: bool) {
        self.shared.simulate_full.store(full, Ordering::Relaxed);
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is already printed; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, directory: &Path, number: u64, bytes: u64) -> Result<Spare, LogError> {
        #[cfg(test)]
        if self.simulate_full.load(Ordering::Relaxed) {
            return Err(LogError::DiskFull { path: directory.to_path_buf() });
        }
        make(directory, number, bytes)
    }
}

fn keep_ready(shared: &Shared, directory: &Path, segment_bytes: u64) {
    let mut state = shared.lock();
    while !state.stop {
        if state.ready.is_some() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.made += 1;
        state.wanted = false;
        let number = state.made;
        drop(state);
        let made = shared.make(directory, number, segment_bytes);
        let was_full = shared.full.swap(made.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (&made, was_full) {
            tracing::warn!(%error, "cannot prepare the next log segment; refusing proposals until it succeeds");
        }
        state = shared.lock();
        match made {
            Ok(spare) => state.ready = Some(spare),
            Err(error) => state.error = Some(error),
        }
        shared.changed.notify_all();
        if state.ready.is_none() && !state.stop && !state.wanted {
            let waited = shared.changed.wait_timeout(state, RETRY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Makes a file of zeros, durable before it is used: overwriting it later needs no journal.
pub(super) fn make(directory: &Path, number: u64, bytes: u64) -> Result<Spare, LogError> {
    let path = directory.join(format!("spare-{number}.log"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(|e| LogError::io("create", &path, e))?;
    let filled = segment::zero(&file, 0, bytes).and_then(|()| file.sync_all());
    if let Err(error) = filled {
        // Space half taken helps nobody; the error that matters is the first one.
        let _ = fs::remove_file(&path);
        return Err(LogError::io("allocate", &path, error));
    }
    Ok(Spare { path, file, bytes })
}
