//! `quorate new`: a commented manifest that is valid as it is.

use super::Environment;
use crate::print;
use crate::session::Session;
use anyhow::{Context as _, Result, anyhow};
use clap::Subcommand;
use human_chain::CircleState;
use protocol::checkpoint::task_of;
use protocol::manifest::{Manifest, Task};
use protocol::model::{ModelRecord, StoredKind};
use protocol::{Refusal, ServiceName, error_code};

#[derive(Debug, Subcommand)]
pub(crate) enum NewCommand {
    /// Print a manifest for a service on a registered model
    #[command(after_help = "Example:\n  quorate new service --model minilm > minilm.toml")]
    Service {
        /// Name of a registered model; `quorate model list` shows them
        #[arg(long)]
        model: protocol::ModelName,
        /// Name of the service [default: the model's]
        #[arg(long)]
        name: Option<ServiceName>,
    },
}

pub(crate) async fn new(command: NewCommand, environment: &Environment) -> Result<()> {
    let NewCommand::Service { model, name } = command;
    let session = Session::open(&environment.context()?).await?;
    let models: Vec<ModelRecord> = session.client.list("/v1/models").await?;
    let record = models.iter().find(|record| record.name == model);
    let record = record.ok_or_else(|| {
        let message = format!("no model `{model}`; `quorate model list` shows all");
        Refusal::new(error_code::MODEL_NOT_FOUND, message)
    })?;
    if record.kind != StoredKind::Model {
        let message =
            format!("`{model}` is of kind {}, not model; a service runs a model", record.kind.name());
        return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message).into());
    }
    check_root(&session.circle, record)?;
    let name = match name {
        Some(name) => name,
        None => model.as_str().parse().map_err(|error: String| anyhow!(error))?,
    };
    let text = service_template(&name, record, 1, 3);
    Manifest::from_toml(&text).context("the template is not a valid manifest")?;
    print::out(text.trim_end());
    Ok(())
}

/// Checks the root that control names against the one that the circle approved under the model's name.
fn check_root(circle: &CircleState, record: &ModelRecord) -> Result<(), Refusal> {
    match circle.model_root(&record.name).filter(|bound| *bound != record.root) {
        None => Ok(()),
        Some(bound) => {
            let message = format!(
                "control names the root {} for model `{}`; the circle approved {} ({}) under this name",
                record.root.short(),
                record.name,
                bound.short(),
                human_chain::words_of(&bound.0).join(" "),
            );
            Err(Refusal::new(error_code::MODEL_NAME_TAKEN, message))
        }
    }
}

/// Renders a commented manifest that is valid as it is.
#[must_use]
pub fn service_template(name: &ServiceName, record: &ModelRecord, min: u32, max: u32) -> String {
    let (task, millicores) = match task_of(&record.architecture) {
        Some(Task::Embed) => ("embed", 400),
        Some(Task::Generate) | None => ("generate", 200),
        Some(Task::Rerank) => ("rerank", 400),
    };
    format!(
        r#"# The envelope that the circle is asked to approve: within it, the scheduler acts without a vote.
kind = "service"
name = "{name}"
task = "{task}"               # "embed", "generate" or "rerank"
# egress = []                # network destinations; must be empty in this release
# spend_micro_units_per_hour = 400000   # signed and shown; not metered in this release
# valid_until = 2027-12-31T00:00:00Z
# on_expiry = "hold"         # or "drain"
# autonomy_seconds = 86400   # time for which a node keeps its replicas without hearing the control plane
# exclusive = false          # true: no slot ever lives on two nodes, and the autonomy is 3 seconds
# context_tokens_max = 256
# batch_sequences_max = 32

[model]
name = "{model}"           # the name that clients send as `model`
# The next line is the digest over every byte of the model; its words, to compare with the importer's:
#   {words}
root = "{root}"

[replicas]
min = {min}                      # always kept running
max = {max}                      # never exceeded; `quorate scale` moves between the two without a vote

[resources]                  # of each replica
cpu_millicores = {millicores}         # thousandths of a core; at least 50
memory = "512 MiB"           # weights are shared by a node's replicas and not counted here
# gpu_count = 1              # whole GPUs; or a share of one: gpu_share_percent = 25
#                            # minimum memory of each, with either: gpu_memory = "16 GiB"

[placement]
# regions = ["eu-1"]         # default: any region
# node_selector = {{ disk = "ssd" }}
isolation = "same_uid"       # minimum isolation accepted: "full", "same_uid", "none"
"#,
        model = record.name,
        root = record.root,
        words = human_chain::words_of(&record.root.0).join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid_as_it_is() {
        for (architecture, task) in [
            ("bert", "embed"),
            ("modernbert", "embed"),
            ("qwen3-embedder", "embed"),
            ("llama", "generate"),
            ("xlm-roberta-reranker", "rerank"),
        ] {
            let Manifest::Service(service) = crate::testing::manifest(architecture) else {
                panic!("a service")
            };
            assert_eq!(format!("{:?}", service.task).to_lowercase(), task);
        }
    }

    #[test]
    fn every_commented_key_of_the_template_may_be_uncommented() {
        // A remark is a sentence; a commented-out key reads `key = value`.
        let is_key = |line: &str| {
            let key = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")).map(|(key, _)| key);
            key.is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        };
        for architecture in ["bert", "llama"] {
            let record = crate::testing::model_record("mine", architecture);
            let text = service_template(&"mine".parse().expect("a name"), &record, 1, 3);
            let keys: Vec<usize> =
                (0..).zip(text.lines()).filter(|(_, line)| is_key(line)).map(|(at, _)| at).collect();
            assert_eq!(keys.len(), 11, "{text}");
            let uncommented = |chosen: &[usize]| -> String {
                let lines = (0..).zip(text.lines());
                lines
                    .map(|(at, line)| if chosen.contains(&at) { &line[2..] } else { line })
                    .fold(String::new(), |text, line| text + line + "\n")
            };
            for chosen in keys.iter().map(std::slice::from_ref).chain([keys.as_slice()]) {
                let text = uncommented(chosen);
                Manifest::from_toml(&text).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
            }
        }
    }
}
