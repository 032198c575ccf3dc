//! Commitment to a circle's history: the Merkle tree of RFC 6962 (section 2.1) over the digests of its
//! certificates, in the order in which they were admitted.
//!
//! Every root since genesis is kept, 32 bytes each. Whether a head that a signer saw is a prefix of this
//! history is then one look-up, for a head of any age.

use aws_lc_rs::digest::{Context, SHA256};
use protocol::governance::HistoryHead;
use protocol::{Digest, ProposalId};
use serde::{Deserialize, Serialize};

/// Prefixes of the hash input for a leaf and for an inner node, so that neither passes for the other (RFC
/// 6962).
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// Decision of a circle's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    /// Proposal that was approved.
    pub proposal: ProposalId,
    /// Digest of its certificate: a leaf of the tree.
    pub certificate: Digest,
}

/// Merkle tree that certificates are appended to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<HistoryEntry>", into = "Vec<HistoryEntry>")]
pub(crate) struct HistoryTree {
    entries: Vec<HistoryEntry>,
    /// Root of the tree at each size; the first is that of the empty tree.
    roots: Vec<Digest>,
    /// Roots of the largest complete subtrees from left to right: one for each bit that is set in the size.
    peaks: Vec<Digest>,
}

impl HistoryTree {
    /// Returns the tree of a circle without decisions.
    pub(crate) fn empty() -> Self {
        Self { entries: Vec::new(), roots: vec![sha256(&[])], peaks: Vec::new() }
    }

    /// Returns the number of certificates.
    pub(crate) fn size(&self) -> u64 {
        self.roots.len() as u64 - 1
    }

    /// Returns the size and root of the tree.
    pub(crate) fn head(&self) -> HistoryHead {
        debug_assert!(!self.roots.is_empty(), "the tree has a root at every size");
        let root = *self.roots.last().expect("the root of the empty tree is always there");
        HistoryHead { size: self.size(), root }
    }

    /// Returns the root that the tree had at this size; none if it never was so large.
    pub(crate) fn root_at(&self, size: u64) -> Option<Digest> {
        self.roots.get(usize::try_from(size).ok()?).copied()
    }

    /// Returns the decisions, in the order of their admission.
    pub(crate) fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// Appends a decision; its leaf is the digest of the certificate.
    pub(crate) fn append(&mut self, entry: HistoryEntry) {
        let mut peak = sha256(&[&[LEAF], &entry.certificate.0]);
        // Two complete subtrees of one size become one of twice that size: a carry in the binary size.
        for _ in 0..self.size().trailing_ones() {
            let left = self.peaks.pop().expect("each bit of the size has a peak");
            peak = join(&left, &peak);
        }
        self.peaks.push(peak);
        let mut smaller_first = self.peaks.iter().rev();
        let last = *smaller_first.next().expect("a peak was pushed");
        self.roots.push(smaller_first.fold(last, |right, left| join(left, &right)));
        self.entries.push(entry);
        debug_assert_eq!(self.entries.len() as u64, self.size(), "one leaf for each decision");
        debug_assert_eq!(self.peaks.len(), self.size().count_ones() as usize, "one peak for each bit");
    }
}

impl From<Vec<HistoryEntry>> for HistoryTree {
    fn from(entries: Vec<HistoryEntry>) -> Self {
        let mut tree = Self::empty();
        entries.into_iter().for_each(|entry| tree.append(entry));
        tree
    }
}

impl From<HistoryTree> for Vec<HistoryEntry> {
    fn from(tree: HistoryTree) -> Self {
        tree.entries
    }
}

fn join(left: &Digest, right: &Digest) -> Digest {
    sha256(&[&[NODE], &left.0, &right.0])
}

/// Returns the SHA-256 digest of these parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root by the recursive definition of RFC 6962: split at the largest power of two below the size.
    fn by_definition(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => sha256(&[]),
            [leaf] => sha256(&[&[LEAF], &leaf.0]),
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                join(&by_definition(&leaves[..split]), &by_definition(&leaves[split..]))
            }
        }
    }

    fn certificate(number: u64) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn entry(certificate: Digest) -> HistoryEntry {
        HistoryEntry { proposal: ProposalId(Digest::of(&certificate.0)), certificate }
    }

    #[test]
    fn each_root_is_that_of_the_definition() {
        let leaves: Vec<Digest> = (0..70).map(certificate).collect();
        let mut tree = HistoryTree::empty();
        for size in 0..=leaves.len() {
            let head = HistoryHead { size: size as u64, root: by_definition(&leaves[..size]) };
            assert_eq!(tree.head(), head);
            for earlier in 0..=size {
                assert_eq!(tree.root_at(earlier as u64), Some(by_definition(&leaves[..earlier])));
            }
            assert_eq!(tree.root_at(size as u64 + 1), None, "the tree never was so large");
            if let Some(next) = leaves.get(size) {
                tree.append(entry(*next));
            }
        }
    }

    #[test]
    fn the_empty_tree_has_the_root_of_the_standard() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(HistoryTree::empty().head().root.to_string(), empty, "SHA-256 of nothing");
    }

    #[test]
    fn a_decision_left_out_changed_or_moved_gives_another_root() {
        let root = |numbers: &[u64]| {
            let mut tree = HistoryTree::empty();
            numbers.iter().for_each(|number| tree.append(entry(certificate(*number))));
            tree.head().root
        };
        let whole = root(&[1, 2, 3, 4, 5]);
        for other in
            [&[1, 2, 3, 4][..], &[1, 2, 4, 5], &[2, 1, 3, 4, 5], &[1, 2, 3, 4, 6], &[1, 2, 3, 4, 5, 5]]
        {
            assert_ne!(root(other), whole, "{other:?}");
        }
    }
}
