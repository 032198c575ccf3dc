//! Leader's view of the nodes: their leases, their last reports, and the halts that bind them. It is not
//! replicated, and not trusted after a change of leader.
//!
//! The leases rest on four rules that the shell must keep:
//! 1. A new leader answers no agent before its own [`Action::Lead`](crate::Action::Lead) of this term is
//!    applied. It creates its `Observed` with its own clock's time after that.
//! 2. It answers a request for a lease only after a read barrier that began after the request arrived. An
//!    agent counts its lease from when it *sent* the request, so no lease of an earlier leader outlives the
//!    new leader's first [`LEASE_MS`].
//! 3. Its `now` never jumps ahead of real time: a wall clock set forward would end every lease here while
//!    nodes still rely on theirs. Read a wall clock once and advance it with a monotonic one.
//! 4. It calls [`Observed::begin_eviction`] before it proposes a plan. A node whose lapse is in progress gets
//!    no answer until the plan is decided ([`Observed::record_heartbeat`] reports this). Otherwise a late
//!    renewal would cross the lapse in the log and two nodes would hold one slot.

use crate::clock::LeaderTime;
use crate::command::{SlotName, Step};
use crate::limits::{COUNTED_SLOTS_MAX, RELEASES_REMEMBERED_MAX};
use crate::plan::Plan;
use protocol::agent::{NodeResources, SlotReport, SlotState, SyncRequest};
use protocol::halt::Halt;
use protocol::job_report::{JOB_REPORTS_MAX, JobSlotReport, JobSlotState};
use protocol::limits::LEASE_MS;
use protocol::manifest::Isolation;
use protocol::slot_usage::{SLOT_USAGES_MAX, SignedSlotUsage};
use protocol::{Fence, NodeId, ServiceName, SlotIndex};
use std::collections::{BTreeMap, VecDeque};

/// The leader's knowledge of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    leader_since: LeaderTime,
    nodes: BTreeMap<NodeId, ObservedNode>,
    /// Orders that each node reported as released, oldest first. A node reports a release until one request
    /// is answered, which may be before the next plan.
    released: BTreeMap<NodeId, VecDeque<SlotName>>,
    /// Nodes named in a lapse in progress, with the generation in which it was planned.
    evicting: BTreeMap<NodeId, u64>,
    /// Slots that answer, by node: the order, the restarts of its worker, and the time since which it
    /// answers.
    answering: BTreeMap<NodeId, BTreeMap<(ServiceName, SlotIndex), Answering>>,
    /// Counts that each node stated of its slots, under the latest fence of each.
    usage: BTreeMap<NodeId, BTreeMap<(ServiceName, SlotIndex), SignedSlotUsage>>,
    /// Halts in force, as far as this leader knows. Nodes judge for themselves; a plan only wastes no order.
    halts: Vec<Halt>,
}

/// A slot that answers requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answering {
    fence: Fence,
    restarts: u32,
    since: LeaderTime,
}

/// The last report of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
    /// Time of the report, by the leader's clock.
    pub heartbeat_at: LeaderTime,
    /// Time since which its lease has never ended.
    pub alive_since: LeaderTime,
    /// Cluster generation at the report; the node was answered from that state or a later one.
    pub generation: u64,
    /// Incarnation of its agent.
    pub boot: u64,
    /// Version of its software.
    pub version: String,
    /// Resources that it offers.
    pub resources: NodeResources,
    /// Isolation that it provides.
    pub isolation: Isolation,
    /// Labels of the limits that it cannot enforce.
    pub not_enforced: Vec<String>,
    pub slots: Vec<SlotReport>,
    /// Slots of gangs, as it reports them.
    pub jobs: Vec<JobSlotReport>,
    /// Time of the first report of an end in each of these slots.
    ended: BTreeMap<(ServiceName, SlotIndex, Fence), LeaderTime>,
}

/// The state of a node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// The node reported within the last lease period.
    Alive,
    /// The node has not reported to this leader; an earlier leader's lease may hold until then.
    Unknown {
        /// End of the last possible lease.
        until: LeaderTime,
    },
    /// The node's last possible lease has ended.
    Dead {
        /// Last time at which it could have renewed.
        silent_since: LeaderTime,
    },
}

/// Error for a node whose lapse is being decided: it gets no lease now, and asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this node has expired and its slots are being evicted; retry")]
pub struct EvictionInProgress;

/// Returns the time of the first report of an end in each slot of a gang; those known before keep theirs.
fn first_ends(
    known: Option<&ObservedNode>,
    reports: &[JobSlotReport],
    now: LeaderTime,
) -> BTreeMap<(ServiceName, SlotIndex, Fence), LeaderTime> {
    let ended = reports.iter().filter(|report| !report.ends.is_empty());
    let first = |report: &JobSlotReport| {
        let name = (report.job.clone(), report.slot, report.fence);
        let before = known.and_then(|known| known.ended.get(&name)).copied();
        (name, before.unwrap_or(now))
    };
    ended.map(first).collect()
}

/// Returns whether reports name the same slots in the same states as those before.
fn tells_the_same(known: &ObservedNode, slots: &[SlotReport], jobs: &[JobSlotReport]) -> bool {
    let of_slot = |one: &SlotReport| (one.service.clone(), one.slot, one.fence, one.state, one.restarts);
    let of_job = |one: &JobSlotReport| (one.job.clone(), one.slot, one.fence, one.state, one.ends.len());
    known.slots.iter().map(of_slot).eq(slots.iter().map(of_slot))
        && known.jobs.iter().map(of_job).eq(jobs.iter().map(of_job))
}

impl ObservedNode {
    /// Returns the time of the first report of an end in a slot of a gang.
    pub(crate) fn ended_since(&self, job: &ServiceName, slot: SlotIndex, fence: Fence) -> Option<LeaderTime> {
        self.ended.get(&(job.clone(), slot, fence)).copied()
    }
}

impl Observed {
    /// Creates the view of a leader that has received no report yet. `leader_since` is its own clock's time
    /// after its [`Action::Lead`](crate::Action::Lead) was applied. Every later `now` is by the same clock.
    #[must_use]
    pub fn new(leader_since: LeaderTime) -> Self {
        Self {
            leader_since,
            nodes: BTreeMap::new(),
            released: BTreeMap::new(),
            evicting: BTreeMap::new(),
            answering: BTreeMap::new(),
            usage: BTreeMap::new(),
            halts: Vec::new(),
        }
    }

    /// Returns the time at which this leader began.
    #[must_use]
    pub fn leader_since(&self) -> LeaderTime {
        self.leader_since
    }

    /// Records a node's request, received at `now`; the node may then be answered. `generation` is that of
    /// the cluster state from which the answer is made. Returns whether a slot is in another state than in
    /// the report before: a plan may have steps for it.
    ///
    /// # Errors
    /// The node's lapse is in progress: it must get no answer.
    pub fn record_heartbeat(
        &mut self,
        node: NodeId,
        request: &SyncRequest,
        generation: u64,
        now: LeaderTime,
    ) -> Result<bool, EvictionInProgress> {
        if self.evicting.get(&node).is_some_and(|planned| generation <= *planned) {
            return Err(EvictionInProgress);
        }
        self.evicting.remove(&node);
        self.remember_releases(node, &request.slots);
        self.note_usage(node, &request.usage);
        // If the clock falls behind, a granted lease counts from the latest time seen.
        let known = self.nodes.get(&node);
        let heartbeat_at = now.max(known.map_or(self.leader_since, |known| known.heartbeat_at));
        let unbroken = known.filter(|known| known.heartbeat_at.plus(LEASE_MS) > heartbeat_at);
        let alive_since = unbroken.map_or(heartbeat_at, |known| known.alive_since);
        debug_assert!(heartbeat_at >= self.leader_since, "no report is older than the leadership");
        debug_assert!(alive_since <= heartbeat_at, "a lease begins before it is renewed");
        let jobs: Vec<JobSlotReport> = request.jobs.iter().take(JOB_REPORTS_MAX).cloned().collect();
        let ended = first_ends(known, &jobs, heartbeat_at);
        let is_news = known.is_none_or(|known| !tells_the_same(known, &request.slots, &jobs));
        self.note_answering(node, &request.slots, alive_since, heartbeat_at);
        self.nodes.insert(
            node,
            ObservedNode {
                heartbeat_at,
                alive_since,
                generation,
                boot: request.boot,
                version: request.version.clone(),
                resources: request.resources.clone(),
                isolation: request.isolation,
                not_enforced: request.not_enforced.clone(),
                slots: request.slots.clone(),
                jobs,
                ended,
            },
        );
        Ok(is_news)
    }

    /// Keeps the counts that a node states of its own slots.
    fn note_usage(&mut self, node: NodeId, stated: &[SignedSlotUsage]) {
        let known = self.usage.entry(node).or_default();
        for signed in stated.iter().take(SLOT_USAGES_MAX).filter(|signed| signed.usage.node == node) {
            let name = (signed.usage.envelope.clone(), signed.usage.slot);
            let is_late = known.get(&name).is_some_and(|before| before.usage.fence > signed.usage.fence);
            if !is_late && (known.len() < COUNTED_SLOTS_MAX || known.contains_key(&name)) {
                known.insert(name, signed.clone());
            }
        }
    }

    /// Returns the counts that a node stated last of a slot.
    pub(crate) fn usage(
        &self,
        node: &NodeId,
        envelope: &ServiceName,
        slot: SlotIndex,
    ) -> Option<&SignedSlotUsage> {
        self.usage.get(node)?.get(&(envelope.clone(), slot))
    }

    /// Returns whether a node reported that a slot has ended under this fence.
    pub(crate) fn has_ended(
        &self,
        node: &NodeId,
        envelope: &ServiceName,
        slot: SlotIndex,
        fence: Fence,
    ) -> bool {
        let Some(known) = self.nodes.get(node) else { return false };
        let service = known.slots.iter().any(|report| {
            let is_of = (&report.service, report.slot, report.fence) == (envelope, slot, fence);
            is_of && report.state == SlotState::Released
        });
        service
            || known.jobs.iter().any(|report| {
                let is_of = (&report.job, report.slot, report.fence) == (envelope, slot, fence);
                is_of && report.state == JobSlotState::Ended
            })
    }

    /// Keeps the times since which slots answer. One that did not answer in the last report, or under another
    /// order, or whose node was silent or whose worker ended in between, begins again.
    fn note_answering(
        &mut self,
        node: NodeId,
        reports: &[SlotReport],
        alive_since: LeaderTime,
        now: LeaderTime,
    ) {
        debug_assert!(alive_since <= now, "a lease begins before it is renewed");
        let before = self.answering.remove(&node).unwrap_or_default();
        let since = |report: &SlotReport| {
            let known = before.get(&(report.service.clone(), report.slot));
            let same = known.filter(|known| {
                let is_same = known.fence == report.fence && known.restarts == report.restarts;
                is_same && known.since >= alive_since
            });
            same.map_or(now, |known| known.since)
        };
        let ready = reports.iter().filter(|report| report.state == SlotState::Ready);
        let answering = ready.map(|report| {
            let (fence, restarts, since) = (report.fence, report.restarts, since(report));
            ((report.service.clone(), report.slot), Answering { fence, restarts, since })
        });
        self.answering.insert(node, answering.collect());
    }

    /// Returns the time since which a node's slot answers requests under exactly this order.
    pub(crate) fn answering_since(
        &self,
        node: &NodeId,
        service: &ServiceName,
        slot: SlotIndex,
        fence: Fence,
    ) -> Option<LeaderTime> {
        let known = self.answering.get(node)?.get(&(service.clone(), slot))?;
        (known.fence == fence).then_some(known.since)
    }

    fn remember_releases(&mut self, node: NodeId, reports: &[SlotReport]) {
        for report in reports.iter().filter(|report| report.state == SlotState::Released) {
            let known = self.released.entry(node).or_default();
            let name = SlotName { service: report.service.clone(), slot: report.slot, fence: report.fence };
            if known.contains(&name) {
                continue;
            }
            if known.len() >= RELEASES_REMEMBERED_MAX {
                known.pop_front();
            }
            known.push_back(name);
            debug_assert!(known.len() <= RELEASES_REMEMBERED_MAX, "a node has its share");
        }
    }

    /// Returns whether a node reported that it released a slot under this order or a later one. It never runs
    /// this order again.
    #[must_use]
    pub(crate) fn has_released(&self, node: &NodeId, order: &SlotName) -> bool {
        let is_over = |released: &SlotName| {
            let is_of_slot = released.service == order.service && released.slot == order.slot;
            is_of_slot && released.fence >= order.fence
        };
        self.released.get(node).is_some_and(|known| known.iter().any(is_over))
    }

    /// Records the nodes from which a plan takes slots, before the plan is proposed. They get no lease until
    /// the cluster's generation shows that the plan was executed or is stale.
    pub fn begin_eviction(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if let Step::Lapse { node, .. } = step {
                let before = self.evicting.insert(*node, plan.parent_generation);
                debug_assert!(before <= Some(plan.parent_generation), "plans follow each other");
            }
        }
    }

    /// Records the halts in force. Nothing that they cover is ordered from now on.
    pub fn note_halts(&mut self, halts: Vec<Halt>) {
        debug_assert!(halts.windows(2).all(|pair| pair[0].circle == pair[1].circle), "of one circle");
        self.halts = halts;
    }

    /// Returns the halts in force.
    #[must_use]
    pub fn halts(&self) -> &[Halt] {
        &self.halts
    }

    /// Returns a node's last report to this leader.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<&ObservedNode> {
        self.nodes.get(node)
    }

    /// Returns the state of a node's lease.
    #[must_use]
    pub fn liveness(&self, node: &NodeId, now: LeaderTime) -> Liveness {
        let heard = self.nodes.get(node).map(|known| known.heartbeat_at);
        let silent_since = heard.map_or(self.leader_since, |at| at.max(self.leader_since));
        let until = silent_since.plus(LEASE_MS);
        match heard {
            Some(at) if at.plus(LEASE_MS) > now => Liveness::Alive,
            _ if until > now => Liveness::Unknown { until },
            _ => Liveness::Dead { silent_since },
        }
    }

    /// Returns whether a node's lease certainly holds, so that it can be given work.
    #[must_use]
    pub fn is_alive(&self, node: &NodeId, now: LeaderTime) -> bool {
        self.liveness(node, now) == Liveness::Alive
    }

    /// Returns a node's last report on a slot under exactly this order.
    #[must_use]
    pub fn report(
        &self,
        node: &NodeId,
        service: &ServiceName,
        slot: SlotIndex,
        fence: Fence,
    ) -> Option<&SlotReport> {
        let known = self.nodes.get(node)?;
        known.slots.iter().find(|r| r.service == *service && r.slot == slot && r.fence == fence)
    }
}
