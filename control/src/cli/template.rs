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
use protocol::{ArtifactRoot, Refusal, ServiceName, error_code};

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
    /// Print a manifest for a job on a registered artifact
    #[command(after_help = "Example:\n  quorate new job --artifact trainer --name train > train.toml")]
    Job {
        /// Name of a registered artifact; `quorate artifact list` shows them
        #[arg(long)]
        artifact: protocol::ModelName,
        /// Name of the job [default: the artifact's]
        #[arg(long)]
        name: Option<ServiceName>,
    },
}

pub(crate) async fn new(command: NewCommand, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let models: Vec<ModelRecord> = session.client.list("/v1/models").await?;
    let (stored, name, is_job) = match command {
        NewCommand::Service { model, name } => (model, name, false),
        NewCommand::Job { artifact, name } => (artifact, name, true),
    };
    let record = models.iter().find(|record| record.name == stored);
    let record = record.ok_or_else(|| {
        let list = if is_job { "artifact" } else { "model" };
        let message = format!("no {list} `{stored}`; `quorate {list} list` shows all");
        Refusal::new(error_code::MODEL_NOT_FOUND, message)
    })?;
    let name = match name {
        Some(name) => name,
        None => stored.as_str().parse().map_err(|error: String| anyhow!(error))?,
    };
    let text = match record.kind {
        StoredKind::Model if !is_job => {
            check_root(&session.circle, record)?;
            service_template(&name, record, 1, 3)
        }
        StoredKind::Artifact { tree } if is_job => job_template(&name, record, tree),
        kind => {
            let wanted =
                if is_job { "artifact; a job runs an artifact" } else { "model; a service runs a model" };
            let message = format!("`{stored}` is of kind {}, not {wanted}", kind.name());
            return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message).into());
        }
    };
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
# spend_micro_units_per_hour = 400000   # a replica that would pass it waits; needs voted prices
# valid_until = 2027-12-31T00:00:00Z
# on_expiry = "hold"         # or "drain"
# autonomy_seconds = 86400   # time for which a node keeps its replicas without hearing the control plane
# priority = 50              # 1 to 100; a higher one is placed first, and takes the room of lower ones
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

[rollout]                    # of this approval over the one before, and of other planned work
# ready_seconds = 10         # a new replica counts after it has answered for so long; 0 by default
# max_unavailable = 1        # replicas that may be away at once; 0: a replacement always comes first
# failure_limit = 3          # failed starts in a row that end the roll-out
# on_failure = "return"      # to what is approved now, without a vote; by default "hold": the roll-out waits
"#,
        model = record.name,
        root = record.root,
        words = human_chain::words_of(&record.root.0).join(" "),
    )
}

/// Renders a commented manifest of a job that is valid as it is.
fn job_template(name: &ServiceName, record: &ModelRecord, tree: ArtifactRoot) -> String {
    format!(
        r#"# The envelope that the circle is asked to approve: within it, a submission runs without a vote.
# `quorate job check FILE` shows the command of each rank as a node derives it.
kind = "job"
name = "{name}"
# project = "research"       # of whose quota and share it is, see `quorate project list`; default: of none
# The program and its arguments. Its path is the one in the artifact, which `quorate artifact build` and
# `import` print. {{steps}} stands for the parameter; a brace alone is written twice. No shell reads a value.
command = ["/usr/bin/python3", "train.py", "--steps={{steps}}"]
# open = []                  # "artifact", "command": each submission names it, and must be signed
ranks = 1                    # of a gang: all run, or none
# ranks_per_slot = 1         # at most, on one node, in one sandbox
# slots = 1                  # held by all gangs together: ranks at once = slots * ranks_per_slot
run_seconds_max = 3600
# grace_seconds = 30         # from the request to end until a rank is killed
# autonomy_seconds = 3600    # time for which a rank runs on without hearing the control plane
# priority = 0               # the highest that a submission may ask for, at most 100
# retries = 0                # attempts after one that failed
# checkpoints = 0            # kept, the newest
# gpu_models = []            # any of these, as the node's driver names them
# models = []                # {{ name = "base", root = "..." }}: read under /models/base
# datasets = []              # likewise, under /datasets
# egress = []                # network destinations; must be empty in this release
# valid_until = 2027-12-31T00:00:00Z

[artifact]
name = "{artifact}"
# The next line is the digest of the packed tree; its words, to compare with the importer's:
#   {words}
root = "{tree}"

[parameters]                 # each in one or more arguments of the command
steps = {{ integer = {{ least = 1, most = 100000 }}, default = "1000" }}
# rate = {{ decimal = {{ least = "0.0001", most = "1" }} }}
# mode = {{ choice = ["fast", "exact"], default = "fast" }}
# run = {{ text = {{ length = 32, characters = "word" }} }}   # or "path", "printable"

[submit]                     # who may submit
members = true               # each by a signature
# any_token = true           # any access token of scope `submit`
# tokens = ["ci"]            # or those of these holders
# signers.robot = {{ ed25519 = "...", ml_dsa = "..." }}     # submit keys, each by a signature

[resources]                  # of each rank
cpu_millicores = 2000        # thousandths of a core; at least 50
memory = "4 GiB"
# gpu_count = 1              # whole GPUs; or a share of one: gpu_share_percent = 25

[placement]
# regions = ["eu-1"]         # default: any region
# node_selector = {{ disk = "ssd" }}
isolation = "same_uid"       # minimum isolation accepted: "full", "same_uid", "none"

# [budget]                   # of all submissions together; an attempt that could pass it waits
# period_seconds = 86400
# gpu_seconds = 360000
# spend_micro_units = 1000000
"#,
        artifact = record.name,
        words = human_chain::words_of(&tree.0).join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_a_job_is_valid_and_names_its_defaults() {
        let record = crate::testing::model_record("trainer", "amd64");
        let tree = ArtifactRoot(protocol::Digest::of(b"tree"));
        let text = job_template(&"train".parse().expect("a name"), &record, tree);
        let read = |text: &str| Manifest::from_toml(text).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        let Manifest::Job(job) = read(&text) else { panic!("a job") };
        assert_eq!(job.artifact.as_ref().map(|artifact| artifact.root), Some(tree));
        // Each of these lines shows a default, so that it changes nothing.
        let mut shown = 0;
        for key in
            ["open", "ranks_per_slot", "slots", "grace_seconds", "autonomy_seconds", "priority", "retries"]
                .into_iter()
                .chain(["checkpoints", "gpu_models", "models", "datasets", "egress"])
        {
            let uncommented = text.replace(&format!("# {key} = "), &format!("{key} = "));
            assert_ne!(uncommented, text, "{key}");
            assert_eq!(read(&uncommented), Manifest::Job(job.clone()), "{key}");
            shown += 1;
        }
        assert_eq!(shown, 12);
        let Manifest::Job(of_project) = read(&text.replace("# project = ", "project = ")) else {
            panic!("a job")
        };
        assert_eq!(of_project.project.as_ref().map(|project| project.as_str()), Some("research"));
    }

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
            assert_eq!(keys.len(), 16, "{text}");
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
