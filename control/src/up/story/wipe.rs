//! The circle's history checked offline, and a node that lost its disk enrolled again by a vote.

use super::Narrator;
use super::kill::{descendants, wait_until_alive};
use super::openai::OpenAi;
use crate::node::ModelAccess;
use crate::session::Session;
use crate::up::cluster::{Cluster, LOOK_AGAIN};
use crate::up::layout::{MEMBERS, NODES};
use anyhow::{Context as _, Result, anyhow, bail};
use human_chain::CircleState;
use indicatif::ProgressBar;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::NodeName;
use protocol::agent::PendingNode;
use protocol::api::{History, Page, ProposalState};
use protocol::governance::Choice;
use protocol::model::ModelRecord;
use std::time::{Duration, Instant};

/// How long a fresh node may take to ask for admission.
const ENROL_LIMIT: Duration = Duration::from_secs(30);

/// Writes the history to a file, reads it back, and checks every signature without any server.
pub(crate) async fn verify_offline(cluster: &Cluster, narrator: &Narrator) -> Result<()> {
    let session = cluster.session().await?;
    let file = cluster.layout.root().join("history.json");
    gpu_agent::files::write_atomically(&file, &serde_json::to_vec_pretty(&session.history)?, 0o644)?;
    let history: History = serde_json::from_slice(&std::fs::read(&file)?)?;
    let circle = cluster.context()?.circle;
    let certificates = || history.bundles.iter().map(|bundle| &bundle.certificate);
    let state = CircleState::replay(&history.genesis, Some(circle), certificates())?;
    let ballots: usize = certificates().map(|certificate| certificate.ballots.len()).sum();
    narrator.say(format!(
        "offline: {} decisions, {ballots} ballots, every signature holds (`quorate verify {} --circle {}…`)",
        state.length(),
        file.display(),
        circle.short()
    ));
    refuse_an_altered_history(history, circle)
}

fn refuse_an_altered_history(mut history: History, circle: protocol::CircleId) -> Result<()> {
    let bundle = history.bundles.first_mut().context("something was decided")?;
    bundle.certificate.proposal.reason.push('!');
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    match CircleState::replay(&history.genesis, Some(circle), certificates) {
        Ok(_) => bail!("a history with an altered reason was accepted"),
        Err(_) => Ok(()),
    }
}

/// A node's disk is gone: new keys, the same name. It asks; one member proposes and wraps the models'
/// keys, two sign; its slots serve again and its shards are rebuilt.
pub(crate) async fn wipe_a_node(cluster: &Cluster, api: &OpenAi, narrator: &Narrator) -> Result<()> {
    let name = NODES[NODES.len() - 1];
    for pid in descendants(cluster.pid(name)?)? {
        // One that ended in between is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    cluster.kill(name).await?;
    cluster.wipe_node(name)?;
    let began = Instant::now();
    cluster.restart(name)?;
    let node: NodeName = name.parse().map_err(|error: String| anyhow!(error))?;
    wait_until_it_asks(&cluster.session().await?, &node).await?;
    let rebuilt = admit_again(cluster, &node).await?;
    if rebuilt == 0 {
        bail!("a wiped disk left no shard to rebuild");
    }
    api.embed("minilm", &["still here"]).await?;
    narrator.say(format!(
        "{name} lost its disk, asked with new keys, was admitted by 2 votes; {rebuilt} shards rebuilt; {:.1} s in all",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Admits the nodes that an earlier run left asking: it ended between the loss of a disk and the vote.
pub(crate) async fn admit_who_asks(cluster: &Cluster, narrator: &Narrator) -> Result<()> {
    let pending: Page<PendingNode> = cluster.context()?.client()?.get("/v1/pending-nodes").await?;
    let known = |pending: &PendingNode| NODES.contains(&pending.admission.name.as_str());
    for node in pending.items.into_iter().filter(known).map(|pending| pending.admission.name) {
        let rebuilt = admit_again(cluster, &node).await?;
        narrator.say(format!(
            "{node} still asked for admission after an earlier run; admitted by 2 votes, {rebuilt} shards rebuilt"
        ));
    }
    Ok(())
}

/// One member proposes the admission and wraps the models' keys, two vote, its shards are rebuilt; how many.
async fn admit_again(cluster: &Cluster, node: &NodeName) -> Result<u64> {
    let session = cluster.session().await?;
    let member = cluster.member(MEMBERS[1])?;
    let view = crate::cli::admit(&session, &member, node, None, "its disk was replaced".into()).await?;
    let mut state = view.state;
    for name in &MEMBERS[1..] {
        state = session.vote(&view.proposal, &cluster.member(name)?, Choice::Approve).await?.state;
    }
    if state != ProposalState::Approved {
        bail!("two votes did not admit {node}: {state:?}");
    }
    let session = cluster.session().await?;
    wait_until_alive(&session, node.as_str()).await?;
    rebuild_shards(cluster, &session).await
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

async fn rebuild_shards(cluster: &Cluster, session: &Session) -> Result<u64> {
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
