//! Another node's store as an `object_store`: HTTP/2 requests over the overlay to its shard service.

use crate::store::{BehindEnd, Listed, Progress, Surplus};
use crate::wire::{ListPage, ListedObject, MEDIA_TYPE_PAGE, PAGE_BYTES_MAX};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use overlay::{Body, Client};
use std::io;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const STORE: &str = "shard service";

/// One store of one node. Objects are written as a whole; copies, multipart uploads and conditional requests
/// are not supported.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    client: Client,
    store: String,
}

impl std::fmt::Display for RemoteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteStore({}/{})", self.client.peer().short(), self.store)
    }
}

impl RemoteStore {
    /// Returns the store of this name behind the shard service that `client` reaches.
    #[must_use]
    pub fn new(client: Client, store: &str) -> Self {
        Self { client, store: store.into() }
    }

    fn request(&self, method: Method, path: &Path) -> http::request::Builder {
        Request::builder().method(method).uri(format!("/shards/v1/{}/{path}", self.store))
    }

    async fn exchange(&self, request: Request<Body>, path: &str) -> Result<Response<overlay::ResponseBody>> {
        let response = self.client.send(request).await.map_err(|error| match error {
            overlay::Error::PeerRefused { .. } => {
                Error::PermissionDenied { path: path.into(), source: error.into() }
            }
            error => generic(error),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let detail = collect(response, 4096).await.unwrap_or_default();
        let text = format!("{status}: {}", String::from_utf8_lossy(&detail).escape_debug());
        let path = path.to_string();
        Err(match status {
            StatusCode::NOT_FOUND => Error::NotFound { path, source: text.into() },
            StatusCode::RANGE_NOT_SATISFIABLE => generic(BehindEnd),
            StatusCode::INSUFFICIENT_STORAGE => generic(io::Error::new(io::ErrorKind::StorageFull, text)),
            StatusCode::CONFLICT => Error::AlreadyExists { path, source: text.into() },
            StatusCode::LOCKED => Error::Precondition { path, source: text.into() },
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
                Error::PermissionDenied { path, source: text.into() }
            }
            _ => generic(io::Error::other(text)),
        })
    }

    /// Lists everything below `prefix`, including the leftovers of incomplete writes.
    pub(crate) fn list_all(&self, prefix: &str) -> BoxStream<'static, Result<Listed>> {
        let found = self.listed(prefix.into(), true);
        let listed =
            |ListedObject { name, bytes, modified_ms }| Listed { name, bytes, modified: time(modified_ms) };
        found.map_ok(listed).boxed()
    }

    /// Removes an object that the store releases, or an old leftover.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let uri = format!("/shards/v1/{}/{}", self.store, name.replace('#', "%23"));
        let request = Request::delete(uri).body(Body::empty()).map_err(generic)?;
        self.exchange(request, name).await.map(drop)
    }

    /// Lists the objects below `prefix`, page by page.
    fn listed(&self, prefix: String, leftovers: bool) -> BoxStream<'static, Result<ListedObject>> {
        let store = self.clone();
        let pages = stream::try_unfold(Some(String::new()), move |after| {
            let (store, prefix) = (store.clone(), prefix.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = store.page(&prefix, &after, leftovers).await?;
                let next = page.more.then(|| page.objects.last().map(|last| last.name.clone())).flatten();
                // A listing that does not advance would never end.
                if next.as_ref().is_some_and(|next| *next <= after) {
                    return Err(invalid("the listing does not advance"));
                }
                Ok(Some((page.objects, next)))
            }
        });
        pages.map_ok(|objects| stream::iter(objects).map(Ok)).try_flatten().boxed()
    }

    async fn page(&self, prefix: &str, after: &str, leftovers: bool) -> Result<ListPage> {
        let after = after.replace('#', "%23");
        let more = if leftovers { "&leftovers=true" } else { "" };
        let uri = format!("/shards/v1/{}?prefix={prefix}&after={after}{more}", self.store);
        let request = Request::get(uri).header(header::ACCEPT, MEDIA_TYPE_PAGE).body(Body::empty());
        let response = self.exchange(request.map_err(generic)?, prefix).await?;
        let bytes = collect(response, PAGE_BYTES_MAX).await?;
        protocol::canonical::from_bytes(&bytes, PAGE_BYTES_MAX).map_err(generic)
    }
}

/// For fuzzing: checks that a decoded page can be converted, with any times and names that it claims.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_page(bytes: &[u8]) {
    let Ok(page) = protocol::canonical::from_bytes::<ListPage>(bytes, PAGE_BYTES_MAX) else { return };
    for ListedObject { name, bytes, modified_ms } in page.objects {
        if let Ok(path) = Path::parse(&name) {
            let _ = meta(path, bytes, modified_ms);
        }
    }
}

fn generic(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: STORE, source: Box::new(error) }
}

fn invalid(reason: &'static str) -> Error {
    generic(io::Error::new(io::ErrorKind::InvalidData, reason))
}

fn not_built(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.into(), implementer: STORE.into() }
}

async fn collect(response: Response<overlay::ResponseBody>, limit: usize) -> Result<Bytes> {
    let body = http_body_util::Limited::new(response.into_body(), limit);
    let collected = body.collect().await.map(http_body_util::Collected::to_bytes);
    collected.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => generic(Surplus { limit: limit as u64 }),
        false => generic(io::Error::other(error)),
    })
}

/// Converts a time that a peer claims, limited to the year 9999: not every type can represent a later time.
fn time(modified_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(modified_ms.min(253_402_300_799_000))
}

fn meta(location: Path, size: u64, modified_ms: u64) -> ObjectMeta {
    let modified = time(modified_ms);
    ObjectMeta { location, last_modified: modified.into(), size, e_tag: None, version: None }
}

fn range_header(range: &GetRange) -> String {
    match range {
        GetRange::Bounded(range) => format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
        GetRange::Offset(start) => format!("bytes={start}-"),
        GetRange::Suffix(length) => format!("bytes=-{length}"),
    }
}

/// Returns the size of the object and the range of bytes sent, from the head of a response.
fn sizes(response: &Response<overlay::ResponseBody>) -> Option<(u64, Range<u64>)> {
    let header = |name: header::HeaderName| response.headers().get(name)?.to_str().ok();
    if let Some(range) = header(header::CONTENT_RANGE) {
        let (range, size) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
        return Some((size.parse().ok()?, range));
    }
    let size = header(header::CONTENT_LENGTH)?.parse().ok()?;
    Some((size, 0..size))
}

#[async_trait]
impl ObjectStore for RemoteStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Overwrite {
            return Err(not_built("conditional put"));
        }
        let length = payload.content_length();
        let progress = opts.extensions.get::<Progress>().cloned().unwrap_or_else(Progress::new);
        let chunks = stream::iter(progress.pieces(payload.into_iter())).map(Ok::<_, io::Error>);
        let request = self.request(Method::PUT, location).header(header::CONTENT_LENGTH, length);
        let request = request.body(Body::from_stream(chunks)).map_err(generic)?;
        self.exchange(request, location.as_ref()).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: http::Extensions::new() })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(not_built("multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.if_match.is_some() || options.if_none_match.is_some() || options.version.is_some() {
            return Err(not_built("conditional get"));
        }
        let mut request = self.request(if options.head { Method::HEAD } else { Method::GET }, location);
        if let Some(range) = &options.range {
            request = request.header(header::RANGE, range_header(range));
        }
        let request = request.body(Body::empty()).map_err(generic)?;
        let response = self.exchange(request, location.as_ref()).await?;
        let (size, range) = sizes(&response).ok_or_else(|| invalid("the answer does not say its length"))?;
        let body = response.into_body().into_data_stream().map_err(|error| generic(io::Error::other(error)));
        Ok(GetResult {
            payload: GetResultPayload::Stream(body.boxed()),
            meta: meta(location.clone(), size, 0),
            range,
            attributes: object_store::Attributes::new(),
            extensions: http::Extensions::new(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |path: Path| {
            let store = store.clone();
            async move {
                let request = store.request(Method::DELETE, &path).body(Body::empty()).map_err(generic)?;
                store.exchange(request, path.as_ref()).await.map(|_| path)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let found = self.listed(prefix.map(ToString::to_string).unwrap_or_default(), false);
        let listed = |ListedObject { name, bytes, modified_ms }| {
            Ok(meta(Path::parse(&name).map_err(generic)?, bytes, modified_ms))
        };
        found.map(move |object| object.and_then(listed)).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        Err(not_built("list with delimiter"))
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(not_built("copy"))
    }
}
