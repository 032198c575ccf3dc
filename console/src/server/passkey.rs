//! Passkeys on the pages: votes, sign-in to read, and registration.
//!
//! The server composes what is signed, and the browser's authenticator signs it. A vote is an ordinary
//! ballot, which every node verifies; the console checks no assertion over one. A sign-in is checked here,
//! over a random challenge in a domain of its own, and lets a member read.

use super::{Console, Look, SignedIn, invalid, status_of};
use crate::page::passkeys::PasskeyPage;
use crate::page::{self, Section};
use crate::server::{PageFailure, PageResult, html};
use crate::words::compare_words;
use axum::Json;
use axum::extract::rejection::{FormRejection, JsonRejection, PathRejection};
use axum::extract::{Form, Path, State};
use axum::http::header::SET_COOKIE;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use human_chain::{
    ballot_challenge, check_assertion, check_reason, read_registration, registration_challenge,
};
use protocol::api::Problem;
use protocol::governance::{Ballot, BallotSignature, Change, Choice, SignedBallot};
use protocol::keys::ByteString;
use protocol::limits::BALLOT_BYTES_MAX;
use protocol::passkey::{Passkey, PasskeyAssertion, PasskeyPolicy, PasskeyRegistration};
use protocol::{Digest, MemberId, ProposalId, Refusal, canonical, error_code};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A refusal, for the pages' script.
pub(crate) struct ScriptFailure(pub(super) Refusal);

impl From<Refusal> for ScriptFailure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<human_chain::ChainError> for ScriptFailure {
    fn from(error: human_chain::ChainError) -> Self {
        Self(error.into())
    }
}

impl From<JsonRejection> for ScriptFailure {
    fn from(rejection: JsonRejection) -> Self {
        Self(invalid(&rejection.body_text()))
    }
}

impl IntoResponse for ScriptFailure {
    fn into_response(self) -> Response {
        (status_of(self.0.code), Json(Problem::from(self.0))).into_response()
    }
}

pub(super) type ScriptResult<T> = Result<Json<T>, ScriptFailure>;

/// A vote that the script asks to have composed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ComposeRequest {
    words: String,
    choice: Choice,
    #[serde(default)]
    reason: String,
}

/// A challenge for an authenticator to sign.
#[derive(Debug, Serialize)]
pub(crate) struct ChallengeOptions {
    /// Canonical bytes of the ballot, halt or comment; empty for a sign-in.
    signed: ByteString,
    challenge: ByteString,
    rp_id: String,
    /// Credentials that may sign; none means any.
    credentials: Vec<ByteString>,
}

/// A ballot with the answer of an authenticator.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasskeyVote {
    ballot: ByteString,
    assertion: PasskeyAssertion,
}

/// A sign-in challenge with the answer of an authenticator.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasskeyEntry {
    challenge: ByteString,
    assertion: PasskeyAssertion,
}

/// The page that the script opens next.
#[derive(Debug, Serialize)]
pub(crate) struct NextPage {
    pub(super) to: String,
}

/// Options of a new passkey, for the authenticator that makes it.
#[derive(Debug, Serialize)]
pub(crate) struct RegistrationOptions {
    challenge: ByteString,
    rp_id: String,
    user: ByteString,
    name: String,
    /// Credentials of the member, which the authenticator must not replace.
    credentials: Vec<ByteString>,
}

/// A passkey to remove.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DropForm {
    credential: ByteString,
}

fn no_passkeys() -> Refusal {
    let message = "the circle's policy has no passkeys; `quorate approve` and `quorate halt` sign with a key";
    Refusal::new(error_code::PASSKEY_NOT_COUNTED, message)
}

fn not_a_member() -> Refusal {
    Refusal::new(error_code::CONSOLE_NO_KEY, "only a member signs; sign in as one")
}

impl Look {
    fn policy(&self) -> Result<&PasskeyPolicy, Refusal> {
        self.circle.policy().passkeys.as_ref().ok_or_else(no_passkeys)
    }

    /// Returns the member who reads and his passkeys.
    fn member_with_passkeys(&self) -> Result<(&MemberId, &[Passkey]), Refusal> {
        let member = self.member().ok_or_else(not_a_member)?;
        Ok((member, self.circle.passkeys(member)))
    }
}

impl ChallengeOptions {
    /// Returns the options with which the member who reads signs by passkey what `compose` makes for that
    /// member.
    ///
    /// # Errors
    /// Fails with `passkey-not-counted` if the policy has no passkeys, with `console-no-key` if the visitor
    /// is no member, and as `compose` does.
    pub(super) fn for_statement<T: Serialize>(
        look: &Look,
        challenge_of: impl FnOnce(&T) -> Digest,
        compose: impl FnOnce(&MemberId) -> Result<T, Refusal>,
    ) -> Result<Self, Refusal> {
        let (policy, (member, passkeys)) = (look.policy()?, look.member_with_passkeys()?);
        let statement = compose(member)?;
        Ok(Self {
            challenge: ByteString(challenge_of(&statement).0.to_vec()),
            signed: ByteString(canonical::to_bytes(&statement)),
            rp_id: policy.rp_id.clone(),
            credentials: credentials(passkeys),
        })
    }
}

fn credentials(passkeys: &[Passkey]) -> Vec<ByteString> {
    passkeys.iter().map(|passkey| passkey.credential.clone()).collect()
}

/// Composes the ballot that a passkey signs, after the words were typed.
pub(crate) async fn compose(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<ProposalId>, PathRejection>,
    body: Result<Json<ComposeRequest>, JsonRejection>,
) -> Result<Json<ChallengeOptions>, Response> {
    let look = console.look(visitor).await.map_err(IntoResponse::into_response)?;
    let Path(id) = id.map_err(|rejection| ScriptFailure(invalid(&rejection.body_text())).into_response())?;
    let reviewed = console.reviewed(&look, id).await.map_err(IntoResponse::into_response)?;
    let composed = || -> Result<ChallengeOptions, ScriptFailure> {
        let Json(request) = body?;
        compare_words(&request.words, &reviewed.words)?;
        check_reason(&request.reason)?;
        let ballot = |member: &MemberId| {
            Ok(look.ballot(member, &reviewed.view.proposal, request.choice, request.reason))
        };
        Ok(ChallengeOptions::for_statement(&look, ballot_challenge, ballot)?)
    };
    composed().map(Json).map_err(IntoResponse::into_response)
}

/// Delivers a ballot that a passkey signed. Control and every node verify it.
pub(crate) async fn vote(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    Path(id): Path<ProposalId>,
    body: Result<Json<PasskeyVote>, JsonRejection>,
) -> ScriptResult<NextPage> {
    let Json(PasskeyVote { ballot, assertion }) = body?;
    let ballot: Ballot = canonical::from_bytes(&ballot.0, BALLOT_BYTES_MAX)
        .map_err(|error| Refusal::of(error_code::REQUEST_INVALID, &error))?;
    if ballot.proposal != id || Some(&ballot.member) != visitor.member() {
        let message = "the ballot is of another proposal or member than this page's";
        return Err(Refusal::new(error_code::BALLOT_MISMATCH, message).into());
    }
    console.backend.deliver(SignedBallot { ballot, signature: BallotSignature::Passkey(assertion) }).await?;
    Ok(Json(NextPage { to: format!("/console/proposals/{id}") }))
}

/// Returns a challenge with which a member's passkey signs in. Visitors without a session may ask for one, so
/// it costs neither a question to another replica nor memory.
pub(crate) async fn challenge(State(console): State<Arc<Console>>) -> ScriptResult<ChallengeOptions> {
    let circle = console.backend.last_circle()?.state;
    let policy = circle.policy().passkeys.as_ref().ok_or_else(no_passkeys)?;
    let challenge = ByteString(console.sign_in.create_challenge());
    let (signed, rp_id) = (ByteString::default(), policy.rp_id.clone());
    Ok(Json(ChallengeOptions { signed, challenge, rp_id, credentials: Vec::new() }))
}

/// Begins a session of the member whose passkey signed the challenge. Until then the visitor is
/// unauthenticated, and the circle as it was read last must do. A passkey that was dropped since begins a
/// session that shows nothing: each page reads the circle again and judges its visitor by it.
pub(crate) async fn enter(
    State(console): State<Arc<Console>>,
    body: Result<Json<PasskeyEntry>, JsonRejection>,
) -> Result<Response, ScriptFailure> {
    let Json(PasskeyEntry { challenge, assertion }) = body?;
    let fresh = console.sign_in.read_challenge(&challenge.0)?;
    let circle = console.backend.last_circle()?.state;
    let policy = circle.policy().passkeys.as_ref().ok_or_else(no_passkeys)?;
    let unknown = || Refusal::new(error_code::PASSKEY_UNKNOWN, "no member of this circle has this passkey");
    let passkeys = circle.members().flat_map(|member| {
        let own = circle.passkeys(&member.id).iter();
        own.map(move |passkey| (&member.id, passkey))
    });
    let mut found = passkeys.filter(|(_, passkey)| passkey.credential == assertion.credential);
    let (member, passkey) = found.next().ok_or_else(unknown)?;
    circle.active_member(member)?;
    // A sign-in only reads, so a copied authenticator gains nothing by an old counter.
    check_assertion(policy, passkey, &challenge.0, &assertion, 0)?;
    let key = console.sign_in.begin_by_passkey(fresh, member.clone(), assertion.credential)?;
    let cookie = console.origins.cookie(&key);
    Ok((AppendHeaders([(SET_COOKIE, cookie)]), Json(NextPage { to: "/console".into() })).into_response())
}

/// Shows the passkeys of the member on whose machine the console runs.
pub(crate) async fn page(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let look = console.look(visitor).await?;
    let can_register = console.backend.holds_key();
    let (member, passkeys) = look.member_with_passkeys()?;
    let policy = look.circle.policy().passkeys.as_ref();
    let shown = PasskeyPage { member, passkeys, policy, can_register };
    Ok(html(page::passkeys::page(&look.frame(Section::Members), &shown)))
}

/// Returns what a new passkey of this member is made for.
pub(crate) async fn options(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
) -> Result<Json<RegistrationOptions>, Response> {
    let look = console.look(visitor).await.map_err(IntoResponse::into_response)?;
    let made = || -> Result<RegistrationOptions, ScriptFailure> {
        console.require_key()?;
        let (policy, (member, passkeys)) = (look.policy()?, look.member_with_passkeys()?);
        let challenge = registration_challenge(look.circle.id(), member);
        Ok(RegistrationOptions {
            challenge: ByteString(challenge.0.to_vec()),
            rp_id: policy.rp_id.clone(),
            user: ByteString(member.as_str().as_bytes().to_vec()),
            name: member.to_string(),
            credentials: credentials(passkeys),
        })
    };
    made().map(Json).map_err(IntoResponse::into_response)
}

/// Proposes the member's passkeys with the new one. The member reads the proposal and signs it with his key.
pub(crate) async fn add(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    body: Result<Json<PasskeyRegistration>, JsonRejection>,
) -> Result<Json<NextPage>, Response> {
    let look = console.look(visitor).await.map_err(IntoResponse::into_response)?;
    let read = || -> Result<(MemberId, Vec<Passkey>, String), ScriptFailure> {
        console.require_key()?;
        let Json(registration) = body?;
        let (policy, (member, passkeys)) = (look.policy()?, look.member_with_passkeys()?);
        let challenge = registration_challenge(look.circle.id(), member);
        let passkey = read_registration(&registration, &challenge.0, policy)?;
        let reason = format!("add the passkey {}", passkey.label);
        Ok((member.clone(), [passkeys, std::slice::from_ref(&passkey)].concat(), reason))
    };
    let (member, passkeys, reason) = read().map_err(IntoResponse::into_response)?;
    let proposed = console.backend.propose(Change::SetPasskeys { member, passkeys }, reason).await;
    let id = proposed.map_err(|refusal| ScriptFailure(refusal).into_response())?;
    Ok(Json(NextPage { to: format!("/console/proposals/{id}") }))
}

/// Proposes the member's passkeys without this one.
pub(crate) async fn drop_one(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    form: Result<Form<DropForm>, FormRejection>,
) -> Result<Redirect, PageFailure> {
    let Form(DropForm { credential }) = form.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    console.require_key()?;
    let (member, passkeys) = look.member_with_passkeys()?;
    let kept: Vec<Passkey> = passkeys.iter().filter(|one| one.credential != credential).cloned().collect();
    let gone = passkeys.iter().find(|one| one.credential == credential);
    let gone = gone.ok_or_else(|| invalid("the member has no such passkey"))?;
    let reason = format!("drop the passkey {}", gone.label);
    let change = Change::SetPasskeys { member: member.clone(), passkeys: kept };
    let id = console.backend.propose(change, reason).await?;
    Ok(Redirect::to(&format!("/console/proposals/{id}")))
}

impl Console {
    /// Checks that this console signs with a member's key: a replica's page registers no passkey.
    fn require_key(&self) -> Result<(), Refusal> {
        if self.backend.holds_key() {
            return Ok(());
        }
        let message = "passkeys are added in `quorate console`, on the machine with the member's key";
        Err(Refusal::new(error_code::CONSOLE_NO_KEY, message))
    }
}
