//! The part of projects in a plan: turns by share, charges of gangs, reclaim, and texts of what waits.

use super::jobs::GangNeed;
use super::{NodeCapacity, Planner, WaitingJob};
use crate::command::Step;
use crate::fair_share::{GangCharge, QuotaTree, TurnKey};
use crate::jobs::{EndCause, JobBook, subject_of};
use crate::limits::GANGS_PREEMPTED_MAX;
use crate::observed::Liveness;
use crate::project_fit::take_held;
use crate::queue::{GangTurn, RunningGang, WaitingGang};
use crate::view::ClusterView;
use protocol::JobId;
use protocol::project::ProjectTree;
use protocol::usage::UsageRate;
use std::cmp::Reverse;

/// Name of the reason of a job that its project's quota keeps back.
pub(crate) const QUOTA: &str = "quota";
/// Name of the reason of a job that waits since its project used more than its share.
pub(crate) const FAIR_SHARE: &str = "fair_share";
/// Name of the reason of a job for which borrowed resources are reclaimed.
pub(crate) const RECLAIM: &str = "reclaim";
/// Name of the reason of a job whose project is not in force.
pub(crate) const PROJECT: &str = "project";

/// Returns the tree of quotas with what gangs hold now and held on average, on these nodes.
pub(crate) fn quotas_of(view: ClusterView, jobs: &JobBook, nodes: &[NodeCapacity]) -> QuotaTree {
    let none = ProjectTree::default();
    let tree = view.cluster.circle_state().map_or(&none, |state| state.projects());
    let shares = view.cluster.shares().advanced(view.cluster_time());
    let capacity = nodes.iter().fold(UsageRate::default(), |sum, node| sum.plus(node.offers()));
    let mut quotas = QuotaTree::new(tree, &capacity, |project| shares.mean(project));
    take_held(&mut quotas, view.cluster, jobs);
    quotas
}

impl<'a> Planner<'a> {
    /// Returns the tree of quotas after the steps taken so far.
    pub(super) fn quotas(&self) -> QuotaTree {
        quotas_of(self.view, &self.draft.jobs, &self.capacities())
    }

    /// Returns the most gangs that this plan may preempt. A leader that some node has not reported to yet
    /// preempts none: there may be room.
    pub(super) fn preempted_max(&self) -> usize {
        let is_unknown = |node| matches!(self.view.liveness(node), Liveness::Unknown { .. });
        if self.view.cluster.nodes().any(|node| is_unknown(&node.id)) { 0 } else { GANGS_PREEMPTED_MAX }
    }

    /// Sorts gangs by their turns, and leaves out those beyond `most`.
    pub(super) fn by_turns(
        quotas: &QuotaTree,
        waiting: Vec<WaitingGang<GangNeed<'a>>>,
        most: usize,
    ) -> Vec<WaitingGang<GangNeed<'a>>> {
        let keys: Vec<TurnKey> = waiting.iter().map(key_of_turn).collect();
        let mut left: Vec<Option<WaitingGang<GangNeed<'a>>>> = waiting.into_iter().map(Some).collect();
        let order = quotas.turns(&keys, most);
        debug_assert!(order.len() <= most, "as many as a plan considers");
        order.into_iter().filter_map(|at| left[at].take()).collect()
    }

    /// Ends the attempts that make room for gangs with a claim. Their ranks have their grace to checkpoint.
    pub(super) fn preempt_borrowers<P>(
        &mut self,
        running: &[RunningGang<GangNeed<'a>, P>],
        preempted: &[usize],
    ) {
        debug_assert!(preempted.len() <= GANGS_PREEMPTED_MAX, "as many as a plan preempts");
        for at in preempted {
            let id = running[*at].gang.id;
            let Some(attempt) = self.draft.jobs.jobs().get(&id).map(|job| job.attempts) else { continue };
            let project = running[*at].gang.project_name();
            let text = format!("gives back what project `{project}` borrowed: another reclaims its quota");
            let cause = EndCause::Preempted(text.clone());
            let step = Step::EndGang { id, attempt, cause, ends: Vec::new() };
            self.take(step, subject_of(id), text);
        }
    }

    /// Records that a gang waits since projects with a lower share come first; returns whether that is why.
    /// By priority and time alone, it would come before one that starts or has a reservation.
    pub(super) fn waits_for_share(
        &mut self,
        quotas: &QuotaTree,
        entry: &WaitingGang<GangNeed<'a>>,
        ahead: &[TurnKey],
    ) -> bool {
        let rank = |priority: u32, submitted_at: u64| (Reverse(priority), submitted_at);
        let own = rank(entry.priority, entry.submitted_at);
        let Some(first) = ahead.iter().find(|other| own < rank(other.priority, other.submitted_at)) else {
            return false;
        };
        let text = fair_share_text(quotas, &entry.gang, &entry.charge, &first.charge);
        self.plan.waiting_jobs.push(WaitingJob { id: entry.gang.id, reason: FAIR_SHARE, text });
        true
    }
}

/// Returns what the turn of a gang depends on.
pub(super) fn key_of_turn<G>(entry: &WaitingGang<G>) -> TurnKey {
    TurnKey { charge: entry.charge, priority: entry.priority, submitted_at: entry.submitted_at }
}

/// Returns whether a gang goes before others: it starts, or has a reservation.
pub(super) fn is_ahead<P>(turn: &GangTurn<P>) -> bool {
    match turn {
        GangTurn::Starts(_) | GangTurn::Reserved { .. } | GangTurn::Reclaims { .. } => true,
        GangTurn::NoRoom | GangTurn::Quota(_) | GangTurn::Behind => false,
    }
}

fn fair_share_text(quotas: &QuotaTree, gang: &GangNeed<'_>, own: &GangCharge, first: &GangCharge) -> String {
    let project = gang.project_name();
    debug_assert!(!project.is_empty(), "a gang without a project is of the root");
    let change = match quotas.weight_to_precede(own, first) {
        Some((name, weight, needed)) => {
            format!("smallest change: vote a weight of {needed} instead of {weight} for `{name}`, or wait")
        }
        None => "it takes its turn as others use more, or once its project is within its quota".into(),
    };
    format!("other projects have used less of their share than `{project}`, and come first; {change}")
}

/// Returns the text for a gang for which room is made until a time.
pub(super) fn reclaim_text(gang: &GangNeed<'_>, by: &str) -> String {
    format!(
        "project `{}` is within its quota: gangs that borrow make room for it by {by}",
        gang.project_name()
    )
}

/// Returns whether the jobs of an attempt hold what their project borrowed.
pub(super) fn borrows(quotas: &QuotaTree, view: ClusterView, jobs: &JobBook, id: JobId) -> bool {
    jobs.gang(id).any(|(_, held)| {
        let manifest = view.cluster.job_manifest(&held.certificate);
        manifest.is_some_and(|manifest| {
            let rate = UsageRate::of(&manifest.resources, held.ranks.count);
            quotas.is_borrower(&quotas.charge_of_held(manifest.project.as_ref(), &rate))
        })
    })
}
