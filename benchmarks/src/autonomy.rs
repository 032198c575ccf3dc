//! Benchmark of a cluster without its control plane: requests through the gateway while every control replica
//! is dead, and a node that is cut off from all of them.
//!
//! It uses real processes: three replicas, three nodes with real sandboxes, and a gateway. Every replica gets
//! SIGKILL in the middle of requests; afterwards they return, also under load, and every slot must be where
//! it was, under the same order. Then a node with a slot is cut off. The slot must run elsewhere, and the
//! node must give way when it returns.

mod relay;

use crate::Options;
use crate::cluster::load::{CLIENTS, LoadTarget, Minute};
use crate::cluster::nodes::{NodeProcess, prepare_gateway, prepare_worker};
use crate::cluster::services::{TinyService, is_ready};
use crate::cluster::workers::{lives, workers_of};
use crate::cluster::{ControlCluster, NODE, REPLICAS, fresh_directory};
use crate::process::free_ports;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, ensure};
use host::random::random_bytes;
use protocol::Fence;
use protocol::api::{SlotView, Status};
use relay::Relay;
use std::time::{Duration, Instant};

/// Minutes without control, and with it, in a whole run and in a quick one.
const MINUTES: (usize, usize) = (10, 1);
/// Times that a node is cut off.
const PARTITIONS: (usize, usize) = (5, 2);
/// Longest time in seconds until the slot of a node that was cut off runs elsewhere.
const BAR_SECONDS: f64 = 4.0;
/// Name of the service.
const SERVICE: &str = "autonomous";
/// Region of all nodes that run it.
const REGION: &str = "local";
/// Nodes with sandboxes, and the stores of each.
const NODES: [&str; 3] = [NODE, "node-2", "node-3"];
const STORES: [&str; 2] = ["disk-0", "disk-1"];
/// Slots of the service.
const SLOTS: usize = 2;
/// Threshold and number of members.
const CIRCLE: (u32, u32) = (2, 3);
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(120);
/// Time that a node is cut off after its slot runs elsewhere.
const CUT_OFF: Duration = Duration::from_secs(5);

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pick = |(whole, quick): (usize, usize)| if options.quick { quick } else { whole };
    runtime.block_on(measure(pick(MINUTES), pick(PARTITIONS)))
}

/// The cluster of the benchmark.
struct AutonomousCluster {
    control: ControlCluster,
    relay: Relay,
    nodes: Vec<NodeProcess>,
    gateway: String,
    _gateway: NodeProcess,
}

async fn measure(minutes: usize, partitions: usize) -> Result<BenchmarkReport> {
    let mut cluster = AutonomousCluster::start().await?;
    let service = TinyService { name: SERVICE, region: REGION, replicas: SLOTS, cpu_millicores: 400 };
    cluster.control.deploy(&service, CIRCLE.0 as usize).await?;
    let target = LoadTarget::new(&cluster.control, &cluster.gateway, SERVICE)?;
    target.wait_for_answer(LIMIT).await?;
    let before = cluster.placement().await?;
    let with = target.load("with control", minutes, || ()).await;
    // The replicas die, and return, in the middle of requests.
    let without = target.load("without control", minutes, || cluster.control.kill_all()).await;
    let (asking, began) = (target.start(), Instant::now());
    cluster.control.restart_dead().await?;
    cluster.wait_until_healthy().await?;
    let (returned, answers) = (began.elapsed().as_secs_f64(), asking.stop().await);
    ensure!(cluster.placement().await? == before, "no slot moved or was ordered again");
    let mut report = BenchmarkReport::new("autonomy");
    add_outage(&mut report, &without, &with, returned);
    report.rows.push(answered_row("answered_at_the_return", &[answers]));
    let mut rounds = Vec::new();
    for round in 1..=partitions {
        let times = cluster.partition(&target).await?;
        let PartitionTimes { elsewhere, gave_way, .. } = times;
        eprintln!("partition {round}/{partitions}: elsewhere {elsewhere:.2} s, gave way {gave_way:.2} s");
        rounds.push(times);
    }
    add_partitions(&mut report, &rounds);
    report.notes.push(
        "real processes: 3 replicas, 3 nodes with real sandboxes (2 slots), a gateway; a partition is a \
         relay before the replicas that passes no byte of one node's"
            .into(),
    );
    Ok(report)
}

fn add_outage(report: &mut BenchmarkReport, without: &[Minute], with: &[Minute], returned_seconds: f64) {
    let each = |minutes: &[Minute], pick: fn(&Minute) -> f64| minutes.iter().map(pick).collect::<Vec<f64>>();
    let row = |metric: &str, unit: &str, pick: fn(&Minute) -> f64| {
        let (ours, theirs) = (each(without, pick), each(with, pick));
        ComparisonRow::new(metric, unit, "the same with control", &ours, &theirs, None)
    };
    report.rows.extend([
        row("answers_per_minute", "1", |minute| minute.latencies.len() as f64),
        row("latency_p50", "ms", |minute| minute.quantile(0.5)),
        row("latency_p99", "ms", |minute| minute.quantile(0.99)),
    ]);
    report.rows.push(answered_row("answered_without_control", without));
    let sum = |minutes: &[Minute]| {
        let (asked, failed) = Minute::sum(minutes);
        format!("{asked} requests, {failed} failed")
    };
    report.notes.extend([
        format!("{} min without control: {}; with control: {}", without.len(), sum(without), sum(with)),
        format!("every replica and node was well again after {returned_seconds:.1} s; no slot moved"),
        format!("{CLIENTS} clients, one request after another, 8 tokens each"),
    ]);
}

/// Returns the row with the bar of no failed request: one share over all minutes, so that no median hides a
/// failure.
fn answered_row(metric: &str, minutes: &[Minute]) -> ComparisonRow {
    let (asked, failed) = Minute::sum(minutes);
    let answered = 100.0 * (asked - failed) as f64 / asked.max(1) as f64;
    ComparisonRow::new(metric, "%", "the bar, 100 %", &[answered], &[100.0], Some(Bar::AtLeast(1.0)))
}

/// Times of one partition in seconds.
struct PartitionTimes {
    /// From the cut until the slot is ready on another node.
    elsewhere: f64,
    /// From the return of the node to the end of its sandbox.
    gave_way: f64,
    answers: Minute,
}

fn add_partitions(report: &mut BenchmarkReport, rounds: &[PartitionTimes]) {
    let column = |pick: fn(&PartitionTimes) -> f64| rounds.iter().map(pick).collect::<Vec<f64>>();
    let (elsewhere, gave_way) = (column(|times| times.elsewhere), column(|times| times.gave_way));
    // The bar is for each partition: the longest counts.
    let longest = elsewhere.iter().copied().fold(0.0, f64::max);
    let bar = format!("the bar, {BAR_SECONDS} s");
    let at_most = Some(Bar::AtMost(1.0));
    report.rows.extend([
        ComparisonRow::new("slot_elsewhere", "s", &bar, &elsewhere, &vec![BAR_SECONDS; rounds.len()], None),
        ComparisonRow::new("slot_elsewhere_longest", "s", &bar, &[longest], &[BAR_SECONDS], at_most),
    ]);
    let text: Vec<String> = gave_way.iter().map(|seconds| format!("{seconds:.1}")).collect();
    report.notes.push(format!("the nodes gave way {} s after their return", text.join(", ")));
    let answers: Vec<Minute> = rounds.iter().map(|times| times.answers.clone()).collect();
    report.rows.push(answered_row("answered_in_partitions", &answers));
}

impl AutonomousCluster {
    async fn start() -> Result<Self> {
        let directory = fresh_directory("autonomy")?;
        let replicas = free_ports(REPLICAS)?;
        let relay = Relay::open(&replicas).await?;
        let (mut prepared, mut admissions) = (Vec::new(), Vec::new());
        for name in NODES {
            let (node, admission) = prepare_worker(&directory, name, REGION, &STORES)?;
            prepared.push(node);
            admissions.push(admission);
        }
        let (gateway, admission) = prepare_gateway(&directory, "gateway-1")?;
        admissions.push(admission);
        let control =
            ControlCluster::found_at(directory, CIRCLE, admissions, &relay.ports, &replicas).await?;
        let started = (0..).zip(prepared).map(|(number, node)| node.start(&control, number));
        let nodes: Vec<NodeProcess> = started.collect::<Result<_>>()?;
        let url = gateway.api.clone().context("a gateway has an API")?;
        let gateway = gateway.start(&control, NODES.len() as u32)?;
        let cluster = Self { control, relay, nodes, gateway: url, _gateway: gateway };
        cluster.wait_until_healthy().await?;
        cluster.control.import_tiny(4, 2, 2)?;
        Ok(cluster)
    }

    async fn wait_until_healthy(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let status: Option<Status> = self.control.client()?.get("/v1/status").await.ok();
            if status.as_ref().is_some_and(|status| status.healthy && status.nodes_alive == status.nodes) {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "the cluster is not well: {status:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Returns slot, node and fence of each slot.
    async fn placement(&self) -> Result<Vec<(u32, String, Fence)>> {
        let slots = self.control.slots(SERVICE).await?;
        let held =
            |slot: &SlotView| slot.node.as_ref().map(|node| (slot.slot.0, node.to_string(), slot.fence));
        Ok(slots.iter().filter_map(held).collect())
    }

    /// Cuts the node of a random slot off, waits until the slot runs elsewhere, and lets the node return.
    async fn partition(&self, target: &LoadTarget) -> Result<PartitionTimes> {
        self.wait_until_healthy().await?;
        let mut placed = self.placement().await?;
        ensure!(!placed.is_empty(), "a slot is placed");
        let [random] = random_bytes();
        let (slot, name, fence) = placed.swap_remove(usize::from(random) % placed.len());
        let node = self.nodes.iter().find(|node| node.name == name).context("a node of ours")?;
        let workers = workers_of(node.id())?;
        ensure!(!workers.is_empty(), "{name} runs a worker");
        let asking = target.start();
        let began = Instant::now();
        self.relay.cut(node.id());
        let moved = |slots: &[SlotView]| {
            let slot = slots.iter().find(|view| view.slot.0 == slot);
            slot.is_some_and(|view| {
                is_ready(view)
                    && view.fence > fence
                    && view.node.as_ref().is_some_and(|node| node.as_str() != name)
            })
        };
        self.until("the slot runs elsewhere", async || {
            Ok(self.control.slots(SERVICE).await.is_ok_and(|slots| moved(&slots)))
        })
        .await?;
        let elsewhere = began.elapsed().as_secs_f64();
        tokio::time::sleep(CUT_OFF).await;
        let left = workers.iter().filter(|worker| lives(**worker)).count();
        ensure!(left == workers.len(), "{name} keeps its slots while it is cut off");
        let began = Instant::now();
        self.relay.heal(node.id());
        self.until("the node gives way", async || Ok(workers.iter().any(|worker| !lives(*worker)))).await?;
        let gave_way = began.elapsed().as_secs_f64();
        Ok(PartitionTimes { elsewhere, gave_way, answers: asking.stop().await })
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !holds().await? {
            ensure!(began.elapsed() < LIMIT, "waiting: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(without: &[Minute]) -> BenchmarkReport {
        let mut report = BenchmarkReport::new("test");
        let whole = [Minute { latencies: vec![2.0, 4.0], failed: 0 }, Minute::default()];
        add_outage(&mut report, without, &whole[..without.len()], 1.0);
        report
    }

    /// A failure in one minute of two: the median of the minutes would hide it.
    #[test]
    fn a_failed_request_falls_short() {
        let good = || Minute { latencies: vec![2.0, 4.0], failed: 0 };
        assert!(report(&[good(), good()]).shortfalls().is_empty());
        let bad = Minute { latencies: vec![2.0; 999], failed: 1 };
        assert_eq!(report(&[good(), bad]).shortfalls().len(), 1);
    }

    #[test]
    fn the_longest_partition_counts() {
        let times = |elsewhere| PartitionTimes { elsewhere, gave_way: 1.0, answers: Minute::default() };
        let shortfalls = |rounds: &[PartitionTimes]| {
            let mut report = BenchmarkReport::new("test");
            add_partitions(&mut report, rounds);
            let short = report.shortfalls();
            short.into_iter().filter(|row| row.starts_with("slot_elsewhere")).collect::<Vec<_>>()
        };
        assert!(shortfalls(&[times(3.4), times(3.9), times(3.5)]).is_empty());
        let short = shortfalls(&[times(3.4), times(4.4), times(3.5)]);
        assert_eq!(short, ["slot_elsewhere_longest: 1.100, bar ratio <= 1.00"]);
    }
}
