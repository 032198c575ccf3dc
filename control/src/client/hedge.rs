//! Hedged requests: decides which replica to ask next and when to give up, without a clock or a socket.
//!
//! The replica that answered last is asked first. Each further replica is asked in parallel, as soon as an
//! earlier one is late or has reported that it does not lead. A replica is asked again after a pause, and
//! immediately when another replica names it as the leader. A conclusive response ends the hedged request.

use super::ClientError;
use super::exchange::{ControlRequest, Exchange, ExchangeOutcome};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use protocol::api::Problem;
use std::time::Duration;
use tokio::time::Instant;

/// Time to wait for one replica before the next is asked as well: nearly every response comes sooner.
pub(super) const HEDGE_DELAY: Duration = Duration::from_millis(150);
/// Pause before a replica that could not help is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Duration of a read's retries while a majority answers and none of them leads: an election takes one to
/// four seconds.
const READ_RETRY_LIMIT: Duration = Duration::from_secs(10);
/// Duration of a write's retries: its key makes them safe, and a restart of the replicas takes less time.
const WRITE_RETRY_LIMIT: Duration = Duration::from_secs(20);
/// Duration of retries that cannot succeed soon. Examples are a read while a majority is silent, and a write
/// while the leader's disk is full or no replica can be reached.
const HOPELESS_RETRY_LIMIT: Duration = Duration::from_millis(2500);

const _: () =
    assert!(HEDGE_DELAY.as_millis() < RETRY_PAUSE.as_millis(), "all are asked before one is asked again");
const _: () = assert!(READ_RETRY_LIMIT.as_millis() < WRITE_RETRY_LIMIT.as_millis());

/// State of one hedged request.
#[derive(Debug)]
pub(super) struct HedgedRequest {
    replicas: Vec<HedgeTarget>,
    writes: bool,
    /// The leader's reason for a temporary refusal, and whether the condition will last.
    refused: Option<(Problem, bool)>,
    /// Set if the write may have been done: a request was sent, and its response was lost.
    lost: Option<String>,
}

#[derive(Debug)]
struct HedgeTarget {
    url: String,
    state: TargetState,
    sent_at: Option<Duration>,
    has_responded: bool,
    /// Last message from the replica, for people.
    last_message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TargetState {
    /// Due to be asked at this time.
    Due(Duration),
    InFlight,
}

/// Next action of the caller.
#[derive(Debug)]
pub(super) enum HedgeAction {
    Send(usize),
    /// Wait for a response, or until this time.
    Wait(Duration),
    /// Fail: no conclusive response came in time.
    GiveUp(ClientError),
}

/// Runs a hedged request; returns the response body and the index of the replica that sent it.
pub(super) async fn run(
    exchange: &dyn Exchange,
    request: &ControlRequest,
    mut hedge: HedgedRequest,
) -> Result<(usize, Bytes), ClientError> {
    let began = Instant::now();
    let mut asked = FuturesUnordered::new();
    loop {
        let until = match hedge.next(began.elapsed()) {
            HedgeAction::Send(replica) => {
                let sent = exchange.send(replica, request);
                asked.push(async move { (replica, sent.await) });
                continue;
            }
            HedgeAction::Wait(until) => until,
            HedgeAction::GiveUp(error) => return Err(error),
        };
        tokio::select! {
            Some((replica, outcome)) = asked.next() => {
                if let Some(conclusion) = hedge.on_outcome(began.elapsed(), replica, outcome) {
                    return conclusion.map(|answer| (replica, answer));
                }
            }
            () = tokio::time::sleep_until(began + until) => {}
        }
    }
}

impl HedgedRequest {
    /// Creates a hedged request among these replicas, at time zero; `preferred` is asked first.
    pub(super) fn new(urls: Vec<String>, preferred: usize, writes: bool) -> Self {
        let count = urls.len();
        let rank = |index: usize| (index + count - preferred.min(count)) % count.max(1);
        let replica = |(index, url)| HedgeTarget {
            url,
            state: TargetState::Due(HEDGE_DELAY * u32::try_from(rank(index)).unwrap_or(u32::MAX)),
            sent_at: None,
            has_responded: false,
            last_message: None,
        };
        Self {
            replicas: urls.into_iter().enumerate().map(replica).collect(),
            writes,
            refused: None,
            lost: None,
        }
    }

    /// Returns the action due at this time.
    pub(super) fn next(&mut self, now: Duration) -> HedgeAction {
        let deadline = self.deadline();
        if now >= deadline {
            return HedgeAction::GiveUp(self.failure());
        }
        let due = |(index, replica): (usize, &HedgeTarget)| match replica.state {
            TargetState::Due(at) => Some((at, index)),
            TargetState::InFlight => None,
        };
        match self.replicas.iter().enumerate().filter_map(due).min() {
            Some((at, index)) if at <= now => {
                let replica = &mut self.replicas[index];
                (replica.state, replica.sent_at) = (TargetState::InFlight, Some(now));
                HedgeAction::Send(index)
            }
            Some((at, _)) => HedgeAction::Wait(at.min(deadline)),
            None => HedgeAction::Wait(deadline),
        }
    }

    /// Processes the outcome of one request; a conclusive response is the result.
    pub(super) fn on_outcome(
        &mut self,
        now: Duration,
        index: usize,
        outcome: ExchangeOutcome,
    ) -> Option<Result<Bytes, ClientError>> {
        self.replicas[index].state = TargetState::Due(now + RETRY_PAUSE);
        let (status, body, leader) = match outcome {
            ExchangeOutcome::Answer { status, body, leader } => (status, body, leader),
            ExchangeOutcome::NotSent(reason) => return self.inconclusive(now, index, reason),
            ExchangeOutcome::Lost(reason) => {
                self.lost = Some(format!("{}: {reason}", self.replicas[index].url));
                return self.inconclusive(now, index, reason);
            }
        };
        self.replicas[index].has_responded = true;
        if (200..300).contains(&status) {
            return Some(Ok(body));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(&body) else {
            let detail = format!("{status}: {}", String::from_utf8_lossy(&body));
            return Some(Err(ClientError::Unexpected { url: self.replicas[index].url.clone(), detail }));
        };
        let message = problem.message.clone();
        match status {
            421 => self.follow_hint(now, leader),
            // Nothing was done. The same replica, or the next leader, may accept the request in a moment.
            503 => self.refused = Some((problem, false)),
            507 => self.refused = Some((problem, true)),
            // The write may have been done. Under the same key, a retry is applied at most once.
            504 if self.writes => self.lost = Some(format!("{}: {message}", self.replicas[index].url)),
            _ => return Some(Err(ClientError::Refused(problem))),
        }
        self.inconclusive(now, index, message)
    }

    /// Records an inconclusive message from a replica, and makes the next unasked replica due immediately.
    fn inconclusive(
        &mut self,
        now: Duration,
        index: usize,
        message: String,
    ) -> Option<Result<Bytes, ClientError>> {
        self.replicas[index].last_message = Some(message);
        let unasked = self.replicas.iter_mut().filter(|replica| replica.sent_at.is_none());
        let soonest = unasked.min_by_key(|replica| match replica.state {
            TargetState::Due(at) => at,
            TargetState::InFlight => Duration::MAX,
        });
        if let Some(next) = soonest {
            next.state = TargetState::Due(now);
        }
        None
    }

    /// Makes the replica that another names as the leader due immediately, unless it was asked a moment ago.
    fn follow_hint(&mut self, now: Duration, leader: Option<String>) {
        let Some(leader) = leader else { return };
        let named = self.replicas.iter_mut().find(|replica| replica.url.trim_end_matches('/') == leader);
        let Some(named) = named.filter(|replica| replica.state != TargetState::InFlight) else { return };
        if named.sent_at.is_none_or(|asked| asked + RETRY_PAUSE <= now) {
            named.state = TargetState::Due(now);
        }
    }

    /// Replicas that have not responded yet.
    fn silent(&self) -> impl Iterator<Item = &HedgeTarget> {
        self.replicas.iter().filter(|replica| !replica.has_responded)
    }

    /// Returns whether too many replicas are silent for any to lead.
    fn lacks_quorum(&self) -> bool {
        !has_quorum(self.replicas.len() - self.silent().count(), self.replicas.len())
    }

    /// Returns whether the write has reached no replica so far, and none can be reached.
    fn is_unsent(&self) -> bool {
        let unreachable =
            |replica: &HedgeTarget| !replica.has_responded && replica.state != TargetState::InFlight;
        self.lost.is_none() && self.replicas.iter().all(unreachable)
    }

    fn deadline(&self) -> Duration {
        let full = self.refused.as_ref().is_some_and(|(_, lasts)| *lasts);
        match self.writes {
            true if self.is_unsent() || full && self.lost.is_none() => HOPELESS_RETRY_LIMIT,
            true => WRITE_RETRY_LIMIT,
            false if full || self.lacks_quorum() => HOPELESS_RETRY_LIMIT,
            false => READ_RETRY_LIMIT,
        }
    }

    fn failure(&self) -> ClientError {
        let asked = self.replicas.iter().find(|replica| replica.state == TargetState::InFlight);
        let unanswered = asked.map(|replica| format!("{} does not answer", replica.url));
        if let Some(lost) = self.lost.clone().or(unanswered).filter(|_| self.writes) {
            return ClientError::OutcomeUnknown(lost);
        }
        match &self.refused {
            Some((problem, _)) if !self.lacks_quorum() => ClientError::Refused(problem.clone()),
            _ => ClientError::Unreachable(self.replica_messages()),
        }
    }

    /// Summarizes the last message of each replica, for people.
    fn replica_messages(&self) -> String {
        let verdict = if self.lacks_quorum() { "quorum lost" } else { "no control replica leads" };
        let of = |replica: &HedgeTarget| match &replica.last_message {
            Some(message) => format!("{}: {message}", replica.url),
            None => format!("{} does not answer", replica.url),
        };
        format!("{verdict}: {}", self.replicas.iter().map(of).collect::<Vec<_>>().join("; "))
    }
}

/// Returns whether this number of answering replicas can elect a leader.
pub(super) fn has_quorum(answering: usize, replicas: usize) -> bool {
    answering * 2 > replicas
}
