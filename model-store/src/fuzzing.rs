//! Entry points for the targets in `fuzz/`: parsers of untrusted bytes, with the properties that must hold
//! afterwards. Not part of the interface. Each takes arbitrary bytes, and panics only if a property is
//! violated.

use crate::artifact::{ArtifactBuilder, ArtifactLimits, TarReader, read_index, unpack};
use crate::geometry::{Geometry, Name, is_leftover_name, is_object_name};
use crate::layout::{Extent, cut};
use crate::source::{Flaw, gguf, safetensors};
use protocol::artifact::ArtifactEntry;
use protocol::limits::SEGMENT_BYTES_MAX;
use protocol::model::ModelManifest;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Parses the header of a safetensors file.
pub fn safetensors_header(bytes: &[u8]) {
    covered(safetensors::extents(bytes, bytes.len() as u64), bytes.len() as u64);
}

/// Parses the header of a GGUF file.
pub fn gguf_header(bytes: &[u8]) {
    covered(gguf::extents(bytes, bytes.len() as u64), bytes.len() as u64);
}

/// Checks that the extents of an accepted header cover the file exactly once, as do the segments cut from
/// them.
fn covered(extents: Result<Vec<Extent>, Flaw>, length: u64) {
    let Ok(extents) = extents else { return };
    let mut end = 0;
    for extent in &extents {
        assert!(extent.range.start == end && extent.range.end >= end, "{extent:?} after {end}");
        end = extent.range.end;
    }
    assert_eq!(end, length);
    let mut end = 0;
    for cut in cut(&extents) {
        assert!(cut.range.start == end && cut.range.end > end, "{cut:?} after {end}");
        assert!(cut.range.end - end <= SEGMENT_BYTES_MAX as u64);
        end = cut.range.end;
    }
    assert_eq!(end, length);
}

/// Parses a model's manifest: a manifest that passes its check can be indexed.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = protocol::canonical::from_bytes::<ModelManifest>(bytes, 1 << 20) else { return };
    if manifest.check().is_err() {
        return;
    }
    let geometry = Geometry::new(&manifest);
    let mut seen = 0;
    for group in 0..geometry.groups() {
        let segments = geometry.segments(&manifest, group);
        assert_eq!(geometry.ranges(&manifest, group).len(), segments.len());
        for (position, segment) in segments.iter().enumerate() {
            assert_eq!(geometry.position(*segment), (group, position));
            let segment = &manifest.segments[*segment as usize];
            assert!(segment.offset + u64::from(segment.length) <= manifest.map_bytes());
        }
        seen += segments.len();
        for shard in 0..manifest.erasure.shards() {
            assert!(is_object_name(geometry.object(group, shard).as_ref()));
        }
    }
    assert_eq!(seen, manifest.segments.len());
}

/// Parses a request to the shard service (the name of an object and a byte range), and the service's answer
/// to a listing.
pub fn shard_request(bytes: &[u8]) {
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (name, rest) = bytes.split_at(split);
    if let Ok(name) = std::str::from_utf8(name)
        && Name::of(name).is_some()
    {
        assert!(is_object_name(name) != is_leftover_name(name), "{name}");
        let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
        assert!(std::path::Path::new(name).components().all(plain), "{name} stays below its store");
    }
    crate::service::check_range(rest.get(1..).unwrap_or_default());
    crate::remote::check_page(bytes);
}

/// Number of the next temporary directory of this process.
static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

/// Runs a check in a fresh directory that holds these bytes as `input`, and removes it.
fn with_file(bytes: &[u8], check: impl FnOnce(&Path)) {
    let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("quorate-fuzz-{}-{number}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory of its own");
    std::fs::write(directory.join("input"), bytes).expect("a file of its own");
    check(&directory);
    std::fs::remove_dir_all(directory).expect("nothing but its own files");
}

/// Returns the sorted names in a directory.
fn names_in(directory: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

/// Reads a container image. Every entry that the archive's reader returns is a range of the archive, after
/// the one before; and an image, accepted or not, creates nothing but its spool.
pub fn image_archive(bytes: &[u8]) {
    let (mut reader, mut end) = (TarReader::new(bytes), 0);
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.offset >= end + 512, "a header precedes the content");
        let mut content = Vec::new();
        if reader.read_to_end(&mut content).is_err() {
            break;
        }
        assert_eq!(content.len() as u64, entry.length);
        end = entry.offset + entry.length;
        assert!(bytes[entry.offset as usize..end as usize] == content, "the content is where it should be");
    }
    with_file(bytes, |directory| {
        let mut builder = ArtifactBuilder::new(directory, ArtifactLimits::default()).expect("a builder");
        let _ = builder.add_image(&directory.join("input"), None);
        assert_eq!(names_in(directory), ["input", "spool"]);
    });
}

/// Unpacks an artifact: a tree appears in its own directory, or the bytes are refused.
pub fn packed_artifact(bytes: &[u8]) {
    with_file(bytes, |directory| {
        let file = File::open(directory.join("input")).expect("the file");
        let Ok((index, contents)) = read_index(&file) else { return };
        assert_eq!(contents + index.file_bytes(), bytes.len() as u64);
        let unpacked = unpack(&file, index.root(), &directory.join("tree"));
        assert_eq!(names_in(directory), ["input", "tree"]);
        if unpacked.is_ok() {
            let place = |entry: &ArtifactEntry| directory.join("tree").join(&entry.path);
            assert!(index.entries.iter().all(|entry| place(entry).symlink_metadata().is_ok()));
        }
    });
}

/// The same entry points on mutated valid input, in every test run; the fuzzer covers more.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Gguf, ImageWriter, TarWriter};
    use crate::wire::{ListPage, ListedObject};
    use proptest::prelude::*;
    use protocol::Digest;
    use protocol::model::{ErasureCode, ModelFile, ModelNonce, Segment};

    fn sound_manifest() -> Vec<u8> {
        let segment = |offset, length| {
            let digest = Digest::of(b"bytes");
            Segment { offset, length, digest, shards: vec![digest; 3] }
        };
        let file = |path: &str, offset, length| ModelFile { path: path.into(), offset, length };
        let manifest = ModelManifest {
            version: 1,
            name: "tiny".parse().expect("a name"),
            kind: protocol::model::StoredKind::Model,
            erasure: ErasureCode { data: 2, parity: 1 },
            segments_per_object: 2,
            nonce: ModelNonce([7; 16]),
            key_commitment: Digest::of(b"key"),
            files: vec![file("config.json", 0, 100), file("model.safetensors", 4096, 3000)],
            segments: vec![segment(0, 100), segment(4096, 1000), segment(5096, 2000)],
            order: vec![0, 2, 1],
        };
        assert_eq!(manifest.check(), Ok(()));
        protocol::canonical::to_bytes(&manifest)
    }

    fn sound_page() -> Vec<u8> {
        let name = crate::geometry::object_path(ModelNonce([7; 16]), 1, 2).to_string();
        let object = |name, modified_ms| ListedObject { name, bytes: 1, modified_ms };
        let objects = vec![object(format!("{name}#1"), 0), object(name, u64::MAX)];
        protocol::canonical::to_bytes(&ListPage { objects, more: true })
    }

    fn layer() -> TarWriter {
        TarWriter::default().program("bin/run").link("bin/sh", "run").file(".wh.old", b"")
    }

    fn sound_image() -> Vec<u8> {
        ImageWriter::new(vec![layer()]).docker()
    }

    fn sound_artifact() -> Vec<u8> {
        let work = tempfile::tempdir().expect("a directory");
        let image = work.path().join("image.tar");
        std::fs::write(&image, sound_image()).expect("written");
        let mut builder = ArtifactBuilder::new(work.path(), ArtifactLimits::default()).expect("a builder");
        let start = builder.add_image(&image, None).expect("an image");
        let packed = builder.pack(protocol::artifact::ArtifactStart {
            command: start.command,
            environment: start.environment,
            working_directory: start.working_directory,
            architecture: start.architecture,
        });
        std::fs::read(packed.expect("packed").path).expect("read")
    }

    #[test]
    fn an_image_and_an_artifact_pass_unchanged() {
        image_archive(&sound_image());
        packed_artifact(&sound_artifact());
    }

    #[test]
    fn a_page_may_claim_any_time() {
        crate::remote::check_page(&sound_page());
    }

    proptest! {
        #[test]
        fn mutated_input_violates_no_property(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
            which in 0..7_usize,
        ) {
            let request = format!("{}\nbytes=3-9", crate::geometry::object_path(ModelNonce([1; 16]), 0, 0));
            let (mut bytes, check): (Vec<u8>, fn(&[u8])) = match which {
                0 => (crate::testing::safetensors(&[("a", 30), ("b", 0), ("c", 7)]), safetensors_header),
                1 => (Gguf::of(&[("a", 30), ("b", 0), ("c", 7)]).bytes(), gguf_header),
                2 => (sound_manifest(), manifest),
                3 => (sound_page(), shard_request),
                4 => (sound_image(), image_archive),
                5 => (sound_artifact(), packed_artifact),
                _ => (request.into_bytes(), shard_request),
            };
            let length = bytes.len();
            for (at, value) in &edits {
                bytes[at.index(length)] = *value;
            }
            check(&bytes);
            check(&bytes[..cut.index(length)]);
        }
    }
}
