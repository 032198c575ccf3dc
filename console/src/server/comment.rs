//! Questions and answers that are given on the page of a proposal: by the key on this machine, or by a
//! passkey.
//!
//! No words are asked for: a comment counts for nothing. It is signed in a domain of its own, which is that
//! of no vote and of no halt.

use super::passkey::{ChallengeOptions, NextPage, ScriptFailure, ScriptResult};
use super::{Console, Look, PageFailure, SignedIn, invalid, status_of};
use crate::page::proposal::SigningMeans;
use crate::page::questions::UnsentComment;
use crate::sign_in::Visitor;
use axum::Json;
use axum::extract::rejection::{FormRejection, JsonRejection, PathRejection};
use axum::extract::{Form, Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use host::wall_clock;
use human_chain::{check_comment_text, comment_challenge};
use protocol::comment::{COMMENT_BYTES_MAX, Comment, CommentSignature, SignedComment};
use protocol::keys::ByteString;
use protocol::passkey::PasskeyAssertion;
use protocol::{MemberId, ProposalId, Refusal, canonical, error_code};
use serde::Deserialize;
use std::sync::Arc;

/// A question or an answer as the form and the script send it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommentRequest {
    text: String,
    /// Id of the question that it answers; empty for a question.
    #[serde(default)]
    answers: String,
}

/// A comment with the answer of an authenticator.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasskeyComment {
    comment: ByteString,
    assertion: PasskeyAssertion,
}

impl CommentRequest {
    /// Returns the comment of this member on a proposal, made now. Browsers send line breaks as two
    /// characters, of which one is kept.
    fn comment(&self, proposal: ProposalId, member: &MemberId) -> Result<Comment, Refusal> {
        let text = self.text.replace("\r\n", "\n").trim().to_string();
        check_comment_text(&text)?;
        let answers = match self.answers.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| {
                Refusal::new(error_code::QUESTION_NOT_FOUND, "the answer names no question; nothing was sent")
            })?),
        };
        Ok(Comment { proposal, member: member.clone(), answers, text, issued_at: wall_clock() })
    }
}

fn page_of(id: ProposalId) -> String {
    format!("/console/proposals/{id}#questions")
}

/// Signs and delivers a comment with the key of the member on this machine.
pub(crate) async fn by_key(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<ProposalId>, PathRejection>,
    form: Result<Form<CommentRequest>, FormRejection>,
) -> Result<Redirect, PageFailure> {
    let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
    let Form(request) = form.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor.clone()).await?;
    match console.sign_and_comment(&look, id, &request).await {
        Ok(()) => Ok(Redirect::to(&page_of(id))),
        Err(refusal) => {
            let CommentRequest { text, answers } = &request;
            let unsent = UnsentComment { text, answers, refused: &refusal };
            let page = console.proposal_page(visitor, id, None, Some(unsent)).await?;
            Err(PageFailure { status: status_of(refusal.code), page })
        }
    }
}

/// Composes the comment that a passkey signs.
pub(crate) async fn compose(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<CommentRequest>, JsonRejection>,
) -> Result<Json<ChallengeOptions>, Response> {
    let look = console.look(visitor).await.map_err(IntoResponse::into_response)?;
    let composed = || -> Result<ChallengeOptions, ScriptFailure> {
        let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
        let Json(request) = body?;
        let comment = |member: &MemberId| request.comment(id, member);
        Ok(ChallengeOptions::for_statement(&look, comment_challenge, comment)?)
    };
    composed().map(Json).map_err(IntoResponse::into_response)
}

/// Delivers a comment that a passkey signed. Control verifies it, and each reader does.
pub(crate) async fn by_passkey(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    Path(id): Path<ProposalId>,
    body: Result<Json<PasskeyComment>, JsonRejection>,
) -> ScriptResult<NextPage> {
    let Json(PasskeyComment { comment, assertion }) = body?;
    let comment: Comment = canonical::from_bytes(&comment.0, COMMENT_BYTES_MAX)
        .map_err(|error| Refusal::of(error_code::REQUEST_INVALID, &error))?;
    if comment.proposal != id || Some(&comment.member) != visitor.member() {
        let message = "the comment is on another proposal or by another member than this page's";
        return Err(Refusal::new(error_code::CONSOLE_NO_KEY, message).into());
    }
    let signature = CommentSignature::Passkey(assertion);
    console.backend.deliver_comment(SignedComment { comment, signature }).await?;
    Ok(Json(NextPage { to: page_of(id) }))
}

impl Console {
    /// Returns the means by which a visitor comments and halts here. A passkey does so also where it does not
    /// vote.
    pub(super) fn means_beside_votes(&self, look: &Look) -> SigningMeans {
        let is_owner = matches!(look.visitor, Visitor::Owner { member: Some(_) });
        let passkey = look.member().is_some_and(|member| !look.circle.passkeys(member).is_empty());
        SigningMeans { key: is_owner && self.backend.holds_key(), passkey }
    }

    async fn sign_and_comment(
        &self,
        look: &Look,
        id: ProposalId,
        request: &CommentRequest,
    ) -> Result<(), Refusal> {
        let no_key = || {
            let message = "this console holds no key of yours; nothing was signed";
            Refusal::new(error_code::CONSOLE_NO_KEY, message)
        };
        let member = look.member().filter(|_| self.means_beside_votes(look).key).ok_or_else(no_key)?;
        let signed = self.backend.sign_comment(request.comment(id, member)?)?;
        let signed = signed.filter(|signed| signed.comment.member == *member).ok_or_else(no_key)?;
        self.backend.deliver_comment(signed).await
    }
}
