//! Step: a node that lost its disk is admitted again by a vote, and serves again.

use super::recovery::{admit_again, asks, rebuild_shards};
use super::service::{self, answers, is_on};
use super::{Demonstration, POLL_INTERVAL};
use crate::openai::OpenAi;
use crate::processes::{PausedSupervisor, kill_node};
use anyhow::{Context as _, Result, bail};
use protocol::api::{NodeView, ServiceView};
use std::time::{Duration, Instant};

/// Timeout for a fresh node to ask for admission.
const ENROL_LIMIT: Duration = Duration::from_secs(120);
/// The service whose replicas are observed.
const SERVICE: &str = "minilm";

/// Deletes a node's disk and lets the node return with new keys under the same name.
///
/// The node asks for admission and is proposed; two members sign, and their clients share the keys. Then
/// the node's shards are rebuilt, its former slots are served again, and the node itself serves one more.
pub(super) async fn wipe_a_node(demonstration: &Demonstration, api: &OpenAi) -> Result<()> {
    let before = service::show(demonstration, SERVICE).await?;
    let holders = before.slots.iter().filter_map(|slot| slot.node.clone());
    let victim = holders.max().with_context(|| format!("{SERVICE} runs somewhere"))?;
    let victim = victim.as_str();
    let began = replace_disk(demonstration, victim).await?;
    let deadline = Instant::now() + ENROL_LIMIT;
    while !asks(demonstration, victim).await? {
        if Instant::now() > deadline {
            bail!("{victim} did not ask for admission within {} s", ENROL_LIMIT.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    admit_again(demonstration, victim).await?;
    let rebuilt = rebuild_shards(demonstration).await?;
    if rebuilt == 0 {
        bail!("a wiped disk left no shard to rebuild");
    }
    api.embed(SERVICE, &["still here"]).await?;
    demonstration.say(format!(
        "{victim} lost its disk, asked with new keys, was admitted by 2 votes; {rebuilt} shards rebuilt; \
         {:.1} s in all",
        began.elapsed().as_secs_f64()
    ));
    serve_there(demonstration, victim, before.desired).await
}

/// Kills the node, deletes its directory, and prepares an empty one with new keys, as an operator does after
/// replacing the disk. Returns the moment at which the node may start again.
async fn replace_disk(demonstration: &Demonstration, node: &str) -> Result<Instant> {
    let view: NodeView = demonstration.quorate.json(&["node", "show", node]).await?;
    let storage = view.admission.storage.context("every node of the demonstration stores models")?;
    let directory = demonstration.node(node);
    let path = directory.display().to_string();
    let mut words = vec!["agent", "init", "--dir", &path, "--name", node, "--region", &view.admission.region];
    words.extend(["--storage", &storage.address]);
    words.extend(storage.stores.iter().flat_map(|store| ["--store", store.as_str()]));
    let _paused = PausedSupervisor::pause(demonstration.up)?;
    kill_node(demonstration.up, &directory)?;
    std::fs::remove_dir_all(&directory).with_context(|| format!("remove `{path}`"))?;
    demonstration.quorate.text(&words).await?;
    Ok(Instant::now())
}

/// Waits until all replicas answer again without manual steps, then checks that the new node loads and serves
/// too.
///
/// For the check one more replica is requested, within the envelope; the new node is the best placement for
/// it.
async fn serve_there(demonstration: &Demonstration, node: &str, desired: u32) -> Result<()> {
    let began = Instant::now();
    let whole = |view: &ServiceView| (view.ready >= desired).then_some(());
    service::wait_until(demonstration, SERVICE, "is whole again", whole).await?;
    let here = |view: &ServiceView| {
        let there = view.slots.iter().any(|slot| is_on(slot, node) && answers(slot));
        (view.ready > desired && there).then_some(())
    };
    service::scale_until(demonstration, SERVICE, desired + 1, "answers there too", here).await?;
    service::scale(demonstration, SERVICE, desired).await?;
    demonstration.say(format!(
        "{SERVICE} answers on {node} again, the model's key wrapped to its new keys; {:.1} s after its \
         admission",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}
