//! Artifacts: the root file systems of programs, packed into one stored file each.
//!
//! ```text
//! image or files --> ArtifactBuilder --> packed file --> import (as a model) --> stores
//!                     tree in memory       |
//!                     contents in a spool  '--> ArtifactCache: unpacked tree, checked before every start
//! ```
//!
//! A dataset, a checkpoint and the outputs of a job are packed in the same form, without a start; links in
//! them stay within the tree wherever it is unpacked.
//!
//! An image is flattened in memory: its layers change a tree of names, and the contents of files go into a
//! spool. No path of an image is created on this machine, so none can lead anywhere. The packed file is a
//! function of the tree alone (`protocol::artifact`). An image need not fit in memory; its names must.

mod builder;
mod cache;
mod directory;
mod error;
mod image;
mod layer;
mod packed;
mod tar;
mod tree;
mod unpack;

pub use builder::{ArtifactBuilder, PackedArtifact};
pub use cache::{ArtifactCache, CachedTree, TreeInUse};
pub use directory::open_data;
pub use error::ArtifactError;
pub use image::ImageStart;
pub(crate) use packed::{is_packed, read_index};
pub use unpack::{TreeFault, unpack_data};

use protocol::artifact::{ARTIFACT_BYTES_MAX, ARTIFACT_ENTRIES_MAX};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {tar::TarReader, unpack::unpack};

/// Limits of an artifact's construction; the default is what this release accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactLimits {
    /// Maximum number of entries of the tree.
    pub entries: usize,
    /// Maximum size of all files of the tree in bytes.
    pub bytes: u64,
    /// Maximum number of layers of an image: twice what container engines build.
    pub layers: usize,
    /// Maximum number of members of an image's archive.
    pub members: usize,
    /// Maximum number of entries in all layers, the removed ones included.
    pub layer_entries: usize,
    /// Maximum size of all layers in bytes, unpacked.
    pub layer_bytes: u64,
}

impl Default for ArtifactLimits {
    fn default() -> Self {
        Self {
            entries: ARTIFACT_ENTRIES_MAX,
            bytes: ARTIFACT_BYTES_MAX,
            layers: 256,
            members: 4096,
            layer_entries: 2 * ARTIFACT_ENTRIES_MAX,
            layer_bytes: 2 * ARTIFACT_BYTES_MAX,
        }
    }
}

#[cfg(test)]
mod tests;
