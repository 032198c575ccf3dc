//! Storage nodes that lately took no shard: a dead one keeps what a job leaves waiting once, and not at
//! each checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Time for which data is stored without a node that took no shard, if there are enough others.
const AVOIDED: Duration = Duration::from_secs(60);

/// Nodes by name, with the times of their latest failures.
#[derive(Debug, Default)]
pub(super) struct FailedNodes(Mutex<BTreeMap<String, Instant>>);

impl FailedNodes {
    pub(super) fn note(&self, node: String, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, now);
    }

    /// Returns the nodes to be avoided now, at most `count`, and forgets the others.
    pub(super) fn recent(&self, now: Instant, count: usize) -> BTreeSet<String> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|_, failed| now.duration_since(*failed) < AVOIDED);
        nodes.keys().take(count).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_failed_is_avoided_for_a_minute() {
        let (nodes, begin) = (FailedNodes::default(), Instant::now());
        let found = |after: u64, count| nodes.recent(begin + Duration::from_secs(after), count);
        nodes.note("node-1".into(), begin);
        nodes.note("node-2".into(), begin + Duration::from_secs(30));
        assert_eq!(found(59, 8), BTreeSet::from(["node-1".into(), "node-2".into()]));
        assert_eq!(found(59, 1).len(), 1);
        assert_eq!(found(60, 8), BTreeSet::from(["node-2".into()]));
        nodes.note("node-2".into(), begin + Duration::from_secs(80));
        assert_eq!(found(139, 8).len(), 1, "a later failure counts");
        assert!(found(140, 8).is_empty());
    }

    /// Nodes without number, as a hostile circle may have, are forgotten all the same.
    #[tokio::test(start_paused = true)]
    async fn nodes_are_forgotten_with_their_time_however_many_failed() {
        let (nodes, begin) = (FailedNodes::default(), Instant::now());
        for number in 0..1_000 {
            nodes.note(format!("node-{number}"), begin);
        }
        assert_eq!(nodes.recent(begin, 8).len(), 8, "so many are done without");
        assert_eq!(nodes.recent(begin, 2_000).len(), 1_000);
        assert!(nodes.recent(begin + AVOIDED, 2_000).is_empty());
        assert!(nodes.0.lock().expect("no holder panics").is_empty(), "nothing is kept");
    }
}
