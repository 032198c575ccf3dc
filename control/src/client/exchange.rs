//! One request to one replica: the edge of the client, over HTTP or simulated.

use bytes::Bytes;
use futures::future::BoxFuture;
use protocol::api::{IDEMPOTENCY_KEY_HEADER, LEADER_HEADER};
use reqwest::{Certificate, Method};
use serde::de::IgnoredAny;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a connection to a host that does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer: longer than any caller waits, so that callers decide.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Bytes>,
    /// The idempotency key of a write.
    pub(super) key: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    /// An HTTP answer; a success has a JSON body.
    Answer {
        status: u16,
        body: Bytes,
        /// Where the leader is, by an answer of a replica that does not lead.
        leader: Option<String>,
    },
    /// It was not sent: nothing was done there.
    NotSent(String),
    /// It was sent, and no answer came back whole.
    Lost(String),
}

/// How requests reach replicas.
pub(super) trait Exchange: Send + Sync {
    /// Sends a request to the replica of this number and waits for what comes of it.
    fn send(&self, replica: usize, request: &Request) -> BoxFuture<'static, Heard>;
}

/// Over HTTP, or HTTPS.
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
    fn send(&self, replica: usize, request: &Request) -> BoxFuture<'static, Heard> {
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
                Err(error) if error.is_connect() => return Heard::NotSent(causes(&error)),
                Err(error) => return Heard::Lost(causes(&error)),
            };
            let status = response.status();
            let leader = response.headers().get(LEADER_HEADER);
            let leader = leader.and_then(|leader| leader.to_str().ok()).map(str::to_string);
            match response.bytes().await {
                Err(error) => Heard::Lost(causes(&error)),
                Ok(body) if status.is_success() && serde_json::from_slice::<IgnoredAny>(&body).is_err() => {
                    Heard::Lost("the answer is not JSON, or not all of it".into())
                }
                Ok(body) => Heard::Answer { status: status.as_u16(), body, leader },
            }
        })
    }
}

/// An error and what lies below it: "error sending request" alone helps nobody.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let below = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    below.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
