//! Requests that a replica holds until there is news: long polls of nodes and of other replicas.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Returns an answer as soon as it is news, or the latest one when the wait is over or the replica stops.
/// `answer` is called again after each of the `changes`, and returns whether it has news.
pub(super) async fn hold<T, Change>(
    wait: Duration,
    mut changes: watch::Receiver<Change>,
    stopping: impl Future<Output = ()>,
    mut answer: impl FnMut() -> (T, bool),
) -> T {
    let over = tokio::time::sleep_until(Instant::now() + wait);
    let (mut over, mut stopping) = (std::pin::pin!(over), std::pin::pin!(stopping));
    loop {
        changes.borrow_and_update();
        let (latest, is_news) = answer();
        if is_news {
            return latest;
        }
        tokio::select! {
            biased;
            () = &mut stopping => return latest,
            changed = changes.changed() => if changed.is_err() { return latest },
            () = &mut over => return latest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay::CancellationToken;

    const WAIT: Duration = Duration::from_secs(25);

    /// Holds a request for a number above 2, and returns the answer with the seconds that it took.
    async fn held(changes: &watch::Sender<u64>, stopping: &CancellationToken) -> (u64, u64) {
        let began = Instant::now();
        let numbers = changes.subscribe();
        let answer = || (*changes.borrow(), *changes.borrow() > 2);
        let number = hold(WAIT, numbers, stopping.cancelled(), answer).await;
        (number, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_held_until_there_is_news_or_the_wait_is_over() {
        let (changes, stopping) = (watch::Sender::new(1), CancellationToken::new());
        assert_eq!(held(&changes, &stopping).await, (1, 25), "nothing happens");
        let change = async {
            for number in [2, 3] {
                tokio::time::sleep(Duration::from_secs(4)).await;
                changes.send_replace(number);
            }
        };
        let (answer, ()) = tokio::join!(held(&changes, &stopping), change);
        assert_eq!(answer, (3, 8), "a change that is no news ends no wait");
        assert_eq!(held(&changes, &stopping).await, (3, 0), "news is there already");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_stops_answers_what_it_holds() {
        let (changes, stopping) = (watch::Sender::new(1), CancellationToken::new());
        let stop = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            stopping.cancel();
        };
        let (answer, ()) = tokio::join!(held(&changes, &stopping), stop);
        assert_eq!(answer, (1, 2));
    }
}
