//! Nodes, audit events, the state of the cluster and the reasons for it.

use super::{ApiResult, PAGE_MAX, no_subject};
use crate::server::Server;
use crate::server::auth::Reader;
use crate::server::extract::LeaderRead;
use crate::server::problem::Failure;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use protocol::agent::PendingNode;
use protocol::api::{AuditEvent, NodeView, Page, PeerView, ReplicaView, Status, Why};
use protocol::error_code;
use protocol::governance::ControlReplica;
use serde::Deserialize;
use std::sync::Arc;

/// All admitted nodes.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Page<NodeView>)), tag = "nodes")]
pub(super) async fn nodes(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<NodeView>> {
    Ok(Json(Page::whole(server.read_view(scheduler::node_views)?)))
}

/// Nodes that ask to be admitted.
#[utoipa::path(get, path = "/v1/pending-nodes",
    responses((status = 200, body = Page<PendingNode>)), tag = "nodes")]
pub(super) async fn pending_nodes(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<PendingNode>> {
    let items = server.cluster(|cluster| cluster.pending_nodes().values().cloned().collect());
    Ok(Json(Page::whole(items)))
}

/// Query parameters of a page of audit events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    /// Return the oldest events that are newer than this number, to page forward.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Return the newest events that are older than this number, to page back.
    #[param(minimum = 0)]
    before: Option<i64>,
}

/// A page of at most 500 audit events, oldest first.
///
/// With `before`, the page holds the newest events that are older; with `after`, the oldest that are newer.
/// Without either it holds the newest of all.
#[utoipa::path(get, path = "/v1/events", params(Events),
    responses((status = 200, body = Page<AuditEvent>)), tag = "status")]
pub(super) async fn events(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<Events>, QueryRejection>,
) -> ApiResult<Page<AuditEvent>> {
    let Query(Events { after, before }) = query?;
    let sequence = |name: &str, number: Option<i64>| {
        let refuse = |_| {
            Failure::new(error_code::REQUEST_INVALID, "the number is negative").at(format!("query {name}"))
        };
        number.map(u64::try_from).transpose().map_err(refuse)
    };
    let (after, before) = (sequence("after", after)?, sequence("before", before)?);
    let items = server.cluster(|cluster| {
        let events: Vec<&AuditEvent> = cluster.audit().after(after.unwrap_or(0), usize::MAX).collect();
        choose_events(&events, after.is_some(), before).iter().map(|event| (*event).clone()).collect()
    });
    Ok(Json(Page::whole(items)))
}

/// Returns a page of events: the first ones when paging forward, the last ones when paging back.
fn choose_events<'a>(
    events: &'a [&'a AuditEvent],
    reads_on: bool,
    before: Option<u64>,
) -> &'a [&'a AuditEvent] {
    let end = before.map_or(events.len(), |before| events.partition_point(|event| event.sequence < before));
    let events = &events[..end];
    if reads_on { &events[..end.min(PAGE_MAX)] } else { &events[end.saturating_sub(PAGE_MAX)..] }
}

/// The problems of the cluster, each with the next command.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)), tag = "status")]
pub(super) async fn status(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Status> {
    let leader = scheduler::LeaderView { leader: Some(server.id), silent: server.peers.silent() };
    Ok(Json(server.read_view(|view| scheduler::status(view, leader))?))
}

/// The control replicas as this one sees them. Every replica answers, including those that do not lead.
#[utoipa::path(get, path = "/v1/replica", responses((status = 200, body = ReplicaView)), tag = "status")]
pub(super) async fn replica(_: Reader, State(server): State<Arc<Server>>) -> Json<ReplicaView> {
    let status = server.handle.status();
    let silent = server.peers.silent();
    let view = |replica: &ControlReplica| PeerView {
        id: replica.id,
        api: replica.api.clone(),
        answers: silent.as_ref().map(|silent| !silent.contains(&replica.id)),
    };
    Json(ReplicaView {
        id: server.id,
        leader: status.leader,
        applied: status.applied.0,
        replicas: server.genesis.genesis.control.iter().map(view).collect(),
    })
}

/// The reasons for the state of a service, a slot (`service/slot`) or a proposal.
#[utoipa::path(get, path = "/v1/why/{subject}", params(("subject" = String, Path)),
    responses((status = 200, body = Why)), tag = "status")]
pub(super) async fn why(
    LeaderRead { server, .. }: LeaderRead,
    subject: Result<Path<String>, PathRejection>,
) -> ApiResult<Why> {
    let Path(subject) = subject?;
    let question: scheduler::Question = subject
        .parse()
        .map_err(|error: String| Failure::new(error_code::REQUEST_INVALID, error).at("subject"))?;
    let answer = server.read_view(|view| scheduler::why(view, &question))?;
    answer.map(Json).ok_or_else(|| no_subject(&subject))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;

    #[test]
    fn events_are_paged_backward_and_forward() {
        let event = |sequence| AuditEvent {
            sequence,
            at: Millis(sequence),
            actor: "scheduler".into(),
            action: "place".into(),
            subject: "chat/0".into(),
            detail: String::new(),
        };
        // After thousands of events, the first ones are no longer kept.
        let kept: Vec<AuditEvent> = (101..=1300).map(event).collect();
        let all: Vec<&AuditEvent> = kept.iter().collect();
        let newer = &all[500..];
        let ends = |events: &[&AuditEvent]| Some((events.first()?.sequence, events.last()?.sequence));
        assert_eq!(ends(choose_events(&all, false, None)), Some((801, 1300)), "the newest");
        assert_eq!(ends(choose_events(&all, false, Some(801))), Some((301, 800)), "those before them");
        assert_eq!(ends(choose_events(&all, false, Some(301))), Some((101, 300)), "the oldest that are kept");
        assert_eq!(ends(choose_events(&all, false, Some(101))), None, "and none before");
        assert_eq!(ends(choose_events(newer, true, None)), Some((601, 1100)), "reading on after 600");
        assert_eq!(ends(choose_events(newer, true, Some(610))), Some((601, 609)), "between two");
    }
}
