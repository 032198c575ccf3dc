//! Clocks of the control replicas: each is asked at the start and once a minute, whether it leads or not.

use super::control_client::AgentControlClient;
use futures::future::join_all;
use protocol::{BootTime, Millis};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Interval between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
/// Interval after a round in which no majority answered.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Event of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockEvent {
    /// A replica reported its clock.
    Reading {
        /// Index of the replica, in the order of genesis.
        replica: usize,
        wall: Millis,
        /// Boot clock just before the replica was asked.
        asked_at: BootTime,
    },
    /// Each replica was asked.
    RoundEnded,
}

/// Asks the replicas for their clocks until the receiver is gone.
pub(super) async fn ask_replicas(control: Arc<AgentControlClient>, events: mpsc::Sender<ClockEvent>) {
    loop {
        let ask = |replica| {
            let (control, events) = (&control, &events);
            async move {
                let answer = control.clock_of(replica).await;
                if let Some((wall, asked_at)) = answer {
                    let _ = events.send(ClockEvent::Reading { replica, wall, asked_at }).await;
                }
                answer.is_some()
            }
        };
        let answers = join_all((0..control.replica_count()).map(ask)).await;
        if events.send(ClockEvent::RoundEnded).await.is_err() {
            return;
        }
        let answered = answers.iter().filter(|answered| **answered).count();
        let majority = 2 * answered > answers.len();
        tokio::time::sleep(if majority { ROUND_INTERVAL } else { RETRY_INTERVAL }).await;
    }
}
