//! The steps about jobs: attempts are judged by their nodes' reports, and gangs are placed whole.
//!
//! Services come first: jobs are placed in what services leave, and a service that waits takes the space of
//! jobs of a lower priority.

use super::Planner;
use super::WaitingJob;
use super::capacity::{NodeCapacity, has_meeting_node};
use super::fill::best_placement;
use super::projects::{self, PROJECT, QUOTA, RECLAIM, is_ahead, key_of_turn};
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::command::{GangPlan, GangSlotPlan, Step};
use crate::fair_share::QuotaTree;
use crate::jobs::{EndCause, Job, JobHolding, JobHoldingPhase, JobSlotName, JobState, RankGpu, subject_of};
use crate::limits::{CAUSE_CHARACTERS_MAX, JOB_ENDS_KEPT_MAX, PLAN_STEPS_MAX, START_PATIENCE_MS};
use crate::project_fit::{over_quota, unknown_project};
use crate::queue::{GangRoom, GangTurn, QueueState, RunningGang, Schedule, WaitingGang, schedule};
use human_chain::show_time;
use protocol::display::counted;
use protocol::gang::GANG_LINKS_MAX;
use protocol::job::SlotRanks;
use protocol::job_report::{JobSlotReport, JobSlotState, RankEnd, RankOutcome};
use protocol::limits::LEASE_MS;
use protocol::manifest::JobManifest;
use protocol::project::ROOT_PROJECT;
use protocol::usage::UsageRate;
use protocol::{JobId, Millis, NodeId, ServiceName, SlotIndex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Most waiting jobs that one plan considers, in the order of the queue.
const CONSIDERED_MAX: usize = 512;
/// Name of the reason of a job that follows another.
const AFTER: &str = "after";
/// Name of the reason of a job that would pass a limit of its envelope.
pub(crate) const LIMIT: &str = "limit";

/// Gang with what its placement depends on.
#[derive(Debug, Clone)]
pub(super) struct GangNeed<'a> {
    pub(super) id: JobId,
    name: &'a ServiceName,
    manifest: &'a JobManifest,
    /// Nodes on which a halt covers the job.
    halted: BTreeSet<NodeId>,
}

impl GangNeed<'_> {
    /// Returns the name of its project, or that of the root.
    pub(super) fn project_name(&self) -> &str {
        self.manifest.project.as_ref().map_or(ROOT_PROJECT, |project| project.as_str())
    }
}

/// Part of a gang on one node.
#[derive(Debug, Clone)]
struct GangPart {
    slot: SlotIndex,
    node: NodeId,
    ranks: SlotRanks,
    gpus: Vec<RankGpu>,
}

/// Free capacity of nodes, and free slots of envelopes.
#[derive(Debug, Clone)]
struct Floor<'a> {
    /// Nodes that can be given work.
    nodes: Vec<NodeCapacity>,
    /// Free slots of each approved job.
    slots: BTreeMap<&'a ServiceName, BTreeSet<SlotIndex>>,
    /// Whether ranks on two nodes can reach each other.
    has_meeting_node: bool,
}

impl<'a> GangRoom for Floor<'a> {
    type Gang = GangNeed<'a>;
    type Place = Vec<GangPart>;

    /// Takes the nodes that hold most ranks first, so that a gang is on few of them.
    fn place(&self, gang: &GangNeed<'a>) -> Option<Vec<GangPart>> {
        let (manifest, mut slots) = (gang.manifest, self.slots.get(gang.name)?.iter());
        let open = self.nodes.iter().filter(|node| node.allows(manifest) && !gang.halted.contains(&node.id));
        let most = manifest.ranks_per_slot.min(manifest.ranks);
        let mut offers: Vec<(NodeId, Vec<Vec<RankGpu>>)> =
            open.map(|node| (node.id, node.fit_ranks(manifest, most))).collect();
        // The sort is stable and nodes are sorted by name, so a tie goes to the lower name.
        offers.sort_by_key(|(_, ranks)| Reverse(ranks.len()));
        let (mut next, mut parts) = (0_u32, Vec::new());
        for (node, ranks) in offers {
            let count = (ranks.len() as u32).min(manifest.ranks - next);
            if count == 0 {
                break;
            }
            let gpus = ranks.into_iter().take(count as usize).flatten().collect();
            let ranks = SlotRanks { first: next, count };
            parts.push(GangPart { slot: *slots.next()?, node, ranks, gpus });
            next += count;
        }
        debug_assert!(next <= manifest.ranks && parts.len() <= next as usize, "each part holds a rank");
        // Each part but one is a link of every node of the gang.
        let is_linked = parts.len() <= 1 || (self.has_meeting_node && parts.len() - 1 <= GANG_LINKS_MAX);
        (next == manifest.ranks && is_linked).then_some(parts)
    }

    fn take(&mut self, gang: &GangNeed<'a>, place: &Vec<GangPart>) -> bool {
        let needs = &gang.manifest.resources;
        let fits = |part: &GangPart| {
            let node = self.nodes.iter().find(|node| node.is_node(part.node));
            let slot = self.slots.get(gang.name).is_some_and(|slots| slots.contains(&part.slot));
            slot && node.is_some_and(|node| node.has_room(needs, part.ranks.count, &part.gpus))
        };
        if !place.iter().all(fits) {
            return false;
        }
        for part in place {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.is_node(part.node)) {
                node.take_ranks(needs, part.ranks.count, &part.gpus);
            }
            self.slots.entry(gang.name).or_default().remove(&part.slot);
        }
        true
    }

    fn give(&mut self, gang: &GangNeed<'a>, place: &Vec<GangPart>) {
        for part in place {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.is_node(part.node)) {
                node.give_ranks(&gang.manifest.resources, part.ranks.count, &part.gpus);
            }
            self.slots.entry(gang.name).or_default().insert(part.slot);
        }
    }
}

impl<'a> Planner<'a> {
    /// Frees the slots that nodes have ended. This precedes the placement of services: the room of an attempt
    /// that made way for a service is that service's.
    pub(super) fn release_gangs(&mut self) {
        for (slot, node) in self.ended_slots() {
            let text = format!("{} no longer runs it", self.view.cluster.node_name(&node));
            let label = format!("{}/{}", slot.job, slot.slot);
            self.take(Step::ReleaseGang(slot), label, text);
        }
    }

    /// Judges every attempt by the reports of its nodes.
    pub(super) fn judge_jobs(&mut self) {
        let placed = self.draft.jobs.jobs().iter().filter(|(_, job)| job.state.is_placed());
        let placed: Vec<(JobId, Job)> = placed.map(|(id, job)| (*id, job.clone())).collect();
        for (id, job) in placed {
            let (attempt, label) = (job.attempts, subject_of(id));
            let ends = self.ends_of(id);
            if let Some(cause) = self.end_of(id, &job, &ends) {
                let text = format!("attempt {attempt} ended: {cause}");
                let mut kept = ends;
                kept.sort_by_key(|end| (end.outcome.is_success(), end.outcome == RankOutcome::Stopped));
                kept.truncate(JOB_ENDS_KEPT_MAX);
                self.take(Step::EndGang { id, attempt, cause, ends: kept }, label, text);
            } else if job.state == JobState::Starting && self.is_ready_gang(id) {
                let text = format!("every slot of attempt {attempt} is ready");
                self.take(Step::RunGang { id, attempt }, label, text);
            }
        }
    }

    /// Returns the withdrawn slots that their nodes certainly do not run any more.
    fn ended_slots(&self) -> Vec<(JobSlotName, NodeId)> {
        let ended = |name: &JobSlotName, held: &JobHolding| {
            let JobHoldingPhase::Ending { generation } = held.phase else { return false };
            let Some(node) = self.view.observed.node(&held.node) else { return false };
            match node.jobs.iter().find(|report| is_of(report, name)) {
                Some(report) => report.state == JobSlotState::Ended,
                None => node.generation >= generation,
            }
        };
        let held = self.draft.jobs.held().filter(|(name, held)| ended(name, held));
        held.map(|(name, held)| (name, held.node)).collect()
    }

    /// Returns the report of a slot by its node, if that is alive.
    fn job_report(&self, name: &JobSlotName, held: &JobHolding) -> Option<&'a JobSlotReport> {
        let node = self.view.observed.node(&held.node).filter(|_| self.view.is_alive(&held.node))?;
        node.jobs.iter().find(|report| is_of(report, name))
    }

    /// Returns whether every slot of a gang is ready. One of all ranks may run already.
    fn is_ready_gang(&self, id: JobId) -> bool {
        self.draft.jobs.gang(id).all(|(name, held)| {
            let state = self.job_report(&name, held).map(|report| report.state);
            matches!(state, Some(JobSlotState::Ready | JobSlotState::Running))
        })
    }

    /// Returns the ends of ranks that the nodes of a gang have reported.
    fn ends_of(&self, id: JobId) -> Vec<RankEnd> {
        let reports = self.draft.jobs.gang(id).filter_map(|(name, held)| {
            let of_slot = |end: &&RankEnd| {
                end.rank >= held.ranks.first && end.rank - held.ranks.first < held.ranks.count
            };
            let report = self.job_report(&name, held)?;
            Some(report.ends.iter().filter(of_slot).copied().collect::<Vec<RankEnd>>())
        });
        reports.flatten().collect()
    }

    /// Returns the cause for which an attempt ends now, if there is one.
    fn end_of(&self, id: JobId, job: &Job, ends: &[RankEnd]) -> Option<EndCause> {
        let submission = job.submission();
        let manifest = self.view.cluster.job_manifest(&submission.certificate)?;
        if let Some(refused) = self.refusal_of(id) {
            return Some(refused);
        }
        if ends.iter().any(|end| end.outcome == RankOutcome::TimeLimit) {
            return Some(EndCause::TimeLimit);
        }
        if let Some(node) = self.node_that_lost_ranks(id) {
            return Some(EndCause::NodeLost(node));
        }
        let failed = |end: &&RankEnd| !end.outcome.is_success() && end.outcome != RankOutcome::Stopped;
        // A rank that another's end stopped is not the cause, unless no other is reported.
        let stopped = |end: &&RankEnd| !end.outcome.is_success();
        if let Some(end) = ends.iter().find(failed).or_else(|| ends.iter().find(stopped)) {
            return (!self.may_have_lost_a_node(id, end.rank)).then_some(EndCause::RankFailed(*end));
        }
        let distinct: BTreeSet<u32> = ends.iter().map(|end| end.rank).collect();
        if distinct.len() == manifest.ranks as usize {
            return Some(EndCause::Succeeded);
        }
        if let Some(halt) = self.halt_on_gang(id, &submission.job) {
            return Some(EndCause::Preempted(halt));
        }
        if let Some(node) = self.forgetful_node(id, job.state) {
            return Some(EndCause::NodeLost(node));
        }
        self.overdue(job, manifest)
    }

    /// Returns a node of a gang whose agent started again and does not know how its ranks ended. Their peers
    /// often fail for the same reason.
    fn node_that_lost_ranks(&self, id: JobId) -> Option<NodeId> {
        let lost = |end: &RankEnd| end.outcome == RankOutcome::Lost;
        let mut gang = self.draft.jobs.gang(id);
        let found = gang.find(|(name, held)| {
            self.job_report(name, held).is_some_and(|report| report.ends.iter().any(lost))
        });
        found.map(|(_, held)| held.node)
    }

    /// Returns whether a node of a gang has not reported since a rank on another one failed: a rank often
    /// fails because its peer is gone. The next report, or the end of the lease, names the cause.
    fn may_have_lost_a_node(&self, id: JobId, rank: u32) -> bool {
        let gang: Vec<(JobSlotName, &JobHolding)> = self.draft.jobs.gang(id).collect();
        let holds =
            |held: &JobHolding| rank >= held.ranks.first && rank - held.ranks.first < held.ranks.count;
        let Some((name, failed)) = gang.iter().find(|(_, held)| holds(held)) else { return false };
        let node = self.view.observed.node(&failed.node);
        let Some(since) = node.and_then(|node| node.ended_since(&name.job, name.slot, name.fence)) else {
            return false;
        };
        let mut others = gang.iter().filter(|(_, held)| held.node != failed.node);
        others
            .any(|(_, held)| self.view.observed.node(&held.node).is_none_or(|node| node.heartbeat_at < since))
    }

    /// Returns the cause if an attempt starts or runs for too long. Nodes end ranks by the same limit; this
    /// one ends attempts whose nodes do not.
    fn overdue(&self, job: &Job, manifest: &JobManifest) -> Option<EndCause> {
        let seconds = manifest.run_seconds_max.saturating_add(manifest.grace_seconds);
        let run_ms = seconds.saturating_mul(1000).saturating_add(LEASE_MS);
        match job.state {
            JobState::Starting if job.since.plus(START_PATIENCE_MS) <= self.now() => Some(EndCause::NotReady),
            JobState::Running if job.since.plus(run_ms) <= self.now() => Some(EndCause::TimeLimit),
            _ => None,
        }
    }

    /// Returns the refusal of a node, or the end of a slot without the end of each of its ranks.
    fn refusal_of(&self, id: JobId) -> Option<EndCause> {
        let mut reports = self.draft.jobs.gang(id).filter_map(|(name, held)| self.job_report(&name, held));
        reports.find_map(|report| match &report.refusal {
            Some(refusal) => {
                let message = refusal.message.chars().take(CAUSE_CHARACTERS_MAX).collect();
                Some(EndCause::Refused { code: refusal.code, message })
            }
            None if report.state == JobSlotState::Ended
                && report.ends.len() < report.ranks.count as usize =>
            {
                let end = RankEnd { rank: report.ranks.first, outcome: RankOutcome::Lost };
                report.ends.iter().all(|end| end.outcome.is_success()).then_some(EndCause::RankFailed(end))
            }
            None => None,
        })
    }

    fn halt_on_gang(&self, id: JobId, name: &ServiceName) -> Option<String> {
        let mut nodes = self.draft.jobs.gang(id).filter_map(|(_, held)| self.view.cluster.node(&held.node));
        let halt = nodes.find_map(|node| self.view.halt_on(name, node))?;
        Some(human_chain::describe_halt(halt).chars().take(CAUSE_CHARACTERS_MAX).collect())
    }

    /// Returns a node that is alive and does not report a slot of a gang that runs: its agent lost it.
    fn forgetful_node(&self, id: JobId, state: JobState) -> Option<NodeId> {
        let mut gang = self.draft.jobs.gang(id).filter(|_| state == JobState::Running);
        let lost =
            gang.find(|(name, held)| self.view.is_alive(&held.node) && self.job_report(name, held).is_none());
        lost.map(|(_, held)| held.node)
    }

    /// Ends attempts of a lower priority for services that wait, if a replica fits once they have ended.
    pub(super) fn preempt_jobs(&mut self) {
        let waiting: Vec<ServiceName> = self.plan.waiting.iter().map(|one| one.service.clone()).collect();
        for name in waiting {
            let priority = self.service(&name).manifest.priority;
            let Some(victims) = self.attempts_to_end(&name, priority) else { continue };
            for (id, attempt) in victims {
                let text = format!("makes room for {name}, of priority {priority}");
                let cause = EndCause::Preempted(text.clone());
                let step = Step::EndGang { id, attempt, cause, ends: Vec::new() };
                self.take(step, subject_of(id), text);
            }
        }
    }

    /// Returns the attempts to end so that one replica of a service fits; none if that does not help, or the
    /// space of what ends already suffices.
    fn attempts_to_end(&self, name: &ServiceName, priority: u32) -> Option<Vec<(JobId, u32)>> {
        let (service, jobs) = (self.service(name), &self.draft.jobs);
        let mut nodes = self.capacities_after_ends();
        if best_placement(self.view, &nodes, service).is_ok() {
            return None;
        }
        let below = jobs
            .jobs()
            .iter()
            .filter(|(_, job)| job.state.is_placed() && job.submission().priority < priority);
        let mut below: Vec<(&JobId, &Job)> = below.collect();
        let quotas = self.quotas();
        let keeps = |id: &JobId| !projects::borrows(&quotas, self.view, jobs, *id);
        below.sort_by_key(|(id, job)| (keeps(id), job.submission().priority, Reverse(job.since), **id));
        for (at, (id, _)) in below.iter().enumerate() {
            jobs.gang(**id).for_each(|(_, held)| self.give_back(&mut nodes, held));
            let Ok(best) = best_placement(self.view, &nodes, service) else { continue };
            let on_node = |id: JobId| jobs.gang(id).any(|(_, held)| held.node == best.node);
            let ended = below[..=at].iter().filter(|(id, _)| on_node(**id));
            let ended: Vec<(JobId, u32)> = ended.map(|(id, job)| (**id, job.attempts)).collect();
            debug_assert!(ended.iter().any(|(last, _)| last == *id), "the last one made the room");
            return Some(ended);
        }
        None
    }

    /// Returns the capacity of every node once the slots of gangs that end have ended.
    fn capacities_after_ends(&self) -> Vec<NodeCapacity> {
        let mut nodes: Vec<NodeCapacity> = self.capacities().iter().cloned().collect();
        let ending = self.draft.jobs.held().filter(|(_, held)| held.phase != JobHoldingPhase::Active);
        ending.for_each(|(_, held)| self.give_back(&mut nodes, held));
        nodes
    }

    fn give_back(&self, nodes: &mut [NodeCapacity], held: &JobHolding) {
        let manifest = self.view.cluster.job_manifest(&held.certificate);
        let node = nodes.iter_mut().find(|node| node.is_node(held.node));
        if let (Some(manifest), Some(node)) = (manifest, node) {
            node.give_ranks(&manifest.resources, held.ranks.count, &held.gpus);
        }
    }

    /// Returns the nodes on which slots that end make room for a service that waits. They take no gang
    /// until then: it would take a part of that room, and would be preempted in turn.
    fn promised_nodes(&self) -> BTreeSet<NodeId> {
        if self.plan.waiting.is_empty() {
            return BTreeSet::new();
        }
        let nodes = self.capacities_after_ends();
        let best = |name: &ServiceName| best_placement(self.view, &nodes, self.service(name)).ok();
        self.plan.waiting.iter().filter_map(|one| best(&one.service)).map(|best| best.node).collect()
    }

    /// Places the gangs whose turn it is, each whole.
    pub(super) fn fill_jobs(&mut self) {
        let waits = |job: &Job| !job.state.is_finished() && !job.state.is_placed();
        if !self.view.cluster.jobs().jobs().values().any(waits) {
            return;
        }
        let quotas = self.quotas();
        let waiting = self.waiting_gangs(&quotas);
        if waiting.is_empty() {
            return;
        }
        let (floor, running, now) = (self.floor(), self.running_gangs(&quotas), self.now().0.0);
        let preempted_max = self.preempted_max();
        let state = QueueState { room: &floor, quotas: &quotas, running: &running, now, preempted_max };
        let Schedule { turns, preempted } = schedule(&state, &waiting);
        self.preempt_borrowers(&running, &preempted);
        let (mut weight, mut ahead) = (self.plan.steps.len(), Vec::new());
        for (entry, turn) in waiting.into_iter().zip(turns) {
            ahead.extend(is_ahead(&turn).then(|| key_of_turn(&entry)));
            let parts = match turn {
                GangTurn::Starts(parts) => parts,
                GangTurn::Behind if self.waits_for_share(&quotas, &entry, &ahead) => continue,
                waits => {
                    self.wait_for(&entry.gang, &waits);
                    continue;
                }
            };
            weight += 1 + parts.len() + parts.iter().map(|part| part.gpus.len()).sum::<usize>() / 8;
            // An attempt of the same envelope may have started in this plan.
            let spending = self.draft.spending();
            if let Err(text) = spending.check_gang(entry.gang.name, entry.gang.manifest) {
                self.plan.waiting_jobs.push(WaitingJob { id: entry.gang.id, reason: LIMIT, text });
            } else if weight > PLAN_STEPS_MAX || !self.start(&entry.gang, parts) {
                let text = "the next plan orders it".to_string();
                self.plan.waiting_jobs.push(WaitingJob { id: entry.gang.id, reason: "behind", text });
            }
        }
    }

    /// Orders every slot of a gang; returns whether the plan has them.
    fn start(&mut self, gang: &GangNeed<'a>, parts: Vec<GangPart>) -> bool {
        let approved = self.view.cluster.circle_state().and_then(|state| state.job(gang.name));
        let Some(version) = approved.map(|approved| approved.version) else { return false };
        let known = self.draft.jobs.slots.get(gang.name);
        let fence = |slot: &SlotIndex| {
            let last = known.and_then(|slots| slots.get(slot)).map(|slot| slot.fence);
            last.unwrap_or_default().next(version)
        };
        let slots: Option<Vec<GangSlotPlan>> = parts
            .into_iter()
            .map(|GangPart { slot, node, ranks, gpus }| {
                Some(GangSlotPlan { slot, fence: fence(&slot)?, node, ranks, gpus })
            })
            .collect();
        let Some(slots) = slots else { return false };
        debug_assert!(!slots.is_empty(), "a gang holds slots");
        let attempt = self.draft.jobs.jobs().get(&gang.id).map_or(1, |job| job.attempts.saturating_add(1));
        let text = format!("attempt {attempt} of {} starts on {} nodes", gang.name, slots.len());
        let plan = GangPlan { id: gang.id, attempt, slots };
        self.take(Step::StartGang(plan), subject_of(gang.id), text)
    }

    fn wait_for(&mut self, gang: &GangNeed<'a>, turn: &GangTurn<Vec<GangPart>>) {
        let (reason, text) = match turn {
            GangTurn::Reserved { at } => {
                let by = show_time(Millis(*at));
                ("reserved", format!("it is the first of the queue; its gang fits by {by} at the latest"))
            }
            GangTurn::NoRoom if !has_meeting_node(self.view.cluster) => {
                let text = "no node that is alive has room for its whole gang, and none has a storage \
                            address, by which the nodes of a gang reach each other";
                ("no_network", text.into())
            }
            GangTurn::NoRoom => {
                ("no_room", "the nodes that are alive have no room for its gang beside services".into())
            }
            GangTurn::Reclaims { at } => (RECLAIM, projects::reclaim_text(gang, &show_time(Millis(*at)))),
            GangTurn::Quota(shortfall) => (QUOTA, over_quota(shortfall)),
            GangTurn::Behind => ("behind", "it waits behind others; its gang would delay the first".into()),
            GangTurn::Starts(_) => return,
        };
        self.plan.waiting_jobs.push(WaitingJob { id: gang.id, reason, text });
    }

    /// Returns the gangs that may start, in the order of the queue. Those that may not get their reason.
    fn waiting_gangs(&mut self, quotas: &QuotaTree) -> Vec<WaitingGang<GangNeed<'a>>> {
        let (cluster, now) = (self.view.cluster, self.now());
        let mut waiting = Vec::new();
        for (id, job) in cluster.jobs().jobs() {
            let state = self.draft.jobs.jobs().get(id).map(|job| job.state);
            let due = match state {
                Some(JobState::Queued) => true,
                Some(JobState::BackingOff { until }) => until <= now,
                _ => false,
            };
            if !due || job.submission().deadline <= now.0 {
                continue;
            }
            let charged = |gang: GangNeed<'a>| {
                let rate = UsageRate::of(&gang.manifest.resources, gang.manifest.ranks);
                let unknown = || (PROJECT, unknown_project(gang.manifest).unwrap_or_default());
                let charge = quotas.charge(gang.manifest.project.as_ref(), &rate).ok_or_else(unknown)?;
                Ok((gang, charge))
            };
            match self.need(*id, job, now).and_then(charged) {
                Ok((gang, charge)) => waiting.push(WaitingGang {
                    charge,
                    priority: job.submission().priority,
                    submitted_at: job.submitted_at.0.0,
                    run_ms: gang.manifest.run_seconds_max.saturating_mul(1000),
                    gang,
                }),
                Err((reason, text)) => {
                    self.plan.waiting_jobs.push(WaitingJob { id: *id, reason, text });
                }
            }
        }
        Self::by_turns(quotas, waiting, CONSIDERED_MAX)
    }

    /// Returns what a job needs, or the reason for which it may not start at all now.
    fn need(
        &self,
        id: JobId,
        job: &'a Job,
        now: ClusterTime,
    ) -> Result<GangNeed<'a>, (&'static str, String)> {
        let (cluster, submission) = (self.view.cluster, job.submission());
        let approved = cluster.circle_state().and_then(|state| state.job(&submission.job));
        let approved = approved.filter(|job| job.certificate == submission.certificate);
        let in_time = |until: Millis| now.0 < until;
        let approved = approved.filter(|job| job.manifest.valid_until.is_none_or(in_time));
        let Some(approved) = approved else { return Err(("approval", "its approval has ended".into())) };
        if let Some(halt) = self.view.halt_of(&submission.job) {
            return Err(("halted", human_chain::describe_halt(halt)));
        }
        if let Some(text) = followed(cluster, self.draft.jobs.jobs().get(&id)) {
            return Err((AFTER, text));
        }
        let within = self.draft.spending().check_gang(&submission.job, &approved.manifest);
        within.map_err(|text| (LIMIT, text))?;
        let halted = cluster.nodes().filter(|node| self.view.halt_on(&submission.job, node).is_some());
        let halted = halted.map(|node| node.id).collect();
        debug_assert!(approved.manifest.ranks > 0, "a gang has ranks");
        Ok(GangNeed { id, name: &submission.job, manifest: &approved.manifest, halted })
    }

    /// Returns the nodes that can be given ranks, and the free slots of each approved job that waits.
    fn floor(&self) -> Floor<'a> {
        let held: BTreeSet<HeldPlace> =
            self.draft.jobs.held().map(|(name, held)| (held.node, name.job, name.slot)).collect();
        let promised = self.promised_nodes();
        let clean = |node: &&NodeCapacity| {
            let reports = self.view.observed.node(&node.id).map(|known| &known.jobs);
            let orphan = |report: &JobSlotReport| {
                report.state != JobSlotState::Ended
                    && !held.contains(&(node.id, report.job.clone(), report.slot))
            };
            let is_free = node.is_alive() && !promised.contains(&node.id);
            is_free && !reports.is_some_and(|reports| reports.iter().any(orphan))
        };
        let nodes = self.capacities().iter().filter(clean).cloned().collect();
        let mut slots = BTreeMap::new();
        for job in self.view.cluster.jobs().jobs().values().filter(|job| !job.state.is_finished()) {
            let name = &job.submission().job;
            let approved = self.view.cluster.circle_state().and_then(|state| state.job(name));
            let count = approved.map_or(0, |approved| approved.manifest.slots);
            let known = self.draft.jobs.slots.get(name);
            let is_free = |slot: &SlotIndex| {
                known.and_then(|slots| slots.get(slot)).is_none_or(|slot| slot.holding.is_none())
            };
            slots.entry(name).or_insert_with(|| (0..count).map(SlotIndex).filter(is_free).collect());
        }
        Floor { nodes, slots, has_meeting_node: has_meeting_node(self.view.cluster) }
    }

    /// Returns the gangs that hold slots. Each slot that ends is a gang of its own, over after its grace.
    fn running_gangs(&self, quotas: &QuotaTree) -> Vec<RunningGang<GangNeed<'a>, Vec<GangPart>>> {
        let (cluster, now) = (self.view.cluster, self.now().0.0);
        let mut gangs: BTreeMap<(JobId, bool, u32), RunningGang<GangNeed<'a>, Vec<GangPart>>> =
            BTreeMap::new();
        for (name, held) in self.draft.jobs.held() {
            let Some(job) = cluster.jobs().jobs().get(&held.id) else { continue };
            let Some(manifest) = cluster.job_manifest(&held.certificate) else { continue };
            let active = held.phase == JobHoldingPhase::Active;
            let run_ms = manifest.run_seconds_max.saturating_add(manifest.grace_seconds).saturating_mul(1000);
            let ends_at = match job.state {
                JobState::Running if active => job.since.0.0.saturating_add(run_ms),
                _ if active => now.saturating_add(run_ms),
                _ => now.saturating_add(manifest.grace_seconds.saturating_mul(1000)),
            };
            let part =
                GangPart { slot: name.slot, node: held.node, ranks: held.ranks, gpus: held.gpus.clone() };
            let key = (held.id, active, if active { 0 } else { name.slot.0 });
            let gang =
                || GangNeed { id: held.id, name: &job.submission().job, manifest, halted: BTreeSet::new() };
            let count = if active { manifest.ranks } else { held.ranks.count };
            let rate = UsageRate::of(&manifest.resources, count);
            let entry = gangs.entry(key);
            let known = entry.or_insert_with(|| RunningGang {
                gang: gang(),
                place: Vec::new(),
                charge: quotas.charge_of_held(manifest.project.as_ref(), &rate),
                priority: job.submission().priority,
                since: held.issued_at.0,
                ends_at,
                grace_ms: active.then(|| manifest.grace_seconds.saturating_mul(1000)),
            });
            known.place.push(part);
        }
        debug_assert!(gangs.values().all(|gang| !gang.place.is_empty()), "a running gang holds slots");
        gangs.into_values().collect()
    }
}

/// Explains which job keeps another from its turn; none if all that it follows have succeeded.
fn followed(cluster: &Cluster, job: Option<&Job>) -> Option<String> {
    let awaits = &job?.awaits;
    let first = awaits.first()?;
    let state = cluster.jobs().jobs().get(first).map(|job| job.state)?;
    let is = match state {
        JobState::Failed => "has failed".to_string(),
        JobState::Cancelled => "was cancelled".to_string(),
        waits => format!("is {}", waits.as_str().replace('_', " ")),
    };
    let others = match awaits.len() - 1 {
        0 => String::new(),
        others => format!(", and {} more", counted(others as u64, "job")),
    };
    let remedy = if state.is_finished() { "; retry that job, or cancel this one" } else { "" };
    Some(format!("it follows job {}, which {is}{others}{remedy}", first.short()))
}

/// Node, job and slot of a held slot.
type HeldPlace = (NodeId, ServiceName, SlotIndex);

/// Returns whether a report is of this slot under exactly this order.
fn is_of(report: &JobSlotReport, name: &JobSlotName) -> bool {
    report.job == name.job && report.slot == name.slot && report.fence == name.fence
}
