//! Shard service: local directories served to admitted peers, as an axum router for an overlay listener.
//!
//! The listener's `PeerPolicy` admits connections; this router rejects every request without a proven
//! key. It accepts only the two shapes of names that this crate makes, and stores encrypted shards and
//! manifests. It deletes shards on request, but manifests and leftovers of torn writes only when they are old
//! by its own clock. An object is acknowledged when it is durable; a torn upload leaves nothing. A stalled
//! disk holds its own few permits and none of another disk's.

use crate::age::SWEEP_AGE_MIN;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::geometry::{MODELS, Name, is_leftover_name, is_object_name};
use crate::store::{Listed, clear, is_full, panicked, walk};
use crate::wire::{
    ListPage, ListedObject, MEDIA_TYPE_PAGE, OBJECT_BYTES_MAX, UPLOAD_RATE_MIN, UPLOAD_SILENCE_MAX,
    is_store_name, limits,
};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt,
};
use overlay::Peer;
use protocol::ErrorCode;
use protocol::error_code as code;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Maximum number of objects on one page of a listing: about 100 KiB of names.
const PAGE_OBJECTS_MAX: usize = 1000;
/// Maximum number of concurrent writes, so that uploads in memory stay below 64 MiB.
const WRITES_MAX: usize = 32;
/// Bytes gathered before they are written, and read before they are sent.
const WRITE_BYTES: usize = 1024 * 1024;
const READ_BYTES: u64 = 1024 * 1024;

/// Directories served as stores.
#[derive(Debug, Clone)]
pub struct ShardService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stores: BTreeMap<String, ServedDirectory>,
    writes: Semaphore,
}

/// One directory that is served as a store.
#[derive(Debug)]
struct ServedDirectory {
    root: PathBuf,
    objects: Arc<dyn ObjectStore>,
    disk: Disk,
}

impl ServedDirectory {
    /// Runs an operation on the directory with a permit of its disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ShardServiceError> {
        Ok(self.disk.run(work).await.unwrap_or_else(|| Err(panicked()))?)
    }
}

/// Error answer to a peer.
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
    /// Returns a service of these directories by name. Missing ones are created; their parents are not.
    ///
    /// # Errors
    /// [`StoreError::Address`] for an invalid name, [`StoreError::Unreachable`] for a directory that cannot
    /// be opened.
    pub fn new(directories: &BTreeMap<String, PathBuf>) -> Result<Self, StoreError> {
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
            Ok((name.clone(), ServedDirectory { root: path.clone(), objects, disk: Disk::default() }))
        };
        let stores = directories.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { inner: Arc::new(Inner { stores, writes: Semaphore::new(WRITES_MAX) }) })
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
    request: Request,
) -> Result<StatusCode, ShardServiceError> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length.ok_or_else(|| refuse("an upload declares its length"))?;
    if length > OBJECT_BYTES_MAX as u64 {
        let text = format!("objects have at most {OBJECT_BYTES_MAX} bytes");
        return Err(ShardServiceError(StatusCode::PAYLOAD_TOO_LARGE, code::STORE_REFUSED, text));
    }
    let _permit = inner.writes.acquire().await.expect("the semaphore is never closed");
    let (objects, runtime) = (store.objects.clone(), Handle::current());
    // `put_multipart` creates a file before it first waits, so it runs on a thread that may block.
    let root = store.root.clone();
    let begin = move || {
        if let Err(error) = clear(&root, path.as_ref()) {
            tracing::warn!(%path, %error, "cannot clear the path of an object");
        }
        runtime.block_on(async move { objects.put_multipart(&path).await })
    };
    let upload = store.disk.run_blocking(begin).await.unwrap_or_else(|| Err(panicked()))?;
    match fill(upload, store, request.into_body(), length).await {
        Ok(mut upload) => {
            store.run(async move { finish(&mut *upload).await }).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Err((mut upload, refusal)) => {
            let aborted = store.run(async move { upload.abort().await }).await;
            if let Err(ShardServiceError(_, _, text)) = aborted {
                tracing::debug!(text, "abort an upload");
            }
            Err(refusal)
        }
    }
}

/// Completes an upload as an object, or leaves nothing of it.
async fn finish(upload: &mut dyn MultipartUpload) -> object_store::Result<()> {
    let completed = upload.complete().await.map(drop);
    if completed.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::debug!(%error, "abort an upload");
    }
    completed
}

type Upload = Box<dyn MultipartUpload>;

/// Writes the body part by part; it must have exactly `length` bytes.
async fn fill(
    mut upload: Upload,
    store: &ServedDirectory,
    body: Body,
    length: u64,
) -> Result<Upload, (Upload, ShardServiceError)> {
    let mut body = body.into_data_stream();
    let mut gathered = BytesMut::new();
    let mut received = 0;
    let began = Instant::now();
    loop {
        let earned = Duration::from_secs(received / UPLOAD_RATE_MIN);
        let deadline = (began + UPLOAD_SILENCE_MAX + earned).min(Instant::now() + UPLOAD_SILENCE_MAX);
        let chunk = match tokio::time::timeout_at(deadline, body.next()).await.map(Option::transpose) {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(_)) => return Err((upload, refuse("the upload was interrupted"))),
            Err(_) => {
                let text = "the upload is silent or too slow".into();
                return Err((
                    upload,
                    ShardServiceError(StatusCode::REQUEST_TIMEOUT, code::STORE_REFUSED, text),
                ));
            }
        };
        let last = chunk.is_none();
        let chunk: Bytes = chunk.unwrap_or_default();
        received += chunk.len() as u64;
        if received > length {
            return Err((upload, refuse("the upload is longer than its declared length")));
        }
        if last && received != length {
            return Err((upload, refuse("the upload is shorter than its declared length")));
        }
        gathered.extend_from_slice(&chunk);
        if gathered.len() >= WRITE_BYTES || (last && !gathered.is_empty()) {
            let part = upload.put_part(gathered.split().freeze().into());
            if let Err(refusal) = store.run(part).await {
                return Err((upload, refusal));
            }
        }
        if last {
            return Ok(upload);
        }
    }
}

async fn remove(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
) -> Result<StatusCode, ShardServiceError> {
    let store = inner.store(&store)?;
    match Name::of(&object) {
        Some(Name::Shard(_)) => {
            let (objects, path) = (store.objects.clone(), object_path(&object)?);
            store.run(async move { objects.delete(&path).await }).await?;
        }
        Some(Name::Manifest(_) | Name::Leftover) => {
            let (file, now) = (store.root.join(&object), SystemTime::now());
            let removed = store.disk.run_blocking(move || remove_old(&file, now)).await;
            removed.unwrap_or_else(|| Err(panicked().into()))?;
        }
        None => return Err(refuse("the name is not one of an object")),
    }
    if object.starts_with(MODELS) {
        // The last shard takes the import's directory with it. No other import ever has the same directory.
        let directory = store.root.join(&object).parent().map(Path::to_path_buf);
        let gone = move || directory.is_some_and(|directory| std::fs::remove_dir(directory).is_ok());
        store.disk.run_blocking(gone).await;
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
    Err(refuse("manifests and leftovers younger than an hour stay"))
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
