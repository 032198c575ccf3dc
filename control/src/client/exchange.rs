//! Transport of the client: sends one request to one replica, over HTTP or simulated.

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use protocol::api::{IDEMPOTENCY_KEY_HEADER, LEADER_HEADER};
use protocol::error_chain;
use protocol::limits::{GENESIS_BYTES_MAX, HISTORY_PAGE_BYTES_MAX, JSON_BYTES_PER_CANONICAL_BYTE};
use reqwest::{Certificate, Method};
use serde::de::IgnoredAny;
use std::sync::Arc;
use std::time::Duration;

/// Timeout for connecting to a host that does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout for a response: longer than any caller waits, so that callers decide.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum size of the body of a response: several times the largest page of history as JSON, and less than a
/// member's machine has memory.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

const _: () = assert!(
    JSON_BYTES_PER_CANONICAL_BYTE * (GENESIS_BYTES_MAX + HISTORY_PAGE_BYTES_MAX) < RESPONSE_BYTES_MAX / 2,
    "a client reads every page that control serves"
);

/// A request to the control API.
#[derive(Debug, Clone)]
pub(super) struct ControlRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Bytes>,
    /// Idempotency key of a write.
    pub(super) key: Option<String>,
}

/// Outcome of one request.
#[derive(Debug, Clone)]
pub(super) enum ExchangeOutcome {
    /// An HTTP response; a success has a JSON body.
    Answer {
        status: u16,
        body: Bytes,
        /// Base URL of the leader, in the response of a replica that does not lead.
        leader: Option<String>,
    },
    /// The request was not sent: the replica did nothing.
    NotSent(String),
    /// The request was sent, and no complete response came back.
    Lost(String),
}

/// Transport of requests to replicas.
pub(super) trait Exchange: Send + Sync {
    /// Sends a request to the replica with this index and waits for the outcome.
    fn send(&self, replica: usize, request: &ControlRequest) -> BoxFuture<'static, ExchangeOutcome>;
}

/// Transport to one replica of several, as if it were the only one.
pub(super) struct OneReplica {
    pub(super) exchange: Arc<dyn Exchange>,
    pub(super) replica: usize,
}

impl Exchange for OneReplica {
    fn send(&self, _: usize, request: &ControlRequest) -> BoxFuture<'static, ExchangeOutcome> {
        self.exchange.send(self.replica, request)
    }
}

/// Transport over HTTP or HTTPS.
pub(super) struct Http {
    client: reqwest::Client,
    replicas: Arc<[String]>,
    token: String,
}

impl Http {
    pub(super) fn new(
        replicas: Arc<[String]>,
        token: String,
        authority: Option<Certificate>,
    ) -> Result<Self, reqwest::Error> {
        let mut builder =
            reqwest::Client::builder().timeout(REQUEST_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).no_proxy();
        if let Some(authority) = authority {
            builder = builder.tls_certs_only([authority]);
        }
        Ok(Self { client: builder.build()?, replicas, token })
    }
}

impl Exchange for Http {
    fn send(&self, replica: usize, request: &ControlRequest) -> BoxFuture<'static, ExchangeOutcome> {
        let url = format!("{}{}", self.replicas[replica], request.path);
        let mut builder = self.client.request(request.method.clone(), url).bearer_auth(&self.token);
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        if let Some(key) = &request.key {
            builder = builder.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        Box::pin(async move {
            let response = match builder.send().await {
                Ok(response) => response,
                Err(error) if error.is_connect() => return ExchangeOutcome::NotSent(error_chain(&error)),
                Err(error) => return ExchangeOutcome::Lost(error_chain(&error)),
            };
            let status = response.status();
            let leader = response.headers().get(LEADER_HEADER);
            let leader = leader.and_then(|leader| leader.to_str().ok()).map(str::to_string);
            match body_of(response).await {
                Err(reason) => ExchangeOutcome::Lost(reason),
                Ok(body) if status.is_success() && serde_json::from_slice::<IgnoredAny>(&body).is_err() => {
                    ExchangeOutcome::Lost("the response is not complete JSON".into())
                }
                Ok(body) => ExchangeOutcome::Answer { status: status.as_u16(), body, leader },
            }
        })
    }
}

/// Reads the body of a response as it arrives. Without a limit, a hostile server could fill the memory.
async fn body_of(mut response: reqwest::Response) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| error_chain(&error))? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(format!("the response is longer than {RESPONSE_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
