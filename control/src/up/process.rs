//! The daemons of a local cluster as child processes: started with inherited sockets, watched, ended.

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

/// How long a daemon may take to end in order before it is killed.
const ORDERLY_END: Duration = Duration::from_secs(8);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts this binary with other arguments. Each socket in `sockets` is inherited under its own
    /// number; arguments name it as `fd:N`. Call from the main thread: the daemon dies with the thread
    /// that started it.
    ///
    /// # Errors
    /// When the log cannot be opened or the process cannot start.
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
        // Only these sockets, only for the moment of this start: other daemons must not inherit them.
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

    /// What it is called.
    #[must_use]
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, while it runs.
    #[must_use]
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills it without a word.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// Asks it to end.
    pub(super) fn ask_to_end(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself in between, which is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for its end, and kills it when it takes too long.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) async fn wait_or_kill(&mut self) -> Result<()> {
        if tokio::time::timeout(ORDERLY_END, self.child.wait()).await.is_err() {
            tracing::warn!(daemon = self.name, "did not end in order; killed");
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

/// How a daemon's arguments name an inherited socket.
#[must_use]
pub(super) fn inherited(socket: &TcpListener) -> String {
    format!("fd:{}", socket.as_raw_fd())
}

/// For daemons started by `quorate up`: die when it dies, however it dies. Leases then end what they ran.
/// Call first thing in `main`, on its only thread.
pub fn die_with_parent() {
    let Ok(parent) = std::env::var("QUORATE_WITH_PARENT") else { return };
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return;
    }
    // The parent may have died before the line above took effect.
    if nix::unistd::getppid().to_string() != parent {
        std::process::exit(1);
    }
}
