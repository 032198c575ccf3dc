//! Attacks on the store of a node, whose agent follows the hostile control. The attacker also has the keys of
//! admitted nodes. The positive control of all is the circle's own decision to forget the model.

use crate::Attack;
use crate::circle::{admission, claimed_by};
use crate::node::{Scene, node_id};
use crate::node_attacks::head_after;
use bytes::Bytes;
use gpu_agent::agent::StorageConfig;
use http::{Method, Request, StatusCode};
use human_chain::MemberSecret;
use model_store::{
    Context, ImportOptions, ModelKey, PlacementRule, Pool, ShardService, fresh_nonce, import, open_store,
};
use overlay::{Client, Identity};
use protocol::governance::{Change, GatewayEndpoint, NodeAdmission, NodeRole};
use protocol::manifest::ModelChoice;
use protocol::model::{ErasureCode, ModelRecord, StoreReference};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;

pub(crate) async fn all() -> Vec<Attack> {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let stores: BTreeMap<String, PathBuf> =
        ["a", "b", "c"].map(|name| (name.to_string(), folder.path().join(name))).into();
    let record = imported(folder.path(), &stores).await;
    let (gateway, worker) = (Identity::from_seed(&[41; 32]), Identity::from_seed(&[42; 32]));
    {
        let world = &mut scene.script().world;
        world.decide(Change::AdmitNode(Box::new(as_gateway(&gateway))));
        world.decide(Change::AdmitNode(Box::new(plain("worker", &worker))));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = scene.start_with(None, Some(StorageConfig { listener, stores: stores.clone() }));
    scene.until_length(2).await;

    let shards = shards(&stores["a"]);
    let by_gateway = remove(address, &gateway, &shards[0]).await;
    // A decision to forget the model that no quorum made: control forges it, and serves it as its own.
    let forget = {
        let model = ModelChoice { name: record.name, root: record.root };
        scene.script().world.certify(Change::ForgetModel { model, grace_seconds: 0 })
    };
    let mut forged = forget.clone();
    forged.certificate.ballots.pop();
    scene.script().forced = Some(vec![forged]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.script().last = None;
    scene.until("the agent asks again", |script| script.last.is_some()).await;
    let by_worker = remove(address, &worker, &shards[0]).await;
    assert!(stores["a"].join(&shards[0]).exists(), "a refused removal removes nothing");

    {
        let mut script = scene.script();
        script.claimed = Some(head_after(&script.world, &forget));
        let served = script.world.bundles.iter().chain([&forget]).cloned().collect();
        (script.forced, script.served) = (None, Some(served));
    }
    scene.until_length(3).await;
    let control =
        remove(address, &worker, &shards[0]).await.is_ok() && !stores["a"].join(&shards[0]).exists();
    agent.stop().await;
    vec![
        Attack::refused(10, "a shard removed by a gateway", by_gateway, "store-refused", control),
        Attack::refused(
            10,
            "a shard removed after a forged decision",
            by_worker,
            "store-object-held",
            control,
        ),
    ]
}

/// Imports a model into these directories, as an honest node did before.
async fn imported(folder: &Path, stores: &BTreeMap<String, PathBuf>) -> ModelRecord {
    let source = folder.join("weights");
    std::fs::write(&source, vec![7; 100_000]).unwrap();
    let open = |(name, path): (&String, &PathBuf)| {
        let url = format!("file://{}", path.display());
        open_store(&StoreReference { url, failure_domain: name.clone() }, &Context::new()).unwrap()
    };
    let opened: Vec<_> = stores.iter().map(open).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new("tiny".parse().unwrap(), fresh_nonce().unwrap())
    };
    let key = ModelKey::generate().unwrap();
    import(&source, options, &opened, &key, &Pool::new(2), |_| ()).await.unwrap().record
}

fn plain(name: &str, identity: &Identity) -> NodeAdmission {
    let encryption = MemberSecret::generate(&[identity.public_key().0[0]; 64]).public().encryption;
    admission(name, identity, encryption)
}

/// Returns the admission of a node that is a gateway and nothing else.
fn as_gateway(identity: &Identity) -> NodeAdmission {
    let key = Identity::from_seed(&[43; 32]).public_key();
    let endpoint = GatewayEndpoint { key, address: "127.0.0.1:9".into(), api: "http://127.0.0.1:9".into() };
    let roles = BTreeSet::from([NodeRole::Gateway]);
    let node = NodeAdmission { roles, gateway: Some(endpoint), ..plain("gateway", identity) };
    claimed_by(identity, node)
}

/// Returns the names of the shards in a store.
fn shards(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![store.join("models")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(store).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    assert!(!found.is_empty(), "the import wrote shards");
    found
}

/// Asks the store of the node to remove an object; returns the code of its refusal.
async fn remove(address: SocketAddr, peer: &Identity, object: &str) -> Result<(), String> {
    let client = Client::new(peer.clone(), address, node_id().0, ShardService::limits());
    let request = Request::builder().method(Method::DELETE).uri(format!("/shards/v1/a/{object}"));
    let answer = client.request(request.body(Bytes::new()).unwrap()).await.unwrap();
    if answer.status() == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let text = String::from_utf8(answer.body().to_vec()).unwrap();
    Err(text.split(':').next().unwrap_or_default().to_string())
}
