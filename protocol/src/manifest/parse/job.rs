//! Raw form of a job's manifest, as TOML has it.

use super::{Fault, RawModel, RawPlacement, RawResources, check_egress, check_time, fault};
use crate::ids::{ArtifactRoot, ModelName, ParameterName, ProjectName, ServiceName, TokenName};
use crate::limits;
use crate::manifest::bounds::join;
use crate::manifest::{
    ArtifactChoice, Decimal, JobBudget, JobManifest, JobParameter, JobSubmitters, Manifest, ParameterRule,
    SubmitKey, TextCharacters,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Time in seconds that the ranks of a job have to end, unless its manifest says otherwise.
const GRACE_SECONDS_DEFAULT: u64 = 30;

/// Part of a job that each submission names.
#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum OpenPart {
    Artifact,
    Command,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArtifact {
    name: ModelName,
    root: ArtifactRoot,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInteger {
    least: i64,
    most: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDecimal {
    least: Decimal,
    most: Decimal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    length: u32,
    characters: TextCharacters,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParameter {
    integer: Option<RawInteger>,
    decimal: Option<RawDecimal>,
    choice: Option<Vec<String>>,
    text: Option<RawText>,
    default: Option<String>,
}

impl RawParameter {
    fn check(self, name: &ParameterName) -> Result<JobParameter, Fault> {
        let given = [
            self.integer.map(|RawInteger { least, most }| ParameterRule::Integer { least, most }),
            self.decimal.map(|RawDecimal { least, most }| ParameterRule::Decimal { least, most }),
            self.choice.map(ParameterRule::Choice),
            self.text.map(|RawText { length, characters }| ParameterRule::Text { length, characters }),
        ];
        let mut rules = given.into_iter().flatten();
        match (rules.next(), rules.next()) {
            (Some(rule), None) => Ok(JobParameter { rule, default: self.default }),
            _ => {
                let message = "needs exactly one of: integer, decimal, choice, text";
                Err(fault(&join("parameters", name.as_str()), message))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    period_seconds: u64,
    gpu_seconds: Option<u64>,
    spend_micro_units: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubmitters {
    any_token: Option<bool>,
    tokens: Option<BTreeSet<TokenName>>,
    members: Option<bool>,
    #[serde(default)]
    signers: BTreeMap<TokenName, SubmitKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawJob {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    project: Option<ProjectName>,
    open: Option<Vec<OpenPart>>,
    artifact: Option<RawArtifact>,
    command: Option<Vec<String>>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    parameters: BTreeMap<ParameterName, RawParameter>,
    #[serde(default)]
    models: Vec<RawModel>,
    #[serde(default)]
    datasets: Vec<RawModel>,
    ranks: u32,
    ranks_per_slot: Option<u32>,
    slots: Option<u32>,
    resources: RawResources,
    gpu_models: Option<Vec<String>>,
    #[serde(default)]
    placement: RawPlacement,
    egress: Option<Vec<String>>,
    priority: Option<u32>,
    run_seconds_max: u64,
    grace_seconds: Option<u64>,
    autonomy_seconds: Option<u64>,
    retries: Option<u32>,
    checkpoints: Option<u32>,
    budget: Option<RawBudget>,
    submit: RawSubmitters,
    valid_until: Option<toml::value::Datetime>,
}

impl RawJob {
    /// Checks the form, and fills in defaults. A part is open only if the manifest says so: a forgotten line
    /// opens nothing.
    pub(super) fn check(self) -> Result<Manifest, Fault> {
        let open = self.open.unwrap_or_default();
        check_open(&open, &OpenPart::Artifact, "artifact", self.artifact.is_some())?;
        check_open(&open, &OpenPart::Command, "command", self.command.is_some())?;
        let artifact = self.artifact.map(|RawArtifact { name, root }| ArtifactChoice { name, root });
        let mut parameters = BTreeMap::new();
        for (name, raw) in self.parameters {
            let parameter = raw.check(&name)?;
            parameters.insert(name, parameter);
        }
        let budget = self.budget.map(|RawBudget { period_seconds, gpu_seconds, spend_micro_units }| {
            JobBudget { period_seconds, gpu_seconds, spend_micro_units }
        });
        let ranks_per_slot = self.ranks_per_slot.unwrap_or(1);
        let submit = JobSubmitters {
            any_token: self.submit.any_token.unwrap_or(false),
            tokens: self.submit.tokens.unwrap_or_default(),
            members: self.submit.members.unwrap_or(false),
            signers: self.submit.signers,
        };
        Ok(Manifest::Job(JobManifest {
            name: self.name,
            project: self.project,
            artifact,
            command: self.command,
            environment: self.environment,
            parameters,
            models: self.models.into_iter().map(RawModel::choice).collect(),
            datasets: self.datasets.into_iter().map(RawModel::choice).collect(),
            ranks: self.ranks,
            ranks_per_slot,
            slots: self.slots.unwrap_or_else(|| self.ranks.div_ceil(ranks_per_slot.max(1))),
            resources: self.resources.check()?,
            gpu_models: self.gpu_models.unwrap_or_default(),
            placement: self.placement.choice(),
            egress: check_egress(self.egress)?,
            priority: self.priority.unwrap_or(0),
            run_seconds_max: self.run_seconds_max,
            grace_seconds: self.grace_seconds.unwrap_or(GRACE_SECONDS_DEFAULT),
            autonomy_seconds: self.autonomy_seconds.unwrap_or(limits::JOB_AUTONOMY_SECONDS_DEFAULT),
            retries: self.retries.unwrap_or(0),
            checkpoints: self.checkpoints.unwrap_or(0),
            budget,
            submit,
            valid_until: self.valid_until.map(|at| check_time(&at, "valid_until")).transpose()?,
        }))
    }
}

/// Checks that a part is either given or open.
fn check_open(open: &[OpenPart], part: &OpenPart, field: &str, given: bool) -> Result<(), Fault> {
    debug_assert!(open.len() <= limits::MANIFEST_BYTES_MAX, "the text was measured");
    match (open.contains(part), given) {
        (false, false) => Err(fault(field, format!("missing field `{field}`"))),
        (true, true) => Err(fault(field, "is given, although `open` names it")),
        (true, false) | (false, true) => Ok(()),
    }
}
