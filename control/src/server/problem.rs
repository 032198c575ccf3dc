//! Errors of the control API: one JSON shape, a stable code for each, and one HTTP status per kind of
//! mistake.

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use consensus::{LinearizableReadError, ProposeError};
use protocol::Refusal;
use protocol::api::{LEADER_HEADER, Problem};
use protocol::error_code::{self, ErrorCode};
use scheduler::Reply;

/// A problem and the HTTP status that it is sent with.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    status: StatusCode,
    problem: Problem,
    /// Base URL of the leader, if this replica does not lead and knows the leader.
    leader: Option<Box<HeaderValue>>,
}

impl Failure {
    /// Creates a failure with this code; the status follows from the code.
    #[must_use]
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Refusal::new(code, message).into()
    }

    /// Adds the base URL of the replica that leads.
    #[must_use]
    pub(crate) fn leader(mut self, api: &str) -> Self {
        self.leader = HeaderValue::from_str(api).ok().map(Box::new);
        self
    }

    /// Adds the location of the mistake in the request.
    #[must_use]
    pub(crate) fn at(mut self, at: impl Into<String>) -> Self {
        self.problem.at = Some(at.into());
        self
    }

    /// Adds a remedy for the caller.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.problem.remedy = Some(remedy.into());
        self
    }

    /// Returns the problem in its JSON form.
    #[must_use]
    pub(crate) fn problem(&self) -> &Problem {
        &self.problem
    }
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        error_code::TOKEN_UNKNOWN
        | error_code::GRANT_EXPIRED
        | error_code::GRANT_REVOKED
        | error_code::GRANT_ENVELOPE_ENDED => StatusCode::UNAUTHORIZED,
        error_code::TOKEN_SCOPE_MISSING
        | error_code::GRANTOR_REFUSED
        | error_code::GRANT_OUTSIDE_ENVELOPE
        | error_code::NODE_NOT_ADMITTED
        | error_code::WITHDRAWAL_REFUSED => StatusCode::FORBIDDEN,
        error_code::NOT_LEADER => StatusCode::MISDIRECTED_REQUEST,
        error_code::CONTROL_UNAVAILABLE
        | error_code::CIRCLE_NOT_FOUNDED
        | error_code::NO_LEADER
        | error_code::LOG_BUSY
        | error_code::SESSION_EXPIRED
        | error_code::REPLICA_STOPPED => StatusCode::SERVICE_UNAVAILABLE,
        // Not 503, because a client that retries on 503 might apply the command twice.
        error_code::OUTCOME_UNKNOWN | error_code::SEQUENCE_PASSED => StatusCode::GATEWAY_TIMEOUT,
        error_code::LOG_DISK_FULL => StatusCode::INSUFFICIENT_STORAGE,
        error_code::LIMIT_REACHED => StatusCode::TOO_MANY_REQUESTS,
        error_code::PROPOSAL_NOT_FOUND
        | error_code::QUESTION_NOT_FOUND
        | error_code::SERVICE_NOT_FOUND
        | error_code::JOB_NOT_FOUND
        | error_code::JOB_DATA_MISSING
        | error_code::MODEL_NOT_FOUND
        | error_code::GRANT_NOT_FOUND
        | error_code::PATH_NOT_FOUND => StatusCode::NOT_FOUND,
        error_code::NAME_TAKEN
        | error_code::MODEL_RECORD_DIFFERS
        | error_code::MODEL_IN_USE
        | error_code::WRAP_HELD
        | error_code::WRAP_NOT_HELD
        | error_code::PROPOSAL_STALE
        | error_code::PROPOSAL_UNSIGNED
        | error_code::BALLOT_DUPLICATE
        | error_code::PLAN_STALE
        | error_code::JOB_NOT_ENDED
        | error_code::ROLLBACK_NOT_APPROVED
        | error_code::CIRCLE_ALREADY_FOUNDED => StatusCode::CONFLICT,
        error_code::REQUEST_TOO_LARGE | error_code::COMMAND_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        error_code::IDEMPOTENCY_KEY_REUSED => StatusCode::UNPROCESSABLE_ENTITY,
        error_code::METHOD_NOT_ALLOWED => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        if let Some(leader) = self.leader {
            response.headers_mut().insert(HeaderName::from_static(LEADER_HEADER), *leader);
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { status: status_of(refusal.code), problem: refusal.into(), leader: None }
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        let remedy = match &error {
            ProposeError::OutcomeUnknown | ProposeError::SequencePassed => CHECK,
            ProposeError::DiskFull => {
                "free space on the disk of the leader's log; the leader then resumes by itself"
            }
            ProposeError::TooLarge { .. } => "reduce its size",
            ProposeError::Busy => "retry in a moment",
            ProposeError::NoLeader | ProposeError::SessionExpired | ProposeError::Stopped(_) => RETRY,
        };
        Self::new(error.code(), error.to_string()).remedy(remedy)
    }
}

impl From<LinearizableReadError> for Failure {
    fn from(error: LinearizableReadError) -> Self {
        Self::new(error.code(), error.to_string()).remedy(RETRY)
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::new(error_code::REQUEST_TOO_LARGE, rejection.body_text());
        }
        Self::new(error_code::REQUEST_INVALID, rejection.body_text()).at("body")
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::new(error_code::REQUEST_TOO_LARGE, rejection.body_text());
        }
        Self::new(error_code::REQUEST_INVALID, rejection.body_text()).at("body")
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(error_code::REQUEST_INVALID, rejection.body_text()).at("path")
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(error_code::REQUEST_INVALID, rejection.body_text()).at("query")
    }
}

/// Returns the reply of the state machine, or its refusal as a failure.
///
/// # Errors
/// Returns an error if the state machine refused the command.
pub(super) fn accepted(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Reply::Refused { code, message } => Err(Failure::new(code, message)),
        done => Ok(done),
    }
}

/// Returns the failure of a replica that cannot answer now; a retry, or another replica, may succeed.
pub(crate) fn unavailable(error: impl std::fmt::Display) -> Failure {
    Failure::new(error_code::CONTROL_UNAVAILABLE, error.to_string()).remedy(RETRY)
}

/// Returns the failure for a committed command whose effect cannot be shown.
///
/// Its status is never 503, which would report that nothing was done.
pub(super) fn effect_unknown(reason: impl std::fmt::Display) -> Failure {
    Failure::new(error_code::OUTCOME_UNKNOWN, format!("the command was committed; {reason}")).remedy(CHECK)
}

/// Remedy when the command may have been applied.
const CHECK: &str =
    "send it again under its Idempotency-Key, or check whether it took effect before you repeat it";
/// Remedy when nothing was done and the request itself is valid.
const RETRY: &str = "retry; `quorate status` shows the replicas that answer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_follows_from_the_code() {
        for (code, status) in [
            (error_code::KIND_NOT_BUILT, 400),
            (error_code::TOKEN_UNKNOWN, 401),
            (error_code::TOKEN_SCOPE_MISSING, 403),
            (error_code::PROPOSAL_NOT_FOUND, 404),
            (error_code::METHOD_NOT_ALLOWED, 405),
            (error_code::NAME_TAKEN, 409),
            (error_code::REQUEST_TOO_LARGE, 413),
            (error_code::NOT_LEADER, 421),
            (error_code::IDEMPOTENCY_KEY_REUSED, 422),
            (error_code::LIMIT_REACHED, 429),
            (error_code::NO_LEADER, 503),
            (error_code::OUTCOME_UNKNOWN, 504),
            (error_code::LOG_DISK_FULL, 507),
        ] {
            let response = Failure::from(Refusal::new(code, "text")).into_response();
            assert_eq!(response.status().as_u16(), status, "{code}");
        }
    }

    #[test]
    fn the_code_and_the_text_of_a_refusal_become_the_problem() {
        let refused =
            Reply::Refused { code: error_code::NAME_TAKEN, message: "an API key `app` exists".into() };
        let failure = accepted(refused).expect_err("refused").at("name").remedy("choose another");
        let expected = Problem {
            code: "name-taken".into(),
            message: "an API key `app` exists".into(),
            at: Some("name".into()),
            remedy: Some("choose another".into()),
        };
        assert_eq!(failure.problem(), &expected);
        assert!(accepted(Reply::Leads { generation: 1 }).is_ok());
    }

    #[test]
    fn a_failure_of_a_replica_that_does_not_lead_names_the_leader() {
        let failure = || Failure::new(error_code::NOT_LEADER, "not the leader");
        let header = |failure: Failure| failure.into_response().headers().get(LEADER_HEADER).cloned();
        assert_eq!(header(failure()), None);
        let leader = header(failure().leader("https://10.0.0.1:7601"));
        assert_eq!(leader, Some(HeaderValue::from_static("https://10.0.0.1:7601")));
        assert_eq!(header(failure().leader("no\nheader")), None);
    }

    #[test]
    fn a_command_that_may_have_been_applied_is_never_reported_as_undone() {
        for error in [ProposeError::OutcomeUnknown, ProposeError::SequencePassed] {
            let failure = Failure::from(error);
            assert_eq!(failure.status, StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(failure.problem.remedy.as_deref(), Some(CHECK));
        }
        let failure = effect_unknown("this replica lags");
        assert_eq!(
            (failure.status, failure.problem.code.as_str()),
            (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown")
        );
        assert_eq!(failure.problem.message, "the command was committed; this replica lags");
    }
}
