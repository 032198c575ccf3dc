//! Daemons of a local cluster as child processes: started with inherited sockets, watched, and stopped.

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Time that a daemon has to stop gracefully before it is killed.
const ORDERLY_END: Duration = Duration::from_secs(8);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts this binary with other arguments, as a daemon.
    ///
    /// The daemon inherits each socket in `sockets` under its own number; arguments name it as `fd:N`. Call
    /// this function from the main thread: the daemon dies with the thread that started it.
    ///
    /// # Errors
    /// Returns an error if the log cannot be opened or the process cannot start.
    pub(super) fn start(
        name: &str,
        arguments: &[String],
        sockets: &[&TcpListener],
        log: &Path,
    ) -> Result<Self> {
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open `{}`", log.display()))?;
        let program = std::env::current_exe().context("find this binary")?;
        // The sockets are inheritable only during this start: other daemons must not inherit them.
        inherit(sockets, true)?;
        let child = Command::new(program)
            .args(arguments)
            .env("QUORATE_WITH_PARENT", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .process_group(0)
            .spawn();
        inherit(sockets, false)?;
        let child = child.with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_string(), child })
    }

    /// Returns the name of the daemon.
    #[must_use]
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the exit status of the daemon, if it has ended.
    ///
    /// # Errors
    /// Returns an error if the state of the process cannot be read.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// Returns an error if the process cannot be killed or waited for.
    async fn kill(&mut self) -> Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// Sends SIGTERM to the daemon.
    pub(super) fn ask_to_end(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // The process may already have ended, which is the desired result.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for the daemon to end, and kills it after a timeout.
    ///
    /// # Errors
    /// Returns an error if the process cannot be killed or waited for.
    pub(super) async fn wait_or_kill(&mut self) -> Result<()> {
        if tokio::time::timeout(ORDERLY_END, self.child.wait()).await.is_err() {
            tracing::warn!(daemon = self.name, "did not stop in time; killed");
            self.kill().await?;
        }
        Ok(())
    }
}

fn inherit(sockets: &[&TcpListener], yes: bool) -> Result<()> {
    let flag = if yes { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    for socket in sockets {
        fcntl(socket.as_fd(), FcntlArg::F_SETFD(flag)).context("hand over a socket")?;
    }
    Ok(())
}

/// Returns the form in which a daemon's arguments name an inherited socket.
#[must_use]
pub(super) fn inherited(socket: &TcpListener) -> String {
    format!("fd:{}", socket.as_raw_fd())
}

/// Ties the life of this process to its parent's if `QUORATE_WITH_PARENT` names the parent's process id: it
/// dies with the parent, however that ends. `quorate up` starts its daemons so.
///
/// Services that the daemons ran then end with their leases. Call this first in `main`, on its only thread.
pub fn die_with_parent() {
    let Ok(parent) = std::env::var("QUORATE_WITH_PARENT") else { return };
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return;
    }
    // The parent may have died before the call above took effect.
    if nix::unistd::getppid().to_string() != parent {
        std::process::exit(1);
    }
}
