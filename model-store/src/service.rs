//! Local directories offered to admitted peers: the shard service, an axum router for an overlay listener.
//!
//! Who may connect is the listener's `PeerPolicy`; this router answers nobody whose key was not proven. It
//! knows only the two shapes of names that this crate makes, stores encrypted shards and manifests, and
//! deletes shards only. An object is acknowledged when it is durable; a torn upload leaves nothing.

use crate::error::StoreError;
use crate::geometry::{MODELS, is_object_name};
use crate::store::is_full;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt};
use overlay::Peer;
use protocol::ErrorCode;
use protocol::error_code as code;
use protocol::limits::{MODEL_MANIFEST_BYTES_MAX, SEGMENT_BYTES_MAX};
use protocol::model::SEGMENTS_PER_OBJECT_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Largest object: a manifest, or the shards of a full group of a model with one data shard.
pub(crate) const OBJECT_BYTES_MAX: usize = MODEL_MANIFEST_BYTES_MAX;
const _: () = assert!(SEGMENTS_PER_OBJECT_MAX as usize * (SEGMENT_BYTES_MAX + 16) <= OBJECT_BYTES_MAX);
/// Objects on one page of a listing: about 100 KiB of names.
const PAGE_OBJECTS_MAX: usize = 1000;
/// Largest page: names have at most 80 bytes.
pub(crate) const PAGE_BYTES_MAX: usize = 256 * 1024;
/// What a page of a listing is.
pub(crate) const MEDIA_TYPE_PAGE: &str = "application/cbor";
/// Writes in progress at once, so that uploads in memory stay below 64 MiB.
const WRITES_MAX: usize = 32;
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1024 * 1024;
/// Longest name of a store.
const STORE_NAME_BYTES_MAX: usize = 32;

/// Limits for the listener of a [`ShardService`] and for its clients: objects are larger than
/// what overlay connections carry by default.
pub(crate) fn limits() -> overlay::Limits {
    overlay::Limits {
        request: Duration::from_secs(30),
        request_bytes_max: OBJECT_BYTES_MAX,
        response_bytes_max: OBJECT_BYTES_MAX,
        ..overlay::Limits::default()
    }
}

/// Whether a store may have this name: 1 to 32 of `a-z`, `0-9`, `-`, so that it is a file name and a URL part.
pub(crate) fn is_store_name(name: &str) -> bool {
    (1..=STORE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListedObject {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) modified_ms: u64,
}

/// A part of a listing, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListPage {
    pub(crate) objects: Vec<ListedObject>,
    /// Ask again, after the last name.
    pub(crate) more: bool,
}

/// Directories offered as stores.
#[derive(Debug, Clone)]
pub struct ShardService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stores: BTreeMap<String, LocalFileSystem>,
    writes: Semaphore,
}

/// What goes back to a peer instead of an object.
struct Refusal(StatusCode, ErrorCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, code, text) = self;
        (status, format!("{code}: {text}")).into_response()
    }
}

impl From<object_store::Error> for Refusal {
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

fn refuse(text: &str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, code::STORE_REFUSED, text.into())
}

impl ShardService {
    /// A service of these directories by name; those that do not exist are made, their parents are not.
    ///
    /// # Errors
    /// [`StoreError::Address`] for a name that cannot be used, [`StoreError::Unreachable`] for a directory.
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
            let store =
                LocalFileSystem::new_with_prefix(path).map_err(|error| unreachable(error.to_string()))?;
            Ok((name.clone(), store.with_fsync(true)))
        };
        let stores = directories.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { inner: Arc::new(Inner { stores, writes: Semaphore::new(WRITES_MAX) }) })
    }

    /// The router, for [`overlay::serve`] with [`ShardService::limits`] and a policy of admitted peers.
    pub fn router(&self) -> Router {
        let object = get(read).put(write).delete(remove);
        Router::new()
            .route("/shards/v1/{store}", get(list))
            .route("/shards/v1/{store}/{*object}", object)
            .layer(middleware::from_fn(proven_peers_only))
            .with_state(self.inner.clone())
    }

    /// Limits for its listener.
    #[must_use]
    pub fn limits() -> overlay::Limits {
        limits()
    }
}

impl Inner {
    fn store(&self, name: &str) -> Result<&LocalFileSystem, Refusal> {
        let missing = || Refusal(StatusCode::NOT_FOUND, code::STORE_REFUSED, "no such store".into());
        self.stores.get(name).ok_or_else(missing)
    }
}

/// A request without a proven key did not come through an overlay listener: the router was mounted wrongly.
async fn proven_peers_only(request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>().is_none() {
        return Refusal(StatusCode::FORBIDDEN, code::STORE_REFUSED, "peers prove their key".into())
            .into_response();
    }
    next.run(request).await
}

fn object_path(name: &str) -> Result<ObjectPath, Refusal> {
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
) -> Result<Response, Refusal> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    let range = headers.get(header::RANGE).map(parse_range).transpose()?;
    let partial = range.is_some();
    let head = method == Method::HEAD;
    let options = GetOptions { range, head, ..GetOptions::default() };
    let unsatisfiable = |error| match error {
        object_store::Error::NotFound { .. } => Refusal::from(error),
        _ if partial => {
            Refusal(StatusCode::RANGE_NOT_SATISFIABLE, code::SHARD_MISSING, "no such range".into())
        }
        _ => Refusal::from(error),
    };
    let found = store.get_opts(&path, options).await.map_err(unsatisfiable)?;
    let (range, size) = (found.range.clone(), found.meta.size);
    let body = if head { Body::empty() } else { Body::from_stream(found.into_stream()) };
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

/// One range of bytes, as HTTP writes it (RFC 9110, section 14.1).
fn parse_range(value: &HeaderValue) -> Result<GetRange, Refusal> {
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

async fn write(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length.ok_or_else(|| refuse("an upload says its length"))?;
    if length > OBJECT_BYTES_MAX as u64 {
        let text = format!("objects have at most {OBJECT_BYTES_MAX} bytes");
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, code::STORE_REFUSED, text));
    }
    let _place = inner.writes.acquire().await.expect("the semaphore is never closed");
    let mut upload = store.put_multipart(&path).await?;
    let written = match fill(&mut *upload, request.into_body(), length).await {
        Ok(()) => upload.complete().await.map(drop).map_err(Refusal::from),
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = written {
        if let Err(error) = upload.abort().await {
            tracing::debug!(%error, "abort an upload");
        }
        return Err(refusal);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Writes the body part by part; it must have exactly `length` bytes.
async fn fill(upload: &mut dyn MultipartUpload, body: Body, length: u64) -> Result<(), Refusal> {
    let mut body = body.into_data_stream();
    let mut gathered = BytesMut::new();
    let mut received = 0;
    while let Some(chunk) = body.next().await {
        let chunk: Bytes = chunk.map_err(|_| refuse("the upload broke off"))?;
        received += chunk.len() as u64;
        if received > length {
            return Err(refuse("the upload is longer than it says"));
        }
        gathered.extend_from_slice(&chunk);
        if gathered.len() >= WRITE_BYTES {
            upload.put_part(gathered.split().freeze().into()).await?;
        }
    }
    if received != length {
        return Err(refuse("the upload is shorter than it says"));
    }
    if !gathered.is_empty() {
        upload.put_part(gathered.freeze().into()).await?;
    }
    Ok(())
}

async fn remove(
    State(inner): State<Arc<Inner>>,
    UrlPath((store, object)): UrlPath<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (store, path) = (inner.store(&store)?, object_path(&object)?);
    if !object.starts_with(MODELS) {
        return Err(refuse("manifests are not deleted over the network"));
    }
    store.delete(&path).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a listing asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
}

async fn list(
    State(inner): State<Arc<Inner>>,
    UrlPath(store): UrlPath<String>,
    Query(ListQuery { prefix, after }): Query<ListQuery>,
) -> Result<Response, Refusal> {
    let store = inner.store(&store)?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'/' || b == b'-');
    let parsed = ObjectPath::parse(&prefix).ok().filter(|_| plain(&prefix) && plain(&after));
    let parsed = parsed.ok_or_else(|| refuse("prefix and start of a listing are names"))?;
    // The directory is read in no order, so keep the first page's worth of names while going through it.
    let mut page = BTreeMap::new();
    let mut more = false;
    let mut found = store.list(Some(&parsed));
    while let Some(meta) = found.try_next().await? {
        let name = meta.location.to_string();
        if name <= after || !is_object_name(&name) {
            continue;
        }
        let modified_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
        page.insert(name, (meta.size, modified_ms));
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
