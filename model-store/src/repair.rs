//! Verification of every shard of a model, and repair of the wrong and missing ones. Needs no key: shards are
//! checked by their digests, and reconstructed from each other.
//!
//! An object is rewritten as a whole, and only if every shard in it has the digest that the manifest names. A
//! repair can therefore be interrupted at any point and never makes anything worse. Segments are read one by
//! one, each shard to its known length, within one budget of memory for all stores.

use crate::codec::Coder;
use crate::error::ReadError;
use crate::fault::{FaultKind, FaultSink, ShardFault};
use crate::geometry::{Geometry, manifest_path};
use crate::pool::Pool;
use crate::store::{Progress, Store};
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use protocol::model::ModelManifest;
use protocol::{Digest, canonical};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Number of groups in work: while the last segments of one are awaited, the next begins.
const GROUPS_IN_FLIGHT: usize = 2;
/// Number of segments of a group that are requested together, as far as the budget allows.
const SEGMENTS_IN_FLIGHT: usize = 16;
/// Maximum bytes in memory, for any number of stores and any answers. One segment with all its shards, or one
/// object, may exceed it.
const BYTES_IN_FLIGHT_MAX: u64 = 32 * 1024 * 1024;
/// Unit of the budget in bytes: a semaphore has too few permits for single bytes.
const UNIT_BYTES: u64 = 1024;
/// Number of store failures that a report keeps; an unreachable store fails on every object alike.
const FAILURES_KEPT_MAX: usize = 16;

/// Findings of a check of every shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthReport {
    /// Number of segments of the model.
    pub segments: u64,
    /// Number of shards checked.
    pub shards: u64,
    /// Bytes of good shards read.
    pub bytes: u64,
    /// Number of faulty shards, by kind of fault.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Number of stores whose copy of the manifest is missing or wrong.
    pub manifests_wrong: u64,
    /// Number of segments with fewer than k good shards: lost unless a store returns.
    pub segments_lost: u64,
    /// Time from start to finish.
    pub elapsed: Duration,
}

/// Result of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// Findings that preceded the repair.
    pub found: HealthReport,
    /// Number of wrong or missing shards that were rewritten.
    pub shards_rewritten: u64,
    /// Number of objects written.
    pub objects_written: u64,
    /// Number of copies of the manifest written.
    pub manifests_written: u64,
    pub bytes_written: u64,
    /// Errors of objects that could not be written; only the first few.
    pub failures: Vec<String>,
}

impl RepairReport {
    /// Returns whether everything that was found is repaired.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let found: u64 = self.found.faults.values().sum();
        self.shards_rewritten == found
            && self.manifests_written == self.found.manifests_wrong
            && self.failures.is_empty()
    }
}

/// Checks every shard of every segment and every copy of the manifest. `progress` receives groups done and in
/// all.
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

/// Checks everything as [`verify`] does, and rewrites wrong and missing parts from the right ones.
///
/// # Errors
/// As [`verify`]. A store that cannot be written is in the report, and the others are repaired.
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
        budget: Budget::default(),
    });
    let groups = u64::from(run.geometry.groups());
    let work = |group| run.clone().group(group, pool);
    let mut results = stream::iter(0..run.geometry.groups()).map(work).buffer_unordered(GROUPS_IN_FLIGHT);
    let mut report = RepairReport::default();
    // A store checks the shards of a repair against its own copy of the manifest.
    run.manifests(&mut report).await;
    let mut done = 0;
    while let Some(result) = results.next().await {
        add(&mut report, result?);
        done += 1;
        progress(done, groups);
    }
    drop(results);
    report.found.segments = manifest.segments.len() as u64;
    report.found.elapsed = began.elapsed();
    Ok(report)
}

/// Budget of memory for the answers of stores, reserved before they are asked.
struct Budget {
    units: Semaphore,
}

impl Default for Budget {
    fn default() -> Self {
        Self { units: Semaphore::new((BYTES_IN_FLIGHT_MAX / UNIT_BYTES) as usize) }
    }
}

impl Budget {
    /// Waits for `bytes` of the budget; for the whole budget, if `bytes` exceeds it.
    async fn take(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = bytes.min(BYTES_IN_FLIGHT_MAX).div_ceil(UNIT_BYTES) as u32;
        self.units.acquire_many(units).await.expect("the semaphore is never closed")
    }
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
    budget: Budget,
}

/// State of one segment.
struct Checked {
    /// Whether each shard is right.
    present: Vec<bool>,
    /// Whether the wrong shards can be reconstructed.
    whole: bool,
}

type Shards = Vec<Result<Bytes, FaultKind>>;

impl Run {
    async fn group(self: Arc<Self>, group: u32, pool: &Pool) -> Result<RepairReport, ReadError> {
        let positions = 0..self.geometry.segments(&self.manifest, group).len();
        let check = |position| self.clone().check(group, position, pool);
        let checks = stream::iter(positions).map(check).buffered(SEGMENTS_IN_FLIGHT);
        let checks: Vec<(Checked, RepairReport)> = checks.try_collect().await?;
        let (mut report, mut segments) = (RepairReport::default(), Vec::new());
        for (segment, found) in checks {
            add(&mut report, found);
            segments.push(segment);
        }
        if self.rewrite {
            let segments = Arc::new(segments);
            let wrong = |shard: &usize| segments.iter().any(|segment| !segment.present[*shard]);
            let whole = |shard: &usize| segments.iter().all(|it| it.whole || it.present[*shard]);
            let shards = 0..self.stores.len();
            let shards: Vec<usize> = shards.filter(wrong).filter(whole).collect();
            for some in shards.chunks(self.objects_at_once(group)) {
                self.clone().rewrite(group, some.to_vec(), segments.clone(), pool, &mut report).await?;
            }
        }
        Ok(report)
    }

    /// Reads all shards of one segment, counts and reports the wrong ones, and tries to reconstruct them.
    async fn check(
        self: Arc<Self>,
        group: u32,
        position: usize,
        pool: &Pool,
    ) -> Result<(Checked, RepairReport), ReadError> {
        let range = self.range(group, position);
        let _permit = self.budget.take(2 * self.stores.len() as u64 * (range.end - range.start)).await;
        let shards = self.read(group, &range, &vec![true; self.stores.len()]).await;
        let this = self.clone();
        pool.run(move || this.assess(group, position, &shards)).await.ok_or(ReadError::Stopped)
    }

    /// Returns the byte range of each object that holds the shards of the segment at `position`.
    fn range(&self, group: u32, position: usize) -> Range<u64> {
        self.geometry.ranges(&self.manifest, group)[position].clone()
    }

    /// Returns the length in bytes of each object of a group.
    fn object_bytes(&self, group: u32) -> u64 {
        self.geometry.ranges(&self.manifest, group).last().map_or(0, |range| range.end)
    }

    fn objects_at_once(&self, group: u32) -> usize {
        ((BYTES_IN_FLIGHT_MAX / 2) / self.object_bytes(group).max(1)).max(1) as usize
    }

    /// Reads a range of the objects of the wanted shards. Unwanted shards are returned as missing.
    async fn read(&self, group: u32, range: &Range<u64>, wanted: &[bool]) -> Shards {
        let get = |(shard, store): (usize, &Store)| {
            let (store, path, range) = (store.clone(), self.geometry.object(group, shard), range.clone());
            let wanted = wanted[shard];
            async move {
                match wanted {
                    true => {
                        store.get_range(&path, range, |_| ()).await.map_err(|error| FaultKind::of(&error))
                    }
                    false => Err(FaultKind::Missing),
                }
            }
        };
        join_all(self.stores.iter().enumerate().map(get)).await
    }

    /// Returns which shards of a segment are right; counts and reports the others.
    fn assess(&self, group: u32, position: usize, shards: &Shards) -> (Checked, RepairReport) {
        let index = self.geometry.segments(&self.manifest, group)[position];
        let mut report = RepairReport::default();
        let present = self.right(index, shards);
        for (shard, right) in present.iter().enumerate() {
            report.found.shards += 1;
            match &shards[shard] {
                Ok(bytes) if *right => report.found.bytes += bytes.len() as u64,
                wrong => {
                    let kind = wrong.as_ref().err().copied().unwrap_or(FaultKind::Wrong);
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
        let whole = present.iter().all(|right| *right) || self.rebuild(index, shards, &present).is_some();
        report.found.segments_lost += u64::from(!whole);
        (Checked { present, whole }, report)
    }

    /// Returns which shards have the digests that the manifest names.
    fn right(&self, index: u32, shards: &Shards) -> Vec<bool> {
        let digests = &self.manifest.segments[index as usize].shards;
        assert_eq!(shards.len(), digests.len(), "a digest per shard");
        let right = |(shard, digest): (&Result<Bytes, _>, &Digest)| {
            shard.as_ref().is_ok_and(|bytes| Digest::of(bytes) == *digest)
        };
        shards.iter().zip(digests).map(right).collect()
    }

    /// Returns all shards of a segment back to back, each with its digest; `None` if they cannot be
    /// reconstructed.
    fn rebuild(&self, index: u32, shards: &Shards, present: &[bool]) -> Option<Vec<u8>> {
        let segment = &self.manifest.segments[index as usize];
        let length = self.geometry.shard_length(segment);
        assert_eq!(shards.len(), present.len(), "each shard is present or absent");
        let mut block = vec![0; length * shards.len()];
        for (shard, part) in block.chunks_exact_mut(length).enumerate() {
            if let (true, Ok(bytes)) = (present[shard], &shards[shard]) {
                part.copy_from_slice(bytes);
            }
        }
        let rebuilt = self.coder.rebuild(&mut block, present, true);
        let right = |block: &[u8]| {
            block.chunks_exact(length).zip(&segment.shards).all(|(part, digest)| Digest::of(part) == *digest)
        };
        (rebuilt && right(&block)).then_some(block)
    }

    /// Rewrites the objects of these shards: right shards as they are, the others reconstructed.
    async fn rewrite(
        self: Arc<Self>,
        group: u32,
        shards: Vec<usize>,
        segments: Arc<Vec<Checked>>,
        pool: &Pool,
        report: &mut RepairReport,
    ) -> Result<(), ReadError> {
        let longest =
            (0..segments.len()).map(|position| self.range(group, position)).map(|it| it.end - it.start).max();
        let block = 2 * self.stores.len() as u64 * longest.unwrap_or(0);
        let object = self.object_bytes(group);
        let _permit = self.budget.take(shards.len() as u64 * object + block).await;
        let mut objects = vec![Vec::with_capacity(object as usize); shards.len()];
        for position in 0..segments.len() {
            let range = self.range(group, position);
            let found = self.read(group, &range, &self.sources(&segments[position], &shards)).await;
            let (this, wanted) = (self.clone(), shards.clone());
            let parts = pool.run(move || this.parts(group, position, &found, &wanted)).await;
            let Some(parts) = parts.ok_or(ReadError::Stopped)? else {
                let object = self.geometry.object(group, shards[0]);
                note(report, format!("`{object}` and others changed while they were repaired"));
                return Ok(());
            };
            objects.iter_mut().zip(parts).for_each(|(object, part)| object.extend_from_slice(&part));
        }
        let progress = Progress::new();
        let put = |(shard, object): (usize, Vec<u8>)| {
            let (this, progress) = (self.clone(), progress.clone());
            async move {
                let (store, path) = (&this.stores[shard], this.geometry.object(group, shard));
                let bytes = object.len() as u64;
                (shard, bytes, store.put_in_place(&path, object.into(), &progress).await)
            }
        };
        for (shard, bytes, written) in join_all(shards.into_iter().zip(objects).map(put)).await {
            match written {
                Ok(()) => {
                    let wrong = segments.iter().filter(|segment| !segment.present[shard]).count();
                    report.shards_rewritten += wrong as u64;
                    report.objects_written += 1;
                    report.bytes_written += bytes;
                }
                Err(error) => note(report, error.to_string()),
            }
        }
        Ok(())
    }

    /// Returns which shards of a segment to read in order to have these: themselves, and k others if one of
    /// them is wrong.
    fn sources(&self, segment: &Checked, shards: &[usize]) -> Vec<bool> {
        let mut missing = match shards.iter().all(|shard| segment.present[*shard]) {
            true => 0,
            false => self.coder.data(),
        };
        let mut sources = vec![false; segment.present.len()];
        for (shard, present) in segment.present.iter().enumerate() {
            sources[shard] = *present && (missing > 0 || shards.contains(&shard));
            missing -= usize::from(sources[shard] && missing > 0);
        }
        sources
    }

    /// Returns the wanted shards of a segment, each with its digest.
    fn parts(&self, group: u32, position: usize, found: &Shards, wanted: &[usize]) -> Option<Vec<Bytes>> {
        let index = self.geometry.segments(&self.manifest, group)[position];
        let present = self.right(index, found);
        if wanted.iter().all(|shard| present[*shard]) {
            return wanted.iter().map(|shard| found[*shard].clone().ok()).collect();
        }
        let block = Bytes::from(self.rebuild(index, found, &present)?);
        let length = block.len() / found.len();
        Some(wanted.iter().map(|shard| block.slice(shard * length..(shard + 1) * length)).collect())
    }

    /// Checks each store's copy of the manifest, and rewrites wrong ones in a repair.
    async fn manifests(&self, report: &mut RepairReport) {
        let bytes = Bytes::from(canonical::to_bytes(&*self.manifest));
        let path = manifest_path(self.manifest.root());
        for store in &self.stores {
            let copy = store.get(&path, bytes.len(), |_| ()).await;
            if copy.is_ok_and(|copy| copy == bytes) {
                continue;
            }
            report.found.manifests_wrong += 1;
            if !self.rewrite {
                continue;
            }
            match store.put_in_place(&path, bytes.clone().into(), &Progress::new()).await {
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
