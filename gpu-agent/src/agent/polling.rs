//! Poll of one control replica for halts, or for grants of access.
//!
//! Each replica is asked alone, whether it leads or not, with requests that it holds until there are new
//! records. The node sets the pace: a replica that always answers is asked no more often. One that never
//! answers keeps back its own records alone, and each request to it ends after [`POLL_LIMIT`].

use protocol::limits::POLL_WAIT_MS_MAX;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Longest wait for the answer to such a request: the time for which a replica may hold it, and headroom for
/// a new connection and a page of records.
pub(super) const POLL_LIMIT: Duration = Duration::from_millis(POLL_WAIT_MS_MAX as u64 + 4_000);
/// Answers that wait for the main loop. A replica has one of them at most.
pub(super) const ANSWERS_MAX: usize = 8;
/// Minimum interval between two requests to one replica. A hostile one that always answers sets no faster
/// pace, and an honest record is late by this much at most.
const REQUEST_GAP: Duration = Duration::from_millis(200);
/// Pause after a request that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(400);

/// Asks one replica for the records behind a position, and hands them on, until the receiver is gone.
///
/// `ask` returns the position behind the records of the answer, or none if the request failed. After each
/// change of `repeats` the records are asked for from the start again; a request under way is given up.
pub(super) async fn poll_replica<Position, Record, News, Asked>(
    mut ask: impl FnMut(Position) -> Asked,
    mut repeats: watch::Receiver<u64>,
    news_of: impl Fn(Vec<Record>) -> News,
    received: &mpsc::Sender<News>,
) where
    Position: Copy + Default,
    Asked: Future<Output = Option<(Position, Vec<Record>)>>,
{
    let mut after = Position::default();
    loop {
        if repeats.has_changed().unwrap_or(false) {
            repeats.mark_unchanged();
            after = Position::default();
        }
        let asked_at = Instant::now();
        let answer = tokio::select! {
            biased;
            () = received.closed() => return,
            () = changed(&mut repeats) => {
                after = Position::default();
                continue;
            }
            answer = ask(after) => answer,
        };
        let pause = match answer {
            None => RETRY_PAUSE,
            Some((last, records)) => {
                after = last;
                if !records.is_empty() && received.send(news_of(records)).await.is_err() {
                    return;
                }
                REQUEST_GAP
            }
        };
        tokio::time::sleep_until(asked_at + pause).await;
    }
}

/// Waits until everything is to be asked for again; forever if that cannot happen any more.
async fn changed(repeats: &mut watch::Receiver<u64>) {
    if repeats.changed().await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
