//! Garbage collection (`model sweep`): removes forgotten models, and the leftovers of incomplete imports.
//!
//! An import whose manifest is stored is *sealed*: it is a model, registered or about to be. Its objects are
//! removed only if the circle decided to forget it, which the caller takes from a verified history. The
//! register is no reason to remove a model: it only adds models whose objects are kept.
//!
//! An import without a manifest is incomplete. Two rules guarantee that a running one loses nothing. First,
//! the stores are listed *before* the register is read: an import that is sealed and registered after that
//! is kept. Second, the age of an import is that of its *youngest* object in any store.
//!
//! Data of a job is the exception: jobs make more than people vote on. A sealed import of this kind that the
//! register does not name is removed once it is old. Each store judges whether this peer may.
//!
//! The second rule suffices because a running import writes at least every [`IMPORT_SILENCE_MAX`] or ends
//! with an error. An import whose youngest object is older than [`SWEEP_AGE_MIN`] will therefore never be
//! sealed. Before each removal the objects of an import are listed again, and kept if one of them is young.
//!
//! Nothing is removed unless all models are known. If the manifest of one that is kept cannot be read, its
//! objects are unknown, and the collection ends.

pub use crate::age::{IMPORT_SILENCE_MAX, SWEEP_AGE_MIN};
use crate::error::{StoreError, SweepError};
use crate::geometry::{Name, manifest_path, model_prefix};
use crate::pool::Pool;
use crate::read::fetch_manifest;
use crate::store::{Listed, Store};
use futures::future::join_all;
use futures::stream::TryStreamExt;
use protocol::model::{ModelNonce, StoredKind};
use protocol::{ModelName, ModelRoot};
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
    /// Objects of sealed imports that are not registered.
    pub sealed: ObjectTotals,
    /// Those imports. Only a decision to forget them removes their objects.
    pub unregistered: BTreeMap<ModelRoot, ModelName>,
    /// Objects of incomplete imports that are too young to remove.
    pub young: ObjectTotals,
    /// Objects of forgotten models, and old ones of incomplete imports: removed, or to be removed.
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
    /// All shards of an import. First, because the manifest of a forgotten model names them.
    Shards(ModelNonce),
    /// All copies of a manifest.
    Manifest(ModelRoot),
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

/// Models whose objects are kept, and those whose objects go.
#[derive(Debug, Default)]
struct SweptModels {
    registered: BTreeSet<ModelRoot>,
    /// Sealed imports that are not registered.
    unregistered: BTreeMap<ModelRoot, ModelName>,
    forgotten: BTreeSet<ModelRoot>,
    /// Imports of the registered models, of the others that are kept, and of the forgotten ones.
    nonces: [BTreeSet<ModelNonce>; 3],
}

/// Standing of an owner: its model is kept, or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Registered,
    Unregistered,
    Forgotten,
    /// No manifest names the object, or that of data of a job: age decides.
    Open,
}

impl SweptModels {
    /// Reads the manifests of registered models and of all that are listed.
    async fn of(
        inventories: &[Inventory],
        stores: &[Store],
        registered: Vec<(ModelRoot, Vec<Store>)>,
        forgotten: &BTreeSet<ModelRoot>,
        pool: &Pool,
    ) -> Result<Self, SweepError> {
        let mut models = Self { forgotten: forgotten.clone(), ..Self::default() };
        let [of_registered, of_unregistered, of_forgotten] = &mut models.nonces;
        for (root, stores) in registered.into_iter().filter(|(root, _)| !forgotten.contains(root)) {
            let manifest = fetch_manifest(root, &stores, pool).await;
            let manifest = manifest.map_err(|source| SweepError::Manifest { root, source })?;
            models.registered.insert(root);
            of_registered.insert(manifest.nonce);
        }
        let owners: BTreeSet<&ObjectOwner> = inventories.iter().flat_map(|it| it.owned.keys()).collect();
        for owner in owners {
            let ObjectOwner::Manifest(root) = *owner else { continue };
            if models.registered.contains(&root) {
                continue;
            }
            let has = |(inventory, _): &(&Inventory, &Store)| inventory.owned.contains_key(owner);
            let holders = inventories.iter().zip(stores).filter(has);
            let holders: Vec<Store> = holders.map(|(_, store)| store.clone()).collect();
            match (fetch_manifest(root, &holders, pool).await, forgotten.contains(&root)) {
                (Ok(manifest), true) => drop(of_forgotten.insert(manifest.nonce)),
                // Its objects go by their age, as those of an import that was never completed.
                (Ok(manifest), false) if matches!(manifest.kind, StoredKind::JobData { .. }) => {}
                (Ok(manifest), false) => {
                    of_unregistered.insert(manifest.nonce);
                    models.unregistered.insert(root, manifest.name.clone());
                }
                // The shards of a forgotten model without a manifest go by their age.
                (Err(_), true) => {}
                (Err(source), false) => return Err(SweepError::Manifest { root, source }),
            }
        }
        Ok(models)
    }

    fn standing(&self, owner: &ObjectOwner) -> Standing {
        let [of_registered, of_unregistered, of_forgotten] = &self.nonces;
        let (registered, unregistered, forgotten) = match owner {
            ObjectOwner::Manifest(root) => (
                self.registered.contains(root),
                self.unregistered.contains_key(root),
                self.forgotten.contains(root),
            ),
            ObjectOwner::Shards(nonce) => {
                (of_registered.contains(nonce), of_unregistered.contains(nonce), of_forgotten.contains(nonce))
            }
            // A complete write leaves nothing, so no leftover belongs to one.
            ObjectOwner::Leftover(_) => (false, false, false),
        };
        match (registered, unregistered, forgotten) {
            (true, ..) => Standing::Registered,
            (false, true, _) => Standing::Unregistered,
            (false, false, true) => Standing::Forgotten,
            (false, false, false) => Standing::Open,
        }
    }
}

/// Lists `stores`, and removes the objects of `forgotten` models and the incomplete imports that are older
/// than `options.older_than`. `forgotten` holds the models whose grace period is over, by a verified history.
/// `register` is called once, after the last store was listed. It should return every model that is
/// registered by then (a linearizable read), each with its stores. No model is removed because it is absent.
///
/// # Errors
/// [`SweepError`]: nothing was removed. A store that fails is in the report; the others are processed.
pub async fn sweep<E, Registered>(
    stores: &[Store],
    options: SweepOptions,
    forgotten: &BTreeSet<ModelRoot>,
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
    let models = SweptModels::of(&inventories, stores, registered, forgotten, pool).await?;
    let mut report = SweepReport { unregistered: models.unregistered.clone(), ..SweepReport::default() };
    let garbage = find_garbage(&inventories, &models, &options, &mut report);
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

/// Garbage of the stores: owner and store, and whether the owner's age matters.
type Garbage = BTreeMap<(ObjectOwner, usize), Standing>;

/// Determines the garbage of each store, and counts everything. Pure.
fn find_garbage(
    inventories: &[Inventory],
    models: &SweptModels,
    options: &SweepOptions,
    report: &mut SweepReport,
) -> Garbage {
    // Youngest object of each owner in any store, including stores whose listing failed.
    let mut youngest: BTreeMap<&ObjectOwner, SystemTime> = BTreeMap::new();
    for (owner, objects) in inventories.iter().flat_map(|inventory| &inventory.owned) {
        let known = youngest.entry(owner).or_insert(objects.youngest);
        *known = objects.youngest.max(*known);
    }
    let mut garbage = Garbage::new();
    for (number, inventory) in inventories.iter().enumerate() {
        report.foreign.add(inventory.foreign);
        report.failures.extend(inventory.failure.as_ref().map(ToString::to_string));
        for (owner, objects) in &inventory.owned {
            let standing = models.standing(owner);
            let goes = standing == Standing::Forgotten || is_old(youngest[owner], options);
            match standing {
                Standing::Registered => report.registered.add(objects.totals),
                Standing::Unregistered => report.sealed.add(objects.totals),
                Standing::Forgotten | Standing::Open if inventory.failure.is_none() && goes => {
                    report.garbage.add(objects.totals);
                    garbage.insert((owner.clone(), number), standing);
                }
                Standing::Forgotten | Standing::Open => report.young.add(objects.totals),
            }
        }
    }
    let is_kept = |(owner, _): &(ObjectOwner, usize)| {
        matches!(models.standing(owner), Standing::Registered | Standing::Unregistered)
    };
    assert!(!garbage.keys().any(is_kept), "objects of models that nobody forgot are kept");
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
    garbage: &Garbage,
    options: &SweepOptions,
    progress: impl Fn(ObjectTotals),
) -> (ObjectTotals, Vec<String>) {
    let (mut removed, mut failures) = (ObjectTotals::default(), BTreeMap::new());
    for ((owner, number), standing) in garbage {
        let keeps = |object: &Listed| *standing != Standing::Forgotten && !is_old(object.modified, options);
        if !failures.contains_key(number)
            && let Err(error) = remove_owned(&stores[*number], owner, keeps, &mut removed, &progress).await
        {
            failures.insert(*number, error.to_string());
        }
    }
    (removed, failures.into_values().collect())
}

/// Lists the objects of one owner in one store again, and removes them unless one of them keeps all.
async fn remove_owned(
    store: &Store,
    owner: &ObjectOwner,
    keeps: impl Fn(&Listed) -> bool,
    removed: &mut ObjectTotals,
    progress: &impl Fn(ObjectTotals),
) -> Result<(), StoreError> {
    let found: Vec<Listed> = store.list(&owner.prefix()).try_collect().await?;
    let is_owned = |object: &Listed| ObjectOwner::of(&object.name).as_ref() == Some(owner);
    let found: Vec<Listed> = found.into_iter().filter(is_owned).collect();
    if found.iter().any(keeps) {
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
