//! Benchmark of a session over a long history: the command line opens it from the state that this machine
//! verified before, beside the whole history fetched and verified again.
//!
//! The replicas are real processes, and every decision went through their log. The control API is plain HTTP
//! on loopback, as the product has it without a certificate.

use super::add_bar;
use crate::Options;
use crate::cluster::nodes::{agent_config, prepare};
use crate::cluster::{ControlCluster, fresh_directory};
use crate::report::{BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, ensure};
use control::member_key::MemberKey;
use control::session::Session;
use futures::future::try_join_all;
use gpu_agent::agent::run as run_agent;
use host::wall_clock;
use human_chain::{CircleState, certify, propose, verify, vote};
use overlay::CancellationToken;
use protocol::Digest;
use protocol::api::{ProposalView, SubmitProposal};
use protocol::governance::{Change, Choice, HistoryHead, NodeAdmission};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Threshold and number of members.
const CIRCLE: (u32, u32) = (2, 3);
/// Numbers of decisions at which sessions are opened; the last has the bar.
const SIZES: [u64; 3] = [100, 1_000, 10_000];
/// Longest time in seconds in which a session over the longest history opens.
const BAR_SECONDS: f64 = 1.0;
/// Sessions opened of each kind, alternated.
const ROUNDS: usize = 5;
/// Decisions under way at the same time, each about a node of its own.
const CONCURRENT: usize = 8;
/// Lifetime of a proposal in milliseconds.
const LIFETIME_MS: u64 = 3_600_000;
/// Time for an agent to fetch or replay the history.
const AGENT_LIMIT: Duration = Duration::from_secs(600);

/// Runs this part of the benchmark.
pub(super) fn run(options: &Options, report: &mut BenchmarkReport) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(if options.quick { &SIZES[..2] } else { &SIZES }, report))
}

async fn measure(sizes: &[u64], report: &mut BenchmarkReport) -> Result<()> {
    let directory = fresh_directory("human-chain-session")?;
    let nodes: Vec<NodeAdmission> =
        (0..CONCURRENT).map(|number| prepare(&directory, &node_name(number))).collect::<Result<_>>()?;
    let cluster = ControlCluster::found(directory, CIRCLE, nodes.clone()).await?;
    let founded = CircleState::found(&cluster.genesis, None)?;
    let mut deciders: Vec<Decider> = nodes
        .into_iter()
        .map(|node| Decider {
            cluster: &cluster,
            mirror: founded.clone(),
            founded: founded.head(),
            node,
            decided: 0,
        })
        .collect();
    let mut length = 0;
    for size in sizes {
        let began = Instant::now();
        let each = (size - length).div_ceil(CONCURRENT as u64);
        try_join_all(deciders.iter_mut().map(|decider| decider.decide(each))).await?;
        length += each * CONCURRENT as u64;
        eprintln!("{length} decisions, the last after {:.1} s", began.elapsed().as_secs_f64());
        let (kept, whole) = sessions(&cluster, length).await?;
        add_rows(report, *size, &kept, &whole);
    }
    let state = std::fs::metadata(state_file(&cluster))?.len();
    report.notes.push(format!(
        "session: {length} decisions of {} of {} members about {CONCURRENT} nodes; the kept state has \
         {state} bytes",
        CIRCLE.0, CIRCLE.1
    ));
    let (fetched, replayed) = agent_start(&cluster, length).await?;
    report.notes.push(format!(
        "an agent fetched and verified the {length} decisions in {fetched:.1} s, and started with them on \
         its disk in {replayed:.1} s"
    ));
    Ok(())
}

fn add_rows(report: &mut BenchmarkReport, size: u64, kept: &[f64], whole: &[f64]) {
    let metric = format!("session_{size}");
    report.rows.push(ComparisonRow::new(&metric, "s", "the whole history verified", kept, whole, None));
    if Some(&size) == SIZES.last() {
        add_bar(report, &metric, "s", BAR_SECONDS, kept);
    }
}

/// Returns the times in seconds to open a session from the kept state, and without it.
async fn sessions(cluster: &ControlCluster, length: u64) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut kept, mut whole) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        for (times, forgets) in [(&mut whole, true), (&mut kept, false)] {
            if forgets {
                // A machine that has verified nothing. The directory is missing before the first round.
                let _ = std::fs::remove_dir_all(state_file(cluster).with_file_name(""));
            }
            let began = Instant::now();
            let session = Session::open(&cluster.context).await?;
            times.push(began.elapsed().as_secs_f64());
            ensure!(session.circle.length() == length, "{} decisions", session.circle.length());
        }
        let (one, other) = (kept.last().copied().unwrap_or(0.0), whole.last().copied().unwrap_or(0.0));
        eprintln!("session over {length}, round {round}/{ROUNDS}   kept {one:.3} s   whole {other:.3} s");
    }
    Ok((kept, whole))
}

fn state_file(cluster: &ControlCluster) -> std::path::PathBuf {
    cluster.directory.join("heads").join(format!("{}.state", cluster.context.circle))
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// Decides about one node, one decision after another. Its signers have seen the founding and no decision
/// about the other nodes: deciders work side by side.
struct Decider<'a> {
    cluster: &'a ControlCluster,
    /// State of the circle with the decisions about this node alone, for the versions of its subject.
    mirror: CircleState,
    founded: HistoryHead,
    node: NodeAdmission,
    decided: u64,
}

impl Decider<'_> {
    async fn decide(&mut self, times: u64) -> Result<()> {
        for _ in 0..times {
            self.decided += 1;
            self.decide_next().await?;
        }
        Ok(())
    }

    async fn decide_next(&mut self) -> Result<()> {
        let mut node = self.node.clone();
        node.labels.insert("decision".into(), self.decided.to_string());
        let (change, now) = (Change::AdmitNode(Box::new(node)), wall_clock());
        let nonce = Digest::of(format!("{} {}", self.node.name, self.decided).as_bytes());
        let mut proposal =
            propose(&self.mirror, change, "benchmark".into(), now, now.plus(LIFETIME_MS), nonce)?;
        let founded = self.founded;
        proposal.history = founded;
        let client = self.cluster.client()?;
        let cast = |file: &MemberKey| {
            vote(&file.signer, file.member.clone(), founded, &proposal, Choice::Approve, now)
        };
        let ballots: Vec<_> =
            self.cluster.members.iter().take(CIRCLE.0 as usize).map(cast).collect::<Result<_, _>>()?;
        let path = format!("/v1/proposals/{}/ballots", proposal.id());
        for (cast, ballot) in ballots.iter().enumerate() {
            // The first member proposes.
            let submitted = SubmitProposal { proposal: proposal.clone(), ballot: Some(ballot.clone()) };
            let _: ProposalView = match cast {
                0 => client.post("/v1/proposals", &submitted).await?,
                _ => client.post(&path, ballot).await?,
            };
        }
        let certificate = certify(&self.mirror, &proposal, &ballots)?;
        let approved = verify(&self.mirror, &certificate, wall_clock())?;
        self.mirror.advance(approved).context("the mirror follows")
    }
}

/// Starts the agent of the first node twice; returns the seconds until it had fetched and verified the
/// history, and until it was ready with all of it on its disk.
async fn agent_start(cluster: &ControlCluster, length: u64) -> Result<(f64, f64)> {
    let mut seconds = Vec::new();
    for _ in 0..2 {
        let metrics = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", metrics.local_addr()?);
        let (ready, numbers) = (format!("{address}/readyz"), format!("{address}/metrics"));
        let node = cluster.directory.join(node_name(0));
        let config = agent_config(&node, &cluster.genesis, cluster.context.circle, Some(metrics))?;
        let verified = format!("quorate_agent_governance_length {length}\n");
        let (began, shutdown) = (Instant::now(), CancellationToken::new());
        let task = tokio::spawn(run_agent(config, shutdown.clone()));
        let http = reqwest::Client::builder().no_proxy().build()?;
        loop {
            let is_ready = http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success());
            if is_ready && http.get(&numbers).send().await?.text().await?.contains(&verified) {
                break;
            }
            ensure!(began.elapsed() < AGENT_LIMIT && !task.is_finished(), "the agent is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seconds.push(began.elapsed().as_secs_f64());
        shutdown.cancel();
        task.await??;
    }
    Ok((seconds[0], seconds[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_longest_history_has_the_bar() {
        let mut report = BenchmarkReport::new("test");
        for size in SIZES {
            add_rows(&mut report, size, &[0.5, 1.5, 1.2], &[9.0, 9.0, 9.0]);
        }
        assert_eq!(report.rows.len(), 4);
        assert_eq!(report.shortfalls(), ["session_10000: 1.200, bar ratio <= 1.00"]);
    }
}
