//! Tests of the cache: the choice of evictions, and what becomes of trees that change, are in use, or were
//! left by a crash.

use super::*;
use crate::artifact::{ArtifactBuilder, ArtifactLimits, PackedArtifact};
use proptest::prelude::*;
use protocol::artifact::ArtifactStart;
use protocol::error_code as code;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;
use tempfile::TempDir;

/// Returns a packed artifact of a program, a link and a file with this content.
fn packed(work: &Path, content: &str) -> PackedArtifact {
    let mut builder = ArtifactBuilder::new(work, ArtifactLimits::default()).expect("a builder");
    let add = |builder: &mut ArtifactBuilder, path: &str, executable: bool, bytes: &str| {
        builder.add_file(path, executable, bytes.as_bytes(), bytes.len() as u64, Path::new("test"))
    };
    add(&mut builder, "bin/run", true, "#!/bin/sh\n").expect("added");
    add(&mut builder, "data", false, content).expect("added");
    builder.add_link("bin/sh", "run").expect("added");
    let start = ArtifactStart {
        command: vec!["/bin/run".into()],
        environment: BTreeMap::new(),
        working_directory: "/".into(),
        architecture: "amd64".into(),
    };
    builder.pack(start).expect("packed")
}

struct CacheFixture {
    directory: TempDir,
    artifacts: Vec<PackedArtifact>,
    _work: Vec<TempDir>,
}

impl CacheFixture {
    fn new(count: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let work: Vec<TempDir> = (0..count).map(|_| tempfile::tempdir().expect("a directory")).collect();
        let artifacts =
            work.iter().enumerate().map(|(number, work)| packed(work.path(), &number.to_string())).collect();
        Self { directory, artifacts, _work: work }
    }

    fn open(&self, bytes_max: u64) -> ArtifactCache {
        ArtifactCache::open(self.directory.path(), bytes_max).expect("opened")
    }

    fn insert(&self, cache: &ArtifactCache, number: usize) -> Result<(), ArtifactError> {
        let artifact = &self.artifacts[number];
        cache.insert(artifact.root, &File::open(&artifact.path).expect("the packed file"))
    }

    fn lookup(&self, cache: &ArtifactCache, number: usize) -> CachedTree {
        cache.lookup(self.artifacts[number].root).expect("looked up")
    }

    fn is_ready(&self, cache: &ArtifactCache, number: usize) -> bool {
        matches!(self.lookup(cache, number), CachedTree::Ready(_))
    }

    fn place(&self, number: usize) -> PathBuf {
        self.directory.path().join(self.artifacts[number].root.to_string())
    }
}

#[test]
fn a_tree_is_kept_and_read_back_before_every_use() {
    let fixture = CacheFixture::new(1);
    let cache = fixture.open(1 << 20);
    assert!(matches!(fixture.lookup(&cache, 0), CachedTree::Absent));
    fixture.insert(&cache, 0).expect("inserted");
    fixture.insert(&cache, 0).expect("there already");
    let CachedTree::Ready(tree) = fixture.lookup(&cache, 0) else { panic!("the tree is there") };
    assert_eq!(fs::read_to_string(tree.path.join("data")).expect("a file"), "0");
    assert_eq!(fs::read_link(tree.path.join("bin/sh")).expect("a link"), Path::new("run"));
    assert_eq!(*tree.index, fixture.artifacts[0].index);
    // Another start of the agent finds it again.
    drop((tree, cache));
    assert!(fixture.is_ready(&fixture.open(1 << 20), 0));
}

/// Each change of the tree, and how it is reported. The positive control is the same tree before the change.
#[test]
fn every_change_of_a_tree_is_found_and_the_tree_is_unpacked_again() {
    type Change = fn(&Path);
    let changes: [(&str, &str, Change); 13] = [
        ("data", "has other bytes", |tree| fs::write(tree.join("data"), "1").expect("written")),
        ("data", "has another length", |tree| fs::write(tree.join("data"), "00").expect("written")),
        ("data", "is missing", |tree| fs::remove_file(tree.join("data")).expect("removed")),
        ("data", "has another mode", |tree| set_mode(&tree.join("data"), 0o755)),
        ("bin/run", "has another mode", |tree| set_mode(&tree.join("bin/run"), 0o4755)),
        ("bin", "has another mode", |tree| set_mode(&tree.join("bin"), 0o777)),
        ("bin/sh", "leads elsewhere", |tree| {
            fs::remove_file(tree.join("bin/sh")).expect("removed");
            symlink("/bin/sh", tree.join("bin/sh")).expect("linked");
        }),
        ("bin/sh", "is no link", |tree| {
            fs::remove_file(tree.join("bin/sh")).expect("removed");
            fs::write(tree.join("bin/sh"), "x").expect("written");
        }),
        ("data", "is no file", |tree| {
            fs::remove_file(tree.join("data")).expect("removed");
            symlink("bin/run", tree.join("data")).expect("linked");
        }),
        ("bin", "is no directory", |tree| {
            fs::rename(tree.join("bin"), tree.join("elsewhere")).expect("renamed");
            symlink("elsewhere", tree.join("bin")).expect("linked");
        }),
        ("bin/other", "is not in the artifact", |tree| {
            fs::write(tree.join("bin/other"), "").expect("written")
        }),
        ("index", "has another digest than the root", |tree| {
            fs::write(tree.with_file_name("index"), "x").expect("written");
        }),
        ("index", "cannot be read", |tree| fs::remove_file(tree.with_file_name("index")).expect("removed")),
    ];
    let fixture = CacheFixture::new(1);
    let cache = fixture.open(1 << 20);
    for (path, what, change) in changes {
        fixture.insert(&cache, 0).expect("inserted");
        assert!(fixture.is_ready(&cache, 0), "before: {what}");
        change(&fixture.place(0).join("tree"));
        let CachedTree::Changed(fault) = fixture.lookup(&cache, 0) else { panic!("not found: {what}") };
        assert_eq!(fault, TreeFault { path: path.into(), what });
        assert!(matches!(fixture.lookup(&cache, 0), CachedTree::Absent), "removed: {what}");
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

#[test]
fn the_tree_unused_for_longest_goes_and_trees_in_use_stay() {
    let fixture = CacheFixture::new(4);
    // Each tree takes four entries and two files: six blocks.
    let cache = fixture.open(3 * 6 * BLOCK_BYTES);
    for number in 0..3 {
        fixture.insert(&cache, number).expect("inserted");
        let index = File::open(fixture.place(number).join("index")).expect("an index");
        index.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).expect("set");
    }
    let held = fixture.lookup(&cache, 0);
    fixture.insert(&cache, 3).expect("inserted");
    assert!(!fixture.place(1).exists(), "the oldest that is not in use");
    assert!(fixture.place(0).exists() && fixture.place(2).exists() && fixture.place(3).exists());
    let others = (fixture.lookup(&cache, 2), fixture.lookup(&cache, 3));
    let full = fixture.insert(&cache, 1).expect_err("all are in use");
    assert_eq!(full.code(), code::ARTIFACT_CACHE_FULL);
    drop((held, others));
    fixture.insert(&cache, 1).expect("there is room again");
}

#[test]
fn unknown_trees_go_unless_they_are_in_use() {
    let fixture = CacheFixture::new(3);
    let cache = fixture.open(1 << 20);
    (0..3).for_each(|number| fixture.insert(&cache, number).expect("inserted"));
    let _held = fixture.lookup(&cache, 1);
    let known = BTreeSet::from([fixture.artifacts[0].root]);
    assert_eq!(cache.retain(&known).expect("removed"), [fixture.artifacts[2].root]);
    assert!(fixture.place(0).exists() && fixture.place(1).exists() && !fixture.place(2).exists());
}

#[test]
fn a_tree_that_another_process_uses_is_not_touched() {
    let fixture = CacheFixture::new(2);
    let cache = fixture.open(6 * BLOCK_BYTES);
    fixture.insert(&cache, 0).expect("inserted");
    let lock = DirectoryLock::take(&fixture.place(0)).expect("opened").expect("free");
    let used = cache.lookup(fixture.artifacts[0].root).expect_err("in use");
    assert_eq!(used.code(), code::ARTIFACT_IN_USE);
    assert_eq!(fixture.insert(&cache, 1).expect_err("no room").code(), code::ARTIFACT_CACHE_FULL);
    drop(lock);
    fixture.insert(&cache, 1).expect("evicted");
}

#[test]
fn leftovers_of_a_crash_go_at_the_start_and_a_foreign_artifact_is_refused() {
    let fixture = CacheFixture::new(2);
    let root = fixture.artifacts[0].root;
    for suffix in [NEW, OLD] {
        let left = fixture.directory.path().join(format!("{root}{suffix}/tree/bin"));
        fs::create_dir_all(&left).expect("created");
        fs::write(left.join("run"), "torn").expect("written");
    }
    let cache = fixture.open(1 << 20);
    let names: Vec<_> = fs::read_dir(fixture.directory.path()).expect("read").flatten().collect();
    assert!(names.iter().all(|entry| entry.file_name() == "lock"), "{names:?}");
    let other = File::open(&fixture.artifacts[1].path).expect("the packed file");
    assert_eq!(cache.insert(root, &other).expect_err("foreign").code(), code::ARTIFACT_INVALID);
    assert!(matches!(fixture.lookup(&cache, 0), CachedTree::Absent));
    fixture.insert(&cache, 0).expect("inserted");
}

proptest! {
    #[test]
    fn evictions_make_room_remove_nothing_in_use_and_no_more_than_needed(
        trees in proptest::collection::vec((0_u64..100, 0_u64..20, any::<bool>()), 0..12),
        needed in 0_u64..200,
        limit in 0_u64..600,
    ) {
        let tree = |(number, (bytes, used, in_use)): (usize, &(u64, u64, bool))| EvictionCandidate {
            root: ArtifactRoot(Digest::of(&number.to_le_bytes())),
            bytes: *bytes,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(*used),
            in_use: *in_use,
        };
        let trees: Vec<EvictionCandidate> = trees.iter().enumerate().map(tree).collect();
        let in_use = total(trees.iter().filter(|tree| tree.in_use));
        match evictions(&trees, needed, limit) {
            Err(bytes) => {
                prop_assert_eq!(bytes, in_use);
                prop_assert!(in_use + needed > limit);
            }
            Ok(gone) => {
                let is_gone = |tree: &&EvictionCandidate| gone.contains(&tree.root);
                let kept = total(trees.iter().filter(|tree| !is_gone(tree)));
                prop_assert!(kept + needed <= limit, "there is room");
                prop_assert!(trees.iter().filter(is_gone).all(|tree| !tree.in_use));
                let last = trees.iter().find(|tree| Some(&tree.root) == gone.last());
                if let Some(last) = last {
                    prop_assert!(kept + last.bytes + needed > limit, "the last one was needed");
                }
                let youngest = trees.iter().filter(is_gone).map(|tree| tree.last_used).max();
                let idle = trees.iter().filter(|tree| !tree.in_use && !is_gone(tree));
                let is_younger = |kept: SystemTime| youngest.is_none_or(|gone| gone <= kept);
                prop_assert!(idle.map(|tree| tree.last_used).all(is_younger));
            }
        }
    }
}
