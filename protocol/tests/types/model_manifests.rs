//! Properties of model manifests: a sound one passes and can be indexed, one defect makes it fail.

use crate::stored;
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::model::{
    ErasureCode, FILE_ALIGNMENT, ModelFile, ModelManifest, ModelNonce, SEGMENTS_PER_OBJECT_MAX,
    SHARDS_OF_A_KIND_MAX, Segment, StoredKind, is_safe_path,
};
use protocol::{ArtifactRoot, Digest, limits};

/// Returns a sound manifest: files at aligned offsets with gaps, each cut into segments, in a shuffled order.
fn sound() -> impl Strategy<Value = ModelManifest> {
    let file = (vec(1..=limits::SEGMENT_BYTES_MAX as u32, 0..4), 0..3_u64);
    let code = (1..=SHARDS_OF_A_KIND_MAX, 0..=SHARDS_OF_A_KIND_MAX);
    (vec(file, 1..5), code, 1..=SEGMENTS_PER_OBJECT_MAX, any::<[u8; 16]>())
        .prop_map(|(files, (data, parity), segments_per_object, nonce)| {
            let erasure = ErasureCode { data, parity };
            let mut manifest = ModelManifest {
                version: 1,
                name: "tiny".parse().unwrap(),
                kind: StoredKind::Model,
                erasure,
                segments_per_object,
                nonce: ModelNonce(nonce),
                key_commitment: Digest::of(b"key"),
                files: Vec::new(),
                segments: Vec::new(),
                order: Vec::new(),
            };
            for (at, (lengths, gap)) in files.into_iter().enumerate() {
                append(&mut manifest, format!("part-{at}"), &lengths, gap);
            }
            manifest
        })
        .prop_flat_map(|manifest| {
            let order: Vec<u32> = (0..manifest.segments.len() as u32).collect();
            (Just(manifest), Just(order).prop_shuffle())
                .prop_map(|(manifest, order)| ModelManifest { order, ..manifest })
        })
}

/// Appends a file of these segments, some pages behind the last one.
fn append(manifest: &mut ModelManifest, path: String, lengths: &[u32], gap: u64) {
    let offset = manifest.map_bytes().next_multiple_of(FILE_ALIGNMENT) + gap * FILE_ALIGNMENT;
    let mut at = offset;
    for length in lengths {
        manifest.segments.push(Segment {
            offset: at,
            length: *length,
            digest: Digest::of(&at.to_be_bytes()),
            shards: vec![Digest::of(b"shard"); manifest.erasure.shards()],
        });
        at += u64::from(*length);
    }
    manifest.files.push(ModelFile { path, offset, length: at - offset });
}

type Defect = fn(&mut ModelManifest, usize);

/// Defects of a sound manifest that has segments; the number selects a file or a segment.
const DEFECTS: [(&str, Defect); 17] = [
    ("is not known", |m, _| m.version += 1),
    ("one packed file", |m, _| m.kind = StoredKind::Artifact { tree: ArtifactRoot(Digest::of(b"tree")) }),
    ("data shards, expected 1 to 32", |m, _| m.erasure.data = 0),
    ("parity shards, expected 0 to 32", |m, _| m.erasure.parity = 33),
    ("segments per object", |m, _| m.segments_per_object = 0),
    ("segments per object", |m, _| m.segments_per_object = SEGMENTS_PER_OBJECT_MAX + 1),
    ("is not allowed", |m, at| {
        let at = at % m.files.len();
        m.files[at].path.insert(0, '/')
    }),
    ("appears twice", |m, at| m.files.push(m.files[at % m.files.len()].clone())),
    ("unaligned", |m, at| {
        let at = at % m.files.len();
        m.files[at].offset += 1
    }),
    ("overlaps", |m, _| {
        m.files.reverse();
        m.files.push(ModelFile { path: "x".into(), offset: 0, length: 1 })
    }),
    ("shards", |m, at| {
        let at = at % m.segments.len();
        m.segments[at].shards.push(Digest::of(b"more"))
    }),
    ("segment", |m, at| {
        let at = at % m.segments.len();
        m.segments[at].offset += 1
    }),
    ("segment", |m, at| {
        let at = at % m.segments.len();
        m.segments[at].length = 0
    }),
    ("lacks segments", |m, _| drop(m.segments.pop())),
    ("order names", |m, at| {
        let at = at % m.order.len();
        m.order[at] = m.order.len() as u32
    }),
    ("order names", |m, _| m.order.push(0)),
    ("too long", |m, _| m.files.last_mut().unwrap().length = u64::MAX),
];

proptest! {
    #[test]
    fn a_sound_manifest_passes_and_is_measured(manifest in sound()) {
        prop_assert_eq!(manifest.check(), Ok(()));
        let lengths: u64 = manifest.segments.iter().map(|segment| u64::from(segment.length)).sum();
        prop_assert_eq!(manifest.file_bytes(), lengths, "segments cover the files exactly");
        let end = manifest.files.last().map(|file| file.offset + file.length);
        prop_assert_eq!(Some(manifest.map_bytes()), end);
        for file in &manifest.files {
            prop_assert_eq!(manifest.file(&file.path), Some(file));
        }
        prop_assert_eq!(manifest.file("no such file"), None);
    }

    #[test]
    fn one_defect_is_enough(manifest in sound(), defect in 0..DEFECTS.len(), at in 0..100_usize) {
        prop_assume!(!manifest.segments.is_empty());
        let (expected, plant) = DEFECTS[defect];
        let mut damaged = manifest.clone();
        plant(&mut damaged, at);
        let error = damaged.check().expect_err(expected).to_string();
        prop_assert!(error.contains(expected) || expected == "overlaps", "{} for {}", error, expected);
        prop_assert_ne!(damaged.root(), manifest.root(), "a model of another content has another root");
    }

    /// A manifest that passes can be indexed and added up without a further check.
    #[test]
    fn a_manifest_that_passes_is_safe_to_use(manifest in prop_oneof![stored::model_manifest(), sound()]) {
        if manifest.check().is_ok() {
            let end = manifest.map_bytes();
            prop_assert!(manifest.file_bytes() <= end && end <= i64::MAX as u64);
            for index in &manifest.order {
                let segment = &manifest.segments[*index as usize];
                prop_assert!(segment.offset + u64::from(segment.length) <= end);
            }
        }
    }

    /// The rule for paths, written down a second time.
    #[test]
    fn a_safe_path_has_plain_parts(path in prop_oneof!["[ab./\\\\\n]{0,8}", "[a/]{500,520}", ".{0,8}"]) {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
        let expected = path.len() <= 512
            && path.split('/').all(plain)
            && !path.contains(char::is_control);
        prop_assert_eq!(is_safe_path(&path), expected, "{:?}", path);
    }
}
