//! Pages of the governance chain: a reader of any history gets it in bounded answers.

use protocol::canonical::to_bytes;
use protocol::governance::Bundle;

/// Returns the bundles after the first `length`, as many as stay within `bytes_max`, but at least one: a
/// reader always advances. The chain only grows, so that pages read at different times continue each other.
#[must_use]
pub fn history_page(chain: &[Bundle], length: u64, bytes_max: usize) -> Vec<Bundle> {
    let skip = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = 0_usize;
    let mut page = Vec::new();
    for bundle in chain.iter().skip(skip) {
        bytes = bytes.saturating_add(to_bytes(bundle).len());
        if bytes > bytes_max && !page.is_empty() {
            break;
        }
        page.push(bundle.clone());
    }
    debug_assert!(!page.is_empty() || skip >= chain.len(), "a page is empty at the end alone");
    page
}
