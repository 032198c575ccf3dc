//! Demonstration step: a node that lost its disk is admitted again by a vote, and serves again.

use super::Narrator;
use super::kill::{descendants, wait_until_alive};
use super::openai::OpenAi;
use crate::node::ModelAccess;
use crate::session::Session;
use crate::up::cluster::{LOOK_AGAIN, LocalCluster};
use crate::up::layout::{MEMBERS, NODES};
use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::NodeName;
use protocol::agent::{PendingNode, SlotState};
use protocol::api::{Page, ProposalState, ScaleRequest, ServiceView};
use protocol::governance::Choice;
use protocol::model::ModelRecord;
use std::time::{Duration, Instant};

/// Timeout for a fresh node to ask for admission.
const ENROL_LIMIT: Duration = Duration::from_secs(120);
/// Timeout for the replicas to answer again.
const SERVE_LIMIT: Duration = Duration::from_secs(180);
/// The service whose replicas are observed.
const SERVICE: &str = "minilm";

/// Deletes a node's disk and lets the node return with new keys under the same name.
///
/// The node asks for admission; one member proposes it and wraps the models' keys, and two members sign. Then
/// the node's shards are rebuilt, its former slots are served again, and the node itself serves one more.
pub(crate) async fn wipe_a_node(cluster: &LocalCluster, api: &OpenAi, narrator: &Narrator) -> Result<()> {
    let before = service(cluster).await?;
    let holders = before.slots.iter().filter_map(|slot| slot.node.clone());
    let victim = holders.max().with_context(|| format!("{SERVICE} runs somewhere"))?;
    for pid in descendants(cluster.pid(victim.as_str())?)? {
        // A process may already have ended, which is the desired result.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    cluster.kill(victim.as_str()).await?;
    cluster.wipe_node(victim.as_str())?;
    let began = Instant::now();
    cluster.restart(victim.as_str())?;
    wait_until_it_asks(&cluster.session().await?, &victim).await?;
    admit_again(cluster, &victim).await?;
    let rebuilt = rebuild_shards(cluster).await?;
    if rebuilt == 0 {
        bail!("a wiped disk left no shard to rebuild");
    }
    api.embed(SERVICE, &["still here"]).await?;
    narrator.say(format!(
        "{victim} lost its disk, asked with new keys, was admitted by 2 votes; {rebuilt} shards rebuilt; {:.1} s in all",
        began.elapsed().as_secs_f64()
    ));
    serve_there(cluster, narrator, &victim, before.desired).await
}

/// Waits until all replicas answer again without manual steps, then checks that the new node loads and serves
/// too.
///
/// For the check one more replica is requested, within the envelope; the new node is the best placement for
/// it.
async fn serve_there(
    cluster: &LocalCluster,
    narrator: &Narrator,
    node: &NodeName,
    desired: u32,
) -> Result<()> {
    let began = Instant::now();
    wait_until(cluster, "is whole again", |view| view.ready >= desired).await?;
    scale(cluster, desired + 1).await?;
    let here = |view: &ServiceView| {
        let held = view.slots.iter().filter(|slot| slot.node.as_ref() == Some(node));
        held.filter(|slot| slot.report.as_ref().is_some_and(|report| report.state == SlotState::Ready))
            .count()
    };
    wait_until(cluster, "answers there too", |view| view.ready > desired && here(view) > 0).await?;
    scale(cluster, desired).await?;
    narrator.say(format!(
        "{SERVICE} answers on {node} again, the model's key wrapped to its new keys; {:.1} s after its admission",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn service(cluster: &LocalCluster) -> Result<ServiceView> {
    cluster.session().await?.client.get(&format!("/v1/services/{SERVICE}")).await.map_err(Into::into)
}

async fn scale(cluster: &LocalCluster, replicas: u32) -> Result<()> {
    let path = format!("/v1/services/{SERVICE}/scale");
    let _: serde_json::Value =
        cluster.session().await?.client.post(&path, &ScaleRequest { replicas }).await?;
    Ok(())
}

async fn wait_until(cluster: &LocalCluster, what: &str, holds: impl Fn(&ServiceView) -> bool) -> Result<()> {
    let deadline = Instant::now() + SERVE_LIMIT;
    loop {
        let view = service(cluster).await?;
        if holds(&view) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {} s: {SERVICE} {what}: {:?}", SERVE_LIMIT.as_secs(), view.slots);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Completes the recovery that an earlier run began and did not finish.
///
/// A node that lost its disk is admitted, and missing or altered shards are rewritten.
pub(crate) async fn finish_earlier_run(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let pending: Page<PendingNode> = cluster.context()?.client()?.get("/v1/pending-nodes").await?;
    let known = |pending: &PendingNode| NODES.contains(&pending.admission.name.as_str());
    for node in pending.items.into_iter().filter(known).map(|pending| pending.admission.name) {
        admit_again(cluster, &node).await?;
        narrator.say(format!("{node} still asked for admission after an earlier run; admitted by 2 votes"));
    }
    let session = cluster.session().await?;
    for node in NODES {
        wait_until_alive(&session, node).await?;
    }
    let rebuilt = rebuild_shards(cluster).await?;
    if rebuilt > 0 {
        narrator.say(format!("{rebuilt} shards that an earlier run left missing or altered were rebuilt"));
    }
    Ok(())
}

/// One member proposes the admission and wraps the models' keys; two members vote.
async fn admit_again(cluster: &LocalCluster, node: &NodeName) -> Result<()> {
    let session = cluster.session().await?;
    let member = cluster.member(MEMBERS[1])?;
    let (view, _) = crate::cli::admit(&session, &member, node, None, "its disk was replaced".into()).await?;
    let mut state = view.state;
    for name in &MEMBERS[1..] {
        state = session.vote(&view.proposal, &cluster.member(name)?, Choice::Approve).await?.state;
    }
    if state != ProposalState::Approved {
        bail!("two votes did not admit {node}: {state:?}");
    }
    wait_until_alive(&cluster.session().await?, node.as_str()).await
}

async fn wait_until_it_asks(session: &Session, node: &NodeName) -> Result<()> {
    let deadline = Instant::now() + ENROL_LIMIT;
    loop {
        let page: Page<PendingNode> = session.client.get("/v1/pending-nodes").await?;
        if page.items.iter().any(|pending| pending.admission.name == *node) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{node} did not ask for admission within {} s", ENROL_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn rebuild_shards(cluster: &LocalCluster) -> Result<u64> {
    let session = cluster.session().await?;
    let access = ModelAccess::open(&cluster.layout.node(NODES[0]), &session.circle)?;
    let models: Page<ModelRecord> = session.client.get("/v1/models").await?;
    let mut rebuilt = 0;
    for record in models.items {
        let report = access.repair(&record, ProgressBar::hidden()).await?;
        if !report.complete {
            bail!("model {} was not repaired: {}", record.name, report.text());
        }
        rebuilt += report.shards_rewritten;
    }
    Ok(rebuilt)
}
