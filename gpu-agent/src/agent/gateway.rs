//! Supervisor of a node's gateway process. It keeps the process running on sockets that the agent holds, and
//! sends it the route table.
//!
//! One dedicated thread starts the child and waits for it. The child asks the kernel to kill it when its
//! parent dies, and to the kernel that parent is the starting thread.

use super::admin::short_path;
use super::backoff::ExponentialBackoff;
use super::config::GatewayConfig;
use super::drain::Drain;
use super::error::AgentError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay::CancellationToken;
use overlay::descriptors::{FrameError, channel};
use protocol::gateway::{RouteTable, TableAccepted};
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Name of the gateway's control socket in the agent's directory.
const CONTROL_SOCKET: &str = "gateway.sock";
/// First descriptor number of the sockets in the child.
const FIRST_SOCKET: RawFd = 3;
/// Lowest descriptor number of the sockets' copies, so that none collides with those that the child uses.
const COPIES_FROM: RawFd = 64;
/// Backoff before a gateway that ended is restarted.
const AGAIN: ExponentialBackoff =
    ExponentialBackoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };
/// Uptime after which a gateway counts as healthy and its backoff is reset.
const HEALTHY_UPTIME: Duration = Duration::from_secs(30);
/// Interval at which the thread polls the child and the stop request.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Grace period for answers in flight when the agent ends without a drain.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Pause before reconnecting to the gateway's control socket.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for the acknowledgement of a table; then the agent reconnects.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Observed state of the gateway process.
#[derive(Debug, Default)]
pub(super) struct GatewayStatus {
    /// Version of the table in force; 0 = none yet.
    pub(super) routes_version: AtomicU64,
    /// Number of restarts.
    pub(super) restarts: AtomicU32,
    /// Workers connected with a valid ticket when the last table was pushed.
    pub(super) workers: AtomicU32,
}

/// Requests to end a gateway: the first lets its answers finish, the second leaves them a moment.
pub(super) struct StopRequests {
    drain: Drain,
    stop: CancellationToken,
}

impl StopRequests {
    pub(super) fn new(drain: Drain, stop: CancellationToken) -> Self {
        Self { drain, stop }
    }

    fn is_requested(&self) -> bool {
        self.drain.requested.is_cancelled() || self.stop.is_cancelled()
    }

    async fn requested(&self) {
        tokio::select! {
            () = self.drain.requested.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Returns the time at which the child is killed, if its end is requested. `before` is what this returned
    /// last: a second request shortens the time that is left, and the first one's ends when it would have.
    fn kill_at(&self, before: Option<Instant>, now: Instant) -> Option<Instant> {
        let grace = match (self.stop.is_cancelled(), self.drain.requested.is_cancelled()) {
            (true, _) => STOP_GRACE,
            (false, true) => self.drain.limit.max(STOP_GRACE),
            (false, false) => return before,
        };
        let latest = now + grace;
        Some(before.map_or(latest, |before| before.min(latest)))
    }
}

/// Parameters for starting the child any number of times.
struct Recipe {
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
    sockets: Vec<OwnedFd>,
}

/// Keeps a gateway running and its table up to date until its end is requested, and returns when the agent
/// ends. The child is gone then.
pub(super) async fn run(
    config: GatewayConfig,
    program: PathBuf,
    directory: PathBuf,
    routes: watch::Receiver<Option<RouteTable>>,
    status: Arc<GatewayStatus>,
    ending: StopRequests,
) -> Result<(), AgentError> {
    let recipe = Recipe::new(config, program, &directory)?;
    let (ending, counted) = (Arc::new(ending), status.clone());
    let followed = ending.clone();
    let (gone, wait_gone) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("gateway".into())
        .spawn(move || {
            recipe.keep_running(&followed, &counted);
            let _ = gone.send(());
        })
        .map_err(AgentError::during("start a thread for", &directory))?;
    tokio::select! {
        () = push_tables(&directory, routes, &status) => {}
        () = ending.requested() => {}
    }
    // An error means that the thread is gone. The kernel has then killed its child.
    let _ = wait_gone.await;
    ending.drain.gateway_gone.cancel();
    // The end of this task ends the agent, whose workers may still finish the streams of other gateways.
    ending.stop.cancelled().await;
    Ok(())
}

impl Recipe {
    fn new(config: GatewayConfig, program: PathBuf, directory: &Path) -> Result<Self, AgentError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(AgentError::during("find", path));
        let mut sockets = Vec::new();
        let mut hand = |listener: tokio::net::TcpListener| -> Result<String, AgentError> {
            let number = FIRST_SOCKET + sockets.len() as RawFd;
            let listener = listener.into_std().and_then(|listener| copy(&listener));
            sockets.push(listener.map_err(AgentError::during("hand over a socket of", directory))?);
            Ok(format!("fd:{number}"))
        };
        // The path is relative to the child's directory: a socket address is short, the agent's directory may
        // be long.
        let mut arguments = vec!["gateway".into(), "--control-socket".into(), CONTROL_SOCKET.to_string()];
        arguments.extend(["--public".into(), hand(config.public)?]);
        arguments.extend(["--workers".into(), hand(config.workers)?]);
        if let Some(metrics) = config.metrics {
            arguments.extend(["--metrics".into(), hand(metrics)?]);
        }
        arguments.extend(["--identity".into(), absolute(&config.identity_file)?.display().to_string()]);
        if let Some((chain, key)) = &config.tls {
            arguments.extend(["--tls-cert".into(), absolute(chain)?.display().to_string()]);
            arguments.extend(["--tls-key".into(), absolute(key)?.display().to_string()]);
        }
        Ok(Self { program: absolute(&program)?, directory: directory.to_path_buf(), arguments, sockets })
    }

    /// Body of the thread: starts the child, waits for its end, restarts it.
    fn keep_running(mut self, ending: &StopRequests, status: &GatewayStatus) {
        let mut failures: u32 = 0;
        while !ending.is_requested() {
            let began = Instant::now();
            match self.start() {
                Ok(mut child) => {
                    let pid = child.id();
                    tracing::info!(pid, "gateway started");
                    match wait(&mut child, ending, &mut self.sockets) {
                        None => return,
                        Some(ended) => tracing::warn!(pid, ended, "gateway exited; restarting it"),
                    }
                }
                Err(error) => {
                    tracing::error!(program = %self.program.display(), %error, "start the gateway");
                }
            }
            status.routes_version.store(0, Ordering::Relaxed);
            status.restarts.fetch_add(1, Ordering::Relaxed);
            failures = if began.elapsed() > HEALTHY_UPTIME { 1 } else { failures.saturating_add(1) };
            let until = Instant::now() + AGAIN.pause(failures);
            while Instant::now() < until && !ending.is_requested() {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| name == "QUORATE_LOG"))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        host::children::hand_over(&mut command, FIRST_SOCKET, &self.sockets)?;
        command.spawn()
    }
}

/// Copies a socket to a high descriptor number, closed on exec.
fn copy(listener: &TcpListener) -> io::Result<OwnedFd> {
    let copied = nix::fcntl::fcntl(listener, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(COPIES_FROM))?;
    // SAFETY: the kernel has just created this descriptor for this process; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copied) })
}

/// Waits until the child ends and returns its status; none if it was stopped because the agent ends. The
/// sockets are closed then: a client that connects during a drain is refused, and does not wait for its end.
fn wait(child: &mut Child, ending: &StopRequests, sockets: &mut Vec<OwnedFd>) -> Option<String> {
    let mut kill_at: Option<Instant> = None;
    loop {
        match child.try_wait() {
            Ok(Some(_)) if kill_at.is_some() => return None,
            Ok(Some(status)) => return Some(status.to_string()),
            Ok(None) => {}
            Err(error) => return Some(error.to_string()),
        }
        let now = Instant::now();
        let until = ending.kill_at(kill_at, now);
        if kill_at.is_none() && until.is_some() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            sockets.clear();
        }
        kill_at = until;
        if kill_at.is_some_and(|at| now >= at) {
            drop(child.kill());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Pushes every new table, and the newest one to every restarted gateway.
async fn push_tables(
    directory: &Path,
    mut routes: watch::Receiver<Option<RouteTable>>,
    status: &GatewayStatus,
) {
    loop {
        if let Err(error) = push_to_one(directory, &mut routes, status).await {
            tracing::debug!(%error, "lost the connection to the gateway");
        }
        status.routes_version.store(0, Ordering::Relaxed);
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

async fn push_to_one(
    directory: &Path,
    routes: &mut watch::Receiver<Option<RouteTable>>,
    status: &GatewayStatus,
) -> Result<(), FrameError> {
    let handle = File::open(directory)?;
    let stream = UnixStream::connect(short_path(&handle, CONTROL_SOCKET)).await?;
    let (mut sender, mut receiver) = channel(stream);
    routes.mark_changed();
    loop {
        tokio::select! {
            changed = routes.changed() => if changed.is_err() { return Ok(()) },
            // The gateway sends only replies, so any message here means that the connection has ended.
            ended = receiver.receive::<TableAccepted>() => { ended?; return Ok(()) }
        }
        let Some(table) = routes.borrow_and_update().clone() else { continue };
        sender.send(&table, &[]).await?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, receiver.receive::<TableAccepted>()).await;
        let answer = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some((TableAccepted { version, workers }, _)) = answer else { return Ok(()) };
        status.routes_version.store(version, Ordering::Relaxed);
        status.workers.store(workers, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::drain::DrainConfig;
    use super::*;
    use std::os::fd::AsRawFd;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn listener() -> tokio::net::TcpListener {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind")
    }

    async fn recipe(metrics: bool, tls: bool, program: &str) -> Recipe {
        let config = GatewayConfig {
            public: listener().await,
            workers: listener().await,
            metrics: if metrics { Some(listener().await) } else { None },
            identity_file: "/keys/gateway.key".into(),
            tls: tls.then(|| ("/tls/chain.pem".into(), "/tls/key.pem".into())),
        };
        Recipe::new(config, program.into(), Path::new("/")).expect("a recipe")
    }

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().expect("start a shell")
    }

    #[tokio::test]
    async fn a_gateway_gets_its_sockets_by_number() {
        let always = "gateway --control-socket gateway.sock --public fd:3 --workers fd:4";
        let (identity, tls) =
            ("--identity /keys/gateway.key", "--tls-cert /tls/chain.pem --tls-key /tls/key.pem");
        for (metrics, with_tls, expected) in [
            (false, false, format!("{always} {identity}")),
            (true, false, format!("{always} --metrics fd:5 {identity}")),
            (false, true, format!("{always} {identity} {tls}")),
            (true, true, format!("{always} --metrics fd:5 {identity} {tls}")),
        ] {
            let recipe = recipe(metrics, with_tls, "/bin/quorate-serve").await;
            assert_eq!(recipe.arguments.join(" "), expected);
            assert_eq!(recipe.sockets.len(), 2 + usize::from(metrics));
            assert!(recipe.sockets.iter().all(|socket| socket.as_raw_fd() >= COPIES_FROM));
        }
    }

    /// Returns what a supervisor follows, and the tokens that request a drain and an end.
    fn ending(limit: Duration) -> (StopRequests, CancellationToken, CancellationToken) {
        let (requested, stop) = (CancellationToken::new(), CancellationToken::new());
        let drain = Drain::new(DrainConfig { requested: requested.clone(), limit }, true);
        (StopRequests::new(drain, stop.clone()), requested, stop)
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_an_error_and_one_that_ends_is_named() {
        assert!(recipe(false, false, "/nowhere/quorate-serve").await.start().is_err());
        let mut recipe = recipe(true, false, "/bin/true").await;
        let mut child = recipe.start().expect("start");
        let (ending, _, _) = ending(HOUR);
        assert_eq!(wait(&mut child, &ending, &mut recipe.sockets).as_deref(), Some("exit status: 0"));
        assert_eq!(recipe.sockets.len(), 3, "the next child gets them");
    }

    #[test]
    fn a_child_that_ends_on_its_own_leaves_its_status() {
        let (ending, _, _) = ending(HOUR);
        let status = |script: &str| wait(&mut shell(script), &ending, &mut Vec::new());
        assert_eq!(status("exit 7").as_deref(), Some("exit status: 7"));
        assert_eq!(status("kill -9 $$").as_deref(), Some("signal: 9 (SIGKILL)"));
    }

    #[tokio::test]
    async fn a_child_that_is_stopped_leaves_nothing_and_no_socket() {
        let (ending, requested, stop) = ending(HOUR);
        for request in [requested, stop] {
            let mut recipe = recipe(true, false, "/bin/true").await;
            request.cancel();
            let mut child = shell("exec sleep 1000");
            assert_eq!(wait(&mut child, &ending, &mut recipe.sockets), None);
            assert!(child.try_wait().expect("its state").is_some(), "it is gone");
            assert!(recipe.sockets.is_empty(), "who connects now is refused");
        }
    }

    /// Answers take longer than the grace period of an agent that ends at once.
    #[test]
    fn a_drain_gives_its_limit_and_a_second_request_shortens_it() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let (ending, requested, stop) = ending(Duration::from_secs(30));
        assert_eq!(ending.kill_at(None, began), None, "no end is requested");
        requested.cancel();
        let first = ending.kill_at(None, began);
        assert_eq!(first, Some(after(30)));
        assert_eq!(ending.kill_at(first, after(20)), first, "looking again prolongs nothing");
        stop.cancel();
        assert_eq!(ending.kill_at(first, after(20)), Some(after(22)));
        assert_eq!(ending.kill_at(first, after(29)), first);
        assert_eq!(ending.kill_at(None, began), Some(after(2)), "an end without a drain");
    }
}
