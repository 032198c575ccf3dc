//! Demonstration step: one flipped bit of a shard on disk is detected, read around, and repaired.

use super::Narrator;
use crate::node::ModelAccess;
use crate::session::Session;
use crate::up::cluster::LocalCluster;
use crate::up::layout::NODES;
use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::ProgressBar;
use model_store::{SWEEP_AGE_DEFAULT, ShardFault};
use protocol::api::Page;
use protocol::model::ModelRecord;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub(crate) async fn flip_a_bit(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let session = cluster.session().await?;
    let models: Page<ModelRecord> = session.client.get("/v1/models").await?;
    let record = models.items.into_iter().find(|record| record.name.as_str() == "tiny");
    let record = record.ok_or_else(|| anyhow!("model tiny is not stored"))?;
    let access = ModelAccess::open(&cluster.layout.node(NODES[1]), &session.circle)?;
    let shard = flip(cluster, &access, &record).await?;
    let began = Instant::now();
    let seen: Arc<Mutex<Vec<ShardFault>>> = Arc::default();
    let sink = seen.clone();
    let faults: model_store::FaultSink = Arc::new(move |fault: ShardFault| {
        sink.lock().expect("no holder of this lock panics").push(fault);
    });
    let read = access.read_whole(&session, &record, faults).await?;
    narrator.say(format!(
        "flipped a bit of {}: every byte still reads right ({} segments, {} rebuilt from the other shards)",
        shard.file_name().unwrap_or_default().to_string_lossy(),
        read.segments,
        read.rebuilt
    ));
    let repaired = access.repair(&record, ProgressBar::hidden()).await?;
    if read.rebuilt == 0 {
        bail!("the flipped bit was not noticed while reading");
    }
    if repaired.shards_rewritten != 1 || !repaired.complete {
        bail!("one shard was to be repaired: {}", repaired.text());
    }
    let again = access.verify(&record, ProgressBar::hidden()).await?;
    if again.faults != 0 {
        bail!("faults are left after the repair: {}", again.text());
    }
    let named = seen.lock().expect("no holder of this lock panics").first().cloned();
    let named = named.context("no shard was named")?;
    if !shard.ends_with(&named.object) || Some(&named.store) != record.stores.first().map(|store| &store.url)
    {
        bail!("another shard was named: {named}");
    }
    narrator
        .say(format!("caught, read around, repaired in {:.2} s ({named})", began.elapsed().as_secs_f64()));
    look_for_dead_objects(&access, &session, narrator).await
}

/// Compares the objects in every node's stores with the register, as a dry run of garbage collection.
async fn look_for_dead_objects(access: &ModelAccess, session: &Session, narrator: &Narrator) -> Result<()> {
    let stores = access.stores_of_all_nodes(&session.circle).await?;
    let found = access.sweep(session, &stores, SWEEP_AGE_DEFAULT, false, ProgressBar::hidden()).await?;
    if found.registered.objects == 0 {
        bail!("no store names an object of a registered model: {}", found.text());
    }
    narrator.say(format!(
        "swept, for show: {} of registered models in {} stores, {} that nobody needs",
        found.registered,
        stores.len(),
        found.dead
    ));
    Ok(())
}

/// Flips one bit early in the first data shard of a model's first segments, on disk.
async fn flip(cluster: &LocalCluster, access: &ModelAccess, record: &ModelRecord) -> Result<PathBuf> {
    let (manifest, _) = access.manifest(record).await?;
    let store = record.stores.first().context("a model has stores")?;
    let place = store.url.strip_prefix("node://").and_then(|rest| rest.split_once('/'));
    let (node, store) = place.context("the demonstration's stores are behind nodes")?;
    let nonce = manifest.nonce.to_string();
    let objects =
        cluster.layout.node(node).join("stores").join(store).join("models").join(&nonce[..2]).join(&nonce);
    let first = std::fs::read_dir(&objects)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).min();
    let path = first.context("the store holds shards of the model")?;
    let mut bytes = std::fs::read(&path)?;
    // Near the start, to be within the first segment's shard, which always has some bytes.
    let at = bytes.len().min(64) / 2;
    bytes[at] ^= 0b0001_0000;
    std::fs::write(&path, bytes)?;
    Ok(path)
}
