//! Import of a model: from local files to shards in stores, in constant memory at any size.
//!
//! The pool reads, hashes, encrypts and codes a group of segments while the objects of the previous group are
//! written. At most [`GROUPS_IN_FLIGHT`] groups are in memory. The manifest is written last. An interrupted
//! import therefore leaves only objects that no manifest names, and every earlier model is unchanged.

use crate::codec::{Cipher, Coder};
use crate::error::{ImportError, StoreError};
use crate::geometry::{Geometry, manifest_path, model_prefix};
use crate::key::ModelKey;
use crate::layout::{Rank, cut, offsets, order};
use crate::placement::{PlacementRule, place};
use crate::pool::Pool;
use crate::source::{InspectedModel, SourceFile, inspect};
use crate::store::{Progress, Store};
use crate::sweep::IMPORT_SILENCE_MAX;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use object_store::PutPayload;
use protocol::checkpoint::foreign_architecture;
use protocol::limits::MODEL_MANIFEST_BYTES_MAX;
use protocol::model::{
    ErasureCode, ModelFile, ModelManifest, ModelNonce, ModelRecord, SEGMENTS_PER_OBJECT_MAX, Segment,
    StoredKind,
};
use protocol::{Digest, ModelName, ModelRoot};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Number of groups in memory: one is coded while one is written.
const GROUPS_IN_FLIGHT: usize = 2;
/// Maximum canonical bytes of a segment entry without its digests, and of one digest.
const SEGMENT_ENTRY_BYTES: usize = 64;
const DIGEST_ENTRY_BYTES: usize = 34;

/// Options of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Human-readable name of the model.
    pub name: ModelName,
    /// Erasure code: k data shards and m parity shards.
    pub erasure: ErasureCode,
    /// Limit on the shards in one failure domain.
    pub placement: PlacementRule,
    /// Number of segments per object; 16 makes objects of 4 MiB with four data shards.
    pub segments_per_object: u32,
    /// Random bytes that were never used for another import, including failed ones: see
    /// [`crate::fresh_nonce`]. Under one key a repeated nonce would void the encryption of both imports.
    pub nonce: ModelNonce,
    /// Whether a model is stored that no built-in engine serves.
    pub is_foreign_allowed: bool,
    /// Whether packed data is a job's checkpoint or outputs, and no dataset.
    pub is_job_data: bool,
}

impl ImportOptions {
    /// Returns the default options: 4+2, at most two shards per failure domain, objects of 16 segments.
    #[must_use]
    pub fn new(name: ModelName, nonce: ModelNonce) -> Self {
        Self {
            name,
            erasure: ErasureCode { data: 4, parity: 2 },
            placement: PlacementRule { shards_per_domain_max: 2 },
            segments_per_object: 16,
            nonce,
            is_foreign_allowed: false,
            is_job_data: false,
        }
    }
}

/// Progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// Plaintext bytes coded.
    pub bytes_done: u64,
    /// Total plaintext bytes.
    pub bytes_total: u64,
}

/// Result of an import.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Record that the control plane keeps.
    pub record: ModelRecord,
    /// Manifest of the stored model.
    pub manifest: Arc<ModelManifest>,
    /// Notes for the operator, as sentences.
    pub notes: Vec<String>,
    /// Bytes of shards and manifests written to all stores.
    pub bytes_written: u64,
    /// Time from start to finish.
    pub elapsed: Duration,
    written_at: SystemTime,
}

impl Imported {
    /// Checks that the model may still be registered. Garbage collection may remove older objects before the
    /// register contains the model.
    ///
    /// # Errors
    /// [`ImportError::Stalled`].
    pub fn check_fresh(&self, now: SystemTime) -> Result<(), ImportError> {
        check_silence(self.written_at, now)
    }
}

fn check_silence(last: SystemTime, now: SystemTime) -> Result<(), ImportError> {
    // A clock that was set back proves nothing.
    let silence = now.duration_since(last).unwrap_or_default();
    if silence > IMPORT_SILENCE_MAX { Err(ImportError::Stalled { silence }) } else { Ok(()) }
}

/// Plan of an import, made before any byte is coded.
struct ImportPlan {
    source: InspectedModel,
    /// Its digests are still empty.
    manifest: ModelManifest,
    /// Index of the file that each segment belongs to.
    file_of: Vec<usize>,
}

/// One coded segment.
struct Coded {
    digest: Digest,
    shards: Vec<Digest>,
    block: Bytes,
}

/// Stores the model at `source` (a directory or a file) in k + m of `stores`, chosen by the placement rule.
/// Progress is reported from the pool's threads.
///
/// # Errors
/// See [`ImportError`]. Objects written before the failure are removed as far as the stores allow.
pub async fn import(
    source: &Path,
    options: ImportOptions,
    stores: &[Store],
    key: &ModelKey,
    pool: &Arc<Pool>,
    progress: impl Fn(ImportProgress) + Send + Sync + 'static,
) -> Result<Imported, ImportError> {
    let began = Instant::now();
    let references: Vec<_> = stores.iter().map(|store| store.reference().clone()).collect();
    let chosen = place(&references, options.erasure, options.placement)?;
    let find = |url: &str| stores.iter().find(|store| store.url() == url).cloned();
    let stores: Vec<Store> = chosen.iter().filter_map(|chosen| find(&chosen.url)).collect();
    if let Some(store) = stores.iter().find(|store| store.closed().is_some()) {
        let reason = store.closed().map(ToString::to_string).unwrap_or_default();
        return Err(StoreError::Unreachable { url: store.url().into(), reason }.into());
    }
    let (path, commitment) = (source.to_path_buf(), key.commitment());
    let plan = pool.run(move || inspect(&path).and_then(|source| plan(source, &options, commitment)));
    let plan = plan.await.unwrap_or_else(|| Err(stopped()))?;
    let nonce = plan.manifest.nonce;
    let (architecture, notes) = (plan.source.architecture.clone(), plan.source.notes.clone());
    let stored = write(plan, &stores, key, pool, progress).await;
    let (manifest, bytes_written) = match stored {
        Ok(stored) => stored,
        Err((error, root)) => {
            // The model was not registered; removing its objects only frees space.
            remove(&stores, nonce, root).await;
            return Err(error);
        }
    };
    let record = ModelRecord {
        name: manifest.name.clone(),
        kind: manifest.kind,
        root: manifest.root(),
        bytes: manifest.file_bytes(),
        segments: manifest.segments.len() as u64,
        erasure: manifest.erasure,
        stores: chosen,
        architecture,
    };
    let (elapsed, written_at) = (began.elapsed(), SystemTime::now());
    Ok(Imported { record, manifest, notes, bytes_written, elapsed, written_at })
}

/// Removes an import from its stores as far as they allow. Call this only if the model is not registered and
/// never will be; `stores` are those that hold its shards.
pub async fn let_go(imported: &Imported, stores: &[Store]) {
    let placed = |store: &&Store| imported.record.stores.iter().any(|placed| placed.url == store.url());
    let stores: Vec<Store> = stores.iter().filter(placed).cloned().collect();
    remove(&stores, imported.manifest.nonce, Some(imported.record.root)).await;
}

/// Removes the copies of the manifest first, since a store knows an import by its shards.
async fn remove(stores: &[Store], nonce: ModelNonce, root: Option<ModelRoot>) {
    let prefix = model_prefix(nonce);
    let of_store = |store: &Store| {
        let (store, prefix) = (store.clone(), prefix.clone());
        async move {
            if let Some(root) = root
                && let Err(error) = store.remove(vec![manifest_path(root).to_string()]).await
            {
                tracing::warn!(store = store.url(), %error, "the manifest of a failed import is left behind");
            }
            store.remove_below(&prefix).await;
            store.remove_empty(prefix.as_ref()).await;
        }
    };
    join_all(stores.iter().map(of_store)).await;
}

fn stopped() -> ImportError {
    let source = std::io::Error::other("the thread pool has stopped");
    ImportError::Unreadable { path: "model".into(), source }
}

/// Refuses a model that no built-in engine serves, or marks it where foreign ones are allowed.
fn judge(mut source: InspectedModel, is_foreign_allowed: bool) -> Result<InspectedModel, ImportError> {
    match source.unserved.take() {
        None => Ok(source),
        Some(error) if !is_foreign_allowed => Err(ImportError::Unserved(error)),
        Some(error) => {
            source.notes.push(format!("only a foreign engine can serve this model: {error}"));
            source.architecture = foreign_architecture(&source.architecture);
            Ok(source)
        }
    }
}

/// Assigns offsets to the files, cuts them, and orders the segments.
fn plan(
    source: InspectedModel,
    options: &ImportOptions,
    key_commitment: Digest,
) -> Result<ImportPlan, ImportError> {
    let source = judge(source, options.is_foreign_allowed)?;
    let kind = match source.kind {
        StoredKind::Dataset { tree } if options.is_job_data => StoredKind::JobData { tree },
        kind => kind,
    };
    let too_large = |reason: String| ImportError::TooLarge { reason };
    if !(1..=SEGMENTS_PER_OBJECT_MAX).contains(&options.segments_per_object) {
        let reason = format!("{} segments per object, expected 1 to 60", options.segments_per_object);
        return Err(too_large(reason));
    }
    let starts = offsets(source.files.iter().map(|file| file.length));
    let (mut segments, mut ranks, mut file_of) = (Vec::new(), Vec::<Rank>::new(), Vec::new());
    for (number, (file, start)) in source.files.iter().zip(&starts).enumerate() {
        for cut in cut(&file.extents) {
            let length = (cut.range.end - cut.range.start) as u32;
            let offset = start.saturating_add(cut.range.start);
            segments.push(Segment { offset, length, digest: Digest([0; 32]), shards: Vec::new() });
            ranks.push(cut.rank);
            file_of.push(number);
        }
    }
    let entry = SEGMENT_ENTRY_BYTES + DIGEST_ENTRY_BYTES * (1 + options.erasure.shards());
    if segments.len().saturating_mul(entry) > MODEL_MANIFEST_BYTES_MAX {
        return Err(too_large(format!("{} segments do not fit one manifest", segments.len())));
    }
    let file = |(file, offset): (&SourceFile, &u64)| ModelFile {
        path: file.path.clone(),
        offset: *offset,
        length: file.length,
    };
    let manifest = ModelManifest {
        version: 1,
        name: options.name.clone(),
        kind,
        erasure: options.erasure,
        segments_per_object: options.segments_per_object,
        nonce: options.nonce,
        key_commitment,
        files: source.files.iter().zip(&starts).map(file).collect(),
        segments,
        order: order(&ranks),
    };
    debug_assert_eq!(file_of.len(), manifest.segments.len(), "each segment is in one file");
    Ok(ImportPlan { source, manifest, file_of })
}

/// Codes and writes every group, then the manifest. A failure names the manifest, if copies may be stored.
async fn write(
    plan: ImportPlan,
    stores: &[Store],
    key: &ModelKey,
    pool: &Arc<Pool>,
    progress: impl Fn(ImportProgress) + Send + Sync + 'static,
) -> Result<(Arc<ModelManifest>, u64), (ImportError, Option<ModelRoot>)> {
    let bytes_total = plan.source.bytes();
    let coder = Arc::new(Coding {
        cipher: Cipher::new(key, plan.manifest.nonce),
        coder: Coder::new(plan.manifest.erasure),
        geometry: Geometry::new(&plan.manifest),
        plan,
        bytes_done: AtomicU64::new(0),
        written_at: Mutex::new(SystemTime::now()),
        uplink: Progress::new(),
        progress: Box::new(move |bytes_done| progress(ImportProgress { bytes_done, bytes_total })),
    });
    let (manifest, written) = write_groups(&coder, stores, pool).await.map_err(|error| (error, None))?;
    let bytes = Bytes::from(protocol::canonical::to_bytes(&manifest));
    if bytes.len() > MODEL_MANIFEST_BYTES_MAX {
        let reason = format!("the manifest has {} bytes", bytes.len());
        return Err((ImportError::TooLarge { reason }, None));
    }
    let root = ModelRoot(Digest::of_domain(protocol::model::MODEL_DOMAIN, &bytes));
    let path = manifest_path(root);
    let put = |store| Store::put(store, &path, bytes.clone().into(), &coder.uplink);
    let stored = all(stores.iter().map(put)).await.map_err(ImportError::from);
    stored.and_then(|()| coder.wrote(SystemTime::now())).map_err(|error| (error, Some(root)))?;
    Ok((Arc::new(manifest), written + (bytes.len() * stores.len()) as u64))
}

/// Codes and writes every group. Returns the manifest with all digests, and the number of bytes written.
async fn write_groups(
    coder: &Arc<Coding>,
    stores: &[Store],
    pool: &Arc<Pool>,
) -> Result<(ModelManifest, u64), ImportError> {
    // After a failure no further group starts, but every pending write is awaited: one that finished after
    // the clean-up would leave its object behind.
    let failed = AtomicBool::new(false);
    let groups = stream::iter(0..coder.geometry.groups());
    let groups = groups.take_while(|_| futures::future::ready(!failed.load(Ordering::Relaxed)));
    let coded = groups.map(|group| write_group(coder.clone(), group, stores, pool));
    let coded = coded.buffer_unordered(GROUPS_IN_FLIGHT);
    let note = |result: &Result<Written, _>| {
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
    };
    let coded: Vec<_> = coded.inspect(note).collect().await;
    let coded = coded.into_iter().collect::<Result<Vec<_>, ImportError>>()?;
    let mut manifest = coder.plan.manifest.clone();
    let mut written = 0;
    for (index, digest, shards, bytes) in coded.into_iter().flatten() {
        let segment = &mut manifest.segments[index as usize];
        (segment.digest, segment.shards) = (digest, shards);
        written += bytes;
    }
    manifest.check().map_err(|error| ImportError::TooLarge { reason: error.to_string() })?;
    Ok((manifest, written))
}

struct Coding {
    plan: ImportPlan,
    cipher: Cipher,
    coder: Coder,
    geometry: Geometry,
    bytes_done: AtomicU64,
    /// Time at which a group was last complete in all its stores. The wall clock also advances while the
    /// machine sleeps.
    written_at: Mutex<SystemTime>,
    progress: Box<dyn Fn(u64) + Send + Sync>,
    /// All writes share the uplink: none is silent while another makes progress.
    uplink: Progress,
}

/// Index, digest, shard digests, and bytes written, of each segment.
type Written = Vec<(u32, Digest, Vec<Digest>, u64)>;

async fn write_group(
    coding: Arc<Coding>,
    group: u32,
    stores: &[Store],
    pool: &Arc<Pool>,
) -> Result<Written, ImportError> {
    let segments = coding.geometry.segments(&coding.plan.manifest, group).to_vec();
    let code = |index: u32| {
        let coding = coding.clone();
        pool.run(move || coding.segment(index))
    };
    let coded = join_all(segments.iter().map(|index| code(*index))).await;
    let coded: Result<Vec<Coded>, ImportError> =
        coded.into_iter().map(|coded| coded.unwrap_or_else(|| Err(stopped()))).collect();
    let coded = coded?;
    let put = |(shard, store): (usize, &Store)| {
        let part = |coded: &Coded| {
            let length = coded.block.len() / stores.len();
            coded.block.slice(shard * length..(shard + 1) * length)
        };
        let (store, payload) = (store.clone(), coded.iter().map(part).collect::<PutPayload>());
        let (path, progress) = (coding.geometry.object(group, shard), coding.uplink.clone());
        async move { store.put(&path, payload, &progress).await }
    };
    all(stores.iter().enumerate().map(put)).await?;
    coding.wrote(SystemTime::now())?;
    let written =
        |(index, coded): (&u32, Coded)| (*index, coded.digest, coded.shards, coded.block.len() as u64);
    Ok(segments.iter().zip(coded).map(written).collect())
}

/// Waits for every write, even if one fails.
async fn all(
    writes: impl Iterator<Item = impl Future<Output = Result<(), StoreError>>>,
) -> Result<(), StoreError> {
    join_all(writes).await.into_iter().collect()
}

impl Coding {
    /// Records a write, and checks that it followed the previous one soon enough.
    fn wrote(&self, now: SystemTime) -> Result<(), ImportError> {
        let mut last = self.written_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        check_silence(std::mem::replace(&mut *last, now), now)
    }

    /// Reads, hashes, encrypts and codes one segment.
    fn segment(&self, index: u32) -> Result<Coded, ImportError> {
        let manifest = &self.plan.manifest;
        let number = self.plan.file_of[index as usize];
        let Segment { offset, length, .. } = manifest.segments[index as usize];
        let (at, length) = (offset - manifest.files[number].offset, length as usize);
        let shard_length = self.coder.shard_length(length);
        let mut block = vec![0; shard_length * manifest.erasure.shards()];
        self.plan.source.files[number].read(at, &mut block[..length])?;
        let digest = Digest::of(&block[..length]);
        self.cipher.seal(index, offset, length, &mut block);
        self.coder.encode(&mut block);
        let shards = block.chunks_exact(shard_length).map(Digest::of).collect();
        let done = self.bytes_done.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
        (self.progress)(done);
        Ok(Coded { digest, shards, block: block.into() })
    }
}

#[cfg(test)]
mod tests;
