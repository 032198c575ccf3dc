//! SIGTERM while a terminal is silent: the terminal gets its settings back before the process ends.
//!
//! A handler cannot be taken back once it is installed, so one thread waits for the signal from the first
//! question on until the process ends. It then ends the process with the status that shells give to the
//! signal. The terminal's own keys send no signal while it is silent, see `passphrase.rs`. SIGHUP is left
//! alone: its terminal is gone, and `nohup` has the process ignore it.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, tcsetattr};
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// The terminal that is silent now, and its settings before.
static SILENT: Mutex<Option<(File, Termios)>> = Mutex::new(None);
/// True once the signal is watched.
static WATCHED: Mutex<bool> = Mutex::new(false);

/// A terminal that gets its settings back if a signal ends the process while this value lives.
pub(super) struct SignalGuard(());

impl SignalGuard {
    /// Guards a terminal with these settings. Call it before the terminal is silenced.
    ///
    /// # Errors
    /// Errors of the system.
    pub(super) fn new(terminal: &File, before: &Termios) -> Result<Self> {
        watch().context("watch for SIGTERM")?;
        *lock(&SILENT) = Some((terminal.try_clone().context("hold the terminal")?, before.clone()));
        Ok(Self(()))
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        *lock(&SILENT) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment, so a panic elsewhere leaves no half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches for the signal, from the first call on. The handler is installed when this returns.
fn watch() -> Result<()> {
    let mut watched = lock(&WATCHED);
    if !*watched {
        let (ready, installed) = sync_channel(1);
        std::thread::Builder::new().name("signals".into()).spawn(move || wait_for_signal(&ready))?;
        installed.recv()??;
        *watched = true;
    }
    Ok(())
}

/// Reports whether the handler is installed, and waits for the signal, which ends the process.
fn wait_for_signal(ready: &SyncSender<std::io::Result<()>>) {
    let installed = Builder::new_current_thread().enable_io().build().and_then(|runtime| {
        let stream = runtime.block_on(async { signal(SignalKind::terminate()) })?;
        Ok((runtime, stream))
    });
    // The receiver waits for exactly one message.
    let (runtime, mut terminate) = match installed {
        Ok(installed) => installed,
        Err(error) => return drop(ready.send(Err(error))),
    };
    drop(ready.send(Ok(())));
    runtime.block_on(terminate.recv());
    if let Some((mut terminal, before)) = lock(&SILENT).take() {
        // The process ends in any case.
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
        let _ = terminal.write_all(b"\n");
    }
    std::process::exit(128 + Signal::SIGTERM as i32);
}
