//! Import, verification and repair of models, with the identity of a node.

use super::health::{FaultLog, HealthSummary, RepairSummary};
use super::register::{self, refuse_taken_name};
use super::{NodeFile, store_directories};
use crate::client::ClientError;
use crate::member_key::MemberKey;
use crate::session::Session;
use anyhow::{Result, anyhow};
use human_chain::CircleState;
use indicatif::ProgressBar;
use model_store::{
    ArtifactCache, Context as StoreContext, ImportOptions, ModelKey, NodeAddress, PlacementRule, Pool, Store,
};
use overlay::Identity;
use protocol::api::Page;
use protocol::artifact::ARTIFACT_BYTES_MAX;
use protocol::governance::NodeAdmission;
use protocol::manifest::format_bytes;
use protocol::model::{ErasureCode, ModelRecord, StoreReference};
use protocol::{ModelName, NodeName, Refusal};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Directory of the cache of artifacts in a node's state directory.
const ARTIFACT_CACHE: &str = "artifacts";
/// Size of a node's cache of artifacts in bytes: one of the largest artifacts, and half as much again for the
/// blocks of its files and for smaller ones.
const ARTIFACT_CACHE_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX / 2 * 3;

/// Opens the cache of unpacked artifacts of a node.
///
/// # Errors
/// Returns an error if the directory cannot be read or written.
pub fn artifact_cache(directory: &Path) -> Result<ArtifactCache, Refusal> {
    ArtifactCache::open(&directory.join(ARTIFACT_CACHE), ARTIFACT_CACHE_BYTES_MAX)
        .map_err(|error| Refusal::of(error.code(), &error))
}

/// Parameters of an import.
pub struct ImportRequest {
    pub name: ModelName,
    /// Numbers of data shards (k) and parity shards (m).
    pub erasure: ErasureCode,
    /// Stores that may hold shards.
    pub stores: Vec<StoreReference>,
    /// Maximum shards of a segment in one failure domain.
    pub shards_per_domain_max: u8,
    /// Whether a model is stored that no built-in engine serves.
    pub is_foreign_allowed: bool,
}

/// A model that was imported and registered.
#[derive(Debug, Clone, Serialize)]
pub struct ImportSummary {
    /// The record that control keeps of the model.
    #[serde(flatten)]
    pub record: ModelRecord,
    /// Notes for the importer, one sentence each.
    pub notes: Vec<String>,
}

impl ImportSummary {
    /// Renders the summary for people.
    #[must_use]
    pub fn text(&self) -> String {
        let record = &self.record;
        let mut text = format!(
            "{} {}  {}  {} segments  {}+{} over {} stores\nroot {}\nwords of the root: {}",
            record.kind.name(),
            record.name,
            format_bytes(record.bytes),
            record.segments,
            record.erasure.data,
            record.erasure.parity,
            record.stores.len(),
            record.root,
            human_chain::words_of(&record.root.0).join(" "),
        );
        if let Some(tree) = record.kind.tree() {
            text.push_str(&format!("\ntree {tree}"));
        }
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}"));
        }
        text
    }
}

/// Reads and writes models with a node's identity.
pub struct ModelAccess {
    pub(super) context: StoreContext,
    pub(super) pool: Arc<Pool>,
}

impl ModelAccess {
    /// Opens the state directory of a node; `circle` provides the addresses of the admitted nodes.
    ///
    /// # Errors
    /// Returns an error if the directory is not a node's.
    pub fn open(directory: &Path, circle: &CircleState) -> Result<Self> {
        let file = NodeFile::load(directory)?;
        let identity = Identity::load(&directory.join("identity.key"))?;
        let nodes: BTreeMap<NodeName, NodeAddress> =
            circle.nodes().filter_map(|node| Some((node.name.clone(), address_of(node)?))).collect();
        let own = store_directories(directory, &file);
        let context = StoreContext::new()
            .with_nodes(identity, move |name| nodes.get(name).cloned())
            .with_own_stores(file.admission.name, own);
        Ok(Self { context, pool: Pool::per_core() })
    }

    /// Returns every store of every admitted storage node, as their admissions name them.
    ///
    /// # Errors
    /// Returns an error if no node offers storage.
    pub async fn stores_of_all_nodes(&self, circle: &CircleState) -> Result<Vec<StoreReference>> {
        let stores: Vec<StoreReference> = circle
            .nodes()
            .filter_map(|node| Some((node, node.storage.as_ref()?)))
            .flat_map(|(node, storage)| {
                storage.stores.iter().map(|store| node_store(&node.name, store.as_str()))
            })
            .collect();
        if stores.is_empty() {
            return Err(anyhow!("no admitted node offers storage; name stores with --store URL"));
        }
        Ok(stores)
    }

    /// Imports a model and registers it with its key wrapped to every member and every admitted worker, by
    /// this member.
    ///
    /// # Errors
    /// Returns the rejection of the source, a store, the placement rule or control. Earlier models are
    /// untouched.
    pub async fn import(
        &self,
        session: &Session,
        member: &MemberKey,
        source: &Path,
        request: ImportRequest,
        bar: ProgressBar,
    ) -> Result<ImportSummary> {
        refuse_taken_name(session, &request.name).await?;
        let key = ModelKey::generate()?;
        let options = ImportOptions {
            erasure: request.erasure,
            placement: PlacementRule { shards_per_domain_max: request.shards_per_domain_max },
            is_foreign_allowed: request.is_foreign_allowed,
            ..ImportOptions::new(request.name, model_store::fresh_nonce()?)
        };
        let stores: Vec<Store> =
            request.stores.iter().map(|store| Store::open_or_closed(store, &self.context)).collect();
        bar.set_style(bytes_style());
        let shown = bar.clone();
        let progress = move |done: model_store::ImportProgress| {
            shown.set_length(done.bytes_total);
            shown.set_position(done.bytes_done);
        };
        let imported = model_store::import(source, options, &stores, &key, &self.pool, progress)
            .await
            .map_err(|error| Refusal::of(error.code(), &error))?;
        bar.finish_and_clear();
        let record = imported.record.clone();
        imported.check_fresh(SystemTime::now()).map_err(|error| Refusal::of(error.code(), &error))?;
        if let Err(error) = register::register(session, member, &key, &record).await {
            if is_unregistered(session, &error, &record).await {
                model_store::let_go(&imported, &stores).await;
            }
            return Err(error);
        }
        Ok(ImportSummary { record, notes: imported.notes })
    }

    /// Refuses a name that is taken, before long work for it.
    ///
    /// # Errors
    /// The refusal, or the failure to ask control.
    pub async fn check_name(session: &Session, name: &ModelName) -> Result<()> {
        refuse_taken_name(session, name).await
    }

    /// Verifies every shard of a model.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be read.
    pub async fn verify(&self, record: &ModelRecord, bar: ProgressBar) -> Result<HealthSummary> {
        let (manifest, stores) = self.manifest(record).await?;
        let faults = FaultLog::default();
        let report =
            model_store::verify(&manifest, &stores, &self.pool, faults.sink(), show(&bar, record.segments))
                .await?;
        bar.finish_and_clear();
        Ok(HealthSummary::new(&report, &faults))
    }

    /// Compares every byte of a directory with a stored model's content.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be read, or the refusal that names the first difference.
    pub async fn compare(&self, record: &ModelRecord, directory: &Path) -> Result<()> {
        let (manifest, _) = self.manifest(record).await?;
        let directory = directory.to_path_buf();
        let compare = move || model_store::compare_content(&directory, &manifest);
        let compared = tokio::task::spawn_blocking(compare).await?;
        Ok(compared.map_err(|error| Refusal::of(error.code(), &error))?)
    }

    /// Rewrites the wrong and missing shards of a model.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be read.
    pub async fn repair(&self, record: &ModelRecord, bar: ProgressBar) -> Result<RepairSummary> {
        let (manifest, stores) = self.manifest(record).await?;
        let faults = FaultLog::default();
        let report =
            model_store::repair(&manifest, &stores, &self.pool, faults.sink(), show(&bar, record.segments))
                .await?;
        bar.finish_and_clear();
        Ok(RepairSummary::new(report, &faults))
    }

    /// Returns the model's manifest and its stores, in shard order.
    ///
    /// # Errors
    /// Returns an error if no store has the manifest.
    async fn manifest(
        &self,
        record: &ModelRecord,
    ) -> Result<(Arc<protocol::model::ModelManifest>, Vec<Store>)> {
        let stores: Vec<Store> =
            record.stores.iter().map(|store| Store::open_or_closed(store, &self.context)).collect();
        let manifest = model_store::fetch_manifest(record.root, &stores, &self.pool)
            .await
            .map_err(|error| Refusal::of(error.code(), &error))?;
        Ok((manifest, stores))
    }
}

/// Returns whether control refused to register a model and does not list it, so that its objects can go.
async fn is_unregistered(session: &Session, error: &anyhow::Error, record: &ModelRecord) -> bool {
    if !matches!(error.downcast_ref(), Some(ClientError::Refused(_))) {
        return false;
    }
    let listed: Result<Page<ModelRecord>, ClientError> = session.client.get("/v1/models").await;
    listed.is_ok_and(|models| models.items.iter().all(|other| other.root != record.root))
}

fn bytes_style() -> indicatif::ProgressStyle {
    indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        .expect("the template is a constant")
}

/// Returns a callback that shows the progress in segments. They are read in groups, a unit without meaning
/// for people.
fn show(bar: &ProgressBar, segments: u64) -> impl Fn(u64, u64) {
    let bar = bar.clone();
    bar.set_length(segments);
    move |done, groups| bar.set_position(segments_done(done, groups, segments))
}

/// Returns the number of segments done after this number of groups; all after the last group.
fn segments_done(done: u64, groups: u64, segments: u64) -> u64 {
    let share = u128::from(segments) * u128::from(done) / u128::from(groups.max(1));
    u64::try_from(share).unwrap_or(segments).min(segments)
}

fn address_of(node: &NodeAdmission) -> Option<NodeAddress> {
    let address = node.storage.as_ref()?.address.parse().ok()?;
    Some(NodeAddress { address, key: node.id.0 })
}

/// Returns a reference to a store of a node; its failure domain is the node.
#[must_use]
pub(super) fn node_store(node: &NodeName, store: &str) -> StoreReference {
    StoreReference { url: format!("node://{node}/{store}"), failure_domain: node.to_string() }
}

/// Returns a reference to the store at a URL.
///
/// Its failure domain is the node, the bucket or the directory that the URL names.
#[must_use]
pub fn store_reference(url: &str) -> StoreReference {
    let domain =
        url.split("://").nth(1).and_then(|rest| rest.split('/').next()).filter(|host| !host.is_empty());
    StoreReference { url: url.to_string(), failure_domain: domain.unwrap_or(url).to_string() }
}

#[cfg(test)]
mod tests {
    use super::segments_done;

    #[test]
    fn progress_is_counted_in_segments_for_any_group_size() {
        for (groups, segments, expected) in
            [(1, 12, vec![0, 12]), (3, 12, vec![0, 4, 8, 12]), (4, 10, vec![0, 2, 5, 7, 10]), (0, 0, vec![0])]
        {
            let shown: Vec<u64> = (0..=groups).map(|done| segments_done(done, groups, segments)).collect();
            assert_eq!(shown, expected, "{segments} in {groups}");
        }
    }
}
