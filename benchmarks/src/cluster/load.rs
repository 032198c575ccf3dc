//! Load of the benchmark: clients that send one request after another to the gateway.

use crate::cluster::ControlCluster;
use anyhow::{Result, ensure};
use futures::future::join_all;
use overlay::CancellationToken;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Clients that send one request after another, unless a target says otherwise.
pub(crate) const CLIENTS: usize = 4;
/// Time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Length of a minute of the load.
const MINUTE: Duration = Duration::from_secs(60);
/// Time after which requests of every client are under way.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Answers of one minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Minute {
    /// Latency of each answer in milliseconds, sorted.
    pub(crate) latencies: Vec<f64>,
    pub(crate) failed: usize,
}

impl Minute {
    /// Returns the latency that this share of the answers does not exceed; infinite without an answer.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).copied().unwrap_or(f64::INFINITY)
    }

    /// Returns the number of requests of all minutes, and of those that failed.
    pub(crate) fn sum(minutes: &[Self]) -> (usize, usize) {
        let failed = minutes.iter().map(|minute| minute.failed).sum();
        let answered: usize = minutes.iter().map(|minute| minute.latencies.len()).sum();
        (answered + failed, failed)
    }

    fn joined(parts: Vec<Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.latencies.extend(part.latencies);
            sum.failed += part.failed;
        }
        sum.latencies.sort_by(f64::total_cmp);
        sum
    }
}

/// The gateway, as an application calls it.
#[derive(Clone)]
pub(crate) struct LoadTarget {
    http: reqwest::Client,
    url: String,
    key: String,
    service: String,
    clients: usize,
    /// Pause of a client after each answer.
    pause: Duration,
}

/// Clients that ask until they are stopped.
pub(crate) struct Asking {
    stop: CancellationToken,
    clients: JoinHandle<Vec<Minute>>,
}

impl Asking {
    /// Stops the clients; returns their answers.
    pub(crate) async fn stop(self) -> Minute {
        self.stop.cancel();
        Minute::joined(self.clients.await.unwrap_or_default())
    }
}

impl LoadTarget {
    /// Creates an inference key for this gateway; the clients ask this service without a pause.
    pub(crate) fn new(cluster: &ControlCluster, gateway: &str, service: &str) -> Result<Self> {
        let key = cluster.quorate(&["key", "issue", "bench"])?.trim().to_string();
        let http = reqwest::Client::builder().no_proxy().build()?;
        let (url, service) = (format!("{gateway}/v1/chat/completions"), service.to_string());
        Ok(Self { http, url, key, service, clients: CLIENTS, pause: Duration::ZERO })
    }

    /// Returns the target with so many clients, which pause after each answer.
    pub(crate) fn paced(self, clients: usize, pause: Duration) -> Self {
        Self { clients, pause, ..self }
    }

    /// Waits until the service answers.
    pub(crate) async fn wait_for_answer(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = self.ask().await {
            ensure!(began.elapsed() < limit, "{} does not answer: {error:#}", self.service);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn ask(&self) -> Result<(), reqwest::Error> {
        let body = json!({
            "model": self.service, "max_tokens": 8,
            "messages": [{ "role": "user", "content": "What is three plus four?" }],
        });
        let request = self.http.post(&self.url).bearer_auth(&self.key).timeout(REQUEST_LIMIT).json(&body);
        request.send().await?.error_for_status()?.bytes().await.map(drop)
    }

    /// Sends requests for this many minutes, and acts while the first of them are under way; returns the
    /// answers of each minute.
    pub(crate) async fn load(&self, what: &str, minutes: usize, act: impl FnOnce()) -> Vec<Minute> {
        let (mut all, mut act) = (Vec::new(), Some(act));
        for minute in 1..=minutes {
            let asking = self.start();
            tokio::time::sleep(UNDER_WAY).await;
            if let Some(act) = act.take() {
                act();
            }
            tokio::time::sleep(MINUTE - UNDER_WAY).await;
            let sum = asking.stop().await;
            let (answered, failed) = (sum.latencies.len(), sum.failed);
            eprintln!("{what}, minute {minute}/{minutes}: {answered} answered, {failed} failed");
            all.push(sum);
        }
        all
    }

    /// Starts the clients.
    pub(crate) fn start(&self) -> Asking {
        let (stop, target) = (CancellationToken::new(), self.clone());
        let until = stop.clone();
        let clients =
            tokio::spawn(
                async move { join_all((0..target.clients).map(|_| target.ask_until(&until))).await },
            );
        Asking { stop, clients }
    }

    async fn ask_until(&self, stop: &CancellationToken) -> Minute {
        let mut minute = Minute::default();
        while !stop.is_cancelled() {
            let began = Instant::now();
            match self.ask().await {
                Ok(()) => minute.latencies.push(began.elapsed().as_secs_f64() * 1000.0),
                Err(error) => {
                    eprintln!("failed: {error:#}");
                    minute.failed += 1;
                }
            }
            tokio::time::sleep(self.pause).await;
        }
        minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_summed_up() {
        let minute = Minute { latencies: (1..=100).map(f64::from).collect(), failed: 0 };
        assert_eq!((minute.quantile(0.0), minute.quantile(0.99)), (1.0, 99.0));
        let half = Minute { latencies: vec![1.0], failed: 1 };
        assert_eq!(Minute::sum(&[minute, half]), (102, 1));
        assert_eq!(Minute::default().quantile(0.5), f64::INFINITY);
    }
}
