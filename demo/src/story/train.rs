//! Step: two ranks train a model on two nodes, and the node of the second is killed. The next attempt resumes
//! from the newest checkpoint and leaves the bytes of a run that nothing disturbed. Members then vote its
//! outputs in as a model, and it answers.

use super::deploy::{approve_job, serve, sign};
use super::service::{scale, wait_until_alive};
use super::{Demonstration, POLL_INTERVAL};
use crate::openai::OpenAi;
use crate::processes::{PausedSupervisor, kill_node};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::JobId;
use protocol::api::Page;
use protocol::job_api::{JobView, SubmittedJob};
use protocol::job_data::{JobDataKind, JobDataView};
use protocol::usage::UsageEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the artifact and of the job.
const NAME: &str = "teach";
/// Device by which agents make the networks of gangs.
const TUN: &str = "/dev/net/tun";
/// Name of the trained model and of its service.
const TAUGHT: &str = "taught";
/// Steps of a run, a parameter of the submission; most runs of which each doubles them; and steps between two
/// checkpoints.
const STEPS: u32 = 6;
const STEPS_DOUBLED_MAX: u32 = 6;
const EVERY: u32 = 2;
/// Tokens of the answer: a model of so few steps ends its answers at once, or never.
const ANSWER_TOKENS: u32 = 8;
/// Prices that members vote, of a core, of a GiB of memory and of a stored GiB for an hour, in millionths of
/// a unit.
const CORE_HOUR: u128 = 40_000;
const GIB_HOUR: u128 = 5_000;
const STORED_GIB_HOUR: u128 = 300_000;
/// The same as words of the command.
const PRICES: [&str; 6] = ["--cpu-hour", "0.04", "--memory-gib-hour", "0.005", "--storage-gib-hour", "0.3"];
/// Timeout of every wait, on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Files of outputs by their paths.
type FilesByPath = BTreeMap<PathBuf, Vec<u8>>;

/// Trains twice, once through the death of a node, and serves the outcome.
pub(super) async fn train_through_a_death(demonstration: &Demonstration, api: &OpenAi) -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open(TUN) {
        let reason = format!("this account cannot open {TUN} ({error}), and ranks on two nodes need it");
        demonstration.say(format!("not shown: a gang that trains on two nodes, since {reason}"));
        return Ok(());
    }
    let quorate = &demonstration.quorate;
    if quorate.run(&["artifact", "show", NAME]).await?.status.success() {
        demonstration.say(format!("job {NAME} was approved in an earlier run; its certificate still holds"));
        // More replicas than one would hold the room of the ranks.
        if quorate.run(&["service", "show", TAUGHT]).await?.status.success() {
            scale(demonstration, TAUGHT, 1).await?;
        }
    } else {
        approve(demonstration).await?;
    }
    let (steps, hurt, disturbed) = run_through_a_death(demonstration).await?;
    ensure!(hurt.attempts > 1, "the death ended an attempt: {hurt:?}");
    let (calm, undisturbed) = run(demonstration, steps, false).await?;
    ensure!(
        undisturbed == disturbed,
        "the outputs of {} and {} differ: {:?} {:?}",
        calm.id,
        hurt.id,
        undisturbed.keys(),
        disturbed.keys()
    );
    let bytes: usize = disturbed.values().map(Vec::len).sum();
    demonstration.say(format!(
        "attempt {} resumed from a checkpoint and left {} files, {bytes} bytes: those of the run that \
         nothing disturbed, byte for byte",
        hurt.attempts,
        disturbed.len()
    ));
    check_logs(demonstration, &hurt).await?;
    check_usage(demonstration, &hurt).await?;
    let outputs = outputs_of(demonstration, hurt.id);
    serve(demonstration, &[(TAUGHT, outputs.as_path(), 1)]).await?;
    let streamed = api.chat_of(TAUGHT, "What is two plus two?", ANSWER_TOKENS).await?;
    ensure!(streamed.pieces > 0, "the trained model answers nothing");
    demonstration.say(format!(
        "the trained model, of {steps} steps, answers: {:?} ({} pieces)",
        streamed.text, streamed.pieces
    ));
    Ok(())
}

/// Votes prices, imports the trainer, and lets members approve a job of it.
async fn approve(demonstration: &Demonstration) -> Result<()> {
    let quorate = &demonstration.quorate;
    let words = [&["circle", "propose-prices"][..], &PRICES, &["--reason", "the demonstration"]].concat();
    sign(demonstration, quorate.json(&words).await?).await?;
    let trainer = std::env::current_exe()?.with_file_name("examples").join("train_tiny");
    ensure!(trainer.is_file(), "`{}` is missing; `cargo xtask up` builds it", trainer.display());
    let trainer = trainer.display().to_string();
    let one_thread = ["--env", "RAYON_NUM_THREADS=1", "--env", "CANDLE_NUM_THREADS=1"];
    quorate
        .text(&[&["artifact", "build", "--binary", &trainer, "--name", NAME][..], &one_thread].concat())
        .await?;
    let command = format!(r#"["/usr/local/bin/train_tiny", "gang", "{{steps}}", "{EVERY}"]"#);
    // This trainer, two ranks on two nodes, and checkpoints.
    let edits = [
        (r#"["/usr/bin/python3", "train.py", "--steps={steps}"]"#, command.as_str()),
        ("ranks = 1 ", "ranks = 2 "),
        ("# slots = 1 ", "slots = 2 "),
        ("# retries = 0 ", "retries = 4 "),
        ("# checkpoints = 0 ", "checkpoints = 2 "),
        ("# any_token = true", "any_token = true"),
        ("cpu_millicores = 2000", "cpu_millicores = 200"),
        (r#"memory = "4 GiB""#, r#"memory = "512 MiB""#),
    ];
    approve_job(demonstration, NAME, &edits).await
}

/// Runs the job through the death of a node; returns its steps, the job and its outputs. A machine that
/// grants ranks more than they reserve may end it before the death: it then runs again, with twice the steps.
async fn run_through_a_death(demonstration: &Demonstration) -> Result<(u32, JobView, FilesByPath)> {
    for steps in (0..STEPS_DOUBLED_MAX).map(|doubled| STEPS << doubled) {
        let (job, files) = run(demonstration, steps, true).await?;
        if job.lost_nodes > 0 {
            return Ok((steps, job, files));
        }
        demonstration.say(format!("{steps} steps ended before the node did; once more, with twice as many"));
    }
    bail!("the job always ends before its node can be killed")
}

/// Runs the job to its end; a death is that of the node of rank 1, after the first checkpoint. Returns the
/// job and its outputs.
async fn run(demonstration: &Demonstration, steps: u32, with_death: bool) -> Result<(JobView, FilesByPath)> {
    let (quorate, began) = (&demonstration.quorate, Instant::now());
    let setting = format!("steps={steps}");
    let submitted: SubmittedJob = quorate.json(&["job", "submit", NAME, "--set", &setting]).await?;
    let id = submitted.id;
    if with_death {
        wait_for_checkpoint(demonstration, id).await?;
        kill_rank(demonstration, id, 1).await?;
    }
    quorate.text(&["job", "wait", &id.to_string()]).await?;
    let job: JobView = quorate.json(&["job", "show", &id.to_string()]).await?;
    let place = outputs_of(demonstration, id);
    quorate.text(&["job", "outputs", &id.to_string(), "--to", &place.display().to_string()]).await?;
    let mut files = FilesByPath::new();
    collect(&place, &place, &mut files)?;
    ensure!(
        files.contains_key(Path::new("model.safetensors")),
        "the outputs have a model: {:?}",
        files.keys()
    );
    demonstration.say(format!(
        "job {} trained {steps} steps in 2 ranks on 2 nodes: attempt {}, {} lost nodes, {} failures, {:.1} s",
        id.short(),
        job.attempts,
        job.lost_nodes,
        job.failures,
        began.elapsed().as_secs_f64()
    ));
    Ok((job, files))
}

fn outputs_of(demonstration: &Demonstration, id: JobId) -> PathBuf {
    demonstration.directory.join(format!("outputs-{}", id.short()))
}

/// Waits until a checkpoint of the job is registered.
async fn wait_for_checkpoint(demonstration: &Demonstration, id: JobId) -> Result<()> {
    let (deadline, id) = (Instant::now() + LIMIT, id.to_string());
    loop {
        let kept: Page<JobDataView> = demonstration.quorate.json(&["job", "checkpoints", &id]).await?;
        if kept.items.iter().any(|kept| matches!(kept.kind, JobDataKind::Checkpoint(_))) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let job: JobView = demonstration.quorate.json(&["job", "show", &id]).await?;
            bail!("no checkpoint within {} s: {job:?}", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Kills the node that runs this rank, whole; nothing if the job has ended.
async fn kill_rank(demonstration: &Demonstration, id: JobId, rank: u32) -> Result<()> {
    let job: JobView = demonstration.quorate.json(&["job", "show", &id.to_string()]).await?;
    let Some(slot) = job.slots.iter().find(|slot| slot.ranks.first == rank) else { return Ok(()) };
    let node = slot.node.clone();
    let paused = PausedSupervisor::pause(demonstration.up)?;
    let processes = kill_node(demonstration.up, &demonstration.node(&node))?;
    demonstration.say(format!("killed {node}, which ran rank {rank}, with SIGKILL ({processes} processes)"));
    drop(paused);
    wait_until_alive(demonstration, &node).await
}

fn collect(root: &Path, directory: &Path, files: &mut FilesByPath) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            files.insert(path.strip_prefix(root)?.to_path_buf(), fs::read(&path)?);
        }
    }
    Ok(())
}

/// Checks that the lines of each rank of the last attempt are stored: those that control has, and no others.
async fn check_logs(demonstration: &Demonstration, job: &JobView) -> Result<()> {
    let (quorate, id, deadline) = (&demonstration.quorate, job.id.to_string(), Instant::now() + LIMIT);
    let is_stored = |kept: &JobDataView| kept.kind == JobDataKind::Logs && kept.attempt == job.attempts;
    loop {
        let kept: Page<JobDataView> = quorate.json(&["job", "checkpoints", &id]).await?;
        let slots = kept.items.iter().filter(|kept| is_stored(kept)).count();
        if slots == 2 {
            break;
        }
        ensure!(Instant::now() < deadline, "the logs of {slots} of 2 slots are stored: {kept:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let place = demonstration.directory.join(format!("logs-{}", job.id.short()));
    quorate.text(&["job", "logs", &id, "--to", &place.display().to_string()]).await?;
    let mut lines = 0;
    for rank in 0..2 {
        let at = format!("attempt-{}/slot-{rank}/rank-{rank}.log", job.attempts);
        let stored = fs::read_to_string(place.join(&at)).with_context(|| format!("read `{at}`"))?;
        // A leader that is new has the lines once their nodes have sent them again.
        loop {
            let shown = quorate.text(&["job", "logs", &id, "--rank", &rank.to_string()]).await?;
            let shown = lines_of(&shown, job.attempts, rank);
            if stored.lines().eq(shown.iter().copied()) {
                break;
            }
            ensure!(Instant::now() < deadline, "`{at}` has {stored:?}, and control {shown:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        lines += stored.lines().count();
    }
    ensure!(lines > 0, "the ranks of {id} printed nothing");
    demonstration.say(format!("logs: {lines} lines of 2 ranks are stored, as they were printed"));
    Ok(())
}

/// Returns the lines of a rank in one attempt, from what `quorate job logs` printed.
fn lines_of(printed: &str, attempt: u32, rank: u32) -> Vec<&str> {
    let prefix = format!("{attempt}.{rank} ");
    printed.lines().filter_map(|line| line.strip_prefix(&prefix)).collect()
}

/// Checks the usage of all attempts of a job: each interval of each slot is billed at its rate and the voted
/// price, to the millionth.
async fn check_usage(demonstration: &Demonstration, job: &JobView) -> Result<()> {
    let entries = wait_for_usage(demonstration, job).await?;
    let (mut spent, mut core_seconds) = (0, 0.0);
    for entry in &entries {
        let billed = entry.amounts.spend_micro_units;
        let expected = price_of(entry);
        ensure!(u128::from(billed) == expected, "{entry:?} is billed {billed}, not {expected}");
        spent += billed;
        core_seconds += entry.amounts.cpu_microseconds as f64 / 1e6;
    }
    demonstration.say(format!(
        "usage of all {} attempts: {core_seconds:.1} core-seconds, {spent} millionths of the circle's unit: \
         slot-seconds times the voted prices",
        job.attempts
    ));
    Ok(())
}

/// Returns the price of an entry in millionths of the circle's unit, rounded down.
fn price_of(entry: &UsageEntry) -> u128 {
    let (cores, memory) = (u128::from(entry.rate.cpu_millicores), u128::from(entry.rate.memory_mib));
    // Both are brought to the same denominator: millicores have 1,000 to a core, mebibytes 1,024 to a GiB.
    let stored = entry.stored.map_or(0, |stored| u128::from(stored.mib));
    let hourly = cores * CORE_HOUR * 1024 + (memory * GIB_HOUR + stored * STORED_GIB_HOUR) * 1000;
    u128::from(entry.milliseconds()) * hourly / (1000 * 1024 * 3_600_000)
}

/// Waits until every slot of every attempt is billed; returns the charges, from a verified export.
async fn wait_for_usage(demonstration: &Demonstration, job: &JobView) -> Result<Vec<UsageEntry>> {
    let (quorate, deadline) = (&demonstration.quorate, Instant::now() + LIMIT);
    let file = demonstration.directory.join("usage.jsonl");
    let path = file.display().to_string();
    loop {
        let _ = fs::remove_file(&file);
        quorate.text(&["usage", "export", "--out", &path]).await?;
        let exported = fs::read_to_string(&file).with_context(|| format!("read `{path}`"))?;
        let entries = entries_of(&exported, job.id);
        let slots_of = |attempt: u32| {
            let held = |entry: &&UsageEntry| entry.attempt == attempt && entry.stored.is_none();
            let of_attempt = entries.iter().filter(held);
            of_attempt.map(|entry| entry.slot).collect::<BTreeSet<_>>().len()
        };
        if (1..=job.attempts).all(|attempt| slots_of(attempt) == 2) {
            quorate.text(&["usage", "verify", &path]).await?;
            return Ok(entries);
        }
        if Instant::now() > deadline {
            bail!("not each attempt of {} has the usage of two slots: {entries:?}", job.id);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns the charges of a job in an export.
fn entries_of(exported: &str, id: JobId) -> Vec<UsageEntry> {
    let entries = exported.lines().filter_map(|line| serde_json::from_str::<UsageEntry>(line).ok());
    entries.filter(|entry| entry.job == Some(id) && entry.credit_of.is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_collected_below_directories_by_their_paths() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("deep")).expect("a directory");
        fs::write(directory.path().join("deep/file"), "x").expect("a file");
        let mut files = FilesByPath::new();
        collect(directory.path(), directory.path(), &mut files).expect("readable");
        assert_eq!(files, FilesByPath::from([(PathBuf::from("deep/file"), b"x".to_vec())]));
    }
    #[test]
    fn lines_are_those_of_one_rank_in_one_attempt() {
        let printed = "1.0 loss 3\n1.1 loss 3\n2.0 loss 2\n2.1 loss 2\n12.0 other\n2.0 2.0 in a line\n";
        assert_eq!(lines_of(printed, 2, 0), ["loss 2", "2.0 in a line"]);
        assert_eq!(lines_of(printed, 2, 1), ["loss 2"]);
        assert_eq!(lines_of(printed, 3, 0), [""; 0]);
    }

    #[test]
    fn entries_are_the_charges_of_one_job() {
        let id = JobId(protocol::Digest::of(b"job"));
        assert_eq!(entries_of("{}\nno entry\n", id), []);
    }
}
