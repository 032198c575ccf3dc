//! Simulated link with a rate and a delay, in tokio's simulated time, and stores behind it. Everything
//! between the link and the verified bytes is production code.

use super::ModelFixture;
use crate::Store;
use crate::store::Progress;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Minimum bytes of a chunk on a link; a fast link carries two milliseconds' worth, which timers can resolve.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNK_SECONDS: f64 = 0.002;
/// Gap that is due to timers and not to the link.
const GAP: Duration = Duration::from_millis(3);

/// One link that several stores share; chunks take turns.
#[derive(Debug)]
pub(crate) struct SimulatedLink {
    /// Bytes per second.
    rate: f64,
    /// Time from a request to the first byte of its answer.
    delay: Duration,
    free_at: Mutex<Instant>,
    /// Bytes carried, including those of abandoned answers.
    carried: AtomicU64,
}

impl SimulatedLink {
    pub(crate) fn new(rate: u64, delay: Duration) -> Arc<Self> {
        let free_at = Mutex::new(Instant::now());
        Arc::new(Self { rate: rate as f64, delay, free_at, carried: AtomicU64::new(0) })
    }

    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }

    async fn carry(&self, bytes: usize) {
        let arrives = {
            let (mut free_at, now) = (self.free_at.lock().expect("no panic"), Instant::now());
            let begins = if now > *free_at + GAP { now } else { *free_at };
            *free_at = begins + Duration::from_secs_f64(bytes as f64 / self.rate);
            *free_at
        };
        tokio::time::sleep_until(arrives).await;
        self.carried.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn chunk(&self) -> usize {
        CHUNK_BYTES.max((self.rate * CHUNK_SECONDS) as usize)
    }
}

/// Bytes requested and not yet delivered, of all stores that share the gauge.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    now: AtomicU64,
    most: AtomicU64,
}

impl Gauge {
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }

    fn add(self: &Arc<Self>, bytes: u64) -> PendingBytes {
        let now = self.now.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(now, Ordering::SeqCst);
        PendingBytes { gauge: self.clone(), bytes }
    }
}

struct PendingBytes {
    gauge: Arc<Gauge>,
    bytes: u64,
}

impl Drop for PendingBytes {
    fn drop(&mut self) {
        self.gauge.now.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Failure of the next write to a store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PutFailure {
    /// Status 503.
    Overloaded,
    /// The connection breaks in the middle of the upload.
    Reset,
    /// Status 403.
    Forbidden,
    /// The store never answers.
    Hang,
}

/// Objects in memory behind a link.
#[derive(Debug)]
pub(crate) struct Linked {
    objects: Arc<InMemory>,
    link: Arc<SimulatedLink>,
    gauge: Arc<Gauge>,
    put_failures: Mutex<VecDeque<PutFailure>>,
    puts: Arc<AtomicU64>,
}

/// Stores in memory: without a link for a test, and behind links for the code under test.
pub(crate) struct Cloud {
    objects: Vec<Arc<InMemory>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) puts: Arc<AtomicU64>,
}

impl Cloud {
    pub(crate) fn new(stores: usize) -> Self {
        let objects = (0..stores).map(|_| Arc::default()).collect();
        Self { objects, gauge: Arc::default(), puts: Arc::default() }
    }

    /// Returns the stores without a link.
    pub(crate) fn at_hand(&self, world: &ModelFixture) -> Vec<Store> {
        let open = |(number, objects): (usize, &Arc<InMemory>)| {
            Store::from_objects(world.reference(number), objects.clone())
        };
        self.objects.iter().enumerate().map(open).collect()
    }

    /// Returns all stores behind one link.
    pub(crate) fn behind(&self, world: &ModelFixture, link: &Arc<SimulatedLink>) -> Vec<Store> {
        (0..self.objects.len()).map(|number| self.one_behind(world, number, link, &[])).collect()
    }

    /// Returns one store behind a link; its first writes fail as given.
    pub(crate) fn one_behind(
        &self,
        world: &ModelFixture,
        number: usize,
        link: &Arc<SimulatedLink>,
        put_failures: &[PutFailure],
    ) -> Store {
        let linked = Linked {
            objects: self.objects[number].clone(),
            link: link.clone(),
            gauge: self.gauge.clone(),
            put_failures: Mutex::new(put_failures.iter().copied().collect()),
            puts: self.puts.clone(),
        };
        Store::from_objects(world.reference(number), Arc::new(linked))
    }
}

impl std::fmt::Display for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Linked")
    }
}

fn generic(kind: std::io::ErrorKind) -> Error {
    Error::Generic { store: "linked", source: Box::new(std::io::Error::from(kind)) }
}

#[async_trait]
impl ObjectStore for Linked {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        let progress = options.extensions.get::<Progress>().cloned().unwrap_or_else(Progress::new);
        let failure = self.put_failures.lock().expect("no panic").pop_front();
        let half = payload.content_length() as u64 / 2;
        let mut sent = 0;
        for piece in progress.pieces(payload.clone().into_iter()) {
            self.link.carry(piece.len()).await;
            sent += piece.len() as u64;
            match failure {
                Some(PutFailure::Reset) if sent > half => {
                    return Err(generic(std::io::ErrorKind::ConnectionReset));
                }
                Some(PutFailure::Hang) => std::future::pending::<()>().await,
                _ => {}
            }
        }
        tokio::time::sleep(self.link.delay).await;
        match failure {
            Some(PutFailure::Forbidden) => {
                let path = location.to_string();
                return Err(Error::PermissionDenied { path, source: "403 Forbidden".into() });
            }
            Some(_) => return Err(generic(std::io::ErrorKind::Other)),
            None => {}
        }
        self.objects.put_opts(location, payload, PutOptions::default()).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        tokio::time::sleep(self.link.delay).await;
        let found = self.objects.get_opts(location, options).await?;
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let held = self.gauge.add(range.end - range.start);
        let (bytes, link) = (found.bytes().await?, self.link.clone());
        let chunks = stream::unfold((bytes, link, held), |(mut bytes, link, held)| async move {
            if bytes.is_empty() {
                return None;
            }
            let chunk = bytes.split_to(bytes.len().min(link.chunk()));
            link.carry(chunk.len()).await;
            Some((Ok(chunk), (bytes, link, held)))
        });
        let payload = GetResultPayload::Stream(chunks.boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

/// A store that ignores the requested range and sends as many bytes as are taken from it.
#[derive(Debug, Default)]
pub(crate) struct Oversender {
    /// Bytes taken in all.
    pub(crate) served: Arc<AtomicU64>,
    /// Maximum of the bytes taken of one answer.
    pub(crate) most: Arc<AtomicU64>,
    pub(crate) gauge: Arc<Gauge>,
}

/// Bytes of one chunk of a [`Oversender`].
pub(crate) const OVERSENT_CHUNK_BYTES: usize = 64 * 1024;

impl std::fmt::Display for Oversender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Oversender")
    }
}

#[async_trait]
impl ObjectStore for Oversender {
    async fn put_opts(&self, _: &ObjectPath, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(generic(std::io::ErrorKind::Unsupported))
    }

    async fn put_multipart_opts(
        &self,
        _: &ObjectPath,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(generic(std::io::ErrorKind::Unsupported))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let range: Range<u64> = match options.range {
            Some(object_store::GetRange::Bounded(range)) => range,
            _ => 0..1000,
        };
        let held = self.gauge.add(range.end - range.start);
        let (served, most) = (self.served.clone(), self.most.clone());
        let zeros = stream::unfold((0, held), move |(mut sent, held)| {
            let (served, most) = (served.clone(), most.clone());
            async move {
                // Other tasks may run before the next chunk.
                tokio::task::yield_now().await;
                sent += OVERSENT_CHUNK_BYTES as u64;
                served.fetch_add(OVERSENT_CHUNK_BYTES as u64, Ordering::SeqCst);
                most.fetch_max(sent, Ordering::SeqCst);
                Some((Ok(Bytes::from(vec![0; OVERSENT_CHUNK_BYTES])), (sent, held)))
            }
        });
        let modified = std::time::SystemTime::UNIX_EPOCH.into();
        let (location, size) = (location.clone(), range.end);
        Ok(GetResult {
            payload: GetResultPayload::Stream(zeros.boxed()),
            meta: ObjectMeta { location, last_modified: modified, size, e_tag: None, version: None },
            range,
            attributes: object_store::Attributes::new(),
            extensions: http::Extensions::new(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        locations
    }

    fn list(&self, _: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&ObjectPath>) -> Result<ListResult> {
        Err(generic(std::io::ErrorKind::Unsupported))
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> Result<()> {
        Err(generic(std::io::ErrorKind::Unsupported))
    }
}
