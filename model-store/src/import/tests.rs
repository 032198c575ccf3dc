//! Tests of imports: refusals before anything is written, and the leftovers of an interruption.

use super::*;
use crate::testing::{Cloud, Faulty, Gguf, ModelFixture, PutFailure, Script, SimulatedLink, TinyDisk};
use crate::{MemoryDestination, Reader, StoreError, fetch_manifest};
use protocol::error_code as code;
use std::sync::Mutex;

#[tokio::test]
async fn the_same_model_key_and_nonce_give_the_same_root_and_progress_reaches_the_end() {
    let world = ModelFixture::new();
    let last = Arc::new(Mutex::new(0));
    let note = last.clone();
    let stores = world.stores(6);
    let options = world.options(4, 2, 1);
    let progress = move |progress: ImportProgress| {
        let mut last = note.lock().expect("no panic");
        *last = progress.bytes_done.max(*last);
        assert!(progress.bytes_done <= progress.bytes_total);
    };
    let first = import(&world.model(), options.clone(), &stores, &world.key, &world.pool, progress).await;
    let first = first.expect("imported");
    assert_eq!(*last.lock().expect("no panic"), first.record.bytes);
    assert_eq!(first.record.architecture, "llama");
    assert_eq!(first.record.root, first.manifest.root());
    let again = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
    assert_eq!(again.expect("imported").record, first.record);
    let fresh = world.options(4, 2, 2);
    let other = import(&world.model(), fresh, &stores, &world.key, &world.pool, |_| ()).await;
    assert_ne!(other.expect("imported").record.root, first.record.root);
    let overhead = first.bytes_written as f64 / first.record.bytes as f64;
    assert!(overhead < 1.52, "4+2 costs 1.5 and the manifests: {overhead}");
}

#[tokio::test]
async fn a_placement_that_one_domain_could_undo_is_refused_before_any_write() {
    let world = ModelFixture::new();
    let stores = world.stores(6);
    let mut options = world.options(4, 2, 1);
    options.placement.shards_per_domain_max = 3;
    let refused = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
    assert_eq!(refused.expect_err("lax").code(), code::STORE_TOO_FEW);
    let few =
        import(&world.model(), world.options(4, 2, 1), &stores[..5], &world.key, &world.pool, |_| ()).await;
    assert_eq!(few.expect_err("five stores").code(), code::STORE_TOO_FEW);
    assert!((0..6).all(|number| world.objects(number).is_empty()));
}

#[tokio::test]
async fn a_store_out_of_reach_is_refused_before_any_write() {
    let world = ModelFixture::new();
    let mut stores = world.stores(3);
    let mut reference = world.reference(2);
    reference.url = "file:///nowhere/at/all".into();
    stores[2] = Store::open_or_closed(&reference, &crate::Context::new());
    let refused =
        import(&world.model(), world.options(2, 1, 1), &stores, &world.key, &world.pool, |_| ()).await;
    assert_eq!(refused.expect_err("closed").code(), code::STORE_UNREACHABLE);
    assert!((0..3).all(|number| world.objects(number).is_empty()));
}

/// Kills an import at every write in turn. Afterwards the earlier model reads as before, and no manifest
/// names the leftovers.
#[tokio::test(start_paused = true)]
async fn an_import_killed_at_any_write_harms_nothing() {
    let world = ModelFixture::simulated(2);
    let earlier = world.import(&world.stores(3), 2, 1).await;
    let before: Vec<_> = (0..3).map(|number| world.objects(number)).collect();
    let mut writes = 0;
    loop {
        let script = Arc::new(Script { writes_left: Some(AtomicU64::new(writes)), ..Script::default() });
        let stores: Vec<Store> = (0..3).map(|number| Faulty::store(&world, number, &script)).collect();
        let options = world.options(2, 1, 2);
        let killed = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
        let placed = world.placed(&earlier, &world.stores(3));
        world.read_all(&earlier.manifest, &placed).await.expect("the earlier model reads");
        if let Ok(imported) = killed {
            let placed = world.placed(&imported, &world.stores(3));
            world.read_all(&imported.manifest, &placed).await.expect("the new model reads");
            break;
        }
        assert_eq!(killed.expect_err("killed").code(), code::STORE_UNREACHABLE);
        for (number, before) in before.iter().enumerate() {
            for name in world.objects(number).into_keys() {
                let known = before.contains_key(&name);
                assert!(known || name.starts_with("models/02/") || name.starts_with("manifests/"), "{name}");
                assert!(known || !name.contains('#'), "{name}");
            }
        }
        writes += 1;
    }
    let groups = earlier.manifest.order.len().div_ceil(3) as u64;
    assert_eq!(writes, 3 * (groups + 1), "every write was the last one once");
}

#[tokio::test]
async fn a_dropped_import_leaves_earlier_models_readable() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let earlier = world.import(&stores, 2, 1).await;
    let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let model = world.model();
    let running = import(&model, world.options(2, 1, 2), &stores, &world.key, &world.pool, move |_| {
        let _ = began.send(());
    });
    tokio::select! {
        _ = running => {}
        _ = begun.recv() => {}
    }
    world.read_all(&earlier.manifest, &world.placed(&earlier, &stores)).await.expect("reads");
}

#[tokio::test]
async fn a_full_store_is_reported_and_nothing_of_the_import_is_kept_elsewhere() {
    let world = ModelFixture::new();
    let full = Script { writes_left: Some(AtomicU64::new(1)), full: true, ..Script::default() };
    let mut stores = world.stores(3);
    stores[1] = Faulty::store(&world, 1, &Arc::new(full));
    let refused =
        import(&world.model(), world.options(2, 1, 1), &stores, &world.key, &world.pool, |_| ()).await;
    let error = refused.expect_err("full");
    assert_eq!(error.code(), code::STORE_FULL);
    assert!(matches!(error, ImportError::Store(StoreError::Full { .. })), "{error:?}");
    assert!(world.objects(0).is_empty() && world.objects(2).is_empty(), "written objects are removed");
}

#[tokio::test]
async fn a_disk_that_fills_up_is_a_full_store_and_earlier_models_stay() {
    let world = ModelFixture::new();
    let Some(disk) = TinyDisk::mount(&world.store_directory(1)) else { return };
    let stores = world.stores(3);
    let small = world.directory.path().join("notes.txt");
    std::fs::write(&small, crate::testing::seeded("notes", 600_000)).expect("write");
    let earlier = import(&small, world.options(2, 1, 7), &stores, &world.key, &world.pool, |_| ()).await;
    let earlier = earlier.expect("it fits");
    let before: Vec<_> = (0..3).map(|number| world.objects(number)).collect();
    let refused =
        import(&world.model(), world.options(2, 1, 1), &stores, &world.key, &world.pool, |_| ()).await;
    let after: Vec<_> = (0..3).map(|number| world.objects(number)).collect();
    let reader = world.reader(&earlier.manifest, &world.placed(&earlier, &stores));
    let read = reader.read_file("notes.txt", 1 << 20).await;
    drop(disk);
    assert_eq!(refused.expect_err("full").code(), code::STORE_FULL);
    assert_eq!(after, before, "nothing half done, not even a leftover");
    assert!(read.expect("reads") == std::fs::read(&small).expect("read"));
}

#[test]
fn a_stalled_import_is_not_registered() {
    let now = SystemTime::now();
    assert!(check_silence(now, now + IMPORT_SILENCE_MAX).is_ok());
    assert!(check_silence(now, now - IMPORT_SILENCE_MAX).is_ok(), "a clock that was set back");
    let stalled =
        check_silence(now, now + IMPORT_SILENCE_MAX + Duration::from_secs(60)).expect_err("stalled");
    assert_eq!(stalled.code(), code::MODEL_IMPORT_STALLED);
    assert!(stalled.to_string().contains("stalled for 31 minutes"), "{stalled}");
}

#[tokio::test]
async fn a_single_file_and_a_code_without_parity_shards_of_one_kind_work() {
    let world = ModelFixture::new();
    let path = world.directory.path().join("notes.txt");
    std::fs::write(&path, crate::testing::seeded("notes", 2_500_000)).expect("write");
    let stores = world.stores(2);
    let mut options = world.options(1, 1, 1);
    options.placement.shards_per_domain_max = 1;
    let mut near = stores[1].reference().clone();
    near.failure_domain = stores[0].reference().failure_domain.clone();
    let together = [stores[0].clone(), crate::open_store(&near, &crate::Context::new()).expect("a store")];
    let refused = import(&path, options.clone(), &together, &world.key, &world.pool, |_| ()).await;
    assert_eq!(refused.expect_err("one domain").code(), code::STORE_TOO_FEW);
    let imported = import(&path, options, &stores, &world.key, &world.pool, |_| ()).await.expect("imported");
    assert_eq!(imported.record.architecture, "file");
    let manifest = fetch_manifest(imported.record.root, &stores, &world.pool).await.expect("a manifest");
    let placed = world.placed(&imported, &stores);
    let reader =
        Reader::open(manifest, &world.key, placed, world.pool.clone(), world.sink()).expect("a reader");
    let memory = Arc::new(MemoryDestination::new(0, 2_500_000));
    reader.fill(memory.clone(), Arc::new(|_| ())).await.expect("filled");
    let bytes = Arc::into_inner(memory).expect("done").into_bytes();
    assert!(bytes == std::fs::read(&path).expect("read"));
}

/// The file is cut along its tensors, and every byte of the tensors and of the padding between them is
/// restored.
#[tokio::test]
async fn a_gguf_model_is_cut_at_its_tensors_and_comes_back() {
    let world = ModelFixture::new();
    let mut gguf = Gguf::of(&[("token_embd.weight", 300_001), ("blk.0.ffn_up.weight", 1_500_000)]);
    gguf.push("blk.1.ffn_up.weight", 14, vec![256, 1000], 210_000);
    gguf.push("output.weight", 8, vec![64, 5000], 340_000);
    std::fs::remove_dir_all(world.model()).expect("remove");
    std::fs::create_dir(world.model()).expect("create");
    std::fs::write(world.model().join("tiny-q8.gguf"), gguf.bytes()).expect("write");
    let stores = world.stores(3);
    let imported = world.import(&stores, 2, 1).await;
    assert_eq!(imported.record.architecture, "gguf");
    assert!(imported.notes[0].contains("no built-in engine reads GGUF yet"), "{:?}", imported.notes);
    let data = gguf.header().len() as u64;
    let begin: Vec<u64> = imported.manifest.segments.iter().map(|segment| segment.offset).collect();
    for tensor in &gguf.tensors {
        assert!(begin.contains(&(data + tensor.offset)), "a segment begins with `{}`", tensor.name);
    }
    world.read_all(&imported.manifest, &world.placed(&imported, &stores)).await.expect("reads");
}

#[tokio::test]
async fn memory_stays_constant_however_large_the_file() {
    let world = ModelFixture::new();
    let script = Arc::new(Script::default());
    let stores: Vec<Store> = (0..3).map(|number| Faulty::store(&world, number, &script)).collect();
    let most = |megabytes: usize, nonce: u8| {
        let path = world.directory.path().join("large.txt");
        std::fs::write(&path, vec![7; megabytes << 20]).expect("write");
        let options = world.options(2, 1, nonce);
        let (script, stores, world) = (&script, &stores, &world);
        async move {
            script.writing_most.store(0, Ordering::SeqCst);
            import(&path, options, stores, &world.key, &world.pool, |_| ()).await.expect("imported");
            script.writing_most.load(Ordering::SeqCst)
        }
    };
    // A group of three segments of 1 MiB at 2+1, a few bytes of tags, and the manifest.
    let group = 3 * 3 * (1 << 19) + 10_000;
    let (small, large) = (most(12, 1).await, most(60, 2).await);
    assert!(small.max(large) <= GROUPS_IN_FLIGHT as u64 * group, "{small} and {large} bytes under way");
}

/// At 10 Mbit/s each write of a group takes far longer than half a minute, and none is silent.
#[tokio::test(start_paused = true)]
async fn an_import_over_a_slow_uplink_succeeds() {
    let world = ModelFixture::simulated(2);
    let cloud = Cloud::new(6);
    let link = SimulatedLink::new(1_250_000, Duration::from_millis(50));
    let began = tokio::time::Instant::now();
    let imported = world.import_bytes(60_000_000, &cloud.behind(&world, &link), 4, 2).await;
    let (took, carried) = (began.elapsed().as_secs_f64(), link.carried());
    assert!(took > 70.0 && took < 1.1 * carried as f64 / 1.25e6, "{took:.1} s for {carried} bytes");
    assert!(carried <= imported.bytes_written, "nothing is sent twice: {carried}");
    let placed = world.placed(&imported, &cloud.at_hand(&world));
    let reader = world.reader(&imported.manifest, &placed);
    let read = reader.read_file("large.txt", 1 << 30).await.expect("reads");
    assert!(read == crate::testing::seeded("large", 60_000_000));
}

#[tokio::test(start_paused = true)]
async fn transient_write_failures_are_retried_and_others_are_not() {
    use PutFailure::{Forbidden, Hang, Overloaded, Reset};
    let link = SimulatedLink::new(10_000_000, Duration::from_millis(10));
    for (failures, tries, expected) in [
        (vec![Overloaded], 2, None),
        (vec![Reset, Overloaded, Hang, Reset], 5, None),
        (vec![Overloaded; 5], 5, Some(code::STORE_UNREACHABLE)),
        (vec![Forbidden], 1, Some(code::STORE_REFUSED)),
        (vec![Reset, Forbidden], 2, Some(code::STORE_REFUSED)),
    ] {
        let world = ModelFixture::simulated(2);
        let cloud = Cloud::new(1);
        let store = cloud.one_behind(&world, 0, &link, &failures);
        let path = crate::geometry::object_path(ModelNonce([1; 16]), 0, 0);
        let payload = PutPayload::from(crate::testing::seeded("object", 1_000_000));
        let written = store.put(&path, payload, &Progress::new()).await;
        assert_eq!(cloud.puts.load(Ordering::SeqCst), tries, "{failures:?}");
        assert_eq!(written.as_ref().err().map(StoreError::code), expected, "{failures:?}: {written:?}");
        let there = cloud.at_hand(&world)[0].get(&path, 1 << 20, |_| ()).await.map(|bytes| bytes.len());
        assert_eq!(there.is_ok(), expected.is_none(), "{failures:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_ends_the_import_and_is_named() {
    let world = ModelFixture::simulated(2);
    let cloud = Cloud::new(3);
    let link = SimulatedLink::new(10_000_000, Duration::from_millis(10));
    let mut stores = cloud.behind(&world, &link);
    stores[1] = cloud.one_behind(&world, 1, &link, &[PutFailure::Hang; 100]);
    let options = world.options(2, 1, 1);
    let failed = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
    let error = failed.expect_err("one stalls");
    assert_eq!(error.code(), code::STORE_UNREACHABLE);
    let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(text.contains(stores[1].url()) && text.contains("no byte within 30 s"), "{text}");
}

#[tokio::test]
async fn a_model_that_no_engine_serves_is_refused_before_any_write_or_marked() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let path = world.model().join("config.json");
    let served = std::fs::read_to_string(&path).expect("read");
    let cases = [
        ("LlamaForCausalLM", "Qwen9ForCausalLM", code::MODEL_ARCHITECTURE_UNKNOWN, "known: BertModel"),
        (r#""hidden_size": 64"#, r#""hidden_act": "relu""#, code::MODEL_FEATURE_UNSUPPORTED, "`relu`"),
        (r#""hidden_size": 64,"#, "", code::MODEL_CONFIG_INVALID, "no `hidden_size`"),
    ];
    for (nonce, (from, to, code, text)) in (1..).zip(cases) {
        std::fs::write(&path, served.replace(from, to)).expect("write");
        let written: usize = (0..3).map(|number| world.objects(number).len()).sum();
        let options = world.options(2, 1, nonce);
        let refused = import(&world.model(), options.clone(), &stores, &world.key, &world.pool, |_| ()).await;
        let error = refused.expect_err("refused");
        let chain = protocol::error_chain(&error);
        assert_eq!(error.code(), code, "{chain}");
        assert!(chain.contains("`--foreign`") && chain.contains(text), "{chain}");
        assert_eq!((0..3).map(|number| world.objects(number).len()).sum::<usize>(), written);

        let foreign = ImportOptions { is_foreign_allowed: true, ..options };
        let foreign = import(&world.model(), foreign, &stores, &world.key, &world.pool, |_| ()).await;
        let foreign = foreign.expect("imported");
        assert_eq!(foreign.record.architecture, "foreign/llama");
        assert!(foreign.notes[0].contains("only a foreign engine") && foreign.notes[0].contains(text));
    }
    std::fs::write(&path, served).expect("write");
    let options = ImportOptions { is_foreign_allowed: true, ..world.options(2, 1, 9) };
    let own = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
    let own = own.expect("imported");
    assert_eq!((own.record.architecture.as_str(), own.notes.len()), ("llama", 0), "what is served stays so");
}

#[tokio::test]
async fn pooling_that_no_engine_serves_is_refused_and_a_decoder_that_embeds_is_registered_as_such() {
    let world = ModelFixture::new();
    let stores = world.stores(3);
    let module = |path: &str, kind: &str| {
        format!(r#"{{"path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#)
    };
    let (transformer, pooling) = (module("", "Transformer"), module("1_Pooling", "Pooling"));
    let last = r#"{"pooling_mode_lasttoken": true}"#;
    let cases = [
        (vec![&transformer, &pooling], r#"{"pooling_mode_max_tokens": true}"#, Err("the pooling in")),
        (vec![&transformer], last, Err("no module `Pooling`")),
        (vec![&pooling, &transformer], last, Err("in this order")),
        (vec![&transformer, &pooling], last, Ok("llama-embedder")),
    ];
    for (nonce, (modules, mode, expected)) in (1..).zip(cases) {
        let list = modules.iter().map(|module| module.as_str()).collect::<Vec<_>>().join(", ");
        std::fs::write(world.model().join("modules.json"), format!("[{list}]")).expect("write");
        std::fs::write(world.model().join("1_Pooling/config.json"), mode).expect("write");
        let options = world.options(2, 1, nonce);
        let imported = import(&world.model(), options, &stores, &world.key, &world.pool, |_| ()).await;
        match (imported, expected) {
            (Ok(imported), Ok(architecture)) => assert_eq!(imported.record.architecture, architecture),
            (Err(error), Err(text)) => {
                let chain = protocol::error_chain(&error);
                assert!(chain.contains(text) && chain.contains("`--foreign`"), "{chain}");
            }
            (Ok(_), Err(text)) => panic!("imported, but: {text}"),
            (Err(error), Ok(_)) => panic!("{}", protocol::error_chain(&error)),
        }
    }
}
