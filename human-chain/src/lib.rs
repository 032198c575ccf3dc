//! m-of-n approval: circles, policies, proposals, renderings, ballots, certificates, and the orders that draw
//! on them. No other crate can construct an [`Approved`].
//!
//! The crate is pure: time, seeds and nonces are arguments, and it performs no I/O. It is not a log: another
//! crate orders the certificates. It does not trust that order either, since each certificate names the
//! version of its subject.
//!
//! Start reading at [`CircleState`] (state of a circle, derived from its certificates) and [`verify`]
//! (verification of a certificate).

mod approved;
mod ballot;
mod certificate;
mod change;
mod circle;
mod error;
mod form;
mod founding;
mod history;
mod member;
mod order;
mod propose;
mod quorum;
mod render;

pub use approved::Approved;
pub use ballot::{Tally, assemble, certify, check_ballot, tally, vote};
pub use certificate::{read_bundle, read_certificate, read_genesis, verify, verify_replay};
pub use change::{class_of, subject_of};
pub use circle::{ApprovedService, CircleState, RetiredService, circle_id, sign_genesis};
pub use error::ChainError;
pub use founding::{check_draft, merge_signatures, unsigned_founders};
pub use member::{MemberSecret, signature_holds};
pub use order::{FENCE_LEAP_MAX, SlotGrant, check_order, placement_allows};
pub use propose::{PROPOSAL_LIFETIME_MS_MAX, check_proposal, propose};
pub use quorum::{approvals_lacking, describe, least_approvals, names, satisfied};
pub use render::{
    RENDERER_VERSION, Rendering, render, render_difference, render_genesis, show_time, words_of,
};
