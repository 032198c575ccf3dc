//! Step: one flipped bit of a shard on disk is detected, read around, and repaired.

use super::service::{self, is_complete, is_on};
use super::{Demonstration, NODES, POLL_INTERVAL};
use anyhow::{Context as _, Result, bail};
use protocol::api::ServiceView;
use protocol::canonical;
use protocol::limits::MODEL_MANIFEST_BYTES_MAX;
use protocol::model::{ModelManifest, ModelRecord};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The model whose shard is altered, and its service.
const MODEL: &str = "tiny";
/// Timeout for a node to log that it has read the whole model.
const LOG_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn flip_a_bit(demonstration: &Demonstration) -> Result<()> {
    let quorate = &demonstration.quorate;
    let record: ModelRecord = quorate.json(&["model", "show", MODEL]).await?;
    let shard = flip(demonstration, &record)?;
    let began = Instant::now();
    let (node, rebuilt) = load_on_another_node(demonstration).await?;
    demonstration.say(format!(
        "flipped a bit of {}: {node} loads {MODEL} all the same ({} segments, {rebuilt} rebuilt from the \
         other shards)",
        shard.file_name().unwrap_or_default().to_string_lossy(),
        record.segments,
    ));
    if rebuilt == 0 {
        bail!("the flipped bit was not noticed while reading");
    }
    let (_, found) = quorate.verdict(&["model", "verify", MODEL]).await?;
    let named = &found["faulty"][0];
    let object = named["object"].as_str().unwrap_or_default();
    let store = record.stores.first().map(|store| store.url.as_str());
    if found["faults"] != 1 || !shard.ends_with(object) || named["store"].as_str() != store {
        bail!("one altered shard was to be named: {found}");
    }
    let repaired: Value = quorate.json(&["model", "repair", MODEL]).await?;
    if repaired["shards_rewritten"] != 1 || repaired["complete"] != true {
        bail!("one shard was to be repaired: {repaired}");
    }
    let again: Value = quorate.json(&["model", "verify", MODEL]).await?;
    if again["faults"] != 0 {
        bail!("faults are left after the repair: {again}");
    }
    demonstration.say(format!(
        "caught, read around, repaired in {:.2} s ({})",
        began.elapsed().as_secs_f64(),
        named["message"].as_str().unwrap_or_default()
    ));
    look_for_dead_objects(demonstration).await
}

/// Flips one bit early in the first data shard of the model's first segments, on disk.
fn flip(demonstration: &Demonstration, record: &ModelRecord) -> Result<PathBuf> {
    let store = record.stores.first().context("a model has stores")?;
    let place = store.url.strip_prefix("node://").and_then(|rest| rest.split_once('/'));
    let (node, store) = place.context("the demonstration's stores are behind nodes")?;
    let store = demonstration.node(node).join("stores").join(store);
    let nonce = manifest(&store, record)?.nonce.to_string();
    let objects = store.join("models").join(&nonce[..2]).join(&nonce);
    let first = std::fs::read_dir(&objects)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).min();
    let path = first.context("the store holds shards of the model")?;
    let mut bytes = std::fs::read(&path)?;
    // Near the start, to be within the first segment's shard, which always has some bytes.
    let at = bytes.len().min(64) / 2;
    *bytes.get_mut(at).context("a shard has bytes")? ^= 0b0001_0000;
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// Reads a store's copy of the model's manifest, which names the model's objects.
fn manifest(store: &Path, record: &ModelRecord) -> Result<ModelManifest> {
    let root = record.root.to_string();
    let path = store.join("manifests").join(&root[..2]).join(&root);
    let bytes = std::fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
    Ok(canonical::from_bytes(&bytes, MODEL_MANIFEST_BYTES_MAX)?)
}

/// Scales the service to one more replica, and waits until the node that got it has read the whole model.
/// Returns the node and the number of segments that it rebuilt from other shards.
async fn load_on_another_node(demonstration: &Demonstration) -> Result<(String, u64)> {
    let before = service::show(demonstration, MODEL).await?;
    let logs = NODES.map(|node| demonstration.directory.join("logs").join(format!("{node}.log")));
    let lengths: BTreeMap<&Path, u64> =
        logs.iter().map(|log| (log.as_path(), std::fs::metadata(log).map_or(0, |log| log.len()))).collect();
    let fresh = |view: &ServiceView| {
        let mut complete = view.slots.iter().filter(|slot| is_complete(slot)).filter_map(|s| s.node.as_ref());
        complete.find(|node| !before.slots.iter().any(|slot| is_on(slot, node.as_str()))).cloned()
    };
    let (more, expected) = (before.desired + 1, "answers on another node");
    let node = service::scale_until(demonstration, MODEL, more, expected, fresh).await?;
    let log = demonstration.directory.join("logs").join(format!("{node}.log"));
    let from = lengths.get(log.as_path()).copied().unwrap_or_default();
    let rebuilt = wait_for_log(&log, from).await?;
    service::scale(demonstration, MODEL, before.desired).await?;
    Ok((node.to_string(), rebuilt))
}

/// Waits for the line with which a node logs that the model is complete, and returns its count of rebuilt
/// segments.
async fn wait_for_log(log: &Path, from: u64) -> Result<u64> {
    let deadline = Instant::now() + LOG_LIMIT;
    loop {
        let bytes = std::fs::read(log).with_context(|| format!("read `{}`", log.display()))?;
        let fresh = bytes.get(usize::try_from(from)?..).unwrap_or_default();
        if let Some(rebuilt) = String::from_utf8_lossy(fresh).lines().find_map(rebuilt_in) {
            return Ok(rebuilt);
        }
        if Instant::now() > deadline {
            bail!("`{}` does not say that {MODEL} is complete", log.display());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns the count of rebuilt segments from a line of a node's log, if it says that the model is complete.
fn rebuilt_in(line: &str) -> Option<u64> {
    let event: Value = serde_json::from_str(line).ok()?;
    let fields = &event["fields"];
    let complete = fields["message"] == "model complete" && fields["model"] == MODEL;
    fields["rebuilt"].as_u64().filter(|_| complete)
}

/// Compares the objects in every node's stores with the register, as a dry run of garbage collection.
async fn look_for_dead_objects(demonstration: &Demonstration) -> Result<()> {
    let found: Value = demonstration.quorate.json(&["model", "sweep", "--dry-run"]).await?;
    let count = |kind: &str| found[kind]["objects"].as_u64().unwrap_or_default();
    if count("registered") == 0 {
        bail!("no store names an object of a registered model: {found}");
    }
    demonstration.say(format!(
        "swept, for show: {} objects of registered models in {} stores, {} that nobody needs",
        count("registered"),
        found["stores"].as_array().map_or(0, Vec::len),
        count("dead")
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_rebuilt_segments_is_read_from_a_nodes_log() {
        let line = |message: &str, model: &str| {
            format!(r#"{{"level":"INFO","fields":{{"message":"{message}","model":"{model}","rebuilt":3}}}}"#)
        };
        assert_eq!(rebuilt_in(&line("model complete", "tiny")), Some(3));
        assert_eq!(rebuilt_in(&line("model complete", "minilm")), None);
        assert_eq!(rebuilt_in(&line("load interrupted, retrying", "tiny")), None);
        assert_eq!(rebuilt_in("no JSON"), None);
    }
}
