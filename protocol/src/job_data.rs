//! Checkpoints, outputs and logs of jobs, as the node that ran the ranks states them to control.
//!
//! A statement is made once the bytes are in the stores. It names the order under which the node held the
//! slot, so that control can refuse one of an attempt that is over. The key of the bytes is wrapped to the
//! members, and, but for logs, to the nodes on which the envelope lets the job run. A wrap needs no signature
//! of its own: the statement covers all of them, and the stored manifest commits to the key.

use crate::canonical;
use crate::digest::Digest;
use crate::ids::{
    ArtifactRoot, CheckpointName, CircleId, Fence, JobId, Millis, ModelRoot, NodeId, ServiceName, SlotIndex,
};
use crate::job::SlotRanks;
use crate::keys::Signature;
use crate::model::{KeyWrap, ModelRecord, Recipient, StoredKind};
use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Signature domain of a node's statement about data of a job.
pub const JOB_DATA_DOMAIN: &str = "quorate/job-data/v1";
/// Digest domain of the wraps of a statement.
pub const JOB_DATA_WRAPS_DOMAIN: &str = "quorate/job-data-wraps/v1";
/// Format version of the statement that this release writes and reads.
pub const JOB_DATA_VERSION: u32 = 1;
/// Most wraps of one statement: the members first, then nodes that the envelope admits.
pub const JOB_DATA_WRAPS_MAX: usize = 256;
/// Largest registration in bytes: the statement, and each wrap at its longest.
pub const JOB_DATA_BYTES_MAX: usize = 512 * 1024;
/// Largest answer to a registration in bytes: a refusal.
pub const JOB_DATA_ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Time in milliseconds after which any node may remove data of a job that control keeps no more: twice the
/// longest life of a submission. Before that, only the node that wrote it may.
pub const JOB_DATA_HELD_MS: u64 = 2 * 1000 * crate::limits::SUBMISSION_SECONDS_MAX;

const _: () = assert!(
    JOB_DATA_WRAPS_MAX * 1536 + 64 * 1024 <= JOB_DATA_BYTES_MAX,
    "a wrap has 1.3 kB, and the record of 64 stores fits beside all of them"
);

/// Kind of data of a job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobDataKind {
    /// Directory that a rank renamed into `/checkpoint`.
    Checkpoint(CheckpointName),
    /// Content of `/outputs` after every rank of the slot exited with code 0.
    Outputs,
    /// Lines that the ranks of the slot printed, in a file `rank-N.log` each, once they have ended.
    Logs,
}

impl std::fmt::Display for JobDataKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint(name) => write!(f, "checkpoint `{name}`"),
            Self::Outputs => f.write_str("outputs"),
            Self::Logs => f.write_str("logs"),
        }
    }
}

/// Statement of a node that it stored data of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobData {
    /// Format version of this statement: [`JOB_DATA_VERSION`].
    pub version: u32,
    /// Circle that the job belongs to.
    pub circle: CircleId,
    /// Node that held the slot, stored the data and signs.
    pub node: NodeId,
    /// Name of the approved job.
    pub job: ServiceName,
    /// Id of the job.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of the order under which the node held the slot.
    pub fence: Fence,
    /// Ranks of the slot; rank 0 is one of them, except for logs.
    pub ranks: SlotRanks,
    /// Kind of the data.
    pub kind: JobDataKind,
    /// Stored item: its root, the root of its tree, and its stores.
    pub stored: ModelRecord,
    /// Commitment to the key, as the stored manifest has it.
    pub key_commitment: Digest,
    /// Digest of the wraps of the key ([`wraps_digest`]).
    pub wraps: Digest,
}

/// Statement with the signature of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedJobData {
    /// Statement that the node signed.
    pub data: JobData,
    /// Signature by the node's identity key, domain [`JOB_DATA_DOMAIN`].
    pub signature: Signature,
}

/// Request of a node to control: keep this data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterJobData {
    /// Statement of the node.
    pub signed: SignedJobData,
    /// Wraps of the key, sorted by recipient; at most [`JOB_DATA_WRAPS_MAX`].
    pub wraps: Vec<KeyWrap>,
}

/// Answer of control to a [`RegisterJobData`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobDataAnswer {
    /// Cause for which the data is not kept; none if it is.
    pub refusal: Option<Refusal>,
}

/// Data of a job with the key for one recipient. It grants nothing: its reader verifies the statement, and
/// every byte against the root of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobDataSource {
    /// Statement of the node that stored it.
    pub signed: SignedJobData,
    /// Key, wrapped to the recipient alone; none if it was not wrapped to it.
    pub wrap: Option<KeyWrap>,
}

/// Data of a job as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobDataView {
    /// Kind of the data.
    pub kind: JobDataKind,
    /// Number of the attempt that made it.
    pub attempt: u32,
    /// Ranks of the slot that made it.
    pub ranks: SlotRanks,
    /// Fence of the order under which it was made.
    pub fence: Fence,
    /// Name of the node that stored it.
    pub node: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Root of its tree: equal for equal content.
    pub tree: Option<ArtifactRoot>,
    /// Root of the stored item.
    pub root: ModelRoot,
    /// Time at which control accepted it.
    pub registered_at: Millis,
}

/// Data of one job with the keys of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberJobData {
    /// Checkpoints, oldest first, then the outputs, then logs by attempt and slot.
    pub items: Vec<JobDataSource>,
}

/// Returns the digest of the wraps of one statement.
#[must_use]
pub fn wraps_digest(wraps: &[KeyWrap]) -> Digest {
    debug_assert!(wraps.len() <= JOB_DATA_WRAPS_MAX, "a registration is checked before");
    Digest::of_domain(JOB_DATA_WRAPS_DOMAIN, &canonical::to_bytes(&wraps))
}

impl JobData {
    /// Returns the root of the packed tree; none if the record is of another kind than data of a job.
    #[must_use]
    pub fn tree(&self) -> Option<ArtifactRoot> {
        matches!(self.stored.kind, StoredKind::JobData { .. }).then(|| self.stored.kind.tree()).flatten()
    }
}

impl SignedJobData {
    /// Checks that the signature is by the named node. The caller must check that the circle admits it.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = canonical::to_bytes(&self.data);
        debug_assert!(!bytes.is_empty(), "a statement has its fields");
        self.data.node.0.verifies(JOB_DATA_DOMAIN, &bytes, &self.signature)
    }
}

impl RegisterJobData {
    /// Returns the flaw of the wraps; none if each is of this key's root, each recipient is named once, in
    /// order, a member is one of them, and the statement covers them.
    #[must_use]
    pub fn wraps_flaw(&self) -> Option<&'static str> {
        let (data, wraps) = (&self.signed.data, &self.wraps);
        if wraps.len() > JOB_DATA_WRAPS_MAX {
            return Some("it has more wraps than a statement may have");
        }
        if wraps.iter().any(|wrap| wrap.root != data.stored.root) {
            return Some("a wrap is of another key");
        }
        if !wraps.is_sorted_by(|one, next| one.recipient < next.recipient) {
            return Some("its wraps are not sorted by recipient, each named once");
        }
        if !wraps.iter().any(|wrap| matches!(wrap.recipient, Recipient::Member(_))) {
            return Some("its key is wrapped to no member");
        }
        (wraps_digest(wraps) != data.wraps).then_some("its wraps are not those that the node signed")
    }

    /// Returns the wrap of a recipient, if the key was wrapped to it.
    #[must_use]
    pub fn wrap_of(&self, recipient: &Recipient) -> Option<&KeyWrap> {
        self.wraps.iter().find(|wrap| wrap.recipient == *recipient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};
    use crate::keys::{ByteString, PublicKey};
    use crate::model::{ErasureCode, StoreReference};

    fn wrap(recipient: Recipient) -> KeyWrap {
        KeyWrap {
            root: ModelRoot(Digest([4; 32])),
            recipient,
            ephemeral: PublicKey([5; 32]),
            encapsulated: ByteString(vec![6; 1088]),
            sealed: ByteString(vec![7; 48]),
        }
    }

    fn of_member(name: &str) -> KeyWrap {
        wrap(Recipient::Member(name.parse().expect("a name")))
    }

    fn of_node(byte: u8) -> KeyWrap {
        wrap(Recipient::Node(NodeId(PublicKey([byte; 32]))))
    }

    fn sample(wraps: Vec<KeyWrap>) -> RegisterJobData {
        let stored = ModelRecord {
            name: "train.step-1".parse().expect("a name"),
            kind: StoredKind::JobData { tree: ArtifactRoot(Digest([3; 32])) },
            root: ModelRoot(Digest([4; 32])),
            bytes: 9,
            segments: 1,
            erasure: ErasureCode { data: 1, parity: 0 },
            stores: vec![StoreReference { url: "node://a/disk-0".into(), failure_domain: "a".into() }],
            architecture: "data".into(),
        };
        let data = JobData {
            version: JOB_DATA_VERSION,
            circle: CircleId(Digest([1; 32])),
            node: NodeId(PublicKey([2; 32])),
            job: "train".parse().expect("a name"),
            id: JobId(Digest([8; 32])),
            attempt: 2,
            slot: SlotIndex(1),
            fence: Fence::new(1, 3),
            ranks: SlotRanks { first: 0, count: 2 },
            kind: JobDataKind::Checkpoint("step-1".parse().expect("a name")),
            stored,
            key_commitment: Digest([9; 32]),
            wraps: wraps_digest(&wraps),
        };
        RegisterJobData { signed: SignedJobData { data, signature: Signature([1; 64]) }, wraps }
    }

    #[test]
    fn a_registration_survives_its_encoding() {
        let request = sample(vec![of_node(1), of_member("ann")]);
        assert_eq!(from_bytes(&to_bytes(&request), JOB_DATA_BYTES_MAX), Ok(request.clone()));
        assert_eq!(request.signed.data.tree(), Some(ArtifactRoot(Digest([3; 32]))));
        let mut other = request.signed.data.clone();
        other.stored.kind = StoredKind::Artifact { tree: ArtifactRoot(Digest([3; 32])) };
        assert_eq!(other.tree(), None, "a program is no data of a job");
        let answer =
            JobDataAnswer { refusal: Some(Refusal::new(crate::error_code::JOB_DATA_FENCED, "late")) };
        assert_eq!(from_bytes(&to_bytes(&answer), JOB_DATA_ANSWER_BYTES_MAX), Ok(answer));
    }

    #[test]
    fn the_largest_registration_fits() {
        let all: Vec<KeyWrap> =
            (0..JOB_DATA_WRAPS_MAX).map(|number| of_member(&format!("{number:0>63}"))).collect();
        let request = sample(all);
        assert_eq!(request.wraps_flaw(), None);
        let bytes = to_bytes(&request).len();
        assert!(bytes < JOB_DATA_BYTES_MAX - 64 * 1024, "{bytes} bytes leave room for stores");
    }

    #[test]
    fn wraps_that_the_node_did_not_sign_are_a_flaw() {
        let two = vec![of_node(1), of_member("ann")];
        assert_eq!(sample(two.clone()).wraps_flaw(), None);
        assert!(sample(vec![of_node(1)]).wraps_flaw().is_some_and(|flaw| flaw.contains("no member")));
        let swapped = sample(vec![two[1].clone(), two[0].clone()]);
        assert!(swapped.wraps_flaw().is_some_and(|flaw| flaw.contains("sorted")));
        let twice = sample(vec![two[1].clone(), two[1].clone()]);
        assert!(twice.wraps_flaw().is_some_and(|flaw| flaw.contains("sorted")));
        let mut planted = sample(two.clone());
        planted.wraps[1].sealed = ByteString(vec![0; 48]);
        assert!(planted.wraps_flaw().is_some_and(|flaw| flaw.contains("signed")));
        let mut foreign = sample(two);
        foreign.wraps[0].root = ModelRoot(Digest([5; 32]));
        assert!(foreign.wraps_flaw().is_some_and(|flaw| flaw.contains("another key")));
        let many = (0..=JOB_DATA_WRAPS_MAX).map(|number| of_member(&format!("{number:0>4}"))).collect();
        let flawed = RegisterJobData { wraps: many, ..planted };
        assert!(flawed.wraps_flaw().is_some_and(|flaw| flaw.contains("more wraps")));
    }

    #[test]
    fn a_wrap_is_found_by_its_recipient() {
        let request = sample(vec![of_node(1), of_member("ann")]);
        assert_eq!(request.wrap_of(&request.wraps[0].recipient), Some(&request.wraps[0]));
        assert_eq!(request.wrap_of(&of_node(2).recipient), None);
    }

    #[test]
    fn kinds_have_one_form_and_text_each() {
        let checkpoint = JobDataKind::Checkpoint("step-1".parse().expect("a name"));
        for (kind, json, text) in [
            (checkpoint, r#"{"checkpoint":"step-1"}"#, "checkpoint `step-1`"),
            (JobDataKind::Outputs, r#""outputs""#, "outputs"),
            (JobDataKind::Logs, r#""logs""#, "logs"),
        ] {
            assert_eq!(serde_json::to_string(&kind).expect("JSON"), json);
            assert_eq!(kind.to_string(), text);
        }
    }
}
