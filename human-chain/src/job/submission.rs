//! Verification of submissions: whether this party may run these parameters under the certificate in force.

use super::rank::{derive_rank, mismatch};
use crate::member::both_hold;
use crate::{ApprovedJob, ChainError, CircleState, signature_holds};
use protocol::Millis;
use protocol::canonical::to_bytes;
use protocol::job::{ArrayTask, JobSubmission, SUBMISSION_DOMAIN, SignedSubmission, SlotRanks, Submitter};
use protocol::limits::{
    ARRAY_TASKS_MAX, CLOCK_GRACE_MS, JOB_AFTER_MAX, SUBMISSION_BYTES_MAX, SUBMISSION_SECONDS_MAX,
};
use protocol::manifest::JobManifest;

/// Verifies a submission against the circle's state. Control does so when it takes one, and each node again
/// before it runs a rank.
///
/// A submission by token has no signature: control alone can check the token, and a hostile control can
/// submit what the token could, within the bounds that members approved.
///
/// # Errors
/// Returns the first check that fails, in this order: size; circle and certificate in force; end of the
/// approval; deadline; priority; dependencies and array; submitter and its signature; parameters, artifact
/// and command. A node does not know whether the jobs that this one follows have succeeded: control orders
/// it after them.
pub fn check_submission<'a>(
    state: &'a CircleState,
    signed: &SignedSubmission,
    now: Millis,
) -> Result<&'a ApprovedJob, ChainError> {
    let submission = &signed.submission;
    let job = approved_job(state, submission)?;
    let manifest = &job.manifest;
    let length = to_bytes(signed).len();
    if length > SUBMISSION_BYTES_MAX {
        let reason = format!("it has {length} bytes; accepted: at most {SUBMISSION_BYTES_MAX}");
        return Err(mismatch(manifest, &reason));
    }
    check_times(manifest, submission, now)?;
    if submission.priority > manifest.priority {
        let (asked, most) = (submission.priority, manifest.priority);
        return Err(mismatch(manifest, &format!("it asks for priority {asked}; accepted: 0 to {most}")));
    }
    check_places(manifest, submission)?;
    check_submitter(state, manifest, signed)?;
    // The place of a rank changes no parameter: what holds for the first rank holds for all.
    derive_rank(manifest, submission, SlotRanks { first: 0, count: 1 }, 0, &[])?;
    debug_assert_eq!(submission.certificate, job.certificate, "the submission is to what is in force");
    Ok(job)
}

/// Checks that the list of jobs that it follows and its task of an array are written in one way, and bounded.
fn check_places(manifest: &JobManifest, named: &JobSubmission) -> Result<(), ChainError> {
    if named.after.len() > JOB_AFTER_MAX {
        let reason = format!("it follows {} jobs; accepted: at most {JOB_AFTER_MAX}", named.after.len());
        return Err(mismatch(manifest, &reason));
    }
    if !named.after.is_sorted_by(|one, next| one < next) {
        return Err(mismatch(manifest, "the jobs that it follows are not listed once each, ascending"));
    }
    let Some(ArrayTask { index, count, .. }) = named.array else { return Ok(()) };
    if !(1..=ARRAY_TASKS_MAX).contains(&count) {
        let reason = format!("its array has {count} tasks; accepted: 1 to {ARRAY_TASKS_MAX}");
        return Err(mismatch(manifest, &reason));
    }
    if index >= count {
        return Err(mismatch(manifest, &format!("it is task {index} of an array of {count}, from 0")));
    }
    Ok(())
}

fn approved_job<'a>(state: &'a CircleState, named: &JobSubmission) -> Result<&'a ApprovedJob, ChainError> {
    let refuse = |reason: &str| {
        Err(ChainError::SubmissionMismatch { job: named.job.clone(), reason: reason.to_string() })
    };
    if named.circle != state.id() {
        return refuse("it belongs to another circle");
    }
    let Some(job) = state.job(&named.job) else {
        return refuse(if state.is_retired_job(&named.job) {
            "the job is retired"
        } else {
            "no certificate approves the job"
        });
    };
    debug_assert_eq!(job.manifest.name, named.job, "a job is approved under its own name");
    if job.certificate != named.certificate {
        return refuse("it names a certificate that is not the one in force");
    }
    Ok(job)
}

/// Checks that neither the approval nor the submission has ended, and that its deadline is near enough that a
/// signed submission is of no use to a thief later.
fn check_times(manifest: &JobManifest, named: &JobSubmission, now: Millis) -> Result<(), ChainError> {
    if let Some(until) = manifest.valid_until.filter(|until| now > until.plus(CLOCK_GRACE_MS)) {
        return Err(ChainError::EnvelopeExpired { job: manifest.name.clone(), until, now });
    }
    if now > named.deadline.plus(CLOCK_GRACE_MS) {
        return Err(ChainError::SubmissionExpired { deadline: named.deadline, now });
    }
    if named.deadline > named.issued_at.plus(SUBMISSION_SECONDS_MAX * 1000) {
        let days = SUBMISSION_SECONDS_MAX / 86_400;
        return Err(mismatch(manifest, &format!("its deadline is more than {days} days after it was made")));
    }
    if named.issued_at > now.plus(CLOCK_GRACE_MS) {
        return Err(mismatch(manifest, "it was made in the future; check the clock of its submitter"));
    }
    Ok(())
}

/// Checks that the manifest lets the submitter submit, and that the submitter signed where it must.
fn check_submitter(
    state: &CircleState,
    manifest: &JobManifest,
    signed: &SignedSubmission,
) -> Result<(), ChainError> {
    let submission = &signed.submission;
    let allowed = &manifest.submit;
    let refuse =
        |submitter: String| Err(ChainError::SubmitterRefused { job: manifest.name.clone(), submitter });
    let signature = || {
        let unsigned = || ChainError::SubmissionUnsigned(manifest.name.clone());
        signed.signature.as_ref().ok_or_else(unsigned)
    };
    let bytes = to_bytes(submission);
    debug_assert_eq!(submission.job, manifest.name, "the submission is to this job");
    match &submission.submitter {
        Submitter::Token(_) if manifest.is_open() => {
            Err(ChainError::SubmissionUnsigned(manifest.name.clone()))
        }
        Submitter::Token(holder) if !allowed.any_token && !allowed.tokens.contains(holder) => {
            refuse(format!("the token of `{holder}`"))
        }
        Submitter::Token(_) if signed.signature.is_some() => {
            Err(mismatch(manifest, "it is by token, and has a signature that no key of a token made"))
        }
        Submitter::Token(_) => Ok(()),
        Submitter::Member(member) if !allowed.members => refuse(format!("the member `{member}`")),
        Submitter::Member(id) => {
            let member = state.active_member(id)?;
            if signature_holds(&member.keys, SUBMISSION_DOMAIN, &bytes, signature()?) {
                return Ok(());
            }
            Err(ChainError::SignatureInvalid(id.clone()))
        }
        Submitter::Signer(signer) => {
            let Some(key) = allowed.signers.get(signer) else {
                return refuse(format!("the submit key `{signer}`"));
            };
            if both_hold(&key.ed25519, &key.ml_dsa, SUBMISSION_DOMAIN, &bytes, signature()?) {
                return Ok(());
            }
            Err(ChainError::SubmitSignatureInvalid(signer.clone()))
        }
    }
}
