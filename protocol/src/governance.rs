//! Governance types that members sign or approve: genesis, proposals, ballots, certificates. They carry no
//! rules; `human-chain` verifies them.
//!
//! A ballot signs both the digest of the proposal *and* the digest of the rendering that its member read. A
//! signature given for one text can therefore never be counted for another.

use crate::access::AccessEnvelope;
use crate::digest::Digest;
use crate::halt::Halt;
use crate::ids::{
    CircleId, Epoch, MemberId, Millis, NodeId, NodeName, OwnerName, ProposalId, ReplicaId, ServiceName,
    StoreName,
};
use crate::keys::{EncryptionKey, HybridSignature, MemberKeys, PublicKey, Signature};
use crate::manifest::{Manifest, ModelChoice};
use crate::passkey::{Passkey, PasskeyAssertion, PasskeyPolicy};
use crate::project::ProjectTree;
use crate::usage::Prices;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Signature domain of a genesis.
pub const GENESIS_DOMAIN: &str = "quorate/genesis/v3";
/// Digest domain of a proposal.
pub const PROPOSAL_DOMAIN: &str = "quorate/proposal/v3";
/// Digest domain of a rendering.
pub const RENDERING_DOMAIN: &str = "quorate/rendering/v1";
/// Digest domain of a genesis's rendering.
pub const GENESIS_RENDERING_DOMAIN: &str = "quorate/genesis-rendering/v1";
/// Signature domain of a ballot's hybrid signature.
pub const BALLOT_DOMAIN: &str = "quorate/ballot/v3";
/// Signature domain of a node's claim to its keys.
pub const NODE_KEYS_DOMAIN: &str = "quorate/node-keys/v1";
/// Signature domain of a member's claim to its keys.
pub const MEMBER_KEYS_DOMAIN: &str = "quorate/member-keys/v1";
/// Signature domain of a withdrawal.
pub const WITHDRAWAL_DOMAIN: &str = "quorate/withdrawal/v1";
/// Digest domain of a certificate.
pub const CERTIFICATE_DOMAIN: &str = "quorate/certificate/v3";

/// Member of the circle: a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Id, unique in the circle forever, even after the member leaves.
    pub id: MemberId,
    /// Public keys for verifying the member's signatures and for wrapping secrets to the member.
    pub keys: MemberKeys,
}

/// Statement of a person: I am known by this id and hold these keys.
///
/// The claim names no circle, as that of a node: a genesis has no id yet. It grants nothing alone.
#[derive(Serialize)]
struct MemberKeyClaim<'a> {
    member: &'a MemberId,
    keys: &'a MemberKeys,
}

impl Member {
    /// Returns the bytes that a person signs with both signing keys: the id, and every public key.
    #[must_use]
    pub fn key_claim(&self) -> Vec<u8> {
        crate::canonical::to_bytes(&MemberKeyClaim { member: &self.id, keys: &self.keys })
    }
}

/// Member with a proof that the person holds the keys, as the person hands it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvenMember {
    /// Id and public keys.
    pub member: Member,
    /// Signature of both signing keys over [`Member::key_claim`], domain [`MEMBER_KEYS_DOMAIN`].
    pub proof: HybridSignature,
}

/// Class of a change. The more damage a change can do, the more members must sign it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionClass {
    /// A2: deploy, retire, admit or remove a node.
    Routine,
    /// A3: members and policy, the suspension of a member, the bounds of access, prices, projects, the loss
    /// of a model, and the lifting of halts.
    Sensitive,
    /// A1: a member's own passkeys. The member decides alone; no policy has a quorum for this class.
    Personal,
}

/// Quorum rule `k of (...)`, nested: `all` is k = n, `any` is k = 1. Approvals count once per distinct
/// member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Quorum {
    /// Holds if this member approves.
    Member(MemberId),
    /// Holds if at least `required` of the parts hold.
    #[schema(no_recursion)]
    Threshold {
        /// Number of parts that must hold: 1 to the number of parts.
        required: u32,
        /// Parts of the rule.
        of: Vec<Quorum>,
    },
}

/// Approval policy: a quorum for each action class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Quorum of each action class. The sensitive class has an entry; any other class without one has the
    /// quorum of the sensitive class.
    pub quorums: BTreeMap<ActionClass, Quorum>,
    /// Use of passkeys; none if the circle has no passkeys.
    pub passkeys: Option<PasskeyPolicy>,
    /// Waiting time in seconds of a change of members or policy, from its last approval until it takes
    /// effect. Any member may veto it until then. 0 to thirty days; with 0 no veto exists.
    pub veto_seconds: u32,
    /// True if the ballot of a proposal's proposer counts towards its quorum. If false, a certificate has the
    /// ballot of one member beyond the quorum. A member's own passkeys are the member's own decision.
    pub proposer_counts: bool,
}

/// Control replica, as genesis fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlReplica {
    /// Number in the Raft group.
    pub id: ReplicaId,
    /// Identity key: TLS name and order-signing key.
    pub key: PublicKey,
    /// `host:port` of its overlay listener.
    pub address: String,
    /// `http(s)://host:port` of its API for people.
    pub api: String,
}

/// Role that a node may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Runs slots of services.
    Worker,
    /// Stores shards.
    Storage,
    /// Runs a gateway.
    Gateway,
}

/// Node as a certificate (or genesis) admits it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeAdmission {
    /// Name that people gave the node. A later admission of the same name replaces the earlier one.
    pub name: NodeName,
    /// Identity key of the node.
    pub id: NodeId,
    /// Public keys that model keys are wrapped to.
    pub encryption: EncryptionKey,
    /// Roles that the node may be given.
    pub roles: BTreeSet<NodeRole>,
    /// Region, for manifests that restrict placement by region.
    pub region: String,
    /// Labels that node selectors match.
    pub labels: BTreeMap<String, String>,
    /// Party that owns the node, to which its usage is counted; none where the circle keeps no such account.
    pub owner: Option<OwnerName>,
    /// Storage endpoint; present exactly when the node has the storage role.
    pub storage: Option<StorageEndpoint>,
    /// Gateway endpoint; present exactly when the node has the gateway role.
    pub gateway: Option<GatewayEndpoint>,
    /// Signature of the identity key over [`NodeAdmission::key_claim`], domain [`NODE_KEYS_DOMAIN`].
    pub proof: Signature,
}

/// Statement of a node: these keys are mine.
///
/// The claim names no circle. A genesis has no id yet, and a node has the same keys in any circle: in another
/// one the claim is as true as here, and grants as little.
#[derive(Serialize)]
struct NodeKeyClaim<'a> {
    identity: NodeId,
    encryption: &'a EncryptionKey,
    gateway: Option<PublicKey>,
}

impl NodeAdmission {
    /// Returns the bytes that the node signs: its identity key, its encryption key, and its gateway's key.
    #[must_use]
    pub fn key_claim(&self) -> Vec<u8> {
        crate::canonical::to_bytes(&NodeKeyClaim {
            identity: self.id,
            encryption: &self.encryption,
            gateway: self.gateway.as_ref().map(|gateway| gateway.key),
        })
    }

    /// Returns whether the node itself claimed these keys. No key can then be exchanged by the parties that
    /// hand the admission on.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.id.0.verifies(NODE_KEYS_DOMAIN, &self.key_claim(), &self.proof)
    }
}

/// Storage that a node offers to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageEndpoint {
    /// `host:port` of its shard service.
    pub address: String,
    /// Stores of the node: one to [`crate::limits::NODE_STORES_MAX`]. Each store is a failure domain.
    pub stores: BTreeSet<StoreName>,
}

/// Addresses and key of a node's gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayEndpoint {
    /// TLS key of the gateway process.
    pub key: PublicKey,
    /// `host:port` that workers connect to.
    pub address: String,
    /// `http(s)://host:port` of the inference API for applications.
    pub api: String,
}

/// Permission that an access token grants. A token never votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenScope {
    /// Read everything except secrets.
    Read,
    /// Make drafts, and deliver what carries its own signature: proposals with their proposer's ballot,
    /// ballots, withdrawals, halts, wraps and complaints.
    Propose,
    /// Scale inside envelopes, register models.
    Submit,
}

/// Founding document of a circle. Its digest is the circle's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Name that people gave the circle.
    pub name: String,
    /// Time of the founding.
    pub founded_at: Millis,
    /// Founding members; every one of them must sign.
    pub members: Vec<Member>,
    /// Quorum of each action class.
    pub policy: Policy,
    /// Control replicas; their keys sign orders.
    pub control: Vec<ControlReplica>,
    /// Nodes admitted at the founding.
    pub nodes: Vec<NodeAdmission>,
    /// Bounds within which single members grant access tokens and inference keys.
    pub access: AccessEnvelope,
}

/// Genesis with every founder's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedGenesis {
    /// Genesis that the founders signed.
    pub genesis: Genesis,
    /// One signature per founder over the canonical bytes of the genesis, domain [`GENESIS_DOMAIN`].
    pub signatures: BTreeMap<MemberId, HybridSignature>,
}

/// Change that a proposal asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Runs or updates a workload; its manifest is the envelope.
    Deploy(Box<Manifest>),
    /// Retires a service: drain, then stop after the grace period.
    Retire {
        /// Name of the service.
        service: ServiceName,
        /// Time in seconds that running requests have to finish.
        grace_seconds: u32,
    },
    /// Admits a node, or admits it again after the loss of its disk.
    AdmitNode(Box<NodeAdmission>),
    /// Removes a node: its slots move, and its keys are no longer served.
    RemoveNode {
        /// Name of the node.
        node: NodeName,
    },
    /// Forgets a model permanently: after the grace period its key and its stored shards are deleted.
    ForgetModel {
        /// Name and root of the model. The name is never given to another root.
        model: ModelChoice,
        /// Time in seconds from the last approving signature to the deletion.
        grace_seconds: u32,
    },
    /// Lifts halts: what they stopped may run again. A lifted halt stays lifted.
    Lift {
        /// Halts, sorted by id, each once; at most [`crate::halt::LIFTED_MAX`].
        halts: Vec<Halt>,
    },
    /// Replaces members and policy, and raises the epoch.
    SetMembers {
        /// All members after the change.
        members: Vec<Member>,
        /// Policy after the change.
        policy: Policy,
        /// Proof of possession of each new set of keys: signatures over [`Member::key_claim`]. Exactly the
        /// members that are new, or whose keys are, have one.
        proofs: BTreeMap<MemberId, HybridSignature>,
    },
    /// Voids the ballots of a member, and every other use of its keys, until it is given new keys.
    SuspendMember {
        /// Id of the member.
        member: MemberId,
        /// Digests of those of the member's halts that stand; its other halts are void.
        halts: BTreeSet<Digest>,
    },
    /// Replaces the passkeys of a member.
    SetPasskeys {
        /// Member that decides, alone and by hybrid signature.
        member: MemberId,
        /// All passkeys of the member after the change.
        passkeys: Vec<Passkey>,
    },
    /// Replaces the bounds within which single members grant access tokens and inference keys.
    SetAccess(Box<AccessEnvelope>),
    /// Replaces the prices by which usage is billed from then on.
    SetPrices(Prices),
    /// Replaces the tree of projects, by which jobs share what the nodes offer.
    SetProjects(Box<ProjectTree>),
}

/// Subject of a proposal, in the version that the proposer saw. A proposal whose subject has changed since is
/// stale: no signature carries over to a state that its member did not see.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectVersion {
    /// Subject: `service/NAME`, `node/NAME`, `model/NAME`, `halts`, `passkeys/MEMBER`, `member/NAME`,
    /// `access`, `prices`, `projects` or `circle`.
    pub subject: String,
    /// Number of approved changes to the subject, including genesis and its retirement or removal; 0 if it
    /// never existed.
    pub version: u64,
    /// Digest of the subject's approved value; none if it does not exist.
    pub value: Option<Digest>,
}

/// Head of a circle's history: the number of its decisions, and a digest that commits to all of them in their
/// order. Each signer names the head that it saw, so that a history with a decision left out does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HistoryHead {
    /// Number of certificates since genesis.
    pub size: u64,
    /// Root of the Merkle tree over their digests (RFC 6962, section 2.1, with SHA-256).
    pub root: Digest,
}

/// Proposal for the circle to vote on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Circle that the proposal belongs to.
    pub circle: CircleId,
    /// Epoch of members and policy that the proposal was made in.
    pub epoch: Epoch,
    /// Head of the history that the proposer saw.
    pub history: HistoryHead,
    /// Subjects that the change affects, in the versions that the proposer saw, sorted by subject.
    pub subjects: Vec<SubjectVersion>,
    /// Change that the proposal asks for.
    pub change: Change,
    /// True if ballots by passkey count towards the quorum of this change, as the circle's policy has it.
    pub passkeys_count: bool,
    /// Reason for the change, in the proposer's words.
    pub reason: String,
    /// Time at which the proposal was made.
    pub created_at: Millis,
    /// Expiry. Votes after this time do not count, and the certificate cannot be admitted for the first time.
    pub expires_at: Millis,
    /// Random value that distinguishes two otherwise equal proposals.
    pub nonce: Digest,
}

impl Proposal {
    /// Returns the proposal's id: the digest of its canonical bytes.
    #[must_use]
    pub fn id(&self) -> ProposalId {
        ProposalId(Digest::of_domain(PROPOSAL_DOMAIN, &crate::canonical::to_bytes(self)))
    }
}

/// Choice of a ballot. A rejection is recorded; it does not count towards the quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// In favour of the proposal.
    Approve,
    /// Against the proposal.
    Reject,
}

/// Vote of one member on exactly the text that the member read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// Id of the proposal voted on.
    pub proposal: ProposalId,
    /// Digest of the text that the member read, domain [`RENDERING_DOMAIN`].
    pub rendering: Digest,
    /// Version of the renderer that produced the text.
    pub renderer_version: u32,
    /// Approval or rejection.
    pub choice: Choice,
    /// Member who votes.
    pub member: MemberId,
    /// Epoch of members and policy that the vote was cast in.
    pub epoch: Epoch,
    /// Head of the history that the member saw.
    pub history: HistoryHead,
    /// Time of signing.
    pub issued_at: Millis,
    /// Reason in the member's words, shown wherever the vote is; at most
    /// [`crate::limits::BALLOT_REASON_BYTES_MAX`], and empty if there is none.
    pub reason: String,
}

/// Signature of a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BallotSignature {
    /// Signature by both of the member's keys, domain [`BALLOT_DOMAIN`].
    Hybrid(HybridSignature),
    /// Signature by one of the member's passkeys, whose challenge is the ballot's digest in the domain
    /// [`crate::passkey::PASSKEY_BALLOT_DOMAIN`].
    Passkey(PasskeyAssertion),
}

/// Ballot with its member's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedBallot {
    /// Ballot that the member signed.
    pub ballot: Ballot,
    /// Signature by the member's keys, or by a passkey.
    pub signature: BallotSignature,
}

impl SignedBallot {
    /// Returns whether the ballot has the signature of the member's keys, and not that of a passkey.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        matches!(self.signature, BallotSignature::Hybrid(_))
    }
}

/// Statement of a member: this proposal of mine, or this draft, is to be voted on no longer.
///
/// The id is the digest of a proposal that names its circle and its epoch, and a withdrawn proposal is not
/// opened again before it expires. A withdrawal therefore has no use but its first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// Id of the proposal or draft.
    pub proposal: ProposalId,
    /// True for a draft, which any member withdraws. A proposal is withdrawn by its proposer alone.
    pub draft: bool,
    /// Member who withdraws.
    pub member: MemberId,
}

/// Withdrawal with its member's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedWithdrawal {
    /// Withdrawal that the member signed.
    pub withdrawal: Withdrawal,
    /// Signature by both of the member's keys, domain [`WITHDRAWAL_DOMAIN`].
    pub signature: HybridSignature,
}

/// Proposal with the approving ballots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Proposal that was voted on.
    pub proposal: Proposal,
    /// Approvals only, sorted by member: one per member, and two of a member whose keys are replaced, the
    /// one by the keys in force first.
    pub ballots: Vec<SignedBallot>,
}

impl Certificate {
    /// Returns the certificate's digest, by which orders name it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(CERTIFICATE_DOMAIN, &crate::canonical::to_bytes(self))
    }
}

/// Certificate with its log evidence, as sent to agents and clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Format version of this bundle: [`BUNDLE_VERSION`].
    pub version: u32,
    /// Certificate: the authority.
    pub certificate: Certificate,
    /// Position of the certificate in the log. It adds no authority yet: until the log has witnesses, double
    /// issue of a slot is prevented only if control is honest.
    pub log_evidence: Option<LogEvidence>,
}

/// Bundle format that this release writes and reads.
pub const BUNDLE_VERSION: u32 = 3;

/// Position of a certificate in the replicated log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogEvidence {
    /// Index of the log entry that admitted the certificate.
    pub sequence: u64,
}
