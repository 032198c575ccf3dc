//! Invariants of a circle's state: what holds after every step, stated from the state alone, without the
//! history that led to it.
//!
//! Tests and fuzz targets run the check after every step. A violation is a defect of this crate, never of
//! its input.

use super::passkeys::check_list;
use super::{ApprovedService, CircleAccess, CircleState, FIRST_EPOCH, inputs};
use crate::access::check_envelope;
use crate::change::check_prices;
use crate::change::{GRACE_SECONDS_MAX, MODEL_GRACE_SECONDS_MAX};
use crate::projects::check_projects;
use crate::subject::{
    ACCESS_SUBJECT, CIRCLE_SUBJECT, HALTS_SUBJECT, PRICES_SUBJECT, PROJECTS_SUBJECT, access_value,
    circle_value, lifted_value, manifest_value, member_subject, model_subject, model_value, node_subject,
    node_value, passkeys_subject, passkeys_value, prices_value, projects_value, service_subject,
    suspension_value,
};
use crate::{carries, describe, form};
use protocol::governance::{Member, SubjectVersion};
use protocol::manifest::Manifest;
use protocol::project::ProjectTree;
use protocol::usage::Prices;
use protocol::{Digest, MemberId, limits};
use std::collections::BTreeSet;

/// Returns an error with a formatted text unless the condition holds.
macro_rules! require {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

impl CircleState {
    /// Checks the invariants of the state:
    ///
    /// - members, policy, nodes, control replicas and the bounds of access have the form that a genesis must
    ///   have;
    /// - all members that are not suspended reach the quorum of every class together;
    /// - no former member is a member again, and no former key of one is in use;
    /// - the former signing keys of a member were given up;
    /// - the epoch is the version of the circle, and no two parties of it share a key;
    /// - each key of a node leads to it, and no other key leads to a node;
    /// - each subject's version and value are those of the service, node, model or circle in force;
    /// - a service or job is in force or retired, never both, each by a certificate and under a name of its
    ///   own;
    /// - an approval to which a service may return is of that service, and the manifest in force says so;
    /// - passkeys are members', each of one member and of no key that was given up, with counters of no
    ///   others;
    /// - a model is forgotten once, and no service or job in force names a forgotten one;
    /// - a lifted halt is of this circle and known by its own id;
    /// - the name of a service's model, and of a job's input, stands for the root that it runs;
    /// - prices are within their bounds, and 0 before the first vote;
    /// - projects are a tree within its bounds, and none before the first vote;
    /// - versions add up to the number of certificates applied.
    ///
    /// # Errors
    /// Returns the first invariant that does not hold, as text for people.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_members()?;
        self.check_nodes()?;
        self.check_member_passkeys()?;
        self.check_services()?;
        self.check_jobs()?;
        self.check_retired()?;
        self.check_forgotten()?;
        self.check_lifted()?;
        self.check_certificates()?;
        self.check_subjects()?;
        self.check_versions()
    }

    fn check_members(&self) -> Result<(), String> {
        let members: Vec<Member> = self.members.values().cloned().collect();
        form::check_members(&members, &self.policy).map_err(|error| error.to_string())?;
        form::check_control(&self.control).map_err(|error| error.to_string())?;
        self.check_access()?;
        self.check_prices()?;
        self.check_projects()?;
        for (id, member) in &self.members {
            require!(*id == member.id, "member `{}` is kept as `{id}`", member.id);
            require!(!self.former_members.contains(id), "former member `{id}` is a member");
            let returned = form::member_keys(member).into_iter().any(|key| self.is_former_key(key));
            require!(!returned, "member `{id}` has a key that was given up");
        }
        for (id, signers) in &self.former_signers {
            require!(self.members.contains_key(id), "`{id}` had signing keys, and is no member");
            let given_up = signers.keys().all(|key| self.is_former_key(&key.0));
            require!(given_up, "a former signing key of `{id}` was not given up");
        }
        for (id, halts) in &self.suspended {
            require!(self.members.contains_key(id), "`{id}` is suspended, but no member");
            let subject = member_subject(id);
            let version = self.subject(&subject).version;
            self.check_subject(subject, version.max(1), Some(suspension_value(halts)))?;
        }
        let active = self.members.keys().filter(|id| !self.suspended.contains_key(*id));
        let everyone: BTreeSet<MemberId> = active.cloned().collect();
        for (class, rule) in &self.policy.quorums {
            let reached = carries(rule, self.policy.proposer_counts, &everyone);
            require!(reached, "all members together do not reach the {class} quorum {}", describe(rule));
        }
        let value = circle_value(&self.members().collect::<Vec<_>>(), &self.policy);
        require!(self.epoch >= FIRST_EPOCH, "epoch {} is before the first", self.epoch);
        self.check_subject(CIRCLE_SUBJECT.into(), self.epoch.0, Some(value))
    }

    /// Grantors may have left since their envelope was voted.
    fn check_access(&self) -> Result<(), String> {
        let CircleAccess { envelope, certificate, counted } = &self.access;
        let named = envelope.grantors.iter().collect();
        check_envelope(envelope, &named).map_err(|error| error.to_string())?;
        require!(counted.contains(certificate), "grants under the access envelope in force do not count");
        let version = self.subject(ACCESS_SUBJECT).version;
        require!(counted.len() as u64 <= version, "{} access envelopes count", counted.len());
        self.check_subject(ACCESS_SUBJECT.into(), version.max(1), Some(access_value(envelope)))
    }

    fn check_prices(&self) -> Result<(), String> {
        check_prices(&self.prices).map_err(|error| error.to_string())?;
        let version = self.prices().version;
        require!(version > 0 || self.prices == Prices::default(), "prices without a vote");
        let value = (version > 0).then(|| prices_value(&self.prices));
        self.check_subject(PRICES_SUBJECT.into(), version, value)
    }

    /// A job in force may belong to a project that a later vote dropped: its gangs wait.
    fn check_projects(&self) -> Result<(), String> {
        let version = self.subject(PROJECTS_SUBJECT).version;
        require!(version > 0 || self.projects == ProjectTree::default(), "projects without a vote");
        if version > 0 {
            check_projects(&self.projects).map_err(|error| error.to_string())?;
        }
        let value = (version > 0).then(|| projects_value(&self.projects));
        self.check_subject(PROJECTS_SUBJECT.into(), version, value)
    }

    fn check_nodes(&self) -> Result<(), String> {
        let count = self.nodes.len();
        require!(count <= limits::NODES_MAX, "{count} nodes, more than {}", limits::NODES_MAX);
        let mut keys: BTreeSet<&[u8]> = form::control_keys(&self.control).collect();
        for (id, member) in &self.members {
            let own = form::member_keys(member).into_iter().all(|key| keys.insert(key));
            require!(own, "member `{id}` shares a key");
        }
        for (name, node) in self.nodes.entries() {
            require!(*name == node.name, "node `{}` is kept as `{name}`", node.name);
            form::check_node(node).map_err(|error| error.to_string())?;
            require!(form::node_keys(node).all(|key| keys.insert(key)), "node `{name}` shares a key");
            let subject = node_subject(name);
            let version = self.subject(&subject).version;
            self.check_subject(subject, version.max(1), Some(node_value(node)))?;
        }
        self.nodes.check_index()
    }

    fn check_member_passkeys(&self) -> Result<(), String> {
        let mut credentials = BTreeSet::new();
        for (member, held) in &self.passkeys {
            require!(self.members.contains_key(member), "`{member}` has passkeys and is no member");
            check_list(&held.passkeys).map_err(|error| error.to_string())?;
            let own: BTreeSet<_> = held.passkeys.iter().map(|passkey| &passkey.credential).collect();
            let counted = held.counters.keys().all(|credential| own.contains(credential));
            require!(counted, "a counter of `{member}` is of no passkey");
            require!(own.into_iter().all(|id| credentials.insert(id)), "`{member}` shares a credential");
            let (subject, value) = (passkeys_subject(member), passkeys_value(&held.passkeys));
            let version = self.subject(&subject).version;
            self.check_subject(subject, version.max(1), Some(value))?;
        }
        let keys: Vec<&[u8]> = self.passkey_keys().collect();
        let members = self.members.values().flat_map(form::member_keys);
        let machines = self.nodes.iter().flat_map(form::node_keys).chain(form::control_keys(&self.control));
        let others: BTreeSet<&[u8]> = members.chain(machines).collect();
        let distinct: BTreeSet<&[u8]> = keys.iter().copied().collect();
        let is_own = distinct.len() == keys.len() && distinct.is_disjoint(&others);
        require!(is_own, "a passkey shares its key");
        let returned = keys.iter().any(|key| self.is_former_key(key));
        require!(!returned, "a passkey has a key that was given up");
        Ok(())
    }

    fn check_services(&self) -> Result<(), String> {
        for (name, service) in &self.services {
            let manifest = Manifest::Service(service.manifest.clone());
            require!(name == manifest.name(), "service `{}` is kept as `{name}`", manifest.name());
            require!(!self.retired.contains_key(name), "service `{name}` is in force and retired");
            form::check_manifest(&manifest).map_err(|error| error.to_string())?;
            let model = &service.manifest.model;
            let bound = self.model_root(&model.name) == Some(model.root);
            require!(bound, "service `{name}` runs a root that the name `{}` does not stand for", model.name);
            self.check_subject(service_subject(name), service.version, Some(manifest_value(&manifest)))?;
            let Some(before) = &service.before else { continue };
            require!(service.manifest.may_return(), "service `{name}` returns, and its manifest says hold");
            let is_of_service = before.manifest.name == *name && service.version > 1;
            require!(is_of_service, "service `{name}` returns to an approval of another");
            let model = &before.manifest.model;
            let bound = self.model_root(&model.name) == Some(model.root);
            require!(bound, "service `{name}` returns to a root that `{}` does not stand for", model.name);
        }
        Ok(())
    }

    fn check_jobs(&self) -> Result<(), String> {
        for (name, job) in &self.jobs {
            let manifest = Manifest::Job(job.manifest.clone());
            require!(name == manifest.name(), "job `{}` is kept as `{name}`", manifest.name());
            let elsewhere = self.services.contains_key(name)
                || self.retired.contains_key(name)
                || self.retired_jobs.contains_key(name);
            require!(!elsewhere, "job `{name}` is in force, and its name stands for something else too");
            form::check_manifest(&manifest).map_err(|error| error.to_string())?;
            let unbound =
                inputs(&job.manifest).find(|input| self.model_root(&input.name) != Some(input.root));
            require!(unbound.is_none(), "job `{name}` reads a root that its name does not stand for");
            self.check_subject(service_subject(name), job.version, Some(manifest_value(&manifest)))?;
        }
        for (name, retired) in &self.retired_jobs {
            let last = &retired.last;
            require!(*name == last.manifest.name, "retired job `{}` is kept as `{name}`", last.manifest.name);
            let elsewhere = self.services.contains_key(name) || self.retired.contains_key(name);
            require!(!elsewhere, "retired job `{name}` has the name of a service");
            let follows = Some(retired.version) == last.version.checked_add(1);
            require!(follows, "job `{name}` was retired at version {}", retired.version);
            require!(retired.grace_seconds <= GRACE_SECONDS_MAX, "job `{name}` has too much grace");
            self.check_subject(service_subject(name), retired.version, None)?;
        }
        Ok(())
    }

    fn check_retired(&self) -> Result<(), String> {
        for (name, retired) in &self.retired {
            let last = &retired.last;
            require!(
                *name == last.manifest.name,
                "retired service `{}` is kept as `{name}`",
                last.manifest.name
            );
            require!(
                Some(retired.version) == last.version.checked_add(1),
                "service `{name}` was retired at version {}, but ran at {}",
                retired.version,
                last.version
            );
            require!(
                retired.grace_seconds <= GRACE_SECONDS_MAX,
                "service `{name}` has {} s of grace",
                retired.grace_seconds
            );
            self.check_subject(service_subject(name), retired.version, None)?;
        }
        Ok(())
    }

    fn check_forgotten(&self) -> Result<(), String> {
        for (root, forgotten) in &self.forgotten {
            let model = &forgotten.model;
            require!(*root == model.root, "forgotten model `{}` is kept as {root}", model.name);
            require!(
                forgotten.grace_seconds <= MODEL_GRACE_SECONDS_MAX,
                "model `{}` has {} s of grace",
                model.name,
                forgotten.grace_seconds
            );
            let bound = self.model_root(&model.name) == Some(*root);
            require!(bound, "the name of forgotten model `{}` stands for another root", model.name);
            let names = |service: &ApprovedService| service.manifests().any(|used| used.model.root == *root);
            let user = self.services.iter().find(|(_, service)| names(service));
            require!(user.is_none(), "model `{}` is forgotten, but a service in force names it", model.name);
            let user = self.job_that_uses(model);
            require!(user.is_none(), "model `{}` is forgotten, but a job in force names it", model.name);
            self.check_subject(model_subject(&model.name), 1, Some(model_value(model)))?;
        }
        Ok(())
    }

    fn check_lifted(&self) -> Result<(), String> {
        for (id, lifted) in &self.lifted {
            require!(*id == lifted.halt.id(), "lifted halt {} is kept as {id}", lifted.halt.id());
            require!(lifted.halt.circle == self.id, "lifted halt {id} is of another circle");
        }
        if self.lifted.is_empty() {
            return Ok(());
        }
        let version = self.subject(HALTS_SUBJECT).version;
        self.check_subject(HALTS_SUBJECT.into(), version.max(1), Some(lifted_value(self.lifted.keys())))
    }

    /// A certificate has one subject, so no two approvals share one.
    fn check_certificates(&self) -> Result<(), String> {
        let before = |service: &ApprovedService| service.before.as_ref().map(|before| before.certificate);
        let running = self
            .services
            .values()
            .flat_map(|service| std::iter::once(service.certificate).chain(before(service)));
        let retired =
            self.retired.values().flat_map(|retired| [retired.certificate, retired.last.certificate]);
        let jobs = self.jobs.values().map(|job| job.certificate);
        let ended = self.retired_jobs.values().flat_map(|ended| [ended.certificate, ended.last.certificate]);
        let mut certificates = BTreeSet::new();
        let forgotten = self.forgotten.values().map(|forgotten| forgotten.certificate);
        // One certificate may lift several halts.
        let lifted: BTreeSet<Digest> = self.lifted.values().map(|lifted| lifted.certificate).collect();
        for certificate in running.chain(retired).chain(jobs).chain(ended).chain(forgotten).chain(lifted) {
            require!(certificates.insert(certificate), "certificate {certificate} approves two things");
        }
        Ok(())
    }

    /// A subject with a value is in force; one without was removed or retired.
    fn check_subjects(&self) -> Result<(), String> {
        let services = self.services.keys().chain(self.jobs.keys()).map(service_subject);
        let nodes = self.nodes.entries().map(|(name, _)| node_subject(name));
        let models = self.forgotten.values().map(|forgotten| model_subject(&forgotten.model.name));
        let halts = (!self.lifted.is_empty()).then(|| HALTS_SUBJECT.to_string());
        let prices = (self.prices().version > 0).then(|| PRICES_SUBJECT.to_string());
        let projects = self.has_projects().then(|| PROJECTS_SUBJECT.to_string());
        let passkeys = self.passkeys.keys().map(passkeys_subject);
        let suspended = self.suspended.keys().map(member_subject);
        let in_force: BTreeSet<String> = services
            .chain(nodes)
            .chain(models)
            .chain(halts)
            .chain(prices)
            .chain(projects)
            .chain(passkeys)
            .chain(suspended)
            .chain([CIRCLE_SUBJECT.into(), ACCESS_SUBJECT.into()])
            .collect();
        let retired = self.retired.keys().chain(self.retired_jobs.keys());
        let retired: BTreeSet<String> = retired.map(service_subject).collect();
        for (subject, (version, value)) in &self.subjects {
            require!(*version >= 1, "`{subject}` has version 0, as if it never existed");
            require!(
                value.is_some() == in_force.contains(subject),
                "`{subject}` has a value, but is not in force, or the reverse"
            );
            let leaves_a_count =
                ["node/", "passkeys/", "member/"].iter().any(|kind| subject.starts_with(kind));
            let is_removed = value.is_none() && leaves_a_count;
            let is_known = in_force.contains(subject) || retired.contains(subject) || is_removed;
            require!(is_known, "`{subject}` is neither in force nor retired");
        }
        Ok(())
    }

    /// Each certificate raises one version by one. A genesis gives version 1 to the circle, to the bounds of
    /// access, and to its nodes, whose number is not kept.
    fn check_versions(&self) -> Result<(), String> {
        let sum: u64 = self.subjects.values().map(|(version, _)| version).sum();
        let nodes = self.subjects.keys().filter(|subject| subject.starts_with("node/")).count() as u64;
        let of_genesis = sum.checked_sub(self.length()).and_then(|rest| rest.checked_sub(FIRST_EPOCH.0 + 1));
        require!(
            of_genesis.is_some_and(|given| given <= nodes),
            "versions add up to {sum} after {} certificates and at most {nodes} nodes of the genesis",
            self.length()
        );
        Ok(())
    }

    fn check_subject(&self, subject: String, version: u64, value: Option<Digest>) -> Result<(), String> {
        let known = self.subject(&subject);
        let expected = SubjectVersion { subject, version, value };
        require!(
            known == expected,
            "`{}` has version {} and value {:?}, not {version} and {value:?}",
            known.subject,
            known.version,
            known.value
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
