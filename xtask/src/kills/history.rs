//! Consistency check of a writer's results against the final contents of the cluster.
//!
//! An acknowledged write is present once, a write refused as not done is absent, and a write with an unknown
//! outcome is present once or not at all.

use std::collections::BTreeMap;

/// Known outcome of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    Done,
    /// Refused: the API states that nothing was done.
    NotDone,
    /// No reply came, or one that states that the write may have been done.
    Unknown,
}

/// One inference key: created once under this name, perhaps revoked once.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyWrites {
    pub(super) created: WriteOutcome,
    pub(super) revoked: Option<WriteOutcome>,
}

/// Every write of a client, and its outcome.
#[derive(Debug, Default)]
pub(super) struct WriteHistory {
    pub(super) keys: BTreeMap<String, KeyWrites>,
    /// Outcome of each proposal, by its reason.
    pub(super) proposals: BTreeMap<String, WriteOutcome>,
    /// Outcomes of the calls to scale, in order.
    pub(super) scaled: Vec<WriteOutcome>,
    /// Impossible replies: those that contradict an idempotency key.
    pub(super) contradictions: Vec<String>,
}

/// Final contents of the cluster.
#[derive(Debug, Default)]
pub(super) struct ClusterContents {
    /// Names of the existing keys.
    pub(super) keys: Vec<String>,
    /// Reason of each proposal, open or decided.
    pub(super) proposals: Vec<String>,
    /// Action and subject of every audit event.
    pub(super) events: Vec<(String, String)>,
}

impl WriteHistory {
    /// Returns the number of writes with this outcome.
    pub(super) fn count(&self, outcome: WriteOutcome) -> usize {
        let keys = self.keys.values().flat_map(|key| [Some(key.created), key.revoked]).flatten();
        let all = keys.chain(self.proposals.values().copied()).chain(self.scaled.iter().copied());
        all.filter(|one| *one == outcome).count()
    }

    /// Returns every contradiction between the replies to the writer and the contents of the cluster.
    pub(super) fn violations(&self, found: &ClusterContents) -> Vec<String> {
        let mut violations = self.contradictions.clone();
        let mut events: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (action, subject) in &found.events {
            *events.entry((action, subject)).or_default() += 1;
        }
        let times = |action: &str, subject: &str| events.get(&(action, subject)).copied().unwrap_or(0);
        for (name, key) in &self.keys {
            let subject = format!("key/{name}");
            let (created, revoked) = (times("issue-key", &subject), times("revoke-key", &subject));
            let exists = found.keys.contains(name);
            violations.extend(wrong(key.created, created).map(|defect| format!("creating {name}: {defect}")));
            let revoking = key.revoked.unwrap_or(WriteOutcome::NotDone);
            violations.extend(wrong(revoking, revoked).map(|defect| format!("revoking {name}: {defect}")));
            if exists != (created > revoked) {
                violations
                    .push(format!("{name} was created {created}, revoked {revoked} times; exists: {exists}"));
            }
        }
        for (reason, outcome) in &self.proposals {
            let times = found.proposals.iter().filter(|found| *found == reason).count();
            violations.extend(wrong(*outcome, times).map(|defect| format!("proposing {reason}: {defect}")));
        }
        // The demonstration scales as well, so the audit may have more.
        let (done, scaled) =
            (self.scaled.iter().filter(|one| **one == WriteOutcome::Done).count(), events.iter());
        let scaled: usize =
            scaled.filter(|((action, _), _)| *action == "scale").map(|(_, times)| times).sum();
        if scaled < done {
            violations.push(format!("{done} calls to scale were acknowledged, {scaled} are in the audit"));
        }
        violations
    }
}

/// Returns the violation by a write of this outcome that was found this many times.
fn wrong(outcome: WriteOutcome, times: usize) -> Option<String> {
    match (outcome, times) {
        (WriteOutcome::Done, 1) | (WriteOutcome::NotDone, 0) | (WriteOutcome::Unknown, 0 | 1) => None,
        (WriteOutcome::Done, 0) => Some("acknowledged and lost".into()),
        (WriteOutcome::NotDone, _) => Some("refused as not done, and done".into()),
        (_, times) => Some(format!("done {times} times")),
    }
}

#[cfg(test)]
mod tests {
    use super::WriteOutcome::{Done, NotDone, Unknown};
    use super::*;

    fn event(action: &str, subject: &str) -> (String, String) {
        (action.into(), subject.into())
    }

    fn of_key(created: WriteOutcome, revoked: Option<WriteOutcome>, exists: bool, events: &[&str]) -> usize {
        let history = WriteHistory {
            keys: BTreeMap::from([("w".into(), KeyWrites { created, revoked })]),
            ..WriteHistory::default()
        };
        let events = events.iter().map(|action| event(action, "key/w")).collect();
        let keys = if exists { vec!["w".to_string()] } else { Vec::new() };
        history.violations(&ClusterContents { keys, events, ..ClusterContents::default() }).len()
    }

    #[test]
    fn every_way_to_lose_or_repeat_a_key_is_found() {
        let (create, revoke) = ("issue-key", "revoke-key");
        for (created, revoked, exists, events, expected) in [
            (Done, None, true, &[create][..], 0),
            (Done, None, false, &[], 1),
            (Done, None, false, &[create], 1),
            (Done, None, true, &[create, create], 1),
            (NotDone, None, false, &[], 0),
            (NotDone, None, true, &[create], 1),
            (Unknown, None, true, &[create], 0),
            (Unknown, None, false, &[], 0),
            (Unknown, None, true, &[create, create], 1),
            (Done, Some(Done), false, &[create, revoke], 0),
            (Done, Some(Done), true, &[create], 1),
            (Done, Some(NotDone), true, &[create], 0),
            (Done, Some(NotDone), false, &[create, revoke], 1),
            (Done, Some(Unknown), false, &[create, revoke], 0),
            (Done, Some(Unknown), true, &[create], 0),
            (Done, None, false, &[create, revoke], 1),
        ] {
            assert_eq!(
                of_key(created, revoked, exists, events),
                expected,
                "{created:?} {revoked:?} {exists} {events:?}"
            );
        }
    }

    #[test]
    fn proposals_and_calls_to_scale_are_counted() {
        let proposals = BTreeMap::from([("a".into(), Done), ("b".into(), NotDone), ("c".into(), Unknown)]);
        let history = WriteHistory { proposals, scaled: vec![Done, Unknown], ..WriteHistory::default() };
        let scaled = vec![event("scale", "service/minilm")];
        let found = |proposals: &[&str], events: &[(String, String)]| ClusterContents {
            proposals: proposals.iter().map(|reason| (*reason).to_string()).collect(),
            events: events.to_vec(),
            ..ClusterContents::default()
        };
        assert_eq!(history.violations(&found(&["a", "c", "other"], &scaled)), Vec::<String>::new());
        assert_eq!(history.violations(&found(&["a"], &[])).len(), 1, "a call to scale is lost");
        assert_eq!(history.violations(&found(&["b", "c", "c"], &scaled)).len(), 3);
        assert_eq!((history.count(Done), history.count(NotDone), history.count(Unknown)), (2, 1, 2));
    }
}
