//! A running local cluster: its daemons, its context, and what the story does to it.

use super::founding::{found, worker};
use super::layout::{GATEWAY, Layout, NODES, REPLICAS};
use super::ports::Ports;
use super::process::{Daemon, inherited};
use crate::context::Context;
use crate::session::{MemberKeyFile, Session};
use anyhow::{Context as _, Result, anyhow, bail};
use protocol::api::{NodeView, Page, Status};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the cluster may take until every node is alive.
const START_LIMIT: Duration = Duration::from_secs(40);
/// Pause between looks while waiting.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// First host user id for sandboxes; each node takes a range of its own.
const IDS_FIRST: u32 = 600_000;
/// Pairs of ids per node.
const ID_PAIRS: u32 = 256;

/// A cluster of real processes on this machine.
pub struct Cluster {
    /// Its directory.
    pub layout: Layout,
    ports: Ports,
    daemons: BTreeMap<String, Daemon>,
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
        let simulate_gpus = simulate_gpus.map(str::to_string);
        let mut cluster = Self { layout, ports, daemons: BTreeMap::new(), simulate_gpus, founded_now };
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

    fn start_control(&mut self, id: u64) -> Result<()> {
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
        self.daemons.insert(name, daemon);
        Ok(())
    }

    /// Starts a node's agent, with its share of the machine and user ids of its own.
    ///
    /// # Errors
    /// When the process cannot start.
    pub fn start_node(&mut self, name: &str) -> Result<()> {
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
        self.daemons.insert(name.to_string(), daemon);
        Ok(())
    }

    fn start_gateway(&mut self) -> Result<()> {
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
        self.daemons.insert(GATEWAY.to_string(), daemon);
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

    async fn wait_until_alive(&mut self) -> Result<()> {
        let client = self.context()?.client()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(dead) = self.ended_daemon()? {
                bail!("{dead}");
            }
            if let Ok(page) = client.get::<Page<NodeView>>("/v1/nodes").await
                && !page.items.is_empty()
                && page.items.iter().all(|node| node.alive)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not every node was alive after {} s", START_LIMIT.as_secs());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn ended_daemon(&mut self) -> Result<Option<String>> {
        for daemon in self.daemons.values_mut() {
            if let Some(status) = daemon.ended()? {
                return Ok(Some(format!("{} ended: {status}", daemon.name())));
            }
        }
        Ok(None)
    }

    fn first_dead(&mut self) -> String {
        let dead = self.daemons.values_mut().find_map(|daemon| match daemon.ended() {
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
        self.daemons.get(name).and_then(Daemon::pid).ok_or_else(|| anyhow!("{name} does not run"))
    }

    /// Names of the daemons.
    #[must_use]
    pub fn daemon_names(&self) -> Vec<String> {
        self.daemons.keys().cloned().collect()
    }

    /// Kills a daemon without a word.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        let mut daemon = self.daemons.remove(name).ok_or_else(|| anyhow!("{name} does not run"))?;
        daemon.kill().await
    }

    /// A node's directory as it was on the day it was bought: new disk, new keys, same name and address.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn wipe_node(&self, name: &str) -> Result<()> {
        std::fs::remove_dir_all(self.layout.node(name))?;
        worker(&self.layout, &self.ports, name).map(|_| ())
    }

    /// Starts again what died, as a supervisor would, until somebody stops the cluster.
    ///
    /// # Errors
    /// When a daemon cannot be started again.
    pub async fn keep_alive(&mut self) -> Result<()> {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for name in self.daemon_names() {
                let ended = self.daemons.get_mut(&name).map(Daemon::ended).transpose()?.flatten();
                let Some(status) = ended else { continue };
                println!("{name} ended ({status}); starting it again");
                self.restart(&name)?;
            }
        }
    }

    /// Starts a daemon again under its name.
    ///
    /// # Errors
    /// When the process cannot start.
    pub fn restart(&mut self, name: &str) -> Result<()> {
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
    pub async fn stop(&mut self) -> Result<()> {
        let (control, nodes): (Vec<_>, Vec<_>) =
            self.daemon_names().into_iter().partition(|name| name.starts_with("control-"));
        for group in [nodes, control] {
            for name in &group {
                if let Some(daemon) = self.daemons.get(name) {
                    daemon.ask_to_end();
                }
            }
            for name in &group {
                if let Some(mut daemon) = self.daemons.remove(name) {
                    daemon.wait_or_kill().await.with_context(|| format!("end {name}"))?;
                }
            }
        }
        Ok(())
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
