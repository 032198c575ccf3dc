//! The circle's history, its proposals and their ballots.

use super::services::refuse_unused_gpus;
use super::{ApiResult, DONE, Done};
use crate::server::Server;
use crate::server::auth::{Proposer, Reader};
use crate::server::comments::CommentSubmitter;
use crate::server::extract::{LeaderRead, Submission, require_leading};
use crate::server::paging::{HistoryParameters, PageParameters, PageRequest, PagedList};
use crate::server::problem::{Failure, accepted, effect_unknown};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use protocol::api::{HistoryPage, Page, ProposalView, SubmitProposal, WithdrawProposal};
use protocol::comment::SignedComment;
use protocol::governance::{Change, SignedBallot};
use protocol::{ProposalId, error_code};
use scheduler::{Action, Actor};
use std::sync::Arc;

/// A page of the history: genesis, then every decision since, or the decisions after those that the client
/// has verified. All pages together are enough to recompute the circle and verify every signature. With
/// `any_replica`, a replica that does not lead answers with what it last applied, which may be old.
#[utoipa::path(get, path = "/v1/history", params(HistoryParameters),
    responses((status = 200, body = HistoryPage)), tag = "circle")]
pub(super) async fn history(
    _: Reader,
    State(server): State<Arc<Server>>,
    query: Result<Query<HistoryParameters>, QueryRejection>,
) -> ApiResult<HistoryPage> {
    if !query.as_ref().is_ok_and(|Query(parameters)| parameters.takes_any_replica()) {
        require_leading(&server).await?;
    }
    // The key of a decision is its number, which begins at 1.
    let page = PageRequest::of_history(query)?;
    server
        .cluster(|cluster| {
            let genesis = cluster.genesis()?;
            let genesis = page.after.is_none().then(|| genesis.clone());
            let head = cluster.circle_state()?.head();
            let skip = usize::try_from(page.after.unwrap_or(0)).unwrap_or(usize::MAX);
            let decisions = (1_u64..).zip(cluster.governance_chain()).skip(skip);
            let (bundles, next_page_token) = page.take(decisions.map(|(key, bundle)| (key, bundle.clone())));
            Some(HistoryPage { genesis, head, bundles, next_page_token })
        })
        .map(Json)
        .ok_or_else(|| Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is being founded; retry"))
}

/// A page of the drafts, the open proposals and those decided most recently, by id.
#[utoipa::path(get, path = "/v1/proposals", params(PageParameters),
    responses((status = 200, body = Page<ProposalView>)), tag = "circle")]
pub(super) async fn proposals(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<ProposalView>> {
    let page: PageRequest<ProposalId> = PageRequest::of(PagedList::Proposals, query)?;
    let (items, next_page_token) = server.cluster(|cluster| {
        let views = scheduler::proposals_after(cluster, page.after);
        page.take(views.map(|view| (view.id, view)))
    });
    Ok(Json(Page { items, next_page_token }))
}

/// One proposal.
#[utoipa::path(get, path = "/v1/proposals/{id}", params(("id" = ProposalId, Path)),
    responses((status = 200, body = ProposalView)), tag = "circle")]
pub(super) async fn proposal(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<ProposalId>, PathRejection>,
) -> ApiResult<ProposalView> {
    let Path(id) = id?;
    server
        .cluster(|cluster| scheduler::proposal_view(cluster, &id))
        .map(Json)
        .ok_or_else(|| Failure::new(error_code::PROPOSAL_NOT_FOUND, format!("no proposal {id}")))
}

/// Submits a proposal. With the ballot of its proposer it is open for votes, without one it is a draft.
#[utoipa::path(post, path = "/v1/proposals", request_body = SubmitProposal,
    responses((status = 200, body = ProposalView)), tag = "circle")]
pub(super) async fn submit_proposal(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    body: Result<Json<SubmitProposal>, JsonRejection>,
) -> ApiResult<ProposalView> {
    let Json(SubmitProposal { proposal, ballot }) = body?;
    if let Change::Deploy(manifest) = &proposal.change {
        refuse_unused_gpus(manifest)?;
    }
    let (id, proposal) = (proposal.id(), Box::new(proposal));
    let key = key.of(&token);
    let Some(ballot) = ballot else {
        accepted(server.write(Actor::Token(token), Action::SubmitProposal(proposal), key).await?)?;
        return server.committed_proposal(&id, |_| true).await;
    };
    let (actor, counted) = (Actor::Member(ballot.ballot.member.clone()), ballot.clone());
    let action = Action::OpenProposal { proposal, ballot: Box::new(ballot) };
    accepted(server.write(actor, action, key).await?)?;
    server.committed_proposal(&id, |view| view.ballots.contains(&counted)).await
}

/// Withdraws a proposal by its proposer's signature, or a draft by any member's or by the token that made it.
#[utoipa::path(post, path = "/v1/proposals/{id}/withdrawal", params(("id" = ProposalId, Path)),
    request_body = WithdrawProposal, responses((status = 200, body = Done)), tag = "circle")]
pub(super) async fn withdraw(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<WithdrawProposal>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(proposal), Json(WithdrawProposal { withdrawal })) = (id?, body?);
    let key = key.of(&token);
    let actor = match &withdrawal {
        Some(signed) => Actor::Member(signed.withdrawal.member.clone()),
        None => Actor::Token(token),
    };
    let action = Action::Withdraw { proposal, withdrawal: withdrawal.map(Box::new) };
    accepted(server.write(actor, action, key).await?)?;
    Ok(DONE)
}

/// Submits a member's signed ballot; the last required ballot puts the change into force.
#[utoipa::path(post, path = "/v1/proposals/{id}/ballots", params(("id" = ProposalId, Path)),
    request_body = SignedBallot, responses((status = 200, body = ProposalView)), tag = "circle")]
pub(super) async fn cast_ballot(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<SignedBallot>, JsonRejection>,
) -> ApiResult<ProposalView> {
    let (Path(id), Json(ballot)) = (id?, body?);
    if ballot.ballot.proposal != id {
        let message = "the ballot is for another proposal than that of the path";
        return Err(Failure::new(error_code::BALLOT_MISMATCH, message));
    }
    let actor = Actor::Member(ballot.ballot.member.clone());
    let counted = ballot.clone();
    accepted(server.write(actor, Action::CastBallot(Box::new(ballot)), key.of(&token)).await?)?;
    server.committed_proposal(&id, |view| view.ballots.contains(&counted)).await
}

/// Puts a member's signed question or answer beside an open proposal or a draft. It counts for nothing, and
/// ends with the vote.
#[utoipa::path(post, path = "/v1/proposals/{id}/comments", params(("id" = ProposalId, Path)),
    request_body = SignedComment, responses((status = 200, body = ProposalView)), tag = "circle")]
pub(super) async fn put_comment(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<SignedComment>, JsonRejection>,
) -> ApiResult<ProposalView> {
    let (Path(id), Json(signed)) = (id?, body?);
    if signed.comment.proposal != id {
        let message = "the comment is on another proposal than that of the path";
        return Err(Failure::new(error_code::GOVERNANCE_INVALID, message));
    }
    server.comments.admit(&CommentSubmitter::Token(token.clone()))?;
    let comment = signed.comment.clone();
    let actor = Actor::Member(comment.member.clone());
    accepted(server.write(actor, Action::PutComment(Box::new(signed)), key.of(&token)).await?)?;
    // Kept under the signature that came first, if it was sent twice.
    let shows = |view: &ProposalView| view.comments.iter().any(|kept| kept.comment == comment);
    server.committed_proposal(&id, shows).await
}

impl Server {
    /// Returns the proposal after a command on it was committed.
    ///
    /// If another replica applied the command as the leader, this one waits until it has applied it too. The
    /// command is done in any case, so no later response may report that it is not. `outcome-unknown` is the
    /// worst that a client gets.
    pub(super) async fn committed_proposal(
        &self,
        id: &ProposalId,
        shows: impl Fn(&ProposalView) -> bool,
    ) -> ApiResult<ProposalView> {
        let view = || self.cluster(|cluster| scheduler::proposal_view(cluster, id));
        if let Some(view) = view().filter(&shows) {
            return Ok(Json(view));
        }
        self.read_barrier()
            .await
            .map_err(|_| effect_unknown("this replica has not applied the command yet"))?;
        view().map(Json).ok_or_else(|| effect_unknown("the proposal was decided and is no longer kept"))
    }
}
