//! Answers of control as the main loop takes them: the circle's decisions are verified first, the desired
//! state is durable before it counts, and the lease is renewed last.

use super::super::chain::RefusedBundle;
use super::super::control_client::{ReplicaAnswer, RequestOutcome};
use super::super::core::{Refusal, SlotKey};
use super::{AgentActor, InFlight, SyncOutcome};
use protocol::agent::{Desired, EnrolResponse, SyncResponse};
use protocol::governance::{Bundle, HistoryHead};
use protocol::limits::LEASE_MS;
use protocol::{BootTime, Digest, Millis, error_code};
use std::time::Duration;
use tokio::time::Instant;

/// Pause after an answer whose history is not the one that this node has verified.
const HISTORY_REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// Shortest and longest pause after a round in which no replica answered.
const SYNC_RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(1));
/// Pause between two requests to be admitted.
const ENROL_INTERVAL: Duration = Duration::from_secs(2);

/// The pause after a round in which no replica answered, as none has for `unanswered`. An election is over
/// within moments and must not cost a lease; a thousand nodes that ask for longer must not keep the replicas
/// from electing, nor a halt from passing.
fn retry_pause(unanswered: Duration) -> Duration {
    let (shortest, longest) = SYNC_RETRY_PAUSES;
    (unanswered / 2).clamp(shortest, longest)
}

impl AgentActor {
    /// Processes the outcome of a request. Returns the delay before the next one.
    pub(super) fn synced(&mut self, sent: InFlight, outcome: SyncOutcome) -> Duration {
        if let Some(enrolment) = outcome.enrolment {
            self.note_enrolment(enrolment);
        }
        match outcome.sync {
            RequestOutcome::Answered(ReplicaAnswer { body: response, sent_at, replica }) => {
                self.state.counts.syncs += 1;
                self.time.record(replica, response.now, sent_at);
                self.state.answered_at = Some(Instant::now());
                self.state.unanswered_since = None;
                self.state.predecessor_desired = None;
                self.node.rank_lines.answered(response.term, &sent.rank_lines);
                self.state.usage.answered(response.term, &sent.usage);
                for report in &sent.unacknowledged_releases {
                    self.state.unacknowledged_releases.remove(report);
                }
                let pause = self.absorb(*response, sent_at);
                if pause == HISTORY_REFUSED_PAUSE {
                    self.control.ask_another_than(replica);
                }
                pause
            }
            RequestOutcome::NotAdmitted => {
                self.put_back(sent);
                self.resume();
                ENROL_INTERVAL
            }
            RequestOutcome::Failed(reasons) => {
                self.put_back(sent);
                self.resume();
                self.state.counts.sync_failures += 1;
                // An election or a restart takes less than a lease and is not reported.
                let since = *self.state.unanswered_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(LEASE_MS) {
                    self.log_throttled("control", &format!("no control replica answers: {reasons}"));
                }
                retry_pause(since.elapsed())
            }
        }
    }

    /// Continues from the predecessor's desired state, once: no control replica answers. A slot that control
    /// took away from this node while no agent ran is not known here, and ends when control answers again.
    fn resume(&mut self) {
        if let Some(desired) = self.state.predecessor_desired.take() {
            let slots: usize = desired.assignments.iter().map(|part| part.orders.len()).sum();
            tracing::warn!(slots, "no control replica answers; going on from its last answer on disk");
            self.state.desired = Some(desired);
            if self.chain.check_whole().is_ok() {
                self.hand_routes();
            }
            self.reconcile();
        }
    }

    /// Applies a response in the order that keeps every guarantee: first the circle's decisions, then this
    /// node's desired state, durable before it counts. The lease comes last, when everything that must not
    /// run has been stopped.
    /// Returns the delay before the next request.
    fn absorb(&mut self, response: SyncResponse, sent_at: BootTime) -> Duration {
        let SyncResponse { now: _, term: _, lease_ms: granted_ms, history, governance, desired } = response;
        let (wall, boot) = (self.node.clock.wall(), self.node.clock.boot());
        if let Some(now) = self.time.confirmed(wall, boot) {
            self.chain.discard_later_than(now);
        }
        let sent_at_wall = Millis(self.trusted_now().0.saturating_sub(boot.since(sent_at)));
        if let Err(refusal) = self.take_governance(governance, &history, sent_at_wall) {
            self.refuse_history(&refusal, desired.as_ref());
            return HISTORY_REFUSED_PAUSE;
        }
        self.state.refused_history.clear();
        if let Some(desired) = desired {
            self.state.desired_digest = Some(desired.digest());
            self.state.desired = Some(desired);
        }
        if self.chain.check_whole().is_err() {
            // The rest of the history follows in the next answer.
            return Duration::ZERO;
        }
        self.keep_answer(sent_at);
        self.hand_routes();
        self.reconcile();
        if !self.state.chain_complete && self.chain.state().length() < history.size {
            // The rest of the history follows in the next answers, and may end what this one names.
            return Duration::ZERO;
        }
        let (now, lease_ms) = (self.node.clock.boot(), self.node.lease_ms_max);
        self.node.lease.send_if_modified(|lease| lease.hear(sent_at, granted_ms, now, lease_ms));
        Duration::ZERO
    }

    /// Keeps the answer that was requested at `sent_at` on disk, for a successor that no control replica
    /// answers.
    fn keep_answer(&mut self, sent_at: BootTime) {
        let state = &self.state;
        let (Some(desired), Some(digest)) = (&state.desired, state.desired_digest) else { return };
        if let Err(error) = self.last_answer.keep(sent_at, digest, desired) {
            let path = self.last_answer.path().display();
            let trouble = format!("{}: write {path}: {error}", error_code::AGENT_STATE_UNUSABLE);
            self.log_throttled("disk", &trouble);
        }
    }

    /// Verifies the bundles of an answer that was requested at `sent_at`, and the head of the history that
    /// control serves.
    ///
    /// # Errors
    /// If control's history lacks or changes a decision that this node has verified before.
    fn take_governance(
        &mut self,
        bundles: Vec<Bundle>,
        served: &HistoryHead,
        sent_at: Millis,
    ) -> Result<(), Refusal> {
        self.chain.check_served(served)?;
        let (before, now) = (self.chain.state().head(), self.trusted_now());
        // After an answer without bundles, and after one with junk, the chain had all that control could
        // give.
        let mut complete = bundles.is_empty();
        let mut outcome = Ok(());
        if let Err(RefusedBundle { certificate, refusal }) = self.chain.append(bundles, now) {
            // The sender will retry. Orders that depend on the bundle are refused rather than left waiting.
            // A bundle that this node could not write is still missing.
            complete = refusal.code != error_code::AGENT_STATE_UNUSABLE;
            self.state.counts.bundles_refused += 1;
            self.log_throttled("governance", &format!("a governance bundle is refused: {refusal}"));
            if refusal.code == error_code::HISTORY_FORKED {
                outcome = self.chain.check_whole().map_err(|_| refusal.clone());
            }
            self.note_refused_bundle(certificate, refusal);
            self.state.chain_complete = true;
        } else {
            self.state.chain_complete = complete;
        }
        if self.chain.state().head() != before && self.chain.check_whole().is_ok() {
            let length = self.chain.state().length();
            tracing::info!(length, "governance bundles verified and persisted");
            self.node.circle.send_replace(self.chain.shared_state());
            self.follow_halts();
            self.follow_access();
        }
        outcome?;
        self.chain.check_served(served)?;
        if complete {
            self.chain.check_whole()?;
            self.chain.complete_at(sent_at);
        }
        Ok(())
    }

    fn note_refused_bundle(&mut self, certificate: Digest, refusal: Refusal) {
        if self.state.refused_bundles.len() >= protocol::limits::PROPOSALS_OPEN_MAX {
            self.state.refused_bundles.pop_first();
        }
        self.state.refused_bundles.insert(certificate, refusal);
    }

    /// Refuses an answer whose history is not the one that this node has verified. Every order in it, or in
    /// the last desired state, that is not held yet is reported as refused. The desired state of the answer
    /// does not count, and no lease is renewed: what runs continues for its autonomy.
    fn refuse_history(&mut self, refusal: &Refusal, desired: Option<&Desired>) {
        self.state.counts.histories_refused += 1;
        self.log_throttled("history", &format!("control's history is refused: {refusal}"));
        let assignments =
            desired.or(self.state.desired.as_ref()).into_iter().flat_map(|part| &part.assignments);
        let orders = assignments.flat_map(|assignment| &assignment.orders);
        let held = |key: &SlotKey| self.book.held(key).is_some();
        let refused = orders.map(|signed| (SlotKey::of(&signed.order), signed.order.fence));
        let refused = refused.filter(|(key, _)| !held(key));
        self.state.refused_history = refused.map(|(key, fence)| (key, (fence, refusal.clone()))).collect();
    }

    fn note_enrolment(&mut self, outcome: RequestOutcome<EnrolResponse>) {
        match outcome {
            RequestOutcome::Answered(answer) => {
                let EnrolResponse { admitted, genesis } = *answer.body;
                if human_chain::circle_id(&genesis.genesis) != self.circle {
                    self.log_throttled("admission", "control belongs to another circle than the pinned one");
                } else if !admitted {
                    self.log_throttled(
                        "admission",
                        &format!("`{}` waits for the circle to admit it", self.admission.name),
                    );
                }
            }
            RequestOutcome::NotAdmitted => {
                self.log_throttled("admission", "control does not let this node ask for admission")
            }
            RequestOutcome::Failed(reasons) => {
                self.log_throttled("admission", &format!("ask for admission: {reasons}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_unanswered_rounds_grows_to_a_second_and_leaves_room_for_a_lease() {
        let after = |unanswered_ms| retry_pause(Duration::from_millis(unanswered_ms)).as_millis();
        assert_eq!([0, 300, 600, 1_000, 2_000, 600_000].map(after), [150, 150, 300, 500, 1_000, 1_000]);
        // Rounds begin at these times after the first failure, when each fails at once.
        let mut begun = vec![0];
        while begun.last().is_some_and(|at| *at < u128::from(LEASE_MS)) {
            let at = begun.last().copied().unwrap_or_default();
            begun.push(at + after(u64::try_from(at).expect("milliseconds")));
        }
        assert_eq!(begun, [0, 150, 300, 450, 675, 1_012, 1_518, 2_277, 3_277]);
    }
}
