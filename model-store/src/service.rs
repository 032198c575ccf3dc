//! Shard service: local directories served to admitted peers, as an axum router for an overlay listener.
//!
//! The listener's `PeerPolicy` admits connections; this router rejects every request without a proven
//! key. It accepts only the two shapes of names that this crate makes, and stores encrypted shards and
//! manifests. An object is taken once, and acknowledged when it is durable; a torn upload leaves nothing. It
//! goes with its writer before its model may be registered, and afterwards by decision of the circle alone,
//! which [`ModelDecisions`] takes from the node's own history. A stalled disk holds its own few permits and
//! none of another disk's.

mod rights;
mod served_directory;
mod upload;

pub use rights::ModelDecisions;

use crate::age::SWEEP_AGE_MIN;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::geometry::{Name, is_leftover_name, is_object_name};
use crate::import_directory::ImportDirectory;
use crate::store::{Listed, is_full, panicked, walk};
use crate::wire::{ListPage, ListedObject, MEDIA_TYPE_PAGE, OBJECT_BYTES_MAX, is_store_name, limits};
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt};
use overlay::Peer;
use protocol::error_code as code;
use protocol::model::ModelNonce;
use protocol::{ErrorCode, PublicKey};
use serde::Deserialize;
use served_directory::ServedDirectory;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Semaphore;
use upload::IncomingObject;

/// Maximum number of objects on one page of a listing: about 100 KiB of names.
const PAGE_OBJECTS_MAX: usize = 1000;
/// Maximum number of concurrent writes, so that uploads in memory stay below 64 MiB.
const WRITES_MAX: usize = 32;
/// Budget for manifests in memory, in KiB: two of the largest.
const MANIFESTS_KIB_MAX: usize = 2 * OBJECT_BYTES_MAX / 1024;
/// Bytes read before they are sent.
const READ_BYTES: u64 = 1024 * 1024;

/// Directories served as stores.
#[derive(Debug, Clone)]
pub struct ShardService {
    inner: Arc<Inner>,
}

struct Inner {
    stores: BTreeMap<String, ServedDirectory>,
    decisions: Arc<dyn ModelDecisions>,
    writes: Semaphore,
    /// Budget for manifests in memory, in KiB.
    manifests: Semaphore,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("stores", &self.stores).finish_non_exhaustive()
    }
}

/// Error answer to a peer.
#[derive(Debug)]
struct ShardServiceError(StatusCode, ErrorCode, String);

impl IntoResponse for ShardServiceError {
    fn into_response(self) -> Response {
        let Self(status, code, text) = self;
        (status, format!("{code}: {text}")).into_response()
    }
}

impl From<object_store::Error> for ShardServiceError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => {
                Self(StatusCode::NOT_FOUND, code::SHARD_MISSING, "no such object".into())
            }
            error if is_full(&error) => {
                Self(StatusCode::INSUFFICIENT_STORAGE, code::STORE_FULL, "the store is full".into())
            }
            error => {
                tracing::warn!(%error, "shard service");
                Self(StatusCode::INTERNAL_SERVER_ERROR, code::STORE_UNREACHABLE, "the disk failed".into())
            }
        }
    }
}

fn refuse(text: &str) -> ShardServiceError {
    ShardServiceError(StatusCode::BAD_REQUEST, code::STORE_REFUSED, text.into())
}

impl ShardService {
    /// Returns a service of these directories by name, which obeys these decisions. Missing directories are
    /// created; their parents are not.
    ///
    /// # Errors
    /// [`StoreError::Address`] for an invalid name, [`StoreError::Unreachable`] for a directory that cannot
    /// be opened.
    pub fn new(
        directories: &BTreeMap<String, PathBuf>,
        decisions: Arc<dyn ModelDecisions>,
    ) -> Result<Self, StoreError> {
        let open = |(name, path): (&String, &PathBuf)| {
            let url = path.display().to_string();
            if !is_store_name(name) {
                let reason = format!("store name `{}` is not 1 to 32 of a-z, 0-9, -", name.escape_debug());
                return Err(StoreError::Address { url, reason });
            }
            let unreachable = |reason: String| StoreError::Unreachable { url: url.clone(), reason };
            if let Err(error) = std::fs::create_dir(path)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(unreachable(error.to_string()));
            }
            let objects =
                LocalFileSystem::new_with_prefix(path).map_err(|error| unreachable(error.to_string()))?;
            let objects = Arc::new(objects.with_fsync(true));
            Ok((name.clone(), ServedDirectory::new(path.clone(), objects)))
        };
        let stores = directories.iter().map(open).collect::<Result<_, _>>()?;
        let (writes, manifests) = (Semaphore::new(WRITES_MAX), Semaphore::new(MANIFESTS_KIB_MAX));
        Ok(Self { inner: Arc::new(Inner { stores, decisions, writes, manifests }) })
    }

    /// Returns the router, for [`overlay::serve`] with [`ShardService::limits`] and a policy of admitted
    /// peers.
    pub fn router(&self) -> Router {
        let object = get(read).put(write).delete(remove);
        Router::new()
            .route("/shards/v1/{store}", get(list))
            .route("/shards/v1/{store}/{*object}", object)
            .layer(middleware::from_fn(proven_peers_only))
            .with_state(self.inner.clone())
    }

    /// Returns the limits for the service's listener.
    #[must_use]
    pub fn limits() -> overlay::Limits {
        limits()
    }
}

impl Inner {
    fn store(&self, name: &str) -> Result<&ServedDirectory, ShardServiceError> {
        let missing =
            || ShardServiceError(StatusCode::NOT_FOUND, code::STORE_REFUSED, "no such store".into());
        self.stores.get(name).ok_or_else(missing)
    }

    /// Checks that a peer has a role that writes and removes objects.
    fn check_writer(&self, peer: &PublicKey) -> Result<(), ShardServiceError> {
        if self.decisions.is_writer(peer) {
            return Ok(());
        }
        let text = "workers and storage nodes write and remove objects; this node has neither role".into();
        Err(ShardServiceError(StatusCode::FORBIDDEN, code::STORE_REFUSED, text))
    }

    /// Checks that a peer may remove objects of an import.
    async fn check_removal(
        &self,
        store: &ServedDirectory,
        nonce: ModelNonce,
        peer: &PublicKey,
        now: SystemTime,
    ) -> Result<(), ShardServiceError> {
        let facts = store.facts(nonce, &*self.decisions).await?;
        let is_silent = facts.seal.is_none() && store.is_silent(nonce, now, SWEEP_AGE_MIN).await?;
        if rights::may_remove(&facts, peer, now, is_silent) {
            return Ok(());
        }
        let text = match facts.seal {
            Some(seal) => {
                format!("model {} is kept until the circle decides to forget it", seal.root.short())
            }
            None => "the import is another node's, and may still run".into(),
        };
        Err(ShardServiceError(StatusCode::LOCKED, code::STORE_OBJECT_HELD, text))
    }
}

/// Rejects a request without a proven key. Such a request did not come through an overlay listener: the
/// router was mounted wrongly.
async fn proven_peers_only(request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>().is_none() {
        return ShardServiceError(StatusCode::FORBIDDEN, code::STORE_REFUSED, "peers prove their key".into())
            .into_response();
    }
    next.run(request).await
}

fn object_path(name: &str) -> Result<ObjectPath, ShardServiceError> {
    if !is_object_name(name) {
        return Err(refuse("the name is not one of an object"));
    }
    ObjectPath::parse(name).map_err(|_| refuse("the name is not one of an object"))
}

async fn read(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ShardServiceError> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    let range = headers.get(header::RANGE).map(parse_range).transpose()?;
    let partial = range.is_some();
    let head = method == Method::HEAD;
    let options = GetOptions { range, head, ..GetOptions::default() };
    let unsatisfiable = |error| match error {
        object_store::Error::NotFound { .. } => ShardServiceError::from(error),
        _ if partial => {
            ShardServiceError(StatusCode::RANGE_NOT_SATISFIABLE, code::SHARD_MISSING, "no such range".into())
        }
        _ => ShardServiceError::from(error),
    };
    let objects = store.objects.clone();
    let found = store.run(async move { Ok(objects.get_opts(&path, options).await) }).await?;
    let found = found.map_err(unsatisfiable)?;
    let (range, size) = (found.range.clone(), found.meta.size);
    let body = if head { Body::empty() } else { Body::from_stream(contents(found, store.disk.clone())) };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    if partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
        let value = HeaderValue::from_str(&text).expect("digits are a header value");
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

/// Streams the bytes of an object, part by part. Only the reads hold a permit of the disk, so a slow peer
/// blocks no other.
fn contents(found: GetResult, disk: Disk) -> BoxStream<'static, object_store::Result<Bytes>> {
    let (file, range) = match found.payload {
        GetResultPayload::File(file, _) => (file, found.range),
        GetResultPayload::Stream(bytes) => return bytes,
    };
    let parts = stream::try_unfold((file, range), move |(file, range)| {
        let disk = disk.clone();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let (start, end) = (range.start, range.end.min(range.start + READ_BYTES));
            let reading = disk.run_blocking(move || {
                let mut bytes = vec![0; (end - start) as usize];
                file.read_exact_at(&mut bytes, start).map(|()| (Bytes::from(bytes), file))
            });
            match reading.await {
                Some(Ok((bytes, file))) => Ok(Some((bytes, (file, end..range.end)))),
                Some(Err(error)) => {
                    Err(object_store::Error::Generic { store: "directory", source: Box::new(error) })
                }
                None => Err(panicked()),
            }
        }
    });
    parts.boxed()
}

/// Parses one range of bytes in HTTP's syntax (RFC 9110, section 14.1).
fn parse_range(value: &HeaderValue) -> Result<GetRange, ShardServiceError> {
    let parse = || {
        let (first, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        Some(match (first, last) {
            ("", length) => GetRange::Suffix(length.parse().ok()?),
            (start, "") => GetRange::Offset(start.parse().ok()?),
            (start, last) => {
                let (start, end) = (start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
                if start >= end {
                    return None;
                }
                GetRange::Bounded(start..end)
            }
        })
    };
    parse().ok_or_else(|| refuse("the range is not one range of bytes"))
}

/// For fuzzing: checks that an accepted range with both ends is not empty.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_range(value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value)
        && let Ok(GetRange::Bounded(range)) = parse_range(&value)
    {
        assert!(range.start < range.end, "{range:?}");
    }
}

async fn write(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
) -> Result<StatusCode, ShardServiceError> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    inner.check_writer(&peer)?;
    let incoming = IncomingObject::of(request)?;
    match Name::of(&object) {
        Some(Name::Shard(nonce)) => inner.write_shard(store, nonce, path, peer, incoming).await?,
        Some(Name::Manifest(root)) => inner.write_manifest(store, root, path, peer, incoming).await?,
        Some(Name::Leftover) | None => return Err(refuse("the name is not one of an object")),
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<StatusCode, ShardServiceError> {
    let store = inner.store(&store)?;
    let Some(name) = Name::of(&object) else { return Err(refuse("the name is not one of an object")) };
    inner.check_writer(&peer)?;
    let now = inner.decisions.now();
    match name {
        Name::Shard(nonce) => {
            inner.check_removal(store, nonce, &peer, now).await?;
            let (objects, path) = (store.objects.clone(), object_path(&object)?);
            store.run(async move { objects.delete(&path).await }).await?;
            let directory = store.import(nonce);
            store
                .block(move || {
                    directory.remove_if_empty();
                    Ok(())
                })
                .await?;
        }
        Name::Manifest(root) => {
            let mut directory = None;
            if !inner.decisions.is_forgotten(root) {
                let nonce = store.manifest(root).await?.manifest.nonce;
                inner.check_removal(store, nonce, &peer, now).await?;
                directory = Some(store.import(nonce));
            }
            let file = store.root.join(&object);
            let removing = store.block(move || {
                std::fs::remove_file(file)?;
                // The check may have made the directory again, after its last shard had gone.
                directory.iter().for_each(ImportDirectory::remove_if_empty);
                Ok(())
            });
            removing.await?;
        }
        Name::Leftover => {
            let file = store.root.join(&object);
            let removed = store.disk.run_blocking(move || remove_old(&file, now)).await;
            removed.unwrap_or_else(|| Err(panicked().into()))?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a file unless it is young: a young one may belong to an import that is not registered yet.
fn remove_old(file: &Path, now: SystemTime) -> Result<(), ShardServiceError> {
    let failed = |source: std::io::Error| {
        let (path, source) = (file.display().to_string(), Box::new(source));
        ShardServiceError::from(match source.kind() {
            std::io::ErrorKind::NotFound => object_store::Error::NotFound { path, source },
            _ => object_store::Error::Generic { store: "directory", source },
        })
    };
    let modified =
        std::fs::symlink_metadata(file).and_then(|metadata| metadata.modified()).map_err(failed)?;
    if now.duration_since(modified).is_ok_and(|age| age > SWEEP_AGE_MIN) {
        return std::fs::remove_file(file).map_err(failed);
    }
    Err(refuse("leftovers younger than an hour stay"))
}

/// Query of a listing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    /// Includes the leftovers of incomplete writes.
    #[serde(default)]
    leftovers: bool,
}

async fn list(
    State(inner): State<Arc<Inner>>,
    UrlPath(store): UrlPath<String>,
    Query(ListQuery { prefix, after, leftovers }): Query<ListQuery>,
) -> Result<Response, ShardServiceError> {
    let store = inner.store(&store)?;
    let plain =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'#'));
    if !plain(&prefix) || !plain(&after) {
        return Err(refuse("prefix and start of a listing are names"));
    }
    // The directory is read in no particular order, so only the names of the first page are kept.
    let mut page = BTreeMap::new();
    let mut more = false;
    let mut found = walk(&store.root, prefix.trim_end_matches('/'), &store.disk);
    while let Some(Listed { name, bytes, modified }) = found.try_next().await? {
        let wanted = is_object_name(&name) || leftovers && is_leftover_name(&name);
        if name <= after || !wanted {
            continue;
        }
        let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        page.insert(name, (bytes, u64::try_from(modified.as_millis()).unwrap_or(u64::MAX)));
        if page.len() > PAGE_OBJECTS_MAX {
            page.pop_last();
            more = true;
        }
    }
    let listed = |(name, (bytes, modified_ms))| ListedObject { name, bytes, modified_ms };
    let page = ListPage { objects: page.into_iter().map(listed).collect(), more };
    let bytes = protocol::canonical::to_bytes(&page);
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE_PAGE)], bytes).into_response())
}

#[cfg(test)]
mod tests;
