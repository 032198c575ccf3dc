//! Tests of real importing processes, killed with SIGKILL at many points. Earlier models read correctly, the
//! import can be repeated, and garbage collection removes every leftover.

use model_store::{
    Context, FaultKind, FaultSink, ImportOptions, ImportProgress, Imported, MemoryDestination, ModelKey,
    PlacementRule, Pool, Reader, SWEEP_AGE_DEFAULT, Store, SweepOptions, fetch_manifest, import, open_store,
    sweep,
};
use protocol::model::{ErasureCode, ModelNonce, StoreReference};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Environment variables that give the child its directory and its nonce.
const DIRECTORY: &str = "QUORATE_TEST_IMPORT_DIRECTORY";
const NONCE: &str = "QUORATE_TEST_IMPORT_NONCE";
/// Environment variable that gives the steps after which the child waits: it must not finish before it is
/// killed.
const STEPS: &str = "QUORATE_TEST_IMPORT_STEPS";
/// Number of segments of the sample file.
const SEGMENTS: u64 = 12;
/// Number of processes that are killed.
const ROUNDS: u8 = 24;
/// Seed of the steps at which processes are killed.
const SEED: u64 = 0x51_0a_7e;

fn key() -> ModelKey {
    ModelKey::from_bytes([9; 32])
}

fn stores(directory: &Path) -> Vec<Store> {
    let open = |number: usize| {
        let url = format!("file://{}", directory.join(format!("store-{number}")).display());
        let reference = StoreReference { url, failure_domain: format!("domain-{number}") };
        open_store(&reference, &Context::new()).expect("a store")
    };
    (0..3).map(open).collect()
}

fn source(directory: &Path) -> PathBuf {
    directory.join("model.txt")
}

/// Returns a directory with a file of seeded bytes and no stores yet.
fn prepare() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bytes = vec![0; (SEGMENTS as usize - 1) * (1 << 20) + 12_345];
    blake3::Hasher::new_derive_key("killed").finalize_xof().fill(&mut bytes);
    std::fs::write(source(directory.path()), bytes).expect("write");
    directory
}

async fn import_there(
    directory: &Path,
    nonce: u8,
    progress: impl Fn(ImportProgress) + Send + Sync + 'static,
) -> Imported {
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        segments_per_object: 1,
        ..ImportOptions::new("sample".parse().expect("a name"), ModelNonce([nonce; 16]))
    };
    let (stores, pool) = (stores(directory), Pool::new(2));
    import(&source(directory), options, &stores, &key(), &pool, progress).await.expect("imported")
}

async fn reads_right(directory: &Path, imported: &Imported) {
    let (stores, pool) = (stores(directory), Pool::new(2));
    let find = |url: &str| stores.iter().find(|store| store.url() == url).expect("ours").clone();
    let placed: Vec<Store> = imported.record.stores.iter().map(|store| find(&store.url)).collect();
    let manifest = fetch_manifest(imported.record.root, &placed, &pool).await.expect("a manifest");
    let memory = Arc::new(MemoryDestination::new(0, manifest.map_bytes() as usize));
    // A disk may be bypassed because the busy machine makes it slow; no shard may be wrong or missing.
    let damage = Arc::new(Mutex::new(Vec::new()));
    let note = damage.clone();
    let sink: FaultSink = Arc::new(move |fault| note.lock().expect("no panic").push(fault));
    let reader = Reader::open(manifest, &key(), placed, pool, sink).expect("a reader");
    let report = reader.fill(memory.clone(), Arc::new(|_| ())).await.expect("reads");
    assert_eq!(report.segments, SEGMENTS);
    damage.lock().expect("no panic").retain(|fault| fault.kind != FaultKind::Unreachable);
    assert_eq!(*damage.lock().expect("no panic"), []);
    let bytes = Arc::into_inner(memory).expect("done").into_bytes();
    assert!(bytes == std::fs::read(source(directory)).expect("read"), "every byte is right");
}

/// Returns every file of every store, with its length and time: an untouched file does not change.
fn files(directory: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    fn walk(at: &Path, found: &mut BTreeMap<PathBuf, (u64, SystemTime)>) {
        for entry in std::fs::read_dir(at).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = std::fs::metadata(&path).expect("there");
            match metadata.is_dir() {
                true => walk(&path, found),
                false => {
                    found.insert(path, (metadata.len(), metadata.modified().expect("a time")));
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    (0..3).for_each(|number| walk(&directory.join(format!("store-{number}")), &mut found));
    found
}

/// Starts this test program again as the importing process, which runs only the test below.
fn importing_process(directory: &Path, nonce: u8, steps: u64) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "an_import_runs_in_the_directory_of_its_environment", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(NONCE, nonce.to_string())
        .env(STEPS, steps.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start")
}

/// Alone, imports into a directory of its own and reads the model back. As a child of the test below, imports
/// into the given directory, and reports each step until it is killed.
#[tokio::test]
async fn an_import_runs_in_the_directory_of_its_environment() {
    let given = std::env::var_os(DIRECTORY).map(PathBuf::from);
    let nonce = std::env::var(NONCE).map_or(1, |nonce| nonce.parse().expect("a number"));
    let own = given.is_none().then(prepare);
    let directory = given.or_else(|| Some(own.as_ref()?.path().to_path_buf())).expect("one of them");
    let most = std::env::var(STEPS).map_or(u64::MAX, |steps| steps.parse().expect("a number"));
    let steps = AtomicU64::new(0);
    let progress = move |_: ImportProgress| {
        if steps.fetch_add(1, Ordering::SeqCst) >= most {
            loop {
                std::thread::park();
            }
        }
        let mut out = std::io::stdout().lock();
        // The parent may have stopped reading.
        let _ = writeln!(out, "\nstep").and_then(|()| out.flush());
    };
    let imported = import_there(&directory, nonce, progress).await;
    reads_right(&directory, &imported).await;
}

#[tokio::test]
async fn a_process_killed_during_an_import_loses_nothing_and_leaves_no_garbage() {
    let directory = prepare();
    let directory = directory.path();
    let earlier = import_there(directory, 1, |_| ()).await;
    let before = files(directory);
    let mut seed = SEED;
    let (mut cut_short, mut torn) = (0, 0);
    for round in 0..ROUNDS {
        // Knuth's generator; its upper bits are the better ones.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let steps = (seed >> 33) % (SEGMENTS + 1);
        let mut process = importing_process(directory, round + 2, steps);
        let out = BufReader::new(process.stdout.take().expect("piped"));
        let printed = out.lines().filter(|line| line.as_ref().is_ok_and(|line| line == "step"));
        assert_eq!(printed.take(steps as usize).count() as u64, steps, "it was killed after so many steps");
        process.kill().expect("kill");
        let ended = process.wait().expect("wait");
        // The process does not wait after the last step, so it may finish before it is killed.
        assert!(ended.signal() == Some(9) || ended.success() && steps == SEGMENTS, "{ended}");
        cut_short += u8::from(!ended.success());
        let left = files(directory);
        torn += left.keys().filter(|path| path.to_string_lossy().contains('#')).count();
        assert!(before.iter().all(|(path, at)| left.get(path) == Some(at)), "round {round}");
        reads_right(directory, &earlier).await;
        if round % 8 == 7 {
            let again = import_there(directory, 100 + round, |_| ()).await;
            reads_right(directory, &again).await;
        }
        swept(directory, &earlier).await;
        assert_eq!(files(directory), before, "round {round}, killed after {steps} steps");
    }
    println!("{cut_short} of {ROUNDS} processes died in the middle and left {torn} torn files");
}

/// Collects garbage as if two days had passed. Complete imports that are not registered go by decision.
async fn swept(directory: &Path, registered: &Imported) {
    let now = SystemTime::now() + Duration::from_secs(48 * 3600);
    let options = SweepOptions { older_than: SWEEP_AGE_DEFAULT, now, remove: true };
    let (pool, mut forgotten) = (Pool::new(1), BTreeSet::new());
    for _ in 0..2 {
        let registered = vec![(registered.record.root, stores(directory))];
        let register = || async { Ok::<_, std::io::Error>(registered) };
        let report = sweep(&stores(directory), options, &forgotten, &pool, register, |_| ()).await;
        let report = report.expect("swept");
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert_eq!(report.removed, report.garbage);
        forgotten.extend(report.unregistered.into_keys());
    }
}
