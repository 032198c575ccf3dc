//! Models in this node's memory: one copy of each, shared by all slots that use it. Its bytes are verified
//! against the root that the circle approved, and the copy is freed with its last user.

use super::core::Refusal;
use human_chain::{ChainError, CircleState};
use model_store::{
    Context, Destination, EncryptionSecret, FaultSink, ModelKey, Pool, ReadError, Reader, ShardFault, Store,
    fetch_manifest, unwrap_key,
};
use protocol::error_code;
use protocol::manifest::ServiceManifest;
use protocol::model::{ModelManifest, ModelRecord, SignedWrap, StoredKind};
use protocol::order::SlotOrder;
use protocol::worker::{SegmentRange, WorkerManifest};
use protocol::{Digest, ModelRoot};
use sandbox::MemoryFile;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

mod data;
mod failed_nodes;
mod files;
mod packed;
#[cfg(test)]
mod tests;

use failed_nodes::FailedNodes;

pub(super) use data::StoredData;

/// Pause before a failed fill resumes with the missing segments; it doubles up to the maximum. It is far
/// below the minute after which a worker that waits for a segment gives up.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(10);
/// Number of faults logged individually. Later ones are logged at each doubling: a dead store has one per
/// segment.
const FAULTS_LOGGED: u64 = 10;
/// CPU time of one thread, in thousandths of a core.
const MILLICORES_PER_THREAD: u64 = 1000;

/// Input of a load besides the approved root: the possible locations of the shards, and the wrapped key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelSource {
    /// Location of the model as reported by control. It is untrusted: every byte is verified.
    pub(super) record: ModelRecord,
    /// The model's key, wrapped for this node by a member.
    pub(super) wrap: Option<SignedWrap>,
}

/// All models of this node.
pub(super) struct Models {
    pool: Arc<Pool>,
    context: Context,
    secret: EncryptionSecret,
    circle: watch::Receiver<Arc<CircleState>>,
    /// Digests of the wraps that do not give this node the key of their model.
    unusable_wraps: Mutex<BTreeSet<Digest>>,
    loaded: Mutex<BTreeMap<ModelRoot, Arc<tokio::sync::Mutex<Weak<LoadedModel>>>>>,
    faults: Arc<AtomicU64>,
    failed_nodes: FailedNodes,
}

/// Progress of a fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fill {
    /// In progress; the text is the last error, if any.
    Running(Option<String>),
    /// Every byte is present and verified.
    Complete,
}

/// A model in memory.
#[derive(Debug)]
pub(super) struct LoadedModel {
    manifest: Arc<ModelManifest>,
    memory: Arc<ModelMemory>,
    fill: watch::Receiver<Fill>,
    filling: AbortHandle,
}

/// The two files that workers map.
#[derive(Debug)]
struct ModelMemory {
    weights: MemoryFile,
    /// One byte per segment.
    progress: MemoryFile,
    verified: AtomicU64,
}

impl Destination for ModelMemory {
    fn with_buffer(
        &self,
        offset: u64,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<bool> {
        let offset = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.weights.with_buffer(offset, length, write)
    }
}

impl ModelMemory {
    fn create(manifest: &ModelManifest) -> io::Result<Self> {
        let bytes = usize::try_from(manifest.map_bytes()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // An empty file cannot be mapped, but a model of empty files is valid.
        Ok(Self {
            weights: MemoryFile::create("quorate-weights", bytes.max(1))?,
            progress: MemoryFile::create("quorate-progress", manifest.segments.len().max(1))?,
            verified: AtomicU64::new(0),
        })
    }

    fn publish(&self, segment: u32) {
        self.progress.publish(segment as usize, 1);
        self.verified.fetch_add(1, Ordering::Relaxed);
    }

    fn is_present(&self, segment: u32) -> bool {
        let mut byte = [0];
        self.progress.read(segment as usize, &mut byte);
        byte[0] == 1
    }
}

impl Models {
    pub(super) fn new(
        context: Context,
        secret: EncryptionSecret,
        circle: watch::Receiver<Arc<CircleState>>,
    ) -> Self {
        Self {
            pool: Pool::per_core(),
            context,
            secret,
            circle,
            unusable_wraps: Mutex::default(),
            loaded: Mutex::default(),
            faults: Arc::default(),
            failed_nodes: FailedNodes::default(),
        }
    }

    /// Returns those of the wraps that control sends now that were found unusable; all others are forgotten.
    pub(super) fn unusable_wraps<'a>(
        &self,
        sent: impl Iterator<Item = &'a SignedWrap>,
    ) -> Vec<&'a SignedWrap> {
        let mut unusable = self.unusable_wraps.lock().unwrap_or_else(PoisonError::into_inner);
        if unusable.is_empty() {
            return Vec::new();
        }
        let sent: BTreeMap<Digest, &SignedWrap> = sent.map(|signed| (signed.digest(), signed)).collect();
        unusable.retain(|digest| sent.contains_key(digest));
        unusable.iter().filter_map(|digest| sent.get(digest).copied()).collect()
    }

    /// Remembers that this wrap does not give the key of its model.
    fn note_unusable(&self, signed: &SignedWrap) {
        tracing::warn!(
            model = %signed.wrap.root, maker = %signed.maker,
            "a wrap does not give the model's key; the node asks for another one"
        );
        self.unusable_wraps.lock().unwrap_or_else(PoisonError::into_inner).insert(signed.digest());
    }

    /// Returns the number of shards that were missing, unreachable or corrupt since the start.
    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Returns root, verified segments and bytes of memory of every model on this node.
    pub(super) fn in_memory(&self) -> Vec<(ModelRoot, u64, u64)> {
        self.each(|root, model| (root, model.segments_verified(), model.manifest.map_bytes()))
    }

    /// Returns root and size of the files in bytes of every model on this node, as its manifest has them.
    pub(super) fn weights(&self) -> Vec<(ModelRoot, u64)> {
        self.each(|root, model| (root, model.manifest.file_bytes()))
    }

    /// Describes every model on this node, except those that a load is looking up now.
    fn each<T>(&self, describe: impl Fn(ModelRoot, &LoadedModel) -> T) -> Vec<T> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let models = loaded.iter().filter_map(|(root, entry)| {
            let model = entry.try_lock().ok()?.upgrade()?;
            Some(describe(*root, &model))
        });
        models.collect()
    }

    /// Returns the model of the approved `root`: the existing copy, or a new one. A new copy starts to fill
    /// immediately and continues while it has users.
    ///
    /// # Errors
    /// If the load cannot start: no reachable manifest, no key, or no memory.
    pub(super) async fn get(
        &self,
        root: ModelRoot,
        source: &ModelSource,
    ) -> Result<Arc<LoadedModel>, Refusal> {
        let entry = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.retain(|_, entry| {
                Arc::strong_count(entry) > 1 || entry.try_lock().is_ok_and(|model| model.strong_count() > 0)
            });
            loaded.entry(root).or_default().clone()
        };
        // The lock is held while loading, so that two slots that start together share one copy.
        let mut entry = entry.lock().await;
        if let Some(model) = entry.upgrade() {
            return Ok(model);
        }
        let model = Arc::new(self.load(root, source).await?);
        *entry = Arc::downgrade(&model);
        Ok(model)
    }

    async fn load(&self, root: ModelRoot, source: &ModelSource) -> Result<LoadedModel, Refusal> {
        let key = self.open_key(root, source)?;
        let manifest = fetch_manifest(root, &self.open_stores(source), &self.pool).await;
        let manifest = manifest.map_err(|error| read_refusal(&error))?;
        // The store's code has compared them already, but the whole guarantee depends on it: compare again.
        if manifest.root() != root {
            let message = "the manifest that was fetched has another root than the approved one";
            return Err(Refusal::new(error_code::MODEL_MANIFEST_INVALID, message));
        }
        check_size(&manifest, &source.record)?;
        if manifest.kind != StoredKind::Model {
            let message = format!("`{}` is of kind {}, not model", manifest.name, manifest.kind.name());
            return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
        }
        // Opening checks the key against the manifest's commitment, before any byte is read.
        let reader = self.reader(&manifest, &key, source).map_err(|error| {
            let refusal = read_refusal(&error);
            match &source.wrap {
                Some(signed) if refusal.code == error_code::MODEL_KEY_WRONG => self.note_unusable(signed),
                _ => {}
            }
            refusal
        })?;
        let memory = Arc::new(ModelMemory::create(&manifest).map_err(|error| {
            let message = format!("memory for {} bytes of weights: {error}", manifest.map_bytes());
            Refusal::new(error_code::LIMIT_REACHED, message)
        })?);
        let (progress, fill) = watch::channel(Fill::Running(None));
        let job = FillJob {
            manifest: manifest.clone(),
            memory: memory.clone(),
            key,
            stores: source.clone(),
            context: self.context.clone(),
            pool: self.pool.clone(),
            faults: self.fault_sink(),
            progress,
        };
        let filling = tokio::spawn(job.run(reader)).abort_handle();
        Ok(LoadedModel { manifest, memory, fill, filling })
    }

    fn open_key(&self, root: ModelRoot, source: &ModelSource) -> Result<ModelKey, Refusal> {
        let closed = |message: &str| Refusal::new(error_code::MODEL_KEY_WRONG, message);
        let missing = || closed("no wrap of the model's key for this node");
        let signed = source.wrap.as_ref().ok_or_else(missing)?;
        if signed.wrap.root != root {
            return Err(closed("the wrap is of another model's key"));
        }
        match human_chain::check_wrap(&self.circle.borrow(), signed) {
            // The wrap was taken while its maker was a member. The manifest's commitment proves the key.
            Ok(()) | Err(ChainError::NotAMember(_)) => {}
            Err(error) => {
                if matches!(error, ChainError::SignatureInvalid(_)) {
                    self.note_unusable(signed);
                }
                return Err(closed(&error.to_string()));
            }
        }
        unwrap_key(&signed.wrap, &self.secret).map_err(|error| {
            self.note_unusable(signed);
            Refusal::new(error.code(), error.to_string())
        })
    }

    fn open_stores(&self, source: &ModelSource) -> Vec<Store> {
        open_stores(&self.context, source)
    }

    fn reader(
        &self,
        manifest: &Arc<ModelManifest>,
        key: &ModelKey,
        source: &ModelSource,
    ) -> Result<Reader, ReadError> {
        let stores = self.open_stores(source);
        Reader::open(manifest.clone(), key, stores, self.pool.clone(), self.fault_sink())
    }

    fn fault_sink(&self) -> FaultSink {
        let faults = self.faults.clone();
        Arc::new(move |fault: ShardFault| {
            let count = faults.fetch_add(1, Ordering::Relaxed) + 1;
            if count <= FAULTS_LOGGED || count.is_power_of_two() {
                tracing::warn!(%fault, count, "shard fault; reading on from the others");
            }
        })
    }
}

/// Checks that control does not report a model smaller than it is: orders are accepted by the reported size.
fn check_size(manifest: &ModelManifest, record: &ModelRecord) -> Result<(), Refusal> {
    let (reported, actual) = (record.bytes, manifest.file_bytes());
    if actual <= reported {
        return Ok(());
    }
    let message = format!("control reports {reported} bytes of weights, the manifest has {actual}");
    Err(Refusal::new(error_code::MODEL_RECORD_DIFFERS, message))
}

fn open_stores(context: &Context, source: &ModelSource) -> Vec<Store> {
    open_stores_of(context, &source.record)
}

fn open_stores_of(context: &Context, record: &ModelRecord) -> Vec<Store> {
    record.stores.iter().map(|reference| Store::open_or_closed(reference, context)).collect()
}

fn read_refusal(error: &ReadError) -> Refusal {
    Refusal::of(error.code(), error)
}

/// A task that reads a model's segments until all are present.
struct FillJob {
    manifest: Arc<ModelManifest>,
    memory: Arc<ModelMemory>,
    key: ModelKey,
    stores: ModelSource,
    context: Context,
    pool: Arc<Pool>,
    faults: FaultSink,
    progress: watch::Sender<Fill>,
}

impl FillJob {
    async fn run(self, mut reader: Reader) {
        let mut wait = RETRY_FIRST;
        let mut missing = self.manifest.order.clone();
        loop {
            let memory = self.memory.clone();
            let on_segment = Arc::new(move |segment| memory.publish(segment));
            match reader.fill_segments(&missing, self.memory.clone(), on_segment).await {
                Ok(report) => {
                    tracing::info!(
                        model = %self.manifest.name, segments = report.segments, bytes = report.bytes,
                        rebuilt = report.rebuilt, faults = report.faults, elapsed = ?report.elapsed,
                        "model complete"
                    );
                    self.progress.send_replace(Fill::Complete);
                    return;
                }
                Err(error) => {
                    let text = read_refusal(&error).to_string();
                    tracing::warn!(model = %self.manifest.name, error = text, "load interrupted, retrying");
                    self.progress.send_replace(Fill::Running(Some(text)));
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MOST);
            missing.retain(|segment| !self.memory.is_present(*segment));
            // Stores may have recovered and nodes may have moved: open them again.
            let stores = open_stores(&self.context, &self.stores);
            let opened = Reader::open(
                self.manifest.clone(),
                &self.key,
                stores,
                self.pool.clone(),
                self.faults.clone(),
            );
            if let Ok(opened) = opened {
                reader = opened;
            }
        }
    }
}

impl LoadedModel {
    /// Returns a watch on the progress of the fill.
    pub(super) fn fill(&self) -> watch::Receiver<Fill> {
        self.fill.clone()
    }

    /// Returns the number of segments that are present and verified.
    pub(super) fn segments_verified(&self) -> u64 {
        self.memory.verified.load(Ordering::Relaxed)
    }

    /// Returns the total number of segments.
    pub(super) fn segments_total(&self) -> u64 {
        self.manifest.segments.len() as u64
    }

    /// Returns descriptors of weights and progress, for reading.
    ///
    /// # Errors
    /// Errors of the system.
    pub(super) fn readers(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.memory.weights.reader()?, self.memory.progress.reader()?])
    }

    /// Returns the manifest for a worker of this model. `gpus` are the devices that it can compute on.
    pub(super) fn worker_manifest(
        &self,
        service: &ServiceManifest,
        order: &SlotOrder,
        gpus: &[u32],
    ) -> WorkerManifest {
        let segment = |s: &protocol::model::Segment| SegmentRange { offset: s.offset, length: s.length };
        WorkerManifest {
            service: service.name.clone(),
            slot: order.slot,
            fence: order.fence,
            task: service.task,
            root: self.manifest.root(),
            files: self.manifest.files.clone(),
            segments: self.manifest.segments.iter().map(segment).collect(),
            map_bytes: self.manifest.map_bytes(),
            context_tokens_max: service.context_tokens_max,
            batch_sequences_max: service.batch_sequences_max,
            threads: threads(service.resources.cpu_millicores),
            memory_bytes: service.resources.memory_bytes,
            gpus: gpus.to_vec(),
            // A service that has whole devices declared the least memory that they need.
            gpu_memory_bytes: (service.resources.gpu_share_percent > 0)
                .then_some(service.resources.gpu_memory_bytes),
        }
    }
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        self.filling.abort();
    }
}

/// A model whose bytes arrive under a test's control.
#[cfg(test)]
pub(super) struct ModelInHand {
    pub(super) model: Arc<LoadedModel>,
    progress: watch::Sender<Fill>,
}

#[cfg(test)]
impl ModelInHand {
    pub(super) fn new(manifest: ModelManifest) -> Self {
        let memory = Arc::new(ModelMemory::create(&manifest).expect("memory"));
        let (progress, fill) = watch::channel(Fill::Running(None));
        let filling = tokio::spawn(std::future::pending::<()>()).abort_handle();
        Self {
            model: Arc::new(LoadedModel { manifest: Arc::new(manifest), memory, fill, filling }),
            progress,
        }
    }

    /// Simulates an error that delays the bytes.
    pub(super) fn trouble(&self, text: &str) {
        self.progress.send_replace(Fill::Running(Some(text.into())));
    }

    /// Makes the rest of the bytes arrive.
    pub(super) fn complete(&self) {
        for segment in 0..self.model.segments_total() as u32 {
            if !self.model.memory.is_present(segment) {
                self.model.memory.publish(segment);
            }
        }
        self.progress.send_replace(Fill::Complete);
    }
}

#[cfg(test)]
impl Models {
    /// Uses this copy as the model of `root` while it is referenced.
    pub(super) fn hold(&self, root: ModelRoot, model: &Arc<LoadedModel>) {
        let entry = Arc::new(tokio::sync::Mutex::new(Arc::downgrade(model)));
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(root, entry);
    }
}

/// Returns one thread per core of CPU time, rounded up, at least one.
pub(super) fn threads(cpu_millicores: u64) -> u32 {
    u32::try_from(cpu_millicores.div_ceil(MILLICORES_PER_THREAD).max(1)).unwrap_or(u32::MAX)
}
