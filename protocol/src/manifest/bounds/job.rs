//! Bounds of a job's manifest: the program, its parameters, its gang and its submitters.

use super::{OutOfBounds, check_label, check_model, check_placement, check_resources, in_range, join};
use crate::artifact::{ARTIFACT_WORDS_BYTES_MAX, ARTIFACT_WORDS_MAX};
use crate::keys::ML_DSA_65_PUBLIC_KEY_LENGTH;
use crate::limits::{
    AUTONOMY_SECONDS_MAX, AUTONOMY_SECONDS_MIN, BALLOT_BYTES_MAX, JOB_LIST_MAX, NAME_BYTES_MAX,
    PARAMETER_BYTES_MAX, PRIORITY_MAX, SLOTS_MAX, SUBMISSION_BYTES_MAX, SUBMIT_KEYS_MAX,
};
use crate::manifest::{
    JobBudget, JobManifest, JobParameter, JobSubmitters, ModelChoice, RANK_VARIABLES, SubmitKey,
    expand_argument,
};
use crate::sandbox::LOCAL_RANKS_MAX;
use std::collections::BTreeSet;

const _: () = assert!(
    JOB_LIST_MAX * (PARAMETER_BYTES_MAX + NAME_BYTES_MAX + 8) + ARTIFACT_WORDS_BYTES_MAX + BALLOT_BYTES_MAX
        <= SUBMISSION_BYTES_MAX,
    "the longest submission fits"
);

/// Maximum number of ranks of a job.
const RANKS_MAX: u32 = 4096;
/// Maximum run time of a job in seconds: a month.
const RUN_SECONDS_MAX: u64 = 31 * 24 * 3600;
/// Maximum time in seconds that a rank has to end: an hour, in which a large checkpoint is written.
const GRACE_SECONDS_MAX: u64 = 3600;
/// Maximum number of attempts after one that failed.
const RETRIES_MAX: u32 = 100;
/// Maximum number of checkpoints that are kept: each may be as large as a model.
const CHECKPOINTS_MAX: u32 = 64;
/// Maximum period of a budget in seconds: a leap year.
const PERIOD_SECONDS_MAX: u64 = 366 * 24 * 3600;

const _: () = assert!(SLOTS_MAX as usize * LOCAL_RANKS_MAX >= RANKS_MAX as usize, "every gang has its slots");

impl JobManifest {
    /// Checks that every value is one that a cluster could run, and that each placeholder of the command has
    /// its parameter.
    ///
    /// # Errors
    /// Returns the first field that is out of bounds.
    pub fn check_bounds(&self) -> Result<(), OutOfBounds> {
        check_program(self)?;
        check_environment(self)?;
        check_mounts("models", &self.models)?;
        check_mounts("datasets", &self.datasets)?;
        check_gang(self)?;
        check_resources(&self.resources)?;
        check_gpu_models(self)?;
        check_placement(&self.placement)?;
        in_range("priority", self.priority, 0, PRIORITY_MAX)?;
        in_range("run_seconds_max", self.run_seconds_max, 1, RUN_SECONDS_MAX)?;
        in_range("grace_seconds", self.grace_seconds, 0, GRACE_SECONDS_MAX)?;
        in_range("autonomy_seconds", self.autonomy_seconds, AUTONOMY_SECONDS_MIN, AUTONOMY_SECONDS_MAX)?;
        in_range("retries", self.retries, 0, RETRIES_MAX)?;
        in_range("checkpoints", self.checkpoints, 0, CHECKPOINTS_MAX)?;
        self.budget.as_ref().map_or(Ok(()), check_budget)?;
        check_submitters(&self.submit, self.is_open())
    }
}

/// Checks the artifact, the parameters, and a command that is not open.
fn check_program(job: &JobManifest) -> Result<(), OutOfBounds> {
    if job.artifact.as_ref().is_some_and(|artifact| artifact.root.0.0 == [0; 32]) {
        return Err(OutOfBounds::new("artifact.root", "is all zeros; `quorate artifact list` shows roots"));
    }
    at_most("parameters", job.parameters.len(), JOB_LIST_MAX)?;
    for (name, parameter) in &job.parameters {
        let field = join("parameters", name.as_str());
        check_parameter(parameter).map_err(|message| OutOfBounds::new(field, message))?;
    }
    match &job.command {
        Some(command) => check_command(job, command),
        None if job.parameters.is_empty() => Ok(()),
        None => Err(OutOfBounds::new("parameters", "are given, but an open command has no placeholders")),
    }
}

fn check_parameter(parameter: &JobParameter) -> Result<(), String> {
    parameter.rule.check()?;
    match &parameter.default {
        Some(value) => parameter.rule.accept(value).map_err(|reason| format!("has a default that {reason}")),
        None => Ok(()),
    }
}

/// Checks the command: a program without placeholders, arguments whose placeholders are parameters, and no
/// parameter without a placeholder.
fn check_command(job: &JobManifest, command: &[String]) -> Result<(), OutOfBounds> {
    check_command_words(command)?;
    if command[0].contains(['{', '}']) {
        return Err(OutOfBounds::new(
            "command",
            "begins with a placeholder; the program is the same each time",
        ));
    }
    let mut used = BTreeSet::new();
    for (at, argument) in command.iter().enumerate() {
        let value_of = |name: &str| {
            let (known, _) = job.parameters.iter().find(|(known, _)| known.as_str() == name)?;
            used.insert(known.clone());
            Some("")
        };
        let named = |message| OutOfBounds::new(format!("command[{at}]"), message);
        expand_argument(argument, value_of).map_err(named)?;
    }
    debug_assert!(used.iter().all(|name| job.parameters.contains_key(name)), "a placeholder is a parameter");
    match job.parameters.keys().find(|name| !used.contains(*name)) {
        Some(unused) => {
            let message = format!("stands nowhere in the command; write `{{{unused}}}` in an argument");
            Err(OutOfBounds::new(join("parameters", unused.as_str()), message))
        }
        None => Ok(()),
    }
}

/// Checks that these words can be a command: at least the program, and no more than the kernel takes.
///
/// # Errors
/// Returns an error of the field `command`.
pub fn check_command_words(words: &[String]) -> Result<(), OutOfBounds> {
    let refuse = |message: String| Err(OutOfBounds::new("command", message));
    if words.first().is_none_or(String::is_empty) {
        return refuse("is empty; name the entry point".into());
    }
    at_most("command", words.len(), ARTIFACT_WORDS_MAX)?;
    let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
    if bytes > ARTIFACT_WORDS_BYTES_MAX {
        return refuse(format!("has {bytes} bytes; accepted: at most {ARTIFACT_WORDS_BYTES_MAX}"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return refuse("holds a zero byte".into());
    }
    Ok(())
}

fn check_environment(job: &JobManifest) -> Result<(), OutOfBounds> {
    at_most("environment", job.environment.len(), JOB_LIST_MAX)?;
    let mut bytes = 0;
    for (name, value) in &job.environment {
        let field = join("environment", name);
        let is_name = !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            return Err(OutOfBounds::new(field, "is no name of a variable: letters, digits and `_`"));
        }
        if RANK_VARIABLES.contains(&name.as_str()) {
            return Err(OutOfBounds::new(field, "is set by the node for each rank"));
        }
        if value.contains('\0') {
            return Err(OutOfBounds::new(field, "holds a zero byte"));
        }
        debug_assert!(!name.contains('='), "a variable ends at its first `=`");
        bytes += name.len() + value.len() + 2;
    }
    if bytes > ARTIFACT_WORDS_BYTES_MAX / 2 {
        let message = format!("has {bytes} bytes; accepted: at most {}", ARTIFACT_WORDS_BYTES_MAX / 2);
        return Err(OutOfBounds::new("environment", message));
    }
    Ok(())
}

/// Checks the models or datasets of a job: each name is a directory of its own.
fn check_mounts(field: &str, mounts: &[ModelChoice]) -> Result<(), OutOfBounds> {
    at_most(field, mounts.len(), JOB_LIST_MAX)?;
    let mut names = BTreeSet::new();
    for (at, mount) in mounts.iter().enumerate() {
        check_model(&format!("{field}[{at}].root"), mount)?;
        if !names.insert(&mount.name) {
            return Err(OutOfBounds::new(format!("{field}[{at}].name"), "is there twice"));
        }
    }
    Ok(())
}

fn check_gang(job: &JobManifest) -> Result<(), OutOfBounds> {
    in_range("ranks", job.ranks, 1, RANKS_MAX)?;
    in_range("ranks_per_slot", job.ranks_per_slot, 1, LOCAL_RANKS_MAX as u32)?;
    in_range("slots", job.slots, 1, SLOTS_MAX)?;
    let (slots, needed) = (job.slots, job.ranks.div_ceil(job.ranks_per_slot));
    if slots < needed {
        let message = format!("is {slots}; accepted: {needed} or more, so that a gang of {} fits", job.ranks);
        return Err(OutOfBounds::new("slots", message));
    }
    debug_assert!(slots.saturating_mul(job.ranks_per_slot) >= job.ranks, "all ranks have their place");
    Ok(())
}

fn check_gpu_models(job: &JobManifest) -> Result<(), OutOfBounds> {
    at_most("gpu_models", job.gpu_models.len(), JOB_LIST_MAX)?;
    for (at, model) in job.gpu_models.iter().enumerate() {
        check_label(model).map_err(|message| OutOfBounds::new(format!("gpu_models[{at}]"), message))?;
    }
    let asks = job.resources.gpu_count > 0 || job.resources.gpu_share_percent > 0;
    if !job.gpu_models.is_empty() && !asks {
        return Err(OutOfBounds::new("gpu_models", "is given, but no GPU is asked for"));
    }
    Ok(())
}

fn check_budget(budget: &JobBudget) -> Result<(), OutOfBounds> {
    in_range("budget.period_seconds", budget.period_seconds, 1, PERIOD_SECONDS_MAX)?;
    if budget.gpu_seconds.is_none() && budget.spend_micro_units.is_none() {
        return Err(OutOfBounds::new("budget", "limits nothing; set gpu_seconds or spend_micro_units"));
    }
    Ok(())
}

/// Checks that a party may submit, and that an open job has one whose signature a node can verify.
fn check_submitters(submit: &JobSubmitters, is_open: bool) -> Result<(), OutOfBounds> {
    let JobSubmitters { any_token, tokens, members, signers } = submit;
    at_most("submit.tokens", tokens.len(), JOB_LIST_MAX)?;
    at_most("submit.signers", signers.len(), SUBMIT_KEYS_MAX)?;
    let is_short = |key: &SubmitKey| key.ml_dsa.0.len() != ML_DSA_65_PUBLIC_KEY_LENGTH;
    if let Some((name, _)) = signers.iter().find(|(_, key)| is_short(key)) {
        let field = join(&join("submit.signers", name.as_str()), "ml_dsa");
        let message = format!("is no key of {ML_DSA_65_PUBLIC_KEY_LENGTH} bytes");
        return Err(OutOfBounds::new(field, message));
    }
    if *any_token && !tokens.is_empty() {
        return Err(OutOfBounds::new("submit.tokens", "names holders, although submit.any_token lets all"));
    }
    let is_signed = *members || !signers.is_empty();
    if !is_signed && !*any_token && tokens.is_empty() {
        return Err(OutOfBounds::new(
            "submit",
            "lets no party submit; set members, any_token, tokens or signers",
        ));
    }
    debug_assert!(is_signed || *any_token || !tokens.is_empty(), "some party may submit");
    if is_open && !is_signed {
        let message = "needs members or signers: a submission to an open job is signed";
        return Err(OutOfBounds::new("submit", message));
    }
    Ok(())
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), OutOfBounds> {
    debug_assert!(most > 0, "`{field}` could have no entry");
    if count > most {
        return Err(OutOfBounds::new(field, format!("has {count} entries; accepted: at most {most}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
