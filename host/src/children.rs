//! Child processes: started with inherited sockets, tied to the life of this process, watched, and stopped.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Time that a daemon has to stop gracefully before it is killed.
const ORDERLY_END: Duration = Duration::from_secs(8);

/// Name of the environment variable that names a daemon's parent.
const PARENT: &str = "QUORATE_WITH_PARENT";

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
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
    pub fn start(name: &str, arguments: &[String], sockets: &[&TcpListener], log: &Path) -> io::Result<Self> {
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let program = std::env::current_exe()?;
        // The sockets are inheritable only during this start: other daemons must not inherit them.
        inherit(sockets, true)?;
        let child = Command::new(program)
            .args(arguments)
            .env(PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .process_group(0)
            .spawn();
        inherit(sockets, false)?;
        Ok(Self { name: name.to_string(), child: child? })
    }

    /// Returns the name of the daemon.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id of the daemon, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the exit status of the daemon, if it has ended.
    ///
    /// # Errors
    /// Returns an error if the state of the process cannot be read.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// Returns an error if the process cannot be killed or waited for.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// Sends SIGTERM to the daemon.
    pub fn ask_to_end(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // The process may already have ended, which is the desired result.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for the daemon to end, and kills it after a timeout.
    ///
    /// # Errors
    /// Returns an error if the process cannot be killed or waited for.
    pub async fn wait_or_kill(&mut self) -> io::Result<()> {
        if tokio::time::timeout(ORDERLY_END, self.child.wait()).await.is_err() {
            tracing::warn!(daemon = self.name, "did not stop in time; killed");
            self.kill().await?;
        }
        Ok(())
    }
}

fn inherit(sockets: &[&TcpListener], yes: bool) -> io::Result<()> {
    let flag = if yes { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    for socket in sockets {
        fcntl(socket.as_fd(), FcntlArg::F_SETFD(flag))?;
    }
    Ok(())
}

/// Returns the form in which a daemon's arguments name an inherited socket.
#[must_use]
pub fn inherited(socket: &TcpListener) -> String {
    format!("fd:{}", socket.as_raw_fd())
}

/// Ties the life of this process to the one that started it as a [`Daemon`]: it dies with its parent, however
/// that ends.
///
/// Services that the daemons ran then end with their leases. Call this first in `main`, on its only thread.
pub fn die_with_parent() {
    let Ok(parent) = std::env::var(PARENT) else { return };
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return;
    }
    // The parent may have died before the call above took effect.
    if nix::unistd::getppid().to_string() != parent {
        std::process::exit(1);
    }
}

/// Prepares a child that gets `sockets` as its descriptors from `first` on, and dies with the thread that
/// starts it. The child's other descriptors are closed on exec as they are here.
///
/// # Errors
/// `InvalidInput` if a socket has a number that the copies are written to: it would be overwritten.
pub fn hand_over(command: &mut std::process::Command, first: RawFd, sockets: &[OwnedFd]) -> io::Result<()> {
    let sources: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let end = i32::try_from(sources.len()).map_or(RawFd::MAX, |count| first.saturating_add(count));
    if sources.iter().any(|source| *source < end) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket has a number of its copies"));
    }
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made (dup2, prctl, getppid), on numbers
    // that were computed before. The sources' numbers are above those that dup2 writes to.
    unsafe {
        command.pre_exec(move || {
            for (target, source) in (first..).zip(&sources) {
                if libc::dup2(*source, target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call to `prctl`.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::FromRawFd;
    use std::os::unix::process::ExitStatusExt;

    /// The daemon of the tests below, which start this program again with this test alone. Started in any
    /// other way it has no parent, and is no daemon.
    #[test]
    fn acts_as_a_daemon_when_started_as_one() {
        die_with_parent();
        let Ok(parent) = std::env::var(PARENT) else { return };
        let arguments: Vec<String> = std::env::args().collect();
        if arguments.iter().any(|argument| argument == "stubborn") {
            // SAFETY: ignoring a signal installs no handler.
            unsafe { nix::sys::signal::signal(Signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn) }
                .expect("ignore SIGTERM");
        }
        for number in arguments.iter().filter_map(|argument| argument.strip_prefix("fd:")) {
            let target = std::fs::read_link(format!("/proc/self/fd/{number}"));
            println!("descriptor: {}", target.map_or("closed".into(), |path| path.display().to_string()));
        }
        println!("daemon of {parent}");
        loop {
            std::thread::park();
        }
    }

    /// A directory for a daemon's log, and daemons that write to it.
    struct DaemonLog(tempfile::TempDir);

    impl DaemonLog {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("directory"))
        }

        fn path(&self) -> std::path::PathBuf {
            self.0.path().join("logs/daemon.log")
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.path()).unwrap_or_default()
        }

        /// Starts the daemon above with one more argument, and waits until it runs.
        fn start(&self, argument: &str, sockets: &[&TcpListener]) -> Daemon {
            let runs = || self.text().matches("daemon of").count();
            let before = runs();
            let test = "children::tests::acts_as_a_daemon_when_started_as_one";
            let arguments = ["--exact", "--nocapture", test, argument].map(String::from);
            let daemon = Daemon::start("test", &arguments, sockets, &self.path()).expect("start");
            while runs() == before {
                std::thread::yield_now();
            }
            daemon
        }
    }

    /// Waits for a daemon's end and returns the signal that ended it.
    fn signal_of(daemon: &mut Daemon) -> Option<i32> {
        loop {
            if let Some(status) = daemon.ended().expect("its state") {
                return status.signal();
            }
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_daemon_that_is_asked_to_end_ends() {
        let log = DaemonLog::new();
        let mut daemon = log.start("", &[]);
        assert_eq!(daemon.name(), "test");
        assert!(daemon.pid().is_some() && daemon.ended().expect("its state").is_none());
        daemon.ask_to_end();
        assert_eq!(signal_of(&mut daemon), Some(libc::SIGTERM));
        daemon.wait_or_kill().await.expect("it has ended already");
        daemon.ask_to_end();
        assert_eq!(daemon.pid(), None);
    }

    /// Paused time ends the grace period at once.
    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_ignores_the_request_is_killed() {
        let log = DaemonLog::new();
        let mut daemon = log.start("stubborn", &[]);
        daemon.ask_to_end();
        daemon.wait_or_kill().await.expect("kill");
        assert_eq!(signal_of(&mut daemon), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_log_is_appended_to_and_names_the_parent() {
        let log = DaemonLog::new();
        for starts in 1..=2 {
            let mut daemon = log.start("", &[]);
            daemon.kill().await.expect("kill");
            assert_eq!(signal_of(&mut daemon), Some(libc::SIGKILL));
            let greeting = format!("daemon of {}\n", std::process::id());
            assert_eq!(log.text().matches(&greeting).count(), starts, "{}", log.text());
        }
    }

    #[tokio::test]
    async fn a_daemon_inherits_the_sockets_it_is_given_and_no_others() {
        let (log, listener) = (DaemonLog::new(), TcpListener::bind("127.0.0.1:0").expect("bind"));
        let number = inherited(&listener);
        let own = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("open");
        let expected = format!("descriptor: {}", own.display());
        for sockets in [&[&listener][..], &[]] {
            log.start(&number, sockets).kill().await.expect("kill");
            assert_eq!(log.text().matches(&expected).count(), 1, "{}", log.text());
        }
    }

    #[tokio::test]
    async fn a_daemon_dies_with_the_thread_that_started_it() {
        let log = DaemonLog::new();
        let runtime = tokio::runtime::Handle::current();
        let started = std::thread::scope(|scope| {
            let start = || {
                let _runtime = runtime.enter();
                log.start("", &[])
            };
            scope.spawn(start).join()
        });
        assert_eq!(signal_of(&mut started.expect("started")), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_opened_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(Daemon::start("test", &[], &[], directory.path()).is_err());
    }

    #[test]
    fn a_child_finds_the_socket_under_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let copied = fcntl(&listener, FcntlArg::F_DUPFD_CLOEXEC(64)).expect("copy");
        // SAFETY: the kernel has just created this descriptor for this process; nothing else owns it.
        let copied = [unsafe { OwnedFd::from_raw_fd(copied) }];
        let mut command = std::process::Command::new("readlink");
        command.arg("/proc/self/fd/3").stdout(Stdio::piped());
        hand_over(&mut command, 3, &copied).expect("above the copies");
        let mut child = command.spawn().expect("start");
        let mut text = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut text).expect("read");
        assert!(child.wait().expect("wait").success());
        assert!(text.starts_with("socket:"), "{text}");
    }

    #[test]
    fn a_socket_below_the_copies_is_refused() {
        let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("bind"));
        let own = listener.as_raw_fd();
        let mut command = std::process::Command::new("true");
        let error = hand_over(&mut command, own, &[listener]).expect_err("it would be overwritten");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
