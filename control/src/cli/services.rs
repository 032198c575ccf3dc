//! Services: a manifest, a vote, replicas; then scale, look, retire.

use super::Environment;
use super::output::table;
use super::proposals::print_submitted;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::agent::SlotState;
use protocol::api::*;
use protocol::governance::Change;
use protocol::manifest::Manifest;
use protocol::model::ModelRecord;
use protocol::{ServiceName, error_code};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a waiting command looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(crate) enum NewCommand {
    /// A service on a registered model
    #[command(after_help = "Example:\n  quorate new service --model minilm > minilm.toml")]
    Service {
        /// A registered model; `quorate model list` shows them
        #[arg(long)]
        model: protocol::ModelName,
        /// The service's name [default: the model's]
        #[arg(long)]
        name: Option<ServiceName>,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate deploy chat.toml --dry-run\n  quorate deploy chat.toml --wait --reason 'support desk'"
)]
pub(crate) struct DeployArguments {
    /// The manifest
    manifest: PathBuf,
    /// Show where slots would go and who must sign; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait for the votes and then for the first replica
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this long
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    timeout: humantime::Duration,
    /// Why, for those who vote
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// List services
    List,
    /// Show one service and its slots
    #[command(after_help = "Example:\n  quorate service show minilm")]
    Show {
        /// Its name
        service: ServiceName,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate scale minilm 3")]
pub(crate) struct ScaleArguments {
    /// Which service
    service: ServiceName,
    /// How many replicas, within the approved envelope
    replicas: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate retire minilm --grace 30s --reason 'replaced by minilm-2'")]
pub(crate) struct RetireArguments {
    /// Which service
    service: ServiceName,
    /// How long running requests may take to finish
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    grace: humantime::Duration,
    /// Why, for those who vote
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate logs minilm -f")]
pub(crate) struct LogsArguments {
    /// Which service
    service: ServiceName,
    /// Go on printing what is written
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn new(command: NewCommand, environment: &Environment) -> Result<()> {
    let NewCommand::Service { model, name } = command;
    let page: Page<ModelRecord> = environment.context()?.client()?.get("/v1/models").await?;
    let record = page.items.iter().find(|record| record.name == model);
    let record = record.ok_or_else(|| {
        anyhow!("{}: no model `{model}`; `quorate model list` shows all", error_code::MODEL_NOT_FOUND)
    })?;
    let name = match name {
        Some(name) => name,
        None => model.as_str().parse().map_err(|error: String| anyhow!(error))?,
    };
    let text = service_template(&name, record, 1, 3);
    Manifest::from_toml(&text).context("the template is not a valid manifest")?;
    print!("{text}");
    Ok(())
}

/// A commented manifest, valid as it is.
#[must_use]
pub fn service_template(name: &ServiceName, record: &ModelRecord, min: u32, max: u32) -> String {
    let (task, millicores) = if record.architecture == "bert" { ("embed", 400) } else { ("generate", 200) };
    format!(
        r#"# What the circle is asked to approve: the envelope in which the scheduler may act alone.
kind = "service"
name = "{name}"
task = "{task}"               # "embed" or "generate"

[model]
name = "{model}"           # what clients send as `model`
root = "{root}" # what it is, to the last bit

[replicas]
min = {min}                      # always kept running
max = {max}                      # never exceeded; `quorate scale` moves between the two without a vote

[resources]                  # of each replica
cpu_millicores = {millicores}         # thousandths of a core
memory = "512 MiB"           # weights are shared by a node's replicas and not counted here
# gpu_count = 1              # whole GPUs, or
# gpu_share_percent = 25     # a share of one
# gpu_memory = "16 GiB"

[placement]
# regions = ["eu-1"]         # any, unless named
# node_selector = {{ disk = "ssd" }}
isolation = "same_uid"       # least isolation accepted: "full", "same_uid", "none"

# Keys that stand above all [sections] in the file:
#   spend_micro_units_per_hour = 400000   # signed and shown; this release meters nothing
#   valid_until = 2027-12-31T00:00:00Z
#   on_expiry = "hold"       # or "drain"
#   context_tokens_max = 256
#   batch_sequences_max = 32
# Workloads reach nothing outside: `egress` must be empty in this release.
"#,
        model = record.name,
        root = record.root,
    )
}

pub(crate) async fn deploy(arguments: DeployArguments, environment: &Environment) -> Result<()> {
    let place = arguments.manifest.display();
    let text = std::fs::read_to_string(&arguments.manifest).with_context(|| format!("read `{place}`"))?;
    let manifest = Manifest::from_toml(&text).map_err(|error| {
        anyhow!(
            "{place}:{}:{}: {}: {} ({})",
            error.line,
            error.column,
            error.field,
            error.message,
            error.code
        )
    })?;
    let context = environment.context()?;
    if arguments.dry_run {
        let body = DryRunRequest { manifest };
        let answer: DryRun = context.client()?.post("/v1/dry-run", &body).await?;
        environment.output().print(&answer, dry_run_text);
        return Ok(());
    }
    let session = Session::open(&context).await?;
    let name = manifest.name().clone();
    let reason = if arguments.reason.is_empty() { format!("deploy {name}") } else { arguments.reason };
    let view = session.propose(Change::Deploy(Box::new(manifest)), reason, PROPOSAL_LIFETIME_MS).await?;
    print_submitted(environment, &view);
    if arguments.wait {
        wait(&session, view, &name, arguments.timeout.into()).await?;
    }
    Ok(())
}

fn dry_run_text(answer: &DryRun) -> String {
    let mut text = String::new();
    for placement in &answer.placements {
        text.push_str(&format!("slot {} would go to {}\n", placement.slot, placement.node));
    }
    for waiting in &answer.waiting {
        text.push_str(&format!("would wait: {waiting}\n"));
    }
    text.push_str(&format!("needs {}\n", answer.needs));
    match answer.spend_micro_units_per_hour {
        Some(limit) => text.push_str(&format!(
            "spend limit {}.{:06} per hour; this release meters nothing\n",
            limit / 1_000_000,
            limit % 1_000_000
        )),
        None => text.push_str("no spend limit is set\n"),
    }
    text
}

fn spinner() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is a constant");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

async fn wait(session: &Session, view: ProposalView, name: &ServiceName, limit: Duration) -> Result<()> {
    let bar = spinner();
    let deadline = Instant::now() + limit;
    let mut view = view;
    while view.state == ProposalState::Open {
        let missing: Vec<String> = view.missing.iter().map(ToString::to_string).collect();
        bar.set_message(format!("waiting for votes; may still sign: {}", missing.join(", ")));
        pause(deadline).await?;
        view = session.client.get(&format!("/v1/proposals/{}", view.id)).await?;
    }
    if view.state != ProposalState::Approved {
        bail!("the proposal ended as {:?}", view.state);
    }
    loop {
        let service: ServiceView = session.client.get(&format!("/v1/services/{name}")).await?;
        if service.ready > 0 {
            bar.finish_and_clear();
            eprintln!("{name}: {} of {} replicas answer", service.ready, service.desired);
            return Ok(());
        }
        bar.set_message(describe_loading(&service));
        pause(deadline).await?;
    }
}

async fn pause(deadline: Instant) -> Result<()> {
    if Instant::now() >= deadline {
        bail!("gave up waiting; `quorate why` says what it waits for");
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    Ok(())
}

fn describe_loading(service: &ServiceView) -> String {
    let reports = service.slots.iter().filter_map(|slot| slot.report.as_ref());
    match reports.max_by_key(|report| report.segments_verified) {
        Some(report) => format!(
            "{}: {:?}, {} of {} segments verified",
            service.name, report.state, report.segments_verified, report.segments_total
        ),
        None => format!("{}: placing", service.name),
    }
}

pub(crate) async fn run(command: ServiceCommand, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    match command {
        ServiceCommand::List => {
            let page: Page<ServiceView> = client.get("/v1/services").await?;
            environment.output().print(&page, |page| {
                let row = |service: &ServiceView| {
                    vec![
                        service.name.to_string(),
                        format!("{}/{}", service.ready, service.desired),
                        if service.retiring { "retiring".into() } else { "approved".into() },
                        service.certificate.short(),
                    ]
                };
                table(&["service", "ready", "state", "certificate"], page.items.iter().map(row).collect())
            });
        }
        ServiceCommand::Show { service } => {
            let view: ServiceView = client.get(&format!("/v1/services/{service}")).await?;
            environment.output().print(&view, service_text);
        }
    }
    Ok(())
}

fn service_text(service: &ServiceView) -> String {
    let row = |slot: &SlotView| {
        let report = slot.report.as_ref();
        vec![
            slot.slot.to_string(),
            slot.node.as_ref().map_or("-".into(), ToString::to_string),
            slot.fence.to_string(),
            report.map_or("-".into(), |report| format!("{:?}", report.state).to_lowercase()),
            report.map_or("-".into(), |r| format!("{}/{}", r.segments_verified, r.segments_total)),
            report.filter(|r| r.state != SlotState::Ready).map_or(slot.why.clone(), |r| r.detail.clone()),
        ]
    };
    let header = ["slot", "node", "fence", "state", "segments", "why"];
    format!(
        "{}: {} of {} replicas answer, certificate {}\n\n{}",
        service.name,
        service.ready,
        service.desired,
        service.certificate,
        table(&header, service.slots.iter().map(row).collect())
    )
}

pub(crate) async fn scale(arguments: ScaleArguments, environment: &Environment) -> Result<()> {
    let body = ScaleRequest { replicas: arguments.replicas };
    let client = environment.context()?.client()?;
    let done: serde_json::Value =
        client.post(&format!("/v1/services/{}/scale", arguments.service), &body).await?;
    environment.output().print(&done, |_| {
        format!(
            "{} shall have {} replicas; inside its envelope, so nobody had to vote",
            arguments.service, arguments.replicas
        )
    });
    Ok(())
}

pub(crate) async fn retire(arguments: RetireArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let service = arguments.service;
    let reason = if arguments.reason.is_empty() { format!("retire {service}") } else { arguments.reason };
    let grace_seconds = u32::try_from(arguments.grace.as_secs()).unwrap_or(u32::MAX);
    let change = Change::Retire { service, grace_seconds };
    let view = session.propose(change, reason, PROPOSAL_LIFETIME_MS).await?;
    print_submitted(environment, &view);
    Ok(())
}

pub(crate) async fn logs(arguments: LogsArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let mut after = 0;
    loop {
        let path = format!("/v1/services/{}/logs?after={after}", arguments.service);
        let page: Page<LogLine> = client.get(&path).await?;
        for line in &page.items {
            environment.output().print(line, |line| {
                format!("{} {}/{} {}", human_chain::show_time(line.at), line.node, line.slot, line.text)
            });
            after = line.sequence;
        }
        if page.items.is_empty() {
            if !arguments.follow {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::model::ErasureCode;
    use protocol::{Digest, ModelRoot};

    #[test]
    fn the_template_is_valid_as_it_is() {
        for (architecture, task) in [("bert", "embed"), ("llama", "generate")] {
            let record = ModelRecord {
                name: "mine".parse().expect("a name"),
                root: ModelRoot(Digest::of(b"model")),
                bytes: 1,
                segments: 1,
                erasure: ErasureCode { data: 4, parity: 2 },
                stores: Vec::new(),
                architecture: architecture.into(),
            };
            let text = service_template(&"mine".parse().expect("a name"), &record, 1, 3);
            let manifest = Manifest::from_toml(&text).expect("valid");
            let Manifest::Service(service) = manifest else { panic!("a service") };
            assert_eq!(format!("{:?}", service.task).to_lowercase(), task);
        }
    }
}
