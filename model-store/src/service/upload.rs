//! Uploads to a store: an object is taken once, and a damaged one is replaced by the bytes that its manifest
//! names. A torn upload leaves nothing.

use super::rights::{self, WriteRule};
use super::served_directory::{ServedDirectory, check_manifest, is_job_data};
use super::{Inner, ShardServiceError, refuse};
use crate::geometry::shard_place;
use crate::store::{clear, panicked};
use crate::wire::{OBJECT_BYTES_MAX, UPLOAD_RATE_MIN, UPLOAD_SILENCE_MAX};
use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt};
use protocol::error_code as code;
use protocol::model::ModelNonce;
use protocol::{Digest, ModelRoot, PublicKey};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1024 * 1024;

type Upload = Box<dyn MultipartUpload>;

/// Body of an upload: exactly the declared bytes, in parts, at a rate that frees its permit some day.
pub(super) struct IncomingObject {
    body: BodyDataStream,
    length: u64,
    received: u64,
    gathered: BytesMut,
    began: Instant,
    is_over: bool,
}

impl IncomingObject {
    /// Begins to receive the body of a request.
    pub(super) fn of(request: Request) -> Result<Self, ShardServiceError> {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let length = length.ok_or_else(|| refuse("an upload declares its length"))?;
        if length > OBJECT_BYTES_MAX as u64 {
            let text = format!("objects have at most {OBJECT_BYTES_MAX} bytes");
            return Err(ShardServiceError(StatusCode::PAYLOAD_TOO_LARGE, code::STORE_REFUSED, text));
        }
        let (body, gathered) = (request.into_body().into_data_stream(), BytesMut::new());
        Ok(Self { body, length, received: 0, gathered, began: Instant::now(), is_over: false })
    }

    /// Returns the next part; none after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, ShardServiceError> {
        while !self.is_over && self.gathered.len() < WRITE_BYTES {
            let earned = Duration::from_secs(self.received / UPLOAD_RATE_MIN);
            let now = Instant::now();
            let deadline = (self.began + UPLOAD_SILENCE_MAX + earned).min(now + UPLOAD_SILENCE_MAX);
            let chunk = match tokio::time::timeout_at(deadline, self.body.next()).await.map(Option::transpose)
            {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(_)) => return Err(refuse("the upload was interrupted")),
                Err(_) => {
                    let text = "the upload is silent or too slow".into();
                    return Err(ShardServiceError(StatusCode::REQUEST_TIMEOUT, code::STORE_REFUSED, text));
                }
            };
            self.is_over = chunk.is_none();
            let chunk: Bytes = chunk.unwrap_or_default();
            self.received += chunk.len() as u64;
            if self.received > self.length {
                return Err(refuse("the upload is longer than its declared length"));
            }
            if self.is_over && self.received != self.length {
                return Err(refuse("the upload is shorter than its declared length"));
            }
            self.gathered.extend_from_slice(&chunk);
        }
        Ok(Some(self.gathered.split().freeze()).filter(|part| !part.is_empty()))
    }

    /// Returns the whole body.
    async fn collect(mut self) -> Result<Bytes, ShardServiceError> {
        let mut all = BytesMut::new();
        while let Some(part) = self.next().await? {
            all.extend_from_slice(&part);
        }
        Ok(all.freeze())
    }
}

/// Check of an upload against the shards that a manifest names for an object.
#[derive(Debug)]
struct ShardCheck {
    /// Length and digest of each shard that is still to come.
    expected: std::vec::IntoIter<(usize, Digest)>,
    /// Shard that arrives, with its bytes that are still to come.
    current: Option<(usize, Digest)>,
    hasher: blake3::Hasher,
    is_wrong: bool,
}

impl ShardCheck {
    fn new(expected: Vec<(usize, Digest)>) -> Self {
        let mut expected = expected.into_iter();
        Self { current: expected.next(), expected, hasher: blake3::Hasher::new(), is_wrong: false }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_wrong {
            let Some((missing, digest)) = &mut self.current else {
                self.is_wrong = true;
                return;
            };
            let (part, rest) = bytes.split_at(bytes.len().min(*missing));
            self.hasher.update(part);
            (bytes, *missing) = (rest, *missing - part.len());
            if *missing == 0 {
                self.is_wrong = Digest(*self.hasher.finalize().as_bytes()) != *digest;
                self.hasher.reset();
                self.current = self.expected.next();
            }
        }
    }

    /// Returns whether exactly the named shards have arrived.
    fn is_right(&self) -> bool {
        !self.is_wrong && self.current.is_none()
    }
}

fn exists() -> ShardServiceError {
    let text = "the object is there with other bytes, and is taken once".into();
    ShardServiceError(StatusCode::CONFLICT, code::STORE_OBJECT_EXISTS, text)
}

fn held() -> ShardServiceError {
    let text = "the import is another node's".into();
    ShardServiceError(StatusCode::LOCKED, code::STORE_OBJECT_HELD, text)
}

impl Inner {
    /// Takes a shard object from a peer.
    pub(super) async fn write_shard(
        &self,
        store: &ServedDirectory,
        nonce: ModelNonce,
        path: ObjectPath,
        peer: PublicKey,
        incoming: IncomingObject,
    ) -> Result<(), ShardServiceError> {
        let _permit = self.writes.acquire().await.expect("the semaphore is never closed");
        store.is_written(nonce);
        let mut rule = rights::write_rule(&store.facts(nonce, &*self.decisions).await?, &peer);
        if rule == Some(WriteRule::First) {
            let directory = store.import(nonce);
            let writer = store.block(move || directory.claim(peer)).await?;
            rule = (writer == peer).then_some(WriteRule::Once);
        }
        match rule {
            None => Err(held()),
            Some(WriteRule::Named(root)) => write_named(store, root, &path, incoming).await,
            Some(WriteRule::First | WriteRule::Once) => write_once(store, &path, incoming).await,
        }
    }

    /// Takes a copy of a manifest from a peer, and seals its import.
    pub(super) async fn write_manifest(
        &self,
        store: &ServedDirectory,
        root: ModelRoot,
        path: ObjectPath,
        peer: PublicKey,
        incoming: IncomingObject,
    ) -> Result<(), ShardServiceError> {
        let units = u32::try_from(incoming.length.div_ceil(1024)).unwrap_or(u32::MAX);
        let _budget = self.manifests.acquire_many(units).await.expect("the semaphore is never closed");
        let _permit = self.writes.acquire().await.expect("the semaphore is never closed");
        let bytes = incoming.collect().await?;
        let copy = bytes.clone();
        let checking = tokio::task::spawn_blocking(move || {
            check_manifest(root, &copy).map(|manifest| (manifest.nonce, is_job_data(&manifest)))
        });
        let checked = checking.await.unwrap_or_else(|_| Err("the check of the manifest failed".into()));
        let invalid =
            |reason| ShardServiceError(StatusCode::BAD_REQUEST, code::MODEL_MANIFEST_INVALID, reason);
        let (nonce, is_job_data) = checked.map_err(invalid)?;
        if self.decisions.is_forgotten(root) {
            let text = "the circle decided to forget the model".into();
            return Err(ShardServiceError(StatusCode::FORBIDDEN, code::MODEL_FORGOTTEN, text));
        }
        let facts = store.facts(nonce, &*self.decisions).await?;
        if !rights::may_seal(&facts, root, self.decisions.is_named(root), &peer) {
            return Err(if facts.seal.is_some() { exists() } else { held() });
        }
        clear_path(store, &path).await?;
        let objects = store.objects.clone();
        store.run(async move { objects.put(&path, bytes.into()).await }).await?;
        let directory = store.import(nonce);
        store.block(move || directory.seal_with(root, is_job_data)).await?;
        store.is_written(nonce);
        Ok(())
    }
}

/// Takes an object that is not there. One that is there is taken again with the same bytes only.
async fn write_once(
    store: &ServedDirectory,
    path: &ObjectPath,
    mut incoming: IncomingObject,
) -> Result<(), ShardServiceError> {
    if is_there(store, path).await? {
        let stored = store.root.join(path.as_ref());
        return if is_same(store, stored, incoming).await? { Ok(()) } else { Err(exists()) };
    }
    let upload = stage(store, path, &mut incoming, &mut None).await?;
    let _lock = store.finishing(path.as_ref()).lock().await;
    if is_there(store, path).await? {
        abort(store, upload).await;
        let text = "another upload of the object has just ended; repeat this one".into();
        return Err(ShardServiceError(StatusCode::SERVICE_UNAVAILABLE, code::STORE_UNREACHABLE, text));
    }
    store.run(finish(upload)).await
}

/// Takes an object of a sealed import: exactly the shards that the manifest names.
async fn write_named(
    store: &ServedDirectory,
    root: ModelRoot,
    path: &ObjectPath,
    mut incoming: IncomingObject,
) -> Result<(), ShardServiceError> {
    let stored = store.manifest(root).await?;
    let expected = shard_place(path.as_ref())
        .and_then(|(group, shard)| stored.geometry.shards(&stored.manifest, group, shard));
    let expected = expected.ok_or_else(|| refuse("the model has no such object"))?;
    let mut check = Some(ShardCheck::new(expected));
    let upload = stage(store, path, &mut incoming, &mut check).await?;
    if check.is_some_and(|check| check.is_right()) {
        return store.run(finish(upload)).await;
    }
    abort(store, upload).await;
    if is_there(store, path).await? {
        return Err(exists());
    }
    let text = "the bytes are not those that the model's manifest names".into();
    Err(ShardServiceError(StatusCode::CONFLICT, code::STORE_OBJECT_EXISTS, text))
}

/// Returns whether a file is at the path of an object.
async fn is_there(store: &ServedDirectory, path: &ObjectPath) -> Result<bool, ShardServiceError> {
    let file = store.root.join(path.as_ref());
    let looking = store.block(move || match std::fs::symlink_metadata(file) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    });
    looking.await
}

/// Returns whether an upload has the bytes of a stored object.
async fn is_same(
    store: &ServedDirectory,
    stored: PathBuf,
    mut incoming: IncomingObject,
) -> Result<bool, ShardServiceError> {
    let length = incoming.length;
    let reading = store.block(move || {
        let file = File::open(stored)?;
        if file.metadata()?.len() != length {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        Ok(Some(hasher.finalize()))
    });
    let Some(expected) = reading.await? else { return Ok(false) };
    let mut hasher = blake3::Hasher::new();
    while let Some(part) = incoming.next().await? {
        hasher = hashed(move || {
            hasher.update(&part);
            hasher
        })
        .await?;
    }
    Ok(hasher.finalize() == expected)
}

/// Runs work on bytes on a thread that may block.
async fn hashed<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ShardServiceError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| panicked().into())
}

async fn clear_path(store: &ServedDirectory, path: &ObjectPath) -> Result<(), ShardServiceError> {
    let (root, object) = (store.root.clone(), path.to_string());
    let clearing = move || {
        log_obstacle(&object, clear(&root, &object));
        Ok(())
    };
    store.block(clearing).await
}

fn log_obstacle(object: &str, cleared: io::Result<()>) {
    if let Err(error) = cleared {
        tracing::warn!(object, %error, "cannot clear the path of an object");
    }
}

/// Writes an upload beside its object, part by part, and checks it on the way.
async fn stage(
    store: &ServedDirectory,
    path: &ObjectPath,
    incoming: &mut IncomingObject,
    check: &mut Option<ShardCheck>,
) -> Result<Upload, ShardServiceError> {
    let (objects, runtime) = (store.objects.clone(), Handle::current());
    let (root, at) = (store.root.clone(), path.clone());
    // `put_multipart` creates a file before it first waits, so it runs on a thread that may block.
    let begin = move || {
        log_obstacle(at.as_ref(), clear(&root, at.as_ref()));
        runtime.block_on(async move { objects.put_multipart(&at).await })
    };
    let mut upload = store.disk.run_blocking(begin).await.unwrap_or_else(|| Err(panicked()))?;
    match fill(&mut upload, store, incoming, check).await {
        Ok(()) => Ok(upload),
        Err(refusal) => {
            abort(store, upload).await;
            Err(refusal)
        }
    }
}

async fn fill(
    upload: &mut Upload,
    store: &ServedDirectory,
    incoming: &mut IncomingObject,
    check: &mut Option<ShardCheck>,
) -> Result<(), ShardServiceError> {
    while let Some(part) = incoming.next().await? {
        if let Some(mut checked) = check.take() {
            let bytes = part.clone();
            let checking = hashed(move || {
                checked.update(&bytes);
                checked
            });
            *check = Some(checking.await?);
        }
        store.run(upload.put_part(part.into())).await?;
    }
    Ok(())
}

/// Completes an upload as an object, or leaves nothing of it.
async fn finish(mut upload: Upload) -> object_store::Result<()> {
    let completed = upload.complete().await.map(drop);
    if completed.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::debug!(%error, "abort an upload");
    }
    completed
}

async fn abort(store: &ServedDirectory, mut upload: Upload) {
    let aborted = store.run(async move { upload.abort().await }).await;
    if let Err(ShardServiceError(_, _, text)) = aborted {
        tracing::debug!(text, "abort an upload");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The check accepts the named shards in any parts, and nothing else.
        #[test]
        fn a_check_accepts_the_named_shards_alone(
            lengths in prop::collection::vec(1_usize..40, 1..5),
            part in 1_usize..50,
            flipped in any::<prop::sample::Index>(),
        ) {
            let mut bytes = crate::testing::seeded("shards", lengths.iter().sum());
            let mut at = 0;
            let mut named = Vec::new();
            for length in lengths {
                named.push((length, Digest::of(&bytes[at..at + length])));
                at += length;
            }
            let is_right = |bytes: &[u8]| {
                let mut check = ShardCheck::new(named.clone());
                bytes.chunks(part).for_each(|part| check.update(part));
                check.is_right()
            };
            prop_assert!(is_right(&bytes));
            prop_assert!(!is_right(&bytes[1..]) && !is_right(&bytes[..bytes.len() - 1]));
            prop_assert!(!is_right(&[&bytes[..], &[0]].concat()) && !is_right(&[]));
            let at = flipped.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert!(!is_right(&bytes));
        }
    }
}
