//! Steps of a plan that concern jobs: gangs start whole, run, end, and give their slots back.

use crate::allocation::{GPU_PERCENT_MAX, allocated_gpus, gpu_demand};
use crate::clock::ClusterTime;
use crate::cluster::Holding;
use crate::command::{GangPlan, GangSlotPlan, Refusal};
use crate::draft::{Draft, Effect, effect, stale};
use crate::jobs::{EndCause, Job, JobHolding, JobHoldingPhase, JobSlotName, JobState, subject_of};
use crate::project_fit::check_quota;
use human_chain::{ApprovedJob, placement_allows};
use protocol::governance::NodeRole;
use protocol::job::SlotRanks;
use protocol::job_report::RankEnd;
use protocol::manifest::JobManifest;
use protocol::{JobId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

impl Draft<'_> {
    /// Orders every slot of a gang, or none.
    pub(crate) fn start_gang(&mut self, plan: &GangPlan) -> Result<Effect, Refusal> {
        let (job, approved) = self.startable(plan)?;
        let (name, certificate) = (job.submission().job.clone(), approved.certificate);
        check_ranks(&approved.manifest, plan)?;
        self.check_gang_slots(&name, approved, plan)?;
        self.check_gang_gpus(&approved.manifest, plan)?;
        let (now, nodes) = (self.now, plan.slots.len());
        for part in &plan.slots {
            let slot = self.jobs.slots.entry(name.clone()).or_default().entry(part.slot).or_default();
            slot.fence = part.fence;
            slot.holding = Some(JobHolding {
                id: plan.id,
                attempt: plan.attempt,
                certificate,
                node: part.node,
                ranks: part.ranks,
                gpus: part.gpus.clone(),
                issued_at: now.0,
                phase: JobHoldingPhase::Active,
            });
        }
        self.jobs.advance(plan.id, JobState::Starting, now);
        debug_assert_eq!(self.jobs.gang(plan.id).count(), nodes, "the gang holds its slots and no others");
        let detail = format!("attempt {} of {name} on {nodes} nodes", plan.attempt);
        Ok(effect("start-job", subject_of(plan.id), detail))
    }

    /// Returns a job whose next attempt may begin now, with its approval in force.
    fn startable(&self, plan: &GangPlan) -> Result<(&Job, &ApprovedJob), Refusal> {
        let job = self.jobs.jobs.get(&plan.id).ok_or_else(|| stale("no such job"))?;
        let waits = match job.state {
            JobState::Queued => true,
            JobState::BackingOff { until } => until <= self.now,
            _ => false,
        };
        let submission = job.submission();
        if !waits || job.attempts.checked_add(1) != Some(plan.attempt) {
            return Err(stale(format!("{} does not wait for this attempt", subject_of(plan.id))));
        }
        if !job.awaits.is_empty() {
            return Err(stale(format!("{} follows jobs that have not succeeded", subject_of(plan.id))));
        }
        if submission.deadline <= self.now.0 {
            return Err(stale(format!("the deadline of {} has passed", subject_of(plan.id))));
        }
        let state = self.cluster.circle_state().ok_or_else(|| stale("there is no circle yet"))?;
        let approved = state.job(&submission.job).filter(|job| job.certificate == submission.certificate);
        let approved = approved.ok_or_else(|| stale("the approval of the job is not in force"))?;
        if approved.manifest.valid_until.is_some_and(|until| until <= self.now.0) {
            return Err(stale("the approval of the job has ended"));
        }
        self.spending().check_gang(&submission.job, &approved.manifest).map_err(stale)?;
        check_quota(self.cluster, &self.jobs, &approved.manifest)?;
        Ok((job, approved))
    }

    /// Checks that each slot is free, of the envelope and under its next fence, and each node admitted.
    fn check_gang_slots(
        &self,
        name: &protocol::ServiceName,
        approved: &ApprovedJob,
        plan: &GangPlan,
    ) -> Result<(), Refusal> {
        let (mut slots, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for part in &plan.slots {
            let known = self.jobs.slots.get(name).and_then(|slots| slots.get(&part.slot));
            let is_free = known.is_none_or(|slot| slot.holding.is_none());
            let fence = known.map(|slot| slot.fence).unwrap_or_default().next(approved.version);
            if !is_free || fence != Some(part.fence) || part.slot.0 >= approved.manifest.slots {
                return Err(stale(format!("slot {name}/{} cannot be ordered so", part.slot)));
            }
            let node = self.cluster.node(&part.node).ok_or_else(|| stale("a node is not admitted"))?;
            let allowed = placement_allows(&approved.manifest.placement, node);
            if !node.roles.contains(&NodeRole::Worker) || !allowed {
                return Err(stale(format!("the envelope excludes node {}", node.name)));
            }
            if !slots.insert(part.slot) || !nodes.insert(part.node) {
                return Err(stale("a gang holds each slot and each node once"));
            }
        }
        Ok(())
    }

    /// Checks that the gang has the GPUs that its manifest grants, and none that other orders hold.
    fn check_gang_gpus(&self, manifest: &JobManifest, plan: &GangPlan) -> Result<(), Refusal> {
        let (count, percent) = gpu_demand(&manifest.resources);
        let on_node = |holding: &Holding| plan.slots.iter().any(|part| part.node == holding.order.node);
        let mut allocated = allocated_gpus(&self.services, &self.cluster.manifests, on_node);
        for (gpu, percent) in self.jobs.allocated_gpus(self.cluster) {
            let sum = allocated.entry(gpu).or_default();
            *sum = sum.saturating_add(percent);
        }
        for part in &plan.slots {
            if count.checked_mul(part.ranks.count as usize) != Some(part.gpus.len()) {
                return Err(stale("a slot has other GPUs than its ranks need"));
            }
            take_gpus(&mut allocated, part, percent)?;
        }
        Ok(())
    }

    /// Lets the ranks of a gang start.
    pub(crate) fn run_gang(&mut self, id: JobId, attempt: u32) -> Result<Effect, Refusal> {
        let job = self.attempt(id, attempt)?;
        if job.state != JobState::Starting {
            return Err(stale(format!("{} has started already", subject_of(id))));
        }
        debug_assert!(self.jobs.gang(id).next().is_some(), "an attempt holds slots");
        self.jobs.advance(id, JobState::Running, self.now);
        Ok(effect("run-job", subject_of(id), format!("every slot of attempt {attempt} is ready")))
    }

    /// Ends an attempt.
    pub(crate) fn end_gang(
        &mut self,
        id: JobId,
        attempt: u32,
        cause: &EndCause,
        ends: &[RankEnd],
    ) -> Result<Effect, Refusal> {
        let job = self.attempt(id, attempt)?;
        let retries = self.retries_of(job);
        let at = (self.now, self.cluster.generation + 1);
        self.jobs.end(id, cause.clone(), ends.to_vec(), retries, at);
        Ok(effect("end-job", subject_of(id), format!("attempt {attempt}: {cause}")))
    }

    /// Frees a slot that its node no longer runs.
    pub(crate) fn release_gang(&mut self, name: &JobSlotName) -> Result<Effect, Refusal> {
        let slot = self.jobs.slots.get_mut(&name.job).and_then(|slots| slots.get_mut(&name.slot));
        let slot = slot.filter(|slot| slot.fence == name.fence);
        let label = format!("{}/{}", name.job, name.slot);
        let missing = || stale(format!("slot {label} does not end under fence {}", name.fence));
        let slot = slot.ok_or_else(missing)?;
        let ends = slot.holding.as_ref().filter(|held| matches!(held.phase, JobHoldingPhase::Ending { .. }));
        let node = ends.map(|held| held.node).ok_or_else(missing)?;
        slot.holding = None;
        debug_assert!(slot.fence == name.fence, "the next order has a higher fence");
        Ok(effect("release", label, format!("was on {}", self.cluster.node_name(&node))))
    }

    /// Frees the slots of a node whose lease has ended, and ends the attempts that ran there. Ranks that the
    /// node still runs are under a lower fence, and count for nothing.
    pub(crate) fn lapse_gangs(&mut self, node: NodeId, silent_ms: u64) -> Vec<String> {
        self.end_meters(node, silent_ms);
        let held = self.jobs.held().filter(|(_, held)| held.node == node);
        let lost: Vec<(JobSlotName, JobId, bool)> =
            held.map(|(name, held)| (name, held.id, held.phase == JobHoldingPhase::Active)).collect();
        let mut freed = Vec::new();
        for (name, id, was_active) in lost {
            if let Some(slot) = self.jobs.slots.get_mut(&name.job).and_then(|slots| slots.get_mut(&name.slot))
            {
                slot.holding = None;
            }
            freed.push(format!("{}/{}", name.job, name.slot));
            let job = self.jobs.jobs.get(&id).filter(|job| was_active && job.state.is_placed());
            if let Some(job) = job {
                let retries = self.retries_of(job);
                let at = (self.now, self.cluster.generation + 1);
                let detail =
                    format!("attempt {}: node {} was lost", job.attempts, self.cluster.node_name(&node));
                self.lost_attempts.push(effect("end-job", subject_of(id), detail));
                self.jobs.end(id, EndCause::NodeLost(node), Vec::new(), retries, at);
            }
        }
        debug_assert!(self.jobs.held().all(|(_, held)| held.node != node), "a lapse frees each slot");
        freed
    }

    /// Bills the slots of a silent node until their autonomy ended, at most.
    fn end_meters(&mut self, node: NodeId, silent_ms: u64) {
        let silent_since = ClusterTime(protocol::Millis(self.now.0.0.saturating_sub(silent_ms)));
        for (name, held) in self.jobs.held().filter(|(_, held)| held.node == node) {
            let manifest = self.cluster.job_manifest(&held.certificate);
            let autonomy_ms = manifest.map_or(0, |manifest| manifest.autonomy_seconds.saturating_mul(1000));
            self.meters.end(name.meter(), silent_since.plus(autonomy_ms), self.now);
        }
    }

    /// Returns a job under its present attempt.
    fn attempt(&self, id: JobId, attempt: u32) -> Result<&Job, Refusal> {
        let job = self.jobs.jobs.get(&id);
        let job = job.filter(|job| job.attempts == attempt && job.state.is_placed());
        job.ok_or_else(|| stale(format!("{} is not in attempt {attempt}", subject_of(id))))
    }

    /// Returns the number of retries that the approval in force grants a job; none if its own approval is not
    /// in force any more.
    fn retries_of(&self, job: &Job) -> Option<u32> {
        let submission = job.submission();
        let approved = self.cluster.circle_state()?.job(&submission.job)?;
        (approved.certificate == submission.certificate).then_some(approved.manifest.retries)
    }
}

/// Takes the GPUs of a slot, if each is free and named once by a rank that takes whole ones.
fn take_gpus(
    allocated: &mut BTreeMap<(NodeId, u32), u32>,
    part: &GangSlotPlan,
    percent: u32,
) -> Result<(), Refusal> {
    debug_assert!((1..=GPU_PERCENT_MAX).contains(&percent) || part.gpus.is_empty(), "a share of a GPU");
    for gpu in &part.gpus {
        let sum = allocated.entry((part.node, gpu.index)).or_default();
        *sum = sum.saturating_add(percent);
        if *sum > GPU_PERCENT_MAX {
            return Err(stale(format!("GPU {} is allocated", gpu.index)));
        }
    }
    Ok(())
}

/// Checks that the slots hold every rank once, in order, and none more than the manifest grants.
fn check_ranks(manifest: &JobManifest, plan: &GangPlan) -> Result<(), Refusal> {
    let mut next = 0_u32;
    for SlotRanks { first, count } in plan.slots.iter().map(|part| part.ranks) {
        if first != next || !(1..=manifest.ranks_per_slot).contains(&count) {
            return Err(stale("the slots do not hold the ranks of the gang in order"));
        }
        next = first.saturating_add(count);
    }
    debug_assert!(next >= plan.slots.len() as u32, "each slot holds a rank");
    if next != manifest.ranks {
        return Err(stale(format!("{next} of {} ranks are placed; a gang starts whole", manifest.ranks)));
    }
    Ok(())
}
