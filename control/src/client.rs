//! The control API's client: finds the replica that leads, carries the token, turns problems into errors.

use protocol::api::Problem;
use protocol::{ErrorCode, error_code};
use reqwest::{Certificate, Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// How long one request may take; waits and log follow-ups are many short requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Rounds over all replicas before giving up: a leader change takes about a second.
const ROUNDS_MAX: u32 = 6;
/// Pause between rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Why a call of the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The API refused, with a code that `quorate explain` knows.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(Problem),
    /// No replica answered.
    #[error("no control replica answers ({0})")]
    Unreachable(String),
    /// A replica answered something that this client does not understand.
    #[error("unexpected answer from {url}: {detail}")]
    Unexpected {
        /// Who answered.
        url: String,
        /// What.
        detail: String,
    },
}

impl ClientError {
    /// The stable code, if it has one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(problem) => ErrorCode::find(&problem.code),
            Self::Unreachable(_) => Some(error_code::CONTROL_UNAVAILABLE),
            Self::Unexpected { .. } => None,
        }
    }
}

/// A client of one cluster's control API.
#[derive(Debug, Clone)]
pub struct ControlClient {
    http: reqwest::Client,
    replicas: Vec<String>,
    token: String,
}

impl ControlClient {
    /// A client of the replicas at these base URLs, with an access token. Over HTTPS it trusts `authority`, or
    /// else the system's authorities.
    ///
    /// # Errors
    /// When the certificate authority is no certificate.
    pub fn new(
        replicas: Vec<String>,
        token: String,
        authority: Option<Certificate>,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(Duration::from_secs(3))
            .no_proxy();
        if let Some(authority) = authority {
            builder = builder.tls_certs_only([authority]);
        }
        Ok(Self { http: builder.build()?, replicas, token })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call::<(), R>(Method::GET, path, None).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<B: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put<B: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call::<(), R>(Method::DELETE, path, None).await
    }

    async fn call<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<R, ClientError> {
        let mut last = ClientError::Unreachable("no replica is known".into());
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            for replica in &self.replicas {
                match self.ask(method.clone(), replica, path, body).await? {
                    Ok(answer) => return Ok(answer),
                    // Whoever leads and cannot says more than those who do not lead.
                    Err(ClientError::Unreachable(_)) if matches!(last, ClientError::Refused(_)) => {}
                    Err(reason) => last = reason,
                }
            }
        }
        Err(last)
    }

    /// One replica's answer, or the reason to try another.
    async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        replica: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<Result<R, ClientError>, ClientError> {
        let url = format!("{replica}{path}");
        let only_reads = method == Method::GET;
        let mut request = self.http.request(method, &url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // Only what changes nothing, or certainly was not executed, may go to another replica unasked.
            Err(error) if only_reads || error.is_connect() => {
                return Ok(Err(unreachable(replica, &causes(&error))));
            }
            Err(error) => return Err(unexpected(&url, &causes(&error))),
        };
        let status = response.status();
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes,
            Err(error) if only_reads => return Ok(Err(unreachable(replica, &causes(&error)))),
            Err(error) => return Err(unexpected(&url, &causes(&error))),
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map(Ok).map_err(|error| unexpected(&url, &error));
        }
        let problem: Problem = serde_json::from_slice(&bytes)
            .map_err(|_| unexpected(&url, &format!("{status}: {}", String::from_utf8_lossy(&bytes))))?;
        match status {
            StatusCode::MISDIRECTED_REQUEST => Ok(Err(unreachable(replica, &problem.message))),
            // Nothing was done, and in a moment it may be, by this replica or by another that leads then.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => {
                Ok(Err(ClientError::Refused(problem)))
            }
            _ => Err(ClientError::Refused(problem)),
        }
    }
}

fn unreachable(replica: &str, reason: &str) -> ClientError {
    ClientError::Unreachable(format!("{replica}: {reason}"))
}

fn unexpected(url: &str, detail: &impl ToString) -> ClientError {
    ClientError::Unexpected { url: url.to_string(), detail: detail.to_string() }
}

/// An error and what lies below it: "error sending request" alone helps nobody.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let below = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    below.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
