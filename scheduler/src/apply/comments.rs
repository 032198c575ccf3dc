//! Questions and answers on proposals that are open, and on drafts.
//!
//! A comment is kept beside its proposal and ends with the vote. It counts for nothing: no decision reads it.

use super::known::{circle, not_open};
use crate::cluster::Cluster;
use crate::command::{Actor, Refusal, Reply};
use human_chain::{check_comment, show_time};
use protocol::MemberId;
use protocol::comment::{
    COMMENTS_OF_MEMBER_MAX, COMMENTS_PER_MEMBER_MAX, COMMENTS_PER_PROPOSAL_MAX, SignedComment,
};
use protocol::error_code::{GOVERNANCE_INVALID, LIMIT_REACHED, QUESTION_NOT_FOUND};
use protocol::limits::CLOCK_GRACE_MS;

/// Keeps a comment on an open proposal or a draft. One that is kept already is not kept twice.
pub(super) fn put(cluster: &mut Cluster, signed: &SignedComment) -> Result<Reply, Refusal> {
    let comment = &signed.comment;
    let (id, own) = (comment.proposal, comment.id());
    let found = match (cluster.open.get(&id), cluster.drafts.get(&id)) {
        (Some(open), _) => Some((&open.proposal, &open.comments)),
        (None, Some(draft)) => Some((&draft.proposal, &draft.comments)),
        (None, None) => None,
    };
    let (proposal, thread) = found.ok_or_else(|| not_open(cluster, id))?;
    if thread.iter().any(|kept| kept.comment.id() == own) {
        return Ok(Reply::Done);
    }
    let is_question = |kept: &SignedComment| kept.comment.answers.is_none();
    if let Some(question) = comment.answers
        && !thread.iter().any(|kept| is_question(kept) && kept.comment.id() == question)
    {
        let message = format!("the proposal has no question {question}; `quorate review {id}` lists them");
        return Err(Refusal::new(QUESTION_NOT_FOUND, message));
    }
    check_room(cluster, thread, &comment.member)?;
    if comment.issued_at > cluster.now.0.plus(CLOCK_GRACE_MS) {
        let message = format!(
            "comment: its time, {}, is ahead of the cluster's, {}; check the clock of the member's machine",
            show_time(comment.issued_at),
            show_time(cluster.now.0)
        );
        return Err(Refusal::new(GOVERNANCE_INVALID, message));
    }
    check_comment(circle(cluster)?, proposal, signed)?;
    if let Some(open) = cluster.open.get_mut(&id) {
        open.comments.push(signed.clone());
    } else if let Some(draft) = cluster.drafts.get_mut(&id) {
        draft.comments.push(signed.clone());
    }
    let (actor, subject) = (Actor::Member(comment.member.clone()), format!("proposal/{}", id.short()));
    let action = if comment.answers.is_some() { "answer" } else { "ask" };
    cluster.audit.record(cluster.now, &actor.to_string(), action, &subject, "");
    Ok(Reply::Done)
}

/// Checks that a thread, and its member, have a place for one more comment.
fn check_room(cluster: &Cluster, thread: &[SignedComment], member: &MemberId) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(LIMIT_REACHED, message));
    if thread.len() >= COMMENTS_PER_PROPOSAL_MAX {
        return refuse(format!("the proposal has {COMMENTS_PER_PROPOSAL_MAX} questions and answers already"));
    }
    let of = |kept: &&SignedComment| kept.comment.member == *member;
    if thread.iter().filter(of).count() >= COMMENTS_PER_MEMBER_MAX {
        return refuse(format!(
            "member/{member} has {COMMENTS_PER_MEMBER_MAX} questions and answers on this proposal already"
        ));
    }
    if all(cluster).filter(of).count() >= COMMENTS_OF_MEMBER_MAX {
        return refuse(format!(
            "member/{member} has {COMMENTS_OF_MEMBER_MAX} questions and answers on proposals that wait; they \
             end with the votes"
        ));
    }
    Ok(())
}

/// Returns the comments on all proposals and drafts.
pub(crate) fn all(cluster: &Cluster) -> impl Iterator<Item = &SignedComment> {
    let open = cluster.open.values().flat_map(|open| &open.comments);
    open.chain(cluster.drafts.values().flat_map(|draft| &draft.comments))
}

/// Removes the comments of persons who are no active members any more: a stolen key's texts go with it.
pub(super) fn drop_void(cluster: &mut Cluster) {
    let Some(state) = cluster.circle_state() else { return };
    let void = all(cluster).map(|kept| &kept.comment.member).filter(|id| state.active_member(id).is_err());
    let void: std::collections::BTreeSet<MemberId> = void.cloned().collect();
    if void.is_empty() {
        return;
    }
    let stands = |kept: &SignedComment| !void.contains(&kept.comment.member);
    cluster.open.values_mut().for_each(|open| open.comments.retain(stands));
    cluster.drafts.values_mut().for_each(|draft| draft.comments.retain(stands));
}
