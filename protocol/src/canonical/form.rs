//! Check that bytes are canonical CBOR of some value, in one pass and without building it.
//!
//! The pass keeps one frame for each open array or map, and at most [`DEPTH_MAX`] of them.

use super::error::CanonicalError;
use super::item::{ItemHead, ItemKind, truncated};
use std::ops::Range;

/// Deepest nesting accepted. The deepest type (a bundle around nested quorums) needs about 20.
const DEPTH_MAX: usize = 48;
const _: () = assert!(
    3 * crate::limits::QUORUM_DEPTH_MAX + 16 < DEPTH_MAX,
    "the deepest rule is read within a bundle: a rule takes three levels for each of its own"
);

/// An array or map with items left to read.
struct OpenItem {
    is_map: bool,
    /// Number of items left inside it; the keys and the values of a map count alike.
    left: u64,
    /// Start of the next item inside it.
    next: usize,
    last_key: Range<usize>,
}

impl OpenItem {
    /// Records that an item inside this one ended at `end`.
    fn advance(&mut self, input: &[u8], end: usize) -> Result<(), CanonicalError> {
        debug_assert!(self.left > 0 && end > self.next, "an item takes bytes");
        if self.is_map && self.left.is_multiple_of(2) {
            let key = self.next..end;
            let last = input.get(self.last_key.clone()).unwrap_or_default();
            // Keys are sorted by their bytes, and no key is there twice. The first follows no key: no bytes.
            if input.get(key.clone()).is_none_or(|key| key <= last) {
                return Err(CanonicalError::NotCanonical);
            }
            self.last_key = key;
        }
        self.left -= 1;
        self.next = end;
        debug_assert!(self.last_key.end <= end, "a key ends before its value");
        Ok(())
    }
}

/// Checks that the bytes are one item, and the canonical encoding of its value.
///
/// # Errors
/// Returns the first deviation: another spelling of a number or length, unsorted or repeated keys, a float, a
/// tag, text that is not UTF-8, a declared length beyond the input, deep nesting, bytes after the item.
pub(super) fn check(input: &[u8]) -> Result<(), CanonicalError> {
    let mut open: Vec<OpenItem> = Vec::new();
    let mut at = 0;
    loop {
        let head = ItemHead::read(input, at)?;
        let begin = at;
        at += head.bytes;
        match head.kind {
            ItemKind::Bytes => at += head.content(input, begin)?.len(),
            ItemKind::Text => {
                let text = std::str::from_utf8(head.content(input, begin)?);
                let text = text.map_err(|_| CanonicalError::Invalid(format!("no UTF-8 at byte {begin}")))?;
                at += text.len();
            }
            ItemKind::Array | ItemKind::Map if open.len() == DEPTH_MAX => {
                return Err(CanonicalError::Invalid(format!("more than {DEPTH_MAX} levels of nesting")));
            }
            _ => {}
        }
        // Each item takes a byte, so a declared number is bounded before anything relies on it.
        if head.children() > (input.len() - at) as u64 {
            return Err(truncated(begin));
        }
        if head.children() > 0 {
            let is_map = head.kind == ItemKind::Map;
            open.push(OpenItem { is_map, left: head.children(), next: at, last_key: 0..0 });
        } else if close(&mut open, input, at)? {
            break;
        }
    }
    debug_assert!(open.is_empty() && at <= input.len(), "the outermost item ended");
    if at < input.len() {
        return Err(CanonicalError::Invalid(format!("bytes follow the value, at byte {at}")));
    }
    Ok(())
}

/// Closes every array and map that ends with the item that ended at `end`. Returns whether the outermost item
/// ended.
fn close(open: &mut Vec<OpenItem>, input: &[u8], end: usize) -> Result<bool, CanonicalError> {
    debug_assert!(open.last().is_none_or(|item| item.left > 0), "an item without items left is closed");
    while let Some(innermost) = open.last_mut() {
        innermost.advance(input, end)?;
        if innermost.left > 0 {
            return Ok(false);
        }
        open.pop();
    }
    Ok(true)
}
