//! `quorate new`, `deploy`, `service`, `scale`, `retire` and `logs`: the life cycle of services.

use super::Environment;
use super::output::table;
use super::proposals::{print_submitted, reason_or, signatures};
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::agent::SlotState;
use protocol::api::*;
use protocol::governance::Change;
use protocol::manifest::Manifest;
use protocol::model::ModelRecord;
use protocol::{Digest, Refusal, ServiceName, error_code};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Interval between two polls of a waiting command.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

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

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate deploy chat.toml --dry-run
  quorate deploy chat.toml --wait --reason 'support desk'")]
pub(crate) struct DeployArguments {
    /// Manifest file
    manifest: PathBuf,
    /// Show the placement of the slots and the members that must sign; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait for the votes and then for the first replica
    #[arg(long)]
    wait: bool,
    /// Time to wait before the command gives up
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    timeout: humantime::Duration,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// List services
    #[command(after_help = "Example:\n  quorate service list")]
    List,
    /// Show one service and its slots
    #[command(after_help = "Example:\n  quorate service show minilm")]
    Show {
        /// Name of the service
        service: ServiceName,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate scale minilm 3")]
pub(crate) struct ScaleArguments {
    /// Name of the service
    service: ServiceName,
    /// Number of replicas, within the approved envelope
    replicas: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate retire minilm --grace 30s --reason 'replaced by minilm-2'")]
pub(crate) struct RetireArguments {
    /// Name of the service
    service: ServiceName,
    /// Time that running requests have to finish
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    grace: humantime::Duration,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate logs minilm -f")]
pub(crate) struct LogsArguments {
    /// Name of the service
    service: ServiceName,
    /// Keep printing new lines as they arrive
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn new(command: NewCommand, environment: &Environment) -> Result<()> {
    let NewCommand::Service { model, name } = command;
    let page: Page<ModelRecord> = environment.context()?.client()?.get("/v1/models").await?;
    let record = page.items.iter().find(|record| record.name == model);
    let record = record.ok_or_else(|| {
        let message = format!("no model `{model}`; `quorate model list` shows all");
        Refusal::new(error_code::MODEL_NOT_FOUND, message)
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

/// Renders a commented manifest that is valid as it is.
#[must_use]
pub fn service_template(name: &ServiceName, record: &ModelRecord, min: u32, max: u32) -> String {
    let (task, millicores) = if record.architecture == "bert" { ("embed", 400) } else { ("generate", 200) };
    format!(
        r#"# The envelope that the circle is asked to approve: within it, the scheduler acts without a vote.
kind = "service"
name = "{name}"
task = "{task}"               # "embed" or "generate"
# egress = []                # network destinations; must be empty in this release
# spend_micro_units_per_hour = 400000   # signed and shown; not metered in this release
# valid_until = 2027-12-31T00:00:00Z
# on_expiry = "hold"         # or "drain"
# context_tokens_max = 256
# batch_sequences_max = 32

[model]
name = "{model}"           # the name that clients send as `model`
root = "{root}" # digest over every byte of the model

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
    )
}

pub(crate) async fn deploy(arguments: DeployArguments, environment: &Environment) -> Result<()> {
    let place = arguments.manifest.display();
    let text = std::fs::read_to_string(&arguments.manifest).with_context(|| format!("read `{place}`"))?;
    let manifest = Manifest::from_toml(&text).map_err(|error| {
        let (line, column) = (error.line, error.column);
        let message = format!("{place}:{line}:{column}: {}: {}", error.field, error.message);
        Refusal::new(error.code, message)
    })?;
    let context = environment.context()?;
    if arguments.dry_run {
        let body = DryRunRequest { manifest };
        let answer: DryRun = context.client()?.query("/v1/dry-run", &body).await?;
        environment.output().print(&answer, dry_run_text);
        return Ok(());
    }
    let session = Session::open(&context).await?;
    let name = manifest.name().clone();
    let reason = reason_or(arguments.reason, || format!("deploy {name}"));
    let view = session.propose(Change::Deploy(Box::new(manifest)), reason, PROPOSAL_LIFETIME_MS).await?;
    print_submitted(environment, &session, &view);
    if arguments.wait {
        wait(&session, view, &name, arguments.timeout.into()).await?;
    }
    Ok(())
}

fn dry_run_text(answer: &DryRun) -> String {
    let mut text = String::new();
    text.push_str(&format!("starts with {}\n", replicas(answer.desired)));
    for placement in &answer.placements {
        text.push_str(&format!("  slot {} would start on {}\n", placement.slot, placement.node));
    }
    if !answer.possible.is_empty() {
        let most = answer.placements.len() + answer.possible.len();
        text.push_str(&format!("`quorate scale` can raise this to {most} without a vote\n"));
    }
    for placement in &answer.possible {
        text.push_str(&format!("  slot {} could start on {}\n", placement.slot, placement.node));
    }
    for waiting in &answer.waiting {
        text.push_str(&format!("{waiting}\n"));
    }
    text.push_str(&format!("{}\n", answer.needs));
    match answer.spend_micro_units_per_hour {
        Some(limit) => text.push_str(&format!(
            "spend limit {}.{:06} per hour; not metered in this release\n",
            limit / 1_000_000,
            limit % 1_000_000
        )),
        None => text.push_str("no spend limit is set\n"),
    }
    text
}

fn replicas(count: u32) -> String {
    format!("{count} replica{}", if count == 1 { "" } else { "s" })
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
        bar.set_message(format!("waiting for votes: {}", signatures(&session.circle, &view)));
        pause(deadline, &view.id.to_string()).await?;
        view = session.client.get(&format!("/v1/proposals/{}", view.id)).await?;
    }
    let certificate = certificate_of(&view)?;
    loop {
        let service: ServiceView = session.client.get(&format!("/v1/services/{name}")).await?;
        if answers_under(&service, certificate)? {
            bar.finish_and_clear();
            let (current, desired) = (service.ready_current, service.desired);
            eprintln!("{name}: {current} of {desired} replicas serve under the new approval");
            return Ok(());
        }
        bar.set_message(describe_loading(&service));
        pause(deadline, name.as_str()).await?;
    }
}

/// Returns the certificate of a decided proposal, or an error with the reason why it has none.
fn certificate_of(view: &ProposalView) -> Result<Digest, Refusal> {
    let code = match view.state {
        ProposalState::Expired => error_code::PROPOSAL_EXPIRED,
        ProposalState::Stale => error_code::PROPOSAL_STALE,
        _ => error_code::QUORUM_NOT_REACHED,
    };
    view.certificate
        .ok_or_else(|| Refusal::new(code, format!("the proposal ended in the state `{}`", view.state)))
}

/// Returns whether a replica answers under this approval; a replica under an earlier approval does not count.
fn answers_under(service: &ServiceView, certificate: Digest) -> Result<bool, Refusal> {
    if service.certificate != certificate {
        let (name, now) = (&service.name, service.certificate.short());
        let message = format!("a newer approval of {name} is in force (certificate {now})");
        return Err(Refusal::new(error_code::PROPOSAL_STALE, message));
    }
    Ok(service.ready_current > 0)
}

async fn pause(deadline: Instant, subject: &str) -> Result<(), Refusal> {
    if Instant::now() >= deadline {
        let message = format!("timed out; `quorate why {subject}` shows the reason");
        return Err(Refusal::new(error_code::TIMED_OUT, message));
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    Ok(())
}

fn describe_loading(service: &ServiceView) -> String {
    let reports = service.slots.iter().filter_map(|slot| slot.report.as_ref());
    match reports.max_by_key(|report| report.segments_verified) {
        Some(report) => format!(
            "{}: {}, {} of {} segments verified",
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
            report.map_or("-".into(), |report| report.state.to_string()),
            report.map_or("-".into(), |r| format!("{}/{}", r.segments_verified, r.segments_total)),
            report.filter(|r| r.state != SlotState::Ready).map_or(slot.why.clone(), |r| r.detail.clone()),
        ]
    };
    let header = ["slot", "node", "fence", "state", "segments", "why"];
    format!(
        "{}: {} of {} replicas ready{}, certificate {}\n\n{}",
        service.name,
        service.ready,
        service.desired,
        match service.ready - service.ready_current {
            0 => String::new(),
            earlier => format!(" ({earlier} under an earlier approval)"),
        },
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
            "scaled {} to {} (within the approved envelope; no vote needed)",
            arguments.service,
            replicas(arguments.replicas)
        )
    });
    Ok(())
}

pub(crate) async fn retire(arguments: RetireArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let service = arguments.service;
    let reason = reason_or(arguments.reason, || format!("retire {service}"));
    let grace_seconds = u32::try_from(arguments.grace.as_secs()).unwrap_or(u32::MAX);
    let change = Change::Retire { service, grace_seconds };
    let view = session.propose(change, reason, PROPOSAL_LIFETIME_MS).await?;
    print_submitted(environment, &session, &view);
    Ok(())
}

pub(crate) async fn logs(arguments: LogsArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let mut reader = LogReader::default();
    loop {
        let path = format!("/v1/services/{}/logs?after={}", arguments.service, reader.after);
        let Some(lines) = reader.take(client.get(&path).await?) else {
            eprintln!("note: the leader changed; lines written in between may be missing");
            continue;
        };
        for line in &lines {
            environment.output().print(line, |line| {
                format!("{} {}/{} {}", human_chain::show_time(line.at), line.node, line.slot, line.text)
            });
        }
        if lines.is_empty() {
            if !arguments.follow {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Read position in a service's log.
#[derive(Debug, Default)]
struct LogReader {
    epoch: Option<u64>,
    after: u64,
}

impl LogReader {
    /// Returns the lines of a page, or none if another leader answered than before.
    ///
    /// Each leader numbers its lines from the beginning. The page was requested with the earlier leader's
    /// number, so it must be requested again.
    fn take(&mut self, page: LogPage) -> Option<Vec<LogLine>> {
        if self.epoch.replace(page.epoch).is_some_and(|before| before != page.epoch) {
            self.after = 0;
            return None;
        }
        self.after = page.items.last().map_or(self.after, |line| line.sequence);
        Some(page.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Millis, SlotIndex};

    fn template(architecture: &str) -> Manifest {
        let record = crate::testing::model_record("mine", architecture);
        let text = service_template(&"mine".parse().expect("a name"), &record, 1, 3);
        Manifest::from_toml(&text).expect("valid")
    }

    #[test]
    fn the_template_is_valid_as_it_is() {
        for (architecture, task) in [("bert", "embed"), ("llama", "generate")] {
            let Manifest::Service(service) = template(architecture) else { panic!("a service") };
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
            assert_eq!(keys.len(), 9, "{text}");
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

    #[test]
    fn a_dry_run_tells_apart_what_starts_and_what_could() {
        let placement =
            |slot, node: &str| DryRunPlacement { slot: SlotIndex(slot), node: node.parse().expect("a name") };
        let answer = DryRun {
            desired: 1,
            placements: vec![placement(0, "node-1")],
            possible: vec![placement(1, "node-2")],
            waiting: vec!["no more than 2 of at most 3 find room now".into()],
            needs: "2 of (a, b, c) must approve".into(),
            spend_micro_units_per_hour: None,
        };
        let expected = "\
starts with 1 replica
  slot 0 would start on node-1
`quorate scale` can raise this to 2 without a vote
  slot 1 could start on node-2
no more than 2 of at most 3 find room now
2 of (a, b, c) must approve
no spend limit is set
";
        assert_eq!(dry_run_text(&answer), expected);
    }

    #[test]
    fn only_a_replica_of_the_new_approval_ends_the_wait() {
        let view = |certificate: &[u8], ready, ready_current| ServiceView {
            name: "mine".parse().expect("a name"),
            manifest: template("bert"),
            certificate: Digest::of(certificate),
            desired: 2,
            ready,
            ready_current,
            retiring: false,
            slots: vec![],
        };
        let new = Digest::of(b"new");
        let waits = |view: &ServiceView| answers_under(view, new).map_err(|refusal| refusal.code);
        assert_eq!(waits(&view(b"new", 2, 0)), Ok(false), "two answer, under the earlier approval");
        assert_eq!(waits(&view(b"new", 1, 1)), Ok(true));
        assert_eq!(waits(&view(b"newer", 2, 2)), Err(error_code::PROPOSAL_STALE), "it is another's");
    }

    #[test]
    fn following_starts_over_when_another_leader_answers() {
        let line = |sequence, text: &str| LogLine {
            sequence,
            at: Millis(1),
            node: "node-1".parse().expect("a name"),
            slot: SlotIndex(0),
            text: text.into(),
        };
        let mut reader = LogReader::default();
        let mut read = |after, epoch, items: Vec<LogLine>| {
            assert_eq!(reader.after, after, "what is asked for");
            let lines = reader.take(LogPage { epoch, items })?;
            Some(lines.into_iter().map(|line| line.text).collect::<Vec<_>>())
        };
        assert_eq!(read(0, 3, vec![line(1, "one"), line(2, "two")]), Some(vec!["one".into(), "two".into()]));
        assert_eq!(read(2, 3, vec![]), Some(vec![]));
        assert_eq!(
            read(2, 5, vec![line(3, "the new leader's third")]),
            None,
            "the first two were not asked for"
        );
        assert_eq!(read(0, 5, vec![line(1, "after")]), Some(vec!["after".into()]));
        assert_eq!(read(1, 5, vec![]), Some(vec![]));
    }
}
