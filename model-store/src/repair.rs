//! Looking at every shard of a model, and rewriting the wrong and missing ones. Needs no key: shards are
//! judged by their digests, and rebuilt from each other.
//!
//! An object is rewritten as a whole and only when every shard in it has the digest that the manifest names,
//! so a repair can be interrupted anywhere and never makes anything worse.

use crate::codec::Coder;
use crate::error::{ReadError, StoreError};
use crate::fault::{FaultKind, FaultSink, ShardFault};
use crate::geometry::{Geometry, manifest_path};
use crate::pool::Pool;
use crate::service::OBJECT_BYTES_MAX;
use crate::store::Store;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use protocol::limits::MODEL_MANIFEST_BYTES_MAX;
use protocol::model::ModelManifest;
use protocol::{Digest, canonical};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Groups in memory at once.
const GROUPS_IN_FLIGHT: usize = 2;
/// Failures of stores that a report keeps; a dead store fails on every object alike.
const FAILURES_KEPT_MAX: usize = 16;

/// What a look at every shard found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthReport {
    /// Segments of the model.
    pub segments: u64,
    /// Shards looked at.
    pub shards: u64,
    /// Bytes of shards read.
    pub bytes: u64,
    /// How many shards are wrong, by how.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Stores whose copy of the manifest is missing or wrong.
    pub manifests_wrong: u64,
    /// Segments with fewer than k good shards: lost unless a store comes back.
    pub segments_lost: u64,
    /// From beginning to end.
    pub elapsed: Duration,
}

impl HealthReport {
    /// Whether every shard and every copy of the manifest is there and right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.manifests_wrong == 0
    }
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// What it found.
    pub found: HealthReport,
    /// Shards put right.
    pub shards_rewritten: u64,
    /// Objects written.
    pub objects_written: u64,
    /// Copies of the manifest written.
    pub manifests_written: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Objects that could not be written, and why; the first few.
    pub failures: Vec<String>,
}

impl RepairReport {
    /// Whether nothing is left to repair.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let found: u64 = self.found.faults.values().sum();
        self.shards_rewritten == found
            && self.manifests_written == self.found.manifests_wrong
            && self.failures.is_empty()
    }
}

/// Checks every shard of every segment and every copy of the manifest. `progress` hears groups done and in all.
///
/// # Errors
/// [`ReadError::ManifestInvalid`], [`ReadError::StoreCount`]; faults are findings, not errors.
pub async fn verify(
    manifest: &Arc<ModelManifest>,
    stores: &[Store],
    pool: &Arc<Pool>,
    faults: FaultSink,
    progress: impl Fn(u64, u64),
) -> Result<HealthReport, ReadError> {
    Ok(run(manifest, stores, pool, faults, false, progress).await?.found)
}

/// Checks everything as [`verify`] does and rewrites what is wrong or missing from what is right.
///
/// # Errors
/// As [`verify`]; a store that cannot be written is in the report, and the others are repaired.
pub async fn repair(
    manifest: &Arc<ModelManifest>,
    stores: &[Store],
    pool: &Arc<Pool>,
    faults: FaultSink,
    progress: impl Fn(u64, u64),
) -> Result<RepairReport, ReadError> {
    run(manifest, stores, pool, faults, true, progress).await
}

async fn run(
    manifest: &Arc<ModelManifest>,
    stores: &[Store],
    pool: &Arc<Pool>,
    faults: FaultSink,
    rewrite: bool,
    progress: impl Fn(u64, u64),
) -> Result<RepairReport, ReadError> {
    let began = Instant::now();
    manifest.check()?;
    let needed = manifest.erasure.shards();
    if stores.len() != needed {
        return Err(ReadError::StoreCount { given: stores.len(), needed });
    }
    let run = Arc::new(Run {
        manifest: manifest.clone(),
        geometry: Geometry::new(manifest),
        coder: Coder::new(manifest.erasure),
        stores: stores.to_vec(),
        faults,
        rewrite,
    });
    let groups = u64::from(run.geometry.groups());
    let work = |group| run.clone().group(group, pool);
    let mut results = stream::iter(0..run.geometry.groups()).map(work).buffer_unordered(GROUPS_IN_FLIGHT);
    let mut report = RepairReport::default();
    let mut done = 0;
    while let Some(result) = results.next().await {
        add(&mut report, result?);
        done += 1;
        progress(done, groups);
    }
    drop(results);
    run.manifests(&mut report).await;
    report.found.segments = manifest.segments.len() as u64;
    report.found.elapsed = began.elapsed();
    Ok(report)
}

fn add(sum: &mut RepairReport, more: RepairReport) {
    sum.found.shards += more.found.shards;
    sum.found.bytes += more.found.bytes;
    sum.found.segments_lost += more.found.segments_lost;
    for (kind, count) in more.found.faults {
        *sum.found.faults.entry(kind).or_default() += count;
    }
    sum.shards_rewritten += more.shards_rewritten;
    sum.objects_written += more.objects_written;
    sum.bytes_written += more.bytes_written;
    for failure in more.failures {
        note(sum, failure);
    }
}

fn note(report: &mut RepairReport, failure: String) {
    if report.failures.len() < FAILURES_KEPT_MAX {
        report.failures.push(failure);
    }
}

struct Run {
    manifest: Arc<ModelManifest>,
    geometry: Geometry,
    coder: Coder,
    stores: Vec<Store>,
    faults: FaultSink,
    rewrite: bool,
}

/// What a pool thread makes of a group: a report and the objects to write, by shard.
type Judged = (RepairReport, Vec<(usize, u64, Bytes)>);

impl Run {
    async fn group(self: Arc<Self>, group: u32, pool: &Pool) -> Result<RepairReport, ReadError> {
        let get = |(shard, store): (usize, &Store)| {
            let (store, path) = (store.clone(), self.geometry.object(group, shard));
            async move {
                store.get(&path, OBJECT_BYTES_MAX).await.map_err(|error| match error {
                    StoreError::Missing { .. } => FaultKind::Missing,
                    _ => FaultKind::Unreachable,
                })
            }
        };
        let objects = join_all(self.stores.iter().enumerate().map(get)).await;
        let this = self.clone();
        let judged = pool.run(move || this.judge(group, &objects)).await;
        let (mut report, rewrites) = judged.ok_or(ReadError::Stopped)?;
        let put = |(shard, shards, bytes): (usize, u64, Bytes)| {
            let (store, path) = (self.stores[shard].clone(), self.geometry.object(group, shard));
            async move { (shards, bytes.len() as u64, store.put(&path, bytes.into()).await) }
        };
        for (shards, bytes, result) in join_all(rewrites.into_iter().map(put)).await {
            match result {
                Ok(()) => {
                    report.shards_rewritten += shards;
                    report.objects_written += 1;
                    report.bytes_written += bytes;
                }
                Err(error) => note(&mut report, error.to_string()),
            }
        }
        Ok(report)
    }

    /// Checks each shard of a group; when rewriting, rebuilds what is wrong.
    fn judge(&self, group: u32, objects: &[Result<Bytes, FaultKind>]) -> Judged {
        let mut report = RepairReport::default();
        let ranges = self.geometry.ranges(&self.manifest, group);
        let segments = self.geometry.segments(&self.manifest, group);
        let size = ranges.last().map_or(0, |range| range.end) as usize;
        let mut wrong = vec![0_u64; objects.len()];
        let mut lost = vec![false; objects.len()];
        let mut repaired: Vec<Option<Vec<u8>>> = vec![None; objects.len()];
        let mut block = Vec::new();
        for (index, range) in segments.iter().zip(&ranges) {
            let present = self.check(group, *index, range, objects, &mut report);
            if present.iter().all(|present| *present) {
                continue;
            }
            let rebuilt = self.rebuild(*index, range, objects, &present, &mut block);
            report.found.segments_lost += u64::from(!rebuilt);
            let length = (range.end - range.start) as usize;
            for shard in (0..objects.len()).filter(|shard| !present[*shard]) {
                wrong[shard] += 1;
                lost[shard] |= !rebuilt;
                let object = repaired[shard].get_or_insert_with(|| {
                    let mut object = objects[shard].as_ref().map_or(Vec::new(), |bytes| bytes.to_vec());
                    object.resize(size, 0);
                    object
                });
                if rebuilt {
                    let target = &mut object[range.start as usize..range.end as usize];
                    target.copy_from_slice(&block[shard * length..(shard + 1) * length]);
                }
            }
        }
        let whole = |shard: &usize| self.rewrite && !lost[*shard];
        let rewrites = (0..objects.len()).filter(whole);
        let rewrites =
            rewrites.filter_map(|shard| Some((shard, wrong[shard], repaired[shard].take()?.into())));
        (report, rewrites.collect())
    }

    /// Which shards of a segment are right; counts and tells the others.
    fn check(
        &self,
        group: u32,
        index: u32,
        range: &Range<u64>,
        objects: &[Result<Bytes, FaultKind>],
        report: &mut RepairReport,
    ) -> Vec<bool> {
        let segment = &self.manifest.segments[index as usize];
        let judge = |shard: usize| {
            let bytes = objects[shard].as_ref().map_err(|kind| *kind)?;
            let bytes = bytes.get(range.start as usize..range.end as usize).ok_or(FaultKind::Short)?;
            if Digest::of(bytes) == segment.shards[shard] { Ok(bytes.len()) } else { Err(FaultKind::Wrong) }
        };
        let mut present = Vec::with_capacity(objects.len());
        for shard in 0..objects.len() {
            let verdict = judge(shard);
            report.found.shards += 1;
            present.push(verdict.is_ok());
            match verdict {
                Ok(bytes) => report.found.bytes += bytes as u64,
                Err(kind) => {
                    *report.found.faults.entry(kind).or_default() += 1;
                    (self.faults)(ShardFault {
                        store: self.stores[shard].url().into(),
                        object: self.geometry.object(group, shard).to_string(),
                        segment: index,
                        shard: shard as u8,
                        kind,
                    });
                }
            }
        }
        present
    }

    /// Rebuilds all absent shards of a segment into `block`; true when each has its digest.
    fn rebuild(
        &self,
        index: u32,
        range: &Range<u64>,
        objects: &[Result<Bytes, FaultKind>],
        present: &[bool],
        block: &mut Vec<u8>,
    ) -> bool {
        let length = (range.end - range.start) as usize;
        block.clear();
        block.resize(length * objects.len(), 0);
        for (shard, part) in block.chunks_exact_mut(length).enumerate() {
            if let (true, Ok(bytes)) = (present[shard], &objects[shard]) {
                part.copy_from_slice(&bytes[range.start as usize..range.end as usize]);
            }
        }
        if !self.coder.rebuild(block, present, true) {
            return false;
        }
        let segment = &self.manifest.segments[index as usize];
        block.chunks_exact(length).zip(&segment.shards).all(|(shard, digest)| Digest::of(shard) == *digest)
    }

    /// Checks, and rewrites, each store's copy of the manifest.
    async fn manifests(&self, report: &mut RepairReport) {
        let bytes = Bytes::from(canonical::to_bytes(&*self.manifest));
        let path = manifest_path(self.manifest.root());
        for store in &self.stores {
            let copy = store.get(&path, MODEL_MANIFEST_BYTES_MAX).await;
            if copy.is_ok_and(|copy| copy == bytes) {
                continue;
            }
            report.found.manifests_wrong += 1;
            if !self.rewrite {
                continue;
            }
            match store.put(&path, bytes.clone().into()).await {
                Ok(()) => {
                    report.manifests_written += 1;
                    report.bytes_written += bytes.len() as u64;
                }
                Err(error) => note(report, error.to_string()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
