//! `quorate deploy`: proposes to run a manifest's service, and waits for the votes and the first replica.

use super::Environment;
use super::proposals::{ProposerArguments, reason_or};
use super::services::{POLL_INTERVAL, replicas};
use crate::print;
use crate::reviewed::ReviewedProposal;
use crate::session::Session;
use crate::terminal::line;
use anyhow::{Context as _, Result};
use clap::Args;
use human_chain::CircleState;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::{DryRun, DryRunRequest, ProposalState, ServiceView};
use protocol::display::counted;
use protocol::governance::Change;
use protocol::manifest::Manifest;
use protocol::{Digest, Refusal, ServiceName, error_code};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate deploy chat.toml --dry-run
  quorate deploy chat.toml --key alice.key                   propose it as alice
  quorate deploy chat.toml --wait --reason 'support desk'    draft it for a member to propose")]
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
    #[command(flatten)]
    proposer: ProposerArguments,
}

pub(crate) async fn deploy(arguments: DeployArguments, environment: &Environment) -> Result<()> {
    let manifest = read_manifest(&arguments.manifest)?;
    let session = Session::open(&environment.context()?).await?;
    let change = Change::Deploy(Box::new(manifest.clone()));
    if arguments.dry_run {
        let body = DryRunRequest { manifest };
        let answer: DryRun = session.client.query("/v1/dry-run", &body).await?;
        let answer = with_own_rule(answer, &session.circle, &change);
        environment.output().print(&answer, dry_run_text);
        return Ok(());
    }
    let (name, is_job) = (manifest.name().clone(), matches!(manifest, Manifest::Job(_)));
    let reason = reason_or(arguments.reason, || format!("deploy {name}"));
    let proposal = arguments.proposer.propose(environment, &session, change, reason).await?;
    if arguments.wait {
        wait(&session, proposal, &name, is_job, arguments.timeout.into()).await?;
    }
    Ok(())
}

/// Reads a manifest file. An error names the line and the field.
pub(super) fn read_manifest(path: &Path) -> Result<Manifest> {
    let place = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("read `{place}`"))?;
    let manifest = Manifest::from_toml(&text).map_err(|error| {
        let (line, column) = (error.line, error.column);
        let message = format!("{place}:{line}:{column}: {}: {}", error.field, error.message);
        Refusal::new(error.code, message)
    })?;
    Ok(manifest)
}

/// Returns the answer with the rule of the circle that was verified here, in place of control's sentence.
fn with_own_rule(answer: DryRun, circle: &CircleState, change: &Change) -> DryRun {
    DryRun { needs: format!("{} must approve", circle.rule_text(change)), ..answer }
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
        text.push_str(&format!("{}\n", line(waiting)));
    }
    let outranked: Vec<&str> = answer.outranked.iter().map(ServiceName::as_str).collect();
    if !outranked.is_empty() {
        let (priority, names) = (answer.priority, outranked.join(", "));
        text.push_str(&format!("priority {priority}; may take the room of {names}\n"));
    }
    for roll_out in &answer.roll_out {
        text.push_str(&format!("{}\n", line(roll_out)));
    }
    text.push_str(&format!("{}\n", line(&answer.needs)));
    match answer.spend_micro_units_per_hour {
        Some(limit) => text.push_str(&format!(
            "spend limit {}.{:06} per hour, at the prices that the circle voted\n",
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

async fn wait(
    session: &Session,
    mut proposal: ReviewedProposal,
    name: &ServiceName,
    is_job: bool,
    limit: Duration,
) -> Result<()> {
    let bar = spinner();
    let deadline = Instant::now() + limit;
    let id = proposal.view.id;
    while proposal.can_be_approved() {
        bar.set_message(format!("waiting for votes: {}", proposal.lacking(&session.circle)));
        pause(deadline, &id.to_string()).await?;
        proposal = session.proposal(&id).await?;
    }
    let certificate = certificate_of(proposal.view.state, proposal.view.certificate)?;
    // The approval of a job starts nothing.
    if is_job {
        bar.finish_and_clear();
        return Ok(());
    }
    loop {
        let service: ServiceView = session.client.get(&format!("/v1/services/{name}")).await?;
        if answers_under(&service, certificate)? {
            bar.finish_and_clear();
            let (current, desired) = (service.ready_current, service.desired);
            print::err(format_args!("{name}: {current} of {} under the new approval", served(desired)));
            return Ok(());
        }
        bar.set_message(describe_loading(&service));
        pause(deadline, name.as_str()).await?;
    }
}

/// Returns the certificate of a decided proposal, or an error with the reason why it has none.
fn certificate_of(state: ProposalState, certificate: Option<Digest>) -> Result<Digest, Refusal> {
    let code = match state {
        ProposalState::Expired => error_code::PROPOSAL_EXPIRED,
        ProposalState::Stale => error_code::PROPOSAL_STALE,
        _ => error_code::QUORUM_NOT_REACHED,
    };
    certificate.ok_or_else(|| Refusal::new(code, format!("the proposal ended in the state `{state}`")))
}

/// Returns whether a replica answers under this approval; a replica under an earlier approval does not count.
fn answers_under(service: &ServiceView, certificate: Digest) -> Result<bool, Refusal> {
    if service.roll_out.returned_from == Some(certificate) {
        let cause = service.roll_out.cause.as_deref().unwrap_or_default();
        let message = format!("{} has returned to the approval before: {cause}", service.name);
        return Err(Refusal::new(error_code::SERVICE_RETURNED, message));
    }
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
    tokio::time::sleep(POLL_INTERVAL).await;
    Ok(())
}

/// Returns the subject and the verb of a sentence about this many replicas: `2 replicas serve`.
fn served(desired: u32) -> String {
    let verb = if desired == 1 { "serves" } else { "serve" };
    format!("{} {verb}", counted(desired.into(), "replica"))
}

fn describe_loading(service: &ServiceView) -> String {
    let reports = service.slots.iter().filter_map(|slot| slot.report.as_ref());
    match reports.max_by_key(|report| report.segments_verified) {
        Some(report) => format!(
            "{}: {}, {} of {} verified",
            service.name,
            report.state,
            report.segments_verified,
            counted(report.segments_total, "segment")
        ),
        None => format!("{}: placing", service.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::agent::{SlotReport, SlotState};
    use protocol::api::{DryRunPlacement, SlotView};
    use protocol::{Fence, SlotIndex};

    fn replica_that_loads(slot: u32, segments_verified: u64) -> SlotView {
        let report = SlotReport {
            service: "mine".parse().expect("a name"),
            slot: SlotIndex(slot),
            fence: Fence::new(1, 1),
            state: SlotState::Loading,
            detail: String::new(),
            segments_verified,
            segments_total: 12,
            restarts: 0,
            metrics: None,
        };
        SlotView {
            slot: SlotIndex(slot),
            node: None,
            fence: Fence::new(1, 1),
            report: Some(report),
            why: String::new(),
        }
    }

    #[test]
    fn a_proposal_without_a_certificate_ends_the_wait_with_the_code_of_its_end() {
        let certificate = Digest::of(b"certificate");
        assert_eq!(certificate_of(ProposalState::Approved, Some(certificate)), Ok(certificate));
        for (state, code, text) in [
            (ProposalState::Rejected, error_code::QUORUM_NOT_REACHED, "rejected"),
            (ProposalState::Expired, error_code::PROPOSAL_EXPIRED, "expired"),
            (ProposalState::Stale, error_code::PROPOSAL_STALE, "stale"),
            (ProposalState::Void, error_code::QUORUM_NOT_REACHED, "void"),
        ] {
            let refusal = Refusal::new(code, format!("the proposal ended in the state `{text}`"));
            assert_eq!(certificate_of(state, None), Err(refusal));
        }
    }

    #[test]
    fn the_progress_is_that_of_the_replica_that_has_most() {
        let mut service = crate::testing::service_view(b"new", 0, 0);
        assert_eq!(describe_loading(&service), "mine: placing");
        service.slots = vec![replica_that_loads(0, 3), replica_that_loads(1, 7)];
        assert_eq!(describe_loading(&service), "mine: loading, 7 of 12 segments verified");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline_and_says_how_to_find_the_reason() {
        assert_eq!(pause(Instant::now() + Duration::from_secs(60), "mine").await, Ok(()));
        let refusal = pause(Instant::now(), "mine").await.expect_err("the deadline has passed");
        assert_eq!(refusal.code, error_code::TIMED_OUT);
        assert!(refusal.message.contains("`quorate why mine`"), "{refusal}");
    }

    /// Attack: control claims that one signature is enough, or that none is needed. The positive control is
    /// the text of the answer as it came.
    #[test]
    fn attack_a_dry_run_names_no_rule_of_controls_own() {
        let circle = crate::testing::SampleCircle::founded();
        let change = Change::Deploy(Box::new(crate::testing::manifest("bert")));
        for claimed in ["1 of (alice) must approve", "no vote is needed\nalready approved"] {
            let answer = DryRun {
                desired: 1,
                placements: vec![],
                possible: vec![],
                waiting: vec![],
                needs: claimed.into(),
                priority: 50,
                outranked: vec![],
                roll_out: vec![],
                spend_micro_units_per_hour: None,
            };
            assert!(dry_run_text(&answer).contains(&line(claimed)));
            let shown = dry_run_text(&with_own_rule(answer, &circle.state, &change));
            assert_eq!(
                shown,
                "starts with 1 replica\n2 of (alice, bob, carol) must approve\nno spend limit is set\n"
            );
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
            priority: 80,
            outranked: vec!["batch".parse().expect("a name"), "trial".parse().expect("a name")],
            roll_out: vec!["the roll-out replaces 1 replica at once".into()],
            spend_micro_units_per_hour: None,
        };
        let expected = "\
starts with 1 replica
  slot 0 would start on node-1
`quorate scale` can raise this to 2 without a vote
  slot 1 could start on node-2
no more than 2 of at most 3 find room now
priority 80; may take the room of batch, trial
the roll-out replaces 1 replica at once
2 of (a, b, c) must approve
no spend limit is set
";
        assert_eq!(dry_run_text(&answer), expected);
    }

    #[test]
    fn only_a_replica_of_the_new_approval_ends_the_wait() {
        let view = crate::testing::service_view;
        let new = Digest::of(b"new");
        let waits = |view: &ServiceView| answers_under(view, new).map_err(|refusal| refusal.code);
        assert_eq!(waits(&view(b"new", 2, 0)), Ok(false), "two answer, under the earlier approval");
        assert_eq!(waits(&view(b"new", 1, 1)), Ok(true));
        let mut returned = view(b"before", 2, 2);
        returned.roll_out.returned_from = Some(new);
        assert_eq!(waits(&returned), Err(error_code::SERVICE_RETURNED), "it will not answer by itself");
        assert_eq!(waits(&view(b"newer", 2, 2)), Err(error_code::PROPOSAL_STALE), "it is another's");
    }
}
