//! Training as a gang of two ranks on two nodes, and a node that dies in the middle: the attempt after it
//! begins with the newest checkpoint, and its outputs are those of a run that nothing disturbed, byte for
//! byte.

use super::ours::{JobCluster, JobEnvelope};
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, ensure};
use protocol::api::AuditEvent;
use protocol::job_api::JobView;
use protocol::{JobId, Millis};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Steps of a run, and steps between two checkpoints.
const STEPS: u32 = 12;
const EVERY: u32 = 4;
/// Time limit of each wait.
const LIMIT: Duration = Duration::from_secs(300);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Line of a rank that continues, at its beginning.
const CONTINUES: &str = "continues after step ";

/// Trains twice, once with a node that dies, and compares the outputs.
pub(super) async fn measure(cluster: &mut JobCluster, report: &mut BenchmarkReport) -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("examples").join("train_tiny");
    ensure!(program.is_file(), "`{}` is missing; `cargo xtask bench` builds it", program.display());
    let one_thread = ["--env", "RAYON_NUM_THREADS=1", "--env", "CANDLE_NUM_THREADS=1"];
    cluster.build_artifact("train", &program.display().to_string(), &one_thread)?;
    let command = format!("['/usr/local/bin/train_tiny', 'gang', '{STEPS}', '{EVERY}']");
    let envelope = JobEnvelope {
        name: "train",
        artifact: "train",
        command: &command,
        ranks: 2,
        ranks_per_slot: 1,
        slots: 2,
        cpu_millicores: 900,
        memory: "512 MiB",
        more: "checkpoints = 2\nretries = 2\n",
    };
    cluster.approve(&envelope).await?;
    let (first, undisturbed) = outcome(cluster, None).await?;
    let (second, disturbed) = outcome(cluster, Some(1)).await?;
    ensure!(second.lost_nodes == 1 && second.attempts == 2, "one attempt lost its node: {second:?}");
    ensure!(undisturbed == disturbed, "the outputs differ: {:?} {:?}", undisturbed.keys(), disturbed.keys());
    let resumed = cluster.lines(second.id).await?;
    let continued = resumed.iter().find(|line| line.attempt == 2 && line.text.starts_with(CONTINUES));
    let continued = continued.with_context(|| format!("attempt 2 continues: {resumed:?}"))?;
    let bytes: usize = undisturbed.values().map(Vec::len).sum();
    report.notes.push(format!(
        "a gang of 2 ranks trained {STEPS} steps on 2 nodes; the node of rank 1 was killed; attempt 2 {}; \
         its {} files of outputs ({bytes} bytes) are those of the undisturbed run",
        continued.text,
        undisturbed.len(),
    ));
    report.notes.push(timeline(cluster, &second).await?);
    let seconds = |job: &JobView| job.since.0.saturating_sub(job.submitted_at.0) as f64 / 1e3;
    let (ours, theirs) = ([seconds(&second)], [seconds(&first)]);
    let peer = "the same without a death";
    report.rows.push(ComparisonRow::new("train_with_a_lost_node", "s", peer, &ours, &theirs, None));
    let equal = Some(Bar::AtLeast(1.0));
    report.rows.push(ComparisonRow::new("same_bytes", "%", "the bar, 100 %", &[100.0], &[100.0], equal));
    Ok(())
}

/// Returns what happened to a job, with the seconds since its submission.
async fn timeline(cluster: &JobCluster, job: &JobView) -> Result<String> {
    let since = |at: Millis| at.0.saturating_sub(job.submitted_at.0) as f64 / 1e3;
    let line = |event: &AuditEvent| format!("{:.1} s {} {}", since(event.at), event.action, event.detail);
    let events: Vec<String> = cluster.events(job.id).await?.iter().map(line).collect();
    Ok(format!("the run with a lost node: {}", events.join("; ")))
}

/// Files of outputs by their paths.
type OutputFiles = BTreeMap<String, Vec<u8>>;

/// Runs the job to its end; the node of this rank is killed after the first checkpoint. Returns the job and
/// its outputs.
async fn outcome(cluster: &mut JobCluster, victim: Option<u32>) -> Result<(JobView, OutputFiles)> {
    let id = cluster.submit("train", BTreeMap::new()).await?;
    if let Some(rank) = victim {
        wait_for_checkpoint(cluster, id).await?;
        let job = cluster.job(id).await?;
        let slot = job.slots.iter().find(|slot| slot.ranks.first == rank);
        let node = slot.with_context(|| format!("rank {rank} has a node: {job:?}"))?.node.clone();
        cluster.kill_node(&node)?;
    }
    cluster.ended(&[id].into()).await?;
    let place = cluster.control.directory.join(format!("outputs-{}", id.short()));
    let path = place.display().to_string();
    cluster.control.quorate(&["job", "outputs", &id.to_string(), "--to", &path])?;
    let mut files = OutputFiles::new();
    collect(&place, &place, &mut files)?;
    ensure!(files.contains_key("model.safetensors"), "a model is among the outputs: {:?}", files.keys());
    Ok((cluster.job(id).await?, files))
}

/// Waits until a checkpoint of the job is registered.
async fn wait_for_checkpoint(cluster: &JobCluster, id: JobId) -> Result<()> {
    let began = Instant::now();
    loop {
        let listed = cluster.control.quorate(&["job", "checkpoints", &id.to_string(), "--output", "json"])?;
        if listed.contains("checkpoint") {
            return Ok(());
        }
        ensure!(began.elapsed() < LIMIT, "no checkpoint of the job is registered");
        tokio::time::sleep(LOOK).await;
    }
}

fn collect(root: &Path, directory: &Path, files: &mut OutputFiles) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            files.insert(path.strip_prefix(root)?.display().to_string(), fs::read(&path)?);
        }
    }
    Ok(())
}
