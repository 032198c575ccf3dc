//! Test of real processes that unpack artifacts into a cache, killed with SIGKILL at many points. A tree is
//! in its place whole or not at all, and what is left goes at the next start.

use model_store::{ArtifactBuilder, ArtifactCache, ArtifactLimits, CachedTree, PackedArtifact};
use protocol::artifact::ArtifactStart;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Environment variable that gives the child its directory.
const DIRECTORY: &str = "QUORATE_TEST_UNPACK_DIRECTORY";
/// Number of files of each artifact.
const FILES: usize = 300;
/// Number of processes that are killed.
const ROUNDS: usize = 12;

/// Packs the artifact that the process unpacks over and over, or the one that is there before.
fn packed(directory: &Path, name: &str) -> PackedArtifact {
    let work = directory.join(name);
    std::fs::create_dir(&work).expect("created");
    let mut builder = ArtifactBuilder::new(&work, ArtifactLimits::default()).expect("a builder");
    for number in 0..FILES {
        let text = format!("{name} {number}").repeat(64);
        let path = format!("d{}/f{number}", number % 7);
        builder.add_file(&path, number == 0, text.as_bytes(), text.len() as u64, &work).expect("added");
    }
    let start = ArtifactStart {
        command: vec!["/d0/f0".into()],
        environment: BTreeMap::new(),
        working_directory: "/".into(),
        architecture: "amd64".into(),
    };
    builder.pack(start).expect("packed")
}

fn cache(directory: &Path) -> ArtifactCache {
    ArtifactCache::open(&directory.join("cache"), 1 << 30).expect("opened")
}

fn is_ready(cache: &ArtifactCache, artifact: &PackedArtifact) -> bool {
    match cache.lookup(artifact.root).expect("looked up") {
        CachedTree::Ready(_) => true,
        CachedTree::Absent => false,
        CachedTree::Changed(fault) => panic!("a torn tree: {fault}"),
    }
}

/// As a child of the test below, unpacks one artifact into the given directory and removes it, until it is
/// killed. Alone, does so once.
#[test]
fn a_process_unpacks_in_the_directory_of_its_environment() {
    let given = std::env::var_os(DIRECTORY).map(PathBuf::from);
    let own = given.is_none().then(|| tempfile::tempdir().expect("a directory"));
    let directory = given.clone().or_else(|| Some(own.as_ref()?.path().to_path_buf())).expect("one of them");
    let work = tempfile::tempdir().expect("a directory");
    let artifact = packed(work.path(), "again");
    let cache = cache(&directory);
    loop {
        let mut out = std::io::stdout().lock();
        // The parent may have stopped reading.
        let _ = writeln!(out, "\nstep").and_then(|()| out.flush());
        drop(out);
        cache.insert(artifact.root, &File::open(&artifact.path).expect("opened")).expect("inserted");
        assert!(is_ready(&cache, &artifact));
        if given.is_none() {
            break;
        }
        let kept = cache.retain(&[earlier_root(&directory)].into()).expect("removed");
        assert_eq!(kept, [artifact.root]);
    }
}

/// Reads the root of the artifact that was there before.
fn earlier_root(directory: &Path) -> protocol::ArtifactRoot {
    let text = std::fs::read_to_string(directory.join("earlier.root")).expect("a root");
    text.parse().expect("a root")
}

#[test]
fn a_process_killed_while_it_unpacks_leaves_no_part_of_a_tree() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let earlier = packed(directory, "earlier");
    std::fs::write(directory.join("earlier.root"), earlier.root.to_string()).expect("written");
    let file = || File::open(&earlier.path).expect("opened");
    cache(directory).insert(earlier.root, &file()).expect("inserted");
    let mut torn = 0;
    for round in 0..ROUNDS {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_process_unpacks_in_the_directory_of_its_environment", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        let out = BufReader::new(process.stdout.take().expect("piped"));
        let steps = out.lines().filter(|line| line.as_ref().is_ok_and(|line| line == "step"));
        assert_eq!(steps.take(1 + round % 4).count(), 1 + round % 4, "it unpacked so often");
        // A different part of the next round is done when the signal arrives.
        for _ in 0..round * 20_000 {
            std::hint::spin_loop();
        }
        process.kill().expect("kill");
        assert_eq!(process.wait().expect("wait").signal(), Some(9));
        let left = std::fs::read_dir(directory.join("cache")).expect("read").flatten();
        torn += left.filter(|at| at.file_name().to_string_lossy().contains('.')).count();
        let cache = cache(directory);
        let names = std::fs::read_dir(directory.join("cache")).expect("read").flatten();
        assert!(names.into_iter().all(|at| !at.file_name().to_string_lossy().contains('.')), "round {round}");
        assert!(is_ready(&cache, &earlier), "round {round}: the earlier tree is untouched");
        cache.retain(&[earlier.root].into()).expect("removed");
    }
    println!("{torn} of {ROUNDS} processes left a part of a tree, and none of it stayed");
}
