//! Reachability of the replicas: queries every replica concurrently and judges each by its own response.

use super::exchange::{ControlRequest, Exchange, ExchangeOutcome};
use super::hedge::has_quorum;
use protocol::api::ReplicaView;
use reqwest::Method;
use std::sync::Arc;
use std::time::Duration;

/// Reachability of one replica, with its URL.
#[derive(Debug, Clone)]
pub struct ReplicaProbe {
    /// Base URL of the replica.
    pub url: String,
    /// Whether the replica answered.
    pub reachability: Reachability,
}

/// Response of a replica to a probe.
#[derive(Debug, Clone)]
pub enum Reachability {
    /// It answered, with its view of the replicas unless it refused to provide that.
    Answers(Option<Box<ReplicaView>>),
    /// It did not answer, for this reason.
    Silent(String),
}

/// Queries all replicas concurrently.
pub(super) async fn probe_all(
    exchange: &dyn Exchange,
    replicas: &Arc<[String]>,
    limit: Duration,
) -> Vec<ReplicaProbe> {
    let request = ControlRequest { method: Method::GET, path: "/v1/replica".into(), body: None, key: None };
    let probes = (0..replicas.len()).map(|index| {
        let (sent, url) = (exchange.send(index, &request), replicas[index].clone());
        async move {
            let reachability = match tokio::time::timeout(limit, sent).await {
                Ok(ExchangeOutcome::Answer { body, .. }) => {
                    Reachability::Answers(serde_json::from_slice(&body).ok())
                }
                Ok(ExchangeOutcome::NotSent(reason) | ExchangeOutcome::Lost(reason)) => {
                    Reachability::Silent(reason)
                }
                Err(_) => Reachability::Silent(format!("no response within {} ms", limit.as_millis())),
            };
            ReplicaProbe { url, reachability }
        }
    });
    futures::future::join_all(probes).await
}

impl ReplicaProbe {
    /// Returns whether the replica answered.
    #[must_use]
    pub fn answers(&self) -> bool {
        matches!(self.reachability, Reachability::Answers(_))
    }

    /// Returns whether the replicas that answer can elect a leader.
    #[must_use]
    pub fn have_quorum(probes: &[Self]) -> bool {
        has_quorum(probes.iter().filter(|probe| probe.answers()).count(), probes.len())
    }
}
