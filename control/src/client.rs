//! Client of the control API: finds the leader, sends the access token, and turns problems into errors.
//!
//! Requests are hedged: if a replica does not answer within a moment, the request is also sent to the next
//! one. Hedging is safe for writes, because each write carries an idempotency key. A write that is sent
//! several times, or to several replicas, is applied once and returns the same result. [`hedge`] decides,
//! [`exchange`] sends.

mod exchange;
mod hedge;
mod probe;
#[cfg(test)]
pub(crate) mod simulated;

pub use probe::{Reachability, ReplicaProbe};

use exchange::{ControlRequest, Exchange, Http, OneReplica};
use hedge::HedgedRequest;
use protocol::api::{Page, Problem};
use protocol::{ErrorCode, error_code};
use reqwest::{Certificate, Method};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Length of an idempotency key, in bytes: random keys of this length never collide.
const KEY_BYTES: usize = 16;

/// Most items that a list may have: far more than control keeps of anything that is listed whole.
const LISTED_ITEMS_MAX: usize = 100_000;
/// Longest page token, in bytes: several times the longest that control makes.
const PAGE_TOKEN_BYTES_MAX: usize = 1024;

/// Reason why a call of the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The API refused, with a code that `quorate explain` documents.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(Problem),
    /// No leader answered, and nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// A write was sent and no response came in time: it may have been applied, once.
    #[error("the outcome is unknown; check whether the write took effect before you repeat it ({0})")]
    OutcomeUnknown(String),
    /// A replica sent a response that this client does not understand.
    #[error("unexpected response from {url}: {detail}")]
    Unexpected {
        /// Base URL of the replica.
        url: String,
        /// The response.
        detail: String,
    },
}

impl ClientError {
    /// Returns the stable code, if the error has one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(problem) => ErrorCode::find(&problem.code),
            Self::Unreachable(_) => Some(error_code::CONTROL_UNAVAILABLE),
            Self::OutcomeUnknown(_) => Some(error_code::OUTCOME_UNKNOWN),
            Self::Unexpected { .. } => None,
        }
    }
}

/// A client of one cluster's control API.
#[derive(Clone)]
pub struct ControlClient {
    exchange: Arc<dyn Exchange>,
    replicas: Arc<[String]>,
    /// Index of the replica that answered last; the next request goes to it first.
    preferred: Arc<AtomicUsize>,
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlClient").field("replicas", &self.replicas).finish_non_exhaustive()
    }
}

impl ControlClient {
    /// Creates a client of the replicas at these base URLs, with an access token.
    ///
    /// Over HTTPS the client trusts `authority`, or else the system's authorities.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be built with this certificate authority.
    pub fn new(
        replicas: Vec<String>,
        token: String,
        authority: Option<Certificate>,
    ) -> Result<Self, reqwest::Error> {
        let replicas: Arc<[String]> = replicas.into();
        let http = Http::new(replicas.clone(), token, authority)?;
        Ok(Self::with_exchange(replicas, Arc::new(http)))
    }

    fn with_exchange(replicas: Arc<[String]>, exchange: Arc<dyn Exchange>) -> Self {
        Self { exchange, replicas, preferred: Arc::default() }
    }

    /// Sends `GET path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call::<(), R>(Method::GET, path, None, false).await
    }

    /// Reads all pages of the list at `path`.
    ///
    /// # Errors
    /// See [`ClientError`]. A list that does not end is an unexpected response.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut next = None;
        loop {
            let page: Page<T> = self.page(path, next.as_deref()).await?;
            let advances = !page.items.is_empty() && items.len() < LISTED_ITEMS_MAX;
            items.extend(page.items);
            match page.next_page_token {
                None => return Ok(items),
                Some(token) if advances && next.as_ref() != Some(&token) => next = Some(token),
                Some(_) => return Err(self.endless(path)),
            }
        }
    }

    /// Reads one page of the list at `path`: the first, or the one that the page before named.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn page<R: DeserializeOwned>(&self, path: &str, token: Option<&str>) -> Result<R, ClientError> {
        let Some(token) = token else { return self.get(path).await };
        // A token is the server's text and must not become another part of the request.
        if token.is_empty() || token.len() > PAGE_TOKEN_BYTES_MAX || !token.bytes().all(is_unreserved) {
            let detail = "the page token is not one".into();
            return Err(ClientError::Unexpected { url: self.preferred_url(path), detail });
        }
        self.get(&format!("{path}?page_token={token}")).await
    }

    /// Returns the error for a list whose pages add nothing, or too much.
    pub(crate) fn endless(&self, path: &str) -> ClientError {
        let detail = "the list does not end".into();
        ClientError::Unexpected { url: self.preferred_url(path), detail }
    }

    fn preferred_url(&self, path: &str) -> String {
        let replica = self.replicas.get(self.preferred.load(Ordering::Relaxed));
        format!("{}{path}", replica.map_or("", String::as_str))
    }

    /// Sends `POST path` with a JSON body to an endpoint that changes nothing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn query<B: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::POST, path, Some(body), false).await
    }

    /// Sends `POST path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<B: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::POST, path, Some(body), true).await
    }

    /// Sends `PUT path` with a JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put<B: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::PUT, path, Some(body), true).await
    }

    /// Sends `DELETE path`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call::<(), R>(Method::DELETE, path, None, true).await
    }

    async fn call<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        writes: bool,
    ) -> Result<R, ClientError> {
        let body = body.map(|body| serde_json::to_vec(body).expect("API types are JSON").into());
        let key = writes.then(|| hex::encode(host::random::random_bytes::<KEY_BYTES>()));
        let request = ControlRequest { method, path: path.to_string(), body, key };
        let preferred = self.preferred.load(Ordering::Relaxed);
        let hedge = HedgedRequest::new(self.replicas.to_vec(), preferred, writes);
        let (replica, answer) = hedge::run(self.exchange.as_ref(), &request, hedge).await?;
        self.preferred.store(replica, Ordering::Relaxed);
        serde_json::from_slice(&answer).map_err(|error| ClientError::Unexpected {
            url: format!("{}{path}", self.replicas[replica]),
            detail: error.to_string(),
        })
    }

    /// Returns a client of each replica alone, with its base URL, for what each answers without the others.
    #[must_use]
    pub fn each(&self) -> Vec<(String, Self)> {
        let alone = |(replica, url): (usize, &String)| {
            let exchange = Arc::new(OneReplica { exchange: self.exchange.clone(), replica });
            (url.clone(), Self::with_exchange([url.clone()].into(), exchange))
        };
        self.replicas.iter().enumerate().map(alone).collect()
    }

    /// Queries every replica concurrently for reachability; a replica without an answer within `limit` is
    /// silent.
    pub async fn probe_all(&self, limit: Duration) -> Vec<ReplicaProbe> {
        probe::probe_all(self.exchange.as_ref(), &self.replicas, limit).await
    }
}

/// Returns whether a byte of a query means nothing but itself (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests;
