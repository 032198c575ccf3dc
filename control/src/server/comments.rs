//! Rate limit of the questions and answers that a replica takes to the log. The state machine bounds
//! the number that is kept.

use super::problem::Failure;
use overlay::{Rate, RateLimiter};
use protocol::{MemberId, TokenName, error_code};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Rate limit of one access token, or of one member at the console: people write no faster. Each comment
/// costs two signature checks and an entry of the log.
const COMMENTS_PER_SUBMITTER: Rate = Rate { burst: 16, interval: Duration::from_secs(5) };
/// Rate limit of all submitters.
const COMMENTS_TOTAL: Rate = Rate { burst: 64, interval: Duration::from_millis(500) };
/// Maximum number of submitters remembered.
const SUBMITTERS_MAX: usize = 1024;

/// Party that sends comments, for the limit of its rate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum CommentSubmitter {
    /// Holder of an access token.
    Token(TokenName),
    /// Member that is signed in at the console.
    Member(MemberId),
}

/// Limiter of the comments at one replica.
pub(super) struct CommentLimiter {
    /// Origin of the limiter's clock, which is monotonic.
    began: Instant,
    limiter: Mutex<RateLimiter<CommentSubmitter>>,
}

impl Default for CommentLimiter {
    fn default() -> Self {
        let limiter = Mutex::new(RateLimiter::new(SUBMITTERS_MAX, Some(COMMENTS_TOTAL)));
        Self { began: Instant::now(), limiter }
    }
}

impl CommentLimiter {
    /// Takes one comment from a submitter's limit. The party that sends it is limited, and not the member
    /// that it names: a forged name takes nothing from its member.
    ///
    /// # Errors
    /// `limit-reached`, with the time to wait.
    pub(super) fn admit(&self, submitter: &CommentSubmitter) -> Result<(), Failure> {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(submitter, COMMENTS_PER_SUBMITTER, self.began.elapsed()).map_err(|wait| {
            let message = "too many questions from this access token or member";
            let failure = Failure::new(error_code::LIMIT_REACHED, message);
            failure.remedy(format!("retry in {} s", wait.as_millis().div_ceil(1000)))
        })
    }
}
