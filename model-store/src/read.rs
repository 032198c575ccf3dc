//! Reader of models: any byte range of any file, or a whole weights map in the order of need. Data comes from
//! the fastest k of k + m stores. A segment is decrypted and verified as a whole before any byte of it is
//! returned.
//!
//! A healthy read uses neither the erasure code nor the shards' digests: the tag and the plaintext digest
//! suffice. Only if they disagree are the shards checked one by one, and the wrong ones reported and
//! replaced.

mod attempt;
mod batch;
mod decode;
mod flow;
mod health;
mod inner;
mod machine;
mod shell;
mod window;

use crate::codec::{Cipher, Coder};
use crate::destination::{Destination, MemoryDestination};
use crate::error::ReadError;
use crate::fault::FaultSink;
use crate::geometry::{Geometry, manifest_path};
use crate::key::ModelKey;
use crate::pool::Pool;
use crate::store::Store;
use attempt::FillTarget;
pub use attempt::OnSegment;
use batch::BatchReport;
use flow::Flow;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use health::Health;
use inner::Inner;
use protocol::ModelRoot;
use protocol::limits::MODEL_MANIFEST_BYTES_MAX;
use protocol::model::ModelManifest;
use shell::load;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use window::BATCH_BYTES_MAX;

/// Largest range in bytes that one call reads into memory; a larger one takes several calls, or a map.
const RANGE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Silence of a store during a manifest transfer after which the next store is asked too.
const MANIFEST_HEDGE: Duration = Duration::from_millis(500);

/// Longest wait for one store alone to send a manifest: a store that sends a byte now and then must not hold
/// a load.
const MANIFEST_WAIT_MAX: Duration = Duration::from_secs(10);

/// Statistics of a fill or a range read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FillReport {
    /// Number of segments verified.
    pub segments: u64,
    /// Plaintext bytes verified.
    pub bytes: u64,
    /// Number of segments that needed the erasure code.
    pub rebuilt: u64,
    /// Number of shards that were missing, unreachable or wrong.
    pub faults: u64,
    /// Time from start to finish.
    pub elapsed: Duration,
}

/// A readable model: manifest, key and stores. Clones share their measurements of the stores.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({} over {} stores)", self.inner.manifest.name, self.inner.stores.len())
    }
}

/// Fetches the manifest that `root` names from the first store that answers with the right bytes.
///
/// # Errors
/// [`ReadError::Manifest`] with the error of each store, [`ReadError::ManifestInvalid`].
pub async fn fetch_manifest(
    root: ModelRoot,
    stores: &[Store],
    pool: &Pool,
) -> Result<Arc<ModelManifest>, ReadError> {
    let path = manifest_path(root);
    let received = AtomicU64::new(0);
    let mut waiting = stores.iter().filter(|store| store.closed().is_none());
    let mut running = FuturesUnordered::new();
    let mut reasons = Vec::new();
    let request = |store: &Store| {
        let (store, path) = (store.clone(), path.clone());
        let on_bytes = |bytes| {
            received.fetch_add(bytes, Ordering::Relaxed);
        };
        async move {
            let bytes = store.get(&path, MODEL_MANIFEST_BYTES_MAX, on_bytes).await;
            let bytes = bytes.map_err(|error| error.to_string())?;
            let parsed = pool.run(move || parse_manifest(root, &bytes)).await;
            parsed
                .unwrap_or(Err("the thread pool has stopped".into()))
                .map_err(|reason| format!("store `{}`: {reason}", store.url()))
        }
    };
    running.extend(waiting.next().map(request));
    let mut requested_at = Instant::now();
    while !running.is_empty() {
        let before = received.load(Ordering::Relaxed);
        let answer = tokio::time::timeout(MANIFEST_HEDGE, running.next()).await;
        // A large manifest over a slow link takes time; a second copy of it would take as long again.
        let is_moving =
            received.load(Ordering::Relaxed) > before && requested_at.elapsed() < MANIFEST_WAIT_MAX;
        match answer {
            Err(_) if is_moving => continue,
            Ok(Some(Ok(manifest))) => {
                manifest.check()?;
                return Ok(Arc::new(manifest));
            }
            Ok(Some(Err(reason))) => reasons.push(reason),
            Ok(None) | Err(_) => {}
        }
        running.extend(waiting.next().map(request));
        requested_at = Instant::now();
    }
    if reasons.is_empty() {
        reasons.push("no store is reachable".into());
    }
    Err(ReadError::Manifest { root, reason: reasons.join("; ") })
}

pub(crate) fn parse_manifest(root: ModelRoot, bytes: &[u8]) -> Result<ModelManifest, String> {
    let digest = protocol::Digest::of_domain(protocol::model::MODEL_DOMAIN, bytes);
    if ModelRoot(digest) != root {
        return Err("its bytes have another root".into());
    }
    protocol::canonical::from_bytes(bytes, MODEL_MANIFEST_BYTES_MAX).map_err(|error| error.to_string())
}

#[cfg(test)]
impl Reader {
    /// Sets the stalled disks of this machine, by their shards, and turns measurement off. The reader must be
    /// new.
    pub(crate) fn with_stalled_disks(mut self, shards: &[usize]) -> Self {
        Arc::get_mut(&mut self.inner).expect("new").health.stalled = Some(shards.to_vec());
        self
    }
}

impl Reader {
    /// Opens the model of this manifest. `stores` are in shard order; some may be closed.
    ///
    /// # Errors
    /// [`ReadError::ManifestInvalid`], [`ReadError::StoreCount`], [`ReadError::KeyWrong`].
    pub fn open(
        manifest: Arc<ModelManifest>,
        key: &ModelKey,
        stores: Vec<Store>,
        pool: Arc<Pool>,
        faults: FaultSink,
    ) -> Result<Self, ReadError> {
        manifest.check()?;
        let needed = manifest.erasure.shards();
        if stores.len() != needed {
            return Err(ReadError::StoreCount { given: stores.len(), needed });
        }
        if key.commitment() != manifest.key_commitment {
            return Err(ReadError::KeyWrong);
        }
        let inner = Inner {
            geometry: Geometry::new(&manifest),
            cipher: Cipher::new(key, manifest.nonce),
            coder: Coder::new(manifest.erasure),
            health: Health::new(&stores),
            flow: Arc::new(Flow::new(concurrent(&pool) as u64 * BATCH_BYTES_MAX)),
            manifest,
            stores,
            faults,
            pool,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the manifest.
    #[must_use]
    pub fn manifest(&self) -> &Arc<ModelManifest> {
        &self.inner.manifest
    }

    /// Fills a weights map with the whole model, in the order in which an engine needs it. After an error,
    /// the segments that `on_segment` received are valid; all others must not be used.
    ///
    /// # Errors
    /// See [`ReadError`]; the first unavailable segment ends the fill.
    pub async fn fill(
        &self,
        destination: Arc<dyn Destination>,
        on_segment: OnSegment,
    ) -> Result<FillReport, ReadError> {
        self.fill_segments(&self.inner.manifest.order, destination, on_segment).await
    }

    /// Fills only these segments, in this order.
    ///
    /// # Errors
    /// See [`Reader::fill`]. [`ReadError::Range`] for an index that the manifest does not have.
    pub async fn fill_segments(
        &self,
        segments: &[u32],
        destination: Arc<dyn Destination>,
        on_segment: OnSegment,
    ) -> Result<FillReport, ReadError> {
        let began = Instant::now();
        let known = self.inner.manifest.segments.len();
        if let Some(index) = segments.iter().find(|index| **index as usize >= known) {
            let start = u64::from(*index);
            return Err(ReadError::Range { path: "segments".into(), start, end: start + 1 });
        }
        let target = FillTarget { destination, on_segment };
        let load = |(batch, permit)| load(self.inner.clone(), batch, permit, target.clone());
        let loads = self.inner.batches(segments).map(load).buffer_unordered(concurrent(&self.inner.pool));
        let sum = |sum: BatchReport, report| async move { Ok(sum.plus(report)) };
        let total = loads.try_fold(BatchReport::default(), sum).await?;
        let BatchReport { segments, bytes, rebuilt, faults } = total;
        Ok(FillReport { segments, bytes, rebuilt, faults, elapsed: began.elapsed() })
    }

    /// Reads bytes of a file, at most 256 MiB per call.
    ///
    /// # Errors
    /// [`ReadError::Range`] if the range does not exist or is too large; see [`ReadError`].
    pub async fn read_range(&self, path: &str, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        let Range { start, end } = range;
        let missing = || ReadError::Range { path: path.into(), start, end };
        let file = self.inner.manifest.file(path).ok_or_else(missing)?;
        if start > end || end > file.length || end - start > RANGE_BYTES_MAX {
            return Err(missing());
        }
        if start == end {
            return Ok(Vec::new());
        }
        let (start, end) = (file.offset + start, file.offset + end);
        let segments = &self.inner.manifest.segments;
        let first = segments.partition_point(|segment| segment.offset + u64::from(segment.length) <= start);
        let last = segments.partition_point(|segment| segment.offset < end);
        let mut wanted: Vec<u32> = (first as u32..last as u32).collect();
        wanted.sort_by_key(|index| self.inner.geometry.position(*index));
        let memory = Arc::new(MemoryDestination::new(start, (end - start) as usize));
        self.fill_segments(&wanted, memory.clone(), Arc::new(|_| ())).await?;
        let memory = Arc::into_inner(memory).ok_or(ReadError::Stopped)?;
        Ok(memory.into_bytes())
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`Reader::read_range`].
    pub async fn read_file(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let length = self.inner.manifest.file(path).map_or(u64::MAX, |file| file.length);
        if length > limit {
            return Err(ReadError::Range { path: path.into(), start: 0, end: length });
        }
        self.read_range(path, 0..length).await
    }
}

/// Returns the number of concurrent batches: per thread one in work and one ready, and two more in flight.
fn concurrent(pool: &Pool) -> usize {
    2 * pool.threads() + 2
}

#[cfg(test)]
mod tests;
