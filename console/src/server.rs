//! The routes of the console: each checks who asks, reads what the page shows, and returns the page.
//!
//! No route trusts a count of control: proposals are reviewed here, against a circle that was verified from
//! genesis on. Reading changes nothing; every change is a `POST` of one of our own pages.

mod comment;
mod halt;
mod jobs;
mod passkey;
mod vote;

use crate::backend::{CircleReading, ConsoleBackend, HaltReport, PageSource, ProposalRecord};
use crate::guard::{WebOrigins, cookie_value, protect};
use crate::kept::KeptReviews;
use crate::page::{self, PageFrame, Section};
use crate::reviewed::ReviewedProposal;
use crate::sign_in::{SignIn, Visitor};
use axum::extract::rejection::{FormRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Form, FromRequestParts, Path, Query, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{AppendHeaders, Html, IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures::future::{join, join3};
use host::wall_clock;
use human_chain::CircleState;
use maud::Markup;
use protocol::api::{Problem, ProposalState, ProposalView};
use protocol::governance::Certificate;
use protocol::{ErrorCode, MemberId, ProposalId, Refusal, error_code};
use serde::Deserialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of a form: words and a choice, or a passkey's answer.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Files of the pages: name, content type, content.
const FILES: [(&str, &str, &str); 3] = [
    ("console.css", "text/css; charset=utf-8", include_str!("../static/console.css")),
    ("console.js", "text/javascript; charset=utf-8", include_str!("../static/console.js")),
    ("icon.svg", "image/svg+xml", include_str!("../static/icon.svg")),
];

/// A console: what it shows, who may see it, and where it is open.
pub struct Console {
    backend: Arc<dyn ConsoleBackend>,
    sign_in: Arc<SignIn>,
    origins: WebOrigins,
    reviews: Mutex<KeptReviews>,
}

impl Console {
    /// Creates a console that is open at these addresses.
    #[must_use]
    pub fn new(backend: Arc<dyn ConsoleBackend>, sign_in: Arc<SignIn>, origins: WebOrigins) -> Self {
        Self { backend, sign_in, origins, reviews: Mutex::default() }
    }

    fn reviews(&self) -> MutexGuard<'_, KeptReviews> {
        // Each change is one call of a map, so a panic elsewhere leaves no half of one.
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the routes of a console, all below `/console`, and `/`, which leads browsers there.
pub fn router(console: Arc<Console>) -> Router {
    let guarded = Router::new()
        .route("/console", get(overview))
        .route("/console/inbox", get(inbox))
        .route("/console/proposals/{id}", get(proposal))
        .route("/console/proposals/{id}/vote", post(vote::by_key))
        .route("/console/proposals/{id}/ballot", post(passkey::compose))
        .route("/console/proposals/{id}/passkey", post(passkey::vote))
        .route("/console/proposals/{id}/comment", post(comment::by_key))
        .route("/console/proposals/{id}/comment/compose", post(comment::compose))
        .route("/console/proposals/{id}/comment/passkey", post(comment::by_passkey))
        .route("/console/halts", get(halt::list))
        .route("/console/halt", get(halt::form).post(halt::by_key))
        .route("/console/halt/compose", post(halt::compose))
        .route("/console/halt/passkey", post(halt::by_passkey))
        .route("/console/jobs", get(jobs::list))
        .route("/console/jobs/{id}", get(jobs::one))
        .route("/console/projects", get(jobs::projects))
        .route("/console/jobs/{id}/lines", get(jobs::lines))
        .route("/console/passkeys", get(passkey::page))
        .route("/console/passkeys/challenge", post(passkey::challenge))
        .route("/console/passkeys/enter", post(passkey::enter))
        .route("/console/passkeys/options", post(passkey::options))
        .route("/console/passkeys/add", post(passkey::add))
        .route("/console/passkeys/drop", post(passkey::drop_one))
        .route("/console/history", get(history))
        .route("/console/history/{number}", get(decision))
        .route("/console/members", get(members))
        .route("/console/nodes", get(nodes))
        .route("/console/enter", get(sign_in_page).post(enter))
        .route("/console/leave", post(leave))
        .route("/console/static/{file}", get(file))
        .route("/console/{*rest}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(console.clone(), guard))
        .with_state(console);
    let root = Router::new().route("/", get(root)).layer(from_fn(add_headers));
    guarded.merge(root)
}

/// Refuses requests for other hosts and of other pages, and protects every answer.
async fn guard(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let mut response = match console.origins.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => PageFailure::from(refusal).into_response(),
    };
    protect(response.headers_mut());
    response
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    protect(response.headers_mut());
    response
}

/// Leads browsers to the overview. Programs get the same answer as for any other unknown path.
async fn root(headers: HeaderMap) -> Response {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepts.into_iter().any(|accepted| accepted.contains("text/html")) {
        return Redirect::to("/console").into_response();
    }
    let refusal = Refusal::new(error_code::PATH_NOT_FOUND, "the API has no such path");
    (StatusCode::NOT_FOUND, Json(Problem::from(refusal))).into_response()
}

/// A page in place of the one that was asked for.
#[derive(Debug)]
pub(crate) struct PageFailure {
    status: StatusCode,
    page: Markup,
}

impl From<Refusal> for PageFailure {
    fn from(refusal: Refusal) -> Self {
        Self { status: status_of(refusal.code), page: page::problem::page(&refusal) }
    }
}

impl IntoResponse for PageFailure {
    fn into_response(self) -> Response {
        (self.status, Html(self.page.into_string())).into_response()
    }
}

type PageResult = Result<Html<String>, PageFailure>;

fn html(page: Markup) -> Html<String> {
    Html(page.into_string())
}

/// Returns the HTTP status of a refusal.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        error_code::CONSOLE_HOST_REFUSED => StatusCode::MISDIRECTED_REQUEST,
        error_code::CONSOLE_SIGNED_OUT => StatusCode::UNAUTHORIZED,
        error_code::CONSOLE_ORIGIN_REFUSED
        | error_code::CONSOLE_LINK_INVALID
        | error_code::CONSOLE_NO_KEY
        | error_code::TOKEN_SCOPE_MISSING => StatusCode::FORBIDDEN,
        error_code::PROPOSAL_NOT_FOUND
        | error_code::QUESTION_NOT_FOUND
        | error_code::JOB_NOT_FOUND
        | error_code::PATH_NOT_FOUND => StatusCode::NOT_FOUND,
        error_code::METHOD_NOT_ALLOWED => StatusCode::METHOD_NOT_ALLOWED,
        error_code::WORDS_MISMATCH
        | error_code::REQUEST_INVALID
        | error_code::PASSKEY_INVALID
        | error_code::PASSKEY_UNKNOWN
        | error_code::PASSKEY_UNVERIFIED
        | error_code::GOVERNANCE_INVALID => StatusCode::BAD_REQUEST,
        error_code::CONTROL_UNAVAILABLE | error_code::NO_LEADER | error_code::CIRCLE_NOT_FOUNDED => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::CONFLICT,
    }
}

/// Returns whether a refusal says that no leader answered, and nothing else.
fn is_silence(code: ErrorCode) -> bool {
    matches!(code, error_code::CONTROL_UNAVAILABLE | error_code::NO_LEADER | error_code::NOT_LEADER)
}

/// A visitor with a session that still holds.
pub(crate) struct SignedIn(pub(crate) Visitor);

impl FromRequestParts<Arc<Console>> for SignedIn {
    type Rejection = PageFailure;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, PageFailure> {
        let key = cookie_value(&parts.headers, &console.origins.cookie_name()).unwrap_or_default();
        let visitor = console.sign_in.visitor(key).filter(|visitor| console.backend.admits(visitor));
        visitor.map(Self).ok_or_else(|| console.signed_out(!key.is_empty()))
    }
}

impl Console {
    /// Returns the sign-in page, with the reason if there was a session.
    fn signed_out(&self, had_session: bool) -> PageFailure {
        let ended = Refusal::new(error_code::CONSOLE_SIGNED_OUT, "your session has ended; sign in again");
        let ended = had_session.then_some(&ended);
        let status = if ended.is_some() { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
        PageFailure { status, page: page::sign_in::page(&self.backend.source(), "", ended) }
    }

    /// Reviews a proposal. Signatures that an earlier page verified are not verified again.
    fn review(&self, circle: &CircleState, record: ProposalRecord) -> Result<ReviewedProposal, Refusal> {
        let ProposalRecord { view, certificate } = record;
        let id = view.proposal.id();
        let mut known = self.reviews().take(&id);
        let reviewed = ReviewedProposal::with_known(circle, certificate.as_ref(), view, &mut known);
        self.reviews().put(id, known);
        reviewed
    }

    /// Reads the circle for a visitor. The session was judged by the circle as it was known before, so the
    /// visitor is judged again: a passkey that was dropped since shows nothing.
    async fn circle_for(&self, visitor: &Visitor) -> Result<CircleReading, PageFailure> {
        let reading = self.backend.circle().await?;
        if self.backend.admits(visitor) { Ok(reading) } else { Err(self.signed_out(true)) }
    }

    /// Reads what the frame of each page shows.
    async fn look(&self, visitor: Visitor) -> Result<Look, PageFailure> {
        let mut reading = self.circle_for(&visitor).await?;
        let views = match self.backend.open_proposals().await {
            // A member reads the circle also when no leader lists what is open.
            Err(refusal) if is_silence(refusal.code) => {
                let note = format!("The open proposals are not known: {}", refusal.message);
                reading.note = Some(reading.note.map_or(note.clone(), |before| format!("{before} {note}")));
                Vec::new()
            }
            views => views?,
        };
        let mut open = Vec::new();
        for view in views {
            open.push(self.review(&reading.state, ProposalRecord { view, certificate: None })?);
        }
        Ok(self.look_of(reading, visitor, open))
    }

    /// Reads what the frame of the form that halts shows. It waits for no other party.
    fn look_to_halt(&self, visitor: Visitor) -> Result<Look, PageFailure> {
        Ok(self.look_of(self.backend.last_circle()?, visitor, Vec::new()))
    }

    /// Reads the halts, and what the frame of their page shows. Proposals that cannot be read, or that are
    /// shown under a false id, hide no halt.
    async fn look_at_halts(&self, visitor: Visitor) -> Result<(Look, HaltReport), PageFailure> {
        let backend = &self.backend;
        let (reading, views, report) =
            join3(self.circle_for(&visitor), backend.open_proposals(), backend.halts()).await;
        let mut reading = reading?;
        if views.is_err() && reading.note.is_none() {
            reading.note = Some("No leader lists the open proposals. A halt needs no leader.".into());
        }
        let review = |view| self.review(&reading.state, ProposalRecord { view, certificate: None }).ok();
        let open = views.unwrap_or_default().into_iter().filter_map(review).collect();
        Ok((self.look_of(reading, visitor, open), report?))
    }

    fn look_of(&self, reading: CircleReading, visitor: Visitor, open: Vec<ReviewedProposal>) -> Look {
        let CircleReading { state: circle, note } = reading;
        let waits = |one: &&ReviewedProposal| {
            one.view.state == ProposalState::Open && one.waits_for(&circle, visitor.member())
        };
        let waiting = open.iter().filter(waits).count();
        Look { circle, note, source: self.backend.source(), visitor, open, waiting }
    }

    /// Reads one proposal, with the votes as counted here.
    async fn reviewed(&self, look: &Look, id: ProposalId) -> Result<ReviewedProposal, PageFailure> {
        let record = self.backend.proposal(id).await?.ok_or_else(|| {
            let message = format!("no proposal {}; decided ones are in the history", id.short());
            Refusal::new(error_code::PROPOSAL_NOT_FOUND, message)
        })?;
        let reviewed = self.review(&look.circle, record)?;
        if reviewed.view.id == id {
            return Ok(reviewed);
        }
        let message = format!("control answered with the proposal {} to {id}", reviewed.view.id);
        Err(Refusal::new(error_code::PROPOSAL_MISMATCH, message).into())
    }
}

/// Values that the frame of a page shows.
struct Look {
    circle: Arc<CircleState>,
    note: Option<String>,
    source: PageSource,
    visitor: Visitor,
    open: Vec<ReviewedProposal>,
    waiting: usize,
}

impl Look {
    fn frame(&self, section: Section) -> PageFrame<'_> {
        let Self { circle, source, visitor, waiting, .. } = self;
        let note = self.note.as_deref();
        PageFrame { circle, source, visitor, section, note, waiting: *waiting, now: wall_clock() }
    }

    fn member(&self) -> Option<&MemberId> {
        self.visitor.member()
    }
}

async fn overview(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let look = console.look(visitor).await?;
    let (report, halts) = join(console.backend.cluster(), console.backend.halts()).await;
    // The rest of the page is shown also when no replica answers for the halts.
    let halts = halts.unwrap_or_else(|refusal| {
        let note = format!("The halts are not known: {}", refusal.message);
        HaltReport { halts: Vec::new(), note: Some(note) }
    });
    Ok(html(page::overview::page(&look.frame(Section::Overview), &report?, &halts)))
}

async fn inbox(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let look = console.look(visitor).await?;
    Ok(html(page::inbox::page(&look.frame(Section::Inbox), &look.open)))
}

async fn proposal(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<ProposalId>, PathRejection>,
) -> PageResult {
    let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
    console.proposal_page(visitor, id, None, None).await.map(html)
}

/// Query of a page of the history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    before: Option<u64>,
}

async fn history(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> PageResult {
    let Query(HistoryQuery { before }) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    let before = before.unwrap_or(u64::MAX);
    let decisions = console.backend.decisions(before, page::history::DECISIONS_PER_PAGE).await?;
    Ok(html(page::history::page(&look.frame(Section::History), &decisions)))
}

async fn decision(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    number: Result<Path<u64>, PathRejection>,
) -> PageResult {
    let Path(number) = number.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    let found = console.backend.decisions(number.saturating_add(1), 1).await?;
    let found = found.into_iter().find(|(found, _)| *found == number);
    let (_, bundle) = found.ok_or_else(|| {
        let message = format!("there is no decision {number}; the last is {}", look.circle.length());
        Refusal::new(error_code::PATH_NOT_FOUND, message)
    })?;
    let certificate = &bundle.certificate;
    let reviewed =
        ReviewedProposal::with_decision(&look.circle, Some(certificate), decided_view(certificate))?;
    Ok(html(page::history::one(&look.frame(Section::History), number, certificate, &reviewed)))
}

/// Returns a decided proposal in the form in which control shows it.
fn decided_view(certificate: &Certificate) -> ProposalView {
    ProposalView {
        id: certificate.proposal.id(),
        proposal: certificate.proposal.clone(),
        class: human_chain::class_of(&certificate.proposal.change),
        state: ProposalState::Approved,
        ballots: certificate.ballots.clone(),
        approved: Vec::new(),
        rejected: Vec::new(),
        missing: Vec::new(),
        certificate: None,
        takes_effect_at: None,
        proposer: None,
        drafted_by: None,
        comments: Vec::new(),
    }
}

async fn members(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let look = console.look(visitor).await?;
    Ok(html(page::members::page(&look.frame(Section::Members))))
}

/// Query of a page of the nodes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesQuery {
    after: Option<String>,
}

async fn nodes(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> PageResult {
    let Query(NodesQuery { after }) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    let (pending, report) = (console.backend.pending_nodes().await?, console.backend.cluster().await?);
    let frame = look.frame(Section::Nodes);
    Ok(html(page::nodes::page(&frame, &pending, &report, after.as_deref())))
}

/// Query of the sign-in page.
#[derive(Debug, Deserialize)]
struct EnterQuery {
    #[serde(default)]
    code: String,
}

async fn sign_in_page(
    State(console): State<Arc<Console>>,
    query: Result<Query<EnterQuery>, QueryRejection>,
) -> PageResult {
    let Query(EnterQuery { code }) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    Ok(html(page::sign_in::page(&console.backend.source(), &code, None)))
}

async fn enter(
    State(console): State<Arc<Console>>,
    form: Result<Form<EnterQuery>, FormRejection>,
) -> Result<Response, PageFailure> {
    let Form(EnterQuery { code }) = form.map_err(|rejection| invalid(&rejection.body_text()))?;
    let key = console.sign_in.redeem(&code).map_err(|refusal| {
        let page = page::sign_in::page(&console.backend.source(), "", Some(&refusal));
        PageFailure { status: status_of(refusal.code), page }
    })?;
    Ok(with_cookie(&console.origins.cookie(&key)))
}

async fn leave(State(console): State<Arc<Console>>, headers: HeaderMap) -> Response {
    if let Some(key) = cookie_value(&headers, &console.origins.cookie_name()) {
        console.sign_in.end(key);
    }
    with_cookie(&console.origins.cookie(""))
}

fn with_cookie(cookie: &str) -> Response {
    (AppendHeaders([(SET_COOKIE, cookie)]), Redirect::to("/console")).into_response()
}

async fn file(Path(name): Path<String>) -> Result<Response, PageFailure> {
    let found = FILES.iter().find(|(file, _, _)| *file == name);
    let (_, kind, content) = found.ok_or_else(unknown_path)?;
    Ok(([(CONTENT_TYPE, *kind)], *content).into_response())
}

async fn unknown() -> PageFailure {
    unknown_path()
}

fn unknown_path() -> PageFailure {
    Refusal::new(error_code::PATH_NOT_FOUND, "the console has no such page").into()
}

async fn wrong_method() -> PageFailure {
    Refusal::new(error_code::METHOD_NOT_ALLOWED, "this page does not take such a request").into()
}

fn invalid(reason: &str) -> Refusal {
    Refusal::new(error_code::REQUEST_INVALID, reason)
}
