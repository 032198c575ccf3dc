//! A job's manifest in words: what may run, with which parameters, and who may submit it.

use super::escape::{quoted, show_duration, show_time};
use super::fields::{self, FieldTexts};
use super::words;
use protocol::Millis;
use protocol::display::counted;
use protocol::manifest::{
    ArtifactChoice, JobBudget, JobManifest, JobParameter, JobSubmitters, ParameterRule, SubmitKey,
    TextCharacters,
};
use protocol::project::ROOT_PROJECT;

/// Text for a part that each submission names. Quoted texts cannot look like it.
const OPEN: &str = "open: each submission names it, signed by a member or a submit key";

/// Returns what a job may do, in a sentence that follows its name.
pub(super) fn sentence(job: &JobManifest) -> String {
    let program = match (&job.artifact, &job.command) {
        (Some(artifact), Some(command)) => {
            let program = command.first().map_or_else(String::new, |program| quoted(program));
            format!("runs {program} of {}", artifact_words(artifact))
        }
        (Some(artifact), None) => format!("runs ANY command of {}", artifact_words(artifact)),
        (None, Some(_)) => "runs its command in ANY artifact".to_string(),
        (None, None) => "runs ANY command of ANY artifact".to_string(),
    };
    let most = u64::from(job.slots).saturating_mul(u64::from(job.ranks_per_slot));
    let until = job
        .valid_until
        .map_or_else(|| "until it is retired".into(), |until| format!("until {}", show_time(until)));
    format!(
        "{}: {program}, in gangs of {}, at most {} at once, each for at most {}, {until}, submitted by {}. A \
         node that gets no answer from the control plane keeps its ranks for up to {}.",
        job.name,
        counted(u64::from(job.ranks), "rank"),
        counted(most, "rank"),
        show_duration(job.run_seconds_max),
        submitters(&job.submit),
        show_duration(job.autonomy_seconds),
    )
}

fn artifact_words(artifact: &ArtifactChoice) -> String {
    format!("artifact {} ({})", artifact.name, words::of(&artifact.root.0).join(" "))
}

/// Returns the parties that may submit, for a sentence.
fn submitters(submit: &JobSubmitters) -> String {
    let mut parties = Vec::new();
    if submit.any_token {
        parties.push("any token of scope submit".to_string());
    }
    if !submit.tokens.is_empty() {
        parties.push(counted(submit.tokens.len() as u64, "named token holder"));
    }
    if submit.members {
        parties.push("any member".to_string());
    }
    if !submit.signers.is_empty() {
        parties.push(counted(submit.signers.len() as u64, "submit key"));
    }
    if parties.is_empty() { "no party".into() } else { parties.join(" or ") }
}

/// Returns the fields of a job.
pub(super) fn fields(job: &JobManifest) -> FieldTexts {
    let JobManifest {
        name,
        project,
        artifact,
        command,
        environment,
        parameters,
        models,
        datasets,
        ranks,
        ranks_per_slot,
        slots,
        resources,
        gpu_models,
        placement,
        egress,
        priority,
        run_seconds_max,
        grace_seconds,
        autonomy_seconds,
        retries,
        checkpoints,
        budget,
        submit,
        valid_until,
    } = job;
    let mut texts = vec![("job.name".to_string(), name.to_string())];
    let root = || format!("{ROOT_PROJECT}, the root");
    texts
        .push(("job.project".into(), project.as_ref().map_or_else(root, |project| quoted(project.as_str()))));
    push_artifact(&mut texts, artifact.as_ref());
    let command = command.as_ref().map_or_else(|| OPEN.to_string(), |command| fields::list(command));
    texts.push(("job.command".into(), command));
    texts.push(("job.environment".into(), fields::labels_text(environment)));
    for (name, parameter) in parameters {
        texts.push((format!("job.parameter {name}"), parameter_text(parameter)));
    }
    for (kind, inputs) in [("model", models), ("dataset", datasets)] {
        let numbered = (1..).zip(inputs);
        texts.extend(numbered.map(|(number, input)| {
            (format!("job.{kind} {number}"), format!("{} {}", input.name, input.root))
        }));
    }
    texts.push(("job.ranks of a gang".into(), ranks.to_string()));
    texts.push(("job.ranks in a slot at most".into(), ranks_per_slot.to_string()));
    texts.push(("job.slots".into(), slots.to_string()));
    fields::push_resources(&mut texts, "job", resources);
    texts.push(("job.gpu models".into(), fields::list(gpu_models)));
    fields::push_placement(&mut texts, "job", placement);
    texts.push(("job.egress".into(), fields::list(egress)));
    texts.push(("job.priority at most".into(), priority.to_string()));
    texts.push(("job.runs at most".into(), show_duration(*run_seconds_max)));
    texts.push(("job.grace".into(), show_duration(*grace_seconds)));
    let autonomy = format!("{} without the control plane", show_duration(*autonomy_seconds));
    texts.push(("job.autonomy".into(), autonomy));
    texts.push(("job.attempts after a failed one".into(), retries.to_string()));
    texts.push(("job.checkpoints kept".into(), checkpoints.to_string()));
    push_budget(&mut texts, budget.as_ref());
    push_submitters(&mut texts, submit);
    debug_assert!(
        texts.len() >= 21 + parameters.len() + models.len() + datasets.len(),
        "each field is shown"
    );
    let until = fields::optional(valid_until.as_ref(), |time: &Millis| show_time(*time));
    texts.push(("job.valid until".into(), until));
    texts
}

fn push_artifact(texts: &mut FieldTexts, artifact: Option<&ArtifactChoice>) {
    match artifact {
        None => texts.push(("job.artifact".into(), OPEN.into())),
        Some(ArtifactChoice { name, root }) => {
            texts.push(("job.artifact.name".into(), name.to_string()));
            texts.push(("job.artifact.root".into(), root.to_string()));
        }
    }
}

/// Returns the bounds of a parameter in one line. Every free text in it is quoted, so that no two rules look
/// alike.
fn parameter_text(parameter: &JobParameter) -> String {
    let JobParameter { rule, default } = parameter;
    let rule = match rule {
        ParameterRule::Integer { least, most } => format!("whole number, {least} to {most}"),
        ParameterRule::Decimal { least, most } => {
            format!("decimal number, {} to {}", least.as_str(), most.as_str())
        }
        ParameterRule::Choice(words) => format!("one of: {}", fields::list(words)),
        ParameterRule::Text { length, characters } => {
            let characters = match characters {
                TextCharacters::Word => "letters, digits, - _ .",
                TextCharacters::Path => "path",
                TextCharacters::Printable => "printable text",
            };
            format!("{characters} of at most {length} bytes")
        }
    };
    match default {
        Some(value) => format!("{rule}; otherwise {}", quoted(value)),
        None => format!("{rule}; always set"),
    }
}

fn push_budget(texts: &mut FieldTexts, budget: Option<&JobBudget>) {
    let Some(JobBudget { period_seconds, gpu_seconds, spend_micro_units }) = budget else {
        texts.push(("job.budget".into(), fields::NONE.into()));
        return;
    };
    texts.push(("job.budget.period".into(), show_duration(*period_seconds)));
    let gpu = fields::optional(gpu_seconds.as_ref(), |seconds| format!("{seconds} GPU-seconds per period"));
    texts.push(("job.budget.gpu at most".into(), gpu));
    let spend = |units: &u64| format!("{units} millionths per period");
    texts.push(("job.budget.spend at most".into(), fields::optional(spend_micro_units.as_ref(), spend)));
}

fn push_submitters(texts: &mut FieldTexts, submit: &JobSubmitters) {
    let JobSubmitters { any_token, tokens, members, signers } = submit;
    let yes = |given: bool| if given { "may submit" } else { "may not submit" };
    texts.push(("job.submit.any token".into(), yes(*any_token).into()));
    let holders: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    texts.push(("job.submit.tokens of".into(), fields::list(&holders)));
    texts.push(("job.submit.members".into(), yes(*members).into()));
    for (name, SubmitKey { ed25519, ml_dsa }) in signers {
        texts.push((format!("job.submit.key {name}.ed25519"), ed25519.to_string()));
        texts.push((format!("job.submit.key {name}.ml-dsa-65"), fields::key_digest(ml_dsa)));
    }
}
