//! Location of shards: the object in each store, and the byte range in it. Pure arithmetic over a manifest.
//!
//! Segments form *groups* of a fixed number, in the manifest's `order`. Shard `i` of every segment of a group
//! is stored in one object of store `i`, back to back. The first groups hold the segments that an engine
//! needs first.

use crate::codec::shard_length;
use object_store::path::Path;
use protocol::model::{ErasureCode, ModelManifest, ModelNonce, Segment};
use protocol::{Digest, ModelRoot};
use std::ops::Range;

/// Directory of all shard objects.
pub(crate) const MODELS: &str = "models";
/// Directory of all manifests.
pub(crate) const MANIFESTS: &str = "manifests";

/// Returns the path of shard `shard` of group `group`.
pub(crate) fn object_path(nonce: ModelNonce, group: u32, shard: usize) -> Path {
    let nonce = nonce.to_string();
    let path = Path::from_iter([MODELS, &nonce[..2], &nonce, &format!("{group:08x}-{shard:02x}")]);
    debug_assert!(is_object_name(path.as_ref()), "{path}");
    path
}

/// Returns the directory of all objects of one import.
pub(crate) fn model_prefix(nonce: ModelNonce) -> Path {
    let nonce = nonce.to_string();
    Path::from_iter([MODELS, &nonce[..2], &nonce])
}

/// Returns the path of a manifest, the same in every store.
pub(crate) fn manifest_path(root: ModelRoot) -> Path {
    let root = root.to_string();
    let path = Path::from_iter([MANIFESTS, &root[..2], &root]);
    debug_assert!(is_object_name(path.as_ref()), "{path}");
    path
}

/// Returns whether the functions above could have made `name`. A shard service reads and writes only such
/// names.
pub(crate) fn is_object_name(name: &str) -> bool {
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [MODELS, two, nonce, object] => {
            let leaf = object.split_once('-').is_some_and(|(group, shard)| hex(group, 8) && hex(shard, 2));
            hex(nonce, 32) && nonce.starts_with(two) && hex(two, 2) && leaf
        }
        [MANIFESTS, two, root] => hex(root, 64) && hex(two, 2) && root.starts_with(two),
        _ => false,
    }
}

/// Returns the group and the index of the shards in the object of this name.
pub(crate) fn shard_place(name: &str) -> Option<(u32, usize)> {
    let (group, shard) = name.rsplit_once('/')?.1.split_once('-')?;
    Some((u32::from_str_radix(group, 16).ok()?, usize::from_str_radix(shard, 16).ok()?))
}

/// Returns whether `name` is the temporary name of an object during a write to a directory: `OBJECT#NUMBER`.
pub(crate) fn is_leftover_name(name: &str) -> bool {
    name.split_once('#').is_some_and(|(object, number)| {
        let digits = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        digits && is_object_name(object)
    })
}

/// Kind of an entry in a store, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// Shards of the import with this nonce.
    Shard(ModelNonce),
    /// A copy of the manifest of this root.
    Manifest(ModelRoot),
    /// Leftover of an incomplete write, if it is old.
    Leftover,
}

impl Name {
    /// Returns the kind of a name; `None` for a foreign name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        if is_leftover_name(name) {
            return Some(Self::Leftover);
        }
        if !is_object_name(name) {
            return None;
        }
        let mut parts = name.split('/').skip(2);
        let part = parts.next()?;
        match name.starts_with(MODELS) {
            true => part.parse().ok().map(Self::Shard),
            false => part.parse().ok().map(Self::Manifest),
        }
    }
}

/// Arrangement of one manifest's segments in groups.
pub(crate) struct Geometry {
    code: ErasureCode,
    nonce: ModelNonce,
    per_object: usize,
    /// Position of each segment in `order`.
    positions: Vec<u32>,
}

impl Geometry {
    /// Returns the geometry of a manifest that passed its check.
    pub(crate) fn new(manifest: &ModelManifest) -> Self {
        assert!(manifest.segments_per_object > 0, "an object holds at least one segment");
        assert_eq!(manifest.order.len(), manifest.segments.len(), "each segment has one position");
        let mut positions = vec![0; manifest.order.len()];
        for (position, segment) in manifest.order.iter().enumerate() {
            positions[*segment as usize] = position as u32;
        }
        let per_object = manifest.segments_per_object as usize;
        Self { code: manifest.erasure, nonce: manifest.nonce, per_object, positions }
    }

    /// Returns the number of groups.
    pub(crate) fn groups(&self) -> u32 {
        self.positions.len().div_ceil(self.per_object) as u32
    }

    /// Returns the segments of a group, in the order of its objects.
    pub(crate) fn segments<'a>(&self, manifest: &'a ModelManifest, group: u32) -> &'a [u32] {
        debug_assert!(group < self.groups(), "group {group} of {}", self.groups());
        let first = group as usize * self.per_object;
        let last = (first + self.per_object).min(manifest.order.len());
        &manifest.order[first..last]
    }

    /// Returns the group of a segment, and its position in the group.
    pub(crate) fn position(&self, segment: u32) -> (u32, usize) {
        let position = self.positions[segment as usize] as usize;
        ((position / self.per_object) as u32, position % self.per_object)
    }

    pub(crate) fn object(&self, group: u32, shard: usize) -> Path {
        object_path(self.nonce, group, shard)
    }

    /// Returns the byte ranges of an object of `group` that hold the shards of its segments, in their order.
    pub(crate) fn ranges(&self, manifest: &ModelManifest, group: u32) -> Vec<Range<u64>> {
        let mut at = 0;
        let segments = self.segments(manifest, group).iter();
        let lengths = segments.map(|index| self.shard_length(&manifest.segments[*index as usize]));
        lengths.map(|length| (at, at += length as u64).0..at).collect()
    }

    /// Returns length and digest of the shards in the object of shard `shard` of group `group`; none if there
    /// is no such object.
    pub(crate) fn shards(
        &self,
        manifest: &ModelManifest,
        group: u32,
        shard: usize,
    ) -> Option<Vec<(usize, Digest)>> {
        if group >= self.groups() || shard >= self.code.shards() {
            return None;
        }
        let segments = self.segments(manifest, group).iter();
        let segments = segments.map(|index| &manifest.segments[*index as usize]);
        Some(segments.map(|segment| (self.shard_length(segment), segment.shards[shard])).collect())
    }

    /// Returns the length in bytes of one shard of `segment`.
    pub(crate) fn shard_length(&self, segment: &Segment) -> usize {
        shard_length(self.code, segment.length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_accepted_and_no_others() {
        let nonce = ModelNonce([0xab; 16]);
        let object = object_path(nonce, 0x12, 5).to_string();
        assert_eq!(object, format!("models/ab/{nonce}/00000012-05"));
        let manifest = manifest_path(ModelRoot(Digest([0x0c; 32]))).to_string();
        assert!(is_object_name(&object) && is_object_name(&manifest));
        assert!(object.starts_with(&model_prefix(nonce).to_string()));
        assert_eq!(Name::of(&object), Some(Name::Shard(nonce)));
        assert_eq!(shard_place(&object), Some((0x12, 5)));
        assert_eq!(Name::of(&manifest), Some(Name::Manifest(ModelRoot(Digest([0x0c; 32])))));
        for written in [format!("{object}#1"), format!("{manifest}#23")] {
            assert!(is_leftover_name(&written) && !is_object_name(&written));
            assert_eq!(Name::of(&written), Some(Name::Leftover));
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "/",
            "models",
            "models/ab",
            "../x",
            "models/../../etc/passwd",
            "models//x/y",
            &object.replace("models/ab", "models/ac"),
            &object.to_uppercase(),
            &format!("{object}#1"),
            &format!("{object}/"),
            &format!("/{object}"),
            &format!("manifests/bb/{long}"),
            &format!("manifests/aa/{long}a"),
            &object.replace('-', "/"),
            "secret.txt",
            &format!("{object}#"),
            &format!("{object}#x"),
            &format!("{object}#1#2"),
            &format!("{object}#11111111111"),
            "secret.txt#1",
        ] {
            assert!(!is_object_name(bad), "{bad}");
            assert!(Name::of(bad).is_none_or(|name| name == Name::Leftover && bad.ends_with("#1")), "{bad}");
        }
    }
}
