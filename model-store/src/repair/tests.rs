//! Tests of repair: every fault is found, rewritten and then sound; lost segments are not touched.

use super::*;
use crate::testing::{Cloud, ModelFixture, OVERSENT_CHUNK_BYTES, Oversender, SimulatedLink, flip};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

async fn world() -> (ModelFixture, Arc<ModelManifest>, Vec<Store>) {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    (world, imported.manifest, placed)
}

fn object(manifest: &ModelManifest, stores: &[Store], group: u32, shard: usize) -> PathBuf {
    let path = crate::geometry::object_path(manifest.nonce, group, shard);
    stores[shard].directory().expect("local").join(path.as_ref())
}

async fn check(world: &ModelFixture, manifest: &Arc<ModelManifest>, stores: &[Store]) -> HealthReport {
    verify(manifest, stores, &world.pool, world.sink(), |_, _| ()).await.expect("a report")
}

async fn mend(world: &ModelFixture, manifest: &Arc<ModelManifest>, stores: &[Store]) -> RepairReport {
    repair(manifest, stores, &world.pool, world.sink(), |_, _| ()).await.expect("a report")
}

#[tokio::test]
async fn a_sound_model_verifies_and_nothing_is_written() {
    let (world, manifest, stores) = world().await;
    let done = std::cell::RefCell::new(Vec::new());
    let progress = |groups, total| done.borrow_mut().push((groups, total));
    let report = verify(&manifest, &stores, &world.pool, world.sink(), progress).await.expect("a report");
    assert!(report.is_sound());
    assert_eq!(report.shards, report.segments * 6);
    let total = done.borrow().len() as u64;
    assert_eq!(done.borrow().last(), Some(&(total, total)));
    let repaired = mend(&world, &manifest, &stores).await;
    assert_eq!((repaired.objects_written, repaired.manifests_written, repaired.bytes_written), (0, 0, 0));
    assert!(repaired.is_complete());
}

#[tokio::test]
async fn corrupt_truncated_and_missing_shards_are_counted_and_rewritten() {
    let (world, manifest, stores) = world().await;
    let (flipped, cut, gone) = (
        object(&manifest, &stores, 0, 0),
        object(&manifest, &stores, 1, 5),
        object(&manifest, &stores, 1, 2),
    );
    let originals: Vec<Vec<u8>> =
        [&flipped, &cut, &gone].iter().map(|path| std::fs::read(path).expect("there")).collect();
    flip(&flipped, 0, 0);
    std::fs::write(&cut, &originals[1][..originals[1].len() - 1]).expect("write");
    std::fs::remove_file(&gone).expect("remove");
    let report = check(&world, &manifest, &stores).await;
    let expected = BTreeMap::from([(FaultKind::Wrong, 1), (FaultKind::Short, 1), (FaultKind::Missing, 3)]);
    assert_eq!(report.faults, expected);
    assert_eq!(report.segments_lost, 0);
    assert_eq!(world.take_faults().len(), 5);
    let repaired = mend(&world, &manifest, &stores).await;
    assert_eq!((repaired.shards_rewritten, repaired.objects_written), (5, 3));
    assert!(repaired.is_complete());
    for (path, original) in [&flipped, &cut, &gone].iter().zip(&originals) {
        assert!(std::fs::read(path).expect("there") == *original, "{}", path.display());
    }
    assert!(check(&world, &manifest, &stores).await.is_sound());
}

#[tokio::test]
async fn two_stores_that_vanished_are_refilled() {
    let (world, manifest, stores) = world().await;
    for lost in [1, 4] {
        let directory = stores[lost].directory().expect("local");
        std::fs::remove_dir_all(directory).expect("remove");
        std::fs::create_dir(directory).expect("a new disk");
    }
    let repaired = mend(&world, &manifest, &stores).await;
    assert_eq!(repaired.shards_rewritten, repaired.found.segments * 2);
    assert_eq!(repaired.manifests_written, 2);
    assert!(repaired.is_complete());
    assert!(check(&world, &manifest, &stores).await.is_sound());
    world.read_all(&manifest, &stores).await.expect("reads");
}

#[tokio::test]
async fn lost_segments_are_reported_and_the_rest_is_repaired() {
    let (world, manifest, stores) = world().await;
    for shard in [0, 1, 2] {
        flip(&object(&manifest, &stores, 0, shard), 3, 3);
    }
    let before = std::fs::read(object(&manifest, &stores, 0, 0)).expect("there");
    flip(&object(&manifest, &stores, 1, 3), 9, 1);
    let repaired = mend(&world, &manifest, &stores).await;
    assert_eq!(repaired.found.segments_lost, 1);
    assert_eq!(repaired.shards_rewritten, 1);
    assert!(!repaired.is_complete());
    assert!(std::fs::read(object(&manifest, &stores, 0, 0)).expect("there") == before, "left alone");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_reported_and_the_others_are_repaired() {
    let (world, manifest, mut stores) = world().await;
    flip(&object(&manifest, &stores, 0, 1), 3, 3);
    let mut reference = stores[0].reference().clone();
    reference.url = "file:///nowhere/at/all".into();
    stores[0] = Store::open_or_closed(&reference, &crate::Context::new());
    let repaired = mend(&world, &manifest, &stores).await;
    assert_eq!(repaired.shards_rewritten, 1);
    assert!(!repaired.is_complete() && !repaired.failures.is_empty());
    assert_eq!(repaired.found.faults[&FaultKind::Unreachable], repaired.found.segments);
}

#[tokio::test]
async fn a_directory_in_an_objects_place_is_rebuilt_and_what_is_in_it_is_kept() {
    let (world, manifest, stores) = world().await;
    let (empty, full) = (object(&manifest, &stores, 0, 1), object(&manifest, &stores, 1, 1));
    let root = stores[2].directory().expect("local");
    for path in [&empty, &full] {
        std::fs::remove_file(path).expect("remove");
        std::fs::create_dir(path).expect("create");
    }
    std::fs::write(full.join("letter"), b"dear circle").expect("write");
    // A file at the path of the directory of all objects.
    std::fs::remove_dir_all(root.join("models")).expect("remove");
    std::fs::write(root.join("models"), b"no directory").expect("write");
    let report = check(&world, &manifest, &stores).await;
    assert_eq!(report.faults.keys().collect::<Vec<_>>(), [&FaultKind::Missing], "{report:?}");
    let repaired = mend(&world, &manifest, &stores).await;
    assert!(repaired.is_complete(), "{repaired:?}");
    assert!(check(&world, &manifest, &stores).await.is_sound());
    assert!(empty.is_file() && full.is_file());
    let aside = full
        .with_file_name(full.file_name().expect("a name").to_str().expect("text").to_string() + ".aside-1");
    assert_eq!(std::fs::read(aside.join("letter")).expect("kept"), b"dear circle");
    assert_eq!(std::fs::read(root.join("models.aside-1")).expect("kept"), b"no directory");
}

/// Returns the most bytes requested and not yet delivered while a model of 40 MB over `data + parity` stores
/// is verified. The link is so slow that every request that is allowed goes out.
async fn most_in_flight(data: u8, parity: u8) -> u64 {
    let world = ModelFixture::simulated(2);
    let cloud = Cloud::new((data + parity).into());
    let imported = world.import_bytes(40_000_000, &cloud.at_hand(&world), data, parity).await;
    let link = SimulatedLink::new(10_000_000, std::time::Duration::from_millis(50));
    let placed = world.placed(&imported, &cloud.behind(&world, &link));
    assert!(check(&world, &imported.manifest, &placed).await.is_sound());
    cloud.gauge.most()
}

#[tokio::test(start_paused = true)]
async fn memory_of_a_verification_does_not_grow_with_the_number_of_stores() {
    let (few, many) = (most_in_flight(4, 2).await, most_in_flight(10, 4).await);
    println!("{few} bytes of 6 stores, {many} bytes of 14");
    assert!(few > BYTES_IN_FLIGHT_MAX / 4, "the link was kept busy: {few}");
    assert!(few.max(many) <= BYTES_IN_FLIGHT_MAX, "{few} and {many}");
}

#[tokio::test(start_paused = true)]
async fn stores_that_send_without_end_are_stopped_at_the_first_byte_too_many() {
    let world = ModelFixture::simulated(2);
    let cloud = Cloud::new(14);
    let imported = world.import_bytes(20_000_000, &cloud.at_hand(&world), 10, 4).await;
    let mut placed = world.placed(&imported, &cloud.at_hand(&world));
    let liar = Oversender::default();
    let (served, most, gauge) = (liar.served.clone(), liar.most.clone(), liar.gauge.clone());
    let liar: Arc<dyn object_store::ObjectStore> = Arc::new(liar);
    for shard in [0, 3, 11, 13] {
        placed[shard] = Store::from_objects(placed[shard].reference().clone(), liar.clone());
    }
    // Measures how much a reader without a limit would take.
    let endless =
        liar.get_opts(&"models/x".into(), object_store::GetOptions::default()).await.expect("an answer");
    let taken = endless.into_stream().take(1024).count().await;
    assert_eq!(
        served.swap(0, Ordering::SeqCst),
        (taken * OVERSENT_CHUNK_BYTES) as u64,
        "the store would have continued"
    );
    most.store(0, Ordering::SeqCst);
    let report = check(&world, &imported.manifest, &placed).await;
    assert_eq!(report.faults, BTreeMap::from([(FaultKind::Long, 4 * report.segments)]));
    assert_eq!((report.segments_lost, report.manifests_wrong), (0, 4));
    let shard = (1 << 20) / 10 + 1024;
    let (served, most) = (served.load(Ordering::SeqCst), most.load(Ordering::SeqCst));
    assert!(most <= shard + OVERSENT_CHUNK_BYTES as u64, "{most} bytes of one answer");
    assert!(
        served <= (4 * report.segments + 4) * (shard + OVERSENT_CHUNK_BYTES as u64),
        "{served} bytes in all"
    );
    assert!(gauge.most() <= BYTES_IN_FLIGHT_MAX, "{}", gauge.most());
}
