//! A client's verified view of a cluster, recomputed from signatures.
//!
//! The client verifies genesis and every certificate once, keeps the state that follows, and verifies from
//! there on what the server adds. It refuses a history that does not continue the longest one that it
//! verified before. So a dishonest server can delay it but not mislead it.

use crate::client::ControlClient;
use crate::context::Context;
use crate::head::HeadFile;
use crate::history::{
    continue_history, continue_without_leader, read_decisions, read_decisions_of_any, read_history,
    verify_history,
};
use crate::member_key::MemberKey;
use crate::print;
use crate::reviewed::{self, ReviewedProposal};
use anyhow::{Context as _, Result};
use host::random::random_bytes;
use host::wall_clock;
use human_chain::{
    CircleState, check_comment_text, check_in_time, check_reason, sign_ballot, sign_comment, unsigned_ballot,
};
use protocol::api::{History, ProposalState, ProposalView, SubmitProposal, WithdrawProposal};
use protocol::comment::Comment;
use protocol::governance::{
    Ballot, Bundle, Certificate, Change, Choice, HistoryHead, Proposal, SignedBallot, Withdrawal,
};
use protocol::{CircleId, CommentId, Digest, Millis, ProposalId, Refusal, error_code};
use std::collections::{BTreeMap, BTreeSet};

/// Default lifetime of a proposal, in milliseconds: three days.
pub const PROPOSAL_LIFETIME_MS: u64 = 3 * 24 * 3600 * 1000;

/// A client, and the circle as its signatures prove it.
pub struct Session {
    /// The control API.
    pub client: ControlClient,
    /// Members, policy, nodes and services, recomputed on this machine.
    pub circle: CircleState,
    /// The record of the longest history of this circle.
    heads: HeadFile,
}

impl Session {
    /// Fetches what this machine has not verified of the history, and verifies that it continues the longest
    /// history that the machine verified before. Without a kept state, all of it is fetched and verified
    /// against the pinned circle.
    ///
    /// # Errors
    /// Returns an error if no replica answers or anything in the history does not verify. Fails with
    /// `history-shorter` or `history-forked` if decisions that were seen before are missing or are others.
    pub async fn open(context: &Context) -> Result<Self> {
        Self::with_client(context.client()?, context.circle, context.head_file()).await
    }

    /// Opens a session as [`Session::open`] does, with an existing client.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn with_client(client: ControlClient, circle: CircleId, heads: HeadFile) -> Result<Self> {
        // Read first: a head that another command records while the history is on its way is longer, rightly.
        let known = heads.read()?;
        let kept = heads.read_state(known.as_ref()).unwrap_or_else(|error| {
            print::err(format_args!(
                "note: the kept state is ignored, and the whole history verified again: {error:#}"
            ));
            None
        });
        let length = kept.as_ref().map(CircleState::length);
        let verified = match kept {
            Some(state) => continue_history(&client, state).await?,
            None => verify_history(&client, circle).await?,
        };
        let session = Self::checked(client, verified, heads, known.as_slice(), length)?;
        session.heads.confirm_state();
        Ok(session)
    }

    /// Opens a session without a leader: over the state that this machine keeps, and what any replica adds to
    /// it. None if this machine keeps no state.
    ///
    /// # Errors
    /// As [`Session::open`]. Replicas that do not answer are no error.
    pub async fn kept(context: &Context) -> Result<Option<Self>> {
        Self::kept_with(context.client()?, context.head_file()).await
    }

    /// Opens a session as [`Session::kept`] does, with an existing client.
    ///
    /// # Errors
    /// As [`Session::kept`].
    pub async fn kept_with(client: ControlClient, heads: HeadFile) -> Result<Option<Self>> {
        let known = heads.read()?;
        let Some(kept) = heads.read_state(known.as_ref())? else { return Ok(None) };
        let length = Some(kept.length());
        let verified = continue_without_leader(&client, kept).await;
        Self::checked(client, verified, heads, known.as_slice(), length).map(Some)
    }

    /// Fetches what any replica adds to the history of this session, leader or not.
    ///
    /// # Errors
    /// As [`Session::kept`].
    pub async fn refresh_without_leader(&self) -> Result<Self> {
        let known = self.heads.read()?;
        let verified = continue_without_leader(&self.client, self.circle.clone()).await;
        let length = Some(self.circle.length());
        Self::checked(self.client.clone(), verified, self.heads.clone(), known.as_slice(), length)
    }

    /// Returns the time at which a leader last confirmed the state that this machine keeps.
    #[must_use]
    pub fn confirmed_at(&self) -> Option<Millis> {
        self.heads.confirmed_at()
    }

    /// Fetches what was added to the history since; it must continue that of this session and the longest
    /// that was verified.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn refresh(&self) -> Result<Self> {
        let known = self.heads.read()?;
        let verified = continue_history(&self.client, self.circle.clone()).await?;
        let length = Some(self.circle.length());
        let heads = self.heads.clone();
        let session = Self::checked(self.client.clone(), verified, heads, known.as_slice(), length)?;
        session.heads.confirm_state();
        Ok(session)
    }

    /// Opens the session if the history continues what is known, and keeps its head and its state. `kept` is
    /// the length of the state that was kept before.
    fn checked(
        client: ControlClient,
        circle: CircleState,
        heads: HeadFile,
        known: &[HistoryHead],
        kept: Option<u64>,
    ) -> Result<Self> {
        for head in known {
            let extends = circle.check_extends(head).map_err(Refusal::from);
            extends.context("this machine verified a longer history")?;
        }
        heads.raise(&circle)?;
        if kept != Some(circle.length())
            && let Err(error) = heads.keep_state(&circle)
        {
            print::err(format_args!(
                "note: the next command verifies the history from an older state: {error:#}"
            ));
        }
        Ok(Self { client, circle, heads })
    }

    /// Fetches and verifies the whole history, which must continue that of this session.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn whole_history(&self) -> Result<History> {
        let (history, circle) = read_history(&self.client, self.circle.id()).await?;
        circle.check_extends(&self.circle.head()).map_err(Refusal::from)?;
        Ok(history)
    }

    /// Fetches at most `count` decisions of the verified history from this number on, at least one.
    ///
    /// # Errors
    /// Returns an error if control does not answer, or with other decisions than those that were verified.
    pub async fn decisions(&self, first: u64, count: usize) -> Result<Vec<Bundle>> {
        read_decisions(&self.client, &self.circle, first, count).await
    }

    /// Fetches decisions as [`Session::decisions`] does, of any replica that has them, leader or not.
    ///
    /// # Errors
    /// As [`Session::decisions`].
    pub async fn decisions_of_any(&self, first: u64, count: usize) -> Result<Vec<Bundle>> {
        read_decisions_of_any(&self.client, &self.circle, first, count).await
    }

    /// Fetches the certificate by which the verified history approved this proposal; none if it did not.
    ///
    /// # Errors
    /// As [`Session::decisions`].
    pub async fn decision_on(&self, proposal: &ProposalId) -> Result<Option<Certificate>> {
        let Some(number) = self.circle.number_of(proposal) else { return Ok(None) };
        Ok(self.decisions(number, 1).await?.pop().map(|bundle| bundle.certificate))
    }

    /// Fetches the certificates of those of these proposals that the verified history approved.
    async fn decisions_on(&self, views: &[ProposalView]) -> Result<BTreeMap<ProposalId, Certificate>> {
        let numbers = views.iter().filter_map(|view| self.circle.number_of(&view.proposal.id()));
        let mut wanted: BTreeSet<u64> = numbers.collect();
        let mut found = BTreeMap::new();
        while let (Some(first), Some(last)) = (wanted.first().copied(), wanted.last().copied()) {
            // Those that are listed were decided one after another, so that few requests fetch them all.
            let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
            for (number, bundle) in (first..).zip(self.decisions(first, count).await?) {
                wanted.remove(&number);
                found.insert(bundle.certificate.proposal.id(), bundle.certificate);
            }
        }
        Ok(found)
    }

    /// Creates a proposal bound to the circle's present state and submits it as a draft.
    ///
    /// # Errors
    /// Returns an error if the change is not valid in the circle's state, or control rejects it.
    pub async fn propose(
        &self,
        change: Change,
        reason: String,
        lifetime_ms: u64,
    ) -> Result<ReviewedProposal> {
        self.submit(self.draft(change, reason, lifetime_ms)?).await
    }

    /// Submits a proposal that [`Session::draft`] created as a draft, which the first member that approves it
    /// proposes.
    ///
    /// # Errors
    /// Returns an error if control rejects it, or answers with another one.
    pub async fn submit(&self, proposal: Proposal) -> Result<ReviewedProposal> {
        let id = proposal.id();
        let body = SubmitProposal { proposal, ballot: None };
        let view = self.client.post("/v1/proposals", &body).await?;
        self.review_as(&id, view).await
    }

    /// Proposes what [`Session::draft`] created, with the approval of a member who has read it.
    ///
    /// # Errors
    /// Returns an error if control rejects it, or its answer does not show the approval.
    pub async fn submit_as(&self, proposal: Proposal, member: &MemberKey) -> Result<ReviewedProposal> {
        let (id, ballot) = (proposal.id(), self.ballot(&proposal, member, Choice::Approve, String::new())?);
        let body = SubmitProposal { proposal, ballot: Some(ballot.clone()) };
        let view = self.client.post("/v1/proposals", &body).await?;
        self.review_counted(&id, &ballot, view).await
    }

    /// Withdraws a proposal or a draft with a member's key, or a draft of this access token without one.
    ///
    /// # Errors
    /// Returns an error if control rejects the withdrawal.
    pub async fn withdraw(&self, view: &ProposalView, member: Option<&MemberKey>) -> Result<()> {
        let proposal = view.proposal.id();
        let sign = |key: &MemberKey| {
            let draft = view.state == ProposalState::Draft;
            let withdrawal = Withdrawal { proposal, draft, member: key.member.clone() };
            human_chain::sign_withdrawal(&key.signer, withdrawal)
        };
        let body = WithdrawProposal { withdrawal: member.map(sign).transpose()? };
        let path = format!("/v1/proposals/{proposal}/withdrawal");
        let _: serde_json::Value = self.client.post(&path, &body).await?;
        Ok(())
    }

    /// Creates the proposal that [`Session::propose`] would submit.
    ///
    /// # Errors
    /// Returns an error if the change is not valid in the circle's state.
    pub fn draft(&self, change: Change, reason: String, lifetime_ms: u64) -> Result<Proposal> {
        let now = wall_clock();
        let nonce = Digest(random_bytes());
        let proposal = human_chain::propose(&self.circle, change, reason, now, now.plus(lifetime_ms), nonce);
        proposal.map_err(|error| Refusal::from(error).into())
    }

    /// Signs a vote on a proposal, with a reason or an empty one, with a member's key and submits it.
    ///
    /// # Errors
    /// Returns an error if the reason is too long, the key does not sign or signs after the end of the vote,
    /// control rejects the vote, or its answer does not show it.
    pub async fn vote(
        &self,
        proposal: &Proposal,
        member: &MemberKey,
        choice: Choice,
        reason: String,
    ) -> Result<ReviewedProposal> {
        let (id, ballot) = (proposal.id(), self.ballot(proposal, member, choice, reason)?);
        let view: ProposalView = self.client.post(&format!("/v1/proposals/{id}/ballots"), &ballot).await?;
        self.review_counted(&id, &ballot, view).await
    }

    /// Signs a question about a proposal, or the answer to one of its questions, with a member's key and
    /// submits it.
    ///
    /// # Errors
    /// Returns an error if the text is empty or too long, the key does not sign, control rejects the comment,
    /// or its answer does not show it.
    pub async fn comment(
        &self,
        proposal: ProposalId,
        member: &MemberKey,
        answers: Option<CommentId>,
        text: String,
    ) -> Result<ReviewedProposal> {
        check_comment_text(&text).map_err(Refusal::from)?;
        let comment =
            Comment { proposal, member: member.member.clone(), answers, text, issued_at: wall_clock() };
        let signed = sign_comment(&member.signer, comment)?;
        let path = format!("/v1/proposals/{proposal}/comments");
        let view: ProposalView = self.client.post(&path, &signed).await?;
        if !view.comments.iter().any(|kept| kept.comment == signed.comment) {
            let message = format!("control does not show what it took; check `quorate review {proposal}`");
            return Err(Refusal::new(error_code::OUTCOME_UNKNOWN, message).into());
        }
        self.review_as(&proposal, view).await
    }

    /// Signs a ballot. A signature that is ready only after the end of the vote is not sent.
    fn ballot(
        &self,
        proposal: &Proposal,
        member: &MemberKey,
        choice: Choice,
        reason: String,
    ) -> Result<SignedBallot> {
        check_reason(&reason).map_err(Refusal::from)?;
        let (id, head) = (member.member.clone(), self.circle.head());
        let ballot = unsigned_ballot(id, head, proposal, choice, wall_clock());
        let signed = sign_ballot(&member.signer, proposal, Ballot { reason, ..ballot })?;
        check_in_time(&self.circle, proposal, choice, wall_clock()).map_err(Refusal::from)?;
        Ok(signed)
    }

    /// Verifies an answer that must show this ballot.
    async fn review_counted(
        &self,
        id: &ProposalId,
        ballot: &SignedBallot,
        view: ProposalView,
    ) -> Result<ReviewedProposal> {
        if !view.ballots.contains(ballot) {
            let message =
                format!("control does not show the ballot that it took; check `quorate review {id}`");
            return Err(Refusal::new(error_code::OUTCOME_UNKNOWN, message).into());
        }
        self.review_as(id, view).await
    }

    /// Lists the proposals, each verified on this machine.
    ///
    /// # Errors
    /// Returns an error if control does not answer, or shows a proposal under a false id.
    pub async fn proposals(&self) -> Result<Vec<ReviewedProposal>> {
        let views = self.proposal_views().await?;
        views.iter().try_for_each(reviewed::check_id)?;
        let decisions = self.decisions_on(&views).await?;
        let review = |view: ProposalView| {
            let decision = decisions.get(&view.id);
            Ok(ReviewedProposal::with_decision(&self.circle, decision, view)?)
        };
        views.into_iter().map(review).collect()
    }

    /// Fetches one proposal.
    ///
    /// # Errors
    /// Returns an error if control does not answer, or answers with another proposal.
    pub async fn proposal(&self, id: &ProposalId) -> Result<ReviewedProposal> {
        let view = self.client.get(&format!("/v1/proposals/{id}")).await?;
        self.review_as(id, view).await
    }

    /// Finds a proposal by its id or its first digits.
    ///
    /// # Errors
    /// Returns an error if none or several match, or if control shows a proposal under a false id.
    pub async fn find_proposal(&self, prefix: &str) -> Result<ReviewedProposal> {
        let view = reviewed::find(self.proposal_views().await?, prefix)?;
        let id = view.id;
        self.review_as(&id, view).await
    }

    async fn proposal_views(&self) -> Result<Vec<ProposalView>> {
        Ok(self.client.list("/v1/proposals").await?)
    }

    /// Verifies an answer that must be about this proposal.
    async fn review_as(&self, id: &ProposalId, view: ProposalView) -> Result<ReviewedProposal> {
        reviewed::check_id(&view)?;
        let decision = self.decision_on(&view.id).await?;
        let reviewed = ReviewedProposal::with_decision(&self.circle, decision.as_ref(), view)?;
        if reviewed.view.id == *id {
            return Ok(reviewed);
        }
        let message = format!("control answered with the proposal {} to {id}", reviewed.view.id);
        Err(Refusal::new(error_code::PROPOSAL_MISMATCH, message).into())
    }
}
