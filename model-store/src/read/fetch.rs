//! Waiting for other machines: the ranges of one batch, from the fastest stores that suffice.
//!
//! k stores are asked; one more whenever one fails or the wait grows long; when k have answered the others
//! are let go. Disks of this machine are not read here but by the threads that decode; those that hung
//! before are not asked again.

use super::Inner;
use super::batch::Batch;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::fault::FaultKind;
use crate::store::Store;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::path::Path as ObjectPath;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// What is at hand of one store's part of a batch.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// Not asked for.
    Untried,
    /// In a directory of this machine.
    Local,
    /// Fetched; begins with the batch's first shard.
    Fetched(Bytes),
    /// Asked for in vain.
    Failed(FaultKind),
}

type Answer = (usize, Duration, Result<Bytes, FaultKind>);

impl Inner {
    /// One piece per store; k of them local or fetched, if that many can be had.
    pub(super) async fn fetch(&self, batch: &Batch, hung: &[bool]) -> Vec<Piece> {
        let needed = self.coder.data();
        let piece = |hung: &bool| if *hung { Piece::Failed(FaultKind::Unreachable) } else { Piece::Untried };
        let mut pieces: Vec<Piece> = hung.iter().map(piece).collect();
        let mut waiting = self.health.preference().into_iter().filter(|shard| !hung[*shard]);
        let mut running: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
        let mut asked = Vec::new();
        let mut good = 0;
        let began = Instant::now();
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
            match tokio::time::timeout(self.health.hedge_delay(), running.next()).await {
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
                Ok(None) | Err(_) => good += start(&mut pieces, &mut running, &mut asked),
            }
        }
        for shard in asked {
            self.health.outrun(shard, began.elapsed());
        }
        pieces
    }

    /// Whether a store that was not asked could be asked instead of one that hangs.
    pub(super) fn has_spare(&self, pieces: &[Piece]) -> bool {
        let mut untried =
            pieces.iter().zip(&self.stores).filter(|(piece, _)| matches!(piece, Piece::Untried));
        untried.any(|(_, store)| store.closed().is_none() && !store.disk().is_some_and(Disk::hangs))
    }

    fn ask(&self, batch: &Batch, shard: usize) -> BoxFuture<'static, Answer> {
        let ranges = self.geometry.ranges(&self.manifest, batch.group);
        let range = ranges[batch.places.start].start..ranges[batch.places.end - 1].end;
        let (store, path) = (self.stores[shard].clone(), self.geometry.object(batch.group, shard));
        let began = Instant::now();
        async move { (shard, began.elapsed(), get(&store, &path, range).await) }
            .map(move |(shard, _, answer)| (shard, began.elapsed(), answer))
            .boxed()
    }

    /// One shard of one segment from another machine, for a thread of the pool that cannot do without it.
    pub(super) fn get_now(
        &self,
        runtime: &Handle,
        shard: usize,
        path: &ObjectPath,
        range: Range<u64>,
    ) -> Result<Bytes, FaultKind> {
        runtime.block_on(get(&self.stores[shard], path, range))
    }
}

async fn get(store: &Store, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, FaultKind> {
    let wanted = range.end - range.start;
    match store.get_range(path, range).await {
        Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
        Ok(_) => Err(FaultKind::Short),
        Err(StoreError::Missing { .. }) => Err(FaultKind::Missing),
        Err(error) => {
            tracing::debug!(store = store.url(), %path, %error, "range not read");
            Err(FaultKind::Unreachable)
        }
    }
}
