//! Test fixtures: a small Llama-shaped model of seeded bytes, directories as stores, and stores that fail on
//! demand.

mod endless;
mod image;
mod link;

pub(crate) use endless::Endless;
pub(crate) use image::{ImageWriter, TarWriter, gzip, with_checksum};
pub(crate) use link::{Cloud, OVERSENT_CHUNK_BYTES, Oversender, PutFailure, SimulatedLink};

use crate::*;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as ObjectResult, UploadPart,
};
use protocol::model::{ErasureCode, ModelManifest, ModelNonce, StoreReference};
use protocol::{ModelRoot, PublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

impl HealthReport {
    /// Returns whether every shard and every copy of the manifest is present and right.
    pub(crate) fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.manifests_wrong == 0
    }
}

/// Returns `length` bytes that look random and depend on `seed` alone.
pub(crate) fn seeded(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_derive_key(seed).finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns a safetensors file of tensors with these names and lengths in bytes.
pub(crate) fn safetensors(tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, length) in tensors {
        let begin = data.len();
        data.extend(seeded(name, *length));
        let info =
            serde_json::json!({ "dtype": "U8", "shape": [length], "data_offsets": [begin, data.len()] });
        header.insert((*name).into(), info);
    }
    let mut header = serde_json::to_vec(&header).expect("json");
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Builder of GGUF files; every part can be set wrong.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) alignment: u64,
    /// Keys with the type and bytes of their value.
    pub(crate) keys: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<GgufTensor>,
}

/// One tensor of a [`Gguf`].
#[derive(Debug, Clone)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Gguf {
    /// Returns a valid file of these tensors of bytes (type 24, `i8`), back to back.
    pub(crate) fn of(tensors: &[(&str, u64)]) -> Self {
        let mut gguf = Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new() };
        gguf.keys.push(("general.architecture".into(), 8, gguf_text("llama")));
        for (name, bytes) in tensors {
            gguf.push(name, 24, vec![*bytes], *bytes);
        }
        gguf
    }

    /// Appends a tensor.
    pub(crate) fn push(&mut self, name: &str, kind: u32, shape: Vec<u64>, bytes: u64) {
        let end = self.tensors.last().map_or(0, |last| last.offset + last.bytes);
        let offset = end.next_multiple_of(self.alignment);
        self.tensors.push(GgufTensor { name: name.into(), shape, kind, offset, bytes });
    }

    /// Returns the header, padded to the start of the data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            bytes.extend(gguf_text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for GgufTensor { name, shape, kind, offset, .. } in &self.tensors {
            bytes.extend(gguf_text(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            bytes.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        bytes
    }

    /// Returns the whole file, in which each tensor's bytes are seeded by its name.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        let data = bytes.len();
        for tensor in &self.tensors {
            bytes.resize(bytes.len().max(data + tensor.offset as usize), 0);
            bytes.extend(seeded(&tensor.name, tensor.bytes as usize));
        }
        bytes
    }
}

/// Encodes a text in GGUF's format.
pub(crate) fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Bytes of one layer of the sample model, in three tensors.
pub(crate) const LAYER: usize = 1_500_000;

/// Configuration of the sample model.
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
    "max_position_embeddings": 512}"#;

/// Writes a model directory: configuration, tokenizer, an empty file, weights of two layers, 4 MB in all.
pub(crate) fn write_model(directory: &Path) {
    let weights = safetensors(&[
        ("lm_head.weight", 300_000),
        ("model.embed_tokens.weight", 500_000),
        ("model.layers.0.mlp.weight", LAYER - 3000),
        ("model.layers.0.norm.weight", 3000),
        ("model.layers.1.mlp.weight", LAYER - 3001),
        ("model.layers.1.norm.weight", 3001),
        ("model.norm.weight", 77),
    ]);
    std::fs::write(directory.join("model.safetensors"), weights).expect("write");
    std::fs::write(directory.join("config.json"), LLAMA).expect("write");
    std::fs::write(directory.join("tokenizer.json"), seeded("tokenizer", 20_000)).expect("write");
    std::fs::write(directory.join("empty.txt"), b"").expect("write");
    std::fs::create_dir(directory.join("1_Pooling")).expect("create");
    std::fs::write(directory.join("1_Pooling/config.json"), b"{}").expect("write");
    std::fs::write(directory.join(".gitattributes"), b"left out").expect("write");
}

/// A sample model, and stores for it.
pub(crate) struct ModelFixture {
    pub(crate) directory: TempDir,
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: ModelKey,
    pub(crate) faults: Arc<Mutex<Vec<ShardFault>>>,
}

impl ModelFixture {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("model")).expect("create");
        write_model(&directory.path().join("model"));
        let key = ModelKey::from_bytes([9; 32]);
        Self { directory, pool: Pool::new(2), key, faults: Arc::default() }
    }

    /// Returns the fixtures of [`ModelFixture::new`], for simulated time, with a pool of `threads` threads.
    pub(crate) fn simulated(threads: usize) -> Self {
        Self { pool: Pool::simulated(threads), ..Self::new() }
    }

    /// Imports a file of seeded bytes as a model.
    pub(crate) async fn import_bytes(
        &self,
        bytes: usize,
        stores: &[Store],
        data: u8,
        parity: u8,
    ) -> Imported {
        let path = self.directory.path().join("large.txt");
        std::fs::write(&path, seeded("large", bytes)).expect("write");
        let placement = PlacementRule { shards_per_domain_max: parity };
        let erasure = ErasureCode { data, parity };
        let options = ImportOptions {
            erasure,
            placement,
            ..ImportOptions::new("large".parse().expect("a name"), ModelNonce([7; 16]))
        };
        import(&path, options, stores, &self.key, &self.pool, |_| ()).await.expect("imported")
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.directory.path().join("model")
    }

    /// Returns the bytes of a file of the sample model.
    pub(crate) fn file(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.model().join(path)).expect("a file of the model")
    }

    pub(crate) fn store_directory(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("store-{number}"))
    }

    pub(crate) fn reference(&self, number: usize) -> StoreReference {
        let url = url::Url::from_file_path(self.store_directory(number)).expect("an absolute path");
        StoreReference {
            url: url.to_string(),
            failure_domain: format!("node-{}", if number < 6 { number % 3 } else { number }),
        }
    }

    /// Opens directories as stores in three failure domains.
    pub(crate) fn stores(&self, count: usize) -> Vec<Store> {
        let open = |number| open_store(&self.reference(number), &Context::new()).expect("a store");
        (0..count).map(open).collect()
    }

    pub(crate) fn options(&self, data: u8, parity: u8, nonce: u8) -> ImportOptions {
        let name = "sample".parse().expect("a name");
        let placement = PlacementRule { shards_per_domain_max: parity };
        let erasure = ErasureCode { data, parity };
        ImportOptions {
            erasure,
            placement,
            segments_per_object: 3,
            ..ImportOptions::new(name, ModelNonce([nonce; 16]))
        }
    }

    pub(crate) async fn import(&self, stores: &[Store], data: u8, parity: u8) -> Imported {
        let options = self.options(data, parity, 1);
        let imported = import(&self.model(), options, stores, &self.key, &self.pool, |_| ()).await;
        imported.expect("an import")
    }

    /// Returns the stores in shard order, as the import placed them.
    pub(crate) fn placed(&self, imported: &Imported, stores: &[Store]) -> Vec<Store> {
        let find = |url: &str| stores.iter().find(|store| store.url() == url).expect("placed").clone();
        imported.record.stores.iter().map(|reference| find(&reference.url)).collect()
    }

    pub(crate) fn reader(&self, manifest: &Arc<ModelManifest>, stores: &[Store]) -> Reader {
        let reader =
            Reader::open(manifest.clone(), &self.key, stores.to_vec(), self.pool.clone(), self.sink());
        // A busy machine must not count as a slow disk: only tests declare disks stalled.
        reader.expect("a reader").with_stalled_disks(&[])
    }

    pub(crate) fn sink(&self) -> FaultSink {
        let faults = self.faults.clone();
        Arc::new(move |fault| faults.lock().expect("no panic").push(fault))
    }

    pub(crate) fn take_faults(&self) -> Vec<ShardFault> {
        std::mem::take(&mut *self.faults.lock().expect("no panic"))
    }

    /// Reads the whole model and compares every byte of every file.
    pub(crate) async fn read_all(
        &self,
        manifest: &Arc<ModelManifest>,
        stores: &[Store],
    ) -> Result<FillReport, ReadError> {
        let reader = self.reader(manifest, stores);
        let memory = Arc::new(MemoryDestination::new(0, manifest.map_bytes() as usize));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = seen.clone();
        let on_segment: OnSegment = Arc::new(move |index| note.lock().expect("no panic").push(index));
        let report = reader.fill(memory.clone(), on_segment).await?;
        let bytes = Arc::into_inner(memory).expect("all work is done").into_bytes();
        for file in &manifest.files {
            let range = file.offset as usize..(file.offset + file.length) as usize;
            assert!(bytes[range] == self.file(&file.path)[..], "{} differs", file.path);
        }
        let mut seen = std::mem::take(&mut *seen.lock().expect("no panic"));
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..manifest.segments.len() as u32), "each segment is named once");
        Ok(report)
    }

    /// Returns every file below a store's directory, by its name.
    pub(crate) fn objects(&self, number: usize) -> BTreeMap<String, PathBuf> {
        fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, PathBuf>) {
            for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(root, &path, found);
                } else {
                    let name = path.strip_prefix(root).expect("below").to_str().expect("hexadecimal");
                    found.insert(name.into(), path);
                }
            }
        }
        let root = self.store_directory(number);
        let mut found = BTreeMap::new();
        walk(&root, &root, &mut found);
        found
    }
}

/// Decisions of the circle that a test makes.
#[derive(Debug)]
pub(crate) struct ScriptedDecisions {
    pub(crate) now: Mutex<SystemTime>,
    /// Peers without a role that writes.
    pub(crate) gateways: BTreeSet<PublicKey>,
    pub(crate) forgotten: Mutex<BTreeSet<ModelRoot>>,
    pub(crate) named: Mutex<BTreeSet<ModelRoot>>,
}

impl Default for ScriptedDecisions {
    fn default() -> Self {
        Self {
            now: Mutex::new(SystemTime::now()),
            gateways: BTreeSet::new(),
            forgotten: Mutex::default(),
            named: Mutex::default(),
        }
    }
}

impl ScriptedDecisions {
    /// Lets time pass.
    pub(crate) fn wait(&self, time: Duration) {
        *self.now.lock().expect("no panic") += time;
    }

    /// Makes the circle forget a model.
    pub(crate) fn forget(&self, root: ModelRoot) {
        self.forgotten.lock().expect("no panic").insert(root);
    }

    /// Makes the circle approve a service that names a model.
    pub(crate) fn name(&self, root: ModelRoot) {
        self.named.lock().expect("no panic").insert(root);
    }
}

impl ModelDecisions for ScriptedDecisions {
    fn now(&self) -> SystemTime {
        *self.now.lock().expect("no panic")
    }

    fn is_writer(&self, peer: &PublicKey) -> bool {
        !self.gateways.contains(peer)
    }

    fn is_forgotten(&self, root: ModelRoot) -> bool {
        self.forgotten.lock().expect("no panic").contains(&root)
    }

    fn is_named(&self, root: ModelRoot) -> bool {
        self.named.lock().expect("no panic").contains(&root)
    }
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, byte: usize, bit: u8) {
    let mut bytes = std::fs::read(path).expect("an object");
    bytes[byte] ^= 1 << bit;
    std::fs::write(path, bytes).expect("write");
}

/// Behaviour of a [`Faulty`] store.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Number of writes that succeed before every later one fails.
    pub(crate) writes_left: Option<AtomicU64>,
    /// Number of parts of multipart uploads that succeed before one fails.
    pub(crate) parts_left: Option<AtomicU64>,
    /// Whether failing writes report a full disk.
    pub(crate) full: bool,
    /// Number of objects that a listing names before it fails.
    pub(crate) list_breaks_after: Option<usize>,
    pub(crate) read_delay: Duration,
    /// Number of reads that were started.
    pub(crate) reads: AtomicU64,
    /// Bytes of writes in flight.
    pub(crate) writing: AtomicU64,
    /// Maximum of `writing`.
    pub(crate) writing_most: AtomicU64,
}

/// A store that follows a script.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    pub(crate) script: Arc<Script>,
}

impl Faulty {
    /// Returns the directory of `number` behind a script, as a store that is not read by position.
    pub(crate) fn store(world: &ModelFixture, number: usize, script: &Arc<Script>) -> Store {
        let path = world.store_directory(number);
        std::fs::create_dir_all(&path).expect("create");
        let inner = object_store::local::LocalFileSystem::new_with_prefix(path).expect("a directory");
        let faulty = Self::new(Arc::new(inner), script);
        Store::from_objects(world.reference(number), Arc::new(faulty))
    }

    pub(crate) fn new(inner: Arc<dyn ObjectStore>, script: &Arc<Script>) -> Self {
        Self { inner, script: script.clone() }
    }
}

impl Script {
    fn failure(&self) -> object_store::Error {
        let kind = if self.full { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
        let source = Box::new(std::io::Error::new(kind, "scripted"));
        object_store::Error::Generic { store: "faulty", source }
    }
}

/// An upload in which one part fails.
#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    script: Arc<Script>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let take = |left: u64| Some(left.wrapping_sub(1));
        let left = self.script.parts_left.as_ref();
        let left = left.and_then(|left| left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok());
        if left == Some(0) {
            let failure = self.script.failure();
            return Box::pin(async move { Err(failure) });
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> ObjectResult<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> ObjectResult<()> {
        self.inner.abort().await
    }
}

/// A disk of 1 MiB that is mounted while this value lives.
pub(crate) struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Creates the directory and mounts a disk there. If this process may not mount, `QUORATE_SKIP_MOUNTS`
    /// decides whether the test fails.
    pub(crate) fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).expect("create");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(path)
            .output();
        let reason = match mount {
            Ok(output) if output.status.success() => return Some(Self(path.into())),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        // A test that shows nothing must not look like a passed one.
        let may_skip = std::env::var_os("QUORATE_SKIP_MOUNTS").is_some();
        assert!(
            may_skip,
            "cannot mount: {reason}; run as root, or set QUORATE_SKIP_MOUNTS=1 to skip this test"
        );
        eprintln!("skipped because of QUORATE_SKIP_MOUNTS: cannot mount: {reason}");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // A lazy unmount: a file that is still open must not keep the mount.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        opts: PutOptions,
    ) -> ObjectResult<PutResult> {
        if let Some(left) = &self.script.writes_left {
            let take = |left: u64| left.checked_sub(1);
            if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
                return Err(self.script.failure());
            }
        }
        let bytes = payload.content_length() as u64;
        let now = self.script.writing.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.script.writing_most.fetch_max(now, Ordering::SeqCst);
        let result = self.inner.put_opts(location, payload, opts).await;
        self.script.writing.fetch_sub(bytes, Ordering::SeqCst);
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> ObjectResult<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload { inner, script: self.script.clone() }))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> ObjectResult<GetResult> {
        self.script.reads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.script.read_delay).await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, ObjectResult<ObjectPath>>,
    ) -> BoxStream<'static, ObjectResult<ObjectPath>> {
        if self.script.writes_left.is_some() {
            // A killed process cleans nothing up.
            return futures::stream::empty().boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, ObjectResult<ObjectMeta>> {
        let found = self.inner.list(prefix);
        let Some(after) = self.script.list_breaks_after else { return found };
        let source = || Box::new(std::io::Error::other("scripted"));
        let broken = futures::stream::once(async move {
            Err(object_store::Error::Generic { store: "faulty", source: source() })
        });
        found.take(after).chain(broken).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> ObjectResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> ObjectResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
