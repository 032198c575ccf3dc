//! `quorate job`: runs approved jobs, and shows what a job's manifest lets its submissions run, offline.

use super::Environment;
use super::deploy::read_manifest;
use super::{job_data, job_events, job_runs};
use crate::print;
use anyhow::Result;
use clap::{Args, Subcommand};
use human_chain::{RankCommand, derive_rank, rank_host, words_of};
use protocol::display::counted;
use protocol::job::{JobSubmission, SlotRanks, Submitter};
use protocol::manifest::{ArtifactChoice, JobManifest, Manifest};
use protocol::{CircleId, Digest, Millis, ParameterName, Refusal, error_code};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Derive the command of each rank from a manifest and parameters, as a node does; submit nothing
    Check(JobCheckArguments),
    /// Run an approved job with these parameters
    Submit(job_runs::JobSubmitArguments),
    /// List jobs, the latest first
    List(job_runs::JobListArguments),
    /// Show one job, the slots of its gang, and why it waits
    #[command(after_help = "Example:\n  quorate job show 3f9c")]
    Show(job_runs::JobIdArguments),
    /// Wait until a job, or an array, has ended; fail unless all of it succeeded
    #[command(after_help = "Example:\n  quorate job wait 3f9c")]
    Wait(job_runs::JobSetArguments),
    /// Print what happened to a job: its attempts, its ends and their causes, and the data that is kept
    Events(job_events::JobEventsArguments),
    /// Print the lines of a job's ranks, or fetch the stored logs
    Logs(job_runs::JobLogsArguments),
    /// Cancel a job, or an array: its ranks are asked to end, and killed after their grace
    #[command(after_help = "Example:\n  quorate job cancel 3f9c")]
    Cancel(job_runs::JobSetArguments),
    /// Place a job that failed or was cancelled into the queue again
    Retry(job_runs::JobRetryArguments),
    /// List the checkpoints of a job, the oldest first, its outputs and its stored logs
    #[command(after_help = "Example:\n  quorate job checkpoints 3f9c")]
    Checkpoints(job_runs::JobIdArguments),
    /// Fetch, verify and unpack the outputs of a job that succeeded
    Outputs(job_data::JobOutputsArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job check train.toml --set steps=100
  quorate job check notebook.toml --artifact trainer=7f3a... -- /usr/bin/python3 train.py

Nodes derive the command in the same way, from the manifest that members approved and the submission, and
from nothing else. No shell reads a parameter.")]
pub(crate) struct JobCheckArguments {
    /// Manifest file
    manifest: PathBuf,
    /// Value of a parameter; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = job_runs::parse_setting)]
    settings: Vec<(ParameterName, String)>,
    /// Artifact, if the manifest leaves it open
    #[arg(long, value_name = "NAME=ROOT", value_parser = parse_artifact)]
    artifact: Option<ArtifactChoice>,
    /// Program and its arguments, if the manifest leaves them open
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn parse_artifact(text: &str) -> Result<ArtifactChoice, String> {
    let (name, root) = text.split_once('=').ok_or("is not NAME=ROOT")?;
    Ok(ArtifactChoice { name: name.parse()?, root: root.parse()? })
}

/// Rank with its command.
#[derive(Debug, Serialize)]
struct CheckedRank {
    rank: u32,
    slot: u32,
    host: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// Outcome of a check.
#[derive(Debug, Serialize)]
struct CheckedJob {
    job: String,
    artifact: ArtifactChoice,
    /// Path of each model and dataset, with its root.
    inputs: BTreeMap<String, String>,
    ranks: Vec<CheckedRank>,
}

pub(crate) async fn run(command: JobCommand, environment: &Environment) -> Result<()> {
    match command {
        JobCommand::Check(arguments) => check_offline(arguments, environment),
        JobCommand::Submit(arguments) => job_runs::submit(arguments, environment).await,
        JobCommand::List(arguments) => job_runs::list(arguments, environment).await,
        JobCommand::Show(arguments) => job_runs::show(arguments, environment).await,
        JobCommand::Wait(arguments) => job_runs::wait(arguments, environment).await,
        JobCommand::Events(arguments) => job_events::print(arguments, environment).await,
        JobCommand::Logs(arguments) => job_runs::logs(arguments, environment).await,
        JobCommand::Cancel(arguments) => job_runs::cancel(arguments, environment).await,
        JobCommand::Retry(arguments) => job_runs::retry(arguments, environment).await,
        JobCommand::Checkpoints(arguments) => job_data::list(arguments, environment).await,
        JobCommand::Outputs(arguments) => job_data::outputs(arguments, environment).await,
    }
}

fn check_offline(arguments: JobCheckArguments, environment: &Environment) -> Result<()> {
    let Manifest::Job(job) = read_manifest(&arguments.manifest)? else {
        let message = format!("`{}` is not the manifest of a job", arguments.manifest.display());
        return Err(Refusal::new(error_code::MANIFEST_INVALID, message).into());
    };
    let submission = submission(&job, arguments);
    let checked = check(&job, &submission)?;
    environment.output().print(&checked, text);
    if job.is_open() {
        print::err("the manifest is open: each submission needs the signature of a member or a submit key");
    }
    Ok(())
}

/// Returns a submission with these choices. It is never sent, so it is to no certificate.
fn submission(job: &JobManifest, arguments: JobCheckArguments) -> JobSubmission {
    let nothing = Digest([0; 32]);
    JobSubmission {
        circle: CircleId(nothing),
        job: job.name.clone(),
        certificate: nothing,
        idempotency: nothing,
        parameters: arguments.settings.into_iter().collect(),
        artifact: arguments.artifact,
        command: Some(arguments.command).filter(|command| !command.is_empty()),
        priority: 0,
        submitter: Submitter::Token("check".parse().expect("`check` is a name")),
        issued_at: Millis(0),
        deadline: Millis(0),
        after: vec![],
        array: None,
    }
}

/// Derives every rank of a gang whose slots are as full as the manifest lets them be.
fn check(job: &JobManifest, submission: &JobSubmission) -> Result<CheckedJob, human_chain::ChainError> {
    let share = u32::from(job.resources.gpu_share_percent > 0);
    let gpus_per_rank = job.resources.gpu_count.max(share);
    let mut ranks = Vec::new();
    let derive = |rank: u32| {
        let slot = rank / job.ranks_per_slot;
        let first = slot * job.ranks_per_slot;
        let count = job.ranks_per_slot.min(job.ranks - first);
        let gpus: Vec<String> =
            (0..gpus_per_rank).map(|gpu| format!("GPU-{}", (rank - first) * gpus_per_rank + gpu)).collect();
        derive_rank(job, submission, SlotRanks { first, count }, rank, &gpus).map(|command| (slot, command))
    };
    let (_, RankCommand { artifact, inputs, .. }) = derive(0)?;
    for rank in 0..job.ranks {
        let (slot, RankCommand { arguments, environment, .. }) = derive(rank)?;
        ranks.push(CheckedRank { rank, slot, host: rank_host(rank), arguments, environment });
    }
    let inputs = inputs.into_iter().map(|input| (input.path, input.root.to_string())).collect();
    Ok(CheckedJob { job: job.name.to_string(), artifact, inputs, ranks })
}

fn text(checked: &CheckedJob) -> String {
    let CheckedJob { job, artifact, inputs, ranks } = checked;
    let words = words_of(&artifact.root.0).join(" ");
    let mut text =
        format!("{job}: {} of artifact {} ({words})\n", counted(ranks.len() as u64, "rank"), artifact.name);
    for argument in ranks.iter().take(1).flat_map(|rank| &rank.arguments) {
        text.push_str(&format!("  argument  {}\n", serde_json::Value::from(argument.as_str())));
    }
    for (path, root) in inputs {
        text.push_str(&format!("  reads     {path} (root {root})\n"));
    }
    for rank in ranks {
        let variables: Vec<String> =
            rank.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        text.push_str(&format!("  rank {} in slot {}: {}\n", rank.rank, rank.slot, variables.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::job_runs::parse_setting;

    const JOB: &str = "kind = 'job'\nname = 'train'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
        command = ['/bin/train', '--steps={steps}']\nranks = 3\nranks_per_slot = 2\nrun_seconds_max = 60\n\
        submit = { members = true }\nmodels = [{ name = 'base', root = 'ROOT' }]\n\
        resources = { cpu_millicores = 1000, memory = '1 GiB', gpu_count = 1 }\n\
        [parameters]\nsteps = { integer = { least = 1, most = 1000 } }\n";

    fn checked(settings: &[&str]) -> Result<String, human_chain::ChainError> {
        let manifest = Manifest::from_toml(&JOB.replace("ROOT", &"1".repeat(64))).expect("a sound manifest");
        let Manifest::Job(job) = manifest else { panic!("a job") };
        let settings = settings.iter().map(|text| parse_setting(text).expect("a setting")).collect();
        let arguments =
            JobCheckArguments { manifest: PathBuf::new(), settings, artifact: None, command: Vec::new() };
        check(&job, &submission(&job, arguments)).map(|checked| text(&checked))
    }

    #[test]
    fn each_rank_is_shown_as_a_node_would_start_it() {
        let root = "1".repeat(64);
        let words = words_of(&root.parse().expect("a digest")).join(" ");
        let rank = |gpu: u32, local: u32, count: u32, rank: u32| {
            format!(
                "CUDA_VISIBLE_DEVICES=GPU-{gpu} LOCAL_RANK={local} LOCAL_WORLD_SIZE={count} \
                 MASTER_ADDR=rank-0 MASTER_PORT=29500 RANK={rank} WORLD_SIZE=3"
            )
        };
        let expected = format!(
            "train: 3 ranks of artifact trainer ({words})\n  argument  \"/bin/train\"\n  \
             argument  \"--steps=7\"\n  reads     /models/base (root {root})\n  rank 0 in slot 0: {}\n  \
             rank 1 in slot 0: {}\n  rank 2 in slot 1: {}\n",
            rank(0, 0, 2, 0),
            rank(1, 1, 2, 1),
            rank(0, 0, 1, 2)
        );
        assert_eq!(checked(&["steps=7"]), Ok(expected));
    }

    #[test]
    fn a_parameter_that_a_node_would_refuse_is_refused_here() {
        for (settings, code) in [
            (&["steps=0"][..], error_code::PARAMETER_OUT_OF_BOUNDS),
            (&["steps=1;id"], error_code::PARAMETER_OUT_OF_BOUNDS),
            (&["steps=1", "rate=2"], error_code::PARAMETER_UNKNOWN),
            (&[], error_code::PARAMETER_MISSING),
        ] {
            assert_eq!(checked(settings).map_err(|error| error.code()), Err(code));
        }
        assert!(parse_setting("steps").is_err() && parse_setting("A=1").is_err());
        assert!(parse_artifact("trainer=1").is_err() && parse_artifact("trainer").is_err());
    }
}
