//! What people sign: genesis, proposals, ballots, certificates. Meaning only; `human-chain` judges.
//!
//! May surprise: a ballot signs the digest of the proposal *and* the digest of the rendering that its
//! member read, so a signature given to one text can never be counted for another.

use crate::digest::Digest;
use crate::ids::{
    CircleId, Epoch, MemberId, Millis, NodeId, NodeName, ProposalId, ReplicaId, ServiceName, StoreName,
    TokenName,
};
use crate::keys::{EncryptionKey, HybridSignature, MemberKeys, PublicKey};
use crate::manifest::Manifest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Signature domain of a genesis.
pub const GENESIS_DOMAIN: &str = "quorate/genesis/v1";
/// Digest domain of a proposal.
pub const PROPOSAL_DOMAIN: &str = "quorate/proposal/v1";
/// Digest domain of a rendering.
pub const RENDERING_DOMAIN: &str = "quorate/rendering/v1";
/// Signature domain of a ballot.
pub const BALLOT_DOMAIN: &str = "quorate/ballot/v1";
/// Digest domain of a certificate.
pub const CERTIFICATE_DOMAIN: &str = "quorate/certificate/v1";

/// A person of the circle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Unique in the circle, for ever.
    pub id: MemberId,
    /// What the member signs and receives secrets with.
    pub keys: MemberKeys,
}

/// How much a change can break decides who must sign it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionClass {
    /// A2: deploy, retire, admit or remove a node.
    Routine,
    /// A3: members and policy.
    Sensitive,
}

/// `k of (...)`, nested: `all` is k = n, `any` is k = 1. Counted by distinct member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Quorum {
    /// This member approves.
    Member(MemberId),
    /// At least `required` of the parts hold.
    #[schema(no_recursion)]
    Threshold {
        /// How many parts must hold; 1 to the number of parts.
        required: u32,
        /// The parts.
        of: Vec<Quorum>,
    },
}

/// A quorum for each action class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Who must sign what. Every class has an entry.
    pub quorums: BTreeMap<ActionClass, Quorum>,
}

/// A control replica, as genesis fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlReplica {
    /// Its number in the Raft group.
    pub id: ReplicaId,
    /// Its identity: TLS name and order-signing key.
    pub key: PublicKey,
    /// `host:port` of its overlay listener.
    pub address: String,
    /// `http(s)://host:port` of its API for people.
    pub api: String,
}

/// What a node may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Runs slots of services.
    Worker,
    /// Offers storage.
    Storage,
    /// Runs a gateway.
    Gateway,
}

/// A node, as a certificate (or genesis) admits it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeAdmission {
    /// What people call it; a later admission of the same name replaces the earlier one.
    pub name: NodeName,
    /// Its identity key.
    pub id: NodeId,
    /// Where model keys are wrapped to.
    pub encryption: EncryptionKey,
    /// What it may be given.
    pub roles: BTreeSet<NodeRole>,
    /// Region, for manifests that name one.
    pub region: String,
    /// Labels, for node selectors.
    pub labels: BTreeMap<String, String>,
    /// Present exactly when it has the storage role.
    pub storage: Option<StorageEndpoint>,
    /// Present exactly when it has the gateway role.
    pub gateway: Option<GatewayEndpoint>,
}

/// What a node keeps for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageEndpoint {
    /// `host:port` of its shard service.
    pub address: String,
    /// Its stores, at least one and at most [`crate::limits::NODE_STORES_MAX`]: each is a failure of its own.
    pub stores: BTreeSet<StoreName>,
}

/// Where workers reach a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayEndpoint {
    /// The gateway process's own TLS key.
    pub key: PublicKey,
    /// `host:port` that workers connect to.
    pub address: String,
    /// `http(s)://host:port` that applications call.
    pub api: String,
}

/// What the holder of an access token may do. A token never votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenScope {
    /// See everything but secrets.
    Read,
    /// Submit proposals and carry ballots.
    Propose,
    /// Scale inside envelopes, create and revoke API keys, register models.
    Submit,
}

/// An access token, by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessToken {
    /// What people call it.
    pub name: TokenName,
    /// What it may do.
    pub scopes: BTreeSet<TokenScope>,
    /// BLAKE3 of the token's text. The text has 256 random bits, so a plain hash cannot be reversed.
    pub hash: Digest,
}

/// How a circle begins. Its digest is the circle's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// What people call the circle.
    pub name: String,
    /// When it was founded.
    pub founded_at: Millis,
    /// The founders; every one of them signs.
    pub members: Vec<Member>,
    /// Who must sign what.
    pub policy: Policy,
    /// The control replicas; their keys sign orders.
    pub control: Vec<ControlReplica>,
    /// The first nodes.
    pub nodes: Vec<NodeAdmission>,
    /// The first access tokens.
    pub tokens: Vec<AccessToken>,
}

/// A genesis with every founder's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedGenesis {
    /// What was signed.
    pub genesis: Genesis,
    /// One signature per founder over the canonical bytes, domain [`GENESIS_DOMAIN`].
    pub signatures: BTreeMap<MemberId, HybridSignature>,
}

/// What a proposal changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Run (or change) a workload within the envelope that its manifest is.
    Deploy(Box<Manifest>),
    /// End a service in order: drain, then stop after the grace period.
    Retire {
        /// Which one.
        service: ServiceName,
        /// How long running requests may take to finish.
        grace_seconds: u32,
    },
    /// Admit a node, or admit it anew after its disk was lost.
    AdmitNode(Box<NodeAdmission>),
    /// Remove a node: its slots move, its keys are no longer served.
    RemoveNode {
        /// Which one.
        node: NodeName,
    },
    /// Replace members and policy. Raises the epoch.
    SetMembers {
        /// All members after the change.
        members: Vec<Member>,
        /// The policy after the change.
        policy: Policy,
    },
}

/// What a proposal touches, and which state of it the proposer saw. A proposal whose subject has moved
/// on is dead: nobody's signature carries over to a state they did not see.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectVersion {
    /// `service/NAME`, `node/NAME` or `circle`.
    pub subject: String,
    /// How many approved changes the subject has had, genesis and its end counted; 0 when there never was one.
    pub version: u64,
    /// Digest of the subject's approved value; none when it does not exist.
    pub value: Option<Digest>,
}

/// Something to vote on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// In which circle.
    pub circle: CircleId,
    /// Under which members and policy.
    pub epoch: Epoch,
    /// What it touches, sorted by subject.
    pub subjects: Vec<SubjectVersion>,
    /// What it does.
    pub change: Change,
    /// Why, in the proposer's words.
    pub reason: String,
    /// When it was made.
    pub created_at: Millis,
    /// Votes after this time do not count, and the certificate cannot be used for the first time.
    pub expires_at: Millis,
    /// Makes two otherwise equal proposals different.
    pub nonce: Digest,
}

impl Proposal {
    /// The proposal's id.
    #[must_use]
    pub fn id(&self) -> ProposalId {
        ProposalId(Digest::of_domain(PROPOSAL_DOMAIN, &crate::canonical::to_bytes(self)))
    }
}

/// Yes or no. A no is recorded; it does not count towards the quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// For it.
    Approve,
    /// Against it.
    Reject,
}

/// One member's vote on exactly what they read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// On which proposal.
    pub proposal: ProposalId,
    /// Digest of the text that the member read, domain [`RENDERING_DOMAIN`].
    pub rendering: Digest,
    /// Which version of the renderer made that text.
    pub renderer_version: u32,
    /// For or against.
    pub choice: Choice,
    /// Whose vote.
    pub member: MemberId,
    /// Under which members and policy.
    pub epoch: Epoch,
    /// When it was signed.
    pub issued_at: Millis,
}

/// A ballot and its member's signature, domain [`BALLOT_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedBallot {
    /// What was signed.
    pub ballot: Ballot,
    /// By both of the member's keys.
    pub signature: HybridSignature,
}

/// A proposal and the ballots that carry it, sorted by member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// What was voted on.
    pub proposal: Proposal,
    /// Approvals only, one per member, sorted by member.
    pub ballots: Vec<SignedBallot>,
}

impl Certificate {
    /// The certificate's own digest, by which orders name it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(CERTIFICATE_DOMAIN, &crate::canonical::to_bytes(self))
    }
}

/// What travels: a certificate and, apart from it, where the log holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The form of this bundle; [`BUNDLE_VERSION`].
    pub version: u32,
    /// The authority.
    pub certificate: Certificate,
    /// Where the log holds it. It adds no authority yet: double issue of a slot is prevented only
    /// against honest control until the log has witnesses.
    pub log_evidence: Option<LogEvidence>,
}

/// The bundle form that this release writes and reads.
pub const BUNDLE_VERSION: u32 = 1;

/// Position of a certificate in the replicated log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogEvidence {
    /// Index of the log entry that admitted it.
    pub sequence: u64,
}
