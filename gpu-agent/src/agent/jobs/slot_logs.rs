//! Logs of slots that have ended: stored and registered one slot after another, behind the report of their
//! end. No attempt waits for them, and none fails without them.

use super::areas::SlotAreas;
use super::keeper::Keeper;
use super::lines::RankKey;
use super::rank_log::{LOG_BYTES_MAX, RankLog};
use crate::agent::core::Refusal;
use crate::agent::node::Node;
use human_chain::{Approved, JobGrant};
use protocol::error_code;
use protocol::job::SlotRanks;
use protocol::job_data::JobDataKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Most slots whose logs wait on a node; those of a further one are not stored.
const WAITING_MAX: usize = 256;
/// Longest time for which the logs of one slot are stored and registered: a store that hangs must not keep
/// all later ones.
const STORE_LIMIT: Duration = Duration::from_secs(600);

/// Logs of a node that wait, and those that were given up.
#[derive(Debug)]
pub(in crate::agent) struct LogStorage {
    turn: Semaphore,
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Default for LogStorage {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), waiting: AtomicUsize::new(0), lost: AtomicU64::new(0) }
    }
}

impl LogStorage {
    /// Returns the number of slots whose logs could not be stored.
    pub(in crate::agent) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes a place among those that wait; false if there is none.
    fn enter(&self) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX || {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            false
        }
    }
}

/// Output of the ranks of one slot.
pub(super) struct SlotLogs {
    ranks: Vec<Arc<RankLog>>,
}

impl SlotLogs {
    /// Returns the output of ranks that have printed nothing yet.
    pub(super) fn new(grant: &JobGrant, ranks: SlotRanks, areas: &SlotAreas) -> Self {
        let directory = areas.logs();
        let of = |local: u32| {
            let key =
                RankKey { id: grant.id, attempt: grant.attempt, rank: ranks.first.saturating_add(local) };
            Arc::new(RankLog::new(key, &directory, ranks.count))
        };
        Self { ranks: (0..ranks.count).map(of).collect() }
    }

    /// Returns the output of each rank.
    pub(super) fn ranks(&self) -> &[Arc<RankLog>] {
        &self.ranks
    }

    /// Stores the logs of a slot that has ended, in its turn.
    pub(super) fn leave(self, node: Arc<Node>, grant: Arc<Approved<JobGrant>>, areas: Arc<SlotAreas>) {
        if !node.log_storage.enter() {
            tracing::warn!(job = %grant.get().id, "logs are not stored: those of too many slots wait");
            node.log_storage.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tokio::spawn(async move {
            let keeper = Keeper { node: node.clone(), grant, areas, bytes_max: 2 * LOG_BYTES_MAX };
            let turn = node.log_storage.turn.acquire().await;
            let stored = tokio::time::timeout(STORE_LIMIT, self.store(&keeper)).await;
            drop(turn);
            node.log_storage.waiting.fetch_sub(1, Ordering::Relaxed);
            let late = || Err(Refusal::new(error_code::STORE_UNREACHABLE, "no store took them in time"));
            if let Err(refusal) = stored.unwrap_or_else(|_| late()) {
                let (job, code, error) = (keeper.grant.get().id, refusal.code, &refusal.message);
                tracing::warn!(%job, %code, error, "the logs of a slot are not stored");
                node.log_storage.lost.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    async fn store(self, keeper: &Keeper) -> Result<(), Refusal> {
        let unwritten = |error: std::io::Error| {
            Refusal::new(error_code::ARTIFACT_UNREADABLE, format!("write the log of a rank: {error}"))
        };
        keeper.areas.leave_logs();
        self.ranks.iter().try_for_each(|rank| rank.finish()).map_err(unwritten)?;
        let directory = keeper.areas.logs();
        keeper.keep(JobDataKind::Logs, Path::new(&directory), None).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_slots_waits() {
        let storage = LogStorage::default();
        assert!((0..WAITING_MAX).all(|_| storage.enter()));
        assert!(!storage.enter() && !storage.enter());
        storage.waiting.fetch_sub(1, Ordering::Relaxed);
        assert!(storage.enter() && !storage.enter());
    }
}
