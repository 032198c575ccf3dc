//! Benchmark of jobs: from a submission to the first line, short jobs a second, and the link of a gang.
//!
//! Ours are three replicas that flush each command, and three nodes that run every rank in a sandbox of its
//! own, from an artifact that each verified. The peer is Slurm on one node, with munge, and with its
//! scheduler's delays set to none. Both run the same program, and as many jobs at once. The link is measured
//! by a gang of two ranks, on one node and on two; its peer is `iperf3` on loopback, without encryption.

mod link;
mod ours;
mod slurm;
mod train;

use crate::Options;
use crate::report::{Bar, BenchmarkReport, ComparisonRow, quantile};
use anyhow::Result;
use ours::JobCluster;
use slurm::Slurm;

/// Submissions of which each is followed to its first line, in a whole run and in a quick one.
const FIRST_LINES: (usize, usize) = (40, 8);
/// Rounds of short jobs, and jobs of a round.
const ROUNDS: (usize, usize) = (5, 1);
const SHORT_JOBS: (usize, usize) = (200, 40);
/// Jobs that run at once, on both sides.
const AT_ONCE: u32 = 16;
/// Rounds of the link.
const LINK_ROUNDS: (usize, usize) = (5, 1);

/// Runs the benchmark.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pick = |(whole, quick): (usize, usize)| if options.quick { quick } else { whole };
    let mut report = BenchmarkReport::new("jobs");
    runtime.block_on(async {
        let mut cluster = JobCluster::start().await?;
        let mut slurm = Slurm::start()?;
        report.notes.push(format!("{}; jobs at once on both sides: {AT_ONCE}", slurm.version()));
        first_lines(&cluster, &slurm, pick(FIRST_LINES), &mut report).await?;
        short_jobs(&cluster, &slurm, pick(ROUNDS), pick(SHORT_JOBS), &mut report).await?;
        slurm.stop();
        link::measure(&cluster, pick(LINK_ROUNDS), &mut report).await?;
        // The last, since a node dies.
        train::measure(&mut cluster, &mut report).await
    })?;
    report.notes.push(
        "ours: 3 replicas that flush each command, 3 nodes, TLS and signed orders, a sandbox for each rank; \
         Slurm: 1 controller, 1 node, munge, no sandbox"
            .into(),
    );
    Ok(report)
}

/// Runs a process of the benchmark.
pub(crate) fn part(description: &str) -> Result<()> {
    link::rank(description)
}

/// Measures from the submission of one job to its first line, alternated.
async fn first_lines(
    cluster: &JobCluster,
    slurm: &Slurm,
    count: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let (mut ours, mut batch, mut interactive) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count + 1 {
        let times = [cluster.first_line().await?, slurm.batch_first_line()?, slurm.run_first_line()?];
        // The first of each fetches and unpacks the artifact, or starts a daemon's threads.
        if number > 0 {
            for (all, seconds) in [&mut ours, &mut batch, &mut interactive].into_iter().zip(times) {
                all.push(seconds * 1e3);
            }
        }
    }
    for (peer, theirs) in [("Slurm, sbatch", &batch), ("Slurm, srun", &interactive)] {
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
    slurm: &Slurm,
    rounds: usize,
    count: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    let (mut ours, mut array, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let rate = |seconds: f64| count as f64 / seconds;
        ours.push(rate(cluster.short_jobs(count).await?));
        array.push(rate(slurm.array(count)?));
        single.push(rate(slurm.loop_of_jobs(count)?));
        eprintln!("round {round}/{rounds}: {:.1}/s beside {:.1} and {:.1}", ours[0], array[0], single[0]);
    }
    let bar = Some(Bar::AtLeast(2.0));
    report.rows.extend([
        ComparisonRow::new("short_jobs", "1/s", "Slurm, an sbatch each", &ours, &single, bar),
        ComparisonRow::new("short_jobs", "1/s", "Slurm, one array", &ours, &array, bar),
    ]);
    Ok(())
}
