//! The console: pages on which people read what their circle decides, and vote.
//!
//! A page is a pure function of values that were verified before: data in, markup out. [`router`] serves the
//! pages over a [`ConsoleBackend`], of which there are two: a control replica, and a member's own binary,
//! which verifies the whole history itself. Votes are counted from ballots in both, with the code that also
//! verifies certificates.
//!
//! A browser holds a session cookie and nothing else: no access token and no key. Scripts and styles are two
//! files of this crate, and every answer forbids any other.

mod backend;
mod guard;
mod kept;
mod page;
mod reviewed;
mod server;
mod sign_in;
mod words;

pub use backend::{
    BackendAnswer, ChangeOutlook, CircleReading, ClusterReport, ConsoleBackend, HaltRecord, HaltReport,
    PageSource, ProposalRecord, is_about, model_root,
};
pub use guard::WebOrigins;
pub use reviewed::{KnownReview, RefusedBallot, ReviewedProposal, check_id};
pub use server::{Console, router};
pub use sign_in::{LINK_LIFE_MS, SignIn, Visitor};
pub use words::compare_words;
