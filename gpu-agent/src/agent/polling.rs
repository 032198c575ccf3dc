//! Poll of one control replica for halts, or for grants of access.
//!
//! Each replica is asked alone, whether it leads or not, with requests that it holds until there are new
//! records. The node sets the pace: a replica that always answers is asked no more often.

use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Time for which a replica may hold a request until there is a record: well within the limit on a request.
pub(super) const WAIT_MS: u32 = 1_000;
/// Answers that wait for the main loop. A replica has one of them at most.
pub(super) const ANSWERS_MAX: usize = 8;
/// Minimum interval between two requests to one replica. A hostile one that always answers sets no faster
/// pace, and an honest record is late by this much at most.
const REQUEST_GAP: Duration = Duration::from_millis(200);
/// Pause after a request that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(400);

/// Asks one replica for the records behind a position, and hands them on, until the receiver is gone.
///
/// `ask` returns the position behind the records of the answer, or none if the request failed. The records
/// are asked for from the start again after each `starts_over` that returns true.
pub(super) async fn poll_replica<Position, Record, News, Asked>(
    mut ask: impl FnMut(Position) -> Asked,
    mut starts_over: impl FnMut() -> bool,
    news_of: impl Fn(Vec<Record>) -> News,
    received: &mpsc::Sender<News>,
) where
    Position: Copy + Default,
    Asked: Future<Output = Option<(Position, Vec<Record>)>>,
{
    let mut after = Position::default();
    loop {
        if starts_over() {
            after = Position::default();
        }
        let asked_at = Instant::now();
        let pause = match ask(after).await {
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
        if received.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
