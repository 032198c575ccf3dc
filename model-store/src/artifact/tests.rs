//! Tests of artifacts from an image or files to a tree on a node: one root for one tree, and images that are
//! refused.

use super::*;
use crate::testing::{ImageWriter, ModelFixture, TarWriter, gzip};
use crate::{ImportOptions, MapDestination, import};
use protocol::artifact::{ArtifactEntry, ArtifactStart, EntryKind};
use protocol::error_code::{self as code, ErrorCode};
use protocol::model::{ModelNonce, StoredKind};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

fn start_of(image: ImageStart) -> ArtifactStart {
    ArtifactStart {
        command: image.command,
        environment: image.environment,
        working_directory: image.working_directory,
        architecture: image.architecture,
    }
}

/// Packs an image in `work`.
fn pack_in(work: &Path, image: &[u8], limits: ArtifactLimits) -> Result<PackedArtifact, ArtifactError> {
    fs::write(work.join("image.tar"), image).expect("written");
    let mut builder = ArtifactBuilder::new(work, limits)?;
    let start = builder.add_image(&work.join("image.tar"), Some("amd64"))?;
    builder.pack(start_of(start))
}

/// Packs an image, and returns the index and the packed bytes.
fn packed(image: &[u8]) -> (protocol::artifact::ArtifactIndex, Vec<u8>) {
    let work = tempfile::tempdir().expect("a directory");
    let packed = pack_in(work.path(), image, ArtifactLimits::default()).expect("packed");
    let names: Vec<_> = fs::read_dir(work.path()).expect("read").flatten().map(|at| at.file_name()).collect();
    assert_eq!(names.len(), 2, "the image and the packed file, and nothing of the image's tree: {names:?}");
    (packed.index, fs::read(packed.path).expect("read"))
}

fn refused(image: &[u8], limits: ArtifactLimits) -> ArtifactError {
    let work = tempfile::tempdir().expect("a directory");
    pack_in(work.path(), image, limits).expect_err("refused")
}

/// Returns the lines of an index: a kind and a path each.
fn listed(index: &protocol::artifact::ArtifactIndex) -> Vec<String> {
    let line = |entry: &ArtifactEntry| match &entry.kind {
        EntryKind::Directory => format!("d {}", entry.path),
        EntryKind::File { executable, length, .. } => {
            format!("{} {} {length}", if *executable { "x" } else { "f" }, entry.path)
        }
        EntryKind::Link { target } => format!("l {} {target}", entry.path),
    };
    index.entries.iter().map(line).collect()
}

fn base() -> TarWriter {
    TarWriter::default().directory("bin/").program("bin/run").link("bin/sh", "/bin/run")
}

#[test]
fn the_same_tree_has_the_same_root_whatever_its_layers() {
    let flat = TarWriter::default()
        .file("./lib/x", b"library")
        .link("bin/sh", "/bin/run")
        .directory("./")
        .entry(b'5', "srv", "", 0o1777, b"")
        .entry(b'0', "bin/run", "", 0o4711, b"#!/bin/sh\n");
    let layered = vec![
        base().file("lib/old", b"1").file("lib/x", b"draft").file("srv/cache/a", b"2").file("gone/b", b"3"),
        TarWriter::default().file("lib/x", b"library").file(".wh.gone", b"").file("lib/.wh.old", b""),
        TarWriter::default().file("srv/.wh..wh..opq", b""),
    ];
    let (index, bytes) = packed(&ImageWriter::new(vec![flat]).docker());
    let mut other = ImageWriter::new(layered);
    other.is_compressed = true;
    let (other_index, other_bytes) = packed(&other.oci());
    assert_eq!(listed(&index), ["d bin", "x bin/run 10", "l bin/sh /bin/run", "d lib", "f lib/x 7", "d srv"]);
    assert_eq!(other_index, index);
    assert_eq!(other_index.root(), index.root());
    assert!(other_bytes == bytes, "one tree, one byte string");
    let (changed, _) =
        packed(&ImageWriter::new(vec![base().file("lib/x", b"Library").directory("srv")]).oci());
    assert_ne!(changed.root(), index.root());
}

#[test]
fn two_orders_of_files_pack_to_the_same_bytes() {
    let files = [("b/run", true, "#!"), ("a", false, "text"), ("b/c/d", false, ""), ("b-", false, "x")];
    let start = ArtifactStart {
        command: vec!["run".into()],
        environment: BTreeMap::from([("PATH".into(), "/x:/b".into())]),
        working_directory: "/b/c".into(),
        architecture: "amd64".into(),
    };
    let build = |order: &mut dyn Iterator<Item = &(&str, bool, &str)>| {
        let work = tempfile::tempdir().expect("a directory");
        let mut builder = ArtifactBuilder::new(work.path(), ArtifactLimits::default()).expect("a builder");
        for (path, executable, text) in order {
            let added =
                builder.add_file(path, *executable, text.as_bytes(), text.len() as u64, Path::new("test"));
            added.expect("added");
        }
        let packed = builder.pack(start.clone()).expect("packed");
        (packed.root, fs::read(packed.path).expect("read"))
    };
    let (root, bytes) = build(&mut files.iter());
    assert!(build(&mut files.iter().rev()) == (root, bytes.clone()));
    // The form on disks: a change of it needs another version.
    assert_eq!(&bytes[..16], b"quorate-artifact");
    let length = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
    assert_eq!(
        bytes[24 + length as usize..],
        *b"textx#!",
        "contents in the order of the index: a, b-, b/run"
    );
}

#[test]
fn whiteouts_and_replacements_follow_the_layers() {
    let upper = |archive: TarWriter| {
        let lower = base().file("d/a", b"1").file("d/e/f", b"2").link("s", "d");
        let (index, _) = packed(&ImageWriter::new(vec![lower, archive]).docker());
        let base = ["d bin", "x bin/run 10", "l bin/sh /bin/run", "d srv"];
        let others: Vec<String> =
            listed(&index).into_iter().filter(|l| !base.contains(&l.as_str())).collect();
        others.join(", ")
    };
    let new = TarWriter::default;
    let cases = [
        (new(), "d d, f d/a 1, d d/e, f d/e/f 1, l s d"),
        (new().file("d/.wh.a", b""), "d d, d d/e, f d/e/f 1, l s d"),
        (new().file(".wh.d", b""), "l s d"),
        (new().file(".wh.d", b"").file("d/n", b"new"), "d d, f d/n 3, l s d"),
        (new().file("d/n", b"new").file(".wh.d", b""), "d d, f d/n 3, l s d"),
        (new().file("d/n", b"new").file("d/.wh..wh..opq", b""), "d d, f d/n 3, l s d"),
        (new().file(".wh.s", b"").file(".wh.absent", b""), "d d, f d/a 1, d d/e, f d/e/f 1"),
        (new().file(".wh..wh.plnk", b""), "d d, f d/a 1, d d/e, f d/e/f 1, l s d"),
        (new().file("s/.wh.a", b""), "d d, f d/a 1, d d/e, f d/e/f 1, l s d"),
        (new().file("d", b"file"), "f d 4, l s d"),
        (new().directory("s").file("s/x", b""), "d d, f d/a 1, d d/e, f d/e/f 1, d s, f s/x 0"),
        (new().entry(b'1', "h", "./d/a", 0, b""), "d d, f d/a 1, d d/e, f d/e/f 1, f h 1, l s d"),
    ];
    for (archive, expected) in cases {
        assert_eq!(upper(archive), expected);
    }
}

#[test]
fn an_image_that_leads_out_or_holds_devices_is_refused() {
    let deep = format!("{}x", "d/".repeat(64));
    let long = format!("{}/x", "n".repeat(256));
    let new = TarWriter::default;
    let cases: [(&str, TarWriter, ErrorCode); 20] = [
        ("..", new().file("../x", b""), code::ARTIFACT_PATH_REFUSED),
        ("`..` within", new().file("a/../../x", b""), code::ARTIFACT_PATH_REFUSED),
        ("an absolute path", new().file("/etc/x", b""), code::ARTIFACT_PATH_REFUSED),
        ("a file for a root", new().file(".", b"x"), code::ARTIFACT_PATH_REFUSED),
        ("control characters", new().file("a\nb", b""), code::ARTIFACT_PATH_REFUSED),
        ("depth", new().file(&deep, b""), code::ARTIFACT_PATH_REFUSED),
        ("a long name", new().file(&long, b""), code::ARTIFACT_PATH_REFUSED),
        ("a file below a file", new().file("a", b"").file("a/b", b""), code::ARTIFACT_PATH_REFUSED),
        ("a file below a link", new().link("a", "/bin").file("a/b", b""), code::ARTIFACT_PATH_REFUSED),
        ("a whiteout of nothing", new().file(".wh.", b""), code::ARTIFACT_PATH_REFUSED),
        ("a whiteout of the parent", new().file("a/.wh...", b""), code::ARTIFACT_PATH_REFUSED),
        ("a whiteout outside", new().file("../.wh.x", b""), code::ARTIFACT_PATH_REFUSED),
        ("a link outward", new().link("a/b", "../../x"), code::ARTIFACT_LINK_REFUSED),
        ("an absolute link outward", new().link("a", "/../x"), code::ARTIFACT_LINK_REFUSED),
        (
            "a hard link outward",
            new().entry(b'1', "a", "../../etc/passwd", 0, b""),
            code::ARTIFACT_LINK_REFUSED,
        ),
        ("a hard link to a directory", new().entry(b'1', "a", "bin", 0, b""), code::ARTIFACT_LINK_REFUSED),
        ("an absolute hard link", new().entry(b'1', "a", "/bin/run", 0, b""), code::ARTIFACT_LINK_REFUSED),
        ("a character device", new().entry(b'3', "dev/mem", "", 0o600, b""), code::ARTIFACT_DEVICE_REFUSED),
        ("a block device", new().entry(b'4', "dev/sda", "", 0o600, b""), code::ARTIFACT_DEVICE_REFUSED),
        ("a pipe", new().entry(b'6', "run/p", "", 0o600, b""), code::ARTIFACT_DEVICE_REFUSED),
    ];
    for (what, archive, expected) in cases {
        let image = ImageWriter::new(vec![base(), archive]);
        for bytes in [image.docker(), image.oci()] {
            let error = refused(&bytes, ArtifactLimits::default());
            assert_eq!(error.code(), expected, "{what}: {error}");
        }
    }
}

#[test]
fn an_image_that_contradicts_itself_is_refused() {
    let image = ImageWriter::new(vec![base().file("data", &[7; 4000])]);
    let mut other = image.clone();
    other.architecture = "arm64".into();
    let plain = TarWriter::default().file("x", b"");
    // A byte of the layer's content, and one after the end of its archive.
    let flipped = |bytes: Vec<u8>| {
        let mut bytes = bytes;
        let at = bytes.windows(64).position(|window| window == [7; 64]).expect("the content");
        bytes[at + 9] ^= 1;
        bytes
    };
    let replaced = |bytes: Vec<u8>, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = bytes;
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text");
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let zstd = ImageWriter { layers: vec![b"\x28\xb5\x2f\xfdzstd".to_vec()], ..image.clone() };
    let cut = image.docker();
    let twice = plain.clone().file("x", b"");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("neither", plain.finish()),
        ("appears twice", twice.finish()),
        ("another digest", flipped(image.docker())),
        ("another digest", flipped(image.oci())),
        ("no member", replaced(image.docker(), "\"0/layer.tar\"", "\"1/layer.tar\"")),
        ("layers", replaced(image.docker(), "[\"0/layer.tar\"]", "[             ]")),
        ("ends early", cut[..cut.len() - 1024].to_vec()),
        ("zstd", zstd.docker()),
        ("not one", other.oci()),
        ("not `amd64`", other.docker()),
        ("another size or digest", replaced(image.oci(), "\"os\":\"linux\"", "\"os\":\"linuz\"")),
    ];
    for (expected, bytes) in cases {
        let error = refused(&bytes, ArtifactLimits::default());
        assert_eq!(error.code(), code::ARTIFACT_IMAGE_INVALID, "{error}");
        assert!(error.to_string().contains(expected), "`{error}` for `{expected}`");
    }
    packed(&image.docker());
    packed(&image.oci());
}

#[test]
fn every_limit_ends_an_image() {
    let many = |count: usize| {
        let add = |archive: TarWriter, number| archive.file(&format!("many/{number}"), b"1234567890");
        (0..count).fold(base(), add)
    };
    let image = ImageWriter::new(vec![many(20), TarWriter::default().file("z", b"")]);
    let unlimited = ArtifactLimits::default();
    let limits = [
        ("more than 12 entries", ArtifactLimits { entries: 12, ..unlimited }),
        ("more than 100 bytes", ArtifactLimits { bytes: 100, ..unlimited }),
        ("2 layers, more than 1", ArtifactLimits { layers: 1, ..unlimited }),
        ("more than 2 members", ArtifactLimits { members: 2, ..unlimited }),
        ("too many entries", ArtifactLimits { layer_entries: 10, ..unlimited }),
        ("more bytes than", ArtifactLimits { layer_bytes: 8192, ..unlimited }),
    ];
    for (expected, limits) in limits {
        let error = refused(&image.docker(), limits);
        assert_eq!(error.code(), code::ARTIFACT_TOO_LARGE, "{error}");
        assert!(error.to_string().contains(expected), "`{error}` for `{expected}`");
    }
    assert!(
        unlimited.entries < 1_000_000 && unlimited.layer_entries < 1_000_000,
        "a million files are too many"
    );
    // A layer that unpacks to a thousand times its size ends at the limit, not at the end of the disk.
    let mut bomb = ImageWriter::new(vec![base().file("zeros", &vec![0; 8 << 20])]);
    bomb.is_compressed = true;
    assert!(gzip(&bomb.layers[0]).len() < 100_000, "it is small in the archive");
    let error = refused(&bomb.oci(), ArtifactLimits { layer_bytes: 1 << 20, ..unlimited });
    assert_eq!(error.code(), code::ARTIFACT_TOO_LARGE, "{error}");
    packed(&image.docker());
}

#[test]
fn an_entry_point_must_be_an_executable_file_of_the_tree() {
    let with = |process: serde_json::Value| {
        let layer =
            base().file("bin/text", b"x").link("loop", "loop").link("usr", "bin/.").link("run", "/usr/sh");
        let mut image = ImageWriter::new(vec![layer]);
        image.process = process;
        let work = tempfile::tempdir().expect("a directory");
        pack_in(work.path(), &image.docker(), ArtifactLimits::default())
    };
    use serde_json::json;
    let good = [
        json!({ "Cmd": ["/bin/run"] }),
        json!({ "Entrypoint": ["run", "-x"], "Cmd": ["y"], "Env": ["PATH=/none:/bin"] }),
        json!({ "Entrypoint": ["/run"] }),
        json!({ "Entrypoint": ["./sh"], "WorkingDir": "/usr" }),
        json!({ "Entrypoint": ["/usr/../bin/run"], "WorkingDir": "/new/place", "User": "root" }),
    ];
    for process in good {
        let packed = with(process.clone()).unwrap_or_else(|error| panic!("{process}: {error}"));
        assert!(
            process["WorkingDir"] != "/new/place" || listed(&packed.index).contains(&"d new/place".into())
        );
    }
    let bad = [
        json!({}),
        json!({ "Entrypoint": [] }),
        json!({ "Entrypoint": ["/bin/text"] }),
        json!({ "Entrypoint": ["/bin"] }),
        json!({ "Entrypoint": ["/loop"] }),
        json!({ "Entrypoint": ["/bin/run/x"] }),
        json!({ "Entrypoint": ["run"] }),
        json!({ "Entrypoint": ["/etc/none"] }),
        json!({ "Entrypoint": [""] }),
    ];
    for process in bad {
        let error = with(process.clone()).err().unwrap_or_else(|| panic!("{process} is taken"));
        assert_eq!(error.code(), code::ARTIFACT_ENTRY_POINT_MISSING, "{process}: {error}");
    }
    let error = with(json!({ "Cmd": ["/bin/run"], "WorkingDir": "/bin/text" })).expect_err("a file");
    assert_eq!(error.code(), code::ARTIFACT_PATH_REFUSED);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let work = tempfile::tempdir().expect("a directory");
    let mut builder = ArtifactBuilder::new(work.path(), ArtifactLimits::default()).expect("a builder");
    let missing = builder.add_image(&work.path().join("none.tar"), None).expect_err("missing");
    assert_eq!(missing.code(), code::ARTIFACT_UNREADABLE);
    let short = builder.add_file("x", false, &b"1"[..], 2, Path::new("grown")).expect_err("short");
    assert_eq!(short.code(), code::ARTIFACT_UNREADABLE);
    assert!(short.to_string().contains("grown"), "{short}");
    let again = ArtifactBuilder::new(work.path(), ArtifactLimits::default()).expect_err("in use");
    assert_eq!(again.code(), code::ARTIFACT_UNREADABLE);
}

/// A packed file of which any byte was changed is refused or is the artifact of another root.
#[test]
fn a_packed_file_is_unpacked_only_as_its_root_says() {
    let work = tempfile::tempdir().expect("a directory");
    let image = ImageWriter::new(vec![base().file("data", b"content")]).docker();
    let packed = pack_in(work.path(), &image, ArtifactLimits::default()).expect("packed");
    let file = OpenOptions::new().read(true).write(true).open(&packed.path).expect("opened");
    let length = file.metadata().expect("metadata").len();
    let attempt = |number: u64| {
        let to = work.path().join(format!("tree-{number}"));
        let outcome = unpack(&file, packed.root, &to).map(drop);
        let _ = fs::remove_dir_all(to);
        outcome
    };
    attempt(length).expect("the unchanged file");
    for at in (0..length).step_by(3).chain([length - 1]) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x11], at).expect("written");
        let error = attempt(at).expect_err("changed");
        assert_eq!(error.code(), code::ARTIFACT_INVALID, "byte {at}: {error}");
        file.write_all_at(&byte, at).expect("written");
    }
    file.set_len(length - 1).expect("cut");
    assert_eq!(attempt(0).expect_err("cut").code(), code::ARTIFACT_INVALID);
    file.set_len(length + 1).expect("longer");
    assert_eq!(attempt(0).expect_err("longer").code(), code::ARTIFACT_INVALID);
}

/// From an image over stores to a tree on a node; a changed byte of the tree is fetched again.
#[tokio::test]
async fn an_artifact_is_stored_like_a_model_and_unpacked_as_it_was() {
    let world = ModelFixture::new();
    let work = tempfile::tempdir().expect("a directory");
    let big = crate::testing::seeded("big", 3 << 20);
    let image = ImageWriter::new(vec![base().file("srv/big", &big)]).oci();
    let packed = pack_in(work.path(), &image, ArtifactLimits::default()).expect("packed");
    let stores = world.stores(3);
    let options = world.options(2, 1, 7);
    let imported = import(&packed.path, options, &stores, &world.key, &world.pool, |_| ()).await;
    let imported = imported.expect("imported");
    assert_eq!(imported.record.kind, StoredKind::Artifact { tree: packed.root });
    assert_eq!((imported.record.kind.name(), imported.record.architecture.as_str()), ("artifact", "amd64"));
    assert_eq!(imported.manifest.check(), Ok(()));
    let twin = ImportOptions { nonce: ModelNonce([8; 16]), ..world.options(2, 1, 7) };
    let twin = import(&packed.path, twin, &stores, &world.key, &world.pool, |_| ()).await.expect("imported");
    assert_eq!(twin.record.kind, imported.record.kind, "the same tree, under another key and nonce");
    let cache = ArtifactCache::open(&work.path().join("cache"), 1 << 30).expect("opened");
    let reader = world.reader(&imported.manifest, &world.placed(&imported, &stores));
    let fetch = async |name: &str| {
        let path = work.path().join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("created");
        file.set_len(imported.manifest.map_bytes()).expect("room");
        let map = MapDestination::map(&file, imported.manifest.map_bytes()).expect("mapped");
        reader.fill(Arc::new(map), Arc::new(|_| ())).await.expect("filled");
        cache.insert(packed.root, &File::open(path).expect("opened")).expect("inserted");
    };
    fetch("first").await;
    let CachedTree::Ready(tree) = cache.lookup(packed.root).expect("looked up") else { panic!("ready") };
    let place = tree.path.join("srv/big");
    assert!(fs::read(&place).expect("read") == big);
    drop(tree);
    fs::write(&place, &big[1..]).expect("written");
    let CachedTree::Changed(fault) = cache.lookup(packed.root).expect("looked up") else { panic!("changed") };
    assert_eq!(fault.path, "srv/big");
    fetch("second").await;
    assert!(matches!(cache.lookup(packed.root).expect("looked up"), CachedTree::Ready(_)));
    assert!(fs::read(&place).expect("read") == big);
}
