//! Command of a rank: a function of the approved manifest, the submission, and the place of the rank.

use crate::ChainError;
use protocol::artifact::ARTIFACT_WORDS_BYTES_MAX;
use protocol::job::{ArrayTask, JobSubmission, SlotRanks};
use protocol::manifest::{
    ArtifactChoice, JobManifest, JobParameter, ModelChoice, check_command_words, expand_argument,
};
use protocol::{ModelRoot, ParameterName};
use std::collections::BTreeMap;

/// Port of rank 0 at which the ranks of a gang meet: the default of PyTorch's `torchrun`. A gang has a
/// network of its own, so all gangs use the same.
pub const MASTER_PORT: u16 = 29_500;

/// Model or dataset that a rank reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankInput {
    /// Absolute path of the read-only mount.
    pub path: String,
    /// Root of the content.
    pub root: ModelRoot,
}

/// Program of one rank, with all that it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankCommand {
    /// Artifact to run.
    pub artifact: ArtifactChoice,
    /// Program and its arguments. No shell reads them.
    pub arguments: Vec<String>,
    /// Environment variables, beside those of the artifact, which these replace.
    pub environment: BTreeMap<String, String>,
    /// Models and datasets, by path.
    pub inputs: Vec<RankInput>,
}

/// Returns the host name of a rank within the network of its gang.
#[must_use]
pub fn rank_host(rank: u32) -> String {
    format!("rank-{rank}")
}

/// Derives the command of one rank.
///
/// `ranks` are those of its slot, `rank` is one of them, and `gpus` are the UUIDs of the GPUs of this rank.
/// Resources are those of the manifest for each rank.
///
/// # Errors
/// Returns an error for a rank outside of its slot, or a slot outside of the gang; an artifact or command
/// that the submission names although it may not, or does not name although it must; a parameter that is
/// unknown, missing or out of its bounds.
pub fn derive_rank(
    job: &JobManifest,
    submission: &JobSubmission,
    ranks: SlotRanks,
    rank: u32,
    gpus: &[String],
) -> Result<RankCommand, ChainError> {
    let refuse = |reason: &str| Err(mismatch(job, reason));
    let end = ranks.first.checked_add(ranks.count).filter(|end| *end <= job.ranks);
    let Some(end) = end.filter(|_| (1..=job.ranks_per_slot).contains(&ranks.count)) else {
        return refuse("its slot has other ranks than the manifest allows");
    };
    if !(ranks.first..end).contains(&rank) {
        return refuse("the rank is not in its slot");
    }
    let artifact = artifact_of(job, submission)?;
    let arguments = arguments_of(job, submission)?;
    let mut environment = job.environment.clone();
    let local_rank = rank - ranks.first;
    debug_assert!(local_rank < ranks.count && rank < job.ranks, "a rank is one of its slot and of its gang");
    environment.extend([
        ("CUDA_VISIBLE_DEVICES".to_string(), gpus.join(",")),
        ("LOCAL_RANK".into(), local_rank.to_string()),
        ("LOCAL_WORLD_SIZE".into(), ranks.count.to_string()),
        ("MASTER_ADDR".into(), rank_host(0)),
        ("MASTER_PORT".into(), MASTER_PORT.to_string()),
        ("RANK".into(), rank.to_string()),
        ("WORLD_SIZE".into(), job.ranks.to_string()),
    ]);
    if let Some(ArrayTask { index, count, .. }) = submission.array {
        environment.extend([
            ("JOB_ARRAY_COUNT".to_string(), count.to_string()),
            ("JOB_ARRAY_INDEX".into(), index.to_string()),
        ]);
    }
    let input = |place: &'static str| {
        move |choice: &ModelChoice| RankInput { path: format!("/{place}/{}", choice.name), root: choice.root }
    };
    let models = job.models.iter().map(input("models"));
    let inputs = models.chain(job.datasets.iter().map(input("datasets"))).collect();
    Ok(RankCommand { artifact, arguments, environment, inputs })
}

fn artifact_of(job: &JobManifest, submission: &JobSubmission) -> Result<ArtifactChoice, ChainError> {
    match (&job.artifact, &submission.artifact) {
        (Some(approved), None) => Ok(approved.clone()),
        (None, Some(named)) => Ok(named.clone()),
        (Some(_), Some(_)) => Err(mismatch(job, "it names an artifact, which the manifest fixes")),
        (None, None) => Err(mismatch(job, "it names no artifact, which the manifest leaves open")),
    }
}

fn arguments_of(job: &JobManifest, submission: &JobSubmission) -> Result<Vec<String>, ChainError> {
    let values = values_of(job, &submission.parameters)?;
    let arguments = match (&job.command, &submission.command) {
        (Some(approved), None) => {
            let expand = |argument: &String| {
                expand_argument(argument, |name| {
                    values.iter().find(|(known, _)| known.as_str() == name).map(|(_, value)| *value)
                })
            };
            let expanded: Result<Vec<String>, String> = approved.iter().map(expand).collect();
            expanded.map_err(|reason| mismatch(job, &format!("an argument of the command {reason}")))?
        }
        (None, Some(named)) => named.clone(),
        (Some(_), Some(_)) => return Err(mismatch(job, "it names a command, which the manifest fixes")),
        (None, None) => return Err(mismatch(job, "it names no command, which the manifest leaves open")),
    };
    check_command_words(&arguments).map_err(|error| mismatch(job, &error.to_string()))?;
    debug_assert!(job.command.as_ref().is_none_or(|approved| approved.len() == arguments.len()));
    debug_assert!(arguments.iter().map(String::len).sum::<usize>() <= ARTIFACT_WORDS_BYTES_MAX);
    Ok(arguments)
}

/// Returns the value of each parameter, checked against its bounds.
fn values_of<'a>(
    job: &'a JobManifest,
    set: &'a BTreeMap<ParameterName, String>,
) -> Result<BTreeMap<&'a ParameterName, &'a str>, ChainError> {
    if let Some(unknown) = set.keys().find(|name| !job.parameters.contains_key(*name)) {
        return Err(ChainError::ParameterUnknown(unknown.clone()));
    }
    let mut values = BTreeMap::new();
    for (name, JobParameter { rule, default }) in &job.parameters {
        let value = set.get(name).or(default.as_ref());
        let value = value.ok_or_else(|| ChainError::ParameterMissing(name.clone()))?;
        rule.accept(value)
            .map_err(|reason| ChainError::ParameterOutOfBounds { parameter: name.clone(), reason })?;
        values.insert(name, value.as_str());
    }
    debug_assert_eq!(values.len(), job.parameters.len(), "each parameter has a value");
    Ok(values)
}

/// Returns the error for a submission that does not fit its job.
pub(super) fn mismatch(job: &JobManifest, reason: &str) -> ChainError {
    debug_assert!(!reason.is_empty(), "a refusal has a reason");
    ChainError::SubmissionMismatch { job: job.name.clone(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
