//! Protocol of a node's shard service: names, limits and pages as they cross the wire, for the service and
//! its clients.

use protocol::limits::{MODEL_MANIFEST_BYTES_MAX, SEGMENT_BYTES_MAX};
use protocol::model::SEGMENTS_PER_OBJECT_MAX;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest object in bytes: a manifest, or the shards of a full group of a model with one data shard.
pub(crate) const OBJECT_BYTES_MAX: usize = MODEL_MANIFEST_BYTES_MAX;
const _: () = assert!(SEGMENTS_PER_OBJECT_MAX as usize * (SEGMENT_BYTES_MAX + 16) <= OBJECT_BYTES_MAX);
/// Largest page in bytes: names have at most 80 bytes.
pub(crate) const PAGE_BYTES_MAX: usize = 256 * 1024;
/// Media type of a page of a listing.
pub(crate) const MEDIA_TYPE_PAGE: &str = "application/cbor";
/// Longest name of a store, in bytes.
const STORE_NAME_BYTES_MAX: usize = 32;
/// Longest silence inside an upload.
pub(crate) const UPLOAD_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Minimum average rate of an upload in bytes per second: it holds one of the service's permits for writes as
/// long as it lasts. An import that writes twelve objects concurrently needs 1.6 Mbit/s.
pub(crate) const UPLOAD_RATE_MIN: u64 = 16 * 1024;

/// Returns the limits for the listener of a [`ShardService`](crate::ShardService) and for its clients.
/// Objects are larger than overlay connections carry by default, and a slow uplink takes long for one.
/// Neither side waits as long as `request` allows: a client gives up after a silence, and an upload that is
/// too slow is rejected.
pub(crate) fn limits() -> overlay::Limits {
    overlay::Limits {
        request: UPLOAD_SILENCE_MAX + Duration::from_secs(2 * OBJECT_BYTES_MAX as u64 / UPLOAD_RATE_MIN),
        request_bytes_max: OBJECT_BYTES_MAX,
        response_bytes_max: OBJECT_BYTES_MAX,
        ..overlay::Limits::default()
    }
}

/// Returns whether a store may have this name: 1 to 32 of `a-z`, `0-9`, `-`, valid as a file name and in a
/// URL.
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

/// One page of a listing, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListPage {
    pub(crate) objects: Vec<ListedObject>,
    /// Whether objects follow; a client continues after the last name.
    pub(crate) more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::canonical::{from_bytes, to_bytes};

    #[test]
    fn a_store_name_is_a_file_name_and_a_part_of_a_url() {
        for name in ["a", "disk-1", "0", &"x".repeat(32)] {
            assert!(is_store_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "Disk", "a b", "a%2f", "ä", "a\0", &"x".repeat(33)] {
            assert!(!is_store_name(name), "{name}");
        }
    }

    #[test]
    fn a_full_page_of_the_longest_names_has_space() {
        let object = ListedObject { name: "f".repeat(80), bytes: u64::MAX, modified_ms: u64::MAX };
        let page = ListPage { objects: vec![object; 1000], more: true };
        let bytes = to_bytes(&page);
        assert!(bytes.len() <= PAGE_BYTES_MAX, "{} bytes", bytes.len());
        assert_eq!(from_bytes::<ListPage>(&bytes, PAGE_BYTES_MAX), Ok(page));
    }

    #[test]
    fn a_slow_upload_ends_before_its_request_does() {
        let slowest = Duration::from_secs(OBJECT_BYTES_MAX as u64 / UPLOAD_RATE_MIN);
        let limits = limits();
        assert!(limits.request > slowest + UPLOAD_SILENCE_MAX, "{:?} for {slowest:?}", limits.request);
        assert_eq!(
            (limits.request_bytes_max, limits.response_bytes_max),
            (OBJECT_BYTES_MAX, OBJECT_BYTES_MAX)
        );
    }
}
