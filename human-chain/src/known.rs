//! Verdicts on the ballots and comments of a proposal, kept so that each signature is verified once.
//!
//! A verdict depends on the circle's state, the proposal and the signed bytes, and on nothing else. It is
//! kept under a digest of those bytes, and only for the state and the proposal of the last count: another
//! head of the history or another proposal voids all of them. Votes are counted each time.

use crate::ballot::{BallotBox, tally_by};
use crate::comment::thread_by;
use crate::{ChainError, CircleState, CommentThread, Electorate, Tally, check_comment};
use protocol::canonical::to_bytes;
use protocol::comment::{COMMENTS_PER_PROPOSAL_MAX, SignedComment};
use protocol::governance::{HistoryHead, Proposal, SignedBallot};
use protocol::limits::BALLOTS_MAX;
use protocol::{CircleId, Digest, ProposalId};
use serde::Serialize;
use std::collections::BTreeMap;

/// Digest domain of signed bytes under which a verdict is kept. It never leaves a process.
const VERDICT_DOMAIN: &str = "quorate/known-verdict/v1";

/// State and proposal that verdicts are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Occasion {
    circle: CircleId,
    head: HistoryHead,
    proposal: ProposalId,
}

/// Verdicts on the ballots and comments of one proposal, in one state of a circle. No more are kept than a
/// proposal may have; what is beyond that is verified each time.
#[derive(Debug, Clone, Default)]
pub struct KnownVerdicts {
    occasion: Option<Occasion>,
    ballots: BTreeMap<Digest, Result<Electorate, ChainError>>,
    comments: BTreeMap<Digest, Result<(), ChainError>>,
    verified: u64,
}

impl KnownVerdicts {
    /// Counts the ballots as [`tally`](crate::tally) does. Only those that were not in the last count of this
    /// proposal, at this head, are verified.
    #[must_use]
    pub fn tally(&mut self, state: &CircleState, proposal: &Proposal, ballots: &[SignedBallot]) -> Tally {
        let ballot_box = BallotBox::new(state, proposal);
        self.turn_to(state, ballot_box.id());
        let known = std::mem::take(&mut self.ballots);
        let (fresh, verified) = (&mut self.ballots, &mut self.verified);
        let tally = tally_by(state, proposal, ballots, |signed| {
            recall(&known, fresh, BALLOTS_MAX, verified, signed, || ballot_box.check(signed))
        });
        debug_assert!(self.ballots.len() <= BALLOTS_MAX, "verdicts are kept up to a limit");
        tally
    }

    /// Reads the thread of a proposal as [`read_thread`](crate::read_thread) does. Only comments that were
    /// not in the last one, at this head, are verified.
    #[must_use]
    pub fn thread(
        &mut self,
        state: &CircleState,
        proposal: &Proposal,
        comments: &[SignedComment],
    ) -> CommentThread {
        self.turn_to(state, proposal.id());
        let known = std::mem::take(&mut self.comments);
        let (fresh, verified, most) = (&mut self.comments, &mut self.verified, COMMENTS_PER_PROPOSAL_MAX);
        let thread = thread_by(comments, |signed| {
            recall(&known, fresh, most, verified, signed, || check_comment(state, proposal, signed))
        });
        debug_assert!(self.comments.len() <= most, "verdicts are kept up to a limit");
        thread
    }

    /// Returns the number of signatures that were verified so far, and not recalled.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// Forgets every verdict that is about another state or proposal.
    fn turn_to(&mut self, state: &CircleState, proposal: ProposalId) {
        let occasion = Some(Occasion { circle: state.id(), head: state.head(), proposal });
        if self.occasion != occasion {
            *self = Self { occasion, verified: self.verified, ..Self::default() };
        }
        debug_assert_eq!(self.occasion, occasion, "verdicts are about what is asked");
    }
}

/// Returns the verdict on signed bytes: the known one, or that of `check`. Keeps it if there is room.
fn recall<S: Serialize, T: Clone>(
    known: &BTreeMap<Digest, Result<T, ChainError>>,
    fresh: &mut BTreeMap<Digest, Result<T, ChainError>>,
    most: usize,
    verified: &mut u64,
    signed: &S,
    check: impl FnOnce() -> Result<T, ChainError>,
) -> Result<T, ChainError> {
    let digest = Digest::of_domain(VERDICT_DOMAIN, &to_bytes(signed));
    let verdict = match known.get(&digest).or_else(|| fresh.get(&digest)) {
        Some(verdict) => verdict.clone(),
        None => {
            *verified += 1;
            check()
        }
    };
    if fresh.len() < most {
        fresh.insert(digest, verdict.clone());
    }
    verdict
}
