//! Comments on a proposal: signing, verification, and the thread that people read before they sign.
//!
//! A comment counts for nothing, so its verification says who speaks, and no more. A thread shows each
//! comment that verifies under the name of its member, and of the others the name that they claim, with the
//! reason.

use crate::{ChainError, CircleState, MemberSigner, Statement, show_time, signature_holds};
use protocol::canonical::to_bytes;
use protocol::comment::{
    COMMENT_BYTES_MAX, COMMENT_DOMAIN, COMMENT_TEXT_BYTES_MAX, COMMENTS_PER_PROPOSAL_MAX, Comment,
    CommentSignature, SignedComment,
};
use protocol::foreign_text::line;
use protocol::governance::Proposal;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{CommentId, MemberId};
use std::collections::{BTreeMap, BTreeSet};

/// Width of the text of a comment in a terminal, in columns: with its margin it fits the narrowest usual one,
/// so that no terminal breaks a line into one without a margin.
const TEXT_COLUMNS: usize = 72;

/// Signs a comment with its member's keys.
pub fn sign_comment<S: MemberSigner>(signer: &S, comment: Comment) -> S::Signed<SignedComment> {
    let act = if comment.answers.is_some() { "Answer" } else { "Ask" };
    let (member, proposal, text) = (&comment.member, comment.proposal, line(&comment.text));
    let summary = format!("{act} on the proposal {proposal} as {member}: {text}");
    let statement = Statement::new(COMMENT_DOMAIN, to_bytes(&comment), summary);
    signer.sign_statement(&statement, |signature| {
        let signature = CommentSignature::Hybrid(signature);
        SignedComment { comment, signature }
    })
}

/// Checks the length of a comment's text, and that it says something.
///
/// # Errors
/// Returns an error if the text is empty or longer than a comment may hold.
pub fn check_comment_text(text: &str) -> Result<(), ChainError> {
    let (length, most) = (text.len(), COMMENT_TEXT_BYTES_MAX);
    if text.trim().is_empty() {
        return Err(ChainError::invalid("comment", "its text is empty"));
    }
    if length > most {
        let reason = format!("its text is {length} bytes; accepted: at most {most}");
        return Err(ChainError::invalid("comment", reason));
    }
    Ok(())
}

/// Checks that a comment is its member's own, about exactly this proposal. Whether the question that it
/// answers is there follows from the thread and not from the comment.
///
/// # Errors
/// Returns the first check that fails, in this order: size; proposal; text; time; the member and its
/// suspension; the signature, by both of its keys in force or by one of its passkeys. A passkey comments
/// whether or not the policy counts votes by passkey.
pub fn check_comment(
    state: &CircleState,
    proposal: &Proposal,
    signed: &SignedComment,
) -> Result<(), ChainError> {
    let length = to_bytes(signed).len();
    if length > COMMENT_BYTES_MAX {
        let reason = format!("{length} bytes; accepted: at most {COMMENT_BYTES_MAX}");
        return Err(ChainError::invalid("comment", reason));
    }
    let comment = &signed.comment;
    if comment.proposal != proposal.id() {
        return Err(ChainError::invalid("comment", "it is about another proposal"));
    }
    check_comment_text(&comment.text)?;
    if comment.issued_at.plus(CLOCK_GRACE_MS) < proposal.created_at {
        return Err(ChainError::invalid("comment", "it is older than its proposal"));
    }
    let member = state.active_member(&comment.member)?;
    match &signed.signature {
        CommentSignature::Hybrid(signature) => {
            if !signature_holds(&member.keys, COMMENT_DOMAIN, &to_bytes(comment), signature) {
                return Err(ChainError::SignatureInvalid(comment.member.clone()));
            }
        }
        CommentSignature::Passkey(assertion) => state.check_passkey_comment(comment, assertion)?,
    }
    debug_assert!(!state.is_suspended(&comment.member), "a suspended member says nothing");
    Ok(())
}

/// Comment whose signature was verified. Only [`read_thread`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedComment {
    id: CommentId,
    signed: SignedComment,
}

impl VerifiedComment {
    /// Returns the id of the comment.
    #[must_use]
    pub fn id(&self) -> CommentId {
        self.id
    }

    /// Returns the comment.
    #[must_use]
    pub fn comment(&self) -> &Comment {
        &self.signed.comment
    }

    /// Returns whether a passkey signed it, and not the member's keys.
    #[must_use]
    pub fn is_by_passkey(&self) -> bool {
        !self.signed.is_hybrid()
    }
}

/// A question with its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredQuestion {
    /// The question itself.
    pub asked: VerifiedComment,
    /// Its answers, in the order of their times.
    pub answers: Vec<VerifiedComment>,
}

/// Questions about a proposal with their answers. The order follows from the comments, and not from that in
/// which a server shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommentThread {
    /// Questions, in the order of their times.
    pub questions: Vec<AnsweredQuestion>,
    /// Answers to questions that are not shown, in the order of their times.
    pub loose: Vec<VerifiedComment>,
    /// Comments that do not verify: the member that each names, and the reason.
    pub refused: Vec<(MemberId, ChainError)>,
    /// Number of comments beyond the most that a proposal may have; they were not read.
    pub unread: usize,
}

impl CommentThread {
    /// Returns whether there is nothing to show.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty() && self.loose.is_empty() && self.refused.is_empty() && self.unread == 0
    }

    /// Returns the number of questions without an answer.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.questions.iter().filter(|question| question.answers.is_empty()).count()
    }
}

/// Verifies the comments on a proposal and puts each answer to its question. Each is taken once.
#[must_use]
pub fn read_thread(state: &CircleState, proposal: &Proposal, comments: &[SignedComment]) -> CommentThread {
    thread_by(comments, |signed| check_comment(state, proposal, signed))
}

/// Puts the comments that pass this check into their places.
pub(crate) fn thread_by(
    comments: &[SignedComment],
    mut check: impl FnMut(&SignedComment) -> Result<(), ChainError>,
) -> CommentThread {
    let unread = comments.len().saturating_sub(COMMENTS_PER_PROPOSAL_MAX);
    let (mut refused, mut seen, mut taken) = (Vec::new(), BTreeSet::new(), Vec::new());
    for signed in comments.iter().take(COMMENTS_PER_PROPOSAL_MAX) {
        let id = signed.comment.id();
        match check(signed) {
            Err(error) => refused.push((signed.comment.member.clone(), error)),
            Ok(()) if seen.insert(id) => taken.push(VerifiedComment { id, signed: signed.clone() }),
            Ok(()) => {}
        }
    }
    taken.sort_by_key(|one| (one.comment().issued_at, one.id.0));
    let (asked, answers): (Vec<_>, Vec<_>) =
        taken.into_iter().partition(|one| one.comment().answers.is_none());
    let mut questions: Vec<AnsweredQuestion> =
        asked.into_iter().map(|asked| AnsweredQuestion { asked, answers: Vec::new() }).collect();
    let places: BTreeMap<CommentId, usize> =
        questions.iter().enumerate().map(|(place, question)| (question.asked.id, place)).collect();
    let mut loose = Vec::new();
    for answer in answers {
        let place = answer.comment().answers.and_then(|id| places.get(&id));
        match place.and_then(|place| questions.get_mut(*place)) {
            Some(question) => question.answers.push(answer),
            None => loose.push(answer),
        }
    }
    debug_assert!(refused.len() + seen.len() <= comments.len(), "each comment is taken once or refused");
    CommentThread { questions, loose, refused, unread }
}

/// Returns a thread as lines for a terminal; empty for an empty thread. The lines of each text have a margin
/// of their own, and none is so long that a terminal breaks it: no text imitates the name above another.
#[must_use]
pub fn render_thread(thread: &CommentThread) -> String {
    let mut out = String::new();
    for question in &thread.questions {
        entry(&mut out, "", "asks", &question.asked);
        for answer in &question.answers {
            entry(&mut out, "  ", "answers", answer);
        }
    }
    for answer in &thread.loose {
        entry(&mut out, "", "answers a question that control does not show", answer);
    }
    for (member, error) in &thread.refused {
        out.push_str(&format!("a comment in the name of {member} does not verify: {error}\n"));
    }
    if thread.unread > 0 {
        out.push_str(&format!("control shows {} more than a proposal may have\n", thread.unread));
    }
    out
}

fn entry(out: &mut String, indent: &str, verb: &str, one: &VerifiedComment) {
    let Comment { member, text, issued_at, .. } = one.comment();
    let means = if one.is_by_passkey() { ", by passkey" } else { "" };
    let (id, at) = (one.id.short(), show_time(*issued_at));
    out.push_str(&format!("{indent}{member} {verb} ({id}){means}, {at}\n"));
    for row in text.split('\n').flat_map(|part| wrapped(&line(part))) {
        out.push_str(&format!("{indent}  | {row}\n"));
    }
}

/// Breaks a text into rows of at most [`TEXT_COLUMNS`], between words where that is possible.
fn wrapped(text: &str) -> Vec<String> {
    let (mut rows, mut row, mut columns) = (Vec::new(), String::new(), 0);
    for word in text.split_whitespace() {
        let width: usize = word.chars().map(width_of).sum();
        if columns > 0 && columns + 1 + width > TEXT_COLUMNS {
            rows.push(std::mem::take(&mut row));
            columns = 0;
        }
        if columns > 0 {
            row.push(' ');
            columns += 1;
        }
        for c in word.chars() {
            if columns + width_of(c) > TEXT_COLUMNS {
                rows.push(std::mem::take(&mut row));
                columns = 0;
            }
            row.push(c);
            columns += width_of(c);
        }
    }
    rows.push(row);
    rows
}

/// Returns the most columns that a terminal needs for a character.
fn width_of(c: char) -> usize {
    if c.is_ascii() { 1 } else { 2 }
}
