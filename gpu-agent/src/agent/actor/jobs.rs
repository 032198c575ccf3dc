//! Slots of jobs in the main loop: the core decides, the book is durable before anything starts, and every
//! slot is reported until control no longer names it.

use super::super::core::{
    GrantedResources, HeldByJobs, JobAction, JobInput, JobSlotEnd, NodeFacts, SlotKey, accepted_report,
    halted_slots, job_key, reconcile_jobs,
};
use super::super::jobs::{JobSlotCommand, JobSlotEnded, SlotSources, spawn};
use super::super::models::ModelSource;
use super::AgentActor;
use protocol::agent::NodeResources;
use protocol::error_code;
use protocol::job_report::{ArtifactSource, JOB_REPORTS_MAX, JobAssignment, JobSlotReport, JobSlotState};
use protocol::{Fence, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::JoinError;

impl AgentActor {
    /// Returns the node's resources that no job holds.
    pub(super) fn left_to_services(&self) -> NodeResources {
        let all = self.node.resources.now(&*self.node.device);
        HeldByJobs::of(self.jobs.book.all_granted()).left_of(&all)
    }

    /// Runs one reconciliation of job slots. Returns true if orders were accepted, so that the next one
    /// prepares their slots.
    pub(super) fn reconcile_jobs_once(&mut self) -> bool {
        if !self.can_judge() {
            return false;
        }
        let now = self.trusted_now();
        let Some(desired) = &self.state.desired else { return false };
        let facts = NodeFacts {
            id: self.node.id(),
            isolation: self.node.launcher.isolation().level,
            resources: self.node.resources.now(&*self.node.device),
            weights: self.weights(),
        };
        let granted = self.book.all_granted().map(|(_, grant)| grant);
        let free = GrantedResources::of(granted, &facts.weights).left_of(&facts.resources);
        let running: BTreeMap<SlotKey, Fence> =
            self.jobs.slots.iter().map(|(key, slot)| (key.clone(), slot.fence)).collect();
        let actions = reconcile_jobs(&JobInput {
            circle: self.chain.state(),
            halts: self.halts.book(),
            facts: &facts,
            free: &free,
            book: &self.jobs.book,
            now,
            assigned: &desired.jobs,
            chain_complete: self.state.chain_complete,
            running: &running,
        });
        let (before, slots) = (self.jobs.book.clone(), self.jobs.slots.len());
        let known = std::mem::take(&mut self.jobs.refused);
        let (mut accepted, mut changed) = (Vec::new(), false);
        for action in actions {
            match action {
                // The next agent accepts and prepares what is still wanted.
                JobAction::Accept { .. } | JobAction::Prepare { .. } | JobAction::Start { .. }
                    if self.drains() => {}
                JobAction::Accept { signed, grant, gang } => {
                    self.jobs.book.accept(&signed.order, *grant, *gang);
                    accepted.push(accepted_report(&signed.order));
                }
                JobAction::Close { key, refusal } => changed |= self.close_job(&key, refusal),
                JobAction::Forget { key } => {
                    self.jobs.book.forget(&key);
                    changed = true;
                }
                other => self.perform_job(other, &known),
            }
        }
        // Ranks that may start already do not wait for the next look at the slots.
        let has_prepared = self.jobs.slots.len() > slots;
        if !changed && accepted.is_empty() {
            return has_prepared;
        }
        if !self.save_jobs() {
            self.jobs.book = before;
            return false;
        }
        for JobSlotReport { job, slot, attempt, fence, .. } in &accepted {
            tracing::info!(%job, %slot, attempt, %fence, "job order accepted");
        }
        has_prepared || !accepted.is_empty()
    }

    fn perform_job(&mut self, action: JobAction, known: &BTreeMap<SlotKey, JobSlotReport>) {
        match action {
            JobAction::Prepare { key } => self.prepare_job(&key),
            JobAction::Start { key } => {
                self.command_job(&key, JobSlotCommand::Start, "control starts the gang")
            }
            JobAction::End { key, reason } => {
                let grace_ms = self.jobs.slots.get(&key).map_or(0, |slot| slot.grace_ms);
                self.command_job(&key, JobSlotCommand::End { grace_ms }, &reason);
            }
            JobAction::Refuse { signed, refusal } => {
                let key = job_key(&signed.order);
                let report = JobSlotReport {
                    state: JobSlotState::Ended,
                    refusal: Some(refusal),
                    ..accepted_report(&signed.order)
                };
                if known.get(&key) != Some(&report) {
                    self.state.counts.orders_refused += 1;
                    tracing::error!(slot = %key, refusal = ?report.refusal, "job order refused");
                    self.node.news.notify_one();
                }
                self.jobs.refused.insert(key, report);
            }
            // These change the book, which the caller persists.
            JobAction::Accept { .. } | JobAction::Close { .. } | JobAction::Forget { .. } => {}
        }
    }

    fn command_job(&self, key: &SlotKey, command: JobSlotCommand, reason: &str) {
        if let Some(slot) = self.jobs.slots.get(key)
            && slot.command(command)
        {
            tracing::info!(slot = %key, fence = %slot.fence, ?command, reason, "command to a job slot");
        }
    }

    /// Starts the task of a slot whose order is held. Nothing starts without the proof in the book.
    fn prepare_job(&mut self, key: &SlotKey) {
        let Some(held) = self.jobs.book.held(key) else { return };
        let (Some(grant), Some(gang)) = (held.grant.clone(), held.gang.clone()) else { return };
        let fence = held.report.fence;
        let of_slot =
            |part: &&JobAssignment| job_key(&part.order.order) == *key && part.order.order.fence == fence;
        let assigned = self.state.desired.as_ref().and_then(|desired| desired.jobs.iter().find(of_slot));
        let location = |source: &ArtifactSource| {
            let ArtifactSource { record, wrap } = source.clone();
            ModelSource { record, wrap }
        };
        let sources = SlotSources {
            artifact: assigned.and_then(|part| part.artifact.as_ref()).map(location),
            inputs: assigned.into_iter().flat_map(|part| &part.inputs).map(location).collect(),
            checkpoint: assigned.and_then(|part| part.checkpoint.clone()),
        };
        let handle = spawn(&mut self.jobs.tasks, self.node.clone(), (grant, gang), &held.report, sources);
        self.jobs.slots.insert(key.clone(), handle);
    }

    fn close_job(&mut self, key: &SlotKey, refusal: Refusal) -> bool {
        let Some(fence) = self.jobs.book.held(key).map(|held| held.report.fence) else { return false };
        let end = JobSlotEnd { ends: Vec::new(), refusal: Some(refusal), cpu_micros: 0 };
        self.jobs.book.end(key, fence, end)
    }

    /// Writes the job book. Returns whether it is durable.
    fn save_jobs(&mut self) -> bool {
        // A book that contradicts itself must not become durable: the process ends, and starts from the last.
        assert_eq!(self.jobs.book.check_invariants(), Ok(()), "the job book");
        let Err(error) = self.jobs.file.save(&self.jobs.book) else { return true };
        let path = self.jobs.file.path().display();
        let trouble = format!("{}: write {path}: {error}", error_code::AGENT_STATE_UNUSABLE);
        self.log_throttled("disk", &trouble);
        false
    }

    pub(super) fn job_slot_ended(&mut self, ended: Result<JobSlotEnded, JoinError>) {
        let JobSlotEnded { key, fence, end } = match ended {
            Ok(ended) => ended,
            // A broken invariant. Known state is on disk, and the process supervisor restarts the agent.
            Err(error) => panic!("a job slot's task broke: {error}"),
        };
        if self.jobs.slots.get(&key).is_some_and(|slot| slot.fence == fence) {
            self.jobs.slots.remove(&key);
        }
        if self.jobs.book.end(&key, fence, end) {
            // An end that is not durable is reported all the same; only a restarted agent calls it lost.
            self.save_jobs();
        }
        self.reconcile();
        self.node.news.notify_one();
    }

    /// Kills the job slots that a halt covers, whether control answers or not.
    pub(in crate::agent) fn kill_halted_jobs(&self) {
        let slots: Vec<&SlotKey> = self.jobs.slots.keys().collect();
        for (key, refusal) in halted_slots(self.halts.book(), self.chain.state(), self.node.id(), slots) {
            self.command_job(&key, JobSlotCommand::Kill, &refusal.message);
        }
    }

    /// Ends every job slot with the grace of its envelope.
    pub(super) fn end_jobs(&self) {
        for slot in self.jobs.slots.values() {
            slot.command(JobSlotCommand::End { grace_ms: slot.grace_ms });
        }
    }

    /// Ends every job slot with at most this grace. The ends are not recorded: the next agent reports the
    /// slots as lost, so that control places their gangs again.
    pub(super) fn quit_jobs(&self, grace_ms: u64) {
        for slot in self.jobs.slots.values() {
            slot.command(JobSlotCommand::End { grace_ms: slot.grace_ms.min(grace_ms) });
        }
    }

    /// Returns a report of every job slot that is held or refused, and of every order that may yet start.
    pub(super) fn job_reports(&self) -> Vec<JobSlotReport> {
        let mut reports = Vec::new();
        for (key, held) in self.jobs.book.all_held() {
            let mut report = held.report.clone();
            if let Some(slot) = self.jobs.slots.get(key).filter(|slot| slot.fence == report.fence) {
                let status = slot.status();
                (report.state, report.cpu_micros) = (status.state, status.cpu_micros);
            }
            reports.push(report);
        }
        reports.extend(self.jobs.refused.values().cloned());
        let known: BTreeSet<(SlotKey, Fence)> = reports.iter().map(key_of).collect();
        let assigned = self.state.desired.iter().flat_map(|desired| &desired.jobs);
        for part in assigned {
            let report = accepted_report(&part.order.order);
            let (key, fence) = key_of(&report);
            let is_new = self.jobs.book.last_fence(&key).is_none_or(|last| last < fence);
            if is_new && !known.contains(&(key, fence)) {
                reports.push(report);
            }
        }
        reports.truncate(JOB_REPORTS_MAX);
        reports
    }
}

fn key_of(report: &JobSlotReport) -> (SlotKey, Fence) {
    (SlotKey { service: report.job.clone(), slot: report.slot }, report.fence)
}
