//! Reviews that a console keeps between pages, so that the cost of a page follows what is new.
//!
//! Nothing in them is a server's word: they are verdicts on signatures, made here. A verdict is for one
//! proposal at one head of the history, and for exactly the bytes that were verified.

use crate::reviewed::KnownReview;
use protocol::ProposalId;
use protocol::limits::PROPOSALS_OPEN_MAX;
use std::collections::BTreeMap;

/// Most proposals whose reviews are kept: those that may be open, and as many drafts. Control can show more;
/// those are verified for each page.
const REVIEWS_MAX: usize = 2 * PROPOSALS_OPEN_MAX;

/// A review, and the time of its last use.
#[derive(Debug)]
struct KeptReview {
    known: KnownReview,
    used: u64,
}

/// The reviews of a console. The one that was not used for the longest time gives way.
#[derive(Debug, Default)]
pub(crate) struct KeptReviews {
    reviews: BTreeMap<ProposalId, KeptReview>,
    uses: u64,
}

impl KeptReviews {
    /// Takes what is known of a proposal out; a new review begins empty. A page that is shown at the same
    /// time verifies again.
    pub(crate) fn take(&mut self, id: &ProposalId) -> KnownReview {
        self.reviews.remove(id).map(|kept| kept.known).unwrap_or_default()
    }

    /// Keeps what is known of a proposal.
    pub(crate) fn put(&mut self, id: ProposalId, known: KnownReview) {
        self.uses += 1;
        if self.reviews.len() >= REVIEWS_MAX && !self.reviews.contains_key(&id) {
            let oldest = self.reviews.iter().min_by_key(|(_, kept)| kept.used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.reviews.remove(&oldest);
            }
        }
        self.reviews.insert(id, KeptReview { known, used: self.uses });
        debug_assert!(self.reviews.len() <= REVIEWS_MAX, "one gave way");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    /// Attack: control shows proposals without end, each of them new.
    #[test]
    fn a_flood_of_proposals_takes_a_limited_amount_of_memory() {
        let id = |number: usize| ProposalId(Digest::of(&number.to_le_bytes()));
        let mut kept = KeptReviews::default();
        for number in 0..2 * REVIEWS_MAX {
            kept.put(id(number), KnownReview::default());
            // The first one is on every page.
            let first = kept.take(&id(0));
            kept.put(id(0), first);
        }
        assert_eq!(kept.reviews.len(), REVIEWS_MAX);
        assert!(kept.reviews.contains_key(&id(0)), "positive control: what is used stays");
        assert!(kept.reviews.contains_key(&id(2 * REVIEWS_MAX - 1)) && !kept.reviews.contains_key(&id(1)));
    }
}
