//! Attacks of admitted nodes on stores: deletion, overwriting, planting. Each has a control in which the same
//! request succeeds, because the circle or the import's writer asks for it.

use super::*;
use crate::testing::flip;
use crate::{Imported, SweepOptions, SweepReport};
use protocol::ModelRoot;
use protocol::model::StoredKind;
use std::collections::BTreeSet;

/// Three nodes with one store each, and the peers that they admit.
struct Fleet {
    world: ModelFixture,
    decisions: Arc<ScriptedDecisions>,
    nodes: Vec<Node>,
    importer: Identity,
    hostile: Identity,
    gateway: Identity,
}

impl Fleet {
    async fn new() -> Self {
        let key = || Identity::generate().expect("a key");
        let (importer, hostile, gateway) = (key(), key(), key());
        let gateways = BTreeSet::from([gateway.public_key()]);
        let decisions = Arc::new(ScriptedDecisions { gateways, ..ScriptedDecisions::default() });
        let world = ModelFixture::new();
        let mut nodes = Vec::new();
        for number in 0..3 {
            let directories = BTreeMap::from([("a".into(), world.store_directory(number))]);
            let service = ShardService::new(&directories, decisions.clone()).expect("directories");
            nodes.push(serve_it(service, &[&importer, &hostile, &gateway]).await);
        }
        Self { world, decisions, nodes, importer, hostile, gateway }
    }

    /// Opens the stores as this peer.
    fn stores(&self, peer: &Identity) -> Vec<Store> {
        let address = |(number, node): (usize, &Node)| {
            let address = node.address.to_string().parse().expect("an address");
            let name: protocol::NodeName = format!("n{number}").parse().expect("a name");
            (name, NodeAddress { address, key: node.identity.public_key() })
        };
        let addresses: BTreeMap<_, _> = self.nodes.iter().enumerate().map(address).collect();
        let context = Context::new().with_nodes(peer.clone(), move |name| addresses.get(name).cloned());
        let store = |number| {
            let url = format!("node://n{number}/a");
            open_store(&StoreReference { url, failure_domain: format!("n{number}") }, &context)
        };
        (0..self.nodes.len()).map(|number| store(number).expect("a store")).collect()
    }

    /// Imports a packed checkpoint as this peer.
    async fn import_job_data(&self, peer: &Identity) -> Imported {
        let directory = self.world.directory.path();
        let (data, work) = (directory.join("data"), directory.join("work"));
        std::fs::create_dir(&data).expect("created");
        std::fs::create_dir(&work).expect("created");
        std::fs::write(data.join("weights"), vec![7; 3_000_000]).expect("written");
        let mut builder =
            crate::ArtifactBuilder::new(&work, crate::ArtifactLimits::default()).expect("built");
        builder.add_data(&std::fs::File::open(&data).expect("open"), &data).expect("added");
        let packed = builder.pack_data().expect("packed").expect("not empty");
        let options = crate::ImportOptions { is_job_data: true, ..self.world.options(2, 1, 5) };
        let (stores, key, pool) = (self.stores(peer), &self.world.key, &self.world.pool);
        let imported = crate::import(&packed.path, options, &stores, key, pool, |_| ()).await;
        let imported = imported.expect("imported");
        assert_eq!(imported.record.kind, StoredKind::JobData { tree: packed.root });
        assert_eq!(imported.record.architecture, "data");
        // Reads are compared with the files of the sample model.
        let copy = self.world.model().join(protocol::artifact::ARTIFACT_FILE);
        std::fs::copy(&packed.path, copy).expect("copied");
        imported
    }

    async fn import(&self) -> Imported {
        self.world.import(&self.stores(&self.importer), 2, 1).await
    }

    /// Opens the stores in shard order as this peer.
    fn placed(&self, imported: &Imported, peer: &Identity) -> Vec<Store> {
        self.world.placed(imported, &self.stores(peer))
    }

    /// Returns every object with the number of its store.
    fn objects(&self) -> Vec<(usize, String)> {
        let of_store = |number| self.world.objects(number).into_keys().map(move |name| (number, name));
        let is_object = |(_, name): &(usize, String)| is_object_name(name);
        (0..3).flat_map(of_store).filter(is_object).collect()
    }

    async fn reads(&self, imported: &Imported) -> bool {
        let stores = self.placed(imported, &self.importer);
        let read = self.world.read_all(&imported.manifest, &stores).await;
        read.is_ok_and(|report| report.faults == 0)
    }

    /// Deletes every object as this peer; returns the codes of the answers.
    async fn delete_all(&self, peer: &Identity) -> BTreeSet<&'static str> {
        let stores = self.stores(peer);
        let mut codes = BTreeSet::new();
        for (number, name) in self.objects() {
            let removed = stores[number].remove(vec![name]).await;
            codes.insert(removed.map_or_else(|error| error.code().as_str(), |()| "removed"));
        }
        codes
    }

    /// Writes other bytes over every shard object as this peer; returns the codes of the answers.
    async fn overwrite_shards(&self, peer: &Identity) -> BTreeSet<&'static str> {
        let mut codes = BTreeSet::new();
        for (number, name) in self.objects().into_iter().filter(|(_, name)| name.starts_with("models")) {
            let file = self.world.store_directory(number).join(&name);
            let mut bytes = std::fs::read(file).expect("there");
            bytes[0] ^= 1;
            codes.insert(self.put(peer, number, &name, bytes).await);
        }
        codes
    }

    /// Writes one object as this peer; returns the code of the answer.
    async fn put(&self, peer: &Identity, number: usize, name: &str, bytes: Vec<u8>) -> &'static str {
        let store = &self.stores(peer)[number];
        let progress = crate::store::Progress::new();
        let written = store.put(&StorePath::from(name), PutPayload::from(bytes), &progress).await;
        written.map_or_else(|error| error.code().as_str(), |()| "taken")
    }

    async fn sweep(&self, peer: &Identity, forgotten: &[ModelRoot]) -> SweepReport {
        let now = SystemTime::now() + Duration::from_secs(48 * 3600);
        let options = SweepOptions { older_than: crate::SWEEP_AGE_DEFAULT, now, remove: true };
        let forgotten = forgotten.iter().copied().collect();
        let register = || async { Ok::<_, std::io::Error>(Vec::new()) };
        let (stores, pool) = (self.stores(peer), &self.world.pool);
        crate::sweep(&stores, options, &forgotten, pool, register, |_| ()).await.expect("swept")
    }

    async fn repair(&self, imported: &Imported, peer: &Identity) -> crate::RepairReport {
        let stores = self.placed(imported, peer);
        let (manifest, pool) = (&imported.manifest, &self.world.pool);
        crate::repair(manifest, &stores, pool, self.world.sink(), |_, _| ()).await.expect("a report")
    }
}

/// Before, a peer removed every object of every model seconds after its import. The control is the decision
/// to forget the model: the same requests of the same peer remove everything.
#[tokio::test]
async fn an_admitted_node_deletes_no_model() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    for patience in [Duration::ZERO, Duration::from_secs(365 * 24 * 3600)] {
        fleet.decisions.wait(patience);
        assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
        assert!(fleet.reads(&imported).await);
    }
    fleet.decisions.forget(imported.record.root);
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["removed"]));
    assert!(fleet.objects().is_empty());
    let empty = crate::geometry::model_prefix(imported.manifest.nonce);
    assert!((0..3).all(|number| !fleet.world.store_directory(number).join(empty.as_ref()).exists()));
}

/// Before, a peer replaced any shard and any manifest. The control is an import of its own: the same kind of
/// request is taken once, and refused the second time.
#[tokio::test]
async fn an_admitted_node_overwrites_nothing() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    for peer in [&fleet.hostile, &fleet.importer] {
        assert_eq!(fleet.overwrite_shards(peer).await, BTreeSet::from(["store-object-exists"]));
        for (number, name) in fleet.objects() {
            let bytes = std::fs::read(fleet.world.store_directory(number).join(&name)).expect("there");
            assert_eq!(fleet.put(peer, number, &name, bytes).await, "taken", "the same bytes again");
        }
        let manifest = crate::geometry::manifest_path(imported.record.root).to_string();
        assert_eq!(fleet.put(peer, 0, &manifest, b"other bytes".to_vec()).await, "store-refused");
    }
    assert!(fleet.reads(&imported).await);
    let own = name(9).to_string();
    assert_eq!(fleet.put(&fleet.hostile, 0, &own, b"one".to_vec()).await, "taken");
    assert_eq!(fleet.put(&fleet.hostile, 0, &own, b"two".to_vec()).await, "store-object-exists");
    assert_eq!(fleet.put(&fleet.hostile, 0, &own, b"longer".to_vec()).await, "store-object-exists");
    assert_eq!(fleet.put(&fleet.hostile, 0, &own, b"one".to_vec()).await, "taken");
}

/// The control is a node with another role, whose requests are taken.
#[tokio::test]
async fn a_gateway_writes_and_deletes_nothing() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    fleet.decisions.forget(imported.record.root);
    assert_eq!(fleet.delete_all(&fleet.gateway).await, BTreeSet::from(["store-refused"]));
    let own = name(9).to_string();
    assert_eq!(fleet.put(&fleet.gateway, 0, &own, b"x".to_vec()).await, "store-refused");
    assert_eq!(fleet.put(&fleet.hostile, 0, &own, b"x".to_vec()).await, "taken");
    assert_eq!(fleet.delete_all(&fleet.importer).await, BTreeSet::from(["removed", "store-object-held"]));
}

/// The control is a register that lists nothing and a circle that decided to forget: then everything goes.
#[tokio::test]
async fn a_sweep_that_is_told_of_no_models_removes_none() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    let before = fleet.objects();
    let report = fleet.sweep(&fleet.hostile, &[]).await;
    assert_eq!((report.garbage.objects, report.removed.objects), (0, 0), "{report:?}");
    assert_eq!(report.sealed.objects, before.len() as u64);
    assert_eq!(
        report.unregistered,
        BTreeMap::from([(imported.record.root, "sample".parse().expect("a name"))])
    );
    assert!(fleet.reads(&imported).await);
    // A client that claims the decision gets nowhere either: each store verifies it.
    let lied = fleet.sweep(&fleet.hostile, &[imported.record.root]).await;
    assert_eq!((lied.removed.objects, lied.failures.len()), (0, 3), "{lied:?}");
    assert_eq!(fleet.objects(), before);
    fleet.decisions.forget(imported.record.root);
    let done = fleet.sweep(&fleet.hostile, &[imported.record.root]).await;
    assert_eq!((done.removed.objects, done.failures.len()), (before.len() as u64, 0), "{done:?}");
    assert!(fleet.objects().is_empty());
}

/// A repair by any node puts back the bytes that the manifest names, and those alone.
#[tokio::test]
async fn a_damaged_object_takes_the_named_bytes_from_any_node() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    let (number, shard) =
        fleet.objects().into_iter().find(|(_, name)| name.starts_with("models")).expect("one");
    let file = fleet.world.store_directory(number).join(&shard);
    let whole = std::fs::read(&file).expect("there");
    flip(&file, 3, 3);
    let mut other = whole.clone();
    other[5] ^= 1;
    assert_eq!(fleet.put(&fleet.hostile, number, &shard, other.clone()).await, "store-object-exists");
    std::fs::remove_file(&file).expect("remove");
    assert_eq!(fleet.put(&fleet.hostile, number, &shard, other).await, "store-object-exists");
    assert!(!file.exists(), "the damage is not worse than before");
    let beyond = shard.replace("00000000-", "0000ffff-");
    assert_eq!(fleet.put(&fleet.hostile, number, &beyond, whole.clone()).await, "store-refused");
    let report = fleet.repair(&imported, &fleet.hostile).await;
    assert!(report.is_complete() && report.objects_written == 1, "{report:?}");
    assert_eq!(std::fs::read(&file).expect("there"), whole);
}

/// A store on a new disk is filled by a repair, although it knows no writer of the import.
#[tokio::test]
async fn a_new_disk_is_filled_by_a_repair() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    let before = fleet.objects();
    for top in ["models", "manifests"] {
        std::fs::remove_dir_all(fleet.world.store_directory(1).join(top)).expect("remove");
    }
    let report = fleet.repair(&imported, &fleet.hostile).await;
    assert!(report.is_complete() && report.manifests_written == 1, "{report:?}");
    assert_eq!(fleet.objects(), before);
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
    assert!(fleet.reads(&imported).await);
}

/// A hostile node seals a new disk with a manifest of its own that names the import of another model. The
/// model that a service names takes its place; until then the repair is refused.
#[tokio::test]
async fn a_planted_manifest_gives_way_to_the_one_that_a_service_names() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    for top in ["models", "manifests"] {
        std::fs::remove_dir_all(fleet.world.store_directory(1).join(top)).expect("remove");
    }
    let mut planted = (*imported.manifest).clone();
    planted.name = "planted".parse().expect("a name");
    for segment in &mut planted.segments {
        segment.shards.iter_mut().for_each(|digest| digest.0[0] ^= 1);
    }
    let bytes = protocol::canonical::to_bytes(&planted);
    let manifest = crate::geometry::manifest_path(planted.root()).to_string();
    assert_eq!(fleet.put(&fleet.hostile, 0, &manifest, bytes.clone()).await, "store-object-exists");
    assert_eq!(fleet.put(&fleet.hostile, 1, &manifest, bytes).await, "taken", "nothing is there");
    assert!(!fleet.repair(&imported, &fleet.importer).await.is_complete());
    fleet.decisions.name(imported.record.root);
    assert!(fleet.repair(&imported, &fleet.importer).await.is_complete());
    assert!(fleet.reads(&imported).await);
}

/// An import that is not sealed is its writer's. When it has been silent for an hour, anyone removes it.
#[tokio::test]
async fn an_unfinished_import_is_its_writers_until_it_is_silent() {
    let fleet = Fleet::new().await;
    let nonce = protocol::model::ModelNonce([4; 16]);
    let object = |group| crate::geometry::object_path(nonce, group, 0).to_string();
    assert_eq!(fleet.put(&fleet.importer, 0, &object(0), b"x".to_vec()).await, "taken");
    assert_eq!(fleet.put(&fleet.hostile, 0, &object(1), b"x".to_vec()).await, "store-object-held");
    assert_eq!(fleet.put(&fleet.importer, 0, &object(1), b"x".to_vec()).await, "taken");
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
    fleet.decisions.wait(SWEEP_AGE_MIN - Duration::from_secs(60));
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
    fleet.decisions.wait(Duration::from_secs(3600));
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["removed"]));
    assert_eq!(fleet.put(&fleet.importer, 0, &object(0), b"x".to_vec()).await, "taken");
    assert_eq!(fleet.delete_all(&fleet.importer).await, BTreeSet::from(["removed"]));
}

/// A manifest of a hostile node does not seal the running import of another.
#[tokio::test]
async fn a_running_import_is_sealed_by_its_writer_alone() {
    let fleet = Fleet::new().await;
    let finished = fleet.import().await;
    let nonce = protocol::model::ModelNonce([4; 16]);
    let object = crate::geometry::object_path(nonce, 0, 0).to_string();
    assert_eq!(fleet.put(&fleet.importer, 0, &object, b"x".to_vec()).await, "taken");
    let mut planted = (*finished.manifest).clone();
    planted.nonce = nonce;
    let bytes = protocol::canonical::to_bytes(&planted);
    let manifest = crate::geometry::manifest_path(planted.root()).to_string();
    assert_eq!(fleet.put(&fleet.hostile, 0, &manifest, bytes.clone()).await, "store-object-held");
    assert_eq!(fleet.put(&fleet.importer, 0, &manifest, bytes).await, "taken");
}

/// The writer removes a complete import while it may not be registered yet, and no later. A model that a
/// service names is kept at once.
#[tokio::test]
async fn a_complete_import_is_let_go_by_its_writer_before_it_is_registered() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    crate::let_go(&imported, &fleet.stores(&fleet.hostile)).await;
    assert!(fleet.reads(&imported).await, "another node lets nothing go");
    fleet.decisions.name(imported.record.root);
    crate::let_go(&imported, &fleet.stores(&fleet.importer)).await;
    assert!(fleet.reads(&imported).await, "a service names it");
    fleet.decisions.named.lock().expect("no panic").clear();
    fleet.decisions.wait(crate::IMPORT_SILENCE_MAX + Duration::from_secs(60));
    crate::let_go(&imported, &fleet.stores(&fleet.importer)).await;
    assert!(fleet.reads(&imported).await, "it is registered by now, or never");
    *fleet.decisions.now.lock().expect("no panic") = SystemTime::now();
    crate::let_go(&imported, &fleet.stores(&fleet.importer)).await;
    assert!(fleet.objects().is_empty());
}

/// Objects that did not come through the service have no writer there. Their manifest seals them too.
#[tokio::test]
async fn a_model_that_the_node_imported_itself_is_kept_too() {
    let fleet = Fleet::new().await;
    let local = fleet.world.stores(3);
    let imported = fleet.world.import(&local, 2, 1).await;
    fleet.decisions.wait(Duration::from_secs(48 * 3600));
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
    assert_eq!(fleet.overwrite_shards(&fleet.hostile).await, BTreeSet::from(["store-object-exists"]));
    fleet.world.read_all(&imported.manifest, &fleet.world.placed(&imported, &local)).await.expect("reads");
    fleet.decisions.forget(imported.record.root);
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["removed"]));
}

/// A store that cannot read one of its manifests does not know whether it seals an import without a writer,
/// and keeps that import however old it is. The control is the same import after the damage is gone.
#[tokio::test]
async fn an_unreadable_manifest_keeps_what_it_might_seal() {
    let fleet = Fleet::new().await;
    let local = fleet.world.stores(3);
    let imported = fleet.world.import(&local, 2, 1).await;
    let manifest = crate::geometry::manifest_path(imported.record.root);
    for number in 0..3 {
        flip(&fleet.world.store_directory(number).join(manifest.as_ref()), 0, 0);
    }
    fleet.decisions.wait(Duration::from_secs(48 * 3600));
    let shards =
        |fleet: &Fleet| fleet.objects().iter().filter(|(_, name)| name.starts_with("models")).count();
    let before = shards(&fleet);
    assert!(!fleet.delete_all(&fleet.hostile).await.contains("removed"));
    assert_eq!(shards(&fleet), before);
    for number in 0..3 {
        std::fs::remove_file(fleet.world.store_directory(number).join(manifest.as_ref())).expect("remove");
    }
    assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["removed"]));
}

/// Of two uploads of one object at once, one is taken; the other is taken only if its bytes are the same.
#[tokio::test]
async fn two_uploads_of_one_object_leave_one_of_them_whole() {
    let fleet = Fleet::new().await;
    let object = name(9).to_string();
    let bytes = |byte: u8| vec![byte; 2_500_000];
    let put = |byte| fleet.put(&fleet.importer, 0, &object, bytes(byte));
    let answers = futures::future::join_all([put(1), put(2), put(1)]).await;
    let stored = std::fs::read(fleet.world.store_directory(0).join(&object)).expect("there");
    let winner = stored[0];
    assert_eq!(stored, bytes(winner));
    for (byte, answer) in [1, 2, 1].into_iter().zip(answers) {
        assert_eq!(answer, if byte == winner { "taken" } else { "store-object-exists" }, "{byte}");
    }
}

/// A forgotten model is not stored again; the control is the same manifest before the decision.
#[tokio::test]
async fn a_forgotten_model_takes_no_manifest_any_more() {
    let fleet = Fleet::new().await;
    let imported = fleet.import().await;
    let manifest = crate::geometry::manifest_path(imported.record.root).to_string();
    let bytes = protocol::canonical::to_bytes(&*imported.manifest);
    assert_eq!(fleet.put(&fleet.importer, 0, &manifest, bytes.clone()).await, "taken");
    fleet.decisions.forget(imported.record.root);
    assert_eq!(fleet.put(&fleet.importer, 0, &manifest, bytes).await, "store-refused");
}

/// The attack is a stolen node that removes what other nodes' jobs stored; their own node may. The control is
/// the same request by the writer, and that of any node once no job can need the data.
#[tokio::test]
async fn data_of_a_job_goes_with_its_writer_and_once_no_job_can_need_it() {
    let fleet = Fleet::new().await;
    let imported = fleet.import_job_data(&fleet.importer).await;
    for patience in [Duration::ZERO, Duration::from_secs(24 * 3600)] {
        fleet.decisions.wait(patience);
        assert_eq!(fleet.delete_all(&fleet.hostile).await, BTreeSet::from(["store-object-held"]));
        assert!(fleet.reads(&imported).await);
    }
    crate::let_go(&imported, &fleet.stores(&fleet.importer)).await;
    assert!(fleet.objects().is_empty(), "a day later its writer lets it go");

    let fleet = Fleet::new().await;
    fleet.import_job_data(&fleet.importer).await;
    fleet.decisions.wait(Duration::from_millis(protocol::job_data::JOB_DATA_HELD_MS + 3_600_000));
    let report = fleet.sweep(&fleet.hostile, &[]).await;
    assert!(fleet.objects().is_empty() && report.failures.is_empty(), "{report:?}");
}

/// A checkpoint that control keeps no more is garbage; a model that control leaves out never is.
#[tokio::test]
async fn a_collection_removes_data_of_jobs_that_is_not_registered_and_no_model() {
    let fleet = Fleet::new().await;
    let model = fleet.import().await;
    let data = fleet.import_job_data(&fleet.importer).await;
    let refused = fleet.sweep(&fleet.hostile, &[]).await;
    assert_eq!((refused.removed.objects, refused.failures.len()), (0, 3), "{refused:?}");
    assert!(fleet.reads(&data).await && fleet.reads(&model).await);
    let report = fleet.sweep(&fleet.importer, &[]).await;
    assert_eq!((report.removed, report.failures.len()), (report.garbage, 0), "{report:?}");
    assert_eq!(report.unregistered.len(), 1, "the model");
    assert!(!fleet.reads(&data).await && fleet.reads(&model).await);
}
