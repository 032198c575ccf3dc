//! S3 stores, and the HTTP client beneath them: no answer is larger than its request allows.
//!
//! `object_store` collects pages of listings, error texts and the answers to writes in memory before it
//! examines them. They are therefore bounded here, on arrival. Bytes of an object are streamed and counted by
//! [`super::transfer`]; here only their announced length is compared with the range. Requests have no limit
//! of total time: [`Progress`] records each piece of an upload that goes out.

use super::S3Settings;
use super::length::{BehindEnd, Surplus};
use super::progress::Progress;
use async_trait::async_trait;
use futures::{TryStreamExt, stream};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Number of immediate retries of one request. After them reads use other stores, and writes are retried by
/// [`super::transfer`], more slowly.
const RETRIES_MAX: usize = 2;
/// Maximum bytes of an answer that is collected whole. A page of a listing has at most 1,000 names of at most
/// 1 KiB and some 300 bytes about each, written with entities. Error texts are far smaller.
const COLLECTED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Marks a request whose answer is counted by its reader on arrival.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streamed;

/// Opens the bucket of `url`, and the prefix in it.
pub(super) fn open(url: &Url, settings: &S3Settings) -> Result<Arc<dyn ObjectStore>, String> {
    let bucket = url.host_str().ok_or("it names no bucket")?;
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_http_connector(BoundedConnector);
    builder = builder.with_retry(RetryConfig { max_retries: RETRIES_MAX, ..RetryConfig::default() });
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(id) = &settings.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = &settings.secret_access_key {
        builder = builder.with_secret_access_key(secret);
    }
    let objects = builder.build().map_err(|error| error.to_string())?;
    let prefix = url.path().trim_matches('/');
    Ok(if prefix.is_empty() { Arc::new(objects) } else { Arc::new(PrefixStore::new(objects, prefix)) })
}

#[derive(Debug)]
struct BoundedConnector;

impl HttpConnector for BoundedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let generic =
            |error: reqwest::Error| object_store::Error::Generic { store: "S3", source: error.into() };
        let option = |key| options.get_config_value(&key);
        let plain = option(ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).https_only(!plain);
        if let Some(proxy) = option(ClientConfigKey::ProxyUrl) {
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(generic)?);
        }
        Ok(HttpClient::new(Bounded(builder.build().map_err(generic)?)))
    }
}

#[derive(Debug)]
struct Bounded(reqwest::Client);

#[async_trait]
impl HttpService for Bounded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let asked = Asked::of(&head.headers, head.extensions.get::<Streamed>().is_some());
        let url = head.uri.to_string().parse::<Url>();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(head.method, url);
        *request.headers_mut() = head.headers;
        if body.content_length() > 0 {
            let progress = head.extensions.get::<Progress>().cloned().unwrap_or_else(Progress::new);
            let chunks = body.into_data_stream().map_ok(move |chunk| {
                stream::iter(progress.clone().pieces(std::iter::once(chunk)).map(Ok::<_, HttpError>))
            });
            *request.body_mut() = Some(reqwest::Body::wrap_stream(chunks.try_flatten()));
        }
        let response = self.0.execute(request).await.map_err(failed)?;
        asked.check(response.status(), response.headers())?;
        let limit = asked.limit(response.status());
        let (head, body) = http::Response::<reqwest::Body>::from(response).into_parts();
        let body = body.map_err(failed);
        let body = match limit {
            Some(limit) => {
                let body = Limited::new(body, limit);
                HttpResponseBody::new(body.map_err(move |error| surplus_or_error(error, limit)))
            }
            None => HttpResponseBody::new(body),
        };
        Ok(HttpResponse::from_parts(head, body))
    }
}

/// Bound that a request puts on its answer.
enum Asked {
    /// A range of so many bytes of an object.
    Range(u64),
    /// A whole object; its reader knows the limit.
    Object,
    /// Any answer that is collected.
    Other,
}

impl Asked {
    fn of(headers: &HeaderMap, streamed: bool) -> Self {
        if !streamed {
            return Self::Other;
        }
        let length = || {
            let range = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
            let (first, last) = range.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        };
        match length() {
            Some(length) => Self::Range(length),
            None => Self::Object,
        }
    }

    /// Compares the head of an answer with the request.
    fn check(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), HttpError> {
        let Self::Range(limit) = *self else { return Ok(()) };
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(HttpError::new(HttpErrorKind::Unknown, BehindEnd));
        }
        let announced = headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        // A server without support for ranges sends the whole object, which may have no end.
        let whole = status == StatusCode::OK && announced != Some(limit);
        if whole || status.is_success() && announced.is_some_and(|announced| announced > limit) {
            return Err(HttpError::new(HttpErrorKind::Unknown, Surplus { limit }));
        }
        Ok(())
    }

    fn limit(&self, status: StatusCode) -> Option<usize> {
        match self {
            Self::Range(_) | Self::Object if status.is_success() => None,
            _ => Some(COLLECTED_BYTES_MAX),
        }
    }
}

fn surplus_or_error(error: Box<dyn std::error::Error + Send + Sync>, limit: usize) -> HttpError {
    if error.is::<LengthLimitError>() {
        return HttpError::new(HttpErrorKind::Unknown, Surplus { limit: limit as u64 });
    }
    match error.downcast::<HttpError>() {
        Ok(error) => *error,
        Err(error) => HttpError::new_boxed(HttpErrorKind::Unknown, error),
    }
}

/// Classifies a failure, so that `object_store` knows whether to retry.
fn failed(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_decode() => HttpErrorKind::Decode,
        () => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer_is_compared_with_the_request() {
        let headers = |name: header::HeaderName, value: &str| {
            HeaderMap::from_iter([(name, value.parse().expect("a value"))])
        };
        let range = || Asked::of(&headers(header::RANGE, "bytes=10-19"), true);
        let answer = |status: u16, length: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            range().check(status, &headers(header::CONTENT_LENGTH, length)).is_ok()
        };
        assert!(answer(206, "10") && answer(206, "9"), "the object may end before the range");
        assert!(!answer(206, "11") && !answer(206, "1099511627776"));
        assert!(answer(200, "10") && !answer(200, "9") && !answer(200, "11"), "the whole object");
        assert!(answer(404, "1000"), "an error text is no part of the range");
        assert!(!answer(416, "0"));
        let none = HeaderMap::new();
        let limited = |asked: Asked, status| asked.limit(status).is_some();
        assert!(!limited(Asked::of(&none, true), StatusCode::OK) && !limited(range(), StatusCode::OK));
        assert!(limited(Asked::of(&none, true), StatusCode::NOT_FOUND));
        assert!(limited(Asked::of(&none, false), StatusCode::OK), "a listing, a write");
    }
}
