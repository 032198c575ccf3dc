//! One store of shards, opened by its address: `file:///dir`, `s3://bucket/prefix`, `node://NODE/STORE`.
//!
//! A directory is read by position without going through `object_store`, because the speed of a load depends
//! on it; durable writes to it use `object_store`. A store that cannot be opened is still a [`Store`]: its
//! shards are unreachable, and reads continue without them.

mod length;
mod list;
mod listed;
mod obstacle;
mod progress;
mod s3;
mod transfer;

pub(crate) use length::{BehindEnd, Surplus};
pub(crate) use list::walk;
pub(crate) use listed::Listed;
pub(crate) use obstacle::clear;
pub(crate) use progress::Progress;
use transfer::WRITE_ATTEMPTS_MAX;
pub(crate) use transfer::{SILENCE_MAX, is_absence};

use crate::disk::Disk;
use crate::error::StoreError;
use crate::remote::RemoteStore;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use overlay::{Address, Client, Identity};
use protocol::model::StoreReference;
use protocol::{NodeName, PublicKey};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use url::Url;

/// Address and key of a node's shard service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// `host:port` of the node's storage listener; the host is an address or a name.
    pub address: Address,
    /// Identity key of the node.
    pub key: PublicKey,
}

/// Settings of an S3 service. Absent ones come from the environment (`AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`, ...) as `object_store` reads it.
#[derive(Clone, Default)]
pub(crate) struct S3Settings {
    /// Endpoint other than Amazon's, such as `http://127.0.0.1:9000`.
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) access_key_id: Option<String>,
    pub(crate) secret_access_key: Option<String>,
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3Settings({:?})", self.endpoint)
    }
}

type ResolveNode = Arc<dyn Fn(&NodeName) -> Option<NodeAddress> + Send + Sync>;

/// Properties of this process that opening a store depends on.
#[derive(Clone, Default)]
pub struct Context {
    identity: Option<Identity>,
    resolve: Option<ResolveNode>,
    own: Option<(NodeName, BTreeMap<String, PathBuf>)>,
    s3: S3Settings,
    /// One connection per node, shared by all stores behind it.
    clients: Arc<Mutex<BTreeMap<PublicKey, (Address, Client)>>>,
    /// One bound per directory, shared by all stores that open it.
    disks: Arc<Mutex<BTreeMap<PathBuf, Disk>>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("own", &self.own).field("s3", &self.s3).finish_non_exhaustive()
    }
}

impl Context {
    /// Returns a context that opens directories and S3 only, the latter with settings from the environment.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also opens `node://` stores: as `identity`, at the addresses that `resolve` returns.
    #[must_use]
    pub fn with_nodes(
        mut self,
        identity: Identity,
        resolve: impl Fn(&NodeName) -> Option<NodeAddress> + Send + Sync + 'static,
    ) -> Self {
        self.identity = Some(identity);
        self.resolve = Some(Arc::new(resolve));
        self
    }

    /// Opens `node://NAME/STORE` of this node as a local directory.
    #[must_use]
    pub fn with_own_stores(mut self, name: NodeName, directories: BTreeMap<String, PathBuf>) -> Self {
        self.own = Some((name, directories));
        self
    }

    fn disk(&self, directory: &Path) -> Disk {
        let mut disks = self.disks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        disks.entry(directory.into()).or_default().clone()
    }

    fn client(&self, node: NodeAddress) -> Option<Client> {
        let identity = self.identity.clone()?;
        let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((address, client)) = clients.get(&node.key)
            && *address == node.address
        {
            return Some(client.clone());
        }
        let client = Client::new(identity, node.address.clone(), node.key, crate::wire::limits());
        clients.insert(node.key, (node.address, client.clone()));
        Some(client)
    }
}

/// A store, open or known to be unreachable.
#[derive(Debug, Clone)]
pub struct Store {
    reference: StoreReference,
    access: Access,
    /// Attempts at a write.
    write_attempts: u32,
}

#[derive(Debug, Clone)]
enum Access {
    Directory { root: PathBuf, objects: Arc<dyn ObjectStore>, disk: Disk },
    Node { remote: RemoteStore, objects: Arc<dyn ObjectStore> },
    Objects(Arc<dyn ObjectStore>),
    Closed(Arc<StoreError>),
}

/// Opens a store. Dials no peer; creates the directory of a `file://` store if its parent exists.
///
/// # Errors
/// [`StoreError::Address`], [`StoreError::Unreachable`]. To read despite a failed store, use
/// [`Store::open_or_closed`].
pub fn open_store(reference: &StoreReference, context: &Context) -> Result<Store, StoreError> {
    let refused = |reason: &str| StoreError::Address { url: reference.url.clone(), reason: reason.into() };
    let url = Url::parse(&reference.url).map_err(|error| refused(&error.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() || url.password().is_some() {
        return Err(refused("query, fragment and password are not allowed"));
    }
    let access = match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| refused("it names no absolute path"))?;
            if path == Path::new("/") {
                return Err(refused("it names no directory"));
            }
            directory(&reference.url, &path, context)?
        }
        "s3" => Access::Objects(s3::open(&url, &context.s3).map_err(|reason| refused(&reason))?),
        "node" => node(&url, reference, context, refused)?,
        _ => return Err(refused("expected file://, s3:// or node://")),
    };
    Ok(Store { reference: reference.clone(), access, write_attempts: WRITE_ATTEMPTS_MAX })
}

fn directory(url: &str, path: &Path, context: &Context) -> Result<Access, StoreError> {
    let unreachable = |reason: String| StoreError::Unreachable { url: url.into(), reason };
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(unreachable(error.to_string()));
        }
        _ => {}
    }
    let objects = LocalFileSystem::new_with_prefix(path).map_err(|error| unreachable(error.to_string()))?;
    // An object is acknowledged once it and its directory entry are on the disk.
    let objects = Arc::new(objects.with_fsync(true));
    Ok(Access::Directory { root: path.into(), objects, disk: context.disk(path) })
}

fn node(
    url: &Url,
    reference: &StoreReference,
    context: &Context,
    refused: impl Fn(&str) -> StoreError,
) -> Result<Access, StoreError> {
    let name: NodeName =
        url.host_str().unwrap_or_default().parse().map_err(|error: String| refused(&error))?;
    let store = url.path().trim_matches('/');
    if !crate::wire::is_store_name(store) {
        return Err(refused("expected node://NODE/STORE, with a store's name of a-z, 0-9 and -"));
    }
    if let Some((own, directories)) = &context.own
        && *own == name
    {
        let path = directories.get(store).ok_or_else(|| refused("this node has no store of this name"))?;
        return directory(&reference.url, path, context);
    }
    let resolve = context.resolve.as_ref().ok_or_else(|| refused("this process reaches no nodes"))?;
    let unreachable =
        |reason: &str| StoreError::Unreachable { url: reference.url.clone(), reason: reason.into() };
    let address = resolve(&name).ok_or_else(|| unreachable("no such node, or it offers no storage"))?;
    let client = context.client(address).ok_or_else(|| refused("this process has no identity"))?;
    let remote = RemoteStore::new(client, store);
    Ok(Access::Node { objects: Arc::new(remote.clone()), remote })
}

impl Store {
    /// Wraps any `object_store` as a store.
    #[must_use]
    pub fn from_objects(reference: StoreReference, objects: Arc<dyn ObjectStore>) -> Self {
        Self { reference, access: Access::Objects(objects), write_attempts: WRITE_ATTEMPTS_MAX }
    }

    /// Opens a store; one that cannot be opened answers every request with the reason.
    #[must_use]
    pub fn open_or_closed(reference: &StoreReference, context: &Context) -> Self {
        open_store(reference, context).unwrap_or_else(|error| {
            tracing::warn!(store = reference.url, %error, "store is unreachable");
            let access = Access::Closed(Arc::new(error));
            Self { reference: reference.clone(), access, write_attempts: WRITE_ATTEMPTS_MAX }
        })
    }

    /// Returns the store with so many attempts at a write, at least one and at most the usual five: few where
    /// another store may take what this one does not.
    #[must_use]
    pub fn with_write_attempts(self, attempts: u32) -> Self {
        Self { write_attempts: attempts.clamp(1, WRITE_ATTEMPTS_MAX), ..self }
    }

    /// Returns the store's address and failure domain.
    #[must_use]
    pub fn reference(&self) -> &StoreReference {
        &self.reference
    }

    /// Returns the store's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.reference.url
    }

    /// Returns the local directory of the store, if it has one.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match &self.access {
            Access::Directory { root, .. } => Some(root),
            _ => None,
        }
    }

    /// Returns the bound on requests that wait for that directory's disk.
    pub(crate) fn disk(&self) -> Option<&Disk> {
        match &self.access {
            Access::Directory { disk, .. } => Some(disk),
            _ => None,
        }
    }

    /// Returns the reason for which the store cannot be used at all.
    pub(crate) fn closed(&self) -> Option<&StoreError> {
        match &self.access {
            Access::Closed(error) => Some(error),
            _ => None,
        }
    }

    fn objects(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        match &self.access {
            Access::Directory { objects, .. } | Access::Node { objects, .. } | Access::Objects(objects) => {
                Ok(objects)
            }
            Access::Closed(error) => {
                Err(StoreError::Unreachable { url: self.reference.url.clone(), reason: error.to_string() })
            }
        }
    }

    /// Removes the objects below `prefix`, as far as possible.
    pub(crate) async fn remove_below(&self, prefix: &ObjectPath) {
        let Ok(objects) = self.objects() else { return };
        let found = objects.list(Some(prefix)).map_ok(|meta| meta.location).boxed();
        let mut removed = objects.delete_stream(found);
        loop {
            let error = match tokio::time::timeout(SILENCE_MAX, removed.next()).await {
                Ok(None) => return,
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(error))) => self.failed(prefix, error),
                Err(_) => self.silent(),
            };
            tracing::warn!(store = self.url(), %prefix, %error, "objects of a failed import are left behind");
            return;
        }
    }
}

/// Returns the error of a request that panicked: a broken invariant of one request, not the end of the
/// process.
pub(crate) fn panicked() -> object_store::Error {
    let source = Box::new(std::io::Error::other("the request panicked"));
    object_store::Error::Generic { store: "directory", source }
}

/// Returns whether the operating system reported, anywhere beneath an error, that no space (or quota) is
/// left.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            if matches!(io.kind(), StorageFull | QuotaExceeded) {
                return true;
            }
            // `source()` of an `io::Error` is its payload's source, so check the payload itself.
            if let Some(inner) = io.get_ref()
                && is_full(inner)
            {
                return true;
            }
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
