//! The script of the demonstration: every step performs the real operation, checks it, and prints its
//! observations.
//!
//! A failed step ends the demonstration with an error.

mod answer;
mod deploy;
mod farewell;
mod flip;
mod kill;
mod offline;
mod openai;
mod orders;
mod own;
mod scan;
mod wipe;

use super::UpArguments;
use super::cluster::{LOOK_AGAIN, LocalCluster};
use super::layout::{MEMBERS, NODES, REPLICAS, REQUIRED};
use anyhow::{Result, anyhow, bail};
use openai::OpenAi;
use protocol::api::ServiceView;
use std::path::Path;
use std::time::{Duration, Instant};

/// Timeout for the cluster to recover completely at the end.
const HEALTHY_LIMIT: Duration = Duration::from_secs(120);

/// Prints lines of the demonstration, each with the time since the start.
pub(crate) struct Narrator {
    began: Instant,
}

impl Narrator {
    /// Prints a text; its first line is prefixed with the time.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        let mut lines = text.as_ref().lines();
        println!("{:6.2} s  {}", self.began.elapsed().as_secs_f64(), lines.next().unwrap_or_default());
        for line in lines {
            println!("          {line}");
        }
    }
}

/// Runs the whole demonstration.
///
/// # Errors
/// Returns the error of the first step that fails.
pub(super) async fn tell(cluster: &LocalCluster, arguments: &UpArguments, began: Instant) -> Result<()> {
    let narrator = Narrator { began };
    introduce(cluster, &narrator).await?;
    let minilm = given(arguments.minilm.as_deref(), "--minilm")?;
    let tiny = given(arguments.tiny.as_deref(), "--tiny")?;
    let key = deploy::api_key(cluster).await?;
    deploy::serve(cluster, &narrator, &[("minilm", minilm, 2, 3), ("tiny", tiny, 2, 3)]).await?;
    let api = OpenAi::new(cluster.gateway(), key);
    answer::first_answers(&api, &narrator, arguments.documents.as_deref()).await?;
    flip::flip_a_bit(cluster, &narrator).await?;
    orders::hand_over_bad_orders(cluster, &narrator).await?;
    kill::kill_a_node(cluster, &api, &narrator).await?;
    offline::verify(cluster, &narrator).await?;
    scan::scan_ports(cluster, &narrator)?;
    wipe::wipe_a_node(cluster, &api, &narrator).await?;
    end_healthy(cluster, &narrator).await
}

/// Waits until the cluster has recovered from everything that the demonstration broke.
async fn end_healthy(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let deadline = Instant::now() + HEALTHY_LIMIT;
    loop {
        let status = cluster.status().await?;
        if status.healthy {
            let limits = status.not_enforced.iter().map(|limits| format!("\nnot enforced: {limits}"));
            narrator.say(format!("status: {}{}", status.summary, limits.collect::<String>()));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "not healthy after {} s: {} {:?}",
                HEALTHY_LIMIT.as_secs(),
                status.summary,
                status.findings
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn given<'a>(path: Option<&'a Path>, flag: &str) -> Result<&'a Path> {
    path.ok_or_else(|| anyhow!("the demonstration needs {flag} DIR; `cargo xtask up` gives it"))
}

async fn introduce(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let status = cluster.status().await?;
    narrator.say(format!(
        "{REPLICAS} control replicas, {} nodes and a gateway run as processes of this machine (replica {} leads)",
        NODES.len(),
        status.leader.map_or("?".into(), |leader| leader.to_string()),
    ));
    let session = cluster.session().await?;
    let members = MEMBERS.join(", ");
    let verb = if cluster.founded_now { "founded" } else { "found again" };
    narrator.say(format!(
        "circle demo {} {verb}: {members} ({REQUIRED} of {}; their keys are demonstration files, never use them elsewhere)",
        session.circle.id().short(),
        MEMBERS.len()
    ));
    Ok(())
}

/// Completes the recovery that an earlier run began and did not finish.
///
/// # Errors
/// Returns an error if a node that asks for admission cannot be admitted, or shards cannot be rebuilt.
pub(super) async fn finish_earlier_run(cluster: &LocalCluster, began: Instant) -> Result<()> {
    wipe::finish_earlier_run(cluster, &Narrator { began }).await
}

/// Creates the demonstration's inference key, if no earlier run did.
///
/// # Errors
/// Returns an error if control does not answer, or the file cannot be written.
pub(super) async fn make_api_key(cluster: &LocalCluster) -> Result<()> {
    deploy::api_key(cluster).await.map(|_| ())
}

/// Imports, proposes and serves a model of the user, and sends it one request.
///
/// # Errors
/// Returns an error if the model is rejected, its replicas do not start, or it does not answer.
pub(super) async fn serve_own_model(cluster: &LocalCluster, model: &Path, began: Instant) -> Result<()> {
    let narrator = Narrator { began };
    introduce(cluster, &narrator).await?;
    let name = own::name(cluster, model).await?;
    deploy::serve(cluster, &narrator, &[(&name, model, 1, 2)]).await?;
    let api = OpenAi::new(cluster.gateway(), deploy::api_key(cluster).await?);
    let service: ServiceView = cluster.context()?.client()?.get(&format!("/v1/services/{name}")).await?;
    answer::ask_own_model(&api, &narrator, &service).await
}

pub(super) use farewell::print_farewell;
