//! Delivery of announcements: attempts with growing pauses, until the vote has ended.

use super::announce::{Announcement, AttemptError};
use super::mail::MailProgram;
use super::webhook::Webhook;
use protocol::{Digest, Millis};
use std::time::Duration;

/// Pause after the first attempt that failed; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause. A receiver that is back gets its notice within ten minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A way on which proposals are announced.
pub(super) enum Notice {
    Webhook(Box<Webhook>),
    Mail(MailProgram),
    /// A receiver of a test.
    #[cfg(test)]
    Simulated(super::watching::Receiver),
}

/// Digest domain of the name of a way.
const WAY_DOMAIN: &str = "quorate/notice-way/v1";

impl Notice {
    /// Returns the digest that names this way: another address is another way.
    pub(super) fn way(&self) -> Digest {
        let name = match self {
            Self::Webhook(webhook) => format!("webhook {}", webhook.address()),
            Self::Mail(mail) => format!("mail {}", mail.addresses().join(" ")),
            #[cfg(test)]
            Self::Simulated(receiver) => format!("simulated {}", receiver.name),
        };
        Digest::of_domain(WAY_DOMAIN, name.as_bytes())
    }

    /// Makes one attempt.
    pub(super) async fn send(&self, announcement: &Announcement) -> Result<(), AttemptError> {
        match self {
            Self::Webhook(webhook) => webhook.send(announcement).await,
            Self::Mail(mail) => mail.send(announcement).await,
            #[cfg(test)]
            Self::Simulated(receiver) => receiver.take(announcement).await,
        }
    }
}

/// Returns the pause after this number of failed attempts.
fn pause_after(failures: u32) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
    doubled.and_then(|factor| FIRST_PAUSE.checked_mul(factor)).map_or(LONGEST_PAUSE, |p| p.min(LONGEST_PAUSE))
}

/// Makes attempts until one succeeds, the receiver refuses, or the vote ends.
///
/// # Errors
/// A text for people, with the reason of the last attempt.
pub(super) async fn deliver<F: Future<Output = Result<(), AttemptError>>>(
    announcement: &Announcement,
    clock: impl Fn() -> Millis,
    attempt: impl Fn() -> F,
) -> Result<(), String> {
    let given_up = |reason| {
        let (noun, id) = (announcement.stage.noun(), announcement.id.short());
        format!("{noun} {id} was not announced: {reason}")
    };
    let mut failures = 0;
    loop {
        let reason = match attempt().await {
            Ok(()) => return Ok(()),
            Err(AttemptError::Refused(reason)) => return Err(given_up(reason)),
            Err(AttemptError::Retry(reason)) => reason,
        };
        failures += 1;
        let pause = pause_after(failures);
        let next = clock().plus(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        if next > announcement.expires_at {
            return Err(given_up(format!("{reason} ({failures} attempts, and the vote ends)")));
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::inbox::stage::WaitingStage;
    use protocol::ProposalId;
    use std::cell::Cell;
    use tokio::time::Instant;

    fn announcement(expires_at: u64) -> Announcement {
        Announcement {
            id: ProposalId(Digest::of(b"one")),
            stage: WaitingStage::Vote,
            words: ["badge", "pelican", "gecko", "iris", "barn", "velvet"],
            change: "Start it.".into(),
            expires_at: Millis(expires_at),
            link: String::new(),
            open_questions: 0,
        }
    }

    #[test]
    fn pauses_grow_to_ten_minutes_and_no_further() {
        let seconds: Vec<u64> = (1..=9).map(|failures| pause_after(failures).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    /// Runs a delivery of which the first attempts fail; returns its outcome, the attempts, and its seconds.
    async fn run(failing: u32, error: AttemptError, expires_at: u64) -> (Result<(), String>, u32, u64) {
        let (began, made) = (Instant::now(), Cell::new(0));
        let clock = || Millis(began.elapsed().as_millis() as u64);
        let announcement = announcement(expires_at);
        let attempt = || {
            made.set(made.get() + 1);
            std::future::ready(if made.get() > failing { Ok(()) } else { Err(error.clone()) })
        };
        let outcome = deliver(&announcement, clock, attempt).await;
        (outcome, made.get(), began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_fails_is_repeated_until_one_succeeds() {
        let busy = || AttemptError::Retry("503".into());
        let day = 86_400_000;
        assert_eq!(run(0, busy(), day).await, (Ok(()), 1, 0));
        assert_eq!(run(3, busy(), day).await, (Ok(()), 4, 35));
        let refused = run(1, AttemptError::Refused("410".into()), day).await;
        assert_eq!((refused.0.is_err(), refused.1, refused.2), (true, 1, 0), "no second attempt");
        let (outcome, attempts, seconds) = run(99, busy(), 60_000).await;
        let reason = outcome.expect_err("the vote has ended");
        assert!(reason.contains("503 (4 attempts, and the vote ends)"), "{reason}");
        assert_eq!((attempts, seconds), (4, 35), "none after the end");
    }
}
