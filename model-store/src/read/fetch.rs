//! Fetches from other machines: the ranges of one batch, from the fastest stores that suffice.
//!
//! k stores are asked first. One more is asked whenever one fails or is late by the flow of all bytes (a
//! hedged read). When k have answered, the remaining requests are dropped. Disks of this machine are not read
//! here but by the threads that decode; disks that stalled before are not asked again.

use super::batch::SegmentBatch;
use super::inner::Inner;
use crate::disk::Disk;
use crate::fault::FaultKind;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::path::Path as ObjectPath;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// State of one store's part of a batch.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// Not requested.
    Untried,
    /// Stored in a directory of this machine.
    Local,
    /// Fetched; starts with the batch's first shard.
    Fetched(Bytes),
    /// Requested without success.
    Failed(FaultKind),
}

type RangeResponse = (usize, Duration, Result<Bytes, FaultKind>);

impl Inner {
    /// Returns one piece per store; k of them are local or fetched, if that many are available.
    pub(super) async fn fetch(self: &Arc<Self>, batch: &SegmentBatch, hung: &[bool]) -> Vec<Piece> {
        self.health.look_again();
        let needed = self.coder.data();
        let piece = |hung: &bool| if *hung { Piece::Failed(FaultKind::Unreachable) } else { Piece::Untried };
        let mut pieces: Vec<Piece> = hung.iter().map(piece).collect();
        let mut waiting = self.health.preference().into_iter().filter(|shard| !hung[*shard]);
        let mut running: FuturesUnordered<BoxFuture<'static, RangeResponse>> = FuturesUnordered::new();
        let mut asked = Vec::new();
        let mut good = 0;
        let began = Instant::now();
        let mut mark = self.flow.mark();
        let mut start =
            |pieces: &mut Vec<Piece>, running: &mut FuturesUnordered<_>, asked: &mut Vec<usize>| {
                let Some(shard) = waiting.next() else { return 0 };
                if self.stores[shard].directory().is_some() {
                    pieces[shard] = Piece::Local;
                    return 1;
                }
                running.push(self.ask(batch, shard));
                asked.push(shard);
                0
            };
        for _ in 0..needed {
            good += start(&mut pieces, &mut running, &mut asked);
        }
        while good < needed && !running.is_empty() {
            let patience = self.health.hedge_delay();
            match tokio::time::timeout(patience, running.next()).await {
                Ok(Some((shard, took, Ok(bytes)))) => {
                    self.health.answered(shard, took);
                    asked.retain(|other| *other != shard);
                    pieces[shard] = Piece::Fetched(bytes);
                    good += 1;
                }
                Ok(Some((shard, _, Err(kind)))) => {
                    asked.retain(|other| *other != shard);
                    pieces[shard] = Piece::Failed(kind);
                    good += start(&mut pieces, &mut running, &mut asked);
                }
                Ok(None) => good += start(&mut pieces, &mut running, &mut asked),
                Err(_) if self.flow.is_late(&mark, patience) => {
                    good += start(&mut pieces, &mut running, &mut asked);
                    mark = self.flow.mark();
                }
                Err(_) => {}
            }
        }
        for shard in asked {
            self.health.outrun(shard, began.elapsed());
        }
        pieces
    }

    /// Returns whether a store that was not asked could replace one that stalls.
    pub(super) fn has_spare(&self, pieces: &[Piece]) -> bool {
        let mut untried =
            pieces.iter().zip(&self.stores).filter(|(piece, _)| matches!(piece, Piece::Untried));
        untried.any(|(_, store)| store.closed().is_none() && !store.disk().is_some_and(Disk::hangs))
    }

    /// Returns the byte range of each store's object that holds a batch's shards.
    fn range(&self, batch: &SegmentBatch) -> Range<u64> {
        let ranges = self.geometry.ranges(&self.manifest, batch.group);
        ranges[batch.places.start].start..ranges[batch.places.end - 1].end
    }

    /// Returns the number of other machines' stores among those that are asked first.
    pub(super) fn remote_shards(&self) -> u64 {
        let first = self.health.preference().into_iter().take(self.coder.data());
        first.filter(|shard| self.stores[*shard].directory().is_none()).count() as u64
    }

    /// Returns the bytes of a batch that come from other machines.
    pub(super) fn remote_bytes(&self, batch: &SegmentBatch) -> u64 {
        let range = self.range(batch);
        self.remote_shards() * (range.end - range.start)
    }

    fn ask(self: &Arc<Self>, batch: &SegmentBatch, shard: usize) -> BoxFuture<'static, RangeResponse> {
        let (this, range, path) = (self.clone(), self.range(batch), self.geometry.object(batch.group, shard));
        let began = Instant::now();
        async move {
            let answer = get(&this, shard, &path, range).await;
            (shard, began.elapsed(), answer)
        }
        .boxed()
    }

    /// Fetches one shard of one segment from another machine, for a pool thread that cannot continue without
    /// it.
    pub(super) fn get_now(
        &self,
        runtime: &Handle,
        shard: usize,
        path: &ObjectPath,
        range: Range<u64>,
    ) -> Result<Bytes, FaultKind> {
        runtime.block_on(get(self, shard, path, range))
    }
}

async fn get(inner: &Inner, shard: usize, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, FaultKind> {
    let store = &inner.stores[shard];
    let read = store.get_range(path, range, |bytes| inner.flow.arrived(bytes)).await;
    read.map_err(|error| {
        tracing::debug!(store = store.url(), %path, %error, "range not read");
        FaultKind::of(&error)
    })
}
