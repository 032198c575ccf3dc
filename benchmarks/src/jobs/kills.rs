//! Kills in every state of a job, on real processes: an agent, an init, the leader or a whole node dies, and
//! each job must succeed once, by a gang that started whole.

use super::absence::{BEGINS, RESULT, approve_gang};
use super::ours::JobCluster;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::JobId;
use protocol::job_api::{JobLogLine, JobView};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kills, in a whole run and in a quick one.
pub(super) const KILLS: (usize, usize) = (30, 4);
/// Questions of a gang, one a second.
const QUESTIONS: usize = 4;
/// Limit of each wait.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause between two looks at a job.
const LOOK: Duration = Duration::from_millis(20);

/// Party that dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Agent,
    Init,
    Leader,
    Node,
}

const VICTIMS: [Victim; 4] = [Victim::Agent, Victim::Init, Victim::Leader, Victim::Node];
/// States in which a job is hit: as the API names them, and how long it has been in them.
const MOMENTS: [(&str, Duration); 5] = [
    ("queued", Duration::ZERO),
    ("starting", Duration::ZERO),
    ("running", Duration::ZERO),
    ("running", Duration::from_millis(1_500)),
    ("running", Duration::from_millis(3_900)),
];

/// Runs a gang for each kill, and checks how it ended.
pub(super) async fn measure(
    cluster: &mut JobCluster,
    kills: usize,
    report: &mut BenchmarkReport,
) -> Result<()> {
    approve_gang(cluster, "kills", QUESTIONS, "retries = 9\ngrace_seconds = 1\n").await?;
    let (mut sound, mut attempts) = (0, 0);
    for number in 0..kills {
        let victim = VICTIMS[number % VICTIMS.len()];
        let moment = MOMENTS[number / VICTIMS.len() % MOMENTS.len()];
        let id = cluster.submit("kills", BTreeMap::new()).await?;
        strike(cluster, id, victim, moment).await?;
        let job = succeed(cluster, id).await?;
        check(&job, &cluster.lines(id).await?)?;
        eprintln!("kill {}/{kills}: {victim:?} while {}, attempt {}", number + 1, moment.0, job.attempts);
        sound += 1;
        attempts += job.attempts;
        cluster.wait_until_healthy().await?;
    }
    let share = 100.0 * f64::from(sound) / kills as f64;
    let equal = Some(Bar::AtLeast(1.0));
    report.rows.push(ComparisonRow::new("jobs_ended_once", "%", "the bar, 100 %", &[share], &[100.0], equal));
    report.notes.push(format!(
        "{kills} real kills (SIGKILL of an agent, an init, the leader or a node) while a gang of 2 ranks was \
         queued, starting or running: each job succeeded once, in {attempts} attempts"
    ));
    Ok(())
}

/// Waits until the job is in a state, and kills the victim.
async fn strike(
    cluster: &mut JobCluster,
    id: JobId,
    victim: Victim,
    (state, since): (&str, Duration),
) -> Result<()> {
    let began = Instant::now();
    while cluster.job(id).await?.state != state {
        if began.elapsed() > LIMIT {
            bail!("the job is never {state}: {:?}", cluster.job(id).await?);
        }
        // A state that has passed already is as good: a job is queued for a moment alone.
        if began.elapsed() > Duration::from_millis(300) && state == "queued" {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(since).await;
    let holder = cluster.job(id).await?.slots.first().map(|slot| slot.node.clone());
    let node = holder.unwrap_or_else(|| crate::cluster::NODE.to_string());
    match victim {
        Victim::Agent => cluster.kill_agent(&node)?,
        Victim::Init => cluster.kill_init(&node)?,
        Victim::Node => cluster.kill_node(&node)?,
        Victim::Leader => cluster.control.kill_leader().await?,
    }
    cluster.restart_dead().await
}

/// Waits until the job has succeeded.
async fn succeed(cluster: &JobCluster, id: JobId) -> Result<JobView> {
    let began = Instant::now();
    loop {
        // No replica may lead for a moment.
        if let Ok(job) = cluster.job(id).await {
            ensure!(job.state != "failed" && job.state != "cancelled", "the job did not outlive it: {job:?}");
            if job.state == "succeeded" {
                return Ok(job);
            }
            ensure!(began.elapsed() < LIMIT, "the job is stuck: {job:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Checks that rank 1 began once in each attempt that control has lines of, and reported its result once, in
/// the last.
fn check(job: &JobView, lines: &[JobLogLine]) -> Result<()> {
    let mut begins: BTreeMap<u32, usize> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.text == BEGINS) {
        *begins.entry(line.attempt).or_default() += 1;
    }
    ensure!(begins.values().all(|count| *count == 1), "a rank ran twice: {lines:?}");
    let results: Vec<u32> =
        lines.iter().filter(|line| line.text.starts_with(RESULT)).map(|line| line.attempt).collect();
    let last = results.last().with_context(|| format!("no result: {lines:?}"))?;
    ensure!(results.len() == 1 && *last == job.attempts, "results of attempts {results:?}: {job:?}");
    Ok(())
}
