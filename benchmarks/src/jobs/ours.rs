//! Our side: a circle with its nodes, and jobs that its members approved.

use super::load::{AT_ONCE, PROGRAM};
use crate::cluster::nodes::{NodeProcess, PreparedNode, prepare_gateway, prepare_worker};
use crate::cluster::workers::processes_below;
use crate::cluster::{ControlCluster, NODE, fresh_directory};
use anyhow::{Context as _, Result, bail, ensure};
use control::client::ControlClient;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::api::{AuditEvent, Page, Status};
use protocol::job_api::{JobLogLine, JobLogPage, JobView, SubmitJobBody, SubmittedJob};
use protocol::model::{ModelRecord, StoredKind};
use protocol::{JobId, ParameterName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Small jobs: one that runs alone, and one of which many run at once.
const ALONE: &str = "alone";
const MANY: &str = "count";
/// Bounds of the small jobs' parameter.
const BOUNDS: &str = "parameters.last = { integer = { least = 0, most = 1000 }, default = '1' }\n";
/// Threshold and number of members.
const CIRCLE: (u32, u32) = (2, 3);
/// Nodes and the stores of each.
const NODES: [&str; 3] = [NODE, "node-2", "node-3"];
const STORES: [&str; 2] = ["disk-0", "disk-1"];
/// Region of the nodes that work; beside a gateway, this is the first alone.
pub(super) const REGION: &str = "local";
const OTHER_REGION: &str = "stores";
/// Word of the command line of an init.
const INIT: &str = "sandbox-init";
/// Clients that submit at the same time.
const SUBMITTERS: usize = 16;
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(300);
/// Pause between two questions for the states of all jobs.
const STATES_PAUSE: Duration = Duration::from_millis(50);

/// A circle with its nodes.
pub(super) struct JobCluster {
    pub(super) control: ControlCluster,
    /// URL of the gateway, if there is one.
    pub(super) gateway: Option<String>,
    client: ControlClient,
    prepared: Vec<PreparedNode>,
    nodes: Vec<NodeProcess>,
}

/// Envelope of a job of the benchmark.
pub(super) struct JobEnvelope<'a> {
    pub(super) name: &'a str,
    pub(super) artifact: &'a str,
    /// Command as TOML.
    pub(super) command: &'a str,
    pub(super) ranks: u32,
    pub(super) ranks_per_slot: u32,
    pub(super) slots: u32,
    pub(super) cpu_millicores: u32,
    pub(super) memory: &'a str,
    /// More lines of the manifest.
    pub(super) more: &'a str,
}

impl JobCluster {
    /// Founds the circle in a directory of this name, and starts its nodes. With a gateway, services and jobs
    /// share the first node.
    pub(super) async fn start(directory: &str, has_gateway: bool) -> Result<Self> {
        let directory = fresh_directory(directory)?;
        let (mut prepared, mut admissions) = (Vec::new(), Vec::new());
        for name in NODES {
            let region = if has_gateway && name != NODE { OTHER_REGION } else { REGION };
            let (node, admission) = prepare_worker(&directory, name, region, &STORES)?;
            prepared.push(node);
            admissions.push(admission);
        }
        if has_gateway {
            let (node, admission) = prepare_gateway(&directory, "gateway-1")?;
            prepared.push(node);
            admissions.push(admission);
        }
        let gateway = prepared.iter().find_map(|node| node.api.clone());
        let control = ControlCluster::found(directory, CIRCLE, admissions).await?;
        let mut cluster = Self { client: control.client()?, control, gateway, prepared, nodes: Vec::new() };
        cluster.restart_dead().await?;
        cluster.wait_until_healthy().await?;
        Ok(cluster)
    }

    /// Starts a circle, and lets its members approve the small jobs.
    pub(super) async fn start_counting() -> Result<Self> {
        let cluster = Self::start("jobs", false).await?;
        cluster.build_artifact("count", PROGRAM, &[])?;
        // Slurm and Ray give a job one CPU; of many at once, each has its part.
        for (name, slots, cpu_millicores) in [(ALONE, 1, 1000), (MANY, AT_ONCE, 50)] {
            let envelope = JobEnvelope {
                name,
                artifact: "count",
                command: "['/usr/local/bin/seq', '1', '{last}']",
                ranks: 1,
                ranks_per_slot: 1,
                slots,
                cpu_millicores,
                memory: "64 MiB",
                more: BOUNDS,
            };
            cluster.approve(&envelope).await?;
        }
        Ok(cluster)
    }

    /// Starts the nodes and the replicas that do not run.
    pub(super) async fn restart_dead(&mut self) -> Result<()> {
        for (number, node) in (0..).zip(&self.prepared) {
            if !self.nodes.iter().any(|running| running.name == node.name) {
                self.nodes.push(node.clone().start(&self.control, number)?);
            }
        }
        self.control.restart_dead().await
    }

    pub(super) async fn wait_until_healthy(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let status: Option<Status> = self.client.get("/v1/status").await.ok();
            if status.as_ref().is_some_and(|status| status.healthy && status.nodes_alive == status.nodes) {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "the cluster is not well: {status:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Packs a program with its libraries, and stores it.
    pub(super) fn build_artifact(&self, name: &str, program: &str, more: &[&str]) -> Result<()> {
        self.build(name, &[&["--binary", program], more].concat())
    }

    /// Builds an artifact by these words, and stores it.
    pub(super) fn build(&self, name: &str, what: &[&str]) -> Result<()> {
        let code = ["--data", "4", "--parity", "2", "--shards-per-domain", "2"];
        let words = ["artifact", "build", "--name", name];
        self.control.quorate(&[&words[..], what, &code].concat()).map(drop)
    }

    /// Lets the members approve a job that any token may submit.
    pub(super) async fn approve(&self, envelope: &JobEnvelope<'_>) -> Result<()> {
        let JobEnvelope { name, artifact, command, ranks, ranks_per_slot, slots, .. } = envelope;
        let JobEnvelope { cpu_millicores, memory, more, .. } = envelope;
        let stored: Vec<ModelRecord> = self.client.list("/v1/models").await?;
        let record = stored.into_iter().find(|record| record.name.as_str() == *artifact);
        let StoredKind::Artifact { tree } = record.context("the artifact is stored")?.kind else {
            bail!("`{artifact}` is no artifact")
        };
        let manifest = format!(
            "kind = 'job'\nname = '{name}'\ncommand = {command}\nranks = {ranks}\n\
             ranks_per_slot = {ranks_per_slot}\nslots = {slots}\nrun_seconds_max = 1800\n\
             artifact = {{ name = '{artifact}', root = '{tree}' }}\n{more}\
             submit = {{ any_token = true }}\n\
             resources = {{ cpu_millicores = {cpu_millicores}, memory = '{memory}' }}\n\
             placement = {{ regions = ['{REGION}'], isolation = 'none' }}\n"
        );
        self.control.decide(&manifest, CIRCLE.0 as usize).await
    }

    pub(super) async fn submit(
        &self,
        job: &str,
        parameters: BTreeMap<ParameterName, String>,
    ) -> Result<JobId> {
        let job = job.parse().map_err(anyhow::Error::msg)?;
        let (after, array) = (BTreeSet::new(), None);
        let body = SubmitJobBody { job, parameters, priority: None, deadline_seconds: None, after, array };
        let submitted: SubmittedJob = self.client.post("/v1/jobs", &body).await?;
        Ok(submitted.id)
    }

    /// Submits a small job, which prints the numbers up to `last`.
    async fn count_to(&self, job: &str, last: u32) -> Result<JobId> {
        let name = "last".parse().map_err(anyhow::Error::msg)?;
        self.submit(job, BTreeMap::from([(name, last.to_string())])).await
    }

    /// Returns the seconds from a submission to its first line.
    pub(super) async fn first_line(&self) -> Result<f64> {
        let began = Instant::now();
        let id = self.count_to(ALONE, 1).await?;
        while self.first_lines_of(id).await?.items.is_empty() {
            ensure!(began.elapsed() < LIMIT, "job {id} printed nothing");
        }
        let seconds = began.elapsed().as_secs_f64();
        // The next submission finds an idle cluster.
        self.ended(&BTreeSet::from([id])).await?;
        Ok(seconds)
    }

    /// Returns the lines of a job so far; waits a while for the first.
    pub(super) async fn first_lines_of(&self, id: JobId) -> Result<JobLogPage> {
        Ok(self.client.get(&format!("/v1/jobs/{id}/logs?after=0&wait_ms=5000")).await?)
    }

    pub(super) async fn lines(&self, id: JobId) -> Result<Vec<JobLogLine>> {
        let page: JobLogPage = self.client.get(&format!("/v1/jobs/{id}/logs?after=0")).await?;
        Ok(page.items)
    }

    /// Returns the seconds from the first submission to the last end of this many jobs that print nothing.
    pub(super) async fn short_jobs(&self, count: usize) -> Result<f64> {
        let began = Instant::now();
        let submissions = stream::iter(0..count).map(|_| self.count_to(MANY, 0));
        let ids: BTreeSet<JobId> = submissions.buffer_unordered(SUBMITTERS).try_collect().await?;
        ensure!(ids.len() == count, "each submission is a job of its own");
        self.ended(&ids).await?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Waits until all these jobs have ended, and checks that each succeeded.
    pub(super) async fn ended(&self, ids: &BTreeSet<JobId>) -> Result<()> {
        let began = Instant::now();
        loop {
            let page: Page<JobView> = self.client.get("/v1/jobs?has_ended=false").await?;
            let left = page.items.iter().filter(|job| ids.contains(&job.id)).count();
            if left == 0 {
                break;
            }
            ensure!(began.elapsed() < LIMIT, "{left} of {} jobs have not ended", ids.len());
            tokio::time::sleep(STATES_PAUSE).await;
        }
        let page: Page<JobView> = self.client.get("/v1/jobs?state=succeeded").await?;
        let succeeded = page.items.iter().filter(|job| ids.contains(&job.id)).count();
        ensure!(succeeded == ids.len(), "{succeeded} of {} jobs succeeded", ids.len());
        Ok(())
    }

    pub(super) async fn job(&self, id: JobId) -> Result<JobView> {
        Ok(self.client.get(&format!("/v1/jobs/{id}")).await?)
    }

    /// Returns what has happened to a job, the first page of it.
    pub(super) async fn events(&self, id: JobId) -> Result<Vec<AuditEvent>> {
        let page: Page<AuditEvent> = self.client.get(&format!("/v1/jobs/{id}/events?after=0")).await?;
        Ok(page.items)
    }

    pub(super) async fn cancel(&self, id: JobId) -> Result<()> {
        let _: serde_json::Value = self.client.post(&format!("/v1/jobs/{id}/cancel"), &()).await?;
        Ok(())
    }

    /// Takes a node of ours out of those that run.
    fn take_node(&mut self, name: &str) -> Result<NodeProcess> {
        let place = self.nodes.iter().position(|node| node.name == name);
        Ok(self.nodes.swap_remove(place.with_context(|| format!("`{name}` is a node of ours"))?))
    }

    /// Kills a node whole: its agent, and every process below it.
    pub(super) fn kill_node(&mut self, name: &str) -> Result<()> {
        let node = self.take_node(name)?;
        let below = processes_below(node.id())?;
        // The guard kills the agent, and waits for its end.
        drop(node);
        below.into_iter().try_for_each(kill_process)
    }

    /// Kills the agent of a node alone.
    pub(super) fn kill_agent(&mut self, name: &str) -> Result<()> {
        self.take_node(name).map(drop)
    }

    /// Kills the init of one sandbox of a node, if it has any.
    pub(super) fn kill_init(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.iter().find(|node| node.name == name);
        let agent = node.with_context(|| format!("`{name}` is a node of ours"))?.id();
        let is_init = |process: &u32| {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(INIT)
        };
        let init = processes_below(agent)?.into_iter().filter(is_init).max();
        init.map_or(Ok(()), kill_process)
    }

    /// Runs a gang to its end, and returns the lines of its ranks.
    pub(super) async fn run(&self, job: &str) -> Result<Vec<JobLogLine>> {
        let id = self.submit(job, BTreeMap::new()).await?;
        self.ended(&BTreeSet::from([id])).await?;
        self.lines(id).await
    }
}

/// Kills a process. One that has ended already needs no signal.
fn kill_process(process: u32) -> Result<()> {
    let _ = kill(Pid::from_raw(i32::try_from(process)?), Signal::SIGKILL);
    Ok(())
}
