//! Tests of reading: any range from any k stores is right, corruption is never returned, slow stores are not
//! awaited.

use super::batch::next_batch;
use super::*;
use crate::fault::FaultKind;
use crate::geometry::object_path;
use crate::testing::{Cloud, Faulty, ModelFixture, Script, SimulatedLink, flip};
use proptest::prelude::*;
use protocol::error_code as code;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[tokio::test]
async fn a_model_comes_back_whole_without_decoding() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    let report = world.read_all(&imported.manifest, &placed).await.expect("read");
    assert_eq!((report.rebuilt, report.faults), (0, 0));
    assert_eq!(report.segments, imported.record.segments);
    assert_eq!(report.bytes, imported.record.bytes);
    let fetched = fetch_manifest(imported.record.root, &placed, &world.pool).await.expect("a manifest");
    assert_eq!(fetched, imported.manifest);
}

#[tokio::test]
async fn layer_0_arrives_before_layer_1() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let manifest = &imported.manifest;
    let weights = manifest.file("model.safetensors").expect("there");
    let data = weights.offset + weights.length - 3_800_077;
    let (layer_0, layer_1) = (data + 800_000, data + 800_000 + crate::testing::LAYER as u64);
    let first = |at: u64| {
        let inside = |index: &u32| {
            let segment = &manifest.segments[*index as usize];
            segment.offset <= at && at < segment.offset + u64::from(segment.length)
        };
        manifest.order.iter().position(inside).expect("covered")
    };
    let tokenizer = first(manifest.file("tokenizer.json").expect("there").offset);
    let embedding = first(data + 300_000);
    let order = [tokenizer, first(weights.offset), embedding, first(layer_0), first(layer_1), first(data)];
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn any_range_of_any_file_from_any_k_stores() {
    let runtime = runtime();
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = runtime.block_on(world.import(&stores, 4, 2));
    let placed = world.placed(&imported, &stores);
    let files: Vec<(String, Vec<u8>)> =
        imported.manifest.files.iter().map(|file| (file.path.clone(), world.file(&file.path))).collect();
    let lost = || proptest::sample::subsequence((0..6).collect::<Vec<usize>>(), 0..=2);
    let strategy = (any::<prop::sample::Index>(), 0.0..1.0_f64, 0.0..1.0_f64, lost());
    proptest!(ProptestConfig::with_cases(64), |((file, from, to, lost) in strategy)| {
        let (path, bytes) = file.get(&files);
        let at = |part: f64| (part * (bytes.len() + 1) as f64) as usize;
        let range = at(from).min(at(to))..at(from).max(at(to));
        let mut stores = placed.clone();
        for number in lost {
            stores[number] = closed(&placed[number]);
        }
        let reader = world.reader(&imported.manifest, &stores);
        let wanted = range.start as u64..range.end as u64;
        let read = runtime.block_on(reader.read_range(path, wanted)).expect("read");
        prop_assert!(read == bytes[range]);
    });
}

fn closed(store: &Store) -> Store {
    let mut reference = store.reference().clone();
    reference.url = "file:///nowhere/at/all".into();
    Store::open_or_closed(&reference, &crate::Context::new())
}

#[tokio::test]
async fn ranges_that_do_not_exist_are_refused() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    let reader = world.reader(&imported.manifest, &world.placed(&imported, &stores));
    let length = imported.manifest.file("config.json").expect("there").length;
    assert_eq!(reader.read_range("empty.txt", 0..0).await.expect("empty"), b"");
    assert_eq!(reader.read_file("config.json", 1000).await.expect("small"), world.file("config.json"));
    for (path, range) in [
        ("config.json", 0..length + 1),
        ("config.json", Range { start: 5, end: 4 }),
        ("none", 0..1),
        ("empty.txt", 0..1),
    ] {
        let error = reader.read_range(path, range).await.expect_err("refused");
        assert!(matches!(error, ReadError::Range { .. }), "{error}");
    }
    assert!(matches!(reader.read_file("config.json", 3).await, Err(ReadError::Range { .. })));
}

#[tokio::test]
async fn a_flipped_bit_is_named_and_read_around() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    let object = object_path(imported.manifest.nonce, 0, 2);
    let path = placed[2].directory().expect("local").join(object.as_ref());
    flip(&path, 3, 3);
    let report = world.read_all(&imported.manifest, &placed).await.expect("read");
    assert_eq!((report.rebuilt, report.faults), (1, 1));
    let faults = world.take_faults();
    let expected = crate::ShardFault {
        store: placed[2].url().into(),
        object: object.to_string(),
        segment: imported.manifest.order[0],
        shard: 2,
        kind: FaultKind::Wrong,
    };
    assert_eq!(faults, [expected]);
}

#[tokio::test]
async fn every_sampled_bit_of_a_segments_shards_is_detected_or_not_needed() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    let manifest = &imported.manifest;
    let index = manifest.order[0];
    let length =
        crate::codec::shard_length(manifest.erasure, manifest.segments[index as usize].length as usize);
    let file = manifest.files.iter().find(|file| file.offset == manifest.segments[index as usize].offset);
    let file = file.expect("the first segment begins a file");
    for shard in 0..6_usize {
        let object = object_path(manifest.nonce, 0, shard);
        let path = placed[shard].directory().expect("local").join(object.as_ref());
        for bit in 0..length * 8 {
            flip(&path, bit / 8, (bit % 8) as u8);
            // Without one data store, parity is needed too.
            for missing in [None, Some((shard + 1) % 4)] {
                let mut stores = placed.clone();
                if let Some(missing) = missing {
                    stores[missing] = closed(&placed[missing]);
                }
                let reader = world.reader(manifest, &stores);
                let read = reader.read_range(&file.path, 0..file.length).await.expect("read");
                assert_eq!(read, world.file(&file.path), "shard {shard} bit {bit}");
                let faults = world.take_faults();
                let padding = shard == 3 && bit / 8 >= length - 4;
                let used = shard < 4 || (missing.is_some() && shard == 4);
                let wrong = faults.iter().filter(|fault| fault.kind == FaultKind::Wrong);
                let named = wrong.map(|fault| usize::from(fault.shard)).eq([shard]);
                assert!(
                    named || faults.is_empty() && (!used || padding),
                    "shard {shard} bit {bit}: {faults:?}"
                );
            }
            flip(&path, bit / 8, (bit % 8) as u8);
        }
    }
}

#[test]
fn random_corruption_never_yields_a_wrong_byte() {
    let runtime = runtime();
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = runtime.block_on(world.import(&stores, 4, 2));
    let placed = world.placed(&imported, &stores);
    let groups = imported.manifest.order.len().div_ceil(3) as u32;
    let damage = (0..6_usize, 0..groups, 0..4_u8, any::<prop::sample::Index>(), 0..8_u8);
    let damages = proptest::collection::vec(damage, 1..10);
    proptest!(ProptestConfig::with_cases(24), |(damages in damages)| {
        let mut undo = Vec::new();
        for (shard, group, how, at, bit) in damages {
            let object = object_path(imported.manifest.nonce, group, shard);
            let path = placed[shard].directory().expect("local").join(object.as_ref());
            let Ok(bytes) = std::fs::read(&path) else { continue };
            if bytes.is_empty() {
                continue;
            }
            let at = at.index(bytes.len());
            match how {
                0 | 1 => flip(&path, at, bit),
                2 => std::fs::write(&path, &bytes[..at]).expect("write"),
                _ => std::fs::remove_file(&path).expect("remove"),
            }
            undo.push((path, bytes));
        }
        // Every successful read is right; `read_all` compares every byte.
        if let Err(error) = runtime.block_on(world.read_all(&imported.manifest, &placed)) {
            prop_assert_eq!(error.code(), code::SHARD_TOO_FEW);
        }
        for (path, bytes) in undo.into_iter().rev() {
            std::fs::write(path, bytes).expect("write");
        }
    });
    runtime.block_on(world.read_all(&imported.manifest, &placed)).expect("whole again");
}

#[tokio::test]
async fn too_few_stores_are_reported_and_no_byte_is_returned() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let mut placed = world.placed(&imported, &stores);
    for lost in [0, 3, 5] {
        std::fs::remove_dir_all(placed[lost].directory().expect("local")).expect("remove");
    }
    let error = world.read_all(&imported.manifest, &placed).await.expect_err("three of six");
    assert_eq!(error.code(), code::SHARD_TOO_FEW);
    assert!(error.to_string().contains("3 of 4 good shards"), "{error}");
    for lost in [0, 3, 5] {
        placed[lost] = closed(&placed[lost]);
    }
    let error = world.read_all(&imported.manifest, &placed).await.expect_err("three of six");
    assert!(error.to_string().contains("unreachable"), "{error}");
}

#[tokio::test]
async fn a_wrong_key_store_count_or_root_is_known_before_any_byte_is_read() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    let placed = world.placed(&imported, &stores);
    let open = |key: &ModelKey, stores: &[Store]| {
        Reader::open(imported.manifest.clone(), key, stores.to_vec(), world.pool.clone(), world.sink())
    };
    let wrong = open(&ModelKey::from_bytes([1; 32]), &placed).expect_err("wrong key");
    assert_eq!(wrong.code(), code::MODEL_KEY_WRONG);
    assert!(matches!(open(&world.key, &placed[..2]), Err(ReadError::StoreCount { given: 2, needed: 3 })));
    let root = ModelRoot(protocol::Digest([1; 32]));
    let error = fetch_manifest(root, &placed, &world.pool).await.expect_err("no such model");
    assert_eq!(error.code(), code::MODEL_MANIFEST_INVALID);
}

#[tokio::test]
async fn a_forged_manifest_is_passed_over() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    let placed = world.placed(&imported, &stores);
    let path = manifest_path(imported.record.root);
    for store in &placed[..2] {
        let mut forged = (*imported.manifest).clone();
        forged.name = "forged".parse().expect("a name");
        let bytes = protocol::canonical::to_bytes(&forged);
        std::fs::write(store.directory().expect("local").join(path.as_ref()), bytes).expect("write");
    }
    let fetched =
        fetch_manifest(imported.record.root, &placed, &world.pool).await.expect("the third is true");
    assert_eq!(fetched, imported.manifest);
}

#[tokio::test(start_paused = true)]
async fn slow_and_unreachable_stores_are_not_awaited() {
    let world = ModelFixture::simulated(2);
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let slow = Arc::new(Script { read_delay: Duration::from_secs(3600), ..Script::default() });
    let quick = Arc::new(Script::default());
    let number = |reference: &protocol::model::StoreReference| {
        (0..6).find(|number| world.reference(*number).url == reference.url).expect("ours")
    };
    let remote = |shard: usize| {
        let script = if shard < 2 { &slow } else { &quick };
        Faulty::store(&world, number(&imported.record.stores[shard]), script)
    };
    let placed: Vec<Store> = (0..6).map(remote).collect();
    let began = tokio::time::Instant::now();
    let report = world.read_all(&imported.manifest, &placed).await.expect("read");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?} of simulated time", began.elapsed());
    assert_eq!(report.rebuilt, report.segments, "both slow stores hold data shards");
    assert_eq!(world.take_faults(), [], "slow is not wrong");
    let asked = slow.reads.load(Ordering::SeqCst);
    assert!(asked < 2 * report.segments, "slow stores are soon asked last: {asked}");
}

#[tokio::test]
async fn corruption_in_remote_stores_is_read_around_too() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let script = Arc::new(Script::default());
    let number = |shard: usize| {
        let url = &imported.record.stores[shard].url;
        (0..6).find(|number| world.reference(*number).url == *url).expect("ours")
    };
    let placed: Vec<Store> = (0..6).map(|shard| Faulty::store(&world, number(shard), &script)).collect();
    for (name, path) in world.objects(number(1)) {
        if name.starts_with("models") {
            flip(&path, 5, 1);
        }
    }
    for path in world.objects(number(3)).values() {
        std::fs::remove_file(path).expect("remove");
    }
    world.read_all(&imported.manifest, &placed).await.expect("read");
    let faults = world.take_faults();
    assert!(faults.iter().any(|fault| fault.shard == 1 && fault.kind == FaultKind::Wrong));
    assert!(faults.iter().any(|fault| fault.shard == 3 && fault.kind == FaultKind::Missing));
}

#[tokio::test]
async fn a_fill_writes_into_a_mapped_file_and_only_what_is_asked() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    let manifest = &imported.manifest;
    let reader = world.reader(manifest, &world.placed(&imported, &stores));
    let file = tempfile::tempfile().expect("a file");
    file.set_len(manifest.map_bytes()).expect("room");
    let map = Arc::new(crate::MapDestination::map(&file, manifest.map_bytes()).expect("mapped"));
    let wanted = [manifest.order[1], manifest.order[4]];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let on_segment: OnSegment = Arc::new(move |index| note.lock().expect("no panic").push(index));
    let report = reader.fill_segments(&wanted, map, on_segment).await.expect("filled");
    assert_eq!(report.segments, 2);
    seen.lock().expect("no panic").sort_unstable();
    let mut sorted = wanted;
    sorted.sort_unstable();
    assert_eq!(*seen.lock().expect("no panic"), sorted);
    for index in wanted {
        let segment = &manifest.segments[index as usize];
        let mut bytes = vec![0; segment.length as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, segment.offset).expect("read");
        assert_eq!(protocol::Digest::of(&bytes), segment.digest);
    }
    let small = Arc::new(MemoryDestination::new(0, 10));
    let error = reader.fill(small, Arc::new(|_| ())).await.expect_err("too small");
    assert!(matches!(error, ReadError::Destination(_)), "{error}");
}

#[test]
fn batches_join_neighbours_up_to_their_size() {
    let runtime = runtime();
    let world = ModelFixture::new();
    let imported = runtime.block_on(world.import(&world.stores(3), 2, 1));
    let manifest = &imported.manifest;
    let geometry = Geometry::new(manifest);
    let all = |wanted: &[u32], bytes_max| {
        let (mut batches, mut at) = (Vec::new(), 0);
        while let Some((batch, count)) = next_batch(manifest, &geometry, &wanted[at..], bytes_max) {
            assert_eq!(batch.positions.len(), count);
            at += count;
            batches.push(batch);
        }
        assert_eq!(at, wanted.len());
        batches
    };
    let order = &manifest.order;
    assert!(all(order, u64::MAX).iter().all(|batch| batch.positions.len() <= 3));
    assert_eq!(all(order, u64::MAX).len(), order.len().div_ceil(3), "whole groups");
    assert_eq!(all(order, 1).len(), order.len(), "one by one");
    assert_eq!(all(&[order[0], order[2], order[1]], u64::MAX).len(), 3, "scattered");
}

/// A directory on a stalled disk: every object is a pipe without a writer, so opening it blocks.
struct StalledDirectory {
    pipes: Vec<(std::path::PathBuf, Vec<u8>)>,
}

impl StalledDirectory {
    fn of(world: &ModelFixture, number: usize) -> Self {
        let shards = world.objects(number).into_iter().filter(|(name, _)| name.starts_with("models"));
        let pipe = |(_, path): (String, std::path::PathBuf)| {
            let bytes = std::fs::read(&path).expect("an object");
            std::fs::remove_file(&path).expect("remove");
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()), "a pipe");
            (path, bytes)
        };
        Self { pipes: shards.map(pipe).collect() }
    }

    /// Releases the blocked readers; from now on the disk answers.
    fn release(&self) {
        use std::os::unix::fs::OpenOptionsExt;
        for (path, bytes) in &self.pipes {
            // A nonblocking open for writing succeeds only if a reader waits for the pipe.
            let nonblocking = 0o4000;
            let released = std::fs::File::options().write(true).custom_flags(nonblocking).open(path);
            std::fs::remove_file(path).expect("remove");
            std::fs::write(path, bytes).expect("write");
            drop(released);
        }
    }
}

/// Returns a reader that abandons the disks of these shards, and no others, as soon as a read of one lasts.
/// The load of the machine does not matter.
fn reader_with_stalled(
    world: &ModelFixture,
    manifest: &Arc<ModelManifest>,
    stores: &[Store],
    stalled: &[usize],
) -> Reader {
    world.reader(manifest, stores).with_stalled_disks(stalled)
}

async fn read_file(reader: &Reader, world: &ModelFixture) -> Result<(), ReadError> {
    let path = "model.safetensors";
    let length = reader.manifest().file(path).expect("there").length;
    let bytes = reader.read_range(path, 0..length).await?;
    assert!(bytes == world.file(path), "every byte is right");
    Ok(())
}

#[tokio::test]
async fn a_stalled_disk_is_read_around_and_blocks_few_threads() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    let number =
        |shard: usize| (0..6).find(|n| world.reference(*n).url == placed[shard].url()).expect("ours");
    let stalled_directory = StalledDirectory::of(&world, number(1));
    let threads = world.pool.threads();
    for round in 0..5 {
        // A new reader each time, as an agent that retries creates one: it knows nothing of the disk.
        read_file(&reader_with_stalled(&world, &imported.manifest, &placed, &[1]), &world)
            .await
            .expect("read around");
        let faults = world.take_faults();
        assert!(faults.iter().all(|fault| fault.shard == 1 && fault.kind == FaultKind::Unreachable));
        assert!(!faults.is_empty(), "round {round}: the disk is named");
        let running = world.pool.running();
        assert!(running > threads && running <= 2 * threads + 1, "round {round}: {running} threads");
    }
    stalled_directory.release();
    while world.pool.running() > threads {
        tokio::task::yield_now().await;
    }
    let report = world.read_all(&imported.manifest, &placed).await.expect("read");
    assert_eq!((report.rebuilt, report.faults), (0, 0), "the disk is back");
}

#[tokio::test]
async fn stalled_disks_end_in_an_error_that_names_them() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    let placed = world.placed(&imported, &stores);
    let stalled_directories: Vec<StalledDirectory> =
        (0..2).map(|number| StalledDirectory::of(&world, number)).collect();
    let urls = [0, 1].map(|number| world.reference(number).url);
    let stalled: Vec<usize> =
        (0..3).filter(|shard| urls.contains(&placed[*shard].url().to_string())).collect();
    let reader = reader_with_stalled(&world, &imported.manifest, &placed, &stalled);
    let error = read_file(&reader, &world).await.expect_err("one is left");
    assert_eq!(error.code(), code::SHARD_TOO_FEW);
    let text = error.to_string();
    assert!(text.contains("1 of 2 good shards") && text.matches("is unreachable").count() == 2, "{text}");
    stalled_directories.iter().for_each(StalledDirectory::release);
    while world.pool.running() > world.pool.threads() {
        tokio::task::yield_now().await;
    }
    read_file(&world.reader(&imported.manifest, &placed), &world).await.expect("they are back");
}

/// Measurements of a load over a link, in simulated time.
struct Load {
    /// Until the first segment was in place.
    first: Duration,
    total: Duration,
    /// Bytes that the link carried.
    carried: u64,
    /// Bytes of the model.
    bytes: u64,
}

/// Loads a model of `bytes` bytes with 16 threads over a link; the stores in `own` have links of their own.
async fn load_over(bytes: usize, link: &Arc<SimulatedLink>, own: &[(usize, Arc<SimulatedLink>)]) -> Load {
    let world = ModelFixture::simulated(16);
    let cloud = Cloud::new(6);
    let at_hand = cloud.at_hand(&world);
    let imported = world.import_bytes(bytes, &at_hand, 4, 2).await;
    let number = |url: &str| (0..6).find(|number| world.reference(*number).url == *url).expect("ours");
    let store = |(shard, reference): (usize, &protocol::model::StoreReference)| {
        let own = own.iter().find(|(number, _)| *number == shard).map(|(_, link)| link);
        cloud.one_behind(&world, number(&reference.url), own.unwrap_or(link), &[])
    };
    let placed: Vec<Store> = imported.record.stores.iter().enumerate().map(store).collect();
    let reader = world.reader(&imported.manifest, &placed);
    let memory = Arc::new(MemoryDestination::new(0, imported.manifest.map_bytes() as usize));
    let first = Arc::new(Mutex::new(None));
    let (note, began) = (first.clone(), tokio::time::Instant::now());
    let on_segment: OnSegment = Arc::new(move |_| {
        note.lock().expect("no panic").get_or_insert_with(|| began.elapsed());
    });
    reader.fill(memory.clone(), on_segment).await.expect("loaded");
    let total = began.elapsed();
    let read = Arc::into_inner(memory).expect("all work is done").into_bytes();
    assert!(read == crate::testing::seeded("large", bytes), "every byte is right");
    let first = first.lock().expect("no panic").expect("a segment");
    Load { first, total, carried: link.carried(), bytes: imported.record.bytes }
}

/// A quarter of 160 MB at a quarter of 3 MB/s: the load takes as long, and 16 threads would request all of it
/// together.
#[tokio::test(start_paused = true)]
async fn many_threads_behind_a_slow_link_load_in_order_and_each_byte_once() {
    const RATE: u64 = 750_000;
    let link = SimulatedLink::new(RATE, Duration::from_millis(50));
    let load = load_over(40_000_000, &link, &[]).await;
    let seconds = |bytes: u64| bytes as f64 / RATE as f64;
    let first = load.first.as_secs_f64() / seconds(1 << 20);
    let total = load.total.as_secs_f64() / seconds(load.bytes);
    let moved = load.carried as f64 / load.bytes as f64;
    println!("first segment {first:.2} times its own transfer, all {total:.3} times, bytes {moved:.3} times");
    assert!(first < 2.0 && total < 1.1 && moved < 1.05, "{first:.2}, {total:.3}, {moved:.3}");
}

#[tokio::test(start_paused = true)]
async fn a_fast_link_is_saturated() {
    for (rate, delay, most) in [(500_000_000, 1, 1.15), (100_000_000, 20, 1.3), (20_000_000, 20, 1.1)] {
        let link = SimulatedLink::new(rate, Duration::from_millis(delay));
        let load = load_over(40_000_000, &link, &[]).await;
        let total = load.total.as_secs_f64() * rate as f64 / load.bytes as f64;
        let moved = load.carried as f64 / load.bytes as f64;
        println!(
            "{rate} bytes per second: all {total:.3} times, bytes {moved:.3} times, first {:?}",
            load.first
        );
        assert!(total < most && moved < 1.05, "{rate}: {total:.3} times as long, {moved:.3} times the bytes");
    }
}

/// A store that sends a byte now and then is never silent, and is overtaken nevertheless.
#[tokio::test(start_paused = true)]
async fn a_store_that_trickles_delays_no_read() {
    const RATE: u64 = 20_000_000;
    let (link, trickle) =
        (SimulatedLink::new(RATE, Duration::from_millis(20)), SimulatedLink::new(2_000, Duration::ZERO));
    let load = load_over(40_000_000, &link, &[(0, trickle.clone()), (2, trickle)]).await;
    let total = load.total.as_secs_f64() * RATE as f64 / load.bytes as f64;
    println!("two of six stores trickle: all {total:.3} times");
    assert!(total < 2.0, "{total:.3} times as long");
}

#[tokio::test]
async fn a_directory_in_an_objects_place_is_read_around_like_a_missing_one() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    let object =
        placed[1].directory().expect("local").join(object_path(imported.manifest.nonce, 0, 1).as_ref());
    std::fs::remove_file(&object).expect("remove");
    std::fs::create_dir(&object).expect("create");
    let report = world.read_all(&imported.manifest, &placed).await.expect("read around");
    assert_eq!(report.faults, 3, "each segment of the object");
    assert!(report.rebuilt >= 3);
    assert!(world.take_faults().iter().all(|fault| fault.kind == FaultKind::Missing && fault.shard == 1));
}
