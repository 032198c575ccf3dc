//! Tests of garbage collection: only garbage is removed, in any interleaving of a collection and an import.

use super::*;
use crate::testing::{Faulty, ModelFixture, Script};
use crate::{Imported, import};
use protocol::error_code as code;
use std::path::PathBuf;
use std::sync::Arc;

type Objects = Vec<BTreeMap<String, PathBuf>>;

fn objects(world: &ModelFixture, stores: usize) -> Objects {
    (0..stores).map(|number| world.objects(number)).collect()
}

/// Returns a time two days from now, so that every object is old.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(48 * 3600)
}

fn options(now: SystemTime) -> SweepOptions {
    SweepOptions { older_than: SWEEP_AGE_DEFAULT, now, remove: true }
}

/// Collects garbage with these models registered and none forgotten.
async fn collect(
    world: &ModelFixture,
    stores: &[Store],
    options: SweepOptions,
    registered: &[&Imported],
) -> Result<SweepReport, SweepError> {
    let registered: Vec<_> =
        registered.iter().map(|it| (it.record.root, world.placed(it, &world.stores(3)))).collect();
    let register = || async { Ok::<_, std::io::Error>(registered) };
    sweep(stores, options, &BTreeSet::new(), &world.pool, register, |_| ()).await
}

/// Leaves everything of an import but its manifest, as one does that was killed before the end.
fn unseal(world: &ModelFixture, imported: &Imported) {
    let manifest = crate::geometry::manifest_path(imported.record.root);
    for number in 0..3 {
        std::fs::remove_file(world.store_directory(number).join(manifest.as_ref())).expect("remove");
    }
}

async fn second(world: &ModelFixture, stores: &[Store], nonce: u8) -> Imported {
    let options = world.options(2, 1, nonce);
    import(&world.model(), options, stores, &world.key, &world.pool, |_| ()).await.expect("imported")
}

/// Imports a second model and leaves it without its manifest.
async fn unfinished(world: &ModelFixture, stores: &[Store], nonce: u8) -> Imported {
    let imported = second(world, stores, nonce).await;
    unseal(world, &imported);
    imported
}

#[tokio::test(start_paused = true)]
async fn the_garbage_of_a_killed_import_is_removed_and_earlier_models_stay() {
    let world = ModelFixture::simulated(2);
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    let before = objects(&world, 3);
    let mut left = Vec::new();
    for writes in 0.. {
        let script = Arc::new(Script { writes_left: Some(writes.into()), ..Script::default() });
        let failing: Vec<Store> = (0..3).map(|number| Faulty::store(&world, number, &script)).collect();
        let killed =
            import(&world.model(), world.options(2, 1, 2), &failing, &world.key, &world.pool, |_| ()).await;
        left.push(objects(&world, 3).iter().map(BTreeMap::len).sum::<usize>());
        // A directory to which the failing process was writing holds a leftover too.
        let torn = crate::geometry::object_path(ModelNonce([2; 16]), 7, 1).to_string() + "#1";
        let torn = world.store_directory(1).join(torn);
        std::fs::create_dir_all(torn.parent().expect("below")).expect("create");
        std::fs::write(torn, b"half").expect("write");
        let is_sealed = (0..3).any(|number| {
            let manifests = world.objects(number).into_keys().filter(|name| name.starts_with("manifests"));
            manifests.count() > 1
        });
        let report = collect(&world, &stores, options(later()), &[&earlier]).await.expect("collected");
        if is_sealed {
            // A manifest is stored, so this import may be registered at any moment.
            assert!(report.sealed.objects > 0 && report.removed.objects == 1, "{report:?}");
            if killed.is_ok() {
                break;
            }
            let forgotten = report.unregistered.keys().copied().collect();
            let register = || async { Ok::<_, std::io::Error>(Vec::new()) };
            let rest = sweep(&stores, options(later()), &forgotten, &world.pool, register, |_| ()).await;
            rest.expect("collected");
            assert_eq!(objects(&world, 3), before, "after {writes} writes and a decision");
            continue;
        }
        assert_eq!(objects(&world, 3), before, "after {writes} writes");
        assert_eq!((report.removed, report.failures.len()), (report.garbage, 0));
        assert!(report.young == ObjectTotals::default() && report.garbage.objects > 0, "{report:?}");
        assert!(killed.is_err(), "an import that succeeds is sealed");
    }
    let most = before.iter().map(BTreeMap::len).sum::<usize>() * 2;
    assert!(left.is_sorted() && left.contains(&most), "{left:?}");
    world.read_all(&earlier.manifest, &world.placed(&earlier, &stores)).await.expect("reads");
}

#[tokio::test]
async fn a_dry_run_reports_the_same_and_removes_nothing() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    unfinished(&world, &stores, 2).await;
    std::fs::write(world.store_directory(0).join("models/README"), b"not ours").expect("write");
    let before = objects(&world, 3);
    let dry = SweepOptions { remove: false, ..options(later()) };
    let planned = collect(&world, &stores, dry, &[&earlier]).await.expect("listed");
    assert_eq!(objects(&world, 3), before);
    assert_eq!(
        (planned.removed, planned.foreign),
        (ObjectTotals::default(), ObjectTotals { objects: 1, bytes: 8 })
    );
    assert_eq!(planned.garbage.objects + 3, planned.registered.objects, "three manifests: {planned:?}");
    let done = collect(&world, &stores, options(later()), &[&earlier]).await.expect("collected");
    assert_eq!(done, SweepReport { removed: planned.garbage, ..planned });
    assert!(world.store_directory(0).join("models/README").exists());
}

/// An import runs while the stores are listed, and registers just before the register is read, or just after.
/// It loses nothing in either case, and the incomplete import beside it is removed.
#[tokio::test]
async fn a_concurrent_import_loses_nothing() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let garbage = unfinished(&world, &stores, 3).await;
    make_old(&world);
    let running = second(&world, &stores, 2).await;
    let now = options(SystemTime::now());
    for registers_in_time in [false, true] {
        let before = objects(&world, 3);
        let register = || async {
            let found = [(running.record.root, world.placed(&running, &stores))];
            Ok::<_, std::io::Error>(found.into_iter().filter(|_| registers_in_time).collect())
        };
        let none = BTreeSet::new();
        let report = sweep(&stores, now, &none, &world.pool, register, |_| ()).await.expect("collected");
        let kept = if registers_in_time { report.registered } else { report.sealed };
        assert_eq!(kept.objects, objects(&world, 3).iter().map(|them| them.len() as u64).sum::<u64>());
        let gone = before
            .iter()
            .flat_map(BTreeMap::keys)
            .filter(|name| name.contains(&garbage.manifest.nonce.to_string()));
        assert!(registers_in_time || gone.count() > 0);
        world.read_all(&running.manifest, &world.placed(&running, &stores)).await.expect("reads");
    }
    assert!(
        world.read_all(&garbage.manifest, &world.placed(&garbage, &stores)).await.is_err(),
        "the garbage one went"
    );
}

/// Sets the age of every file of every store to two days.
fn make_old(world: &ModelFixture) {
    let old = SystemTime::now() - Duration::from_secs(48 * 3600);
    for path in objects(world, 3).iter().flat_map(BTreeMap::values) {
        let file = std::fs::File::options().write(true).open(path).expect("an object");
        file.set_modified(old).expect("a time");
    }
}

#[tokio::test]
async fn one_young_object_anywhere_keeps_the_whole_import() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    unfinished(&world, &stores, 2).await;
    make_old(&world);
    let young =
        world.store_directory(2).join(crate::geometry::object_path(ModelNonce([2; 16]), 0, 0).as_ref());
    std::fs::create_dir_all(young.parent().expect("below")).expect("create");
    std::fs::write(&young, b"just written").expect("write");
    let before = objects(&world, 3);
    let report = collect(&world, &stores, options(SystemTime::now()), &[]).await.expect("collected");
    assert_eq!((report.garbage, report.removed), <(ObjectTotals, ObjectTotals)>::default());
    assert_eq!(objects(&world, 3), before);
}

#[tokio::test]
async fn an_object_written_after_the_listing_keeps_its_import() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    unfinished(&world, &stores, 2).await;
    make_old(&world);
    let before = objects(&world, 3);
    let (kept, _) = before[1].iter().find(|(name, _)| name.starts_with("models")).expect("a shard");
    let touch = || async {
        std::fs::write(world.store_directory(1).join(kept), b"written again").expect("write");
        Ok::<_, std::io::Error>(Vec::new())
    };
    let (now, none) = (options(SystemTime::now()), BTreeSet::new());
    let report = sweep(&stores, now, &none, &world.pool, touch, |_| ()).await.expect("collected");
    assert!(report.removed.objects < report.garbage.objects, "{report:?}");
    let left = world.objects(1);
    assert!(
        left.keys()
            .filter(|name| name.starts_with("models"))
            .eq(before[1].keys().filter(|name| name.starts_with("models")))
    );
    assert!(!world.objects(0).keys().any(|name| name.starts_with("models")), "it was garbage elsewhere");
}

#[tokio::test]
async fn a_store_with_a_broken_listing_is_skipped_and_the_others_are_collected() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    unfinished(&world, &stores, 2).await;
    let before = objects(&world, 3);
    let script = Arc::new(Script { list_breaks_after: Some(3), ..Script::default() });
    let some = [stores[0].clone(), Faulty::store(&world, 1, &script), stores[2].clone()];
    let report = collect(&world, &some, options(later()), &[&earlier]).await.expect("collected");
    assert_eq!(report.failures.len(), 1);
    assert!(report.failures[0].contains("store-1"), "{:?}", report.failures);
    assert_eq!(world.objects(1), before[1]);
    for number in [0, 2] {
        assert_eq!(
            world.objects(number).len() * 2 - 1,
            before[number].len(),
            "half of store {number} but for a manifest was garbage"
        );
    }
    world.read_all(&earlier.manifest, &world.placed(&earlier, &stores)).await.expect("reads");
    let again = collect(&world, &stores, options(later()), &[&earlier]).await.expect("collected");
    assert!(again.failures.is_empty() && again.removed.objects > 0, "{again:?}");
}

#[tokio::test]
async fn a_store_that_refuses_a_removal_is_named_and_the_others_are_collected() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    unfinished(&world, &stores, 2).await;
    let mut some = stores.clone();
    let mut reference = world.reference(1);
    reference.url = "file:///nowhere/at/all".into();
    some[1] = Store::open_or_closed(&reference, &crate::Context::new());
    let report = collect(&world, &some, options(later()), &[]).await.expect("collected");
    assert!(report.failures.len() == 1 && report.failures[0].contains("nowhere"), "{:?}", report.failures);
    assert!(world.objects(0).is_empty() && world.objects(2).is_empty() && !world.objects(1).is_empty());
}

#[tokio::test]
async fn an_unreadable_register_removes_nothing() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    second(&world, &stores, 2).await;
    for number in 0..3 {
        let manifest = crate::geometry::manifest_path(earlier.record.root);
        std::fs::remove_file(world.store_directory(number).join(manifest.as_ref())).expect("remove");
    }
    let before = objects(&world, 3);
    let unreadable = collect(&world, &stores, options(later()), &[&earlier]).await.expect_err("no manifest");
    assert!(matches!(unreadable, SweepError::Manifest { .. }), "{unreadable}");
    let silent = || async { Err::<Vec<_>, _>(std::io::Error::other("no leader")) };
    let none = BTreeSet::new();
    let silent = sweep(&stores, options(later()), &none, &world.pool, silent, |_| ()).await;
    let silent = silent.expect_err("no register");
    assert!(matches!(silent, SweepError::Register(_)), "{silent}");
    let older_than = SWEEP_AGE_MIN - Duration::from_secs(1);
    let eager = SweepOptions { older_than, ..options(later()) };
    let eager = collect(&world, &stores, eager, &[]).await.expect_err("too young");
    for error in [unreadable, silent, eager] {
        assert_eq!(error.code(), code::SWEEP_REFUSED);
    }
    assert_eq!(objects(&world, 3), before);
}

#[tokio::test]
async fn progress_counts_what_is_listed_and_what_is_removed() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    unfinished(&world, &stores, 2).await;
    let steps = std::sync::Mutex::new(Vec::new());
    let note = |step| steps.lock().expect("no panic").push(step);
    let register = || async { Ok::<_, std::io::Error>(Vec::new()) };
    let none = BTreeSet::new();
    let report =
        sweep(&stores, options(later()), &none, &world.pool, register, note).await.expect("collected");
    let steps = steps.into_inner().expect("no panic");
    let all = report.garbage.objects;
    assert_eq!(steps[all as usize - 1], SweepProgress { listed: all, removed: 0, to_remove: 0 });
    assert_eq!(steps.last(), Some(&SweepProgress { listed: all, removed: all, to_remove: all }));
}

/// Before, an empty or truncated answer of control removed every model that it left out. The control is the
/// decision of the circle: it removes the model, and the other stays although control lists neither.
/// Packs a tree of one file, and imports it.
async fn packed(world: &ModelFixture, stores: &[Store], nonce: u8, is_job_data: bool) -> Imported {
    try_packed(world, stores, nonce, is_job_data).await.expect("imported")
}

async fn try_packed(
    world: &ModelFixture,
    stores: &[Store],
    nonce: u8,
    is_job_data: bool,
) -> Result<Imported, crate::ImportError> {
    let directory = tempfile::tempdir().expect("a directory");
    let (tree, work) = (directory.path().join("tree"), directory.path().join("work"));
    std::fs::create_dir(&tree).expect("create");
    std::fs::create_dir(&work).expect("create");
    std::fs::write(tree.join("weights"), [nonce; 10_000]).expect("write");
    let mut builder =
        crate::ArtifactBuilder::new(&work, crate::ArtifactLimits::default()).expect("a builder");
    builder.add_data(&std::fs::File::open(&tree).expect("open"), &tree).expect("added");
    let packed = builder.pack_data().expect("packed").expect("not empty");
    let options = crate::ImportOptions { is_job_data, ..world.options(2, 1, nonce) };
    import(&packed.path, options, stores, &world.key, &world.pool, |_| ()).await
}

/// Jobs leave more than people vote on: their data goes by age once control lists it no more. The attack on
/// the rule is a dataset: it has the same form, and goes by a decision alone.
#[tokio::test]
async fn data_of_a_job_goes_by_age_and_a_dataset_by_a_decision() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let kept = packed(&world, &stores, 1, true).await;
    let dataset = packed(&world, &stores, 2, false).await;
    assert!(matches!(kept.record.kind, StoredKind::JobData { .. }), "{:?}", kept.record.kind);
    assert!(matches!(dataset.record.kind, StoredKind::Dataset { .. }), "{:?}", dataset.record.kind);
    let before = objects(&world, 3);
    let forgotten = packed(&world, &stores, 3, true).await;
    let all = objects(&world, 3);
    let young = collect(&world, &stores, options(SystemTime::now()), &[&kept]).await.expect("collected");
    assert_eq!(
        (young.removed, objects(&world, 3)),
        (ObjectTotals::default(), all),
        "it may be registered yet"
    );
    let report = collect(&world, &stores, options(later()), &[&kept]).await.expect("collected");
    assert_eq!(objects(&world, 3), before, "{report:?}");
    assert!(report.unregistered.contains_key(&dataset.record.root), "{report:?}");
    assert!(!report.unregistered.contains_key(&forgotten.record.root), "{report:?}");
}

/// The crash is that of a node in mid-import of a checkpoint, after each write: nothing of it is registered,
/// and age alone removes it, also where its manifest is stored.
#[tokio::test(start_paused = true)]
async fn a_killed_import_of_job_data_goes_by_age_wherever_it_ended() {
    let world = ModelFixture::simulated(2);
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    let before = objects(&world, 3);
    let (mut partial, mut whole) = (0, 0);
    for writes in 0.. {
        let script = Arc::new(Script { writes_left: Some(writes.into()), ..Script::default() });
        let failing: Vec<Store> = (0..3).map(|number| Faulty::store(&world, number, &script)).collect();
        let imported = try_packed(&world, &failing, 2, true).await;
        let left = objects(&world, 3);
        let young =
            collect(&world, &stores, options(SystemTime::now()), &[&earlier]).await.expect("collected");
        assert_eq!((young.removed.objects, objects(&world, 3)), (0, left), "after {writes} writes");
        let report = collect(&world, &stores, options(later()), &[&earlier]).await.expect("collected");
        assert_eq!(objects(&world, 3), before, "after {writes} writes: {report:?}");
        match imported {
            Ok(_) => whole += 1,
            Err(_) => partial += 1,
        }
        if whole > 0 {
            break;
        }
    }
    assert!(partial > 3, "{partial} imports were killed");
}

#[tokio::test]
async fn a_register_that_lists_nothing_removes_no_model() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let (kept, forgotten) = (world.import(&stores, 2, 1).await, second(&world, &stores, 2).await);
    let before = objects(&world, 3);
    for registered in [vec![], vec![&kept]] {
        let report = collect(&world, &stores, options(later()), &registered).await.expect("collected");
        assert_eq!(report.removed, ObjectTotals::default(), "{report:?}");
        assert!(report.unregistered.contains_key(&forgotten.record.root), "{report:?}");
        assert_eq!(objects(&world, 3), before);
    }
    let decided = BTreeSet::from([forgotten.record.root]);
    let register = || async { Ok::<_, std::io::Error>(Vec::new()) };
    let now = options(SystemTime::now());
    let report = sweep(&stores, now, &decided, &world.pool, register, |_| ()).await.expect("collected");
    assert_eq!((report.removed, report.failures.len()), (report.garbage, 0), "{report:?}");
    assert_eq!(report.removed.objects * 2, before.iter().map(|them| them.len() as u64).sum::<u64>());
    world.read_all(&kept.manifest, &world.placed(&kept, &stores)).await.expect("reads");
    assert!(!objects(&world, 3).iter().flat_map(BTreeMap::keys).any(|name| {
        name.contains(&forgotten.manifest.nonce.to_string())
            || name.contains(&forgotten.record.root.to_string())
    }));
}
