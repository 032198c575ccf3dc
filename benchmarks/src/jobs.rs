//! Benchmark of jobs: from a submission to the first line, short jobs a second, the link of a gang, and usage
//! that is billed again.
//!
//! Ours are three replicas that flush each command, and three nodes that run every rank in a sandbox of its
//! own, from an artifact that each verified. The peers are Slurm on one node, with munge, and with its
//! scheduler's delays set to none, and Ray on one node. All run the same program, and as many jobs at once.
//! The link is measured by a gang of two ranks, on one node and on two; its peer is `iperf3` on loopback,
//! without encryption.

mod absence;
mod hostile;
mod image;
mod jax;
mod kills;
mod link;
mod load;
mod ours;
mod plan;
mod ray;
mod slurm;
mod train;
mod usage;

use crate::Options;
use crate::report::{Bar, BenchmarkReport, ComparisonRow, quantile};
use anyhow::{Result, bail};
use load::AT_ONCE;
use ours::JobCluster;
use ray::Ray;
use slurm::Slurm;

/// Parts of the benchmark, in the order in which they run; `--only` chooses one.
pub(crate) const SECTIONS: [&str; 9] =
    ["plan", "usage", "hostile", "queue", "link", "artifacts", "absence", "kills", "train"];

/// Submissions of which each is followed to its first line, in a whole run and in a quick one.
const FIRST_LINES: (usize, usize) = (40, 8);
/// Rounds of short jobs, and jobs of a round.
const ROUNDS: (usize, usize) = (5, 1);
const SHORT_JOBS: (usize, usize) = (200, 40);
/// Rounds of images.
const IMAGE_ROUNDS: (usize, usize) = (3, 1);
/// Rounds of the link.
const LINK_ROUNDS: (usize, usize) = (5, 1);

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pick = |(whole, quick): (usize, usize)| if options.quick { quick } else { whole };
    let is_asked = |section: &str| options.only.as_deref().is_none_or(|only| only == section);
    let mut report = BenchmarkReport::new("jobs");
    if is_asked("plan") {
        plan::measure(&mut report)?;
    }
    if is_asked("usage") {
        let (whole, quick) = usage::ENTRIES;
        usage::measure(if options.quick { quick } else { whole }, &mut report)?;
    }
    if is_asked("hostile") {
        runtime.block_on(hostile::measure(pick(hostile::ROUNDS), &mut report))?;
    }
    if options.only.as_deref().is_some_and(|only| ["plan", "usage", "hostile"].contains(&only)) {
        return Ok(report);
    }
    runtime.block_on(async {
        let mut cluster = JobCluster::start_counting().await?;
        if is_asked("queue") {
            beside_peers(&cluster, &pick, &mut report).await?;
        }
        if is_asked("link") {
            link::measure(&cluster, pick(LINK_ROUNDS), &mut report).await?;
        }
        if is_asked("artifacts") {
            jax::measure(&cluster, &mut report).await?;
            image::measure(&cluster, pick(IMAGE_ROUNDS), &mut report).await?;
        }
        if is_asked("absence") {
            absence::measure(&mut cluster, pick(absence::MINUTES), &mut report).await?;
        }
        if is_asked("kills") {
            kills::measure(&mut cluster, pick(kills::KILLS), &mut report).await?;
        }
        // The last, since a node dies and stays dead.
        if is_asked("train") {
            train::measure(&mut cluster, &mut report).await?;
        }
        anyhow::Ok(())
    })?;
    report.notes.push(
        "ours: 3 replicas that flush each command, 3 nodes, TLS and signed orders, a sandbox for each rank; \
         Slurm: 1 controller, 1 node, munge, no sandbox"
            .into(),
    );
    Ok(report)
}

/// Other queues of jobs, running.
struct PeerQueues {
    slurm: Slurm,
    ray: Ray,
}

/// Measures the queue beside its peers.
async fn beside_peers(
    cluster: &JobCluster,
    pick: &impl Fn((usize, usize)) -> usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let mut peers = PeerQueues { slurm: Slurm::start()?, ray: Ray::start()? };
    let versions = format!("{}; {}", peers.slurm.version(), peers.ray.version);
    report.notes.push(format!("{versions}; jobs at once on each side: {AT_ONCE}"));
    first_lines(cluster, &mut peers, pick(FIRST_LINES), report).await?;
    short_jobs(cluster, &mut peers, pick(ROUNDS), pick(SHORT_JOBS), report).await?;
    peers.slurm.stop();
    Ok(())
}

/// Runs a process of the benchmark.
pub(crate) fn part(description: &str) -> Result<()> {
    match description {
        link::PART => link::rank(),
        absence::PART => absence::rank(),
        hostile::PART => hostile::rank(),
        _ => bail!("`jobs` has no part `{description}`"),
    }
}

/// Measures from the submission of one job to its first line, alternated.
async fn first_lines(
    cluster: &JobCluster,
    PeerQueues { slurm, ray }: &mut PeerQueues,
    count: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), [const { Vec::new() }; 3]);
    for number in 0..count + 1 {
        let own = cluster.first_line().await?;
        let times = [slurm.batch_first_line()?, slurm.run_first_line()?, ray.first_line()?];
        // The first of each fetches and unpacks the artifact, or starts a daemon's threads.
        if number > 0 {
            ours.push(own * 1e3);
            theirs.iter_mut().zip(times).for_each(|(all, seconds)| all.push(seconds * 1e3));
        }
    }
    for (peer, theirs) in ["Slurm, sbatch", "Slurm, srun", "Ray, a job"].into_iter().zip(&theirs) {
        let at_most = Some(Bar::AtMost(1.0));
        let (half, most) =
            ([quantile(&ours, 0.5), quantile(theirs, 0.5)], [quantile(&ours, 0.9), quantile(theirs, 0.9)]);
        report.rows.extend([
            ComparisonRow::new("first_line_p50", "ms", peer, &half[..1], &half[1..], at_most),
            ComparisonRow::new("first_line_p90", "ms", peer, &most[..1], &most[1..], None),
        ]);
    }
    Ok(())
}

/// Measures rounds of short jobs, from the first submission to the last end, alternated.
async fn short_jobs(
    cluster: &JobCluster,
    PeerQueues { slurm, ray }: &mut PeerQueues,
    rounds: usize,
    count: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let (mut ours, mut array, mut single, mut tasks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let rate = |seconds: f64| count as f64 / seconds;
        ours.push(rate(cluster.short_jobs(count).await?));
        array.push(rate(slurm.array(count)?));
        single.push(rate(slurm.loop_of_jobs(count)?));
        tasks.push(rate(ray.tasks(count)?));
        eprintln!("round {round}/{rounds}: {:.1}/s beside {:.1} and {:.1}", ours[0], array[0], single[0]);
    }
    let bar = Some(Bar::AtLeast(2.0));
    report.rows.extend([
        ComparisonRow::new("short_jobs", "1/s", "Slurm, an sbatch each", &ours, &single, bar),
        ComparisonRow::new("short_jobs", "1/s", "Slurm, one array", &ours, &array, bar),
        // A task is a call in a process that runs already: no submission, no log, nothing on disk.
        ComparisonRow::new("short_jobs", "1/s", "Ray, remote tasks", &ours, &tasks, None),
    ]);
    Ok(())
}
