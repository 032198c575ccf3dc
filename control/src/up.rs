//! `quorate up`: a whole cluster on this machine.
//!
//! Three control replicas, three nodes and a gateway, each a real process, found a circle. With `--model` the
//! members deploy the user's model directory.
//!
//! Simulated parts are labelled. One machine acts as all machines, the members' keys are files beside each
//! other, and GPUs are simulated only with `--simulate-gpus`.

mod cluster;
mod deploy;
mod farewell;
mod founding;
mod layout;
mod own;
mod ports;
mod trial;

use crate::print;
use crate::terminal;
use anyhow::{Context as _, Result};
use clap::Args;
use cluster::LocalCluster;
use layout::{Layout, MEMBERS, NODES, REPLICAS, REQUIRED};
use protocol::api::ServiceView;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `quorate up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  quorate up                                   start, or go on with what an earlier run left
  quorate up --model ~/models/my-llama         the same, and serve this model
  quorate up --fresh --simulate-gpus 8xH100    simulate a GPU cluster's scheduling")]
pub struct UpArguments {
    /// Directory of the cluster's state
    #[arg(long, default_value = ".quorate/demo", value_name = "DIR")]
    dir: PathBuf,
    /// Delete the state of an earlier run
    #[arg(long)]
    fresh: bool,
    /// Serve the model, stop everything, and exit 0 only if it answered
    #[arg(long, requires = "model")]
    once: bool,
    /// Serve this Hugging Face model directory
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Simulate GPUs on every node, like `8xH100`: they are scheduled and compute nothing
    #[arg(long, value_name = "COUNTxNAME")]
    simulate_gpus: Option<String>,
}

/// Prints the steps of a start, each with the time since the command began.
struct StartupLog {
    began: Instant,
}

impl StartupLog {
    /// Prints one step.
    fn line(&self, text: impl std::fmt::Display) {
        let text = terminal::lines(&text.to_string());
        print::out(format_args!("{:6.2} s  {text}", self.began.elapsed().as_secs_f64()));
    }
}

/// Runs the cluster until Ctrl-C, or with `--once` until the model's test request has finished.
///
/// # Errors
/// Returns an error if the cluster cannot start, or the model is not served.
pub async fn run(arguments: UpArguments) -> Result<()> {
    let log = StartupLog { began: Instant::now() };
    let layout = Layout::claim(&arguments.dir, arguments.fresh)?;
    let cluster = LocalCluster::start(layout, arguments.simulate_gpus.as_deref()).await?;
    let outcome = tokio::select! {
        outcome = live(&cluster, &arguments, &log) => outcome,
        failed = cluster.keep_alive() => failed,
        signal = until_signal() => {
            print::out("\nstopping");
            signal
        }
    };
    cluster.stop().await.context("stop the cluster")?;
    outcome
}

async fn live(cluster: &LocalCluster, arguments: &UpArguments, log: &StartupLog) -> Result<()> {
    // The printed commands use the key, so it must exist in every mode.
    let key = deploy::api_key(cluster).await?;
    introduce(cluster, log).await?;
    match &arguments.model {
        Some(model) => serve_own_model(cluster, model, &key, log).await?,
        None => print::out(format_args!("cluster ready after {:.1} s", log.began.elapsed().as_secs_f64())),
    }
    if arguments.once {
        return Ok(());
    }
    trial::until_known(&cluster.gateway(), &key).await?;
    farewell::print_farewell(cluster).await?;
    std::future::pending().await
}

/// Prints the parts of the cluster, when all of them answer.
async fn introduce(cluster: &LocalCluster, log: &StartupLog) -> Result<()> {
    let status = cluster.status().await?;
    log.line(format!(
        "{REPLICAS} control replicas, {} nodes and a gateway run as processes of this machine \
         (replica {} leads)",
        NODES.len(),
        status.leader.map_or("?".into(), |leader| leader.to_string()),
    ));
    let session = cluster.session().await?;
    let members = MEMBERS.join(", ");
    let verb = if cluster.founded_now { "founded" } else { "found again" };
    log.line(format!(
        "circle demo {} {verb}: {members} ({REQUIRED} of {}; their keys are demonstration files, \
         never use them elsewhere)",
        session.circle.id().short(),
        MEMBERS.len()
    ));
    Ok(())
}

/// Imports, proposes and serves a model of the user, and sends it one request.
async fn serve_own_model(cluster: &LocalCluster, model: &Path, key: &str, log: &StartupLog) -> Result<()> {
    let name = own::name(cluster, model).await?;
    deploy::serve(cluster, log, &name, model).await?;
    let service: ServiceView = cluster.context()?.client()?.get(&format!("/v1/services/{name}")).await?;
    trial::until_known(&cluster.gateway(), key).await?;
    trial::ask(log, &cluster.gateway(), key, &service).await
}

async fn until_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}
