//! Benchmark of a decision and of a halt on their way to many agents, and of the end of real sandboxes.
//!
//! Three control replicas and one node with real sandboxes are processes of the product. The other agents
//! are the product's core in a few processes: each has its own key, state on disk and TLS links to every
//! replica; their workers are simulated, and none runs. All of it shares this machine.
//!
//! A node has verified a certificate when the bundle is in its chain: verification precedes the write, and
//! the write precedes the rename, whose time the file system records. A halt is measured in the same way.

pub(super) mod agents;
mod sandboxes;

use super::add_bar;
use crate::Options;
use crate::cluster::nodes::{NodeProcess, prepare, prepare_worker};
use crate::cluster::services::TinyService;
use crate::cluster::workers::workers_of;
use crate::cluster::{ControlCluster, fresh_directory, start};
use crate::process::ChildGuard;
use crate::report::{BenchmarkReport, quantile};
use agents::AgentsPart;
use anyhow::{Result, ensure};
use control::member_key::MemberKey;
use control::session::Session;
use futures::future::join_all;
use host::random::random_bytes;
use host::wall_clock;
use human_chain::{MemberSigner as _, sign_halt, vote};
use protocol::Digest;
use protocol::api::Status;
use protocol::governance::{Change, Choice, NodeAdmission, Proposal};
use protocol::halt::{Halt, HaltReceipt, HaltScope};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Agents without real sandboxes, in a whole run and in a quick one.
const AGENTS: (usize, usize) = (1_000, 100);
/// Processes that they share.
const PROCESSES: usize = 4;
/// Threshold and number of members.
const CIRCLE: (u32, u32) = (5, 9);
/// Decisions that are measured, in a whole run and in a quick one.
const DECISIONS: (usize, usize) = (9, 3);
/// Halts that are measured, each with real sandboxes to stop.
const HALTS: (usize, usize) = (3, 1);
/// Longest time in seconds from the last signature to the agents, and from a halt to its effect, as the 99th
/// percentile.
const BAR_SECONDS: f64 = 2.0;
/// Time for all agents to be connected.
const START_LIMIT: Duration = Duration::from_secs(1_800);
/// Time for a decision or a halt to reach all agents.
const SPREAD_LIMIT: Duration = Duration::from_secs(120);
/// Lifetime of a proposal in milliseconds.
const LIFETIME_MS: u64 = 3_600_000;
/// Pause after which the agents are quiet.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs this part of the benchmark.
pub(super) fn run(options: &Options, report: &mut BenchmarkReport) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pick = |(whole, quick): (usize, usize)| if options.quick { quick } else { whole };
    let sizes = FleetSizes { agents: pick(AGENTS), decisions: pick(DECISIONS), halts: pick(HALTS) };
    runtime.block_on(measure(&sizes, report))
}

struct FleetSizes {
    agents: usize,
    decisions: usize,
    halts: usize,
}

/// The circle with its agents.
struct Fleet {
    cluster: ControlCluster,
    /// Directories of the agents, those of the product's own processes last.
    directories: Vec<PathBuf>,
    /// The processes of the product: the node with real sandboxes, then the others.
    nodes: Vec<NodeProcess>,
    _processes: Vec<ChildGuard>,
}

async fn measure(sizes: &FleetSizes, report: &mut BenchmarkReport) -> Result<()> {
    let mut fleet = Fleet::start(sizes.agents).await?;
    let mut decisions = Spread::default();
    for round in 1..=sizes.decisions {
        let times = fleet.decide(round).await?;
        decisions.add(&format!("decision {round}/{}", sizes.decisions), &times);
    }
    let (mut halts, mut ended) = (Spread::default(), Spread::default());
    for round in 1..=sizes.halts {
        let (times, ends) = fleet.halt(round).await?;
        halts.add(&format!("halt {round}/{}", sizes.halts), &times);
        ended.add(&format!("sandboxes {round}/{}", sizes.halts), &ends);
    }
    let agents = sizes.agents + sandboxes::NODES.len();
    for (what, spread) in [
        (format!("certificate_to_{agents}_agents"), &decisions),
        (format!("halt_to_{agents}_agents"), &halts),
        ("halt_to_sandbox_ends".to_string(), &ended),
    ] {
        add_bar(report, &format!("{what}_p50"), "s", BAR_SECONDS, &spread.p50);
        add_bar(report, &format!("{what}_p99"), "s", BAR_SECONDS, &spread.p99);
    }
    report.notes.push(format!(
        "fleet: {} agents in {PROCESSES} processes (the agent's core, own key, state on disk and TLS to 3 \
         replicas; launcher and GPU simulated), 3 processes of the product, one with {} real sandboxes; {} \
         of {} members decide; the leader is killed before each halt",
        sizes.agents,
        sandboxes::COUNT,
        CIRCLE.0,
        CIRCLE.1
    ));
    report.notes.push(format!("not enforced in the real sandboxes: {}", fleet.not_enforced().await?));
    Ok(())
}

/// Medians and 99th percentiles of the rounds, in seconds.
#[derive(Default)]
struct Spread {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Spread {
    fn add(&mut self, what: &str, seconds: &[f64]) {
        let (p50, p99) = (quantile(seconds, 0.5), quantile(seconds, 0.99));
        eprintln!("{what}: p50 {p50:.3} s, p99 {p99:.3} s, last {:.3} s", quantile(seconds, 1.0));
        self.p50.push(p50);
        self.p99.push(p99);
    }
}

impl Fleet {
    /// Founds the circle and starts every process; returns when all agents are alive and 20 sandboxes run.
    async fn start(agents: usize) -> Result<Self> {
        let directory = fresh_directory("human-chain-fleet")?;
        let names: Vec<String> = (0..agents).map(|number| format!("agent-{number:04}")).collect();
        let mut nodes: Vec<NodeAdmission> =
            names.iter().map(|name| prepare(&directory, name)).collect::<Result<_>>()?;
        let mut prepared = Vec::new();
        for (name, region) in sandboxes::NODES {
            let (node, admission) = prepare_worker(&directory, name, region, &sandboxes::STORES)?;
            prepared.push(node);
            nodes.push(admission);
        }
        let cluster = ControlCluster::found(directory, CIRCLE, nodes).await?;
        let mut directories: Vec<PathBuf> = names.iter().map(|name| cluster.directory.join(name)).collect();
        let mut processes = Vec::new();
        for (number, part) in directories.chunks(agents.div_ceil(PROCESSES)).enumerate() {
            processes.push(start_agents(&cluster, number, part)?);
        }
        let started = (0..).zip(prepared).map(|(number, node)| node.start(&cluster, number));
        let started: Vec<NodeProcess> = started.collect::<Result<_>>()?;
        directories.extend(started.iter().map(|node| node.directory.clone()));
        let fleet = Self { cluster, directories, nodes: started, _processes: processes };
        fleet.wait_until_alive().await?;
        fleet.cluster.import_tiny(2, 1, 1)?;
        Ok(fleet)
    }

    async fn status(&self) -> Result<Status> {
        Ok(self.cluster.client()?.get("/v1/status").await?)
    }

    async fn not_enforced(&self) -> Result<String> {
        let labels = self.status().await?.not_enforced;
        let real: Vec<_> = labels.into_iter().filter(|label| !label.contains("simulated")).collect();
        Ok(if real.is_empty() { "nothing".into() } else { real.join("; ") })
    }

    async fn wait_until_alive(&self) -> Result<()> {
        let (began, all) = (Instant::now(), self.directories.len());
        loop {
            let alive = self.status().await.map_or(0, |status| status.nodes_alive as usize);
            if alive == all {
                eprintln!("{all} agents are alive after {:.0} s", began.elapsed().as_secs_f64());
                tokio::time::sleep(SETTLE).await;
                return Ok(());
            }
            ensure!(began.elapsed() < START_LIMIT, "{alive} of {all} agents are alive");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Decides to admit a node that never starts; returns the times from the last signature to each agent.
    async fn decide(&self, round: usize) -> Result<Vec<f64>> {
        let late = prepare(&self.cluster.directory, &format!("late-{round}"))?;
        let session = Session::open(&self.cluster.context).await?;
        let change = Change::AdmitNode(Box::new(late));
        let proposal = session.propose(change, "benchmark".into(), LIFETIME_MS).await?.view.proposal;
        let (last, earlier) = self.deciding().split_last().expect("members decide");
        for member in earlier {
            session.vote(&proposal, member, Choice::Approve, String::new()).await?;
        }
        tokio::time::sleep(SETTLE).await;
        let began = SystemTime::now();
        self.vote(&session, last, &proposal).await?;
        let file = PathBuf::from("chain").join(format!("{:010}", session.circle.length() + 1));
        self.spread(&file, began).await
    }

    fn deciding(&self) -> &[MemberKey] {
        &self.cluster.members[..CIRCLE.0 as usize]
    }

    /// Signs and sends a ballot, without a look at the answer: the agents do not wait for it.
    async fn vote(&self, session: &Session, member: &MemberKey, proposal: &Proposal) -> Result<()> {
        let head = session.circle.head();
        let id = member.member.clone();
        let ballot = vote(&member.signer, id, head, proposal, Choice::Approve, wall_clock())?;
        let path = format!("/v1/proposals/{}/ballots", proposal.id());
        let _: protocol::api::ProposalView = session.client.post(&path, &ballot).await?;
        Ok(())
    }

    /// Deploys a service of 20 slots, kills the leader, and halts the service. Returns the times from the
    /// halt's signature to each agent, and to the end of each sandbox.
    async fn halt(&mut self, round: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        self.cluster.restart_dead().await?;
        self.wait_until_alive().await?;
        let name = format!("halted-{round}");
        let service = TinyService {
            name: &name,
            region: sandboxes::REGION,
            replicas: sandboxes::COUNT,
            cpu_millicores: 60,
        };
        self.cluster.deploy(&service, CIRCLE.0 as usize).await?;
        let workers = workers_of(self.nodes[0].id())?;
        ensure!(workers.len() == sandboxes::COUNT, "{} workers run", workers.len());
        tokio::time::sleep(SETTLE).await;
        self.cluster.kill_leader().await?;
        let (clients, member) = (self.cluster.client()?.each(), &self.cluster.members[0]);
        let began = SystemTime::now();
        let halt = Halt {
            circle: self.cluster.context.circle,
            member: member.member.clone(),
            signer: member.signer.public_keys().ed25519,
            scope: HaltScope::Service(name.parse().map_err(anyhow::Error::msg)?),
            reason: "benchmark".into(),
            issued_at: wall_clock(),
            nonce: Digest(random_bytes()),
        };
        let signed = sign_halt(&member.signer, halt)?;
        let watching = sandboxes::watch(workers, began);
        let sends = clients.iter().map(|(_, client)| client.post::<_, HaltReceipt>("/v1/halts", &signed));
        let (taken, spread) = tokio::join!(join_all(sends), self.spread(Path::new("halts"), began));
        ensure!(taken.iter().filter(|answer| answer.is_ok()).count() >= 2, "two replicas take a halt");
        Ok((spread?, watching.await??))
    }

    /// Waits until each agent has written this file after `began`; returns the times that it took them.
    async fn spread(&self, file: &Path, began: SystemTime) -> Result<Vec<f64>> {
        let deadline = Instant::now() + SPREAD_LIMIT;
        let mut times: Vec<Option<f64>> = vec![None; self.directories.len()];
        loop {
            let waiting = self.directories.iter().zip(&mut times).filter(|(_, time)| time.is_none());
            for (directory, time) in waiting {
                *time = changed_after(&directory.join(file), began);
            }
            let missing = times.iter().filter(|time| time.is_none()).count();
            if missing == 0 {
                return Ok(times.into_iter().flatten().collect());
            }
            ensure!(Instant::now() < deadline, "{missing} agents lack `{}`", file.display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Returns the seconds from `began` to the last change of a file; none if it is older or missing.
fn changed_after(path: &Path, began: SystemTime) -> Option<f64> {
    let metadata = std::fs::metadata(path).ok()?;
    let changed = metadata.ctime() as f64 + metadata.ctime_nsec() as f64 / 1e9;
    let began = began.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    (changed > began).then_some(changed - began)
}

fn start_agents(cluster: &ControlCluster, number: usize, directories: &[PathBuf]) -> Result<ChildGuard> {
    let part = AgentsPart {
        circle: cluster.context.circle,
        genesis: cluster.directory.join("genesis.json"),
        directories: directories.to_vec(),
    };
    let arguments = ["human-chain", "--part", &serde_json::to_string(&part)?];
    start(&std::env::current_exe()?, &arguments, &cluster.directory.join(format!("agents-{number}.log")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_from_its_last_change_on() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("file");
        let before = SystemTime::now() - Duration::from_secs(10);
        assert_eq!(changed_after(&path, before), None, "missing");
        std::fs::write(&path, "a").expect("written");
        let seconds = changed_after(&path, before).expect("changed");
        assert!((9.0..3_600.0).contains(&seconds), "{seconds}");
        assert_eq!(changed_after(&path, SystemTime::now() + Duration::from_secs(10)), None, "older");
    }
}
