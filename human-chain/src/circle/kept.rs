//! State of a circle as the machine that verified it keeps it, so that a long history is verified once.
//!
//! The bytes carry no signature. They replace the verification of signatures by the word of the machine that
//! wrote them, so a party reads only bytes that it wrote itself, from a place that it alone may write. There
//! they deserve the trust of the circle's pinned id. A state of a peer or of control is never read.
//!
//! The digest in front finds damage; an attacker would compute it too.

use super::signers::FormerSigners;
use super::{
    AdmittedNodes, ApprovedJob, ApprovedService, CircleAccess, CircleState, ForgottenModel, LiftedHalt,
    MemberPasskeys, RetiredJob, RetiredService,
};
use crate::ChainError;
use crate::history::HistoryTree;
use protocol::canonical::{from_own_bytes, to_bytes};
use protocol::governance::{ControlReplica, Member, Policy};
use protocol::project::ProjectTree;
use protocol::usage::Prices;
use protocol::{CircleId, Digest, Epoch, HaltId, MemberId, ModelName, ModelRoot, ServiceName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Digest domain of a kept state.
const DOMAIN: &str = "quorate/kept-circle/v1";
/// Format of the record that this release writes and reads. A change of the rules by which certificates are
/// judged changes it too: a state that was verified by the old rules is verified again.
const VERSION: u32 = 5;
/// Name of the value in errors.
const WHAT: &str = "kept state of a circle";
/// Largest kept state in bytes: a full circle of 10,000 nodes takes about 25 million.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Fields of a state, as [`CircleState`] has them; the compiler compares both.
#[derive(Serialize, Deserialize)]
#[serde(remote = "CircleState", deny_unknown_fields)]
struct CircleFields {
    id: CircleId,
    name: String,
    epoch: Epoch,
    members: BTreeMap<MemberId, Member>,
    former_members: BTreeSet<MemberId>,
    former_keys: BTreeSet<Digest>,
    former_passkeys: BTreeMap<Digest, MemberId>,
    former_signers: BTreeMap<MemberId, FormerSigners>,
    suspended: BTreeMap<MemberId, BTreeSet<Digest>>,
    policy: Policy,
    passkeys: BTreeMap<MemberId, MemberPasskeys>,
    control: Vec<ControlReplica>,
    access: CircleAccess,
    prices: Prices,
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRecord {
    version: u32,
    #[serde(with = "CircleFields")]
    state: CircleState,
}

impl CircleState {
    /// Largest kept state in bytes.
    pub const KEPT_BYTES_MAX: usize = BYTES_MAX;

    /// Returns the state as bytes for a file of this machine alone.
    #[must_use]
    pub fn to_kept_bytes(&self) -> Vec<u8> {
        let record = to_bytes(&KeptRecord { version: VERSION, state: self.clone() });
        let digest = Digest::of_domain(DOMAIN, &record);
        [digest.as_bytes(), &record[..]].concat()
    }

    /// Reads a state that this machine kept. The caller vouches that it wrote the bytes: no signature is
    /// verified.
    ///
    /// # Errors
    /// Returns an error when the bytes are damaged, or are of another circle or another format.
    pub fn from_kept_bytes(bytes: &[u8], expected: CircleId) -> Result<Self, ChainError> {
        let damaged = || ChainError::invalid(WHAT, "damaged");
        let (digest, record) = bytes.split_first_chunk().ok_or_else(damaged)?;
        if Digest(*digest) != Digest::of_domain(DOMAIN, record) {
            return Err(damaged());
        }
        let KeptRecord { version, state } = from_own_bytes(record, BYTES_MAX)
            .map_err(|source| ChainError::NotCanonical { what: WHAT, source })?;
        if version != VERSION {
            let reason = format!("of format {version}; this release reads {VERSION}");
            return Err(ChainError::invalid(WHAT, reason));
        }
        if state.id != expected {
            return Err(ChainError::OtherCircle { expected, actual: state.id });
        }
        debug_assert_eq!(state.epoch.0, state.subject(super::CIRCLE_SUBJECT).version);
        Ok(state)
    }
}
