//! `quorate service`, `scale`, `rollback` and `retire`: the services in force.

use super::Environment;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use crate::session::Session;
use crate::terminal::line;
use anyhow::Result;
use clap::{Args, Subcommand};
use protocol::ServiceName;
use protocol::agent::SlotState;
use protocol::api::{
    Page, RollOutProgress, RollOutView, RollbackRequest, ScaleRequest, ServiceView, SlotView,
};
use protocol::display::counted;
use protocol::governance::Change;
use std::time::Duration;

/// Interval between two polls of a waiting command.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

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
#[command(after_help = "Example:\n  quorate rollback minilm --reason 'answers are empty'")]
pub(crate) struct RollbackArguments {
    /// Name of the service
    service: ServiceName,
    /// Reason, for the record and for other operators
    #[arg(long, default_value = "")]
    reason: String,
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
    #[command(flatten)]
    proposer: ProposerArguments,
}

pub(crate) async fn run(command: ServiceCommand, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    match command {
        ServiceCommand::List => {
            let page: Page<ServiceView> = client.get("/v1/services").await?;
            environment.output().print(&page, |page| services_table(&page.items));
        }
        ServiceCommand::Show { service } => {
            let view: ServiceView = client.get(&format!("/v1/services/{service}")).await?;
            environment.output().print(&view, service_text);
        }
    }
    Ok(())
}

fn services_table(services: &[ServiceView]) -> String {
    let row = |service: &ServiceView| {
        vec![
            service.name.to_string(),
            format!("{}/{}", service.ready, service.desired),
            service_state(service).into(),
            service.certificate.short(),
        ]
    };
    table(&["service", "ready", "state", "certificate"], services.iter().map(row).collect())
}

/// Returns the state of a service in one word.
fn service_state(service: &ServiceView) -> &'static str {
    match service.roll_out.progress {
        _ if service.retiring => "retiring",
        RollOutProgress::Returned => "returned",
        RollOutProgress::Holding => "holding",
        RollOutProgress::Progressing => "rolling out",
        RollOutProgress::Complete => "approved",
    }
}

/// Returns the lines about a roll-out that is not complete, and about what a return would lead to.
fn roll_out_text(roll_out: &RollOutView) -> String {
    let starts = counted(roll_out.failed_starts.into(), "failed start");
    let mut text = match roll_out.progress {
        RollOutProgress::Complete => String::new(),
        RollOutProgress::Progressing => {
            format!("rolls out: {} available, {starts}\n", replicas(roll_out.available))
        }
        RollOutProgress::Holding => format!("the roll-out waits: {starts} in a row\n"),
        RollOutProgress::Returned => {
            let from = roll_out.returned_from.map(|from| from.short()).unwrap_or_default();
            let cause = roll_out.cause.as_deref().unwrap_or_default();
            format!("returned from certificate {from}: {}\n", line(cause))
        }
    };
    if let Some(certificate) = roll_out.returns_to {
        let short = certificate.short();
        text.push_str(&format!("`quorate rollback` would return it to certificate {short}\n"));
    }
    text
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
        "{}: {} of {} ready{}, certificate {}\n{}\n{}",
        service.name,
        service.ready,
        counted(service.desired.into(), "replica"),
        match service.ready.saturating_sub(service.ready_current) {
            0 => String::new(),
            earlier => format!(" ({earlier} under an earlier approval)"),
        },
        service.certificate,
        roll_out_text(&service.roll_out),
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

pub(crate) async fn rollback(arguments: RollbackArguments, environment: &Environment) -> Result<()> {
    let RollbackArguments { service, reason } = arguments;
    let client = environment.context()?.client()?;
    let done: serde_json::Value =
        client.post(&format!("/v1/services/{service}/rollback"), &RollbackRequest { reason }).await?;
    environment.output().print(&done, |_| {
        format!("{service} returns to the approval before, until the next vote; quorate why {service}")
    });
    Ok(())
}

pub(crate) async fn retire(arguments: RetireArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let service = arguments.service;
    let reason = reason_or(arguments.reason, || format!("retire {service}"));
    let grace_seconds = u32::try_from(arguments.grace.as_secs()).unwrap_or(u32::MAX);
    let change = Change::Retire { service, grace_seconds };
    arguments.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

/// Returns a number of replicas, in words: `1 replica`, `2 replicas`.
pub(super) fn replicas(count: u32) -> String {
    counted(count.into(), "replica")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::service_view;
    use protocol::agent::SlotReport;
    use protocol::{Fence, SlotIndex};

    fn slot(index: u32, node: Option<&str>, report: Option<(SlotState, &str)>) -> SlotView {
        let report = report.map(|(state, detail)| SlotReport {
            service: "mine".parse().expect("a name"),
            slot: SlotIndex(index),
            fence: Fence::new(1, 4),
            state,
            detail: detail.into(),
            segments_verified: 12,
            segments_total: 12,
            restarts: 0,
            metrics: None,
        });
        let node = node.map(|name| name.parse().expect("a name"));
        SlotView { slot: SlotIndex(index), node, fence: Fence::new(1, 4), report, why: "placed here".into() }
    }

    #[test]
    fn one_replica_is_not_two() {
        assert_eq!([0, 1, 2].map(replicas), ["0 replicas", "1 replica", "2 replicas"]);
    }

    #[test]
    fn a_service_that_is_retired_is_marked_in_the_list() {
        let mut retiring = service_view(b"certificate", 2, 2);
        let certificate = retiring.certificate.short();
        let lines = |services: &[ServiceView]| -> Vec<String> {
            services_table(services).lines().skip(1).map(str::to_string).collect()
        };
        assert_eq!(lines(&[retiring.clone()]), [format!("mine     2/2    approved  {certificate}")]);
        retiring.retiring = true;
        assert_eq!(lines(&[retiring]), [format!("mine     2/2    retiring  {certificate}")]);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn a_return_is_shown_with_its_cause_and_what_is_possible_beforehand() {
        let mut service = service_view(b"new", 2, 2);
        let before = protocol::Digest::of(b"before");
        service.roll_out.returns_to = Some(before);
        let lines = |service: &ServiceView| service_text(service).lines().nth(1).map(str::to_string);
        let expected = format!("`quorate rollback` would return it to certificate {}", before.short());
        assert_eq!(lines(&service), Some(expected));
        service.roll_out = RollOutView {
            progress: RollOutProgress::Returned,
            returns_to: None,
            returned_from: Some(before),
            cause: Some("3 starts in a row failed".into()),
            ..service.roll_out
        };
        let expected = format!("returned from certificate {}: 3 starts in a row failed", before.short());
        assert_eq!((lines(&service), service_state(&service)), (Some(expected), "returned"));
    }

    #[test]
    fn replicas_under_an_earlier_approval_are_counted_apart() {
        let first = |ready, current| {
            let text = service_text(&service_view(b"new", ready, current));
            text.lines().next().expect("a line").to_string()
        };
        assert!(first(2, 2).starts_with("mine: 2 of 2 replicas ready, certificate "));
        assert!(first(2, 1).starts_with("mine: 2 of 2 replicas ready (1 under an earlier approval), "));
        assert!(first(0, 1).starts_with("mine: 0 of 2 replicas ready, "), "a view that contradicts itself");
    }

    #[test]
    fn a_slot_shows_its_detail_until_it_is_ready_and_then_the_reason_for_its_place() {
        let mut service = service_view(b"new", 1, 1);
        service.slots = vec![
            slot(0, Some("node-1"), Some((SlotState::Ready, "serving"))),
            slot(1, Some("node-2"), Some((SlotState::Failed, "worker-failed: no memory"))),
            slot(2, None, None),
        ];
        let text = service_text(&service);
        let rows: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(
            rows,
            [
                "0     node-1  1.4    ready   12/12     placed here",
                "1     node-2  1.4    failed  12/12     worker-failed: no memory",
                "2     -       1.4    -       -         placed here",
            ]
        );
    }
}
