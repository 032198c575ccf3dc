//! Services and jobs of a circle: approved, and retired. Both share one space of names and one subject each,
//! so that a name stands for one workload at a time, and its versions never restart.

use super::{ApprovedService, CircleState, EarlierApproval, RetiredService};
use crate::subject::{manifest_value, service_subject};
use protocol::manifest::{JobManifest, Manifest, ModelChoice};
use protocol::{Digest, ModelRoot, ProposalId, ServiceName};
use serde::{Deserialize, Serialize};

/// Job that is approved: submissions to it may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovedJob {
    /// Approved manifest: the envelope.
    pub manifest: JobManifest,
    /// Digest of the certificate that approves it; submissions and orders name this digest.
    pub certificate: Digest,
    pub proposal: ProposalId,
    /// Number of approved changes to the job.
    pub version: u64,
}

/// Job that was retired by approval: no submission to it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredJob {
    /// Job as it was before retirement.
    pub last: ApprovedJob,
    pub certificate: Digest,
    /// Time in seconds that running ranks have to end.
    pub grace_seconds: u32,
    /// Number of approved changes to the job, including the retirement.
    pub version: u64,
}

/// Returns the models and datasets that a job reads.
pub(crate) fn inputs(job: &JobManifest) -> impl Iterator<Item = &ModelChoice> {
    job.models.iter().chain(&job.datasets)
}

impl CircleState {
    pub(super) fn apply_deploy(&mut self, manifest: Manifest, certificate: Digest, proposal: ProposalId) {
        let name = manifest.name().clone();
        let version = self.bump(service_subject(&name), Some(manifest_value(&manifest)));
        let retired = self.retired.remove(&name).map(|retired| retired.version);
        let retired = retired.or(self.retired_jobs.remove(&name).map(|retired| retired.version));
        match manifest {
            Manifest::Service(manifest) => {
                let earlier = self.services.get(&name).map(|service| service.version).or(retired);
                debug_assert_eq!(earlier.unwrap_or(0) + 1, version, "versions of `{name}` never restart");
                self.bind(&manifest.model);
                // The proposal named the version and value of what is in force; nothing changed since.
                let known = self.services.get(&name).filter(|_| manifest.may_return());
                let before = known.map(|known| EarlierApproval {
                    manifest: known.manifest.clone(),
                    certificate: known.certificate,
                    proposal: known.proposal,
                });
                let service = ApprovedService { manifest, certificate, proposal, version, before };
                self.services.insert(name, service);
            }
            Manifest::Job(manifest) => {
                let earlier = self.jobs.get(&name).map(|job| job.version).or(retired);
                debug_assert_eq!(earlier.unwrap_or(0) + 1, version, "versions of `{name}` never restart");
                inputs(&manifest).for_each(|input| self.bind(input));
                self.jobs.insert(name, ApprovedJob { manifest, certificate, proposal, version });
            }
            Manifest::Edge(_) => unreachable!("verification refuses other kinds"),
        }
    }

    pub(super) fn apply_retire(&mut self, name: ServiceName, grace_seconds: u32, certificate: Digest) {
        let version = self.bump(service_subject(&name), None);
        if let Some(last) = self.jobs.remove(&name) {
            debug_assert_eq!(version, last.version + 1, "nothing happened to `{name}` since it was in force");
            self.retired_jobs.insert(name, RetiredJob { last, certificate, grace_seconds, version });
            return;
        }
        let last = self.services.remove(&name).expect("verification refuses what does not run");
        debug_assert_eq!(version, last.version + 1, "nothing happened to `{name}` since it was in force");
        self.retired.insert(name, RetiredService { last, certificate, grace_seconds, version });
    }

    /// Binds a model's name to the root that members approved with it.
    fn bind(&mut self, model: &ModelChoice) {
        let bound: ModelRoot = *self.models.entry(model.name.clone()).or_insert(model.root);
        debug_assert_eq!(bound, model.root, "a name stands for one root for ever");
    }

    /// Returns the jobs that are approved, sorted by name.
    pub fn jobs(&self) -> impl Iterator<Item = &ApprovedJob> {
        self.jobs.values()
    }

    /// Returns the approved job with this name.
    #[must_use]
    pub fn job(&self, name: &ServiceName) -> Option<&ApprovedJob> {
        self.jobs.get(name)
    }

    /// Returns the manifest in force under this name, of a service or a job.
    #[must_use]
    pub fn manifest(&self, name: &ServiceName) -> Option<Manifest> {
        let service = |service: &ApprovedService| Manifest::Service(service.manifest.clone());
        let job = |job: &ApprovedJob| Manifest::Job(job.manifest.clone());
        self.services.get(name).map(service).or_else(|| self.jobs.get(name).map(job))
    }

    /// Returns whether a job of this name was retired and not deployed again.
    pub(crate) fn is_retired_job(&self, name: &ServiceName) -> bool {
        self.retired_jobs.contains_key(name)
    }

    /// Returns the approved job that reads a stored model or dataset of this root, or runs the artifact of
    /// this name.
    pub(crate) fn job_that_uses(&self, model: &ModelChoice) -> Option<&ApprovedJob> {
        let runs = |job: &JobManifest| job.artifact.as_ref().is_some_and(|used| used.name == model.name);
        let reads = |job: &JobManifest| inputs(job).any(|input| input.root == model.root);
        self.jobs.values().find(|job| runs(&job.manifest) || reads(&job.manifest))
    }
}
