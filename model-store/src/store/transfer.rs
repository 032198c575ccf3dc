//! Transfers of objects: a read takes no byte more than was requested, and a write is retried while that can
//! help. Both may take as long as they make progress.
//!
//! The maximum length of an answer is known before the request: the manifest contains the shards' lengths,
//! and a manifest has its own limit. Bytes are counted as they arrive. The first excess byte ends the
//! transfer and names the store.

use super::length::{BehindEnd, Surplus};
use super::progress::Progress;
use super::s3::Streamed;
use super::{Access, Store, is_full, panicked};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::geometry::is_object_name;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutOptions, PutPayload};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Longest silence of a store, during a request to it, before it counts as unreachable for that request.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Minimum rate of a disk's writes and syncs, in bytes per second. A disk shows no progress on the way, so
/// its time limit follows the object's length. A slower disk cannot serve a model.
const DISK_RATE_MIN: u64 = 1_000_000;
/// Bytes read from a disk in one call.
const DISK_PART_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of attempts of one write.
pub(super) const WRITE_ATTEMPTS_MAX: u32 = 5;
/// Wait before the second attempt; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Returns the wait before a write with so many failures is retried; `None` after the last attempt.
fn retry_delay(failures: u32, attempts: u32) -> Option<Duration> {
    (1..attempts).contains(&failures).then(|| RETRY_FIRST * 2_u32.pow(failures - 1))
}

/// Requested bytes of an object.
#[derive(Debug, Clone)]
enum RequestedBytes {
    /// Exactly this range.
    Range(Range<u64>),
    /// The whole object, of at most so many bytes.
    Whole(u64),
}

impl RequestedBytes {
    fn limit(&self) -> u64 {
        match self {
            Self::Range(range) => range.end - range.start,
            Self::Whole(limit) => *limit,
        }
    }
}

impl Store {
    /// Writes an object as a whole: it is durable, or absent, or the old one remains. Transient failures (an
    /// overloaded service, a broken connection, silence) are retried. Writes over the same link share their
    /// progress: while any of them moves, none is silent.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn put(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        debug_assert!(is_object_name(path.as_ref()), "{path}");
        let mut failures = 0;
        loop {
            let error = match self.put_once(path, payload.clone(), progress).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures += 1;
            // The error of a local disk is not transient.
            let passes = matches!(error, StoreError::Unreachable { .. })
                && !matches!(self.access, Access::Directory { .. } | Access::Closed(_));
            let Some(wait) = retry_delay(failures, self.write_attempts).filter(|_| passes) else {
                return Err(error);
            };
            tracing::warn!(store = self.url(), %path, %error, ?wait, "write failed; retrying");
            tokio::time::sleep(wait).await;
        }
    }

    async fn put_once(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let (objects, at) = (self.objects()?.clone(), path.clone());
        let written = match &self.access {
            Access::Directory { disk, .. } => {
                let bytes = payload.content_length() as u64;
                let limit = SILENCE_MAX + Duration::from_secs(bytes / DISK_RATE_MIN);
                let writing = disk.run(async move { objects.put(&at, payload).await });
                let written = tokio::time::timeout(limit, writing).await.map_err(|_| self.silent())?;
                progress.moved();
                written.unwrap_or_else(|| Err(panicked()))
            }
            _ => {
                let mut options = PutOptions::default();
                options.extensions.insert(progress.clone());
                let writing = objects.put_opts(&at, payload, options);
                progress.watch(SILENCE_MAX, writing).await.map_err(|_| self.silent())?
            }
        };
        written.map(drop).map_err(|error| self.failed(path, error))
    }

    /// Reads a whole object of at most `limit` bytes. `on_bytes` receives the number of bytes that arrive, as
    /// they arrive.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn get(
        &self,
        path: &ObjectPath,
        limit: usize,
        on_bytes: impl Fn(u64),
    ) -> Result<Bytes, StoreError> {
        self.read(path, RequestedBytes::Whole(limit as u64), on_bytes).await
    }

    /// Reads a range of an object, all of it. `on_bytes` receives the number of bytes that arrive, as they
    /// arrive.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Short`] for an object that ends before the range does.
    pub(crate) async fn get_range(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        on_bytes: impl Fn(u64),
    ) -> Result<Bytes, StoreError> {
        let expected = range.end - range.start;
        let bytes = self.read(path, RequestedBytes::Range(range), on_bytes).await?;
        if (bytes.len() as u64) < expected {
            return Err(self.short(path, expected, bytes.len() as u64));
        }
        Ok(bytes)
    }

    async fn read(
        &self,
        path: &ObjectPath,
        wanted: RequestedBytes,
        on_bytes: impl Fn(u64),
    ) -> Result<Bytes, StoreError> {
        if let Access::Directory { root, disk, .. } = &self.access {
            return self.read_file(disk, root.join(path.as_ref()), path, wanted, on_bytes).await;
        }
        let limit = wanted.limit();
        let range = match wanted {
            RequestedBytes::Range(range) => Some(GetRange::Bounded(range)),
            RequestedBytes::Whole(_) => None,
        };
        let mut options = GetOptions { range, ..GetOptions::default() };
        options.extensions.insert(Streamed);
        let opening = self.objects()?.get_opts(path, options);
        let found = tokio::time::timeout(SILENCE_MAX, opening).await.map_err(|_| self.silent())?;
        self.collect(path, found.map_err(|error| self.failed(path, error))?, limit, on_bytes).await
    }

    /// Collects the bytes of an answer as they arrive, `limit` at most.
    async fn collect(
        &self,
        path: &ObjectPath,
        found: GetResult,
        limit: u64,
        on_bytes: impl Fn(u64),
    ) -> Result<Bytes, StoreError> {
        if found.range.end.saturating_sub(found.range.start) > limit {
            return Err(self.surplus(path, limit));
        }
        // A store may send only as much as it announced.
        let expected = (found.range.end - found.range.start) as usize;
        let mut chunks = found.into_stream();
        let mut gathered = BytesMut::new();
        loop {
            let next = match gathered.len() == expected && expected > 0 {
                // Everything has arrived. An excess chunk that is already there is noticed; none is awaited.
                true => chunks.next().now_or_never().flatten(),
                false => tokio::time::timeout(SILENCE_MAX, chunks.next()).await.map_err(|_| self.silent())?,
            };
            let Some(chunk) = next else { break };
            let chunk = chunk.map_err(|error| self.failed(path, error))?;
            on_bytes(chunk.len() as u64);
            if gathered.len() + chunk.len() > expected {
                return Err(self.surplus(path, expected as u64));
            }
            if gathered.is_empty() {
                gathered.reserve(expected);
            }
            gathered.extend_from_slice(&chunk);
        }
        if gathered.len() < expected {
            return Err(self.short(path, expected as u64, gathered.len() as u64));
        }
        Ok(gathered.freeze())
    }

    /// Reads a local file, part by part, so that a slow disk is distinguished from a stalled one. Only a file
    /// counts as an object.
    async fn read_file(
        &self,
        disk: &Disk,
        file: PathBuf,
        path: &ObjectPath,
        wanted: RequestedBytes,
        on_bytes: impl Fn(u64),
    ) -> Result<Bytes, StoreError> {
        let opening = disk.run_blocking(move || {
            let file = File::open(file)?;
            let metadata = file.metadata()?;
            if metadata.is_file() { Ok((file, metadata.len())) } else { Err(ErrorKind::IsADirectory.into()) }
        });
        let (file, length) = self.disk_answer(path, opening).await?;
        let limit = wanted.limit();
        let range = match wanted {
            RequestedBytes::Range(range) => range,
            RequestedBytes::Whole(_) => 0..length,
        };
        let wanted = range.end - range.start;
        if wanted > limit {
            return Err(self.surplus(path, limit));
        }
        let there = length.saturating_sub(range.start).min(wanted);
        if there < wanted {
            return Err(self.short(path, wanted, there));
        }
        let (file, mut gathered) = (Arc::new(file), BytesMut::with_capacity(wanted as usize));
        while (gathered.len() as u64) < wanted {
            let (file, at) = (file.clone(), range.start + gathered.len() as u64);
            let mut part = vec![0; DISK_PART_BYTES.min((range.end - at) as usize)];
            let reading = disk.run_blocking(move || file.read_exact_at(&mut part, at).map(|()| part));
            let part = self.disk_answer(path, reading).await?;
            on_bytes(part.len() as u64);
            gathered.extend_from_slice(&part);
        }
        Ok(gathered.freeze())
    }

    /// Waits for a local disk. The request cannot be interrupted, so it keeps its permit until the disk
    /// answers.
    pub(super) async fn disk_answer<T>(
        &self,
        path: &ObjectPath,
        asked: impl Future<Output = Option<std::io::Result<T>>>,
    ) -> Result<T, StoreError> {
        let answer = tokio::time::timeout(SILENCE_MAX, asked).await.map_err(|_| self.silent())?;
        let answer = answer.unwrap_or_else(|| Err(std::io::Error::other("the request panicked")));
        answer.map_err(|error| match error.kind() {
            kind if is_absence(kind) => {
                StoreError::Missing { url: self.url().into(), object: path.to_string() }
            }
            _ => StoreError::Unreachable { url: self.url().into(), reason: error.to_string() },
        })
    }

    pub(super) fn silent(&self) -> StoreError {
        let reason = format!("no byte within {} s", SILENCE_MAX.as_secs());
        StoreError::Unreachable { url: self.url().into(), reason }
    }

    fn surplus(&self, path: &ObjectPath, limit: u64) -> StoreError {
        let expected = match path.as_ref() {
            "" => format!("the {limit} bytes of a page of names"),
            object => format!("the {limit} bytes of `{object}`"),
        };
        StoreError::Surplus { url: self.url().into(), expected }
    }

    fn short(&self, path: &ObjectPath, expected: u64, received: u64) -> StoreError {
        StoreError::Short { url: self.url().into(), object: path.to_string(), expected, received }
    }

    pub(super) fn failed(&self, path: &ObjectPath, error: object_store::Error) -> StoreError {
        let url = self.url().to_string();
        if let Some(Surplus { limit }) = find(&error) {
            return self.surplus(path, *limit);
        }
        if find::<BehindEnd>(&error).is_some() {
            return self.short(path, 1, 0);
        }
        match error {
            object_store::Error::NotFound { .. } => StoreError::Missing { url, object: path.to_string() },
            object_store::Error::PermissionDenied { source, .. }
            | object_store::Error::Unauthenticated { source, .. } => {
                StoreError::Refused { url, reason: source.to_string() }
            }
            object_store::Error::AlreadyExists { .. } => StoreError::Exists { url, object: path.to_string() },
            object_store::Error::Precondition { source, .. } => {
                StoreError::Held { url, object: path.to_string(), reason: source.to_string() }
            }
            error if is_full(&error) => StoreError::Full { url },
            error => StoreError::Unreachable { url, reason: protocol::error_chain(&error) },
        }
    }
}

/// Returns whether a disk's error means that the object does not exist. A directory at its path is no object,
/// and neither is anything below a file.
pub(crate) fn is_absence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory)
}

/// Returns the first error of this type in a chain of causes.
fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests;
