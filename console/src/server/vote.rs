//! Votes that are given on a page.

use super::{Console, Look, PageFailure, SignedIn, invalid, status_of};
use crate::backend::ChangeOutlook;
use crate::page::Section;
use crate::page::proposal::{self, ProposalPage, SigningMeans};
use crate::page::questions::UnsentComment;
use crate::reviewed::ReviewedProposal;
use crate::sign_in::Visitor;
use crate::words::compare_words;
use axum::extract::rejection::{FormRejection, PathRejection};
use axum::extract::{Form, Path, State};
use axum::response::Redirect;
use host::wall_clock;
use human_chain::{check_reason, subject_of, unsigned_ballot};
use maud::Markup;
use protocol::api::ProposalState;
use protocol::governance::{Ballot, Choice, Proposal};
use protocol::{MemberId, ProposalId, Refusal, error_code};
use serde::Deserialize;
use std::sync::Arc;

/// Most earlier decisions about the same subject that a page lists.
const EARLIER_SHOWN: usize = 8;

/// A vote as the form sends it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VoteForm {
    words: String,
    choice: Choice,
    #[serde(default)]
    reason: String,
}

/// Signs and delivers a vote with the key of the member on this machine.
pub(crate) async fn by_key(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<ProposalId>, PathRejection>,
    form: Result<Form<VoteForm>, FormRejection>,
) -> Result<Redirect, PageFailure> {
    let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
    let Form(form) = form.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor.clone()).await?;
    let reviewed = console.reviewed(&look, id).await?;
    match console.sign_and_deliver(&look, &reviewed, &form).await {
        Ok(()) => Ok(Redirect::to(&format!("/console/proposals/{id}"))),
        Err(refusal) => {
            let page = console.proposal_page(visitor, id, Some(&refusal), None).await?;
            Err(PageFailure { status: status_of(refusal.code), page })
        }
    }
}

impl Look {
    /// Returns a ballot of this member to sign, made now in the history that the page shows.
    pub(super) fn ballot(
        &self,
        member: &MemberId,
        proposal: &Proposal,
        choice: Choice,
        reason: String,
    ) -> Ballot {
        let ballot = unsigned_ballot(member.clone(), self.circle.head(), proposal, choice, wall_clock());
        Ballot { reason, ..ballot }
    }
}

impl Console {
    /// Returns the page of a proposal, with the reason for which a vote was not signed, or with a comment
    /// that was not taken.
    pub(super) async fn proposal_page(
        &self,
        visitor: Visitor,
        id: ProposalId,
        refused: Option<&Refusal>,
        unsent: Option<UnsentComment<'_>>,
    ) -> Result<Markup, PageFailure> {
        let look = self.look(visitor).await?;
        let reviewed = self.reviewed(&look, id).await?;
        let report = self.backend.cluster().await?;
        let change = &reviewed.view.proposal.change;
        let earlier = self.backend.decisions_on(subject_of(change), EARLIER_SHOWN).await?;
        let outlook = match reviewed.view.state {
            ProposalState::Open => self.backend.outlook(change).await?,
            _ => ChangeOutlook::default(),
        };
        let (services, means) = (&report.services, self.means(&look, &reviewed));
        let (outlook, earlier, comment_means) = (&outlook, &earlier, self.means_beside_votes(&look));
        let reviewed = &reviewed;
        let shown =
            ProposalPage { reviewed, services, outlook, earlier, means, comment_means, refused, unsent };
        Ok(proposal::page(&look.frame(Section::Inbox), &shown))
    }

    /// Returns the means by which a visitor signs here.
    fn means(&self, look: &Look, reviewed: &ReviewedProposal) -> SigningMeans {
        let is_owner = matches!(look.visitor, Visitor::Owner { member: Some(_) });
        let counts = look.circle.passkeys_count(&reviewed.view.proposal.change);
        let passkey = counts && look.member().is_some_and(|member| !look.circle.passkeys(member).is_empty());
        SigningMeans { key: is_owner && self.backend.holds_key(), passkey }
    }

    async fn sign_and_deliver(
        &self,
        look: &Look,
        reviewed: &ReviewedProposal,
        form: &VoteForm,
    ) -> Result<(), Refusal> {
        compare_words(&form.words, &reviewed.words)?;
        check_reason(&form.reason)?;
        let no_key = || {
            let message = "this console holds no key of yours; nothing was signed";
            Refusal::new(error_code::CONSOLE_NO_KEY, message)
        };
        let member = look.member().filter(|_| self.means(look, reviewed).key).ok_or_else(no_key)?;
        let proposal = &reviewed.view.proposal;
        let ballot = look.ballot(member, proposal, form.choice, form.reason.clone());
        let signed = self.backend.sign(proposal, ballot)?;
        let signed = signed.filter(|signed| signed.ballot.member == *member).ok_or_else(no_key)?;
        self.backend.deliver(signed).await
    }
}
