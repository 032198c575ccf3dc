//! Progress of transfers: limits count silence, never total time.
//!
//! A slow uplink may need minutes for an object that a data centre takes in milliseconds, and both are
//! healthy. An unreachable store differs from a slow link in that nothing moves at all. Several transfers
//! over one link share a [`Progress`]: one that waits behind the others is not silent while they move.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes handed to a transport between two signs of progress. They take a tenth of a second at 5 Mbit/s, and
/// are far more than the overhead of a frame.
const PIECE_BYTES: usize = 64 * 1024;

/// Signs of progress of one or several transfers.
#[derive(Debug, Clone)]
pub(crate) struct Progress(Arc<Signs>);

#[derive(Debug)]
struct Signs {
    began: Instant,
    /// Last sign, in milliseconds since `began`.
    last_ms: AtomicU64,
}

/// Nothing moved for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silent;

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Signs { began: Instant::now(), last_ms: AtomicU64::new(0) }))
    }

    /// Records that something moved.
    pub(crate) fn moved(&self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_ms.fetch_max(since, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.0.began + Duration::from_millis(self.0.last_ms.load(Ordering::Relaxed))
    }

    /// Awaits `work` as long as something moves at least every `silence`. The start counts as a sign too.
    pub(crate) async fn watch<T>(
        &self,
        silence: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Silent> {
        let mut work = std::pin::pin!(work);
        self.moved();
        loop {
            let deadline = self.last() + silence;
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep_until(deadline) => {
                    if self.last() + silence <= Instant::now() {
                        return Err(Silent);
                    }
                }
            }
        }
    }

    /// Cuts the data into pieces. A transport that takes the next piece shows that the last one is sent.
    pub(crate) fn pieces(self, chunks: impl Iterator<Item = Bytes>) -> impl Iterator<Item = Bytes> {
        let cut = |mut chunk: Bytes| {
            std::iter::from_fn(move || {
                (!chunk.is_empty()).then(|| chunk.split_to(chunk.len().min(PIECE_BYTES)))
            })
        };
        chunks.flat_map(cut).inspect(move |_| self.moved())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_transfer_and_length_does_not() {
        let progress = Progress::new();
        let began = Instant::now();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                progress.moved();
            }
            7
        };
        assert_eq!(progress.watch(LIMIT, slow).await, Ok(7), "48 minutes, and never silent");
        assert!(began.elapsed() > 90 * LIMIT);
        let began = Instant::now();
        let still = progress.watch(LIMIT, std::future::pending::<()>());
        assert_eq!(still.await, Err(Silent));
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_waits_behind_others_is_not_silent_while_they_progress() {
        let progress = Progress::new();
        let others = progress.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(LIMIT / 2).await;
                others.moved();
            }
        });
        let began = Instant::now();
        assert_eq!(progress.watch(LIMIT, std::future::pending::<()>()).await, Err(Silent));
        assert!(began.elapsed() >= 6 * LIMIT, "{:?}", began.elapsed());
    }

    #[test]
    fn pieces_are_all_the_bytes_in_order() {
        let chunks = [vec![1; 3], vec![], vec![2; 2 * PIECE_BYTES + 5], vec![3; 1]].map(Bytes::from);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _entered = runtime.enter();
        let pieces: Vec<Bytes> = Progress::new().pieces(chunks.clone().into_iter()).collect();
        assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.len())));
        assert_eq!(pieces.concat(), chunks.concat());
    }
}
