//! Reachability survey: queries every replica concurrently and judges each by its own response.

use super::exchange::{ControlRequest, Exchange, Heard};
use super::race::has_quorum;
use protocol::api::ReplicaView;
use reqwest::Method;
use std::sync::Arc;
use std::time::Duration;

/// Outcome of the survey for one replica.
#[derive(Debug, Clone)]
pub struct ReplicaDial {
    /// Base URL of the replica.
    pub url: String,
    /// Whether the replica answered.
    pub dial: Dial,
}

/// Reachability of a replica.
#[derive(Debug, Clone)]
pub enum Dial {
    /// It answered, with its view of the replicas unless it refused to provide that.
    Answers(Option<Box<ReplicaView>>),
    /// It did not answer, for this reason.
    Silent(String),
}

/// Queries all replicas concurrently.
pub(super) async fn survey(
    exchange: &dyn Exchange,
    replicas: &Arc<[String]>,
    limit: Duration,
) -> Vec<ReplicaDial> {
    let request = ControlRequest { method: Method::GET, path: "/v1/replica".into(), body: None, key: None };
    let dials = (0..replicas.len()).map(|place| {
        let (sent, url) = (exchange.send(place, &request), replicas[place].clone());
        async move {
            let dial = match tokio::time::timeout(limit, sent).await {
                Ok(Heard::Answer { body, .. }) => Dial::Answers(serde_json::from_slice(&body).ok()),
                Ok(Heard::NotSent(reason) | Heard::Lost(reason)) => Dial::Silent(reason),
                Err(_) => Dial::Silent(format!("no response within {} ms", limit.as_millis())),
            };
            ReplicaDial { url, dial }
        }
    });
    futures::future::join_all(dials).await
}

impl ReplicaDial {
    /// Returns whether the replica answered.
    #[must_use]
    pub fn answers(&self) -> bool {
        matches!(self.dial, Dial::Answers(_))
    }

    /// Returns whether the replicas that answer can elect a leader.
    #[must_use]
    pub fn have_quorum(dials: &[Self]) -> bool {
        has_quorum(dials.iter().filter(|dial| dial.answers()).count(), dials.len())
    }
}
