//! Garbage collection (`model sweep`): removes the leftovers of incomplete imports from stores.
//!
//! Objects of a registered model must never be removed, even if it is registered during a collection. Two
//! rules guarantee that. First, the stores are listed *before* the register is read: a listed import that is
//! not registered is incomplete, or has yet to register. Second, the age of an import is that of its
//! *youngest* object in any store.
//!
//! The second rule suffices because a running import writes at least every [`IMPORT_SILENCE_MAX`] or ends
//! with an error. After its last write it registers within that time or not at all. An import whose youngest
//! object is older than [`SWEEP_AGE_MIN`] will therefore never register. Before each removal the objects of
//! an import are listed again, and kept if one of them is young.
//!
//! Nothing is removed unless all registered models are known. If the manifest of a registered model cannot be
//! read, its objects are unknown, and the collection ends.

pub use crate::age::{IMPORT_SILENCE_MAX, SWEEP_AGE_MIN};
use crate::error::{StoreError, SweepError};
use crate::geometry::{Name, manifest_path, model_prefix};
use crate::pool::Pool;
use crate::read::fetch_manifest;
use crate::store::{Listed, Store};
use futures::future::join_all;
use futures::stream::TryStreamExt;
use protocol::ModelRoot;
use protocol::model::ModelNonce;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Default for the minimum age of removed objects: a day, because the space is not needed sooner.
pub const SWEEP_AGE_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Number of objects removed between two progress reports.
const REMOVED_AT_ONCE: usize = 64;

/// Options of a garbage collection.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// Minimum age of removed objects; at least [`SWEEP_AGE_MIN`].
    pub older_than: Duration,
    /// Current time, taken before the first store is listed.
    pub now: SystemTime,
    /// Removes objects; otherwise only reports them.
    pub remove: bool,
}

/// Progress of a garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepProgress {
    /// Number of objects listed so far.
    pub listed: u64,
    /// Number of objects removed so far.
    pub removed: u64,
    /// Number of objects to remove; 0 until it is known.
    pub to_remove: u64,
}

/// Number of objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectTotals {
    /// Number of objects.
    pub objects: u64,
    pub bytes: u64,
}

impl ObjectTotals {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// Result of a garbage collection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// Objects of registered models.
    pub registered: ObjectTotals,
    /// Unregistered objects that are too young to remove.
    pub young: ObjectTotals,
    /// Unregistered old objects: removed, or to be removed.
    pub garbage: ObjectTotals,
    /// Objects that were removed.
    pub removed: ObjectTotals,
    /// Files that do not belong to this system; never touched.
    pub foreign: ObjectTotals,
    /// Errors of stores that could not be listed or refused a removal. Nothing is removed from a store whose
    /// listing failed.
    pub failures: Vec<String>,
}

/// Owner of objects, all of which are kept or removed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum ObjectOwner {
    /// All copies of a manifest. First, so that no manifest outlives its shards.
    Manifest(ModelRoot),
    /// All shards of an import.
    Shards(ModelNonce),
    /// A single leftover of an incomplete write.
    Leftover(String),
}

impl ObjectOwner {
    fn of(name: &str) -> Option<Self> {
        Some(match Name::of(name)? {
            Name::Manifest(root) => Self::Manifest(root),
            Name::Shard(nonce) => Self::Shards(nonce),
            Name::Leftover => Self::Leftover(name.into()),
        })
    }

    /// Returns a directory that contains all objects of this owner.
    fn prefix(&self) -> String {
        let name = match self {
            Self::Shards(nonce) => return model_prefix(*nonce).to_string(),
            Self::Manifest(root) => manifest_path(*root).to_string(),
            Self::Leftover(name) => name.clone(),
        };
        name.rsplit_once('/').map_or(String::new(), |(directory, _)| directory.into())
    }
}

/// Objects of one owner in one store.
#[derive(Debug, Clone, Copy)]
struct OwnedObjects {
    totals: ObjectTotals,
    youngest: SystemTime,
}

/// Contents of one store.
#[derive(Debug, Default)]
struct Inventory {
    owned: BTreeMap<ObjectOwner, OwnedObjects>,
    foreign: ObjectTotals,
    /// Error that ended the listing early.
    failure: Option<StoreError>,
}

impl Inventory {
    /// Lists a store. Memory holds its imports, not their objects.
    async fn of(store: &Store, listed: impl Fn()) -> Self {
        let mut inventory = Self::default();
        let mut listing = store.list("");
        loop {
            match listing.try_next().await {
                Ok(Some(object)) => {
                    inventory.add(&object);
                    listed();
                }
                Ok(None) => return inventory,
                Err(error) => {
                    inventory.failure = Some(error);
                    return inventory;
                }
            }
        }
    }

    fn add(&mut self, object: &Listed) {
        let totals = ObjectTotals { objects: 1, bytes: object.bytes };
        let Some(owner) = ObjectOwner::of(&object.name) else { return self.foreign.add(totals) };
        let none = OwnedObjects { totals: ObjectTotals::default(), youngest: object.modified };
        let objects = self.owned.entry(owner).or_insert(none);
        objects.totals.add(totals);
        objects.youngest = objects.youngest.max(object.modified);
    }
}

/// Registered models, whose objects must be kept.
struct LiveSet {
    roots: BTreeSet<ModelRoot>,
    nonces: BTreeSet<ModelNonce>,
}

impl LiveSet {
    async fn of(registered: Vec<(ModelRoot, Vec<Store>)>, pool: &Pool) -> Result<Self, SweepError> {
        let mut live_set = Self { roots: BTreeSet::new(), nonces: BTreeSet::new() };
        for (root, stores) in registered {
            let manifest = fetch_manifest(root, &stores, pool).await;
            let manifest = manifest.map_err(|source| SweepError::Manifest { root, source })?;
            live_set.roots.insert(root);
            live_set.nonces.insert(manifest.nonce);
        }
        Ok(live_set)
    }

    fn has(&self, owner: &ObjectOwner) -> bool {
        match owner {
            ObjectOwner::Manifest(root) => self.roots.contains(root),
            ObjectOwner::Shards(nonce) => self.nonces.contains(nonce),
            // A complete write leaves nothing, so no leftover belongs to one.
            ObjectOwner::Leftover(_) => false,
        }
    }
}

/// Lists `stores`, and removes the objects that no registered model names and that are older than
/// `options.older_than`. `register` is called once, after the last store was listed. It must return every
/// model that is registered by then (a linearizable read), each with its stores.
///
/// Stores must belong to one register alone: objects that another register names are unknown to this one.
///
/// # Errors
/// [`SweepError`]: nothing was removed. A store that fails is in the report; the others are processed.
pub async fn sweep<E, Registered>(
    stores: &[Store],
    options: SweepOptions,
    pool: &Pool,
    register: impl FnOnce() -> Registered,
    progress: impl Fn(SweepProgress),
) -> Result<SweepReport, SweepError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
    Registered: Future<Output = Result<Vec<(ModelRoot, Vec<Store>)>, E>>,
{
    if options.older_than < SWEEP_AGE_MIN {
        return Err(SweepError::Young { older_than: options.older_than });
    }
    let listed = AtomicU64::new(0);
    let count = || {
        let listed = listed.fetch_add(1, Ordering::Relaxed) + 1;
        progress(SweepProgress { listed, ..SweepProgress::default() });
    };
    let inventories = join_all(stores.iter().map(|store| Inventory::of(store, count))).await;
    let registered = register().await.map_err(|error| SweepError::Register(error.into()))?;
    let live_set = LiveSet::of(registered, pool).await?;
    let mut report = SweepReport::default();
    let garbage = find_garbage(&inventories, &live_set, &options, &mut report);
    if options.remove {
        let progress = |removed: ObjectTotals| {
            let (listed, to_remove) = (listed.load(Ordering::Relaxed), report.garbage.objects);
            progress(SweepProgress { listed, removed: removed.objects, to_remove });
        };
        let (removed, failures) = remove(stores, &garbage, &options, progress).await;
        report.removed = removed;
        report.failures.extend(failures);
    }
    Ok(report)
}

/// Determines the garbage of each store, and counts everything. Pure.
fn find_garbage(
    inventories: &[Inventory],
    live_set: &LiveSet,
    options: &SweepOptions,
    report: &mut SweepReport,
) -> BTreeSet<(ObjectOwner, usize)> {
    // Youngest object of each owner in any store, including stores whose listing failed.
    let mut youngest: BTreeMap<&ObjectOwner, SystemTime> = BTreeMap::new();
    for (owner, objects) in inventories.iter().flat_map(|inventory| &inventory.owned) {
        let known = youngest.entry(owner).or_insert(objects.youngest);
        *known = objects.youngest.max(*known);
    }
    let mut garbage = BTreeSet::new();
    for (number, inventory) in inventories.iter().enumerate() {
        report.foreign.add(inventory.foreign);
        report.failures.extend(inventory.failure.as_ref().map(ToString::to_string));
        for (owner, objects) in &inventory.owned {
            if live_set.has(owner) {
                report.registered.add(objects.totals);
            } else if inventory.failure.is_none() && is_old(youngest[owner], options) {
                report.garbage.add(objects.totals);
                garbage.insert((owner.clone(), number));
            } else {
                report.young.add(objects.totals);
            }
        }
    }
    let is_live = |(owner, _): &(ObjectOwner, usize)| live_set.has(owner);
    assert!(!garbage.iter().any(is_live), "objects of registered models are kept");
    garbage
}

/// Returns whether an object is old. A time in the future is not: clocks differ.
fn is_old(modified: SystemTime, options: &SweepOptions) -> bool {
    debug_assert!(options.older_than >= SWEEP_AGE_MIN, "a running import is younger");
    options.now.duration_since(modified).is_ok_and(|age| age > options.older_than)
}

/// Removes the garbage, owner by owner, and returns the errors of stores.
async fn remove(
    stores: &[Store],
    garbage: &BTreeSet<(ObjectOwner, usize)>,
    options: &SweepOptions,
    progress: impl Fn(ObjectTotals),
) -> (ObjectTotals, Vec<String>) {
    let (mut removed, mut failures) = (ObjectTotals::default(), BTreeMap::new());
    for (owner, number) in garbage {
        if !failures.contains_key(number)
            && let Err(error) = remove_owned(&stores[*number], owner, options, &mut removed, &progress).await
        {
            failures.insert(*number, error.to_string());
        }
    }
    (removed, failures.into_values().collect())
}

/// Lists the objects of one owner in one store again, and removes them unless one is young.
async fn remove_owned(
    store: &Store,
    owner: &ObjectOwner,
    options: &SweepOptions,
    removed: &mut ObjectTotals,
    progress: &impl Fn(ObjectTotals),
) -> Result<(), StoreError> {
    let found: Vec<Listed> = store.list(&owner.prefix()).try_collect().await?;
    let is_owned = |object: &Listed| ObjectOwner::of(&object.name).as_ref() == Some(owner);
    let found: Vec<Listed> = found.into_iter().filter(is_owned).collect();
    if found.iter().any(|object| !is_old(object.modified, options)) {
        return Ok(());
    }
    for some in found.chunks(REMOVED_AT_ONCE) {
        store.remove(some.iter().map(|object| object.name.clone()).collect()).await?;
        for object in some {
            removed.add(ObjectTotals { objects: 1, bytes: object.bytes });
        }
        progress(*removed);
    }
    if !matches!(owner, ObjectOwner::Manifest(_)) {
        store.remove_empty(&owner.prefix()).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
