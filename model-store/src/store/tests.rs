//! Tests of stores: addresses, and a real S3 server over loopback.

use super::*;
use crate::testing::ModelFixture;
use crate::{fetch_manifest, repair, verify};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use protocol::error_code as code;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;

impl Context {
    /// Sets the S3 settings, which otherwise come from the environment.
    pub(crate) fn with_s3(mut self, settings: S3Settings) -> Self {
        self.s3 = settings;
        self
    }
}

fn reference(url: &str) -> StoreReference {
    StoreReference { url: url.into(), failure_domain: "d".into() }
}

#[test]
fn malformed_addresses_are_refused() {
    let context = Context::new();
    for url in [
        "",
        "/tmp/x",
        "file://",
        "file://host/x",
        "ftp://x/y",
        "s3://",
        "node://",
        "node://Node/a",
        "node://n/",
        "node://n/a/b",
        "node://n/a",
        "s3://bucket/x?y=1",
        "file:///tmp/x#y",
        "s3://u:p@bucket/x",
    ] {
        let error = open_store(&reference(url), &context).expect_err(url);
        assert!(
            matches!(error, StoreError::Address { .. } | StoreError::Unreachable { .. }),
            "{url}: {error}"
        );
    }
    let lost = open_store(&reference("file:///nowhere/at/all"), &context).expect_err("no parent");
    assert_eq!(lost.code(), code::STORE_UNREACHABLE);
}

#[test]
fn stores_of_this_node_are_its_directories() {
    let directory = tempfile::tempdir().expect("a directory");
    let own = BTreeMap::from([("a".to_string(), directory.path().join("a"))]);
    let context = Context::new().with_own_stores("me".parse().expect("a name"), own);
    let store = open_store(&reference("node://me/a"), &context).expect("ours");
    assert_eq!(store.directory(), Some(directory.path().join("a").as_path()));
    assert!(open_store(&reference("node://me/b"), &context).is_err());
    assert!(open_store(&reference("node://you/a"), &context).is_err());
}

#[tokio::test]
async fn a_closed_store_names_its_error() {
    let store = Store::open_or_closed(&reference("file:///nowhere/at/all"), &Context::new());
    let error = store.get(&ObjectPath::from("x"), 1, |_| ()).await.expect_err("closed");
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert!(store.closed().is_some() && store.directory().is_none());
}

#[test]
fn a_full_disk_is_recognised_through_any_wrapping() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let wrapped = std::io::Error::other(full());
    let generic = object_store::Error::Generic { store: "x", source: Box::new(wrapped) };
    assert!(is_full(&full()) && is_full(&generic));
    assert!(is_full(&std::io::Error::from_raw_os_error(28)));
    assert!(!is_full(&std::io::Error::from(std::io::ErrorKind::NotFound)));
}

/// Starts a real S3 server with one bucket over a directory, with signatures checked.
async fn s3_server(root: &Path) -> String {
    std::fs::create_dir_all(root.join("bucket")).expect("a bucket");
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a file system"));
    builder.set_auth(SimpleAuth::from_single("id", "secret"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let _ = Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    format!("http://{address}")
}

fn settings(endpoint: String, secret: &str) -> S3Settings {
    S3Settings {
        endpoint: Some(endpoint),
        region: Some("us-east-1".into()),
        access_key_id: Some("id".into()),
        secret_access_key: Some(secret.into()),
    }
}

#[tokio::test]
async fn a_model_in_s3_is_imported_read_and_repaired() {
    let world = ModelFixture::new();
    let root = world.directory.path().join("s3");
    let endpoint = s3_server(&root).await;
    let context = Context::new().with_s3(settings(endpoint.clone(), "secret"));
    let open = |number: usize| {
        let url = format!("s3://bucket/store-{number}");
        let reference = StoreReference { url, failure_domain: format!("d{number}") };
        open_store(&reference, &context).expect("a store")
    };
    let stores: Vec<Store> = (0..3).map(open).collect();
    let imported = world.import(&stores, 2, 1).await;
    let placed = world.placed(&imported, &stores);
    let manifest = fetch_manifest(imported.record.root, &placed, &world.pool).await.expect("a manifest");
    assert_eq!(world.read_all(&manifest, &placed).await.expect("read").faults, 0);
    let object = crate::geometry::object_path(manifest.nonce, 0, 1);
    let url = placed[1].url().rsplit_once('/').expect("a prefix").1;
    let path = root.join("bucket").join(url).join(object.as_ref());
    crate::testing::flip(&path, 100, 0);
    let gone =
        root.join("bucket").join(url).join(crate::geometry::object_path(manifest.nonce, 1, 1).as_ref());
    std::fs::remove_file(gone).expect("remove");
    world.read_all(&manifest, &placed).await.expect("read around");
    assert!(!world.take_faults().is_empty());
    let report = repair(&manifest, &placed, &world.pool, world.sink(), |_, _| ()).await.expect("repaired");
    assert!(report.is_complete() && report.objects_written == 2, "{report:?}");
    let report = verify(&manifest, &placed, &world.pool, world.sink(), |_, _| ()).await.expect("verified");
    assert!(report.is_sound(), "{report:?}");
    let unauthorized = Context::new().with_s3(settings(endpoint, "guess"));
    let store = open_store(placed[0].reference(), &unauthorized).expect("opens without dialling");
    let refused = store.get(&object, 1 << 20, |_| ()).await.expect_err("a wrong secret");
    assert_ne!(refused.code(), code::SHARD_MISSING, "{refused}");
}
