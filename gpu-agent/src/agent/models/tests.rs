//! Tests of the models in memory: sharing, progress, and refusals.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::testing::{NOW, TestCircle, admission, record, service};
use crate::agent::simulation::tiny;
use model_store::{ArtifactBuilder, ArtifactLimits, ImportOptions, PlacementRule, wrap_key};
use overlay::Identity;
use protocol::artifact::ArtifactStart;
use protocol::keys::EncryptionKey;
use protocol::model::{ErasureCode, ModelNonce, Recipient, StoreReference};
use protocol::{Digest, MemberId, NodeId, PublicKey};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The models of a node without any reachable store, and its circle.
struct NodeModels {
    models: Models,
    world: TestCircle,
    _directory: tempfile::TempDir,
}

impl NodeModels {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let secret = EncryptionSecret::create(&directory.path().join("encryption.key")).unwrap();
        let node = admission("node-1", &identity(), secret.public().clone());
        let world = TestCircle::new(vec![node], &["127.0.0.1:1".into()], NOW);
        let (_, circle) = watch::channel(Arc::new(world.state.clone()));
        Self { models: Models::new(Context::new(), secret, circle), world, _directory: directory }
    }

    fn key(&self) -> &EncryptionKey {
        self.models.secret.public()
    }

    /// Returns the model's key, wrapped for this node by a member.
    fn wrap(&self, root: ModelRoot) -> SignedWrap {
        self.wrap_for(root, self.key(), recipient())
    }

    /// Returns the model's key, wrapped to this key by a member who signs for this node's key.
    fn wrap_for(&self, root: ModelRoot, to: &EncryptionKey, recipient: Recipient) -> SignedWrap {
        let wrap = wrap_key(&ModelKey::from_bytes([3; 32]), to, root, recipient).unwrap();
        self.world.sign_wrap(wrap, self.key())
    }

    /// Returns whether the node complains about this wrap if control sends it.
    fn complains(&self, wrap: &SignedWrap) -> bool {
        self.models.unusable_wraps(std::iter::once(wrap)) == [wrap]
    }

    async fn refusal(&self, root: ModelRoot, wrap: Option<SignedWrap>) -> Refusal {
        let source = ModelSource { record: record(root), wrap };
        self.models.get(root, &source).await.expect_err("nothing can be loaded")
    }
}

fn identity() -> Identity {
    Identity::from_seed(&[7; 32])
}

fn recipient() -> Recipient {
    Recipient::Node(NodeId(identity().public_key()))
}

fn root() -> ModelRoot {
    ModelRoot(Digest::of(b"model"))
}

#[test]
fn a_worker_gets_a_thread_for_every_core_or_part_of_one() {
    for (millicores, expected) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (64_000, 64), (u64::MAX, u32::MAX)]
    {
        assert_eq!(threads(millicores), expected, "{millicores}");
    }
}

#[tokio::test]
async fn a_model_whose_key_cannot_be_opened_is_refused() {
    let (node, other) = (NodeModels::new(), NodeModels::new());
    let another = ModelRoot(Digest::of(b"another"));
    let mut renamed = node.wrap(root());
    renamed.wrap.recipient = Recipient::Member("alice".parse::<MemberId>().unwrap());
    for (name, wrap) in [
        ("no wrap", None),
        ("the wrap of another model", Some(node.wrap(another))),
        ("a wrap for another node", Some(other.wrap(root()))),
        ("a wrap with another recipient's name", Some(renamed)),
    ] {
        let refusal = node.refusal(root(), wrap).await;
        assert_eq!(refusal.code, error_code::MODEL_KEY_WRONG, "{name}: {refusal}");
    }
}

/// A wrap that does not give the key, though a member signed it, is named to control; a sound one is not.
#[tokio::test]
async fn the_node_complains_about_a_wrap_that_does_not_open() {
    let node = NodeModels::new();
    let garbage = node.wrap_for(root(), NodeModels::new().key(), recipient());
    let mut unsigned = node.wrap(root());
    unsigned.signature.ed25519.0[0] ^= 1;
    let mut former = node.wrap(root());
    former.maker = "zoe".parse().unwrap();
    for (name, wrap, complains) in [
        ("made for another key", garbage.clone(), true),
        ("its maker's signature does not hold", unsigned, true),
        ("sound", node.wrap(root()), false),
        ("sound, by a member who has left", former, false),
    ] {
        let refusal = node.refusal(root(), Some(wrap.clone())).await;
        assert_eq!(refusal.code == error_code::MODEL_KEY_WRONG, complains, "{name}: {refusal}");
        assert_eq!(node.complains(&wrap), complains, "{name}");
    }
    node.refusal(root(), Some(garbage.clone())).await;
    assert!(!node.complains(&node.wrap(root())), "another wrap has come");
    assert!(!node.complains(&garbage), "what control sends no longer is forgotten");
}

#[tokio::test]
async fn a_model_that_no_store_holds_is_refused_and_takes_no_memory() {
    let node = NodeModels::new();
    let refusal = node.refusal(root(), Some(node.wrap(root()))).await;
    assert_eq!(refusal.code, error_code::MODEL_MANIFEST_INVALID, "{refusal}");
    assert_eq!(node.models.in_memory(), []);
    assert_eq!(node.models.faults(), 0);
}

/// Imports a file into three directories, under the key that [`NodeModels::wrap`] wraps.
async fn import_file(path: &std::path::Path, directory: &std::path::Path, nonce: u8) -> ModelRecord {
    let store = |number: u8| {
        let url = format!("file://{}", directory.join(format!("store-{number}")).display());
        let reference = StoreReference { url, failure_domain: format!("domain-{number}") };
        model_store::open_store(&reference, &Context::new()).unwrap()
    };
    let stores: Vec<Store> = (0..3).map(store).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new("item".parse().unwrap(), ModelNonce([nonce; 16]))
    };
    let (key, pool) = (ModelKey::from_bytes([3; 32]), Pool::new(1));
    model_store::import(path, options, &stores, &key, &pool, |_| ()).await.unwrap().record
}

#[tokio::test]
async fn an_artifact_in_the_place_of_a_model_is_refused() {
    let node = NodeModels::new();
    let directory = tempfile::tempdir().unwrap();
    let mut builder = ArtifactBuilder::new(directory.path(), ArtifactLimits::default()).unwrap();
    builder.add_file("run", true, &b"#!"[..], 2, directory.path()).unwrap();
    let start = ArtifactStart {
        command: vec!["/run".into()],
        environment: BTreeMap::new(),
        working_directory: "/".into(),
        architecture: "amd64".into(),
    };
    let packed = builder.pack(start).unwrap();
    let artifact = import_file(&packed.path, directory.path(), 1).await;
    let text = directory.path().join("model.txt");
    std::fs::write(&text, "weights").unwrap();
    let model = import_file(&text, directory.path(), 2).await;
    let source =
        |record: &ModelRecord| ModelSource { record: record.clone(), wrap: Some(node.wrap(record.root)) };
    let refusal = node.models.get(artifact.root, &source(&artifact)).await.expect_err("an artifact");
    assert_eq!(refusal.code, error_code::MODEL_KIND_WRONG, "{refusal}");
    // Control's statement of the kind does not matter: the manifest is approved by its root.
    let lie = ModelRecord { kind: StoredKind::Model, ..artifact };
    let refusal = node.models.get(lie.root, &source(&lie)).await.expect_err("an artifact");
    assert_eq!(refusal.code, error_code::MODEL_KIND_WRONG, "{refusal}");
    node.models.get(model.root, &source(&model)).await.expect("a model loads");
}

#[tokio::test]
async fn slots_share_one_copy_which_goes_with_its_last_user() {
    let node = NodeModels::new();
    let source = ModelSource { record: record(root()), wrap: None };
    let loading = ModelInHand::new(tiny());
    node.models.hold(root(), &loading.model);
    let first = node.models.get(root(), &source).await.unwrap();
    let second = node.models.get(root(), &source).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(node.models.in_memory(), [(root(), 0, tiny().map_bytes())]);
    loading.complete();
    assert_eq!(node.models.in_memory(), [(root(), 3, tiny().map_bytes())]);
    drop((first, loading));
    assert_eq!(node.models.in_memory().len(), 1, "one user is left");
    drop(second);
    assert_eq!(node.models.in_memory(), []);
    // The next user needs a new load, which has no key here.
    assert_eq!(node.refusal(root(), None).await.code, error_code::MODEL_KEY_WRONG);
}

#[tokio::test]
async fn progress_is_visible_to_the_worker_and_the_agent() {
    let loading = ModelInHand::new(tiny());
    let model = &loading.model;
    let [weights, progress] = model.readers().unwrap().map(File::from);
    let present = || {
        let mut bytes = [9; 3];
        progress.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!((present(), model.segments_verified(), model.segments_total()), ([0; 3], 0, 3));
    assert_eq!(weights.metadata().unwrap().len(), tiny().map_bytes());
    assert_eq!(*model.fill().borrow(), Fill::Running(None));
    loading.trouble("a store does not answer");
    assert_eq!(*model.fill().borrow(), Fill::Running(Some("a store does not answer".into())));
    model.memory.publish(1);
    assert_eq!((present(), model.segments_verified()), ([0, 1, 0], 1));
    loading.complete();
    assert_eq!((present(), model.segments_verified()), ([1; 3], 3));
    assert_eq!(*model.fill().borrow(), Fill::Complete);
}

#[tokio::test]
async fn bytes_are_lent_only_within_the_weights() {
    let memory = ModelMemory::create(&tiny()).unwrap();
    let length = memory.weights.length();
    let mut fill = |bytes: &mut [u8]| {
        bytes.fill(7);
        true
    };
    assert!(memory.with_buffer(length as u64 - 4, 4, &mut fill).unwrap());
    for (offset, bytes) in [(length as u64 - 4, 5), (u64::MAX, 1), (length as u64 + 1, 0)] {
        let error = memory.with_buffer(offset, bytes, &mut fill).expect_err("outside");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bytes} bytes at {offset}");
    }
}

#[tokio::test]
async fn a_workers_manifest_names_its_slot_and_its_share_of_the_node() {
    let mut world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
    let mut manifest = service("chat", root(), 4);
    let bundle = world.deploy(&manifest);
    let order = world.plain_order(&bundle, NodeId(PublicKey([7; 32])), 2, 5);
    let loading = ModelInHand::new(tiny());
    let plain = loading.model.worker_manifest(&manifest, &order, &[]);
    assert_eq!((plain.slot, plain.fence, plain.threads), (order.slot, order.fence, 1));
    assert_eq!((plain.map_bytes, plain.segments.len()), (tiny().map_bytes(), 3));
    assert_eq!((plain.gpus.as_slice(), plain.gpu_memory_bytes), (&[][..], None));
    // A share of a device is bounded; a whole device is not.
    manifest.resources.gpu_memory_bytes = 1 << 30;
    assert_eq!(loading.model.worker_manifest(&manifest, &order, &[0]).gpu_memory_bytes, None);
    manifest.resources.gpu_share_percent = 50;
    let shared = loading.model.worker_manifest(&manifest, &order, &[0]);
    assert_eq!((shared.gpus.as_slice(), shared.gpu_memory_bytes), (&[0][..], Some(1 << 30)));
}

/// The attack: control reports a large model as a small one, so that its order is accepted. The positive
/// control is the record as it was registered.
#[test]
fn attack_a_model_that_is_larger_than_reported() {
    let manifest = tiny();
    for (bytes, expected) in [
        (manifest.file_bytes(), Ok(())),
        (manifest.file_bytes() + 1, Ok(())),
        (manifest.file_bytes() - 1, Err(error_code::MODEL_RECORD_DIFFERS)),
        (0, Err(error_code::MODEL_RECORD_DIFFERS)),
    ] {
        let record = ModelRecord { bytes, ..record(root()) };
        assert_eq!(check_size(&manifest, &record).map_err(|refusal| refusal.code), expected, "{bytes}");
    }
}
