//! A running local cluster: its daemons, its context, and what the story does to it.

use super::founding::{found, worker};
use super::layout::{GATEWAY, Layout, NODES, REPLICAS};
use super::ports::Ports;
use super::process::{Daemon, inherited};
use crate::context::Context;
use crate::session::{MemberKeyFile, Session};
use anyhow::{Context as _, Result, anyhow, bail};
use protocol::NodeName;
use protocol::agent::PendingNode;
use protocol::api::{NodeView, Page, Status};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the cluster may take until every node is alive.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Pause between looks while waiting.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// First host user id for sandboxes; each node takes a range of its own.
const IDS_FIRST: u32 = 600_000;
/// Pairs of ids per node.
const ID_PAIRS: u32 = 256;

/// Pause between looks of the supervisor.
const SUPERVISION_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause before a restart is the one above, doubled this often: 16 s.
const RESTART_DOUBLINGS_MAX: u32 = 6;
/// A daemon that ran this long did start.
const STANDS_AFTER: Duration = Duration::from_secs(30);

/// A cluster of real processes on this machine. Whoever tells its story and whoever supervises it share it
/// on the main thread.
pub struct Cluster {
    /// Its directory.
    pub layout: Layout,
    ports: Ports,
    daemons: RefCell<BTreeMap<String, Daemon>>,
    simulate_gpus: Option<String>,
    /// Founded by this run.
    pub founded_now: bool,
}

impl Cluster {
    /// Founds the circle if this is the first run, starts every daemon, and waits until all nodes are alive.
    ///
    /// # Errors
    /// When something does not start; what was started is ended by then.
    pub async fn start(layout: Layout, simulate_gpus: Option<&str>) -> Result<Self> {
        let founded_now = !layout.is_founded();
        let ports = Ports::bind(&layout)?;
        if founded_now {
            found(&layout, &ports)?;
        }
        for name in NODES {
            // An earlier run may have been killed between taking a node's disk and giving it a new one.
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

    /// Starts a node's agent, with its share of the machine and user ids of its own.
    ///
    /// # Errors
    /// When the process cannot start.
    pub fn start_node(&self, name: &str) -> Result<()> {
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
        ]
        .map(str::to_string)
        .to_vec())
    }

    async fn wait_until_alive(&self) -> Result<()> {
        let client = self.context()?.client()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(dead) = self.ended_daemon()? {
                bail!("{dead}");
            }
            if let Ok(page) = client.get::<Page<NodeView>>("/v1/nodes").await
                && !page.items.is_empty()
                && let Ok(pending) = client.get::<Page<PendingNode>>("/v1/pending-nodes").await
            {
                // A node that lost its keys asks to be admitted again; that is for the members to answer.
                let asks =
                    |name: &NodeName| pending.items.iter().any(|pending| pending.admission.name == *name);
                if page.items.iter().all(|node| node.alive || asks(&node.name)) {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                bail!("not every node was alive after {} s", START_LIMIT.as_secs());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn ended_daemon(&self) -> Result<Option<String>> {
        for daemon in self.daemons.borrow_mut().values_mut() {
            if let Some(status) = daemon.ended()? {
                return Ok(Some(format!("{} ended: {status}", daemon.name())));
            }
        }
        Ok(None)
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

    /// The operator's context.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn context(&self) -> Result<Context> {
        Context::load(Some(&self.layout.context()))
    }

    /// A verified view of the circle.
    ///
    /// # Errors
    /// When control does not answer or its history does not verify.
    pub async fn session(&self) -> Result<Session> {
        Session::open(&self.context()?).await
    }

    /// A member's key, from its demonstration file.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn member(&self, name: &str) -> Result<MemberKeyFile> {
        MemberKeyFile::load(&self.layout.member_key(name))
    }

    /// How the cluster says it is.
    ///
    /// # Errors
    /// When control does not answer.
    pub async fn status(&self) -> Result<Status> {
        Ok(self.context()?.client()?.get("/v1/status").await?)
    }

    /// The gateway's API.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("http://{}", self.ports.address(&format!("{GATEWAY}/api")))
    }

    /// Address of a socket, by what it is for.
    #[must_use]
    pub fn address(&self, name: &str) -> std::net::SocketAddr {
        self.ports.address(name)
    }

    /// A daemon's process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> Result<u32> {
        self.daemons.borrow().get(name).and_then(Daemon::pid).ok_or_else(|| anyhow!("{name} does not run"))
    }

    /// Names of the daemons.
    #[must_use]
    pub fn daemon_names(&self) -> Vec<String> {
        self.daemons.borrow().keys().cloned().collect()
    }

    /// Kills a daemon without a word.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, name: &str) -> Result<()> {
        let daemon = self.daemons.borrow_mut().remove(name);
        daemon.ok_or_else(|| anyhow!("{name} does not run"))?.kill().await
    }

    /// A node's directory as it was on the day it was bought: new disk, new keys, same name and address.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn wipe_node(&self, name: &str) -> Result<()> {
        std::fs::remove_dir_all(self.layout.node(name))?;
        worker(&self.layout, &self.ports, name).map(|_| ())
    }

    /// Starts again what died, as a supervisor would, until somebody stops the cluster. One that dies again and
    /// again is started again less and less often.
    ///
    /// # Errors
    /// When a daemon cannot be started again.
    pub async fn keep_alive(&self) -> Result<()> {
        let mut restarts: BTreeMap<String, Restarts> = BTreeMap::new();
        loop {
            tokio::time::sleep(SUPERVISION_PAUSE).await;
            for name in self.daemon_names() {
                let ended =
                    self.daemons.borrow_mut().get_mut(&name).map(Daemon::ended).transpose()?.flatten();
                let Some(status) = ended else { continue };
                let restarts = restarts.entry(name.clone()).or_default();
                if restarts.is_due(Instant::now()) {
                    println!("{name} ended ({status}); starting it again");
                    self.restart(&name)?;
                }
            }
        }
    }

    /// Starts a daemon again under its name.
    ///
    /// # Errors
    /// When the process cannot start.
    pub fn restart(&self, name: &str) -> Result<()> {
        match name.strip_prefix("control-").and_then(|id| id.parse().ok()) {
            Some(id) => self.start_control(id),
            None if name == GATEWAY => self.start_gateway(),
            None => self.start_node(name),
        }
    }

    /// Ends every daemon in order, nodes first, so that nothing outlives this process.
    ///
    /// # Errors
    /// What the system answers.
    pub async fn stop(&self) -> Result<()> {
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

/// When a daemon was last started again, and how often in a row.
#[derive(Debug, Default)]
struct Restarts {
    last: Option<Instant>,
    in_a_row: u32,
}

impl Restarts {
    /// Whether a daemon that is found dead is to be started now. The pause doubles with each restart in a row,
    /// which ends when it stood for a while.
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

/// What each node offers: a third of the machine.
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
