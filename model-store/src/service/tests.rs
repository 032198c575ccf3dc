//! Tests of the shard service over real overlay connections: requests of an admitted peer, and refusals.

mod attacks;

use super::*;
use crate::testing::{ModelFixture, ScriptedDecisions};
use crate::{Context, NodeAddress, Store, open_store};
use object_store::path::Path as StorePath;
use object_store::{Error, PutPayload};
use overlay::{CancellationToken, Client, Identity, PeerPolicy};
use protocol::model::StoreReference;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

struct Node {
    address: SocketAddr,
    identity: Identity,
    stop: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves these directories to `peer` alone.
async fn serve(directories: BTreeMap<String, PathBuf>, peer: &Identity) -> Node {
    serve_it(scripted(&directories), &[peer]).await
}

/// Returns a service of these directories in a circle that decided nothing.
fn scripted(directories: &BTreeMap<String, PathBuf>) -> ShardService {
    ShardService::new(directories, Arc::new(ScriptedDecisions::default())).expect("directories")
}

async fn serve_it(service: ShardService, peers: &[&Identity]) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let identity = Identity::generate().expect("a key");
    let stop = CancellationToken::new();
    let admitted = peers.iter().map(|peer| peer.public_key());
    let (node, policy, ending) = (identity.clone(), PeerPolicy::only(admitted), stop.clone());
    tokio::spawn(async move {
        overlay::serve(listener, &node, policy, ShardService::limits(), service.router(), ending).await
    });
    Node { address, identity, stop }
}

fn remote(node: &Node, peer: &Identity, store: &str) -> crate::RemoteStore {
    let client = Client::new(peer.clone(), node.address, node.identity.public_key(), limits());
    crate::RemoteStore::new(client, store)
}

fn name(byte: u8) -> StorePath {
    crate::geometry::object_path(protocol::model::ModelNonce([byte; 16]), 0, 1)
}

#[tokio::test]
async fn a_peer_writes_reads_lists_and_deletes() {
    let directory = tempfile::tempdir().expect("a directory");
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), directory.path().join("a"))]), &peer).await;
    let store = remote(&node, &peer, "a");
    let bytes = crate::testing::seeded("object", 3_000_000);
    store.put(&name(1), PutPayload::from(bytes.clone())).await.expect("written");
    store.put(&name(2), PutPayload::from_static(b"")).await.expect("written empty");
    let read = store.get(&name(1)).await.expect("read").bytes().await.expect("bytes");
    assert!(read == bytes);
    let part = store.get_range(&name(1), 1_000..2_000_000).await.expect("a range");
    assert!(part[..] == bytes[1_000..2_000_000]);
    let short = store.get_range(&name(1), 2_999_999..4_000_000).await.expect("the bytes up to the end");
    assert_eq!(short[..], bytes[2_999_999..]);
    assert!(store.get_range(&name(1), 3_000_000..3_000_001).await.is_err());
    assert_eq!(store.head(&name(1)).await.expect("a head").size, 3_000_000);
    assert!(matches!(store.get(&name(9)).await, Err(Error::NotFound { .. })));
    let listed: Vec<_> =
        store.list(None).map_ok(|meta| (meta.location, meta.size)).try_collect().await.expect("listed");
    assert_eq!(listed, [(name(1), 3_000_000), (name(2), 0)]);
    let prefix = StorePath::from("models/02");
    let below: Vec<_> = store.list(Some(&prefix)).try_collect().await.expect("listed");
    assert_eq!(below.len(), 1);
    store.delete(&name(1)).await.expect("deleted");
    assert!(matches!(store.head(&name(1)).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_listing_longer_than_a_page_comes_whole_and_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), directory.path().join("a"))]), &peer).await;
    let nonce = protocol::model::ModelNonce([5; 16]);
    let path = |group| crate::geometry::object_path(nonce, group, 0);
    let parent = directory.path().join("a").join(crate::geometry::model_prefix(nonce).as_ref());
    std::fs::create_dir_all(&parent).expect("create");
    for group in 0..2_300 {
        std::fs::write(directory.path().join("a").join(path(group).as_ref()), b"x").expect("write");
    }
    std::fs::write(parent.join("00000000-00#3"), b"torn").expect("write");
    std::fs::write(parent.join("unrelated"), b"x").expect("write");
    let store = remote(&node, &peer, "a");
    let listed: Vec<_> = store.list(None).map_ok(|meta| meta.location).try_collect().await.expect("listed");
    assert!(listed.into_iter().eq((0..2_300).map(path)));
}

#[tokio::test]
async fn names_sizes_and_stores_that_are_not_ours_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("secret.txt"), b"secret").expect("write");
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), directory.path().join("a"))]), &peer).await;
    let client = Client::new(peer.clone(), node.address, node.identity.public_key(), limits());
    let ask = |method: &str, path: &str| {
        let request =
            http::Request::builder().method(method).uri(path).body(Bytes::new()).expect("a request");
        let client = client.clone();
        async move { client.request(request).await.expect("an answer").status().as_u16() }
    };
    for path in [
        "/shards/v1/a/../secret.txt",
        "/shards/v1/a/..%2fsecret.txt",
        "/shards/v1/a/%2e%2e/secret.txt",
        "/shards/v1/a/models/ab/x",
    ] {
        for method in ["GET", "PUT", "DELETE", "HEAD"] {
            assert_eq!(ask(method, path).await, 400, "{method} {path}");
        }
    }
    let leftover = "/shards/v1/a/models/00/00000000000000000000000000000000/00000000-00%231";
    for method in ["GET", "PUT", "HEAD"] {
        assert_eq!(ask(method, leftover).await, 400, "{method} {leftover}");
    }
    let object = format!("/shards/v1/b/{}", name(1));
    assert_eq!(ask("GET", &object).await, 404, "no such store");
    let manifest = crate::geometry::manifest_path(protocol::ModelRoot(protocol::Digest([1; 32])));
    let manifest = format!("/shards/v1/a/{manifest}");
    assert_eq!(ask("PUT", &manifest).await, 400, "no bytes are no manifest");
    assert_eq!(ask("DELETE", &manifest).await, 404);
    assert_eq!(ask("GET", "/shards/v1/a?prefix=..").await, 400);
    assert_eq!(ask("GET", "/shards/v1/a?unknown=1").await, 400);
    assert_eq!(ask("POST", &manifest).await, 405);
    let store = remote(&node, &peer, "a");
    let large = PutPayload::from(vec![0; OBJECT_BYTES_MAX + 1]);
    assert!(store.put(&name(1), large).await.is_err(), "too large");
    let zeros = http::Request::put(format!("/shards/v1/a/{}", name(1))).header("content-length", "5");
    let zeros =
        zeros.body(overlay::Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>("abc")])));
    assert!(!client.send(zeros.expect("a request")).await.is_ok_and(|answer| answer.status().is_success()));
    let listed: Vec<_> = store.list(None).try_collect().await.expect("listed");
    assert_eq!(listed.len(), 0, "nothing is there");
}

/// Leftovers are removed only if the service itself finds them old: a peer's haste removes no running upload.
#[tokio::test]
async fn only_old_leftovers_are_removed_and_they_are_listed_on_demand() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("a");
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), root.clone())]), &peer).await;
    let store = remote(&node, &peer, "a");
    store.put(&name(1), PutPayload::from_static(b"x")).await.expect("written");
    let torn = format!("{}#1", name(1));
    std::fs::write(root.join(&torn), b"half").expect("write");
    let listed: Vec<_> = store.list(None).try_collect().await.expect("listed");
    assert_eq!(listed.len(), 1, "leftovers are no objects");
    let all: Vec<_> = store.list_all("").map_ok(|found| found.name).try_collect().await.expect("listed");
    assert_eq!(all, [name(1).to_string(), torn.clone()]);
    let refused = store.remove(&torn).await.expect_err("young");
    assert!(refused.to_string().contains("younger than an hour"), "{refused}");
    make_old(&root.join(&torn));
    store.remove(&torn).await.expect("old");
    assert!(matches!(store.remove(&torn).await, Err(Error::NotFound { .. })));
    store.remove(name(1).as_ref()).await.expect("its writer lets it go");
    assert!(!root.join("models/01").join(protocol::model::ModelNonce([1; 16]).to_string()).exists());
}

/// Sets the age of a file to more than an hour.
fn make_old(file: &Path) {
    let old = SystemTime::now() - SWEEP_AGE_MIN - Duration::from_secs(60);
    std::fs::File::options().write(true).open(file).expect("there").set_modified(old).expect("a time");
}

/// A service whose store has no room left for the second part of an upload.
#[tokio::test]
async fn a_full_disk_is_reported_and_nothing_of_the_upload_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("a");
    let service = scripted(&BTreeMap::from([("a".into(), root.clone())]));
    let mut inner = Arc::into_inner(service.inner).expect("new");
    let place = inner.stores.get_mut("a").expect("there");
    let script = crate::testing::Script { parts_left: Some(1.into()), full: true, ..Default::default() };
    place.objects = Arc::new(crate::testing::Faulty::new(place.objects.clone(), &Arc::new(script)));
    let peer = Identity::generate().expect("a key");
    let node = serve_it(ShardService { inner: Arc::new(inner) }, &[&peer]).await;
    let store = crate::Store::from_objects(reference(), Arc::new(remote(&node, &peer, "a")));
    let bytes = crate::testing::seeded("object", 3_000_000);
    let full = store
        .put(&name(1), PutPayload::from(bytes.clone()), &crate::store::Progress::new())
        .await
        .expect_err("full");
    assert_eq!(full.code(), code::STORE_FULL, "{full}");
    assert_eq!(files(&root), 0, "nothing is left, not even a part");
    store
        .put(&name(1), PutPayload::from(bytes), &crate::store::Progress::new())
        .await
        .expect("with room again");
    assert_eq!(files(&root), 1);
}

#[tokio::test]
async fn a_real_full_disk_is_reported_and_nothing_of_the_upload_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = crate::testing::TinyDisk::mount(&directory.path().join("a"));
    let Some(disk) = disk else { return };
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), disk.path().into())]), &peer).await;
    let store = crate::Store::from_objects(reference(), Arc::new(remote(&node, &peer, "a")));
    store
        .put(&name(1), PutPayload::from(vec![1; 400_000]), &crate::store::Progress::new())
        .await
        .expect("it fits");
    let full = store
        .put(&name(2), PutPayload::from(vec![2; 3_000_000]), &crate::store::Progress::new())
        .await
        .expect_err("full");
    assert_eq!(full.code(), code::STORE_FULL, "{full}");
    assert_eq!(files(disk.path()), 1, "the earlier file is there, and no other");
    let kept = store.get(&name(1), 1 << 20, |_| ()).await.expect("read");
    assert!(kept[..] == [1; 400_000]);
    drop(node);
}

fn reference() -> StoreReference {
    StoreReference { url: "node://n/a".into(), failure_domain: "n".into() }
}

/// Counts the files below a directory; links are none.
fn files(root: &Path) -> usize {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let count = |path: PathBuf| if path.is_dir() { files(&path) } else { usize::from(path.is_file()) };
    entries.map(|entry| count(entry.path())).sum()
}

#[tokio::test]
async fn a_peer_that_is_not_admitted_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let peer = Identity::generate().expect("a key");
    let node = serve(BTreeMap::from([("a".into(), directory.path().join("a"))]), &peer).await;
    let unrelated = Identity::generate().expect("a key");
    let error = remote(&node, &unrelated, "a").head(&name(1)).await.expect_err("refused");
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    remote(&node, &peer, "a").put(&name(1), PutPayload::from_static(b"x")).await.expect("the peer may");
}

#[tokio::test]
async fn a_request_without_a_proven_key_is_refused() {
    use tower_service::Service;
    let directory = tempfile::tempdir().expect("a directory");
    let service = scripted(&BTreeMap::from([("a".into(), directory.path().join("a"))]));
    let mut router = service.router();
    let request = http::Request::get("/shards/v1/a").body(Body::empty()).expect("a request");
    let answer = router.call(request).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

#[test]
fn bad_store_names_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["", "A", "a/b", "..", "a_b", &"a".repeat(33)] {
        let directories = BTreeMap::from([(name.into(), directory.path().join("x"))]);
        let refused = ShardService::new(&directories, Arc::new(ScriptedDecisions::default()));
        assert!(matches!(refused, Err(StoreError::Address { .. })), "{name}");
    }
}

#[tokio::test]
async fn a_model_is_imported_and_read_over_the_network_and_a_dead_node_is_survived() {
    let world = ModelFixture::new();
    let peer = Identity::generate().expect("a key");
    let mut nodes = BTreeMap::new();
    for number in 0..3 {
        let path = |store: &str| world.directory.path().join(format!("node-{number}-{store}"));
        let directories = BTreeMap::from([("a".into(), path("a")), ("b".into(), path("b"))]);
        nodes.insert(format!("n{number}").parse().expect("a name"), serve(directories, &peer).await);
    }
    let addresses: BTreeMap<protocol::NodeName, NodeAddress> = nodes
        .iter()
        .map(|(name, node): (&protocol::NodeName, &Node)| {
            // A host name, which an admission may also give.
            let address = format!("localhost:{}", node.address.port()).parse().expect("an address");
            (name.clone(), NodeAddress { address, key: node.identity.public_key() })
        })
        .collect();
    let context = Context::new().with_nodes(peer, move |name| addresses.get(name).cloned());
    let reference = |number: usize| StoreReference {
        url: format!("node://n{}/{}", number / 2, ["a", "b"][number % 2]),
        failure_domain: format!("n{}", number / 2),
    };
    let open = |number| open_store(&reference(number), &context).expect("a store");
    let stores: Vec<Store> = (0..6).map(open).collect();
    let imported = world.import(&stores, 4, 2).await;
    let placed = world.placed(&imported, &stores);
    // A shard that is late on a busy machine is rebuilt from others, which is no fault.
    let report = world.read_all(&imported.manifest, &placed).await.expect("read");
    assert_eq!(report.faults, 0);
    nodes.remove(&"n1".parse::<protocol::NodeName>().expect("a name"));
    let report = world.read_all(&imported.manifest, &placed).await.expect("read without one node");
    assert!(report.rebuilt > 0);
    assert!(world.take_faults().iter().all(|fault| fault.store.starts_with("node://n1/")));
}

/// A peer that answers a range of a megabyte with endless bytes is stopped at the end of the range.
#[tokio::test]
async fn a_peer_that_sends_without_end_is_stopped_at_the_first_byte_too_many() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const CHUNK: usize = 16 * 1024;
    let served = Arc::new(AtomicU64::new(0));
    let count = served.clone();
    let lie = move || {
        let count = count.clone();
        let zeros = stream::repeat_with(move || {
            count.fetch_add(CHUNK as u64, Ordering::SeqCst);
            Ok::<_, std::io::Error>(Bytes::from(vec![0; CHUNK]))
        });
        let range = [(header::CONTENT_RANGE, "bytes 0-999999/1000000")];
        async move { (StatusCode::PARTIAL_CONTENT, range, Body::from_stream(zeros)) }
    };
    let (identity, peer) = (Identity::generate().expect("a key"), Identity::generate().expect("a key"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, stop) = (listener.local_addr().expect("bound"), CancellationToken::new());
    let (node, policy) = (identity.clone(), PeerPolicy::only([peer.public_key()]));
    let (router, ending) = (Router::new().fallback(lie), stop.clone());
    tokio::spawn(async move {
        overlay::serve(listener, &node, policy, ShardService::limits(), router, ending).await
    });
    let liar = Node { address, identity, stop };
    // A client without a limit gets everything that it asks for.
    let raw = remote(&liar, &peer, "a").get_opts(&name(1), GetOptions::default()).await.expect("an answer");
    let chunks = raw.into_stream().map_ok(|chunk| chunk.len() as u64).try_take_while({
        let mut taken = 0;
        move |bytes| {
            taken += bytes;
            std::future::ready(Ok(taken < 32 << 20))
        }
    });
    let taken: u64 = chunks.try_fold(0, |sum, bytes| async move { Ok(sum + bytes) }).await.expect("bytes");
    assert!(taken > 31 << 20, "{taken}");
    let reference = StoreReference { url: "node://liar/a".into(), failure_domain: "d".into() };
    let store = Store::from_objects(reference, Arc::new(remote(&liar, &peer, "a")));
    let (before, received) = (served.load(Ordering::SeqCst), std::cell::Cell::new(0));
    let read = store.get_range(&name(1), 0..1_000_000, |bytes| received.set(received.get() + bytes)).await;
    let error = read.expect_err("too much");
    assert_eq!(error.code(), code::STORE_LENGTH_WRONG, "{error}");
    assert!(error.to_string().contains("node://liar/a"), "{error}");
    assert!(received.get() <= 1_000_000 + CHUNK as u64, "{} bytes were taken", received.get());
    let sent = served.load(Ordering::SeqCst) - before;
    assert!(sent < 8 << 20, "{sent} bytes were sent");
}
