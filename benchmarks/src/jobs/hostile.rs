//! A service beside hostile ranks on its node: a fork bomb, a filler of disks, a flood of lines, and a rank
//! that takes all memory, each against the same service alone.

use super::ours::{JobCluster, JobEnvelope, REGION};
use crate::cluster::load::{LoadTarget, Minute};
use crate::cluster::services::TinyService;
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::JobId;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Write as _, stdout};
use std::process::Command;
use std::time::{Duration, Instant};

/// Description of the ranks' process, and the variable with the attack.
pub(super) const PART: &str = "attack";
const ATTACK: &str = "ATTACK";
/// Attacks of a rank.
const ATTACKS: [&str; 4] = ["fork", "disk", "lines", "memory"];
/// Rounds of each, in a whole run and in a quick one, and seconds of a round.
pub(super) const ROUNDS: (usize, usize) = (5, 1);
const SECONDS: u64 = 10;
/// Most times that the p99 beside an attack is that of the service alone.
const BAR: f64 = 1.5;
/// Name and CPU of the service, and CPU of the rank: the rest of two cores is for control and the client.
const SERVICE: &str = "beside";
const SERVICE_MILLICORES: u32 = 600;
const RANK_MILLICORES: u32 = 300;
/// Clients, and the pause of each after an answer: the service is busy for a part of the time.
const CLIENTS: usize = 2;
const PAUSE: Duration = Duration::from_millis(20);
/// Pause before a job that was ended is submitted again.
const RESUBMITTED: Duration = Duration::from_secs(2);
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a write.
const CHUNK: usize = 1024 * 1024;

/// Measures the service alone and beside each attack, alternated.
pub(super) async fn measure(rounds: usize, report: &mut BenchmarkReport) -> Result<()> {
    let cluster = JobCluster::start("hostile", true).await?;
    cluster.control.import_tiny(4, 2, 2)?;
    let service =
        TinyService { name: SERVICE, region: REGION, replicas: 1, cpu_millicores: SERVICE_MILLICORES };
    cluster.control.deploy(&service, 2).await?;
    let gateway = cluster.gateway.as_deref().context("the cluster has a gateway")?;
    let target = LoadTarget::new(&cluster.control, gateway, SERVICE)?.paced(CLIENTS, PAUSE);
    target.wait_for_answer(LIMIT).await?;
    for attack in ATTACKS {
        approve(&cluster, attack).await?;
        let (mut beside, mut alone, mut failed, mut jobs) = (Vec::new(), Vec::new(), 0, 0);
        for round in 1..=rounds {
            let quiet = window(&target).await;
            let (attacked, submitted) = attacked(&cluster, &target, attack).await?;
            eprintln!(
                "{attack} {round}/{rounds}: p99 {:.1} ms beside {:.1}",
                attacked.quantile(0.99),
                quiet.quantile(0.99)
            );
            (failed, jobs) = (failed + quiet.failed + attacked.failed, jobs + submitted);
            alone.push(quiet.quantile(0.99));
            beside.push(attacked.quantile(0.99));
        }
        ensure!(failed == 0, "{failed} requests failed beside `{attack}`");
        let metric = format!("service_p99_beside_{attack}");
        let bar = Some(Bar::AtMost(BAR));
        report.rows.push(ComparisonRow::new(&metric, "ms", "the service alone", &beside, &alone, bar));
        report.notes.push(format!(
            "{attack}: {jobs} hostile jobs in {rounds} rounds of {SECONDS} s; no request failed"
        ));
    }
    Ok(())
}

/// Lets the members approve an attack.
async fn approve(cluster: &JobCluster, attack: &str) -> Result<()> {
    let program = std::env::current_exe()?.display().to_string();
    cluster.build_artifact(attack, &program, &["--env", &format!("{ATTACK}={attack}")])?;
    let command = format!("['/usr/local/bin/benchmarks', 'jobs', '--part', '{PART}']");
    let envelope = JobEnvelope {
        name: attack,
        artifact: attack,
        command: &command,
        ranks: 1,
        ranks_per_slot: 1,
        slots: 1,
        cpu_millicores: RANK_MILLICORES,
        memory: "128 MiB",
        more: "",
    };
    cluster.approve(&envelope).await
}

/// Returns the answers of a window without an attack.
async fn window(target: &LoadTarget) -> Minute {
    let asking = target.start();
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    asking.stop().await
}

/// Returns the answers of a window in which the rank attacks, again whenever it was ended, and the number of
/// jobs.
async fn attacked(cluster: &JobCluster, target: &LoadTarget, attack: &str) -> Result<(Minute, usize)> {
    let mut id = running(cluster, attack).await?;
    let (asking, began, mut jobs) = (target.start(), Instant::now(), 1);
    while began.elapsed() < Duration::from_secs(SECONDS) {
        tokio::time::sleep(RESUBMITTED).await;
        if cluster.job(id).await?.has_ended() {
            id = running(cluster, attack).await?;
            jobs += 1;
        }
    }
    let answers = asking.stop().await;
    cluster.cancel(id).await?;
    let began = Instant::now();
    while !cluster.job(id).await?.slots.is_empty() {
        ensure!(began.elapsed() < LIMIT, "`{attack}` holds its slot");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((answers, jobs))
}

/// Submits an attack, and waits until it runs or was ended.
async fn running(cluster: &JobCluster, attack: &str) -> Result<JobId> {
    let (id, began) = (cluster.submit(attack, BTreeMap::new()).await?, Instant::now());
    loop {
        let job = cluster.job(id).await?;
        if job.state == "running" || job.has_ended() {
            return Ok(id);
        }
        ensure!(began.elapsed() < LIMIT, "`{attack}` does not run: {job:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Attacks without an end.
pub(super) fn rank() -> Result<()> {
    match std::env::var(ATTACK).context("a rank knows its attack")?.as_str() {
        "fork" => fork_without_end(),
        "disk" => fill_without_end(),
        "lines" => print_without_end(),
        "memory" => take_without_end(),
        other => bail!("`{other}` is no attack"),
    }
}

/// Starts itself again and again, also while no process can be started; so does each child.
fn fork_without_end() -> Result<()> {
    let mut children = Vec::new();
    loop {
        children.extend(Command::new("/proc/self/exe").args(["jobs", "--part", PART]).spawn());
    }
}

/// Fills the scratch directory, removes it, and begins again.
fn fill_without_end() -> Result<()> {
    let chunk = vec![7; CHUNK];
    loop {
        let mut file = File::create("/scratch/filler")?;
        while file.write_all(&chunk).is_ok() {}
        fs::remove_file("/scratch/filler")?;
    }
}

/// Prints as fast as the pipe takes it.
fn print_without_end() -> Result<()> {
    let lines = [&[b'x'; 63][..], b"\n"].concat().repeat(CHUNK / 64);
    let mut out = stdout().lock();
    loop {
        out.write_all(&lines)?;
    }
}

/// Takes memory until there is none.
fn take_without_end() -> Result<()> {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; CHUNK]);
        std::hint::black_box(&taken);
    }
}
