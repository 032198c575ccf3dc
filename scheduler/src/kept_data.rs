//! One checkpoint, the outputs of one attempt, or the logs of one slot of it, as control keeps them.

use crate::clock::ClusterTime;
use crate::usage::MeterName;
use protocol::canonical::to_bytes;
use protocol::job_data::{JobDataKind, JobDataSource, RegisterJobData, SignedJobData};
use protocol::model::{KeyWrap, Recipient};
use protocol::{CheckpointName, NodeId, SlotIndex};
use serde::{Deserialize, Serialize};

/// Data of a job that control keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptJobData {
    /// Statement of the node that made it.
    pub signed: SignedJobData,
    /// Wraps of its key; those of parties that left are dropped.
    pub wraps: Vec<KeyWrap>,
    /// Size of statement and wraps in bytes when they were accepted.
    pub bytes: u64,
    /// Time at which it was accepted.
    pub registered_at: ClusterTime,
}

impl KeptJobData {
    pub(crate) fn new(request: RegisterJobData, registered_at: ClusterTime) -> Self {
        let bytes = to_bytes(&request).len() as u64;
        debug_assert!(bytes <= protocol::job_data::JOB_DATA_BYTES_MAX as u64, "it came in one request");
        Self { signed: request.signed, wraps: request.wraps, bytes, registered_at }
    }

    /// Returns the name of a checkpoint; none of other data.
    #[must_use]
    pub fn name(&self) -> Option<&CheckpointName> {
        match &self.signed.data.kind {
            JobDataKind::Checkpoint(name) => Some(name),
            JobDataKind::Outputs | JobDataKind::Logs => None,
        }
    }

    /// Returns the name of its meter.
    pub(crate) fn meter(&self) -> MeterName {
        let data = &self.signed.data;
        let stored = Some(data.stored.root);
        MeterName { envelope: data.job.clone(), slot: data.slot, fence: data.fence, stored }
    }

    /// Returns the attempt and the slot that made it.
    pub(crate) fn place(&self) -> (u32, SlotIndex) {
        (self.signed.data.attempt, self.signed.data.slot)
    }

    /// Returns the data with its key for one recipient.
    pub(crate) fn source(&self, recipient: &Recipient) -> JobDataSource {
        let wrap = self.wraps.iter().find(|wrap| wrap.recipient == *recipient).cloned();
        JobDataSource { signed: self.signed.clone(), wrap }
    }

    /// Returns whether the key is wrapped to this node.
    pub(crate) fn is_open_to(&self, node: NodeId) -> bool {
        self.wraps.iter().any(|wrap| wrap.recipient == Recipient::Node(node))
    }
}
