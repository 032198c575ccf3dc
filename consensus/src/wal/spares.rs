//! Files allocated and zeroed ahead, so that the log never waits for space while somebody waits for it.
//!
//! One thread keeps one spare ready. A full disk is met here, early: the log still has the rest of its
//! segment, and the replica stops taking proposals until a spare could be made.

use super::segment;
use super::sync_directory;
use crate::error::LogError;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long to wait before trying again after the disk was full.
const RETRY: Duration = Duration::from_secs(1);

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
}

#[derive(Default)]
struct State {
    ready: Option<(PathBuf, File)>,
    stop: bool,
    made: u64,
}

impl Spares {
    /// Removes spares of an earlier run (a crash may have left them half zeroed) and starts the thread.
    pub(super) fn start(directory: PathBuf, segment_bytes: u64) -> std::io::Result<Self> {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-")) {
                fs::remove_file(path)?;
            }
        }
        let shared = Arc::new(Shared::default());
        let (theirs, place) = (shared.clone(), directory.clone());
        let thread = std::thread::Builder::new()
            .name("log-spares".into())
            .spawn(move || keep_ready(&theirs, &place, segment_bytes))?;
        Ok(Self { directory, segment_bytes, shared, thread: Some(thread) })
    }

    /// A zeroed file of at least `bytes`: the spare, or one made now when it is missing or too small.
    pub(super) fn take(&self, bytes: u64) -> Result<(PathBuf, File), LogError> {
        let (ready, number) = {
            let mut state = self.shared.lock();
            let ready = if bytes <= self.segment_bytes { state.ready.take() } else { None };
            state.made += 1;
            (ready, state.made)
        };
        self.shared.changed.notify_all();
        match ready {
            Some(spare) => Ok(spare),
            None => make(&self.directory, number, bytes.max(self.segment_bytes)),
        }
    }

    /// Gives up a segment's file. Its bytes are old records; a spare must be zeros, so it is removed.
    pub(super) fn recycle(&self, path: &Path) -> Result<(), LogError> {
        fs::remove_file(path).map_err(|e| LogError::io("remove", path, e))?;
        sync_directory(&self.directory)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    pub(super) fn disk_full(&self) -> bool {
        self.shared.full.load(Ordering::Relaxed)
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
}

fn keep_ready(shared: &Shared, directory: &Path, segment_bytes: u64) {
    let mut state = shared.lock();
    while !state.stop {
        if state.ready.is_some() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.made += 1;
        let number = state.made;
        drop(state);
        let made = make(directory, number, segment_bytes);
        let failed = made.is_err();
        if let Err(error) = &made
            && !shared.full.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "cannot prepare the next log segment; refusing proposals until it succeeds");
        }
        state = shared.lock();
        if let Ok(spare) = made {
            shared.full.store(false, Ordering::Relaxed);
            state.ready = Some(spare);
        } else if failed && !state.stop {
            let waited = shared.changed.wait_timeout(state, RETRY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Makes a file of zeros, durable before it is used: overwriting it later needs no journal.
pub(super) fn make(directory: &Path, number: u64, bytes: u64) -> Result<(PathBuf, File), LogError> {
    let path = directory.join(format!("spare-{number}.log"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(|e| LogError::io("create", &path, e))?;
    let filled = segment::zero(&file, 0, bytes).and_then(|()| file.sync_all());
    if let Err(error) = filled {
        // Space half taken helps nobody; the error that matters is the first one.
        let _ = fs::remove_file(&path);
        return Err(LogError::io("allocate", &path, error));
    }
    Ok((path, file))
}
