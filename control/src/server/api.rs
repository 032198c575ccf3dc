//! The control API for users and their programs: JSON over HTTP, described by `/openapi.json`.
//!
//! Every replica has the replicated state, but only the leader receives the nodes' reports. For uniform
//! behaviour all endpoints but the probes and `/v1/replica` answer on the leader, after a read barrier. Other
//! replicas name the leader.

use super::Server;
use super::auth::{Proposer, Reader, Submitter};
use super::extract::{LeaderRead, Submission};
use super::idempotency::Key;
use super::problem::{Failure, accepted, unavailable, unseen};
use crate::machine::wall_clock;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use protocol::agent::PendingNode;
use protocol::api::*;
use protocol::error_code;
use protocol::gateway::ApiKey;
use protocol::governance::{Change, ControlReplica, SignedBallot};
use protocol::manifest::{Manifest, Runtime};
use protocol::model::{KeyWrap, ModelRecord};
use protocol::{ModelRoot, ProposalId, ReplicaId, ServiceName, TokenName};
use scheduler::{Action, Actor, ClusterView, LeaderTime};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

type ServerState = State<Arc<Server>>;
type ApiResult<T> = Result<Json<T>, Failure>;

/// Maximum number of audit events or log lines in one response.
const PAGE_MAX: usize = 500;

/// Builds the router of the API.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/livez", get(super::metrics::livez))
        .route("/readyz", get(super::metrics::readyz))
        .route("/metrics", get(super::metrics::metrics))
        .route("/openapi.json", get(super::openapi::serve))
        .route("/v1/history", get(history))
        .route("/v1/proposals", get(proposals).post(submit_proposal))
        .route("/v1/proposals/{id}", get(proposal))
        .route("/v1/proposals/{id}/ballots", post(cast_ballot))
        .route("/v1/dry-run", post(dry_run))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}", get(service))
        .route("/v1/services/{name}/scale", post(scale))
        .route("/v1/services/{name}/logs", get(logs))
        .route("/v1/nodes", get(nodes))
        .route("/v1/pending-nodes", get(pending_nodes))
        .route("/v1/models", get(models).post(register_model))
        .route("/v1/models/{root}", delete(forget_model))
        .route("/v1/models/{root}/wraps", get(wraps).put(put_wraps))
        .route("/v1/keys", get(keys).post(create_key))
        .route("/v1/keys/{name}", delete(revoke_key))
        .route("/v1/events", get(events))
        .route("/v1/status", get(status))
        .route("/v1/replica", get(replica))
        .route("/v1/why/{*subject}", get(why))
        .fallback(|| async { Failure::new(error_code::PATH_NOT_FOUND, "the API has no such path") })
        .method_not_allowed_fallback(|| async {
            Failure::new(error_code::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(protocol::limits::API_BODY_BYTES_MAX))
        .with_state(server)
}

/// Response to an accepted change that returns nothing else.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {
    /// Always true: any other outcome is a problem.
    pub done: bool,
}

const DONE: Json<Done> = Json(Done { done: true });

impl Server {
    /// Returns a failure that names the current leader.
    pub(super) fn not_leader(&self) -> Failure {
        let leader = self.handle.status().leader;
        let replicas = &self.genesis.genesis.control;
        let leader = replicas.iter().find(|replica| Some(replica.id.0) == leader);
        let failure = Failure::new(error_code::NOT_LEADER, "this control replica does not lead");
        match leader {
            Some(replica) => failure.leader(&replica.api).remedy(format!("ask {}", replica.api)),
            None => failure.remedy("a leader is being elected; ask again"),
        }
    }

    /// Reads the cluster as its leader sees it now.
    fn look<R>(&self, look: impl FnOnce(ClusterView) -> R) -> Result<R, Failure> {
        let leadership = self.lock_leadership();
        let observed = &leadership.as_ref().ok_or_else(|| unavailable("leads no longer"))?.observed;
        let now = LeaderTime(wall_clock());
        Ok(self.cluster(|cluster| look(ClusterView { cluster, observed, now })))
    }

    /// Returns the proposal after a command on it was committed.
    ///
    /// If another replica applied the command as the leader, this one waits until it has applied it too. The
    /// command is done in any case, so no later response may report that it is not. `outcome-unknown` is the
    /// worst that a client gets.
    async fn committed_proposal(
        &self,
        id: &ProposalId,
        shows: impl Fn(&ProposalView) -> bool,
    ) -> ApiResult<ProposalView> {
        let look = || self.cluster(|cluster| scheduler::proposal_view(cluster, id));
        if let Some(view) = look().filter(&shows) {
            return Ok(Json(view));
        }
        self.read_barrier().await.map_err(|_| unseen("this replica has not applied the command yet"))?;
        look().map(Json).ok_or_else(|| unseen("the proposal was decided and is no longer kept"))
    }

    async fn change(&self, caller: Submitter, key: Key, action: Action) -> ApiResult<Done> {
        let token = TokenName::from(caller);
        let key = key.of(&token);
        accepted(self.write(Actor::Token(token), action, key).await?)?;
        Ok(DONE)
    }
}

/// Genesis and every decision since: enough to recompute the circle and verify every signature.
#[utoipa::path(get, path = "/v1/history", responses((status = 200, body = History)), tag = "circle")]
async fn history(LeaderRead { server, .. }: LeaderRead) -> ApiResult<History> {
    server
        .cluster(|cluster| {
            let genesis = cluster.genesis()?.clone();
            Some(History { genesis, bundles: cluster.governance_chain().to_vec() })
        })
        .map(Json)
        .ok_or_else(|| Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is being founded; ask again"))
}

/// Open proposals and those decided most recently.
#[utoipa::path(get, path = "/v1/proposals", responses((status = 200, body = Page<ProposalView>)), tag = "circle")]
async fn proposals(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<ProposalView>> {
    Ok(Json(Page { items: server.cluster(scheduler::proposal_views) }))
}

/// One proposal.
#[utoipa::path(get, path = "/v1/proposals/{id}", params(("id" = ProposalId, Path)),
    responses((status = 200, body = ProposalView)), tag = "circle")]
async fn proposal(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<ProposalId>, PathRejection>,
) -> ApiResult<ProposalView> {
    let Path(id) = id?;
    server
        .cluster(|cluster| scheduler::proposal_view(cluster, &id))
        .map(Json)
        .ok_or_else(|| Failure::new(error_code::PROPOSAL_NOT_FOUND, format!("no proposal {id}")))
}

/// Submits a proposal for voting.
#[utoipa::path(post, path = "/v1/proposals", request_body = SubmitProposal,
    responses((status = 200, body = ProposalView)), tag = "circle")]
async fn submit_proposal(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    body: Result<Json<SubmitProposal>, JsonRejection>,
) -> ApiResult<ProposalView> {
    let Json(SubmitProposal { proposal }) = body?;
    if let Change::Deploy(manifest) = &proposal.change {
        refuse_unused_gpus(manifest)?;
    }
    let id = proposal.id();
    let key = key.of(&token);
    accepted(server.write(Actor::Token(token), Action::SubmitProposal(Box::new(proposal)), key).await?)?;
    server.committed_proposal(&id, |_| true).await
}

/// Rejects a manifest that requests more than one GPU for the built-in engine, which computes on one. The
/// others would be reserved, paid for, and idle. The check is made here and not where certificates are
/// verified, so that earlier approvals stay valid.
fn refuse_unused_gpus(manifest: &Manifest) -> Result<(), Failure> {
    let Manifest::Service(service) = manifest else { return Ok(()) };
    let count = service.resources.gpu_count;
    if service.runtime != Runtime::Candle || count <= 1 {
        return Ok(());
    }
    let message = format!("`{}` asks for {count} GPUs; the `candle` runtime computes on one", service.name);
    Err(Failure::new(error_code::KIND_NOT_BUILT, message)
        .at("resources.gpu_count")
        .remedy("ask for 1 GPU for each replica, and for more replicas"))
}

/// Submits a member's signed ballot; the last required ballot puts the change into force.
#[utoipa::path(post, path = "/v1/proposals/{id}/ballots", params(("id" = ProposalId, Path)),
    request_body = SignedBallot, responses((status = 200, body = ProposalView)), tag = "circle")]
async fn cast_ballot(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<SignedBallot>, JsonRejection>,
) -> ApiResult<ProposalView> {
    let (Path(id), Json(ballot)) = (id?, body?);
    if ballot.ballot.proposal != id {
        let message = "the ballot is for another proposal than the path names";
        return Err(Failure::new(error_code::BALLOT_MISMATCH, message));
    }
    let actor = Actor::Member(ballot.ballot.member.clone());
    let counted = ballot.clone();
    accepted(server.write(actor, Action::CastBallot(Box::new(ballot)), key.of(&token)).await?)?;
    server.committed_proposal(&id, |view| view.ballots.contains(&counted)).await
}

/// Placement of the slots, required signatures and maximum cost of a change. Changes nothing.
#[utoipa::path(post, path = "/v1/dry-run", request_body = DryRunRequest,
    responses((status = 200, body = DryRun)), tag = "services")]
async fn dry_run(
    LeaderRead { server, .. }: LeaderRead,
    body: Result<Json<DryRunRequest>, JsonRejection>,
) -> ApiResult<DryRun> {
    let Json(DryRunRequest { manifest }) = body?;
    refuse_unused_gpus(&manifest)?;
    let outcome = server.look(|view| scheduler::dry_run(view, &manifest))?;
    Ok(Json(outcome.map_err(Failure::from)?))
}

/// All services.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Page<ServiceView>)), tag = "services")]
async fn services(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<ServiceView>> {
    let items = server.look(scheduler::service_views)?;
    Ok(Json(Page { items }))
}

/// One service with its slots.
#[utoipa::path(get, path = "/v1/services/{name}", params(("name" = ServiceName, Path)),
    responses((status = 200, body = ServiceView)), tag = "services")]
async fn service(
    LeaderRead { server, .. }: LeaderRead,
    name: Result<Path<ServiceName>, PathRejection>,
) -> ApiResult<ServiceView> {
    let Path(name) = name?;
    let view = server.look(|view| scheduler::service_view(view, &name))?;
    view.map(Json).ok_or_else(|| no_service(&name))
}

fn no_service(name: &ServiceName) -> Failure {
    no_service_text(name.as_str())
}

fn no_service_text(name: &str) -> Failure {
    Failure::new(error_code::SERVICE_NOT_FOUND, format!("no service, slot or proposal `{name}`"))
        .remedy("`quorate service list` and `quorate review` show all")
}

/// Changes the number of replicas within the approved envelope; no vote is needed.
#[utoipa::path(post, path = "/v1/services/{name}/scale", params(("name" = ServiceName, Path)),
    request_body = ScaleRequest, responses((status = 200, body = Done)), tag = "services")]
async fn scale(
    Submission { caller, key, server }: Submission<Submitter>,
    name: Result<Path<ServiceName>, PathRejection>,
    body: Result<Json<ScaleRequest>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(service), Json(ScaleRequest { replicas })) = (name?, body?);
    server.change(caller, key, Action::Scale { service, replicas }).await
}

/// Query parameters of a log page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct After {
    /// Return only lines with a greater sequence number; 0 = from the oldest kept.
    #[serde(default)]
    after: u64,
}

impl After {
    /// Returns the sequence number, if JSON clients can write it: OpenAPI's `int64`.
    fn sequence(&self) -> Result<u64, Failure> {
        i64::try_from(self.after).map(i64::unsigned_abs).map_err(|_| {
            let message = format!("`after` is at most {}", i64::MAX);
            Failure::new(error_code::REQUEST_INVALID, message).at("query after")
        })
    }
}

/// The latest log lines of a service's workers.
#[utoipa::path(get, path = "/v1/services/{name}/logs", params(("name" = ServiceName, Path), After),
    responses((status = 200, body = LogPage)), tag = "services")]
async fn logs(
    LeaderRead { server, .. }: LeaderRead,
    name: Result<Path<ServiceName>, PathRejection>,
    query: Result<Query<After>, QueryRejection>,
) -> ApiResult<LogPage> {
    let (Path(name), after) = (name?, query?.sequence()?);
    if server.cluster(|cluster| !cluster.services().contains_key(&name)) {
        return Err(no_service(&name));
    }
    let term = server.lock_leadership().as_ref().map(|leadership| leadership.term);
    let epoch = term.ok_or_else(|| unavailable("leads no longer"))?;
    let mut logs = server.logs.lock().expect("no holder of this lock panics");
    Ok(Json(logs.page(epoch, &name, after, PAGE_MAX)))
}

/// All admitted nodes.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Page<NodeView>)), tag = "nodes")]
async fn nodes(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<NodeView>> {
    Ok(Json(Page { items: server.look(scheduler::node_views)? }))
}

/// Nodes that ask to be admitted.
#[utoipa::path(get, path = "/v1/pending-nodes", responses((status = 200, body = Page<PendingNode>)), tag = "nodes")]
async fn pending_nodes(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<PendingNode>> {
    let items = server.cluster(|cluster| cluster.pending_nodes().values().cloned().collect());
    Ok(Json(Page { items }))
}

/// Registered models.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = Page<ModelRecord>)), tag = "models")]
async fn models(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<ModelRecord>> {
    Ok(Json(Page { items: server.cluster(|cluster| cluster.models().values().cloned().collect()) }))
}

/// Registers the stores of a model, and keeps the wraps of its key.
///
/// Registration grants nothing: a service runs the model whose root its certificate names. The request is
/// idempotent, so a client without a response can repeat it.
#[utoipa::path(post, path = "/v1/models", request_body = RegisterModel,
    responses((status = 200, body = Done)), tag = "models")]
async fn register_model(
    Submission { caller, key, server }: Submission<Submitter>,
    body: Result<Json<RegisterModel>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(RegisterModel { record, wraps }) = body?;
    server.change(caller, key, Action::RegisterModel { record: Box::new(record), wraps }).await
}

/// Unregisters a model that no service in force names, and deletes its key.
#[utoipa::path(delete, path = "/v1/models/{root}", params(("root" = ModelRoot, Path)),
    responses((status = 200, body = Done)), tag = "models")]
async fn forget_model(
    Submission { caller, key, server }: Submission<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
) -> ApiResult<Done> {
    let Path(root) = root?;
    server.change(caller, key, Action::ForgetModel(root)).await
}

/// The wraps of a model's key, one per party that may open it.
#[utoipa::path(get, path = "/v1/models/{root}/wraps", params(("root" = ModelRoot, Path)),
    responses((status = 200, body = ModelWraps)), tag = "models")]
async fn wraps(
    LeaderRead { server, .. }: LeaderRead<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
) -> ApiResult<ModelWraps> {
    let Path(root) = root?;
    Ok(Json(ModelWraps { root, wraps: server.cluster(|cluster| cluster.wraps(&root)) }))
}

/// Adds wraps of a model's key.
#[utoipa::path(put, path = "/v1/models/{root}/wraps", params(("root" = ModelRoot, Path)),
    request_body = PutWraps, responses((status = 200, body = Done)), tag = "models")]
async fn put_wraps(
    Submission { caller, key, server }: Submission<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
    body: Result<Json<PutWraps>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(root), Json(PutWraps { wraps })) = (root?, body?);
    if wraps.iter().any(|wrap: &KeyWrap| wrap.root != root) {
        return Err(Failure::new(error_code::REQUEST_INVALID, "a wrap is of another model's key").at("wraps"));
    }
    server.change(caller, key, Action::PutWraps(wraps)).await
}

/// Inference keys, without their hashes.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = Page<KeyView>)), tag = "keys")]
async fn keys(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<KeyView>> {
    let view =
        |key: &ApiKey| KeyView { name: key.name.clone(), requests_per_minute: key.requests_per_minute };
    Ok(Json(Page { items: server.cluster(|cluster| cluster.api_keys().values().map(view).collect()) }))
}

/// Registers an inference key, with which its holder can call models. The server receives the hash alone.
#[utoipa::path(post, path = "/v1/keys", request_body = CreateKey, responses((status = 200, body = Done)), tag = "keys")]
async fn create_key(
    Submission { caller, key, server }: Submission<Submitter>,
    body: Result<Json<CreateKey>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(CreateKey { name, hash, requests_per_minute }) = body?;
    server.change(caller, key, Action::CreateApiKey(ApiKey { name, hash, requests_per_minute })).await
}

/// Revokes an inference key.
#[utoipa::path(delete, path = "/v1/keys/{name}", params(("name" = TokenName, Path)),
    responses((status = 200, body = Done)), tag = "keys")]
async fn revoke_key(
    Submission { caller, key, server }: Submission<Submitter>,
    name: Result<Path<TokenName>, PathRejection>,
) -> ApiResult<Done> {
    let Path(name) = name?;
    server.change(caller, key, Action::RevokeApiKey(name)).await
}

/// Query parameters of a page of audit events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Events {
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
#[utoipa::path(get, path = "/v1/events", params(Events), responses((status = 200, body = Page<AuditEvent>)), tag = "status")]
async fn events(
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
    Ok(Json(Page { items }))
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
async fn status(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Status> {
    let leader = scheduler::LeaderView { leader: Some(server.id), silent: server.peers.silent() };
    Ok(Json(server.look(|view| scheduler::status(view, leader))?))
}

/// The control replicas as this one sees them. Every replica answers, including those that do not lead.
#[utoipa::path(get, path = "/v1/replica", responses((status = 200, body = ReplicaView)), tag = "status")]
async fn replica(_: Reader, State(server): ServerState) -> Json<ReplicaView> {
    let status = server.handle.status();
    let silent = server.peers.silent();
    let view = |replica: &ControlReplica| PeerView {
        id: replica.id,
        api: replica.api.clone(),
        answers: silent.as_ref().map(|silent| !silent.contains(&replica.id)),
    };
    Json(ReplicaView {
        id: server.id,
        leader: status.leader.map(ReplicaId),
        applied: status.applied,
        replicas: server.genesis.genesis.control.iter().map(view).collect(),
    })
}

/// The reasons for the state of a service, a slot (`service/slot`) or a proposal.
#[utoipa::path(get, path = "/v1/why/{subject}", params(("subject" = String, Path)),
    responses((status = 200, body = Why)), tag = "status")]
async fn why(
    LeaderRead { server, .. }: LeaderRead,
    subject: Result<Path<String>, PathRejection>,
) -> ApiResult<Why> {
    let Path(subject) = subject?;
    let question: scheduler::Question = subject
        .parse()
        .map_err(|error: String| Failure::new(error_code::REQUEST_INVALID, error).at("subject"))?;
    let answer = server.look(|view| scheduler::why(view, &question))?;
    answer.map(Json).ok_or_else(|| no_service_text(&subject))
}

/// The operations and schemas of the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Quorate control API", description = "Read, propose, vote, deploy. See the README."),
    paths(
        history,
        proposals,
        proposal,
        submit_proposal,
        cast_ballot,
        dry_run,
        services,
        service,
        scale,
        logs,
        nodes,
        pending_nodes,
        models,
        register_model,
        forget_model,
        wraps,
        put_wraps,
        keys,
        create_key,
        revoke_key,
        events,
        status,
        replica,
        why
    ),
    components(schemas(Problem))
)]
pub(crate) struct ApiDocument;

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;

    #[test]
    fn more_gpus_than_the_engine_computes_on_are_refused_by_code() {
        let record = ModelRecord {
            name: "chat".parse().expect("a name"),
            root: ModelRoot(protocol::Digest::of(b"model")),
            bytes: 1,
            segments: 1,
            erasure: protocol::model::ErasureCode { data: 4, parity: 2 },
            stores: Vec::new(),
            architecture: "llama".into(),
        };
        let text = crate::cli::service_template(&"chat".parse().expect("a name"), &record, 1, 3);
        for (count, expected) in
            [(0, None), (1, None), (2, Some("kind-not-built")), (8, Some("kind-not-built"))]
        {
            let mut manifest = Manifest::from_toml(&text).expect("valid");
            let Manifest::Service(service) = &mut manifest else { panic!("a service") };
            service.resources.gpu_count = count;
            let refusal = refuse_unused_gpus(&manifest).err();
            assert_eq!(refusal.as_ref().map(|refusal| refusal.problem().code.as_str()), expected, "{count}");
        }
    }

    #[test]
    fn events_are_paged_from_the_newest_back_and_from_any_on() {
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
