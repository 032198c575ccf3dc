//! Shell of the reads: performs the requests of [`BatchRead`], starts its decoding, and watches the disks.
//!
//! Ranges of other machines are fetched here. Disks of this machine are read by the threads that decode.

use super::attempt::{Attempt, FillTarget};
use super::batch::{BatchReport, SegmentBatch, next_batch};
use super::decode::decode;
use super::flow::FlowPermit;
use super::health::TICK;
use super::inner::{Inner, fetch_range};
use super::machine::{BatchRead, Event, ReadAction};
use super::window::BATCH_BYTES_MAX;
use crate::disk::Disk;
use crate::error::ReadError;
use crate::fault::FaultKind;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, StreamExt};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Bytes that each store has sent: its shards of a batch, back to back. `None` for shards of this machine,
/// and for those that were not fetched.
pub(super) type Bodies = Vec<Option<Bytes>>;

type RangeResponse = (usize, Duration, Result<Bytes, FaultKind>);

/// Loads one batch. An attempt that stalls on a disk is abandoned, and its remaining segments are read again
/// without that disk. `permit` is for the bytes in flight of the first attempt.
pub(super) async fn load(
    inner: Arc<Inner>,
    batch: SegmentBatch,
    mut permit: Option<FlowPermit>,
    target: FillTarget,
) -> Result<BatchReport, ReadError> {
    let local = inner.stores.iter().map(|store| store.directory().is_some()).collect();
    let mut read = BatchRead::new(batch, inner.coder.data(), local);
    let mut report = BatchReport::default();
    loop {
        let bodies = inner.fetch(&mut read).await;
        permit.take();
        let spare = inner.has_spare(&read);
        let attempt = Attempt::new(target.clone());
        let work = {
            let (inner, read, attempt, runtime) =
                (inner.clone(), read.clone(), attempt.clone(), Handle::current());
            let pool = inner.pool.clone();
            async move { pool.run(move || decode(&inner, read, &bodies, &runtime, &attempt)).await }
        };
        let tick = || tokio::time::sleep(TICK);
        let ticks_max = |shard| inner.health.disk_ticks_max(shard, spare);
        tokio::select! {
            biased;
            done = work => {
                done.ok_or(ReadError::Stopped)??;
                return Ok(report.plus(attempt.done()));
            }
            shard = attempt.stalled(tick, ticks_max) => {
                inner.replace_stalled(shard);
                let done = attempt.done();
                report = report.plus(done);
                read.on(Event::Stalled { shard, done: done.segments as usize });
            }
        }
    }
}

impl Inner {
    /// Yields the wanted segments in batches, each when it may be requested. Batches on disks of this machine
    /// do not wait. Batches from other machines wait until the flow has room, so the segments needed first
    /// arrive first.
    pub(super) fn batches<'a>(
        &'a self,
        wanted: &'a [u32],
    ) -> BoxStream<'a, (SegmentBatch, Option<FlowPermit>)> {
        let next = move |mut at: usize| async move {
            let bytes_max = match self.remote_shards() {
                0 => BATCH_BYTES_MAX,
                _ => self.flow.batch_bytes(),
            };
            let (batch, count) = next_batch(&self.manifest, &self.geometry, &wanted[at..], bytes_max)?;
            at += count;
            let bytes = self.remote_bytes(&batch);
            let permit = if bytes > 0 { Some(self.flow.room(bytes).await) } else { None };
            Some(((batch, permit), at))
        };
        stream::unfold(0, next).boxed()
    }

    /// Performs the requests of a read until it can be decoded, and returns the bytes that have arrived.
    async fn fetch(self: &Arc<Self>, read: &mut BatchRead) -> Bodies {
        self.health.retry_slow_stores();
        let began = Instant::now();
        let mut bodies: Bodies = vec![None; self.stores.len()];
        let mut running: FuturesUnordered<BoxFuture<'static, RangeResponse>> = FuturesUnordered::new();
        let (ranked, reading) = (self.health.preference(), self.flow.reading());
        let mut actions = read.on(Event::Started { ranked, reading });
        loop {
            for action in actions {
                match action {
                    ReadAction::Fetch { shard } | ReadAction::Hedge { shard } => {
                        running.push(self.request(read.batch(), shard));
                    }
                    ReadAction::Drop { shard } => self.health.overtaken(shard, began.elapsed()),
                    _ => return bodies,
                }
            }
            let timeout = self.health.hedge_delay();
            let event = match tokio::time::timeout(timeout, running.next()).await {
                Ok(Some((shard, took, Ok(bytes)))) => {
                    self.health.answered(shard, took);
                    bodies[shard] = Some(bytes);
                    Event::Answered { shard }
                }
                Ok(Some((shard, _, Err(kind)))) => Event::Failed { shard, kind },
                // A read without an open request has returned above.
                Ok(None) => return bodies,
                Err(_) => Event::Quiet { reading: self.flow.reading(), timeout },
            };
            actions = read.on(event);
        }
    }

    /// Replaces the thread that waits for a stalled disk.
    fn replace_stalled(&self, shard: usize) {
        let store = &self.stores[shard];
        tracing::warn!(store = store.url(), "disk stalled; reading from the other stores");
        store.disk().inspect(|disk| disk.read_stalled());
        self.pool.replace();
    }

    /// Returns whether a store that was not asked could replace one that stalls.
    fn has_spare(&self, read: &BatchRead) -> bool {
        let mut unasked = read.unasked().map(|shard| &self.stores[shard]);
        unasked.any(|store| store.closed().is_none() && !store.disk().is_some_and(Disk::is_stalled))
    }

    /// Returns the byte range of each store's object that holds a batch's shards.
    fn range(&self, batch: &SegmentBatch) -> Range<u64> {
        let ranges = self.geometry.ranges(&self.manifest, batch.group);
        ranges[batch.positions.start].start..ranges[batch.positions.end - 1].end
    }

    /// Returns the number of other machines' stores among those that are asked first.
    fn remote_shards(&self) -> u64 {
        let first = self.health.preference().into_iter().take(self.coder.data());
        first.filter(|shard| self.stores[*shard].directory().is_none()).count() as u64
    }

    /// Returns the bytes of a batch that come from other machines.
    fn remote_bytes(&self, batch: &SegmentBatch) -> u64 {
        let range = self.range(batch);
        self.remote_shards() * (range.end - range.start)
    }

    fn request(self: &Arc<Self>, batch: &SegmentBatch, shard: usize) -> BoxFuture<'static, RangeResponse> {
        let (this, range, path) = (self.clone(), self.range(batch), self.geometry.object(batch.group, shard));
        let began = Instant::now();
        async move {
            let answer = fetch_range(&this, shard, &path, range).await;
            (shard, began.elapsed(), answer)
        }
        .boxed()
    }
}
