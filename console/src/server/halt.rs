//! Halts that are given on a page: by the key on this machine, or by a passkey.
//!
//! No words are asked for: what stops too early does no harm, and what stops too late may. The passkey signs
//! the canonical halt in a domain of its own, and each node verifies it.

use super::passkey::{ChallengeOptions, NextPage, ScriptFailure, ScriptResult};
use super::{Console, Look, PageFailure, PageResult, SignedIn, html, invalid, status_of};
use crate::page::Section;
use crate::page::halts::{self, HaltForm};
use crate::sign_in::Visitor;
use axum::Json;
use axum::extract::rejection::{FormRejection, JsonRejection, QueryRejection};
use axum::extract::{Form, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use host::random::random_bytes;
use host::wall_clock;
use human_chain::halt_challenge;
use maud::Markup;
use protocol::halt::{HALT_BYTES_MAX, HALT_REASON_BYTES_MAX, Halt, HaltScope, HaltSignature, SignedHalt};
use protocol::keys::ByteString;
use protocol::passkey::PasskeyAssertion;
use protocol::{Digest, MemberId, Refusal, canonical, error_code};
use serde::Deserialize;
use std::sync::Arc;

/// A halt as the form and the script send it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HaltRequest {
    /// `circle`, `service:NAME`, `node:NAME` or `region:NAME`.
    #[serde(default)]
    scope: String,
    #[serde(default)]
    reason: String,
}

/// A halt with the answer of an authenticator.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasskeyHalt {
    halt: ByteString,
    assertion: PasskeyAssertion,
}

impl HaltRequest {
    fn scope(&self) -> Result<HaltScope, Refusal> {
        let scope = match self.scope.split_once(':') {
            None if self.scope == "circle" => Ok(HaltScope::Circle),
            Some(("service", name)) => name.parse().map(HaltScope::Service),
            Some(("node", name)) => name.parse().map(HaltScope::Node),
            Some(("region", name)) if !name.is_empty() => Ok(HaltScope::Region(name.to_string())),
            _ => Err("choose a service, a node, a region or the whole circle".to_string()),
        };
        scope.map_err(|reason| invalid(&format!("nothing was halted: {reason}")))
    }

    /// Returns the halt of this member, made now.
    fn halt(&self, look: &Look, member: &MemberId) -> Result<Halt, Refusal> {
        let (length, most) = (self.reason.len(), HALT_REASON_BYTES_MAX);
        if length > most {
            let message = format!("the reason is {length} bytes; accepted: at most {most}");
            return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message));
        }
        let signer = look.circle.active_member(member)?.keys.ed25519;
        Ok(Halt {
            circle: look.circle.id(),
            member: member.clone(),
            signer,
            scope: self.scope()?,
            reason: self.reason.clone(),
            issued_at: wall_clock(),
            nonce: Digest(random_bytes()),
        })
    }
}

/// Shows the halts.
pub(crate) async fn list(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let (look, report) = console.look_at_halts(visitor).await?;
    Ok(html(halts::page(&look.frame(Section::Halts), &report, &look.open)))
}

/// Shows the form that halts. A link may choose the scope.
pub(crate) async fn form(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    query: Result<Query<HaltRequest>, QueryRejection>,
) -> PageResult {
    let Query(chosen) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    console.halt_page(visitor, &chosen, None).map(html)
}

/// Signs a halt with the key of the member on this machine, and delivers it.
pub(crate) async fn by_key(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    form: Result<Form<HaltRequest>, FormRejection>,
) -> Result<Redirect, PageFailure> {
    let Form(request) = form.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look_to_halt(visitor.clone())?;
    match console.sign_and_halt(&look, &request).await {
        Ok(()) => Ok(Redirect::to("/console/halts")),
        Err(refusal) => {
            let page = console.halt_page(visitor, &request, Some(&refusal))?;
            Err(PageFailure { status: status_of(refusal.code), page })
        }
    }
}

/// Composes the halt that a passkey signs.
pub(crate) async fn compose(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    body: Result<Json<HaltRequest>, JsonRejection>,
) -> Result<Json<ChallengeOptions>, Response> {
    let look = console.look_to_halt(visitor).map_err(IntoResponse::into_response)?;
    let composed = || -> Result<ChallengeOptions, ScriptFailure> {
        let Json(request) = body?;
        let halt = |member: &MemberId| request.halt(&look, member);
        Ok(ChallengeOptions::for_statement(&look, halt_challenge, halt)?)
    };
    composed().map(Json).map_err(IntoResponse::into_response)
}

/// Delivers a halt that a passkey signed. Control and every node verify it.
pub(crate) async fn by_passkey(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    body: Result<Json<PasskeyHalt>, JsonRejection>,
) -> ScriptResult<NextPage> {
    let Json(PasskeyHalt { halt, assertion }) = body?;
    let halt: Halt = canonical::from_bytes(&halt.0, HALT_BYTES_MAX)
        .map_err(|error| Refusal::of(error_code::REQUEST_INVALID, &error))?;
    if Some(&halt.member) != visitor.member() {
        let message = "the halt is of another member than the one that is signed in";
        return Err(Refusal::new(error_code::CONSOLE_NO_KEY, message).into());
    }
    let signature = HaltSignature::Passkey(assertion);
    console.backend.deliver_halt(SignedHalt { halt, signature }).await?;
    Ok(Json(NextPage { to: "/console/halts".into() }))
}

impl Console {
    /// Returns the page of the form, with the reason for which a halt was not signed or not taken.
    fn halt_page(
        &self,
        visitor: Visitor,
        request: &HaltRequest,
        refused: Option<&Refusal>,
    ) -> Result<Markup, PageFailure> {
        let look = self.look_to_halt(visitor)?;
        let (scope, reason) = (request.scope.as_str(), request.reason.as_str());
        let shown = HaltForm { means: self.means_beside_votes(&look), scope, reason, refused };
        Ok(halts::form_page(&look.frame(Section::Halts), &shown))
    }

    async fn sign_and_halt(&self, look: &Look, request: &HaltRequest) -> Result<(), Refusal> {
        let no_key = || {
            let message = "this console holds no key of yours; nothing was signed";
            Refusal::new(error_code::CONSOLE_NO_KEY, message)
        };
        let member = look.member().filter(|_| self.means_beside_votes(look).key).ok_or_else(no_key)?;
        let signed = self.backend.sign_halt(request.halt(look, member)?)?;
        let signed = signed.filter(|signed| signed.halt.member == *member).ok_or_else(no_key)?;
        self.backend.deliver_halt(signed).await
    }
}
