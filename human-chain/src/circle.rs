//! State of a circle: genesis, and every certificate since, applied in order.
//!
//! A [`CircleState`] of a peer is never read: it would be unverified authority. To restore a state, keep the
//! signed genesis and the certificates, and replay them in order with [`CircleState::replay`]. Replay
//! verifies every signature again, at about a third of a millisecond per ballot. A machine may keep the state
//! that it verified in a file of its own ([`CircleState::to_kept_bytes`]), which it trusts as its pinned
//! circle.
//!
//! Versions never restart. A service that was retired and deployed again continues its count, so the
//! certificate of its first deployment stays stale.

mod advance;
mod invariants;
mod kept;
mod nodes;
mod passkeys;
mod signers;
mod workloads;

pub(crate) use workloads::inputs;
pub use workloads::{ApprovedJob, RetiredJob};

use crate::approved::Approved;
use crate::history::{HistoryEntry, HistoryTree};
use crate::member::former_key;
use crate::subject::{
    ACCESS_SUBJECT, CIRCLE_SUBJECT, HALTS_SUBJECT, PRICES_SUBJECT, PROJECTS_SUBJECT, access_value,
    circle_value, lifted_value, member_subject, model_subject, model_value, node_subject, node_value,
    prices_value, projects_value, suspension_value,
};
use crate::{ChainError, MemberSecret, form, signature_holds};
use nodes::AdmittedNodes;
use passkeys::MemberPasskeys;
use protocol::access::AccessEnvelope;
use protocol::canonical::to_bytes;
use protocol::governance::{
    ActionClass, Change, ControlReplica, GENESIS_DOMAIN, Genesis, HistoryHead, Member, NodeAdmission, Policy,
    Quorum, SignedGenesis, SubjectVersion,
};
use protocol::halt::Halt;
use protocol::manifest::{ModelChoice, ServiceManifest};
use protocol::project::ProjectTree;
use protocol::usage::{PriceVersion, Prices};
use protocol::{
    CircleId, Digest, Epoch, HaltId, MemberId, Millis, ModelName, ModelRoot, NodeId, NodeName, ProposalId,
    PublicKey, ServiceName, limits,
};
use serde::{Deserialize, Serialize};
use signers::FormerSigners;
use std::collections::{BTreeMap, BTreeSet};

/// Epoch of a new circle.
const FIRST_EPOCH: Epoch = Epoch(1);

/// Service that is approved to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovedService {
    /// Approved manifest: the envelope.
    pub manifest: ServiceManifest,
    /// Digest of the certificate that approves it; orders name this digest.
    pub certificate: Digest,
    pub proposal: ProposalId,
    /// Number of approved changes to the service.
    pub version: u64,
    /// Approval to which the service may return: the one before, if the manifest in force says so.
    pub before: Option<EarlierApproval>,
}

/// Approval before the one in force. The certificate in force names it, by its version and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlierApproval {
    /// Manifest that it approved.
    pub manifest: ServiceManifest,
    /// Digest of its certificate; an order that returns to it names this digest.
    pub certificate: Digest,
    pub proposal: ProposalId,
}

impl ApprovedService {
    /// Returns the approval to which the service may return, if this is the digest of its certificate.
    pub(crate) fn returns_to(&self, certificate: &Digest) -> Option<&EarlierApproval> {
        self.before.as_ref().filter(|before| before.certificate == *certificate)
    }

    /// Returns the manifests under which the service may run: that in force, and that of the approval to
    /// which it may return.
    pub fn manifests(&self) -> impl Iterator<Item = &ServiceManifest> {
        std::iter::once(&self.manifest).chain(self.before.as_ref().map(|before| &before.manifest))
    }
}

/// Service that was retired by approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredService {
    /// Service as it was before retirement.
    pub last: ApprovedService,
    pub certificate: Digest,
    /// Time in seconds that running requests have to finish.
    pub grace_seconds: u32,
    /// Number of approved changes to the service, including the retirement.
    pub version: u64,
}

/// Model that the circle decided to forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgottenModel {
    /// Name and root of the model.
    pub model: ModelChoice,
    pub certificate: Digest,
    /// Time in seconds from the decision to the deletion.
    pub grace_seconds: u32,
    /// Time of the last approving signature.
    pub decided_at: Millis,
}

impl ForgottenModel {
    /// Returns the end of the grace period. Keys and shards may be deleted from then on.
    #[must_use]
    pub fn ends_at(&self) -> Millis {
        self.decided_at.plus(u64::from(self.grace_seconds) * 1000)
    }
}

/// Halt that the circle lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiftedHalt {
    /// Halt as the members who lifted it read it.
    pub halt: Halt,
    pub certificate: Digest,
    /// Time of the last approving signature.
    pub lifted_at: Millis,
}

/// Bounds of access in force, and the envelopes whose grants count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CircleAccess {
    envelope: AccessEnvelope,
    /// Certificate of the envelope; of that in genesis, the circle's id.
    certificate: Digest,
    /// Certificates of the envelopes whose grants count, if they fit the one in force.
    counted: BTreeSet<Digest>,
}

/// State of a circle, derived from its genesis and certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircleState {
    id: CircleId,
    name: String,
    epoch: Epoch,
    members: BTreeMap<MemberId, Member>,
    former_members: BTreeSet<MemberId>,
    /// Digests of the keys that members had and have no longer.
    former_keys: BTreeSet<Digest>,
    /// Digests of the keys of passkeys that were dropped, each with the member whose it was.
    former_passkeys: BTreeMap<Digest, MemberId>,
    /// Signing keys that members had and have no longer, by which halts may stand.
    former_signers: BTreeMap<MemberId, FormerSigners>,
    /// Suspended members, each with those of its halts that stand.
    suspended: BTreeMap<MemberId, BTreeSet<Digest>>,
    policy: Policy,
    passkeys: BTreeMap<MemberId, MemberPasskeys>,
    control: Vec<ControlReplica>,
    access: CircleAccess,
    /// Prices in force; their version is that of their subject.
    prices: Prices,
    /// Projects in force; there are none before the first vote.
    projects: ProjectTree,
    nodes: AdmittedNodes,
    subjects: BTreeMap<String, (u64, Option<Digest>)>,
    services: BTreeMap<ServiceName, ApprovedService>,
    retired: BTreeMap<ServiceName, RetiredService>,
    jobs: BTreeMap<ServiceName, ApprovedJob>,
    retired_jobs: BTreeMap<ServiceName, RetiredJob>,
    forgotten: BTreeMap<ModelRoot, ForgottenModel>,
    models: BTreeMap<ModelName, ModelRoot>,
    lifted: BTreeMap<HaltId, LiftedHalt>,
    history: HistoryTree,
}

/// Returns the id of the circle that a genesis founds: the digest of its canonical bytes.
#[must_use]
pub fn circle_id(genesis: &Genesis) -> CircleId {
    CircleId(Digest::of_domain(GENESIS_DOMAIN, &to_bytes(genesis)))
}

/// Signs a genesis with the keys of these founders.
#[must_use]
pub fn sign_genesis(genesis: Genesis, founders: &[(MemberId, &MemberSecret)]) -> SignedGenesis {
    let bytes = to_bytes(&genesis);
    let sign = |(id, secret): &(MemberId, &MemberSecret)| (id.clone(), secret.sign(GENESIS_DOMAIN, &bytes));
    let signatures = founders.iter().map(sign).collect();
    SignedGenesis { genesis, signatures }
}

impl CircleState {
    /// Founds a circle. `expected` is the id that this machine pinned when it enrolled. Pass it whenever
    /// there is one, because without it any circle is accepted.
    ///
    /// # Errors
    /// Returns an error when the genesis is of another circle or breaks a rule of form. The same holds when
    /// any founder's signature is missing or does not verify.
    pub fn found(signed: &SignedGenesis, expected: Option<CircleId>) -> Result<Self, ChainError> {
        let genesis = &signed.genesis;
        let bytes = to_bytes(genesis);
        let length = to_bytes(signed).len();
        if length > limits::GENESIS_BYTES_MAX {
            let most = limits::GENESIS_BYTES_MAX;
            let reason =
                format!("{length} bytes; accepted: at most {most}; admit some of the nodes by proposal");
            return Err(ChainError::invalid("genesis", reason));
        }
        let id = CircleId(Digest::of_domain(GENESIS_DOMAIN, &bytes));
        if let Some(expected) = expected.filter(|expected| *expected != id) {
            return Err(ChainError::OtherCircle { expected, actual: id });
        }
        form::check_genesis(genesis)?;
        check_founders(signed, &bytes)?;
        let members: BTreeMap<_, _> = genesis.members.iter().map(|m| (m.id.clone(), m.clone())).collect();
        let nodes: AdmittedNodes = genesis.nodes.iter().cloned().collect();
        let mut subjects: BTreeMap<_, _> =
            nodes.iter().map(|node| (node_subject(&node.name), (1, Some(node_value(node))))).collect();
        let value = circle_value(&members.values().collect::<Vec<_>>(), &genesis.policy);
        subjects.insert(CIRCLE_SUBJECT.to_string(), (FIRST_EPOCH.0, Some(value)));
        subjects.insert(ACCESS_SUBJECT.to_string(), (1, Some(access_value(&genesis.access))));
        let state = Self {
            id,
            name: genesis.name.clone(),
            epoch: FIRST_EPOCH,
            members,
            former_members: BTreeSet::new(),
            former_keys: BTreeSet::new(),
            former_passkeys: BTreeMap::new(),
            former_signers: BTreeMap::new(),
            suspended: BTreeMap::new(),
            policy: genesis.policy.clone(),
            passkeys: BTreeMap::new(),
            control: genesis.control.clone(),
            access: CircleAccess {
                envelope: genesis.access.clone(),
                certificate: id.0,
                counted: BTreeSet::from([id.0]),
            },
            prices: Prices::default(),
            projects: ProjectTree::default(),
            nodes,
            subjects,
            services: BTreeMap::new(),
            retired: BTreeMap::new(),
            jobs: BTreeMap::new(),
            retired_jobs: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            models: BTreeMap::new(),
            lifted: BTreeMap::new(),
            history: HistoryTree::empty(),
        };
        debug_assert_eq!(state.check_invariants(), Ok(()));
        Ok(state)
    }

    fn apply(&mut self, approved: Approved<Change>) {
        let certificate = approved.certificate_digest();
        let (proposal, decided_at) = (approved.proposal(), approved.basis().decided_at);
        self.record_uses(&approved.basis().passkey_uses);
        match approved.into_inner() {
            Change::Deploy(manifest) => self.apply_deploy(*manifest, certificate, proposal),
            Change::Retire { service, grace_seconds } => {
                self.apply_retire(service, grace_seconds, certificate);
            }
            Change::AdmitNode(node) => {
                let holder = self.node_by_id(node.id);
                debug_assert!(holder.is_none_or(|other| other.name == node.name), "a key is of one node");
                self.bump(node_subject(&node.name), Some(node_value(&node)));
                self.nodes.insert(*node);
            }
            Change::RemoveNode { node } => {
                self.bump(node_subject(&node), None);
                self.nodes.remove(&node);
            }
            Change::ForgetModel { model, grace_seconds } => {
                self.bump(model_subject(&model.name), Some(model_value(&model)));
                self.models.entry(model.name.clone()).or_insert(model.root);
                let forgotten = ForgottenModel { model, certificate, grace_seconds, decided_at };
                let known = self.forgotten.insert(forgotten.model.root, forgotten);
                debug_assert_eq!(known, None, "a model is forgotten once");
            }
            Change::Lift { halts } => self.apply_lift(halts, certificate, decided_at),
            Change::SetMembers { members, policy, .. } => self.apply_members(members, policy),
            Change::SuspendMember { member, halts } => {
                self.bump(member_subject(&member), Some(suspension_value(&halts)));
                let known = self.suspended.insert(member, halts);
                debug_assert_eq!(known, None, "a member is suspended once");
            }
            Change::SetPasskeys { member, passkeys } => self.apply_passkeys(member, passkeys),
            Change::SetAccess(envelope) => self.apply_access(*envelope, certificate),
            Change::SetPrices(prices) => {
                self.bump(PRICES_SUBJECT.to_string(), Some(prices_value(&prices)));
                self.prices = prices;
            }
            Change::SetProjects(tree) => {
                self.bump(PROJECTS_SUBJECT.to_string(), Some(projects_value(&tree)));
                self.projects = *tree;
            }
        }
        self.history.append(HistoryEntry { proposal, certificate });
    }

    fn apply_lift(&mut self, halts: Vec<Halt>, certificate: Digest, lifted_at: Millis) {
        for halt in halts {
            let known = self.lifted.insert(halt.id(), LiftedHalt { halt, certificate, lifted_at });
            debug_assert_eq!(known, None, "a halt is lifted once");
        }
        let value = lifted_value(self.lifted.keys());
        self.bump(HALTS_SUBJECT.to_string(), Some(value));
    }

    fn apply_members(&mut self, members: Vec<Member>, policy: Policy) {
        let count = members.len();
        let members = members.into_iter().map(|member| (member.id.clone(), member)).collect();
        let before = std::mem::replace(&mut self.members, members);
        self.drop_unvouched_passkeys(&before);
        debug_assert_eq!(self.members.len(), count, "no two members of a checked roster share an id");
        for (id, member) in before {
            if self.members.get(&id) == Some(&member) {
                continue;
            }
            self.former_keys.extend(form::member_keys(&member).map(former_key));
            // New keys, or none: the suspension was of the old ones.
            let left = self.suspended.remove(&id);
            if left.is_some() {
                self.end_value(&member_subject(&id));
            }
            if self.members.contains_key(&id) {
                self.give_up_signer(&member, left.as_ref());
            } else {
                self.former_signers.remove(&id);
                self.former_members.insert(id);
            }
        }
        let returned = self.former_members.iter().find(|id| self.members.contains_key(id));
        debug_assert_eq!(returned, None, "the id of a member who left is never used again");
        self.policy = policy;
        let value = circle_value(&self.members().collect::<Vec<_>>(), &self.policy);
        self.epoch = Epoch(self.bump(CIRCLE_SUBJECT.to_string(), Some(value)));
    }

    fn apply_access(&mut self, envelope: AccessEnvelope, certificate: Digest) {
        self.bump(ACCESS_SUBJECT.to_string(), Some(access_value(&envelope)));
        let mut counted = std::mem::take(&mut self.access.counted);
        if envelope.ends_earlier {
            counted.clear();
        }
        counted.insert(certificate);
        self.access = CircleAccess { envelope, certificate, counted };
    }

    fn bump(&mut self, subject: String, value: Option<Digest>) -> u64 {
        let entry = self.subjects.entry(subject).or_insert((0, None));
        debug_assert!(value.is_some() || entry.1.is_some(), "only what is in force is removed or retired");
        *entry = (entry.0 + 1, value);
        entry.0
    }

    /// Removes the value of a subject that ends with a change of another. Its version stays.
    fn end_value(&mut self, subject: &str) {
        let entry = self.subjects.get_mut(subject);
        debug_assert!(entry.as_ref().is_some_and(|(_, value)| value.is_some()), "`{subject}` is in force");
        if let Some((_, value)) = entry {
            *value = None;
        }
    }

    /// Returns the circle's id.
    #[must_use]
    pub fn id(&self) -> CircleId {
        self.id
    }

    /// Returns the name that people gave the circle.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the epoch of members and policy; the first is 1.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the number of certificates applied since genesis.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.history.size()
    }

    /// Returns the head of the history: the number of certificates since genesis, and the root over them.
    #[must_use]
    pub fn head(&self) -> HistoryHead {
        self.history.head()
    }

    /// Returns the decision of this number; the first is 1.
    #[must_use]
    pub fn decision(&self, number: u64) -> Option<&HistoryEntry> {
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        self.history.entries().get(at)
    }

    /// Returns the number of the decision that approved this proposal.
    #[must_use]
    pub fn number_of(&self, proposal: &ProposalId) -> Option<u64> {
        let at = self.history.entries().iter().rposition(|entry| entry.proposal == *proposal)?;
        Some(at as u64 + 1)
    }

    /// Checks that this history continues a head that was seen before: its first decisions are the same.
    ///
    /// # Errors
    /// Returns an error when decisions are missing, or are not those that were seen.
    pub fn check_extends(&self, seen: &HistoryHead) -> Result<(), ChainError> {
        match self.history.root_at(seen.size) {
            None => Err(ChainError::HistoryShorter { known: seen.size, length: self.length() }),
            Some(root) if root != seen.root => Err(ChainError::HistoryForked { size: seen.size }),
            Some(_) => Ok(()),
        }
    }

    /// Checks the head that another party claims for its history of this circle: it lacks and changes no
    /// decision of this one. A longer one may be shown later.
    ///
    /// # Errors
    /// Returns an error when the other history ends before this one, or differs from it.
    pub fn check_claimed(&self, claimed: &HistoryHead) -> Result<(), ChainError> {
        match self.history.root_at(claimed.size) {
            Some(root) if root != claimed.root => Err(ChainError::HistoryForked { size: claimed.size }),
            Some(_) if claimed.size < self.length() => {
                Err(ChainError::HistoryShorter { known: self.length(), length: claimed.size })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Returns the members, sorted by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Returns the member with this id.
    #[must_use]
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        self.members.get(id)
    }

    pub(crate) fn is_former_member(&self, id: &MemberId) -> bool {
        self.former_members.contains(id)
    }

    /// Returns whether a key was a member's or a passkey's, and is no longer.
    pub(crate) fn is_former_key(&self, key: &[u8]) -> bool {
        let digest = former_key(key);
        self.former_keys.contains(&digest) || self.former_passkeys.contains_key(&digest)
    }

    /// Returns whether a key was a member's and is no longer, or was that of another member's passkey.
    pub(crate) fn is_foreign_former_key(&self, member: &MemberId, key: &[u8]) -> bool {
        let digest = former_key(key);
        let was_anothers = self.former_passkeys.get(&digest).is_some_and(|owner| owner != member);
        self.former_keys.contains(&digest) || was_anothers
    }

    /// Returns the suspended members, each with the digests of those of its halts that stand.
    #[must_use]
    pub fn suspended(&self) -> &BTreeMap<MemberId, BTreeSet<Digest>> {
        &self.suspended
    }

    /// Returns whether a member is suspended: its keys count for nothing.
    #[must_use]
    pub fn is_suspended(&self, id: &MemberId) -> bool {
        self.suspended.contains_key(id)
    }

    /// Returns the member with this id whose keys count.
    ///
    /// # Errors
    /// Returns an error when there is no such member, or it is suspended.
    pub fn active_member(&self, id: &MemberId) -> Result<&Member, ChainError> {
        let member = self.member(id).ok_or_else(|| ChainError::NotAMember(id.clone()))?;
        if self.is_suspended(id) {
            return Err(ChainError::MemberSuspended(id.clone()));
        }
        Ok(member)
    }

    /// Returns the approval policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the quorum that a change of this class needs. A class that the policy lacks needs that of
    /// sensitive changes.
    ///
    /// # Panics
    /// Never: a policy without a quorum for sensitive changes is refused before it is in force.
    #[must_use]
    pub fn quorum(&self, class: ActionClass) -> &Quorum {
        let quorums = &self.policy.quorums;
        let rule = quorums.get(&class).or_else(|| quorums.get(&ActionClass::Sensitive));
        rule.expect("a policy in force has a quorum for sensitive changes")
    }

    /// Returns the root that a model's name stands for, once a manifest that names it was approved.
    #[must_use]
    pub fn model_root(&self, name: &ModelName) -> Option<ModelRoot> {
        self.models.get(name).copied()
    }

    /// Returns the control replicas.
    #[must_use]
    pub fn control(&self) -> &[ControlReplica] {
        &self.control
    }

    /// Checks that this key may sign orders.
    #[must_use]
    pub fn is_control_key(&self, key: &PublicKey) -> bool {
        self.control.iter().any(|replica| replica.key == *key)
    }

    /// Returns the bounds within which single members grant access.
    #[must_use]
    pub fn access(&self) -> &AccessEnvelope {
        &self.access.envelope
    }

    /// Returns the certificate that approved the bounds of access, by which grants name them; of those in
    /// genesis, the circle's id.
    #[must_use]
    pub fn access_certificate(&self) -> Digest {
        self.access.certificate
    }

    /// Returns the prices in force, with the number of their vote.
    #[must_use]
    pub fn prices(&self) -> PriceVersion {
        let version = self.subjects.get(PRICES_SUBJECT).map_or(0, |(version, _)| *version);
        PriceVersion { version, prices: self.prices }
    }

    /// Returns the projects in force; none before the first vote.
    #[must_use]
    pub fn projects(&self) -> &ProjectTree {
        &self.projects
    }

    /// Returns whether projects were voted, be it an empty tree.
    #[must_use]
    pub fn has_projects(&self) -> bool {
        self.subjects.contains_key(PROJECTS_SUBJECT)
    }

    /// Returns whether grants under the envelope of this certificate count, within the bounds in force.
    pub(crate) fn access_counts(&self, certificate: &Digest) -> bool {
        self.access.counted.contains(certificate)
    }

    /// Returns the admitted nodes, sorted by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeAdmission> {
        self.nodes.iter()
    }

    /// Returns the number of admitted nodes.
    pub(crate) fn node_count(&self) -> usize {
        debug_assert!(self.nodes.len() <= limits::NODES_MAX, "a full circle admits no more");
        self.nodes.len()
    }

    /// Returns the admitted node with this name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&NodeAdmission> {
        self.nodes.get(name)
    }

    /// Returns the admitted node with this key.
    #[must_use]
    pub fn node_by_id(&self, id: NodeId) -> Option<&NodeAdmission> {
        self.nodes.holder(&id.0.0).filter(|node| node.id == id)
    }

    /// Returns the admitted node that has this key, or whose gateway has it.
    pub(crate) fn node_with_key(&self, key: &[u8]) -> Option<&NodeAdmission> {
        self.nodes.holder(key)
    }

    /// Returns the current version of a subject; version 0 if it never existed.
    #[must_use]
    pub fn subject(&self, subject: &str) -> SubjectVersion {
        let (version, value) = self.subjects.get(subject).copied().unwrap_or((0, None));
        SubjectVersion { subject: subject.to_string(), version, value }
    }

    /// Returns the services that are approved to run, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &ApprovedService> {
        self.services.values()
    }

    /// Returns the approved service with this name.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&ApprovedService> {
        self.services.get(name)
    }

    /// Returns the decision to forget the model with this root, if there is one.
    #[must_use]
    pub fn forgotten(&self, root: &ModelRoot) -> Option<&ForgottenModel> {
        self.forgotten.get(root)
    }

    /// Returns the models that the circle decided to forget, sorted by root.
    pub fn forgotten_models(&self) -> impl Iterator<Item = &ForgottenModel> {
        self.forgotten.values()
    }

    /// Returns the decision to lift the halt with this id, if there is one. A lifted halt stays lifted.
    #[must_use]
    pub fn lifted(&self, id: &HaltId) -> Option<&LiftedHalt> {
        self.lifted.get(id)
    }

    /// Returns the halts that the circle lifted, sorted by id.
    pub fn lifted_halts(&self) -> impl Iterator<Item = (&HaltId, &LiftedHalt)> {
        self.lifted.iter()
    }

    /// Returns the services that were retired and not deployed again, sorted by name.
    pub fn retired(&self) -> impl Iterator<Item = &RetiredService> {
        self.retired.values()
    }

    /// Returns the service with this name if it was retired and not deployed again.
    #[must_use]
    pub fn retired_service(&self, name: &ServiceName) -> Option<&RetiredService> {
        self.retired.get(name)
    }
}

/// Checks that every founder signed, and that there is no other signature.
fn check_founders(signed: &SignedGenesis, bytes: &[u8]) -> Result<(), ChainError> {
    let members = &signed.genesis.members;
    for id in signed.signatures.keys() {
        if !members.iter().any(|member| member.id == *id) {
            return Err(ChainError::NotAMember(id.clone()));
        }
    }
    for member in members {
        let signature = signed.signatures.get(&member.id);
        let signature = signature.ok_or_else(|| ChainError::FounderSignatureMissing(member.id.clone()))?;
        if !signature_holds(&member.keys, GENESIS_DOMAIN, bytes, signature) {
            return Err(ChainError::SignatureInvalid(member.id.clone()));
        }
    }
    debug_assert_eq!(signed.signatures.len(), members.len(), "every founder signed, and no other person");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::check_change;
    use crate::testing;

    fn node(number: usize) -> NodeAdmission {
        testing::node(&format!("n{number}"))
    }

    fn alice() -> Member {
        Member { id: "alice".parse().expect("a name"), keys: MemberSecret::generate(&[1; 64]).public() }
    }

    /// Returns a circle with one member and as many nodes as there may be.
    fn full() -> CircleState {
        // Ten thousand signatures would take seconds: only the nodes that are admitted below are their own.
        let sample = node(0);
        let unsigned = |number: usize| NodeAdmission {
            name: format!("n{number}").parse().expect("a name"),
            id: NodeId(protocol::PublicKey(Digest::of(&number.to_be_bytes()).0)),
            encryption: testing::encryption(&format!("of {number}")),
            ..sample.clone()
        };
        let nodes = (0..limits::NODES_MAX).map(unsigned).collect();
        CircleState {
            id: CircleId(Digest([0; 32])),
            name: String::new(),
            epoch: FIRST_EPOCH,
            members: [alice()].map(|member| (member.id.clone(), member)).into(),
            former_members: BTreeSet::new(),
            former_keys: BTreeSet::new(),
            former_passkeys: BTreeMap::new(),
            former_signers: BTreeMap::new(),
            suspended: BTreeMap::new(),
            policy: Policy {
                quorums: BTreeMap::new(),
                passkeys: None,
                veto_seconds: 0,
                proposer_counts: true,
            },
            passkeys: BTreeMap::new(),
            control: Vec::new(),
            access: CircleAccess {
                envelope: AccessEnvelope::standard([]),
                certificate: Digest([0; 32]),
                counted: BTreeSet::new(),
            },
            prices: Prices::default(),
            projects: ProjectTree::default(),
            nodes,
            subjects: BTreeMap::new(),
            services: BTreeMap::new(),
            retired: BTreeMap::new(),
            jobs: BTreeMap::new(),
            retired_jobs: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            models: BTreeMap::new(),
            lifted: BTreeMap::new(),
            history: HistoryTree::empty(),
        }
    }

    #[test]
    fn a_full_circle_takes_no_more_nodes_but_replaces_them() {
        let state = full();
        let one_more = Change::AdmitNode(Box::new(node(limits::NODES_MAX)));
        let error = check_change(&state, &one_more).expect_err("the circle is full");
        assert!(error.to_string().contains("nodes already"), "{error}");
        assert_eq!(check_change(&state, &Change::AdmitNode(Box::new(node(7)))), Ok(()));
    }

    /// Ten thousand admissions that walked all nodes each would visit fifty million.
    #[test]
    fn no_decision_about_keys_walks_the_nodes() {
        let state = full();
        let holder = state.node(&node(9).name).expect("admitted").clone();
        let visits = || nodes::VISITS.get();
        let before = visits();
        assert_eq!(check_change(&state, &Change::AdmitNode(Box::new(node(7)))), Ok(()));
        let twin = NodeAdmission { encryption: holder.encryption.clone(), ..node(8) };
        let twin = testing::claimed_by("twin", twin);
        let error = check_change(&state, &Change::AdmitNode(Box::new(twin))).expect_err("a key of n9");
        assert!(error.to_string().contains("uses a key in use"), "{error}");
        let members =
            Change::SetMembers { members: Vec::new(), policy: state.policy.clone(), proofs: BTreeMap::new() };
        assert!(check_change(&state, &members).is_err(), "a circle has members");
        let passkeys = Change::SetPasskeys { member: alice().id, passkeys: Vec::new() };
        assert_eq!(check_change(&state, &passkeys), Ok(()));
        assert_eq!((state.node_by_id(holder.id), state.node_count()), (Some(&holder), limits::NODES_MAX));
        assert_eq!(visits(), before, "no node was visited");
        assert_eq!(state.nodes().count() as u64, visits() - before, "a walk is counted");
    }
}
