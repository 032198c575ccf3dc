//! The sweep: takes away what imports that never ended have left in stores.
//!
//! What a registered model names must never go, though it be registered while the sweep runs. Two rules see
//! to that. The stores are listed *before* the register is read: what was listed and is not registered is of
//! an import that never ended, or that has yet to register. And an import is judged by the *youngest* of all
//! its objects in all stores: an import that runs writes at least every [`IMPORT_SILENCE_MAX`] or ends with
//! an error, and one that has written its last registers within that time or not at all, so one whose
//! youngest object is older than [`SWEEP_AGE_MIN`] will never register. Before it removes, the sweep looks
//! again, and spares whatever has come to life.
//!
//! Whoever cannot say what is registered removes nothing: a registered model whose manifest cannot be read
//! ends the sweep, since nobody knows then which objects are its own.

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

/// Longest time between two writes of an import, and between its last and its registration. A group of objects takes
/// minutes over a thin uplink; the rest is for machines that were put to sleep.
pub const IMPORT_SILENCE_MAX: Duration = Duration::from_secs(30 * 60);
/// What is younger is never removed: twice the silence, for clocks of stores that differ.
pub const SWEEP_AGE_MIN: Duration = Duration::from_secs(60 * 60);
const _: () = assert!(SWEEP_AGE_MIN.as_secs() >= 2 * IMPORT_SILENCE_MAX.as_secs());
/// What is younger is not removed unless somebody asks for it: a day, because nobody misses the room so soon.
pub const SWEEP_AGE_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Objects removed between two words of progress.
const REMOVED_AT_ONCE: usize = 64;

/// What a sweep shall do.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// Leaves what is younger than this alone; at least [`SWEEP_AGE_MIN`].
    pub older_than: Duration,
    /// The time, from before the first store is listed.
    pub now: SystemTime,
    /// Removes; otherwise only says what it would remove.
    pub remove: bool,
}

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepProgress {
    /// Objects listed, so far.
    pub listed: u64,
    /// Objects removed, so far.
    pub removed: u64,
    /// Objects to remove; 0 until that is known.
    pub to_remove: u64,
}

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// What a sweep found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// Of registered models.
    pub registered: Tally,
    /// Of nobody, but too young to be sure.
    pub young: Tally,
    /// Of nobody, and old: removed, or to be removed.
    pub dead: Tally,
    /// Removed.
    pub removed: Tally,
    /// Files that are not of this system; never touched.
    pub foreign: Tally,
    /// Stores that could not be listed or refused a removal, and why. Nothing is removed from a store whose
    /// listing broke off.
    pub failures: Vec<String>,
}

/// What belongs together: lives together, and dies together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kin {
    /// All copies of a manifest. First, so that no manifest outlives its shards.
    Manifest(ModelRoot),
    /// All shards of an import.
    Shards(ModelNonce),
    /// What a write that never ended left, alone.
    Leftover(String),
}

impl Kin {
    fn of(name: &str) -> Option<Self> {
        Some(match Name::of(name)? {
            Name::Manifest(root) => Self::Manifest(root),
            Name::Shard(nonce) => Self::Shards(nonce),
            Name::Leftover => Self::Leftover(name.into()),
        })
    }

    /// A directory that everything of it lies in.
    fn prefix(&self) -> String {
        let name = match self {
            Self::Shards(nonce) => return model_prefix(*nonce).to_string(),
            Self::Manifest(root) => manifest_path(*root).to_string(),
            Self::Leftover(name) => name.clone(),
        };
        name.rsplit_once('/').map_or(String::new(), |(directory, _)| directory.into())
    }
}

/// What one store has of one kin.
#[derive(Debug, Clone, Copy)]
struct Pile {
    tally: Tally,
    youngest: SystemTime,
}

/// What one store has.
#[derive(Debug, Default)]
struct Inventory {
    piles: BTreeMap<Kin, Pile>,
    foreign: Tally,
    /// Why it is not all.
    broken: Option<StoreError>,
}

impl Inventory {
    /// Lists a store. In memory are its imports, not their objects.
    async fn of(store: &Store, listed: impl Fn()) -> Self {
        let mut inventory = Self::default();
        let mut objects = store.list("");
        loop {
            match objects.try_next().await {
                Ok(Some(object)) => {
                    inventory.add(&object);
                    listed();
                }
                Ok(None) => return inventory,
                Err(error) => {
                    inventory.broken = Some(error);
                    return inventory;
                }
            }
        }
    }

    fn add(&mut self, object: &Listed) {
        let tally = Tally { objects: 1, bytes: object.bytes };
        let Some(kin) = Kin::of(&object.name) else { return self.foreign.add(tally) };
        let pile = Pile { tally: Tally::default(), youngest: object.modified };
        let pile = self.piles.entry(kin).or_insert(pile);
        pile.tally.add(tally);
        pile.youngest = pile.youngest.max(object.modified);
    }
}

/// What is registered, and so may not go.
struct Living {
    roots: BTreeSet<ModelRoot>,
    nonces: BTreeSet<ModelNonce>,
}

impl Living {
    async fn of(registered: Vec<(ModelRoot, Vec<Store>)>, pool: &Pool) -> Result<Self, SweepError> {
        let mut living = Self { roots: BTreeSet::new(), nonces: BTreeSet::new() };
        for (root, stores) in registered {
            let manifest = fetch_manifest(root, &stores, pool).await;
            let manifest = manifest.map_err(|source| SweepError::Manifest { root, source })?;
            living.roots.insert(root);
            living.nonces.insert(manifest.nonce);
        }
        Ok(living)
    }

    fn has(&self, kin: &Kin) -> bool {
        match kin {
            Kin::Manifest(root) => self.roots.contains(root),
            Kin::Shards(nonce) => self.nonces.contains(nonce),
            // A write that ended left nothing, so nothing is of it.
            Kin::Leftover(_) => false,
        }
    }
}

/// Looks through `stores` and removes what no registered model names and what is older than
/// `options.older_than`. `register` is called once, after the last store was listed; it must answer with
/// every model that is registered by then (a linearizable read), each with the stores that have it.
///
/// Stores must belong to one register alone: what another one names, this one does not know.
///
/// # Errors
/// [`SweepError`]; nothing was removed then. A store that fails is in the report, the others are swept.
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
    let living = Living::of(registered, pool).await?;
    let mut report = SweepReport::default();
    let dead = judge(&inventories, &living, &options, &mut report);
    if options.remove {
        let progress = |removed: Tally| {
            let (listed, to_remove) = (listed.load(Ordering::Relaxed), report.dead.objects);
            progress(SweepProgress { listed, removed: removed.objects, to_remove });
        };
        let (removed, failures) = remove(stores, &dead, &options, progress).await;
        report.removed = removed;
        report.failures.extend(failures);
    }
    Ok(report)
}

/// Says what is dead and in which store, and counts everything. Pure.
fn judge(
    inventories: &[Inventory],
    living: &Living,
    options: &SweepOptions,
    report: &mut SweepReport,
) -> BTreeSet<(Kin, usize)> {
    // The youngest anywhere, in stores whose listing broke off too.
    let mut youngest: BTreeMap<&Kin, SystemTime> = BTreeMap::new();
    for (kin, pile) in inventories.iter().flat_map(|inventory| &inventory.piles) {
        let known = youngest.entry(kin).or_insert(pile.youngest);
        *known = pile.youngest.max(*known);
    }
    let mut dead = BTreeSet::new();
    for (number, inventory) in inventories.iter().enumerate() {
        report.foreign.add(inventory.foreign);
        report.failures.extend(inventory.broken.as_ref().map(ToString::to_string));
        for (kin, pile) in &inventory.piles {
            if living.has(kin) {
                report.registered.add(pile.tally);
            } else if inventory.broken.is_none() && is_old(youngest[kin], options) {
                report.dead.add(pile.tally);
                dead.insert((kin.clone(), number));
            } else {
                report.young.add(pile.tally);
            }
        }
    }
    dead
}

/// What is of the future is not old: clocks differ.
fn is_old(modified: SystemTime, options: &SweepOptions) -> bool {
    options.now.duration_since(modified).is_ok_and(|age| age > options.older_than)
}

/// Removes what is dead, kin by kin, and says why that failed somewhere.
async fn remove(
    stores: &[Store],
    dead: &BTreeSet<(Kin, usize)>,
    options: &SweepOptions,
    progress: impl Fn(Tally),
) -> (Tally, Vec<String>) {
    let (mut removed, mut failures) = (Tally::default(), BTreeMap::new());
    for (kin, number) in dead {
        if !failures.contains_key(number)
            && let Err(error) = remove_kin(&stores[*number], kin, options, &mut removed, &progress).await
        {
            failures.insert(*number, error.to_string());
        }
    }
    (removed, failures.into_values().collect())
}

/// Looks again at what a store has of a kin, and removes it unless something of it is young.
async fn remove_kin(
    store: &Store,
    kin: &Kin,
    options: &SweepOptions,
    removed: &mut Tally,
    progress: &impl Fn(Tally),
) -> Result<(), StoreError> {
    let found: Vec<Listed> = store.list(&kin.prefix()).try_collect().await?;
    let of_kin = |object: &Listed| Kin::of(&object.name).as_ref() == Some(kin);
    let found: Vec<Listed> = found.into_iter().filter(of_kin).collect();
    if found.iter().any(|object| !is_old(object.modified, options)) {
        return Ok(());
    }
    for some in found.chunks(REMOVED_AT_ONCE) {
        store.remove(some.iter().map(|object| object.name.clone()).collect()).await?;
        for object in some {
            removed.add(Tally { objects: 1, bytes: object.bytes });
        }
        progress(*removed);
    }
    if !matches!(kin, Kin::Manifest(_)) {
        store.remove_empty(&kin.prefix()).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
