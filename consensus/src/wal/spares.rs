//! Spare segments: files allocated and zeroed in advance, so that no acknowledgement waits for allocation.
//!
//! One thread keeps one spare ready. A full disk is detected here, early: the log still has the rest of its
//! segment. The replica then rejects proposals until a spare can be made. A writer that finds no spare waits
//! for that thread's next attempt, so that two makers never compete for the last space. A simulation has no
//! thread: the writer makes spares itself, at the same moments in every run.

use super::files::{Directory, File, zero};
use crate::error::{LogError, StartError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Pause after a full disk before the next attempt, unless a writer requests one sooner.
const RETRY: Duration = Duration::from_millis(500);

/// A zeroed file that is not part of the log yet.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Box<dyn File>,
    pub(super) bytes: u64,
}

/// Maker of the spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Making {
    /// A thread of their own, in advance.
    Ahead,
    /// The writer.
    Inline,
}

/// The one spare, and the thread that replaces it.
pub(super) struct Spares {
    shared: Arc<SpareMaker>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct SpareMaker {
    directory: Arc<dyn Directory>,
    segment_bytes: u64,
    state: Mutex<SpareState>,
    changed: Condvar,
    full: AtomicBool,
}

#[derive(Default)]
struct SpareState {
    ready: Option<Spare>,
    stop: bool,
    /// True if a writer waits: the thread must retry immediately.
    wanted: bool,
    /// Error of the last attempt, for the writer that waited for it.
    error: Option<LogError>,
    made: u64,
}

impl Spares {
    /// Removes spares of an earlier run, which a crash may have left half zeroed, and starts to make one.
    pub(super) fn start(
        directory: Arc<dyn Directory>,
        segment_bytes: u64,
        making: Making,
    ) -> Result<Self, StartError> {
        for name in directory.list()?.iter().filter(|name| name.starts_with("spare-")) {
            directory.remove(name)?;
        }
        let (state, full) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(SpareMaker { directory, segment_bytes, state, changed: Condvar::new(), full });
        if making == Making::Inline {
            shared.prepare();
            return Ok(Self { shared, thread: None });
        }
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("log-spares".into())
            .spawn(move || keep_ready(&theirs))
            .map_err(StartError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns a zeroed file of at least `bytes`: the spare, or a larger one made now.
    pub(super) fn take(&self, bytes: u64) -> Result<Spare, LogError> {
        let mut state = self.shared.lock();
        if bytes > self.shared.segment_bytes {
            state.made += 1;
            let number = state.made;
            drop(state);
            return make(&*self.shared.directory, number, bytes);
        }
        if self.thread.is_none() {
            drop(state);
            return self.shared.take_inline();
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

    /// Frees the space of spares that are not needed after all.
    pub(super) fn discard(&self, spares: impl Iterator<Item = Spare>) {
        for spare in spares {
            // The next start removes leftover files.
            let _ = self.shared.directory.remove(&spare.name);
        }
    }

    /// Removes a segment's file. It cannot become a spare: its bytes are old records, and a spare must be
    /// zeros.
    pub(super) fn recycle(&self, name: &str) -> Result<(), LogError> {
        self.shared.directory.remove(name)?;
        self.shared.directory.sync()?;
        self.shared.changed.notify_all();
        Ok(())
    }

    pub(super) fn disk_full(&self) -> bool {
        let full = || self.shared.full.load(Ordering::Relaxed);
        if full() && self.thread.is_none() {
            self.shared.prepare();
        }
        full()
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

impl SpareMaker {
    fn lock(&self) -> std::sync::MutexGuard<'_, SpareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the spare if there is none, and records whether there was space for it.
    fn prepare(&self) {
        let mut state = self.lock();
        if state.ready.is_some() {
            return;
        }
        state.made += 1;
        let number = state.made;
        drop(state);
        let made = make(&*self.directory, number, self.segment_bytes);
        let was_full = self.full.swap(made.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (&made, was_full) {
            tracing::warn!(
                %error,
                "cannot prepare the next log segment; rejecting proposals until it succeeds"
            );
        }
        let mut state = self.lock();
        match made {
            Ok(spare) => state.ready = Some(spare),
            Err(error) => state.error = Some(error),
        }
    }

    fn take_inline(&self) -> Result<Spare, LogError> {
        self.prepare();
        let (ready, error) = {
            let mut state = self.lock();
            (state.ready.take(), state.error.take())
        };
        let full = || LogError::DiskFull { path: self.directory.path().to_path_buf() };
        let taken = ready.ok_or_else(|| error.unwrap_or_else(full))?;
        self.prepare();
        Ok(taken)
    }
}

fn keep_ready(shared: &SpareMaker) {
    let mut state = shared.lock();
    while !state.stop {
        if state.ready.is_some() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.wanted = false;
        drop(state);
        shared.prepare();
        state = shared.lock();
        shared.changed.notify_all();
        if state.ready.is_none() && !state.stop && !state.wanted {
            let waited = shared.changed.wait_timeout(state, RETRY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Makes a file of zeros, durable before it is used: overwriting it later needs no file-system journal.
pub(super) fn make(directory: &dyn Directory, number: u64, bytes: u64) -> Result<Spare, LogError> {
    let name = format!("spare-{number}.log");
    let file = directory.create(&name)?;
    let filled = zero(&*file, 0, bytes).and_then(|()| file.sync());
    if let Err(error) = filled {
        // A partly allocated file is useless; the first error is the one to report.
        let _ = directory.remove(&name);
        return Err(LogError::io("allocate", &directory.file(&name), error));
    }
    Ok(Spare { name, file, bytes })
}
