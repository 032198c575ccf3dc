//! A running local cluster: its daemons, its context, and their supervision.

use super::founding::{found, worker};
use super::layout::{GATEWAY, Layout, NODES, REPLICAS};
use super::ports::Ports;
use crate::context::Context;
use crate::member_key::MemberKey;
use crate::print;
use crate::session::Session;
use anyhow::{Context as _, Result, anyhow, bail};
use host::children::{Daemon, inherited};
use protocol::NodeName;
use protocol::access::SignedGrant;
use protocol::agent::PendingNode;
use protocol::api::{NodeView, Page, Status};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Timeout for the start of the cluster, until every node is alive.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Interval between two polls of a waiting step.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// First host user id for sandboxes; each node takes a range of its own.
const IDS_FIRST: u32 = 600_000;
/// Number of id pairs per node.
const ID_PAIRS: u32 = 256;

/// Interval between two polls of the supervisor.
const SUPERVISION_PAUSE: Duration = Duration::from_millis(250);

/// Maximum number of doublings of the restart pause; starting from the interval above, the longest pause is
/// 16 s.
const RESTART_DOUBLINGS_MAX: u32 = 6;
/// Uptime after which the start of a daemon counts as successful.
const STANDS_AFTER: Duration = Duration::from_secs(30);

/// A cluster of real processes on this machine. The supervisor and the client of the cluster share it on the
/// main thread.
pub(super) struct LocalCluster {
    /// Directory layout of the cluster.
    pub(super) layout: Layout,
    ports: Ports,
    daemons: RefCell<BTreeMap<String, Daemon>>,
    simulate_gpus: Option<String>,
    /// True if this run founded the circle.
    pub(super) founded_now: bool,
}

impl LocalCluster {
    /// Founds the circle on the first run, starts every daemon, and waits until all nodes are alive.
    ///
    /// # Errors
    /// Returns an error if a step fails. If the nodes do not become alive, the daemons are stopped first.
    pub(super) async fn start(layout: Layout, simulate_gpus: Option<&str>) -> Result<Self> {
        let founded_now = !layout.is_founded();
        let ports = Ports::bind(&layout)?;
        if founded_now {
            found(&layout, &ports)?;
        }
        for name in NODES {
            // The directory of a node may be gone since the last run: the node then has new keys and asks for
            // admission.
            worker(&layout, &ports, name)?;
        }
        let simulate_gpus = simulate_gpus.map(str::to_string);
        let cluster = Self { layout, ports, daemons: RefCell::default(), simulate_gpus, founded_now };
        for id in 1..=REPLICAS {
            cluster.start_control(id)?;
        }
        for name in NODES {
            cluster.start_node(name)?;
        }
        cluster.start_gateway()?;
        if let Err(error) = cluster.wait_until_alive().await {
            let hint = cluster.first_dead();
            cluster.stop().await?;
            return Err(error.context(hint));
        }
        Ok(cluster)
    }

    fn start_control(&self, id: u64) -> Result<()> {
        let name = format!("control-{id}");
        let (overlay, api) =
            (self.ports.listener(&format!("{name}/overlay")), self.ports.listener(&format!("{name}/api")));
        let arguments = [
            "control",
            "run",
            "--dir",
            &self.layout.control(id).display().to_string(),
            "--genesis",
            &self.layout.genesis().display().to_string(),
            "--overlay",
            &inherited(overlay),
            "--api",
            &inherited(api),
        ]
        .map(str::to_string);
        let daemon = Daemon::start(&name, &arguments, &[overlay, api], &self.layout.log(&name))?;
        self.daemons.borrow_mut().insert(name, daemon);
        Ok(())
    }

    /// Starts a node's agent, with its share of the machine and its own range of user ids.
    ///
    /// # Errors
    /// Returns an error if the process cannot start.
    fn start_node(&self, name: &str) -> Result<()> {
        let storage = self.ports.listener(&format!("{name}/storage"));
        let metrics = self.ports.listener(&format!("{name}/metrics"));
        let index = NODES.iter().position(|node| *node == name).unwrap_or(0) as u32;
        let (millicores, memory_bytes) = share_of_machine()?;
        let mut arguments = self.agent_arguments(name)?;
        arguments.extend(
            [
                "--storage",
                &inherited(storage),
                "--metrics",
                &inherited(metrics),
                "--cpu-millicores",
                &millicores.to_string(),
                "--memory",
                &format!("{memory_bytes} B"),
                "--ids-first",
                &(IDS_FIRST + index * ID_PAIRS * 2).to_string(),
                "--id-pairs",
                &ID_PAIRS.to_string(),
            ]
            .map(str::to_string),
        );
        if let Some(gpus) = &self.simulate_gpus {
            arguments.extend(["--simulate-gpus".to_string(), gpus.clone()]);
        }
        let daemon = Daemon::start(name, &arguments, &[storage, metrics], &self.layout.log(name))?;
        self.daemons.borrow_mut().insert(name.to_string(), daemon);
        Ok(())
    }

    fn start_gateway(&self) -> Result<()> {
        let listener = |purpose: &str| self.ports.listener(&format!("{GATEWAY}/{purpose}"));
        let (workers, api) = (listener("workers"), listener("api"));
        let (metrics, gateway_metrics) = (listener("metrics"), listener("gateway-metrics"));
        let mut arguments = self.agent_arguments(GATEWAY)?;
        arguments.extend(
            [
                "--gateway",
                &inherited(workers),
                "--gateway-api",
                &inherited(api),
                "--gateway-metrics",
                &inherited(gateway_metrics),
                "--metrics",
                &inherited(metrics),
            ]
            .map(str::to_string),
        );
        let sockets = [workers, api, gateway_metrics, metrics];
        let daemon = Daemon::start(GATEWAY, &arguments, &sockets, &self.layout.log(GATEWAY))?;
        self.daemons.borrow_mut().insert(GATEWAY.to_string(), daemon);
        Ok(())
    }

    fn agent_arguments(&self, name: &str) -> Result<Vec<String>> {
        let circle = self.context()?.circle;
        Ok([
            "agent",
            "run",
            "--dir",
            &self.layout.node(name).display().to_string(),
            "--genesis",
            &self.layout.genesis().display().to_string(),
            "--circle",
            &circle.to_string(),
            "--cgroup",
            &format!("quorate-{}/{name}", circle.short()),
            // A person who ends a whole cluster waits for no stream.
            "--drain-seconds",
            "0",
        ]
        .map(str::to_string)
        .to_vec())
    }

    async fn wait_until_alive(&self) -> Result<()> {
        let client = self.context()?.client()?;
        let grant: SignedGrant = serde_json::from_slice(&std::fs::read(self.layout.token_grant())?)?;
        let (deadline, mut restarts) = (Instant::now() + START_LIMIT, RestartBook::new());
        loop {
            // A new circle has no token until its control plane has the first grant. The same grant again
            // changes nothing.
            let _ = client.post::<_, serde_json::Value>("/v1/access/grants", &grant).await;
            for (name, status) in self.ended_daemons()? {
                // A killed daemon starts as it would later; one that exited says why in its log.
                match status.signal() {
                    Some(_) => self.restart_when_due(&name, status, &mut restarts)?,
                    None => bail!("{name} ended: {status}"),
                }
            }
            if let Ok(page) = client.get::<Page<NodeView>>("/v1/nodes").await
                && !page.items.is_empty()
                && let Ok(pending) = client.get::<Page<PendingNode>>("/v1/pending-nodes").await
            {
                // A node that lost its keys asks for admission again; only the members can decide that.
                let asks =
                    |name: &NodeName| pending.items.iter().any(|pending| pending.admission.name == *name);
                if page.items.iter().all(|node| node.alive || asks(&node.name)) {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                bail!("not every node was alive after {} s", START_LIMIT.as_secs());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn ended_daemons(&self) -> Result<Vec<(String, ExitStatus)>> {
        let mut ended = Vec::new();
        for daemon in self.daemons.borrow_mut().values_mut() {
            if let Some(status) = daemon.ended()? {
                ended.push((daemon.name().to_string(), status));
            }
        }
        Ok(ended)
    }

    fn first_dead(&self) -> String {
        let dead = self.daemons.borrow_mut().values_mut().find_map(|daemon| match daemon.ended() {
            Ok(Some(_)) => Some(daemon.name().to_string()),
            _ => None,
        });
        let name = dead.unwrap_or_else(|| "control-1".to_string());
        let text = std::fs::read_to_string(self.layout.log(&name)).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("the cluster did not start; last lines of {name}:\n{}", tail.join("\n"))
    }

    /// Reads the operator's context.
    ///
    /// # Errors
    /// Returns an error if the file is damaged.
    pub(super) fn context(&self) -> Result<Context> {
        Context::read(&self.layout.context())
    }

    /// Opens a session with a verified view of the circle.
    ///
    /// # Errors
    /// Returns an error if control does not answer or its history does not verify.
    pub(super) async fn session(&self) -> Result<Session> {
        Session::open(&self.context()?).await
    }

    /// Reads a member's key from its file.
    ///
    /// # Errors
    /// Returns an error if the file is damaged.
    pub(super) fn member(&self, name: &str) -> Result<MemberKey> {
        MemberKey::load(&self.layout.member_key(name))
    }

    /// Returns the cluster's status, as the leader reports it.
    ///
    /// # Errors
    /// Returns an error if control does not answer.
    pub(super) async fn status(&self) -> Result<Status> {
        Ok(self.context()?.client()?.get("/v1/status").await?)
    }

    /// Returns the base URL of the gateway's API.
    #[must_use]
    pub(super) fn gateway(&self) -> String {
        format!("http://{}", self.ports.address(&format!("{GATEWAY}/api")))
    }

    /// Returns the address of a socket by its name, `daemon/purpose`.
    #[must_use]
    pub(super) fn address(&self, name: &str) -> std::net::SocketAddr {
        self.ports.address(name)
    }

    fn daemon_names(&self) -> Vec<String> {
        self.daemons.borrow().keys().cloned().collect()
    }

    /// Restarts daemons that died, as a supervisor would, until the caller drops the future.
    ///
    /// The pause before a restart doubles for a daemon that dies repeatedly.
    ///
    /// # Errors
    /// Returns an error if a daemon cannot be restarted.
    pub(super) async fn keep_alive(&self) -> Result<()> {
        let mut restarts = RestartBook::new();
        loop {
            tokio::time::sleep(SUPERVISION_PAUSE).await;
            for (name, status) in self.ended_daemons()? {
                self.restart_when_due(&name, status, &mut restarts)?;
            }
        }
    }

    /// Restarts a daemon that ended with `status`, unless it did so a moment ago.
    ///
    /// # Errors
    /// Returns an error if the process cannot start.
    fn restart_when_due(&self, name: &str, status: ExitStatus, restarts: &mut RestartBook) -> Result<()> {
        if restarts.entry(name.to_string()).or_default().is_due(Instant::now()) {
            print::out(format_args!("{name} ended ({status}); starting it again"));
            self.restart(name)?;
        }
        Ok(())
    }

    /// Restarts a daemon under its name.
    ///
    /// # Errors
    /// Returns an error if the process cannot start.
    fn restart(&self, name: &str) -> Result<()> {
        match name.strip_prefix("control-").and_then(|id| id.parse().ok()) {
            Some(id) => self.start_control(id),
            None if name == GATEWAY => self.start_gateway(),
            None => self.start_node(name),
        }
    }

    /// Stops every daemon gracefully, nodes first, so that no process outlives this one.
    ///
    /// # Errors
    /// Returns an error if a daemon can neither be waited for nor killed.
    pub(super) async fn stop(&self) -> Result<()> {
        let (control, nodes): (Vec<_>, Vec<_>) =
            self.daemon_names().into_iter().partition(|name| name.starts_with("control-"));
        for group in [nodes, control] {
            for name in &group {
                if let Some(daemon) = self.daemons.borrow().get(name) {
                    daemon.ask_to_end();
                }
            }
            for name in &group {
                let daemon = self.daemons.borrow_mut().remove(name);
                if let Some(mut daemon) = daemon {
                    daemon.wait_or_kill().await.with_context(|| format!("end {name}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Restarts of each daemon by its name.
type RestartBook = BTreeMap<String, Restarts>;

/// Time of a daemon's last restart, and the number of consecutive restarts.
#[derive(Debug, Default)]
struct Restarts {
    last: Option<Instant>,
    in_a_row: u32,
}

impl Restarts {
    /// Returns whether a dead daemon is due for a restart. The pause doubles with each consecutive restart; a
    /// sufficient uptime resets it.
    fn is_due(&mut self, now: Instant) -> bool {
        let since = self.last.map_or(Duration::MAX, |last| now.duration_since(last));
        if since > STANDS_AFTER {
            self.in_a_row = 0;
        }
        if since < SUPERVISION_PAUSE * 2_u32.pow(self.in_a_row.min(RESTART_DOUBLINGS_MAX)) {
            return false;
        }
        self.last = Some(now);
        self.in_a_row += 1;
        true
    }
}

/// Returns the resources that each node offers: a third of the machine.
fn share_of_machine() -> Result<(u64, u64)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes: Option<u64> =
        total.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    let kilobytes = kilobytes.ok_or_else(|| anyhow!("/proc/meminfo names no MemTotal"))?;
    let nodes = NODES.len() as u64;
    Ok((cores * 1000 / nodes, kilobytes * 1024 / nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_dies_again_and_again_is_started_less_often() {
        let mut restarts = Restarts::default();
        let began = Instant::now();
        let due = |restarts: &mut Restarts, ms: u64| restarts.is_due(began + Duration::from_millis(ms));
        let at = [0, 250, 500, 750, 1_000, 1_500, 2_000, 3_500, 18_000].map(|ms| due(&mut restarts, ms));
        assert_eq!(at, [true, false, true, false, false, true, false, true, true]);
        assert!(due(&mut restarts, 60_000), "it stood for a while");
        assert!(due(&mut restarts, 60_500), "and is started again soon");
    }
}
