//! Comments on a proposal: members ask, and members answer, while the vote runs.
//!
//! A comment is signed in a domain of its own. It is no ballot, counts for nothing, and is no part of a
//! certificate. Its text is foreign: `human-chain` verifies comments and renders them for people.

use crate::canonical;
use crate::digest::Digest;
use crate::ids::{CommentId, MemberId, Millis, ProposalId};
use crate::keys::HybridSignature;
use crate::limits::BALLOT_BYTES_MAX;
use crate::passkey::PasskeyAssertion;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Signature domain of a comment's hybrid signature, and digest domain of its id.
pub const COMMENT_DOMAIN: &str = "quorate/comment/v1";
/// Maximum length of a comment's text in bytes: a paragraph. A longer text is a document that it names.
pub const COMMENT_TEXT_BYTES_MAX: usize = 1024;
/// Maximum size of a signed comment in bytes: that of a ballot, which carries the same signature and a
/// shorter text.
pub const COMMENT_BYTES_MAX: usize = BALLOT_BYTES_MAX + COMMENT_TEXT_BYTES_MAX;
/// Maximum number of comments on one proposal: people read no longer thread before they sign.
pub const COMMENTS_PER_PROPOSAL_MAX: usize = 64;
/// Maximum number of comments of one member on one proposal, so that no member fills a thread alone.
pub const COMMENTS_PER_MEMBER_MAX: usize = 16;
/// Maximum number of comments of one member on all proposals and drafts: a stolen key fills no disk.
pub const COMMENTS_OF_MEMBER_MAX: usize = 64;

const _: () = assert!(
    COMMENTS_PER_PROPOSAL_MAX >= 2 * COMMENTS_PER_MEMBER_MAX,
    "two members fill no thread, so a third one is read"
);

/// Question about a proposal, or the answer to one. It needs no other signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    /// Proposal that it is about. The id names circle and epoch.
    pub proposal: ProposalId,
    /// Member that asks or answers.
    pub member: MemberId,
    /// Question that it answers; none for a question.
    pub answers: Option<CommentId>,
    /// Text in the member's words; 1 to [`COMMENT_TEXT_BYTES_MAX`] bytes.
    pub text: String,
    /// Time of signing, by the member's clock.
    pub issued_at: Millis,
}

impl Comment {
    /// Returns the comment's id: the digest of its canonical bytes. The signature is no part of it.
    #[must_use]
    pub fn id(&self) -> CommentId {
        CommentId(Digest::of_domain(COMMENT_DOMAIN, &canonical::to_bytes(self)))
    }
}

/// Signature of a comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CommentSignature {
    /// Signature by both of the member's keys, domain [`COMMENT_DOMAIN`].
    Hybrid(HybridSignature),
    /// Signature by one of the member's passkeys, whose challenge is the comment's digest in the domain
    /// [`crate::passkey::PASSKEY_COMMENT_DOMAIN`].
    Passkey(PasskeyAssertion),
}

/// Comment with its member's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedComment {
    /// Comment that the member signed.
    pub comment: Comment,
    /// Signature by the member's keys, or by a passkey.
    pub signature: CommentSignature,
}

impl SignedComment {
    /// Returns whether the comment has the signature of the member's keys, and not that of a passkey.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        matches!(self.signature, CommentSignature::Hybrid(_))
    }
}
