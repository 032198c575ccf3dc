//! The leader's loop: announces the leader, founds the circle once, and turns plans into orders.
//!
//! The loop is level-triggered: every round compares the cluster with the nodes' latest reports. The next
//! round makes up for a lost one, and a stale plan is rejected by its generation.

use super::Server;
use consensus::Term;
use host::wall_clock;
use overlay::CancellationToken;
use protocol::gateway::RouteTable;
use scheduler::{Action, Actor, ClusterView, LeaderTime, Observed, Reply, refused_in_its_generation};
use std::sync::Arc;
use std::time::Duration;

/// Pause between rounds when no command is applied and no node reports another state of a slot. Short against
/// the 3 s lease, long against a round's cost.
const PLANNING_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a report with another state of a slot: one round is for all reports that come with it, and no
/// node sets the pace of rounds.
const REPORTS_PAUSE: Duration = Duration::from_millis(5);

/// State that a replica has only while it leads.
pub(crate) struct LeaderState {
    /// Raft term in which the replica leads.
    pub(crate) term: Term,
    /// The leader's view of the nodes.
    pub(crate) observed: Observed,
    /// The last route table that the leader computed.
    pub(crate) routes: RouteTable,
}

/// Runs the leader's rounds while Raft reports this replica as the leader, until `shutdown`.
pub(crate) async fn run(server: Arc<Server>, shutdown: CancellationToken) {
    let mut applied = server.handle.watch_applied();
    loop {
        round(&server).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PLANNING_INTERVAL) => {}
            () = server.report_news.notified() => tokio::time::sleep(REPORTS_PAUSE).await,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

/// Runs one round, if this replica leads and its clock is right.
pub(super) async fn round(server: &Server) {
    let status = server.handle.status();
    // Raft hands the leadership of a replica with a wrong clock over; until then it decides nothing.
    if status.role == consensus::Role::Leader && !server.wrong_clocks().contains_key(&server.id) {
        planning_round(server, status.term).await;
    } else if server.take_leadership().is_some() {
        tracing::info!("lost leadership");
    }
}

pub(super) async fn planning_round(server: &Server, term: Term) {
    if server.leading_term() != Some(term) && !announce(server, term).await {
        return;
    }
    if !server.cluster(|cluster| cluster.genesis().is_some()) {
        let found = Action::Found(Box::new(server.genesis.clone()));
        report("found the circle", server.command(Actor::Scheduler, found).await);
        return;
    }
    let clocks = server.clocks.readings();
    if server.cluster(|cluster| scheduler::tick_is_due(cluster, &clocks)) {
        report("tick", server.command(Actor::Scheduler, Action::Tick).await);
    }
    let Some((parent_generation, execute)) = server.next_plan(LeaderTime(wall_clock())) else { return };
    match server.command(Actor::Scheduler, execute).await {
        Ok(Reply::Executed { orders, .. }) => {
            for order in orders {
                let (service, slot, fence) = (&order.service, order.slot, order.fence);
                tracing::info!(%service, %slot, %fence, "order issued");
            }
            server.metrics.plans.inc();
            server.metrics.count_plan(None);
        }
        // A stale plan is normal: the cluster changed while the plan was computed.
        Ok(reply) => {
            let refused = |cluster: &_| refused_in_its_generation(cluster, parent_generation, &reply);
            server.metrics.count_plan(server.cluster(refused).as_ref());
        }
        Err(failure) => tracing::warn!(problem = ?failure.problem(), "plan not executed"),
    }
}

/// Announces this replica as leader, which makes every plan of an earlier leader stale.
async fn announce(server: &Server, term: Term) -> bool {
    let replica = server.id;
    match server.command(Actor::Scheduler, Action::Lead { replica }).await {
        Ok(Reply::Leads { .. }) => {
            server.set_leadership(LeaderState {
                term,
                observed: Observed::new(LeaderTime(wall_clock())),
                routes: RouteTable::default(),
            });
            tracing::info!(term = term.0, "became leader");
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
    fn leading_term(&self) -> Option<Term> {
        self.lock_leadership().as_ref().map(|leadership| leadership.term)
    }

    /// Returns the leadership, if Raft still confirms it in the present term.
    ///
    /// Until this replica has announced itself in the term, it answers no agent. A plan of an earlier leader
    /// could still arrive and move a slot whose lease was just renewed. After another leader is elected, a
    /// lease granted here would outlive that leader's waiting time.
    pub(crate) fn confirmed<'a>(&self, held: &'a mut Option<LeaderState>) -> Option<&'a mut LeaderState> {
        let status = self.handle.status();
        held.as_mut().filter(|held| status.role == consensus::Role::Leader && status.term == held.term)
    }

    fn set_leadership(&self, leadership: LeaderState) {
        *self.lock_leadership() = Some(leadership);
    }

    fn take_leadership(&self) -> Option<LeaderState> {
        self.lock_leadership().take()
    }

    pub(crate) fn lock_leadership(&self) -> std::sync::MutexGuard<'_, Option<LeaderState>> {
        self.leadership.lock().expect("no holder of this lock panics")
    }

    /// Returns the next plan as an action, with its generation, and begins its evictions; none if the plan is
    /// empty.
    fn next_plan(&self, now: LeaderTime) -> Option<(u64, Action)> {
        let halts = self.standing_halts();
        let mut leadership = self.lock_leadership();
        let observed = &mut leadership.as_mut()?.observed;
        observed.note_halts(halts);
        let clocks = &self.clocks.readings();
        let plan = self.cluster(|cluster| scheduler::plan(ClusterView { cluster, observed, now, clocks }));
        self.metrics.steps_dropped.set(i64::try_from(plan.dropped.len()).unwrap_or(i64::MAX));
        let Some(action) = plan.action() else {
            self.metrics.count_plan(None);
            return None;
        };
        observed.begin_eviction(&plan);
        Some((plan.parent_generation, action))
    }
}
