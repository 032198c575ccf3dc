//! m-of-n approval: circles, policies, proposals, renderings, ballots, certificates, and the orders that draw
//! on them. No other crate can construct an [`Approved`].
//!
//! The crate is pure: time, seeds and nonces are arguments, and it performs no I/O. It is not a log: another
//! crate orders the certificates. It does not trust that order either, since each certificate names the
//! version of its subject.
//!
//! Start reading at [`CircleState`] (state of a circle, derived from its certificates) and [`verify`]
//! (verification of a certificate).

mod access;
mod approved;
mod ballot;
mod certificate;
mod change;
mod circle;
mod comment;
mod error;
mod form;
mod founding;
mod halt;
mod history;
mod job;
mod known;
mod member;
mod membership;
mod memory;
mod order;
mod passkey;
mod projects;
mod propose;
mod quorum;
mod render;
mod signer;
mod subject;
#[cfg(test)]
mod testing;
mod waiting;
mod withdrawal;
mod wrap;

pub use access::{
    AccessBook, FoundGrant, VerifiedGrant, VerifiedRevocation, check_grant, check_grant_stands,
    check_revocation, describe_grant, may_grant, sign_grant, sign_revocation,
};
pub use approved::Approved;
pub use ballot::{
    Approvals, Electorate, ProposedVotes, Tally, assemble, certify, check_ballot, check_reason, is_approved,
    proposed_votes, sign_ballot, tally, unsigned_ballot, vote,
};
pub use certificate::{
    read_bundle, read_certificate, read_genesis, verify, verify_replay, verify_superseded,
};
pub use circle::{
    ApprovedJob, ApprovedService, CircleState, EarlierApproval, ForgottenModel, LiftedHalt, RetiredJob,
    RetiredService, circle_id, sign_genesis,
};
pub use comment::{
    AnsweredQuestion, CommentThread, VerifiedComment, check_comment, check_comment_text, read_thread,
    render_thread, sign_comment,
};
pub use error::ChainError;
pub use form::{VETO_SECONDS_MAX, check_node};
pub use founding::{check_draft, merge_signatures, sign_as_founder, unsigned_founders};
pub use halt::{DeferredHalts, HaltBook, VerifiedHalt, check_halt, covers, halt_stands, lift, sign_halt};
pub use history::HistoryEntry;
pub use job::{
    GangMembers, GangSlot, JobGrant, MASTER_PORT, RankCommand, RankInput, check_checkpoint, check_gang,
    check_job_data, check_job_order, check_meeting, check_submission, data_recipients, derive_rank,
    rank_host,
};
pub use known::KnownVerdicts;
pub use member::{MemberSecret, check_proven, prove_keys, signature_holds};
pub use membership::joining_members;
pub use memory::HeldMemory;
pub use order::{FENCE_LEAP_MAX, SlotGrant, check_order, placement_allows};
pub use passkey::{
    ballot_challenge, check_assertion, comment_challenge, halt_challenge, read_registration,
    registration_challenge,
};
pub use propose::{PROPOSAL_LIFETIME_MS_MAX, check_proposal, propose};
pub use quorum::{
    approvals_lacking, approvals_to_carry, carries, describe, describe_rule, least_approvals, names,
    satisfied,
};
pub use render::{
    RENDERER_VERSION, Rendering, describe_halt, describe_scope, passkey_words, render, render_difference,
    render_genesis, show_duration, show_time, words_of,
};
pub use signer::{MemberSigner, Statement};
pub use subject::{class_of, subject_of};
pub use waiting::{check_in_time, check_waited, is_vetoable, takes_effect_at, waiting_ms};
pub use withdrawal::{check_withdrawal, sign_withdrawal};
pub use wrap::{
    check_complaint, check_wrap, check_wrap_request, recipient_key, recipients, recipients_touched,
    sign_complaint, sign_wrap, sign_wrap_request,
};
