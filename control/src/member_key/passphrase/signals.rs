//! Signals of other programs while a terminal is silent: the terminal gets its settings back before the
//! process ends.
//!
//! A handler cannot be taken back once it is installed, so one thread waits for these signals from the first
//! question on until the process ends. It then ends the process with the status that shells give to the
//! signal. The terminal's own keys send no signal while it is silent, see `passphrase.rs`.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, tcsetattr};
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

/// The terminal that is silent now, and its settings before.
static SILENT: Mutex<Option<(File, Termios)>> = Mutex::new(None);
/// True once the signals are watched.
static WATCHED: Mutex<bool> = Mutex::new(false);

/// A terminal that gets its settings back if a signal ends the process while this value lives.
pub(super) struct SignalGuard(());

impl SignalGuard {
    /// Guards a terminal with these settings. Call it before the terminal is silenced.
    ///
    /// # Errors
    /// Errors of the system.
    pub(super) fn new(terminal: &File, before: &Termios) -> Result<Self> {
        watch().context("watch for signals")?;
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

/// Watches for the signals, from the first call on. The handlers are installed when this returns.
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

/// Reports whether the handlers are installed, and waits for a signal, which ends the process.
fn wait_for_signal(ready: &SyncSender<std::io::Result<()>>) {
    let installed = Builder::new_current_thread().enable_io().build().and_then(|runtime| {
        let streams = runtime.block_on(async { streams() })?;
        Ok((runtime, streams))
    });
    // The receiver waits for exactly one message.
    let (runtime, (mut terminate, mut hang_up)) = match installed {
        Ok(installed) => installed,
        Err(error) => return drop(ready.send(Err(error))),
    };
    drop(ready.send(Ok(())));
    let signal = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hang_up.recv() => Signal::SIGHUP,
        }
    });
    if let Some((mut terminal, before)) = lock(&SILENT).take() {
        // The process ends in any case.
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
        let _ = terminal.write_all(b"\n");
    }
    std::process::exit(128 + signal as i32);
}

fn streams() -> std::io::Result<(SignalStream, SignalStream)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::hangup())?))
}
