//! The leader's loop: announces itself, founds the circle once, and turns plans into orders.
//!
//! The loop reconciles levels: every round compares the cluster with what nodes last said. A lost round
//! is made up by the next; a stale plan is refused by its generation.

use super::{Server, wall_clock};
use overlay::CancellationToken;
use protocol::Millis;
use protocol::gateway::RouteTable;
use scheduler::{Action, Actor, Observed, Reply};
use std::sync::Arc;
use std::time::Duration;

/// Pause between rounds when nothing happens. Short against the 3 s lease, long against a round's cost.
const ROUND: Duration = Duration::from_millis(100);

/// What a replica knows while it leads, and only then.
pub(crate) struct Leadership {
    /// The Raft term it leads in.
    pub(crate) term: u64,
    /// Its view of the nodes.
    pub(crate) observed: Observed,
    /// The last route table that it made.
    pub(crate) routes: RouteTable,
}

/// Leads whenever Raft says so, until `shutdown`.
pub(crate) async fn run(server: Arc<Server>, shutdown: CancellationToken) {
    let mut applied = server.handle.watch_applied();
    loop {
        let status = server.handle.status();
        if status.role == consensus::Role::Leader {
            round(&server, status.term).await;
        } else if server.take_leadership().is_some() {
            tracing::info!("leads no longer");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

pub(super) async fn round(server: &Server, term: u64) {
    if server.leading_term() != Some(term) && !begin(server, term).await {
        return;
    }
    if !server.cluster(|cluster| cluster.genesis().is_some()) {
        let found = Action::Found(Box::new(server.genesis.clone()));
        report("found the circle", server.command(Actor::Scheduler, found).await);
        return;
    }
    let now = wall_clock();
    if server.cluster(|cluster| scheduler::tick_is_due(cluster, now)) {
        report("tick", server.command(Actor::Scheduler, Action::Tick).await);
    }
    let Some(execute) = server.next_plan(now) else { return };
    match server.command(Actor::Scheduler, execute).await {
        Ok(Reply::Executed { orders, .. }) => {
            for order in orders {
                tracing::info!(service = %order.service, slot = %order.slot, fence = %order.fence, "order issued");
            }
            server.metrics.plans.inc();
        }
        // Stale is a normal answer: the cluster moved on while the plan was made.
        Ok(_) => {}
        Err(failure) => tracing::warn!(problem = ?failure.problem(), "plan not carried out"),
    }
}

/// Announces this replica as leader; every plan of an earlier leader is stale from then on.
async fn begin(server: &Server, term: u64) -> bool {
    let replica = server.id;
    match server.command(Actor::Scheduler, Action::Lead { replica }).await {
        Ok(Reply::Leads { .. }) => {
            server.set_leadership(Leadership {
                term,
                observed: Observed::new(wall_clock()),
                routes: RouteTable::default(),
            });
            tracing::info!(term, "leads");
            server.metrics.leader_changes.inc();
            true
        }
        other => {
            tracing::warn!(?other, "could not announce leadership");
            false
        }
    }
}

fn report(what: &str, outcome: Result<Reply, super::problem::Failure>) {
    match outcome {
        Ok(Reply::Refused { code, message }) => tracing::error!(%code, message, "could not {what}"),
        Ok(_) => tracing::debug!("{what}"),
        Err(failure) => tracing::warn!(problem = ?failure.problem(), "could not {what}"),
    }
}

impl Server {
    fn leading_term(&self) -> Option<u64> {
        self.lock_leadership().as_ref().map(|leadership| leadership.term)
    }

    /// The leadership that Raft still confirms. Until this replica has announced itself in the present
    /// term it answers no agent: a plan of an earlier leader could still arrive and move a slot whose
    /// lease was just renewed; and once another leads, a lease given here would outlive that one's wait.
    pub(crate) fn confirmed<'a>(&self, held: &'a mut Option<Leadership>) -> Option<&'a mut Leadership> {
        let status = self.handle.status();
        held.as_mut().filter(|held| status.role == consensus::Role::Leader && status.term == held.term)
    }

    fn set_leadership(&self, leadership: Leadership) {
        *self.lock_leadership() = Some(leadership);
    }

    fn take_leadership(&self) -> Option<Leadership> {
        self.lock_leadership().take()
    }

    pub(crate) fn lock_leadership(&self) -> std::sync::MutexGuard<'_, Option<Leadership>> {
        self.leadership.lock().expect("no holder of this lock panics")
    }

    /// The next plan as a command, its lapses announced; nothing when there is nothing to do.
    fn next_plan(&self, now: Millis) -> Option<Action> {
        let mut leadership = self.lock_leadership();
        let observed = &mut leadership.as_mut()?.observed;
        let plan = self.cluster(|cluster| scheduler::plan(cluster, observed, now));
        self.metrics.steps_dropped.set(i64::try_from(plan.dropped.len()).unwrap_or(i64::MAX));
        if plan.steps.is_empty() {
            return None;
        }
        observed.condemn(&plan);
        Some(Action::Execute { parent_generation: plan.parent_generation, steps: plan.steps })
    }
}
