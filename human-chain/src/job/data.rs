//! Verification of a node's statement about a checkpoint, outputs or logs of a job: by control before it
//! keeps the data, and by a node before its ranks begin with it.
//!
//! A statement proves which admitted node made the data. It does not prove that control kept the newest: a
//! hostile control can offer an older one, or none.

use super::JobGrant;
use crate::order::placement_allows;
use crate::{ChainError, CircleState, recipients};
use protocol::ServiceName;
use protocol::job_data::{JOB_DATA_VERSION, JOB_DATA_WRAPS_MAX, JobDataKind, SignedJobData};
use protocol::keys::EncryptionKey;
use protocol::manifest::JobManifest;
use protocol::model::Recipient;

/// Verifies a statement: a node that the circle admits signed it, about data of a job in this circle.
///
/// # Errors
/// Returns the first check that fails: format, circle, kind of the stored item, rank 0, admission of the
/// node, signature.
pub fn check_job_data(state: &CircleState, signed: &SignedJobData) -> Result<(), ChainError> {
    let data = &signed.data;
    let refuse = |reason| Err(invalid(&data.job, reason));
    if data.version != JOB_DATA_VERSION {
        return refuse("its format is of another release");
    }
    if data.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: data.circle });
    }
    if data.tree().is_none() {
        return refuse("what it names is no data of a job");
    }
    if data.ranks.count == 0 || data.attempt == 0 {
        return refuse("its slot runs no rank of an attempt");
    }
    if data.ranks.first != 0 && data.kind != JobDataKind::Logs {
        return refuse("its slot does not run rank 0");
    }
    if state.node_by_id(data.node).is_none() {
        return Err(ChainError::NodeNotAdmitted(data.node));
    }
    debug_assert_eq!(data.version, JOB_DATA_VERSION, "one format is read");
    if signed.signature_holds() { Ok(()) } else { refuse("its node did not sign it") }
}

/// Verifies that a slot may begin with a checkpoint: it is of the same job, and of an earlier attempt.
///
/// # Errors
/// Returns the first check that fails: those of [`check_job_data`]; job and kind; attempt.
pub fn check_checkpoint(
    state: &CircleState,
    signed: &SignedJobData,
    grant: &JobGrant,
) -> Result<(), ChainError> {
    check_job_data(state, signed)?;
    let data = &signed.data;
    debug_assert!(data.tree().is_some(), "checked before");
    if data.id != grant.id || data.job != grant.manifest.name {
        return Err(invalid(&data.job, "it is of another job"));
    }
    if !matches!(data.kind, JobDataKind::Checkpoint(_)) {
        return Err(invalid(&data.job, "it is no checkpoint"));
    }
    if data.attempt >= grant.attempt {
        return Err(invalid(&data.job, "it is of no earlier attempt"));
    }
    Ok(())
}

/// Returns the parties to which the key of a job's data is wrapped, with their keys: every active member, and
/// the workers on which the envelope lets the job run, which may begin with a checkpoint of another. No node
/// reads logs. The members come first, at most [`JOB_DATA_WRAPS_MAX`] in all.
#[must_use]
pub fn data_recipients<'a>(
    state: &'a CircleState,
    manifest: &JobManifest,
    kind: &JobDataKind,
) -> Vec<(Recipient, &'a EncryptionKey)> {
    let admits = |recipient: &Recipient| match recipient {
        Recipient::Member(_) => true,
        Recipient::Node(_) if *kind == JobDataKind::Logs => false,
        Recipient::Node(id) => {
            state.node_by_id(*id).is_some_and(|node| placement_allows(&manifest.placement, node))
        }
    };
    let admitted = recipients(state).filter(|(recipient, _)| admits(recipient));
    let chosen: Vec<_> = admitted.take(JOB_DATA_WRAPS_MAX).collect();
    debug_assert!(chosen.len() <= JOB_DATA_WRAPS_MAX, "a statement holds them");
    chosen
}

fn invalid(job: &ServiceName, reason: &'static str) -> ChainError {
    ChainError::JobDataInvalid { job: job.clone(), reason }
}
