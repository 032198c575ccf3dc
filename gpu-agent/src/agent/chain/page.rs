//! Page of bundles: as many as arrived together and fit into one file, written at once.
//!
//! A file has the length of each bundle in four bytes, most significant first, and its canonical bytes. One
//! file for each bundle would cost two waits for the disk per decision: minutes for a long history.

use super::super::core::signed_at;
use human_chain::{Approved, ChainError, CircleState, read_bundle};
use protocol::canonical::{self, CanonicalError};
use protocol::governance::{Bundle, Change};
use protocol::limits::{BUNDLE_BYTES_MAX, HISTORY_PAGE_BYTES_MAX};
use protocol::{Digest, Millis};
use std::ffi::OsStr;
use std::sync::Arc;

/// Number of bytes from which a page takes no more bundles: control sends no more in one answer.
const FULL_BYTES: usize = HISTORY_PAGE_BYTES_MAX;
/// Largest file of a page: the last bundle may begin before the page is full.
pub(super) const PAGE_BYTES_MAX: usize = FULL_BYTES + LENGTH_BYTES + BUNDLE_BYTES_MAX;
/// Bytes of a bundle's length.
const LENGTH_BYTES: usize = size_of::<u32>();
/// Digits of a file's name: the number of its first bundle.
const NAME_DIGITS: usize = 10;

/// Bundles that were verified and are not on disk yet, with what follows from them.
#[derive(Debug)]
pub(super) struct DecisionPage {
    /// State after the last bundle.
    pub(super) state: Arc<CircleState>,
    /// Latest time that the circle signed.
    pub(super) signed_at: Millis,
    /// Digests of the bundles' certificates.
    pub(super) certificates: Vec<Digest>,
    /// Content of the file.
    pub(super) bytes: Vec<u8>,
    /// True if the next bundle shows that the chain is not the one that this node verified before.
    pub(super) forked: bool,
}

impl DecisionPage {
    /// Returns the empty page behind a state of the chain.
    pub(super) fn after(state: Arc<CircleState>, signed_at: Millis) -> Self {
        Self { state, signed_at, certificates: Vec::new(), bytes: Vec::new(), forked: false }
    }

    /// Returns the number of bundles.
    pub(super) fn len(&self) -> usize {
        self.certificates.len()
    }

    /// Returns whether the next bundle belongs to the next page.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    /// Adds a bundle that was verified against the page's state.
    ///
    /// # Errors
    /// If the change is not applicable. The page is then unchanged.
    pub(super) fn add(&mut self, approved: Approved<Change>, bundle: &Bundle) -> Result<(), ChainError> {
        let certificate = approved.certificate_digest();
        // The first bundle of the page copies the state, which the chain keeps until the page is durable.
        Arc::make_mut(&mut self.state).advance(approved)?;
        self.certificates.push(certificate);
        self.signed_at = self.signed_at.max(signed_at(&bundle.certificate));
        let bytes = canonical::to_bytes(bundle);
        assert!(bytes.len() <= BUNDLE_BYTES_MAX, "the size of a certificate is verified");
        let length = u32::try_from(bytes.len()).expect("a bundle's limit is far below 4 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }
}

/// Reads the first bundle of a page, and returns the bytes behind it.
///
/// # Errors
/// If the bytes end early, or are not those of a bundle.
pub(super) fn next_bundle(bytes: &[u8]) -> Result<(Bundle, &[u8]), ChainError> {
    let ends_early = || {
        let source = CanonicalError::Invalid("its file ends early".into());
        ChainError::NotCanonical { what: "bundle", source }
    };
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(ends_early)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| ends_early())?;
    let (bundle, rest) = rest.split_at_checked(length).ok_or_else(ends_early)?;
    Ok((read_bundle(bundle)?, rest))
}

/// Returns the number of the first bundle in a file of this name; none if it is no page's.
pub(super) fn number_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let is_page = name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    is_page.then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pages_name_is_the_number_of_its_first_bundle() {
        for (name, expected) in [
            ("0000000001", Some(1)),
            ("0000010000", Some(10_000)),
            ("0000000001.new", None),
            ("+000000001", None),
            ("1", None),
            ("head", None),
            ("state", None),
        ] {
            assert_eq!(number_of(OsStr::new(name)), expected, "`{name}`");
        }
    }

    #[test]
    fn bytes_that_end_early_are_no_bundle() {
        for bytes in [&b""[..], &[0, 0, 0], &[0, 0, 0, 0], &[0, 0, 0, 2, 0x80], &[255, 255, 255, 255, 0]] {
            assert!(matches!(next_bundle(bytes), Err(ChainError::NotCanonical { .. })), "{bytes:?}");
        }
    }
}
